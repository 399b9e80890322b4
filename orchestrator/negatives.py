"""Where an experiment's negatives come from: of each source, the documents that it offers for every training query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import data
from data import NegativeSource, Pool, PooledNegatives, RandomNegatives, Rows, Stage, pair_scores
from data.pair_scores import PairScores
from orchestrator import pair_scoring
from orchestrator.config_schema import MixedSourceSettings
from orchestrator.embeddings import VectorSet
from orchestrator.mining import Mined, Mining
from orchestrator.records import Cost
from orchestrator.scorer import Scorer
from orchestrator.weights import ModelFolder

if TYPE_CHECKING:
    from orchestrator.workspace import Workspace


class Sources:
    """The sources that an experiment names, by their place among them."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._settings = workspace.experiment.negatives.sources

    def open(self, miners: Sequence[ModelFolder], checkers: Sequence[ModelFolder], candidates: Sequence[Path]) -> None:
        """Take what the driver opened: a worker reads the store and nothing else."""
        for miner, model in zip(self.miners.values(), miners, strict=True):
            miner.model = model
        for checker, model in zip(self.checkers.values(), checkers, strict=True):
            checker.model = model
        self.candidates = dict(zip(self._of("file"), candidates, strict=True))

    def key(self, index: int) -> str:
        """The YAML path of a source."""
        return f"negatives.mix.{index}" if self._workspace.experiment.negatives.mix else "negatives"

    @property
    def needs_ranking(self) -> bool:
        """Whether some of them are the best of a search, which takes its time."""
        return any(source.source in ("bm25", "mined") or source.check for source in self._settings)

    @property
    def ranked(self) -> bool:
        """Whether the store has every ranking already."""
        workspace, queries = self._workspace, self.queries
        bm25 = [
            data.ranks_stage(workspace.store, workspace.collection, queries, source.depth).done
            for source in self._of("bm25").values()
        ]
        ranked = all(bm25) and all(self.mined(index) for index in self.miners)
        return ranked and all(self.checker_stage(index).done for index in self.checkers)

    def mined(self, index: int) -> bool:
        """Whether the store has the ranking of a source."""
        ready = all(stage.done for stage in self.miners[index].token_stages.values())
        return ready and self.mining(index).stage(self._workspace.store).done

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the negatives depend on beside the texts, the judgments and the seed."""
        experiment = self._workspace.experiment
        encoded = experiment.training.model_dump(include={"precision", "token_budget"})
        return {
            "sources": [source.model_dump(exclude={"encoder", "path", "check"}) for source in self._settings],
            "per_query": experiment.negatives.per_query,
            "miners": [{**miner.encoder_inputs, **encoded} for miner in self.miners.values()],
            "candidates": [folder.name for folder in self.candidates.values()],
            **({"checks": [self._check_inputs(index) for index in self.checkers]} if self.checkers else {}),
        }

    def _check_inputs(self, index: int) -> Mapping[str, Any]:
        check = self._settings[index].check
        assert check is not None
        margins = check.model_dump(include={"absolute_margin", "relative_margin"})
        return {"source": index, **self.checkers[index].identity, **margins}

    @cached_property
    def negatives(self) -> NegativeSource:
        """What draws them."""
        return self.drawn_from({})

    @property
    def refreshed(self) -> dict[int, int]:
        """For each source that is mined anew during training, after how many epochs each time."""
        return {index: source.refresh for index, source in enumerate(self._settings) if source.refresh}

    def drawn_from(self, rankings: Mapping[int, Mined]) -> NegativeSource:
        """What draws them, with other rankings for some sources."""
        workspace, per_query = self._workspace, self._workspace.experiment.negatives.per_query
        training, documents = workspace.split[0], workspace.collection.documents.num_rows
        if all(source.source == "random" for source in self._settings):
            return RandomNegatives(documents, training, per_query)
        pools = [
            self._mined_pool(index, rankings[index]) if index in rankings else self._pools[index]
            for index, source in enumerate(self._settings)
            if source.source != "random"
        ]
        random = sum(source.weight for source in self._settings if source.source == "random")
        return PooledNegatives(self.queries, pools, training, documents, per_query, random)

    @cached_property
    def miners(self) -> dict[int, Workspace]:
        """For each source that an encoder mines, a workspace with that encoder."""
        workspace, found = self._workspace, {}
        for index, source in self._of("mined").items():
            encoder = source.encoder or workspace.experiment.encoder
            own = encoder == workspace.experiment.encoder
            found[index] = workspace if own else workspace.with_encoder(encoder)
        return found

    @cached_property
    def checkers(self) -> dict[int, Scorer]:
        """For each source that a cross-encoder checks, the cross-encoder."""
        return {
            index: Scorer(self._workspace, source.check, f"{self.key(index)}.check")
            for index, source in enumerate(self._settings)
            if source.check
        }

    @cached_property
    def candidates(self) -> dict[int, Path]:
        """For each source that is a file, the folder of the store with what it holds."""
        workspace, found = self._workspace, {}
        for index, source in self._of("file").items():
            path, where = str(source.path), f"{self.key(index)}.path"
            found[index] = data.read_candidates(
                workspace.store, workspace.collection, path, self.queries, source.depth, where
            )
        return found

    def mining(self, index: int) -> Mining:
        """The work that a ranking takes."""
        miner, training = self.miners[index], self._workspace.experiment.training
        model, budget = miner.starting_model, training.token_budget
        return Mining(
            VectorSet(model.of_documents, miner.tokens.documents, training.precision, budget),
            VectorSet(model, miner.tokens.queries, "fp32", budget, self.queries),
            self._workspace.split[0].relevant,
            min(self._settings[index].depth, miner.collection.documents.num_rows),
        )

    @property
    def queries(self) -> Rows:
        """Those that are trained on, in the order of their rows."""
        return np.unique(self._workspace.split[0].relevant.query_row)

    def _of(self, kind: str) -> dict[int, MixedSourceSettings]:
        return {index: source for index, source in enumerate(self._settings) if source.source == kind}

    def checker_stage(self, index: int) -> Stage:
        """Where the scores of what a source offers are kept."""
        return self.checkers[index].stage(self._pairs(self._unchecked(index)))

    @property
    def costs(self) -> dict[str, Cost]:
        """What it cost to rank and to check what the sources offer, by stage of the store."""
        workspace = self._workspace
        found: dict[str, Cost] = {}
        for index in self.miners:
            found |= self.mining(index).costs(workspace.store)
        for index in self.checkers:
            stage = self.checker_stage(index)
            found[stage.fingerprint] = replace(pair_scoring.cost(stage.path), stage="mining")
        for source in self._of("bm25").values():
            what = workspace.store, workspace.collection, self.queries, source.depth
            seconds, queries = data.rank_seconds(*what), len(self.queries)
            cost = Cost(stage="mining", device_seconds=seconds, wall_seconds=seconds, examples=queries)
            found[data.ranks_stage(*what).fingerprint] = cost
        return found

    @cached_property
    def _pools(self) -> dict[int, Pool]:
        """What each source offers."""
        return {index: self._pool(index) for index, each in enumerate(self._settings) if each.source != "random"}

    def _pool(self, index: int) -> Pool:
        pool, check = self._unchecked(index), self._settings[index].check
        if check is None:
            return pool
        folder = self.checkers[index].score(self._pairs(pool), "the cross-encoder checks negatives")
        scores, training = PairScores(folder), self._workspace.split[0].relevant
        asked = pair_scores.pairs_of(self.queries, np.maximum(pool.rows, 0), self._documents)
        line = np.searchsorted(self.queries, training.query_row)
        lowest = np.full(len(self.queries), np.inf, np.float32)
        np.minimum.at(lowest, line, scores.take(training.query_row * self._documents + training.doc_row))
        checked = replace(pool, scores=np.where(pool.rows >= 0, scores.find(asked)[1], np.inf).astype(np.float32))
        return replace(pool, rows=checked.below(lowest, check.absolute_margin, check.relative_margin).rows)

    def _pairs(self, pool: Pool) -> Rows:
        """What a cross-encoder has to score: what a source offers, and the relevant documents."""
        training, offered = self._workspace.split[0].relevant, pool.rows >= 0
        pairs = pair_scores.pairs_of(self.queries, pool.rows, self._documents)[offered]
        return np.union1d(pairs, training.query_row * self._documents + training.doc_row)

    @property
    def _documents(self) -> int:
        return int(self._workspace.collection.documents.num_rows)

    def _unchecked(self, index: int) -> Pool:
        """What a source offers before a cross-encoder has looked at it."""
        source, workspace = self._settings[index], self._workspace
        if source.source == "given":
            rows = data.judged_nonrelevant(workspace.split[0], self.queries)
            return Pool("given", rows, source.weight, ranked=False)
        if source.source == "bm25":
            pool = Pool("bm25", workspace.bm25(self.queries, source.depth), source.weight)
        elif source.source == "file":
            found = data.open_candidates(self.candidates[index], len(self.queries))
            pool = Pool(Path(str(source.path)).name, found.rows, source.weight, found.scores, found.scores is not None)
        else:
            mined = self.mining(index).mined(workspace.store, workspace.collection, workspace.embed)
            return self._mined_pool(index, mined)
        return pool.window(source.skip, source.depth)

    def _mined_pool(self, index: int, mined: Mined) -> Pool:
        source = self._settings[index]
        name = "mined" if source.encoder is None else f"mined by {source.encoder.model}"
        pool = Pool(name, mined.rows, source.weight, mined.scores)
        return pool.below(mined.positives, source.absolute_margin, source.relative_margin).window(
            source.skip, source.depth
        )
