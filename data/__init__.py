"""What is learned from: collections, token shards, negatives, batches.

Importing it takes numpy and pyarrow. Ray, transformers and bm25s are imported by the functions that need them.
"""

from data.bm25 import rank
from data.collection import Collection, Qrels, load
from data.errors import UserError
from data.formats.beir import read_beir
from data.negatives import NegativeSource, RandomNegatives, RankedNegatives
from data.plan import Batch, BatchPlan, Examples
from data.sharded import run_shards, shard_path
from data.split import split_validation, validation_pool
from data.store import Stage, Store, file_digest, fingerprint
from data.tokens import TokenShards, tokenize

__all__ = [
    "Batch",
    "BatchPlan",
    "Collection",
    "Examples",
    "NegativeSource",
    "Qrels",
    "RandomNegatives",
    "RankedNegatives",
    "Stage",
    "Store",
    "TokenShards",
    "UserError",
    "file_digest",
    "fingerprint",
    "load",
    "rank",
    "read_beir",
    "run_shards",
    "shard_path",
    "split_validation",
    "tokenize",
    "validation_pool",
]
