"""Exact top-k search by inner product, here or over Ray tasks, and approximate search with its recall and latency.

Ties are broken as trec_eval does, by document id in descending order, and before the cut-off: among documents that tie
at the last rank, those that stay are the ones that trec_eval would have ranked first. So a run is a function of the
embeddings alone, not of shards, tasks, threads or the order of the corpus.
"""

from orchestrator.search.approximate import EXACT, recall
from orchestrator.search.exact import Hits
from orchestrator.search.run import Found, score_pairs, search, search_shards
from orchestrator.search.tasks import Tasks
from orchestrator.search.vectors import Shard, Stored, table

__all__ = [
    "EXACT",
    "Found",
    "Hits",
    "Shard",
    "Stored",
    "Tasks",
    "recall",
    "score_pairs",
    "search",
    "search_shards",
    "table",
]
