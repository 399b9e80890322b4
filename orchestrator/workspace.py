"""What an experiment's runs are made of, opened from the store or made there first.

The driver and every training worker build one from the same experiment; what the driver prepared, workers only open.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import data
from data import (
    BatchPlan,
    Collection,
    Examples,
    NegativeSource,
    Qrels,
    RandomNegatives,
    Rows,
    Stage,
    Store,
    UserError,
    fingerprint,
)
from data.collection import GENERATED
from data.pair_scores import Space
from data.store import Json
from orchestrator import cluster
from orchestrator.committee import Committee
from orchestrator.config import Experiment, TrainingSettings
from orchestrator.config_schema import EncoderSettings, NegativesSettings, StudentSettings
from orchestrator.embeddings import Model, VectorSet, embed
from orchestrator.encoder import (
    QUERY_TOWER,
    BiEncoder,
    Pooling,
    layers_of,
    load_encoder,
    own_pooling,
    pad_id,
)
from orchestrator.encoding import Encoding, device
from orchestrator.generation import Generation
from orchestrator.negatives import Sources
from orchestrator.records import TEACHER
from orchestrator.runs import RunSpec, first_run
from orchestrator.teaching import Taught, Teaching
from orchestrator.training import Tokens
from orchestrator.validation import Validator
from orchestrator.weights import ModelFolder, keep, locate, placed

VERSION = 3  # of the check of an encoder
TRIAL_VERSION = 5
MODEL = "model"  # the folder of the trained encoder, in a trial's stage


class EncoderFacts(NamedTuple):
    """What loading an encoder tells: the most tokens that it takes, None where any number, and D."""

    max_tokens: int | None
    dimension: int


class _Part(NamedTuple):
    """An encoder, or one tower of it, as it is loaded; `layers` are those that are kept, None is all."""

    model: ModelFolder
    layers: tuple[int, ...] | None
    pooling: Pooling
    normalize: bool

    @property
    def identity(self) -> dict[str, Json]:
        """What its vectors depend on but the texts."""
        return {
            "weights": self.model.fingerprint,
            "tokenizer": self.model.tokenizer_fingerprint,
            "normalize": self.normalize,
            "pooling": self.pooling,
        }

    @property
    def as_model(self) -> Model:
        """The same, to encode with."""
        inputs: dict[str, Json] = {
            "weights": self.model.fingerprint,
            "layers": self.layers and list(self.layers),
            "normalize": self.normalize,
            "pooling": self.pooling,
        }
        return Model(self.model.path, fingerprint(inputs), self.pooling, self.normalize, self.layers)


@dataclass(frozen=True)
class Opened:
    """What a worker opens a workspace from: the experiment as JSON, and folders of the store."""

    experiment: str
    root: Path  # where the store works
    collection: Path
    model: ModelFolder
    miners: tuple[ModelFolder, ...] = ()  # of the sources of negatives that an encoder mines
    checkers: tuple[ModelFolder, ...] = ()  # of those that a cross-encoder checks
    candidates: tuple[Path, ...] = ()  # of those that are read from a file
    taught: Taught | None = None  # what the teacher said, where a recipe learns from one
    learns: str = "judged"  # from which queries
    encoder: str = ""  # the settings of the one that is trained, as JSON
    seed: int | None = None  # of the run, where it is not the experiment's


class Workspace:
    """The stages before training, each made or opened when it is first asked for.

    It is of the queries that are learned from and of the encoder that is trained: the experiment's own here, that of a
    row in a `Student`.

    Args:
        connect: connects to Ray; called only where something has to be made.
        on_shard: called with (stage, shards done, shards in all) while a stage in shards is made.
    """

    def __init__(
        self,
        experiment: Experiment,
        connect: Callable[[], object] | None = None,
        on_shard: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        self.experiment = experiment
        self.store = Store(experiment.store)
        self.connect = connect
        self.on_shard = on_shard
        self.learns = "judged"
        self.settings = StudentSettings(**experiment.encoder.model_dump())  # of the encoder that is trained
        self.seed = experiment.seed  # of the runs
        self._origin: Workspace | None = None  # whose collection this one has
        self._others: dict[str, Workspace] = {}
        self._students: dict[tuple[str, int], Workspace] = {}

    @classmethod
    def of(cls, opened: Opened) -> Workspace:
        """A worker's: it reads the store and nothing else, wherever it runs."""
        workspace = cls(Experiment.model_validate_json(opened.experiment))
        workspace.learns = opened.learns
        workspace.store = Store(workspace.experiment.store, opened.root)
        workspace.collection = data.open_collection(opened.collection)
        workspace.sources.open(opened.miners, opened.checkers, opened.candidates)
        if workspace.teaching and opened.taught:
            workspace.teaching.open(opened.taught)
        student = workspace.student(StudentSettings.model_validate_json(opened.encoder), opened.seed)
        student.model = opened.model
        return student

    @property
    def opened(self) -> Opened:
        """What a worker needs to open this workspace."""
        assert self.collection.folder is not None
        experiment = self.experiment.model_copy(update={"store": str(self.store)})
        miners = tuple(miner.model for miner in self.sources.miners.values())
        checkers = tuple(checker.model for checker in self.sources.checkers.values())
        candidates = tuple(self.sources.candidates.values())
        taught = self.teaching.taught if self.teaching and self.teaching.ready else None
        sources = miners, checkers, candidates
        folder = self.collection.folder
        return Opened(
            experiment.model_dump_json(),
            self.store.root,
            folder,
            self.model,
            *sources,
            taught,
            self.learns,
            self.settings.model_dump_json(),
            self.seed,
        )

    @cached_property
    def collection(self) -> Collection:
        """The test collection, with the generated queries where these are learned from."""
        if self._origin is not None:
            return self._origin.collection if self.learns == "judged" else self.generation.collection
        config = self.experiment.collection
        splits = config.train_split, config.test_split
        return data.load(self.store, config.format, config.path, splits, config.skip_dangling)

    @property
    def collected(self) -> bool:
        """Whether there is nothing to generate before the collection is there."""
        return self.learns == "judged" or self._origin is None or self.generation.done

    def qrels(self, split: str, key: str) -> Qrels:
        """The judgments of a split. Raises UserError, naming the splits that there are."""
        qrels = self.collection.qrels.get(split)
        if qrels is None:
            there = ", ".join(sorted(self.collection.qrels)) or "none"
            raise UserError(
                f'the collection has no split "{split}"', where=f"collection.{key}", mend=f"It has: {there}."
            )
        return qrels

    @cached_property
    def test_qrels(self) -> Qrels:
        """The judgments of the test split; only the final evaluation asks for them."""
        split = self.experiment.collection.test_split
        qrels = self.qrels(split, "test_split")
        if not len(qrels.relevant):
            raise UserError(
                f'no query of "{split}" has a relevant document',
                where="collection.test_split",
                mend="Name a split with judgments above 0.",
            )
        return qrels

    @cached_property
    def split(self) -> tuple[Qrels, Qrels]:
        """The training judgments in two parts: training and validation; generated queries are never in the second."""
        config = self.experiment.collection
        if config.train_split == config.test_split:
            raise UserError(
                f'train and test are both "{config.test_split}"',
                where="collection.test_split",
                mend="Test queries must not be trained on.",
            )
        qrels = self.qrels(config.train_split, "train_split")
        training, validation = data.split_validation(qrels, config.validation, self.experiment.seed)
        if self.learns == "judged":
            return training, validation
        generated = self.collection.qrels[GENERATED]
        return (generated if self.learns == "generated" else training + generated), validation

    def check_encoder(self, key: str) -> None:
        """Refuse the encoder; `key` is the YAML path that it is said at."""
        with placed(key):
            queries, documents = self.facts, self.document_facts
        longest = {"query_tokens": queries.max_tokens}
        if not self.settings.inherits:
            longest["document_tokens"] = documents.max_tokens
        for name, most in longest.items():
            tokens = getattr(self.settings, name)
            if most is not None and tokens > most:
                raise UserError(
                    f"{tokens} tokens are more than the {most} that this encoder takes",
                    where=f"{key}.{name}",
                    mend=f"Lower it to {most} or less.",
                )
        if queries.dimension != documents.dimension:
            raise UserError(
                f"its towers make vectors of {queries.dimension} and of {documents.dimension} components, which have "
                "no product",
                where=f"{key}.model",
                mend="Take a model whose towers have one dimension.",
            )

    @property
    def two_towers(self) -> bool:
        """Whether another tower than that of the queries encodes documents."""
        return self._documents is not None

    @cached_property
    def facts(self) -> EncoderFacts:
        """What has to be known of the encoder, or of its tower of queries."""
        return self._ask(_Part(*self._architecture, self.pooling, self.normalize))

    @cached_property
    def document_facts(self) -> EncoderFacts:
        """The same of its tower of documents, where it has one and it is that which encodes them."""
        return self._ask(self._documents) if self._documents else self.facts

    def _ask(self, part: _Part) -> EncoderFacts:
        """An encoder is loaded to be asked, 3 s, once; then the store has it."""
        model = part.model
        inputs = {
            "weights": model.fingerprint,
            "tokenizer": model.tokenizer_fingerprint,
            "transformers": version("transformers"),
            **self.settings.model_dump(include={"dropout"}),
            "normalize": part.normalize,
            "pooling": part.pooling,
            "layers": part.layers,
        }

        def ask(partial: Path) -> None:
            encoder = self._load(part)
            found = EncoderFacts(encoder.max_tokens, encoder.dimension)
            (partial / "encoder.json").write_text(json.dumps(found._asdict()))

        folder = self.store.stage("encoder-checks", VERSION, inputs).build(ask)
        return EncoderFacts(**json.loads((folder / "encoder.json").read_text()))

    @cached_property
    def model(self) -> ModelFolder:
        """The encoder that training starts from, kept in the store; the teacher's once that is trained."""
        if self.settings.model == TEACHER and self.teaching:
            return self.teaching.model_folder
        return keep(locate(self.settings.model), self.store)

    @property
    def _architecture(self) -> tuple[ModelFolder, tuple[int, ...] | None]:
        """What the encoder looks like: a folder and the layers of it; the folder of a teacher before it is trained."""
        layers = self.settings.layers
        if self.settings.model != TEACHER or not self.teaching:
            return self.model, layers
        teacher = self.teaching.encoder
        return teacher.model, layers_of(teacher.settings.layers, layers)

    @property
    def _documents(self) -> _Part | None:
        """The tower of documents, where the model has one and it is that which encodes them; it keeps all layers."""
        model = self._architecture[0].documents
        if model is None or self.settings.inherits:
            return None
        settings = self.settings
        normalize = model.normalizes if settings.normalize is None else settings.normalize
        return _Part(model, None, settings.pooling or own_pooling(model.path), normalize)

    @cached_property
    def pooling(self) -> Pooling:
        """How the encoder pools: as the settings say, or else its own files."""
        if self.settings.pooling is None and self.settings.model == TEACHER and self.teaching:
            return self.teaching.encoder.pooling
        return self.settings.pooling or own_pooling(self.model.path)

    @cached_property
    def normalize(self) -> bool:
        """Whether the encoder's vectors have length 1: as the settings say, or else its own files."""
        if self.settings.normalize is not None:
            return self.settings.normalize
        if self.settings.model == TEACHER and self.teaching:
            return self.teaching.encoder.normalize
        return self.model.normalizes

    @property
    def space(self) -> Space:
        """What a score of the encoder is."""
        both = self.normalize and (self._documents is None or self._documents.normalize)
        return "cosine" if both else "dot"

    @property
    def _tokenized(self) -> dict[data.TextField, tuple[ModelFolder, int]]:
        """With whose tokenizer queries and documents are tokenized, and where they are cut."""
        of = self.teaching.encoder if self.settings.inherits and self.teaching else self
        own = (self._architecture[0], self.settings.query_tokens)
        return {"queries": own, "documents": (of._architecture[0].of_documents, of.settings.document_tokens)}

    @property
    def token_stages(self) -> dict[str, Stage]:
        """Where the token ids of queries and documents are kept."""
        return {
            field: data.tokens_stage(self.store, self.collection, field, model.tokenizer_fingerprint, length)
            for field, (model, length) in self._tokenized.items()
        }

    @cached_property
    def tokens(self) -> Tokens:
        """Token ids of all queries and documents."""

        def shards(field: data.TextField, model: ModelFolder, max_tokens: int) -> data.TokenShards:
            return data.tokenize(
                self.store,
                self.collection,
                field,
                model.path,
                model.tokenizer_fingerprint,
                max_tokens,
                self.connect,
                on_shard=lambda done, total: self.on_shard(f"tokens of {field}", done, total),
            )

        return Tokens(**{field: shards(field, *how) for field, how in self._tokenized.items()})

    @cached_property
    def sources(self) -> Sources:
        """Where the negatives of the training queries come from."""
        return Sources(self)

    @property
    def negatives(self) -> NegativeSource:
        """What draws the negatives of the training queries."""
        return self.sources.negatives

    @cached_property
    def teaching(self) -> Teaching | None:
        """What the recipes learn from beside the collection; None where none of them has a teacher."""
        if self.experiment.teacher is None:
            return None
        kind = Committee if self.experiment.teacher.average else Teaching
        teaching = kind(self, self.experiment.teacher)
        return teaching if teaching.asked else None

    def with_encoder(self, encoder: EncoderSettings) -> Workspace:
        """The same collection and store with another encoder."""
        changes = {"encoder": encoder, "negatives": NegativesSettings(), "generation": None, "teacher": None}
        return self._other(self.experiment.model_copy(update=changes))

    def _other(self, experiment: Experiment) -> Workspace:
        other = Workspace(experiment, self.connect, self.on_shard)
        other._origin = self
        return other

    def for_run(self, run: RunSpec) -> Workspace:
        """The same for the queries that a run learns from, the encoder that it trains, and its seed."""
        return self.learning_from(run.training.queries).student(run.encoder, run.seed)

    def student(self, settings: StudentSettings, seed: int | None = None) -> Workspace:
        """The same with another encoder to train, or with another seed for what is random in a run: collection, split,
        negatives' rankings and teacher are shared.
        """
        seed = self.experiment.seed if seed is None else seed
        if (settings, seed) == (self.settings, self.seed):
            return self
        name = settings.model_dump_json(), seed
        if name not in self._students:
            self._students[name] = Student(self, settings, seed)
        return self._students[name]

    def learning_from(self, queries: str) -> Workspace:
        """The same, learning from "judged" queries, from "generated" ones, or from "both"."""
        if queries == self.learns:
            return self
        if self.learns != "judged" and self._origin is not None:
            return self._origin.learning_from(queries)
        if queries not in self._others:
            other = self._others[queries] = self._other(self.experiment)
            other.learns, other.generation = queries, self.generation
        return self._others[queries]

    @property
    def learned_from(self) -> list[Workspace]:
        """This one for every kind of queries that a row learns from; itself where there are no rows."""
        experiment = self.experiment
        kinds = [experiment.training_for(row).queries for row in experiment.recipes] or ["judged"]
        return [self.learning_from(queries) for queries in dict.fromkeys(kinds)]

    @property
    def students(self) -> list[Workspace]:
        """This one for every kind of queries and every encoder of a row, and the experiment's own encoder."""
        experiment = self.experiment
        trained = [self.for_run(first_run(experiment, row)) for row in experiment.recipes]
        return list({id(each): each for each in [*self.learned_from, *trained]}.values())

    @cached_property
    def generation(self) -> Generation:
        """What makes queries; only for an experiment that has such a section."""
        assert self.experiment.generation is not None
        return Generation(self, self.experiment.generation)

    def embed(self, wanted: Sequence[VectorSet], what: str = "encoding what is mined") -> list[Path]:
        """The folders of vectors, which are made on all of the machine or the cluster unless they are there."""
        available = cluster.resources()
        size = cluster.worker_size(self.experiment, available)
        return embed(
            self.store, wanted, size, available, self.connect, lambda done, total: self.on_shard(what, done, total)
        )

    @cached_property
    def pool(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Rows of the documents that validation queries are searched in: the relevant ones and BM25's best."""
        config, (_, validation) = self.experiment.collection, self.split
        documents, size = self.collection.documents.num_rows, config.validation_pool
        if size is None or size >= documents:
            return np.arange(documents)
        self.check_pool()
        ranked = self.bm25(np.unique(validation.query_row), 100)
        return data.validation_pool(documents, validation, size, ranked, self.experiment.seed)

    def check_pool(self) -> None:
        """Refuse a pool that the documents do not fill, or that is too small for the relevant ones."""
        documents, size = self.collection.documents.num_rows, self.experiment.collection.validation_pool
        try:
            data.validation_pool(documents, self.split[1], size, None, self.experiment.seed)
        except UserError as error:
            raise UserError(error.what, where="collection.validation_pool", mend=error.mend) from None

    def bm25(self, query_rows: Rows, depth: int) -> Rows:
        """The `depth` documents that BM25 ranks highest for each query, -1 where there are no more."""
        report = lambda done, total: self.on_shard("BM25 ranks", done, total)  # noqa: E731
        return data.rank(self.store, self.collection, query_rows, depth, self.connect, on_shard=report)

    def plan(self, training: TrainingSettings) -> BatchPlan:
        """The batches of a run."""
        return self._batches(training, self.negatives)

    def steps(self, training: TrainingSettings) -> int | None:
        """The steps of a run; nothing is made for it. None where it takes tokens or queries that are not made yet.

        Raises:
            UserError: the examples do not fill a batch.
        """
        if not self.collected:
            return None
        if training.batch_tokens and not all(stage.done for stage in self.token_stages.values()):
            return None
        any_ = RandomNegatives(self.collection.documents.num_rows, self.split[0], self.experiment.negatives.per_query)
        return self._batches(training, any_).total_steps

    def _batches(self, training: TrainingSettings, negatives: NegativeSource) -> BatchPlan:
        judgments = self.split[0]
        made = self.collection.generated[judgments.query_row]
        judged = data.share_of(judgments.select(~made), training.share, self.seed)
        examples = Examples.of(judged + judgments.select(made))
        return BatchPlan(
            examples,
            negatives,
            training.batch_tokens or training.batch_queries or 0,
            training.epochs,
            self.seed,
            once_a_query=training.examples == "queries",
            tokens=self._tokens_of(examples, negatives.per_query) if training.batch_tokens else None,
            workers=self.experiment.scaling.workers,
        )

    def _tokens_of(self, examples: Examples, per_query: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Of each example; its negatives, which are not drawn yet, are taken to be of average length."""
        if self.settings.inherits:
            return self.tokens.queries.lengths[examples.query_rows].astype(np.int64)
        documents = self.tokens.documents.lengths
        negatives = math.ceil(per_query * float(documents.mean()))
        return self.tokens.queries.lengths[examples.query_rows] + documents[examples.positive_rows] + negatives

    def load_encoder(self, dimension: int | None = None) -> BiEncoder:
        """The encoder that training starts from; with a projection where its vectors are to have another dimension."""
        layers = self.settings.layers
        taught = self.settings.model == TEACHER and self.experiment.teacher
        if taught and taught.encoder:  # as a row it has been saved with those layers alone that it keeps
            layers = layers_of(taught.encoder.layers, layers)
        encoder = self._load(_Part(self.model, layers, self.pooling, self.normalize))
        if self.settings.lora:
            from orchestrator.lora import adapt

            adapt(encoder.backbone, self.settings.lora, self.seed)
        if dimension is not None:
            encoder.project(dimension, self.seed)
        return encoder

    def _load(self, part: _Part) -> BiEncoder:
        path, layers = part.model.path, part.layers
        dropout = self.settings.dropout
        return load_encoder(path, pooling=part.pooling, normalize=part.normalize, layers=layers, dropout=dropout)

    @cached_property
    def starting_model(self) -> Model:
        """The same, to encode with."""
        queries = _Part(self.model, self.settings.layers, self.pooling, self.normalize).as_model
        return replace(queries, documents=self._documents.as_model) if self._documents else queries

    def trial(self, run: RunSpec) -> Stage:
        """Where a run lives in the store: named by everything that its result depends on."""
        workspace = self.for_run(run)
        return workspace.store.stage(
            "trials",
            TRIAL_VERSION,
            {
                **workspace.training_inputs,
                **(workspace.teaching.inputs(run) if workspace.teaching else {}),
                "loss": run.loss,
                "parameters": run.parameters,
                "training": run.training.model_dump(exclude={"checkpoint_seconds", "queries"}),
            },
        )

    def trained_model(self, run: RunSpec) -> Model:
        """The encoder that a run leaves; of two towers, that of the queries."""
        stage, student = self.trial(run), self.for_run(run)
        folder = stage.path / MODEL / (QUERY_TOWER if run.encoder.inherits else "")
        return Model(folder, stage.fingerprint, student.pooling, student.normalize)

    def encoding(self, precision: str, token_budget: int | None) -> Encoding:
        """How this process encodes: on its GPU if it was granted one."""
        return Encoding.on(device(), precision, token_budget, pad_id(self.model.path))

    def validator(self, encoding: Encoding) -> Validator:
        """Scores an encoder on the validation part."""
        documents = None
        if self.settings.inherits:
            assert self.teaching is not None
            documents = self.teaching.documents.take(self.pool)
        return Validator(self.tokens, self.split[1], self.pool, encoding, documents)

    @cached_property
    def training_inputs(self) -> Mapping[str, Any]:
        """What every run's result depends on, whatever its recipe; part of the fingerprint of each."""
        experiment, parts = self.experiment, self.collection.parts
        collection = experiment.collection
        return {
            "documents": parts["documents"],
            "queries": parts["queries"],
            "judgments": parts[f"qrels/{collection.train_split}"],
            "validation": collection.validation,
            "validation_pool": collection.validation_pool,
            "negatives": self.sources.inputs,
            "encoder": self.encoder_inputs,
            "seed": self.seed,
            "workers": experiment.scaling.workers,
            **({} if self.seed == experiment.seed else {"split_seed": experiment.seed}),
            **({} if self.learns == "judged" else {"learns": self.learns}),
            **({"document_encoder": TEACHER} if self.settings.inherits else {}),
        }

    @cached_property
    def encoder_inputs(self) -> Mapping[str, Any]:
        """What the untrained encoder's vectors depend on."""
        documents = self._documents
        return {
            "weights": self.model.fingerprint,
            "tokenizer": self.model.tokenizer_fingerprint,
            **self.settings.model_dump(exclude={"model", "document_encoder", "lora"}),
            "normalize": self.normalize,
            "pooling": self.pooling,
            **({"lora": lora.model_dump()} if (lora := self.settings.lora) else {}),
            **({"documents": documents.identity} if documents else {}),
        }


class Student(Workspace):
    """A workspace with the encoder and the seed of a run; all that runs have in common is that of `base`, which has the
    experiment's own.
    """

    def __init__(self, base: Workspace, settings: StudentSettings, seed: int) -> None:
        super().__init__(base.experiment, base.connect, base.on_shard)
        self.store, self.learns, self.settings, self._base = base.store, base.learns, settings, base
        self.seed = seed

    @cached_property
    def collection(self) -> Collection:
        """The test collection."""
        return self._base.collection

    @property
    def collected(self) -> bool:
        """Whether there is nothing to generate before the collection is there."""
        return self._base.collected

    @cached_property
    def split(self) -> tuple[Qrels, Qrels]:
        """The training judgments in two parts."""
        return self._base.split

    @cached_property
    def sources(self) -> Sources:
        """Where the negatives of the training queries come from."""
        return self._base.sources

    @cached_property
    def teaching(self) -> Teaching | None:
        """What the recipes learn from beside the collection."""
        return self._base.teaching

    @cached_property
    def generation(self) -> Generation:
        """What makes queries."""
        return self._base.generation

    @cached_property
    def pool(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Rows of the documents that validation queries are searched in."""
        return self._base.pool

    def student(self, settings: StudentSettings, seed: int | None = None) -> Workspace:
        """The same with another encoder to train, or another seed."""
        return self._base.student(settings, seed)

    def learning_from(self, queries: str) -> Workspace:
        """The same, learning from other queries."""
        return self._base.learning_from(queries).student(self.settings, self.seed)
