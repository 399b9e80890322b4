"""Tiny encoders of each family, and token ids in memory, for tests of the core."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

torch.set_num_threads(1)  # models as small as these gain nothing from a second thread, and lose on a busy machine

LAYERS = 4


def config(family: str, *, vocabulary: int = 80, layers: int = LAYERS, dropout: float = 0.1) -> Any:
    """A configuration with hidden size 32; pad ids are those of the family."""
    import transformers as t

    size = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
    }
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if family == "bert":
        return t.BertConfig(**size, **drops)
    if family == "roberta":
        return t.RobertaConfig(**size, **drops)
    if family == "mpnet":
        return t.MPNetConfig(**size, **drops)
    if family == "distilbert":
        return t.DistilBertConfig(
            vocab_size=vocabulary,
            dim=32,
            n_layers=layers,
            n_heads=2,
            hidden_dim=64,
            max_position_embeddings=40,
            dropout=dropout,
            attention_dropout=dropout,
        )
    if family == "nomic_bert":
        return t.NomicBertConfig(**size, **drops)
    assert family == "modernbert"
    ids = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    return t.ModernBertConfig(**size, **ids, local_attention=4)


FAMILIES = ("bert", "distilbert", "roberta", "mpnet", "modernbert")


def model(family: str, *, seed: int = 0, **options: Any) -> Any:
    """A random encoder, in evaluation mode, whose every weight counts: biases and norms are not left at 0 and 1."""
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = AutoModel.from_config(config(family, **options), attn_implementation="eager").eval()
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def save(folder: Path, family: str = "bert", *, tokenizer: Path | None = None, **options: Any) -> Path:
    """A model folder of such an encoder, with a tokenizer's files where one is given."""
    model(family, **options).save_pretrained(folder)
    for file in tokenizer.glob("*") if tokenizer else ():
        shutil.copyfile(file, folder / file.name)
    return folder


def sequences(lengths: list[int], *, seed: int = 0, vocabulary: int = 80) -> list[np.ndarray]:
    """Random token ids of these lengths, none of them a special one."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, vocabulary, length).astype(np.int32) for length in lengths]


class Memory:
    """Stands for token shards: the rows of a list."""

    def __init__(self, rows: list[np.ndarray]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.rows], np.int32)

    def take(self, rows: Any) -> list[np.ndarray]:
        return [self.rows[row] for row in np.asarray(rows).tolist()]


def state_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same bits under the same names."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
