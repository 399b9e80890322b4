"""What is minimised: pure torch, no I/O, no Ray, no transformers."""

from losses.contract import Embeddings, Loss, LossOutput, Signals
from losses.infonce import InfoNCE
from losses.margin import Margin
from losses.registry import build, describe
from losses.triplet import Triplet

__all__ = ["Embeddings", "InfoNCE", "Loss", "LossOutput", "Margin", "Signals", "Triplet", "build", "describe"]
