"""What an experiment's YAML may say: its sections, keys, defaults and ranges."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from data.pair_scores import Space
from orchestrator.precision import Precision, cpu_precision
from orchestrator.records import TEACHER, UNTRAINED
from tune_spaces import PREFIX, Range, Value

Scalar = str | int | float | bool | None
T = TypeVar("T")
DRAWN_TRIALS = 10  # of a search that draws, where the experiment does not say


def refusal(what: str, mend: str | None = None) -> PydanticCustomError:
    """An error of a value, in our words."""
    return PydanticCustomError("refusal", "{what}", {"what": what, "mend": mend})


def shown(value: object) -> str:
    """A value as the user wrote it, in short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping | list | tuple):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    return f'"{value}"' if isinstance(value, str) else str(value)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise refusal(f'must be letters, digits, "-", "_" and ".", beginning with a letter or digit, not "{value}"')
    return value


def _row_name(value: str) -> str:
    if value == UNTRAINED:
        raise refusal(f'"{UNTRAINED}" is the name of the encoder before training', "Choose another.")
    return _name(value)


def _filled(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise refusal("must have at least one item")
    return values


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise refusal(f"has {twice} twice", "Remove one.")
    return _filled(values)


def _each_once(values: tuple[T, ...]) -> tuple[T, ...]:
    return _distinct(values) if values else values


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if list(layers) != sorted(set(layers)):
        raise refusal(f"must be distinct and ascending, not {list(layers)}")
    return _filled(layers)


def _scalar(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    kind = "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else value
    raise refusal(f"must be a number, a word, true, false or null, not {kind}")


def _batch_size(value: object) -> int | str:
    """A number of queries, or of tokens with that word behind it."""
    tokens = re.fullmatch(r"(\d+) tokens?", value.strip()) if isinstance(value, str) else None
    size = int(tokens[1]) if tokens else value
    if not isinstance(size, int) or isinstance(size, bool):
        raise refusal(f'must be a whole number, or such as "8192 tokens", not {shown(value)}')
    if size < 1:
        raise refusal(f"must be greater than 0, not {size}")
    return f"{size} tokens" if tokens else size


def _measure(text: str) -> str:
    """A measure in ir_measures' own spelling: MRR@10 becomes RR@10."""
    import ir_measures  # only once an experiment is read

    try:
        measure = ir_measures.parse_measure(text)
        measure.validate_params()
        name = str(measure)
    except NameError:
        known = {name.casefold(): name for name in reversed(list(ir_measures.measures.registry))}
        base = re.split(r"[@(\s]", text, maxsplit=1)[0]
        near = difflib.get_close_matches(base.casefold(), known, n=1)
        mend = f'Did you mean "{known[near[0]] + text[len(base) :]}"?' if near else "See ir-measur.es for the names."
        raise refusal(f'"{text}" is not a measure that ir_measures knows', mend) from None
    except (ValueError, KeyError, AssertionError):
        raise refusal(f'"{text}" cannot be read as a measure', "Write NAME@CUTOFF, such as nDCG@10.") from None
    if measure.params.get("cutoff", 1) < 1:
        raise refusal(f'"{text}" must have a cutoff of at least 1')
    return name


def _prompt(value: str) -> str:
    if "{text}" not in value:
        raise refusal('must say where the document goes: "{text}"', 'Write it such as "ask about: {text}".')
    return value


def _gpus(value: float) -> float:
    if value > 1 and not value.is_integer():
        raise refusal(f"must be a whole number, or a share of one GPU, not {value}")
    return value


Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, AfterValidator(_name)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A mapping of the YAML: no unknown key, no silent conversion, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class KeysOf(NamedTuple):
    """Marks a dict field whose keys are those of a section."""

    section: type[Section]


class CollectionSettings(Section):
    """The test collection. A relative `path` starts at the current directory, not at the YAML's."""

    format: Literal["beir", "huggingface", "ir_datasets", "msmarco", "parquet", "tevatron", "trec"] = "beir"
    path: Text
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the training queries held out
    validation_pool: Annotated[int, Field(gt=0)] | None = None  # documents that validation searches; None: all
    skip_dangling: bool = False  # leave judgments out whose query or document is not there
    train_split: Text = "train"
    test_split: Text = "test"


class EncoderSettings(Section):
    """The encoder to start from. `model` is a hub name, or a folder; a relative one starts at the current directory."""

    model: Text
    pooling: Literal["cls", "mean", "pooler"] | None = None  # None: the model's own, mean where it names none
    normalize: bool | None = None  # None: as the model's own files say, true where there are none
    query_tokens: Annotated[int, Field(ge=3)] = 64  # room for one token between the two special ones
    document_tokens: Annotated[int, Field(ge=3)] = 256
    layers: (
        Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False), AfterValidator(_ascending)] | None
    ) = None  # those to keep, counted from 0; None: all
    dropout: Share = 0.0

    @property
    def space(self) -> Space | None:
        """What a score of it is; None where the model has to be read to know it."""
        return None if self.normalize is None else "cosine" if self.normalize else "dot"


class LoraSettings(Section):
    """Low-rank adapters: rank r, and α, by which over r what they add to the weights is multiplied."""

    rank: Annotated[int, Field(gt=0)] = 8
    alpha: Annotated[int, Field(gt=0)] = 16


class StudentSettings(EncoderSettings):
    """The encoder of a row. The `model` "teacher" is the teacher's own.

    Documents are encoded by the same encoder ("shared"), or by the teacher's as it is, whose vectors are taken from the
    store: then queries alone are encoded and learned, and the teacher's index is the student's (Kim et al. 2023).
    """

    document_encoder: Literal["shared", "teacher"] = "shared"
    lora: LoraSettings | None = None  # adapters are trained, and are in the weights once they are saved

    @property
    def inherits(self) -> bool:
        """Whether the documents' vectors are the teacher's."""
        return self.document_encoder == TEACHER


class CrossEncoderSettings(Section):
    """A model for sequence classification that reads query and document together; `model` as of an encoder."""

    model: Text
    query_tokens: Annotated[int, Field(ge=3)] = 64
    document_tokens: Annotated[int, Field(ge=3)] = 256


class NegativesCheckSettings(CrossEncoderSettings):
    """A cross-encoder that has a say in what is a negative: what it scores clearly less than the relevant document."""

    absolute_margin: Annotated[float, Field(ge=0)] = 0.0  # in logits
    relative_margin: Share | None = None  # a share of the relevant document's score


class SourceSettings(Section):
    """Where negatives come from.

    `random`: the whole corpus. `bm25`: what BM25 ranks highest. `mined`: what an encoder does. `given`: what the
    training judgments have at 0 or below, which the formats with negatives of their own are read into. `file`: what a
    file ranks or lists (a TREC run, MS MARCO's top1000 or qidpidtriples). Of a ranking, the ranks `skip` + 1 to `depth`
    are taken, and of what an encoder ranks, that which scores less than the query's relevant documents by the margins.
    A cross-encoder can `check` what is left.
    """

    source: Literal["random", "bm25", "mined", "given", "file"] = "random"
    path: Text | None = None  # of the file
    skip: Annotated[int, Field(ge=0)] = 0
    depth: Annotated[int, Field(gt=0)] = 100
    encoder: EncoderSettings | None = None  # that mines; None: the one that training starts from
    absolute_margin: Annotated[float, Field(ge=0)] | None = None  # in the encoder's scores
    relative_margin: Share | None = None  # a share of the relevant document's score
    check: NegativesCheckSettings | None = None
    refresh: Annotated[int, Field(gt=0)] | None = None  # mined anew every so many epochs, by the encoder in training


class MixedSourceSettings(SourceSettings):
    """One of several sources."""

    weight: Annotated[float, Field(gt=0)] = 1.0


class NegativesSettings(SourceSettings):
    """The negatives of each query: of one source, or of several in a `mix` by weight."""

    per_query: Annotated[int, Field(gt=0)] = 1
    mix: Annotated[tuple[MixedSourceSettings, ...], Field(strict=False)] = ()

    @property
    def sources(self) -> tuple[MixedSourceSettings, ...]:
        """All of them."""
        one = {key: getattr(self, key) for key in SourceSettings.model_fields}
        return self.mix or (MixedSourceSettings(**one),)


class TrainingSettings(Section):
    """How each recipe is trained."""

    queries: Literal["judged", "generated", "both"] = "judged"  # which are learned from
    batch_size: Annotated[int | str, PlainValidator(_batch_size)] = 32  # queries a step over all workers, or "N tokens"
    examples: Literal["judgments", "queries"] = "judgments"  # what an epoch has once; of a query one positive is drawn
    share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the judged queries; a larger one has those of a smaller
    epochs: Annotated[int, Field(gt=0)] = 2
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    warmup: Share = 0.1  # share of the steps
    schedule: Literal["linear", "constant"] = "linear"  # of the learning rate after the warm-up: down to 0, or level
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] | None = 1.0  # norm of the gradient; None: as it is
    precision: Precision = Field(default_factory=cpu_precision)  # not named: by the device
    token_budget: Annotated[int, Field(gt=0)] | None = None  # tokens a chunk, padding included; None: by the device
    activation_tokens: Annotated[int, Field(gt=0)] = 32768  # kept for backward at a time; batches beyond: encoded again
    validations: Annotated[int, Field(gt=0)] = 4  # how often a run is validated
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 300.0  # what a killed run loses at most

    @property
    def batch_queries(self) -> int | None:
        """Queries a step; None where a batch is sized by tokens."""
        return self.batch_size if isinstance(self.batch_size, int) else None

    @property
    def batch_tokens(self) -> int | None:
        """Tokens a step, those of the queries and of all their documents; None where a batch is sized by queries."""
        return int(self.batch_size.split()[0]) if isinstance(self.batch_size, str) else None


class CrossEncoderTrainingSettings(TrainingSettings):
    """How a cross-encoder is trained on the judged queries and the experiment's negatives; the weights are kept that
    rank best what BM25 finds for the validation queries.
    """

    temperature: Annotated[float, Field(gt=0)] = 1.0  # of the softmax over a query's own documents
    validation_depth: Annotated[int, Field(gt=0)] = 10  # documents that are ranked anew, beside the relevant ones
    dropout: Share = 0.0


class TeachingCrossEncoderSettings(CrossEncoderSettings):
    """A cross-encoder that teaches. With `training` it starts from the model, an encoder or a cross-encoder.

    Its score is a head's ("pooled"), or the product of a vector of the query and one of the document, each in the
    context of the other ("dual"), which students can be drawn to (Kim et al. 2023).
    """

    scorer: Literal["pooled", "dual"] = "pooled"
    normalize: bool = True  # the vectors of dual pooling
    training: CrossEncoderTrainingSettings | None = None


class ScoresSettings(Section):
    """A file with a teacher's scores, and the space that they are in; without a path, those in the collection."""

    path: Text | None = None
    space: Space


def _members(teachers: tuple[TeacherSettings, ...]) -> tuple[TeacherSettings, ...]:
    if len(teachers) < 2 or any(teacher.average or teacher.row for teacher in teachers):
        raise refusal("must be two teachers or more, each an encoder, a cross_encoder or scores")
    return teachers


class TeacherSettings(Section):
    """Who teaches the recipes that learn from a teacher: one of the five.

    `row` is one of the experiment's own rows; of those that `average` names, the scores are averaged.
    """

    encoder: EncoderSettings | None = None
    row: Name | None = None
    cross_encoder: TeachingCrossEncoderSettings | None = None
    scores: ScoresSettings | None = None
    average: Annotated[tuple[TeacherSettings, ...], Field(strict=False), AfterValidator(_members)] | None = None

    @model_validator(mode="after")
    def _one(self) -> TeacherSettings:
        named = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(named) != 1:
            what = f"names {' and '.join(named)}" if named else "names no teacher"
            raise refusal(what, "Give one of encoder, row, cross_encoder, scores and average.")
        return self

    @property
    def members(self) -> list[tuple[str, TeacherSettings]]:
        """The teachers, and the YAML path of each."""
        if self.average is None:
            return [("teacher", self)]
        return [(f"teacher.average.{number}", each) for number, each in enumerate(self.average)]

    @property
    def encodes(self) -> bool:
        """Whether it is a bi-encoder."""
        return self.encoder is not None or self.row is not None

    @property
    def in_context(self) -> bool:
        """Whether it has vectors of texts in the context of each other."""
        return self.cross_encoder is not None and self.cross_encoder.scorer == "dual"

    @property
    def has_vectors(self) -> bool:
        """Whether it has vectors, of texts alone or in context."""
        return self.encodes or self.in_context

    @property
    def offers(self) -> frozenset[str]:
        """What a loss may need of it."""
        scores = frozenset({"teacher_scores"})
        return scores | {"teacher_queries", "teacher_documents"} if self.has_vectors else scores


class GeneratorTrainingSettings(TrainingSettings):
    """How a generator is trained on the judged queries; the weights are kept that do best on the validation part."""

    epochs: Annotated[int, Field(gt=0)] = 5
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    dropout: Share = 0.1


class RoundTripSettings(Section):
    """What is kept of generated queries: those for which an encoder ranks their document among the first `depth`."""

    depth: Annotated[int, Field(gt=0)] = 1
    encoder: EncoderSettings | None = None  # None: the teacher if it is one, else the one that training starts from


class GenerationSettings(Section):
    """Queries made from the documents of the collection.

    `title`: a document's title. `salient`: the sentences that say most of it. `inverse-cloze`: sentences drawn at
    random. `seq2seq`: what a model writes. `trained`: what a model writes that is made of `model`, or else of the
    encoder that training starts from, and trained on the judged queries. Models read as much of a document, and write
    as much of a query, as the encoder takes.
    """

    generator: Literal["title", "salient", "inverse-cloze", "seq2seq", "trained"] = "salient"
    per_document: Annotated[int, Field(gt=0)] = 1
    documents: Annotated[int, Field(gt=0)] | None = None  # so many, drawn by the seed; None: all
    model: Text | None = None  # as of an encoder
    prompt: Annotated[str, AfterValidator(_prompt)] = "{text}"  # what a seq2seq model is given
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Annotated[int, Field(gt=0)] | None = 25  # the likeliest tokens that the next one is drawn from; None: all
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # of these, the likeliest that have so much of the probability
    training: GeneratorTrainingSettings = Field(default_factory=GeneratorTrainingSettings)
    round_trip: RoundTripSettings | None = None

    @property
    def writes(self) -> bool:
        """Whether a model writes the queries."""
        return self.generator in ("seq2seq", "trained")


class RangeSettings(Section):
    """A range that values of a knob are drawn from; with `log`, orders of magnitude are equally likely."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _not_empty(self) -> RangeSettings:
        if self.low >= self.high:
            raise refusal(f"must have a low that is less than its high, not {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise refusal(f"must begin above 0 to be logarithmic, not at {self.low:g}")
        return self


def _knob_value(value: object, as_number: Callable[[object], float]) -> float | str:
    """A number, or the size of a batch in tokens, which is for `training.batch_size` alone."""
    return str(_batch_size(value)) if isinstance(value, str) and value.endswith("tokens") else as_number(value)


_VALUES = TypeAdapter(
    Annotated[tuple[Annotated[float, WrapValidator(_knob_value)], ...], Field(strict=False), AfterValidator(_distinct)],
    config=ConfigDict(strict=True, allow_inf_nan=False),
)


def _tried(value: object) -> tuple[float | str, ...] | RangeSettings:
    """The values of a knob, or their range; pydantic adds the path to what is found."""
    if isinstance(value, dict | RangeSettings):
        return RangeSettings.model_validate(value)
    return _VALUES.validate_python(value)


def _whole(value: float | str) -> Value:
    return int(value) if isinstance(value, float) and value.is_integer() else value


class TuneSettings(Section):
    """The search over a recipe's knobs, and over those of training that are named.

    `grid` tries every combination of the values, in their order; `random` and `tpe` (Bergstra et al. 2011, Optuna's)
    draw `trials` points from the ranges, or from the values of what has none. `space` replaces the values or the range
    of the knobs that it names; there a knob of training is `training.learning_rate`. No trial is started any more once
    the row has had its `trials`, its trials have used `device_seconds`, or the last `patience` of them were no better.
    """

    search: Literal["grid", "random", "tpe"] = "grid"
    scheduler: Literal["asha"] | None = None
    reduction_factor: Annotated[int, Field(ge=2)] = 3  # asha goes on with one in so many
    space: dict[str, Annotated[Any, PlainValidator(_tried), KeysOf(RangeSettings)]] = {}
    training: Annotated[
        tuple[Literal["learning_rate", "batch_size"], ...], Field(strict=False), AfterValidator(_each_once)
    ] = ()
    trials: Annotated[int, Field(gt=0)] | None = None  # None: the whole grid; 10 that are drawn
    device_seconds: Annotated[float, Field(gt=0)] | None = None
    patience: Annotated[int, Field(gt=0)] | None = None

    @property
    def drawn(self) -> bool:
        """Whether the points are drawn, and no grid."""
        return self.search != "grid"

    @property
    def most_trials(self) -> int | None:
        """How many trials there are at most; None where that is for the grid to say."""
        return self.trials or (DRAWN_TRIALS if self.drawn else None)

    @property
    def given(self) -> dict[str, tuple[Value, ...] | Range]:
        """The values and ranges of `space`; sizes of batches are whole numbers."""
        found: dict[str, tuple[Value, ...] | Range] = {}
        for knob, tried in self.space.items():
            if isinstance(tried, RangeSettings):
                found[knob] = Range(tried.low, tried.high, tried.log)
            elif knob == f"{PREFIX}batch_size":
                found[knob] = tuple(map(_whole, tried))
            else:
                found[knob] = tried
        return found


def _overrides(value: object) -> dict[str, Any]:
    """Keys of `training` that hold for one row, checked like the section; pydantic adds the path to what it finds."""
    return TrainingSettings.model_validate(value).model_dump(exclude_unset=True)


def _encoder_overrides(value: object) -> dict[str, Any]:
    """The same of `encoder`; a row need not name a model."""
    if not isinstance(value, dict):
        raise refusal(f"must be a mapping, not {shown(value)}")
    checked = StudentSettings.model_validate({"model": TEACHER, **value})
    return checked.model_dump(include={key for key in value if key in StudentSettings.model_fields})


def _flat(value: object) -> object:
    """Parameters of a part of a loss, {infonce: {temperature: 0.05}}, by their whole names, infonce.temperature."""
    if not isinstance(value, dict):
        return value
    nested = {key: inner if isinstance(inner, dict) else {"": inner} for key, inner in value.items()}
    return {f"{key}.{name}" if name else key: given for key, inner in nested.items() for name, given in inner.items()}


class RecipeSettings(Section):
    """A row of the comparison; a bare name stands for a row that changes nothing. `name` defaults to the recipe's.

    `encoder` and `training` have what the row changes in these sections; a row that names another model has all of its
    layers unless it names some.
    """

    recipe: str
    name: Annotated[str, AfterValidator(_row_name)] = ""
    loss: Annotated[dict[str, Annotated[Scalar, PlainValidator(_scalar)]], BeforeValidator(_flat)] = {}
    encoder: Annotated[dict[str, Any], BeforeValidator(_encoder_overrides), KeysOf(StudentSettings)] = {}
    training: Annotated[dict[str, Any], BeforeValidator(_overrides), KeysOf(TrainingSettings)] = {}
    tune: TuneSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"recipe": value}
        if isinstance(value, dict) and value.get("name") is None and isinstance(value.get("recipe"), str):
            value = {**value, "name": value["recipe"]}
            if not _NAME.fullmatch(value["recipe"]):  # no recipe has such a name: that is what is to be told
                del value["name"]
        return value


class EvaluationSettings(Section):
    """What is measured on the test split. `depth` documents are retrieved; None: as many as the measures read."""

    measures: Annotated[
        tuple[Annotated[str, AfterValidator(_measure)], ...], Field(strict=False), AfterValidator(_distinct)
    ] = ("nDCG@10", "RR@10", "R@100")
    margin: Annotated[float, Field(gt=0)] = 0.01  # of the first measure: two rows that differ by less are as good
    index: Text = "Flat"  # a faiss factory string
    depth: Annotated[int, Field(gt=0)] | None = None


class ScalingSettings(Section):
    """The workers of one training run. `cpus_per_worker` None: what the machine has, shared among them."""

    workers: Annotated[int, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0), AfterValidator(_gpus)] = 0.0
    cpus_per_worker: Annotated[int, Field(gt=0)] | None = None


class TrackingSettings(Section):
    """Where MLflow writes. `experiment` defaults to the name of ours."""

    uri: Text = "sqlite:///stillhouse.db"
    experiment: Text = ""
    model: bool = True  # the best encoder, by validation, goes there too, for `mlflow models serve`


def _labels(value: object) -> object:
    """Labels such as 32 are text."""
    return {str(name): str(label) for name, label in value.items()} if isinstance(value, dict) else value


class ExpectedSettings(Section):
    """A number that `stillhouse reproduce` looks for: a row's measure, or how many times less device time it needs than
    a tuned row, all runs of both counted. It may differ by `tolerance`; `source` says who has it, and from where.
    `setting` is the one of a study: thing that varies → label.
    """

    setting: Annotated[dict[Text, Text], BeforeValidator(_labels)] = {}
    row: Text
    measure: Annotated[str, AfterValidator(_measure)] | None = None
    speed_up_over: Text | None = None
    value: float
    tolerance: Annotated[float, Field(ge=0)]
    source: Text

    @model_validator(mode="after")
    def _one(self) -> ExpectedSettings:
        if (self.measure is None) == (self.speed_up_over is None):
            raise refusal("must have one of measure and speed_up_over")
        return self


def _labelled(value: object) -> object:
    """Labels such as 32 are text, and `null` varies nothing."""
    if not isinstance(value, dict):
        return {} if value is None else value
    return {
        str(name): {str(label): {} if given is None else given for label, given in settings.items()}
        if isinstance(settings, dict)
        else settings
        for name, settings in value.items()
    }


def _seeds(values: tuple[int, ...]) -> tuple[int, ...]:
    return _distinct(values) if values else values


class PricesSettings(Section):
    """What an hour costs of a CPU core and of a GPU."""

    cpu: Annotated[float, Field(ge=0)] | None = None
    cuda: Annotated[float, Field(ge=0)] | None = None
    currency: Text = "USD"

    @model_validator(mode="after")
    def _some(self) -> PricesSettings:
        if self.cpu is None and self.cuda is None:
            raise refusal("names no price", "Give cpu, cuda or both: an hour of a core, of a GPU.")
        return self


class Experiment(Section):
    """One experiment: the whole YAML.

    With `seeds`, searches and teachers have the first of them, and what was chosen is trained again with each of the
    others; the training and validation parts of the queries are those of the first.

    With `vary` it is a study: for each thing that varies, by a label, the keys that are laid over the rest. Each
    combination is compared by itself.
    """

    name: Name
    seed: Seed = 13
    seeds: Annotated[tuple[Seed, ...], Field(strict=False), AfterValidator(_seeds)] = ()  # none: the one above
    collection: CollectionSettings
    encoder: EncoderSettings
    negatives: NegativesSettings = NegativesSettings()
    generation: GenerationSettings | None = None
    teacher: TeacherSettings | None = None
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    recipes: Annotated[tuple[RecipeSettings, ...], Field(strict=False)]  # none: the encoder is evaluated as it is
    evaluation: EvaluationSettings = EvaluationSettings()
    scaling: ScalingSettings = ScalingSettings()
    tracking: TrackingSettings = TrackingSettings()
    prices: PricesSettings | None = None  # what the ledger's device seconds are multiplied by; nothing depends on them
    store: Text = ".stillhouse"
    vary: Annotated[dict[Text, dict[Text, dict[Text, Any]]], BeforeValidator(_labelled)] = {}
    expected: Annotated[tuple[ExpectedSettings, ...], Field(strict=False)] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        tracking = value.get("tracking", {})
        if isinstance(tracking, TrackingSettings):
            tracking = tracking.model_dump()
        if isinstance(tracking, dict) and not tracking.get("experiment") and isinstance(value.get("name"), str):
            tracking = {**tracking, "experiment": value["name"]}
        seeds = value.get("seeds")
        if isinstance(seeds, list | tuple) and seeds and isinstance(seeds[0], int):
            value = {"seed": seeds[0], **value}
        return {**value, "tracking": tracking}

    @property
    def further_seeds(self) -> tuple[int, ...]:
        """The seeds that what was chosen is trained again with."""
        return self.seeds[1:]

    def training_for(self, row: RecipeSettings) -> TrainingSettings:
        """The section `training` with what the row changes in it."""
        return TrainingSettings.model_validate({**self.training.model_dump(), **row.training})

    def encoder_for(self, row: RecipeSettings) -> StudentSettings:
        """The section `encoder` with what the row changes in it."""
        base = self.encoder.model_dump(exclude={"layers"} if "model" in row.encoder else None)
        return StudentSettings.model_validate({**base, **row.encoder})

    @property
    def teaching_row(self) -> RecipeSettings | None:
        """The row that teaches the others, if one does."""
        named = self.teacher and self.teacher.row
        return next((row for row in self.recipes if named and row.name == named), None)

    def encoder_of(self, teacher: TeacherSettings) -> EncoderSettings | None:
        """The bi-encoder of a teacher that is one; that of a row is as it is before it is trained."""
        row = self.teaching_row if teacher.row else None
        return self.encoder_for(row) if row else teacher.encoder

    def space_of(self, teacher: TeacherSettings) -> Space | None:
        """What a score of a teacher is; None where its model has to be read to know it."""
        if encoder := self.encoder_of(teacher):
            return encoder.space
        if teacher.average:
            return self.space_of(teacher.average[0])
        if teacher.cross_encoder and teacher.in_context:
            return "cosine" if teacher.cross_encoder.normalize else "dot"
        return teacher.scores.space if teacher.scores else "logit"
