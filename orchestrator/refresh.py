"""Negatives mined anew during training, by the encoder as it is then (ANCE, Xiong et al. 2021, arXiv 2007.00808)."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np

from data import NegativeSource
from data.arrow import write_arrow
from data.store import TEMPORARY
from orchestrator.embeddings import SHARD_TEXTS, stored
from orchestrator.encoder import BiEncoder
from orchestrator.encoding import Encoding, TokenCount
from orchestrator.group import Group
from orchestrator.mining import Mined, lowest_positives, read_mined, write_mined
from orchestrator.search import Stored, search_shards, table
from orchestrator.teaching import DOCUMENTS
from orchestrator.workspace import Workspace


class Refresh:
    """Ranks the corpus for the training queries at the start of an epoch, every so many epochs.

    A ranking is kept with the run, so that a run that was killed goes on with the same negatives. The ranks of a group
    share the encoding; rank 0 searches.

    Args:
        folder: of the run; what is made here goes when the run is finished.
    """

    def __init__(self, workspace: Workspace, folder: Path, encoding: Encoding) -> None:
        self._workspace, self._folder, self._encoding = workspace, folder, encoding

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
        folder = self._folder / f"mined-{epoch:04d}"
        if not folder.is_dir():  # every rank sees the same: none goes on before rank 0 has renamed it
            partial = folder.with_suffix(TEMPORARY)
            if group.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            group.wait()
            if not self._workspace.settings.inherits:
                self._encode(partial, encoder, group, count)
            group.wait()
            if group.rank == 0:
                self._search(partial, encoder, count)
                partial.rename(folder)
            group.wait()
        return read_mined(folder, len(self._workspace.sources.queries))

    def _encode(self, folder: Path, encoder: BiEncoder, group: Group, count: TokenCount) -> None:
        """This rank's share of the corpus."""
        documents = self._workspace.tokens.documents
        for shard in range(group.rank, math.ceil(len(documents) / SHARD_TEXTS), group.size):
            rows = range(shard * SHARD_TEXTS, min(len(documents), (shard + 1) * SHARD_TEXTS))
            vectors = self._encoding.embed(encoder, documents.take(rows), count).cpu().numpy()
            write_arrow(table(vectors), folder / f"part-{shard:05d}.arrow")

    def _search(self, folder: Path, encoder: BiEncoder, count: TokenCount) -> None:
        workspace, queries = self._workspace, self._workspace.sources.queries
        depth = max(workspace.experiment.negatives.sources[index].depth for index in workspace.sources.refreshed)
        parts = sorted(folder.glob("part-*.arrow"))
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
