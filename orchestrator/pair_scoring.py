"""A cross-encoder's scores of pairs, made in shards: what another set of pairs has of them is not made again.

With dual pooling its vectors are kept too, (2 D,) a pair, in the shards that they were made in, and all pairs are made.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data import Collection, Rows, Shard, Stage, Store, file_digest, pair_scores
from data.arrow import numbers, read_arrow, write_arrow
from data.pair_scores import PairScores
from orchestrator import shards
from orchestrator.cluster import Resources, WorkerSize
from orchestrator.cross_encoder import POOLED, CrossEncoder, Scoring, load_cross_encoder
from orchestrator.encoder import pad_id
from orchestrator.encoding import Encoding, device
from orchestrator.records import Cost, costs_from_json, to_json
from orchestrator.search.vectors import COLUMN, table
from orchestrator.training import Tokens

SHARD_PAIRS = 2048
COST = "cost.json"
# In a partial stage: the folder of what is under way, the pairs that are to be made, the scores of the others, and what
# these cost.
_WORK, _MISSING, _KNOWN, _REUSED = "work", "missing.arrow", "known.arrow", "reused.json"


@dataclass(frozen=True, eq=False)
class PairScoring:
    """The scores of some pairs under a cross-encoder.

    Args:
        identity: all that a score depends on but the texts.
        folder: the model.
        pairs: ascending, as `data.pair_scores.pairs_of` numbers them.
    """

    identity: Mapping[str, Any]
    folder: Path
    pairs: Rows
    precision: str
    token_budget: int | None
    scoring: Scoring = POOLED

    @property
    def has_vectors(self) -> bool:
        """Whether it has them beside the scores."""
        return self.scoring.scorer == "dual"

    def stage(self, store: Store, collection: Collection) -> Stage:
        """Where they are kept."""
        return pair_scores.scores_stage(store, collection, self.identity, self.pairs)

    def scores(
        self,
        store: Store,
        collection: Collection,
        tokens: Callable[[], Tokens],
        size: WorkerSize,
        available: Resources,
        connect: Callable[[], object] | None,
        on_shard: Callable[[int, int], None],
    ) -> Path:
        """The folder of the finished stage; a killed call goes on at the next shard.

        `tokens` gives those of the texts under the model's tokenizer.
        """
        stage = self.stage(store, collection)

        def make(partial: Path) -> None:
            if not (partial / COST).is_file():  # the last that is moved out of the work
                work = self._work(stage)
                missing, known, reused = _plan(work)
                numbered = [Shard(work, number) for number in range(math.ceil(len(missing) / SHARD_PAIRS))]
                arguments = {
                    "folder": self.folder,
                    "scoring": self.scoring,
                    "tokens": tokens(),
                    "pairs": work / _MISSING,
                    "precision": self.precision,
                    "token_budget": self.token_budget,
                }
                shards.run(numbered, ScoreShard, arguments, size, available, connect, on_shard)
                made = [numbers(read_arrow(shard.path)["score"]) for shard in numbered]
                pairs = np.concatenate([numbers(known["pair"]), missing])
                pair_scores.write_scores(work, pairs, np.concatenate([numbers(known["score"]), *made]))
                cost = shards.total([*shards.costs(work), *reused], "teaching")
                (work / COST).write_text(json.dumps(to_json(cost)), encoding="utf-8")
                vectors = [shard.path.name for shard in numbered] if self.has_vectors else []
                for name in (*vectors, pair_scores.SCORES, COST):
                    (work / name).rename(partial / name)
            for left in partial.glob(f"{_WORK}*"):
                shutil.rmtree(left)

        return stage.build(make)

    def _work(self, stage: Stage) -> Path:
        """The folder of what is under way. What is to be made is settled once a stage, since what other stages hold may
        change while this one is made; at a URI it is in the name, so that two machines do not mix up their shards.
        """
        draft, mirror = stage.partial / f"{_WORK}.draft", stage.mirror
        begun = [path for path in sorted(stage.partial.glob(f"{_WORK}*")) if path != draft]
        if begun:
            return begun[0]
        if mirror:
            for name in sorted(name for name in mirror.names() if name.startswith(_WORK) and "/" not in name):
                if mirror.bring(name):
                    return stage.partial / name
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        known = pair_scores.known(stage, self.pairs[:0] if self.has_vectors else self.pairs)
        missing = np.setdiff1d(self.pairs, known.pairs, assume_unique=True)
        write_arrow(pa.table({"pair": missing}), draft / _MISSING)
        write_arrow(pa.table({"pair": known.pairs, "score": known.scores}), draft / _KNOWN)
        reused = [_share(cost(folder), count / len(PairScores(folder))) for folder, count in known.used.items()]
        (draft / _REUSED).write_text(json.dumps([to_json(each) for each in reused]), encoding="utf-8")
        work = stage.partial / (f"{_WORK}-{file_digest(draft / _MISSING)[:16]}" if mirror else _WORK)
        draft.rename(work)
        if mirror:
            mirror.keep(work)
        return work


def _plan(work: Path) -> tuple[Rows, pa.Table, list[Cost]]:
    """The pairs that are to be made, the scores of the others, and the share of their cost."""
    costs = costs_from_json(json.loads((work / _REUSED).read_text(encoding="utf-8")))
    return numbers(read_arrow(work / _MISSING)["pair"]), read_arrow(work / _KNOWN), list(costs)


def cost(folder: Path) -> Cost:
    """What the scores in a finished stage cost; of those that were taken over from another stage, their share there."""
    (found,) = costs_from_json([json.loads((folder / COST).read_text(encoding="utf-8"))])
    return found


def _share(cost: Cost, share: float) -> Cost:
    return replace(
        cost,
        device_seconds=cost.device_seconds * share,
        wall_seconds=cost.wall_seconds * share,
        examples=round(cost.examples * share),
        tokens=round(cost.tokens * share),
        flops=cost.flops * share,
        joules=cost.joules * share,
    )


class ScoreShard:
    """The worker: the scores of a shard's pairs, with the vectors of dual pooling, and what they cost."""

    def __init__(
        self,
        folder: Path,
        scoring: Scoring,
        tokens: Tokens,
        pairs: Path,
        precision: str,
        token_budget: int | None,
        threads: int,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._tokens, self._pairs = tokens, numbers(read_arrow(pairs)["pair"])
        self._model: CrossEncoder = load_cross_encoder(folder, scoring).to(device())
        self._encoding = Encoding.on(device(), precision, token_budget, pad_id(folder))

    def __call__(self, shard: Shard) -> pa.Table:
        meter = shards.Meter(self._encoding.device.type, self._encoding.precision)
        pairs = self._pairs[shard.number * SHARD_PAIRS : (shard.number + 1) * SHARD_PAIRS]
        queries, documents = np.divmod(pairs, len(self._tokens.documents))
        sequences = self._model.layout.pairs(self._tokens, queries, documents)
        found = self._encoding.embed(self._model, sequences, meter.count)
        columns = {"score": pa.array(self._model.scores(found).cpu().numpy())}
        if self._model.dimension > 1:
            columns[COLUMN] = table(found.cpu().numpy())[COLUMN]
        return meter.into(pa.table(columns), len(pairs))
