"""What is minimised: pure torch, no I/O, no Ray, no transformers."""

from losses.composite import Matryoshka, WeightedSum
from losses.contract import Embeddings, Loss, LossOutput, Signals
from losses.embedding_matching import EmbeddingMatching
from losses.infonce import InfoNCE
from losses.listnet import ListNet
from losses.margin import Margin
from losses.margin_mse import MarginMSE
from losses.pair_kl import PairKL
from losses.ranknet import RankNet
from losses.registry import build, describe
from losses.relational_matching import RelationalMatching
from losses.score_kl import ScoreKL
from losses.self_distilled import SelfDistilledInfoNCE
from losses.triplet import Triplet

__all__ = [
    "EmbeddingMatching",
    "Embeddings",
    "InfoNCE",
    "ListNet",
    "Loss",
    "LossOutput",
    "Margin",
    "MarginMSE",
    "Matryoshka",
    "PairKL",
    "RankNet",
    "RelationalMatching",
    "ScoreKL",
    "SelfDistilledInfoNCE",
    "Signals",
    "Triplet",
    "WeightedSum",
    "build",
    "describe",
]
