"""Negatives mined anew during training, by the encoder as it is then (ANCE, Xiong et al. 2021, arXiv 2007.00808)."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np

from data import NegativeSource
from data.arrow import write_arrow
from data.mirror import TEMPORARY
from orchestrator.embeddings import SHARD_TEXTS, stored
from orchestrator.encoder import BiEncoder
from orchestrator.encoding import Encoding, TokenCount
from orchestrator.group import Group
from orchestrator.mining import Mined, lowest_positives, read_mined, write_mined
from orchestrator.search import Stored, search_shards, table
from orchestrator.spread import Spread
from orchestrator.teaching import DOCUMENTS
from orchestrator.workspace import Workspace


class Refresh:
    """Ranks the corpus for the training queries at the start of an epoch, every so many epochs.

    A ranking is kept with the run, so that a run that was killed goes on with the same negatives. The ranks of a group
    share the encoding; rank 0 searches.

    Args:
        folder: of the run; what is made here goes when the run is finished.
        spread: how the ranks see it, if that is known.
    """

    def __init__(self, workspace: Workspace, folder: Path, encoding: Encoding, spread: Spread | None = None) -> None:
        self._workspace, self._folder, self._encoding = workspace, folder, encoding
        self._spread = spread or Spread(folder, Group())

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove the rankings of a run."""
        for mined in folder.glob("mined-*"):
            shutil.rmtree(mined)

    def __call__(self, epoch: int, encoder: BiEncoder, group: Group, count: TokenCount) -> NegativeSource:
        """What the negatives of an epoch are drawn from; what is encoded for it is added to `count`."""
        sources, rankings = self._workspace.sources, {}
        for index, every in sources.refreshed.items():
            if since := epoch // every * every:
                rankings[index] = self._ranking(since, encoder, group, count)
        return sources.drawn_from(rankings)

    def _ranking(self, epoch: int, encoder: BiEncoder, group: Group, count: TokenCount) -> Mined:
        folder, spread = self._folder / f"mined-{epoch:04d}", self._spread
        if not spread.everywhere(folder.is_dir(), group):  # none goes on before rank 0 has renamed it
            partial = folder.with_suffix(TEMPORARY)
            if spread.away or group.rank == 0:
                for old in (partial, folder):
                    shutil.rmtree(old, ignore_errors=True)
                partial.mkdir(parents=True, exist_ok=True)
            group.wait()
            if not self._workspace.settings.inherits:
                self._encode(partial, encoder, group, count)
            group.wait()
            if group.rank == 0:
                self._search(partial, encoder, count)
                partial.rename(folder)
                spread.give(folder)
            group.wait()
            spread.take(folder)
        return read_mined(folder, len(self._workspace.sources.queries))

    @property
    def _shards(self) -> int:
        return math.ceil(len(self._workspace.tokens.documents) / SHARD_TEXTS)

    def _encode(self, folder: Path, encoder: BiEncoder, group: Group, count: TokenCount) -> None:
        """This rank's share of the corpus."""
        documents = self._workspace.tokens.documents
        for shard in range(group.rank, self._shards, group.size):
            rows = range(shard * SHARD_TEXTS, min(len(documents), (shard + 1) * SHARD_TEXTS))
            vectors = self._encoding.embed(encoder, documents.take(rows), count).cpu().numpy()
            path = _part(folder, shard)
            write_arrow(table(vectors), path)
            if self._spread.away:
                self._spread.give(path)

    def _search(self, folder: Path, encoder: BiEncoder, count: TokenCount) -> None:
        workspace, queries = self._workspace, self._workspace.sources.queries
        depth = max(workspace.experiment.negatives.sources[index].depth for index in workspace.sources.refreshed)
        parts = [_part(folder, shard) for shard in range(0 if workspace.settings.inherits else self._shards)]
        for path in parts:
            self._spread.take(path)
        shards = [Stored.of(path) for path in parts]
        if workspace.settings.inherits:
            assert workspace.teaching is not None
            shards = stored(workspace.teaching.folders[DOCUMENTS])
        vectors = self._encoding.embed(encoder, workspace.tokens.queries.take(queries), count).cpu().numpy()
        depth = min(depth, len(workspace.tokens.documents))
        found = search_shards(vectors, shards, depth, ids=workspace.collection.document_ids)
        positives = lowest_positives(vectors, shards, workspace.split[0].relevant)
        write_mined(folder, Mined(found.rows, np.asarray(found.scores, np.float32), positives))
        for path in parts:
            path.unlink()


def _part(folder: Path, shard: int) -> Path:
    return folder / f"part-{shard:05d}.arrow"
