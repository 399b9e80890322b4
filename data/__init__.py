"""What is learned from: collections, token shards, negatives, batches.

Importing it takes numpy and pyarrow. Ray, transformers and bm25s are imported by the functions that need them.
"""

from data.bm25 import rank, rank_seconds, ranks_stage
from data.candidates import open_candidates, read_candidates
from data.collection import Collection, Qrels, Rows, load, open_collection
from data.errors import UserError
from data.formats.beir import read_beir
from data.inspection import Inspection, inspect
from data.negatives import NegativeSource, Pool, PooledNegatives, RandomNegatives, judged_nonrelevant
from data.plan import Batch, BatchPlan, Examples, check_batch_size
from data.sharded import Shard, run_shards
from data.split import share_of, split_validation, validation_pool
from data.store import Stage, Store, build_together, file_digest, fingerprint
from data.tokens import TextField, TokenShards, tokenize, tokens_stage

__all__ = [
    "Batch",
    "BatchPlan",
    "Collection",
    "Examples",
    "Inspection",
    "NegativeSource",
    "Pool",
    "PooledNegatives",
    "Qrels",
    "RandomNegatives",
    "Rows",
    "Shard",
    "Stage",
    "Store",
    "TextField",
    "TokenShards",
    "UserError",
    "build_together",
    "check_batch_size",
    "file_digest",
    "fingerprint",
    "inspect",
    "judged_nonrelevant",
    "load",
    "open_candidates",
    "open_collection",
    "rank",
    "rank_seconds",
    "ranks_stage",
    "read_beir",
    "read_candidates",
    "run_shards",
    "share_of",
    "split_validation",
    "tokenize",
    "tokens_stage",
    "validation_pool",
]
