"""The papers' own set-ups, which need the hub and a cluster, as far as they come without: every stage is planned, with
small models of random weights under the names of the hub's, and a small collection in the place of theirs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_flow
import tiny_trial
import torch
from transformers import AutoModel, BartConfig, BartForConditionalGeneration

from orchestrator.config import load
from orchestrator.plan import describe

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TRIPLES = "qidpidtriples.train.small.tsv"
# By the name on the hub: its family, and the dimension of the small one, which differs where the real ones differ.
MODELS = {
    "distilbert/distilbert-base-uncased": ("distilbert", 48),
    "microsoft/mpnet-base": ("mpnet", 48),
    "FacebookAI/roberta-base": ("roberta", 48),
    "google/bert_uncased_L-4_H-256_A-4": ("bert", 32),
    "sentence-transformers/msmarco-bert-base-dot-v5": ("bert", 48),
    "sentence-transformers/nq-distilbert-base-v1": ("distilbert", 48),
}


def write_model(folder: Path, family: str, dimension: int, tokenizer: Path) -> None:
    config = tiny.config(family)
    for name, value in {"hidden_size": dimension, "dim": dimension, "max_position_embeddings": 514}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    torch.manual_seed(1)
    AutoModel.from_config(config).save_pretrained(folder)
    for file in tokenizer.glob("*"):
        shutil.copyfile(file, folder / file.name)


@pytest.fixture
def hub(tmp_path: Path, tokenizer_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a relative folder is taken before the hub."""
    for name, (family, dimension) in MODELS.items():
        write_model(tmp_path / name, family, dimension, tokenizer_folder)
    bart = tiny_flow.write_seq2seq(tmp_path / "facebook/bart-base", tiny_model)
    config = BartConfig.from_pretrained(bart)
    config.max_position_embeddings = 1024
    BartForConditionalGeneration(config).save_pretrained(bart)
    (tmp_path / TRIPLES).write_text("".join(f"q{i}\td{i}\td{(i + 1) % 12}\n" for i in range(12)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["arm-msmarco", "embeddistill-msmarco", "embeddistill-nq"])
def test_every_stage_is_planned(name: str, hub: Path, beir: Callable[..., Path]) -> None:
    collection = beir(**tiny_trial.beir_files())
    small = [
        f"collection={{path: {collection}, validation: 0.25}}",
        "training.batch_size=4",
        *("scaling.workers=1", "scaling.gpus_per_worker=0"),
        *(["generation.documents=null"] if name != "arm-msmarco" else []),
    ]
    experiment = load(EXPERIMENTS / f"{name}.yaml", small)
    stages = {line.stage: line.what for line in describe(experiment)}
    assert len(experiment.recipes) >= 10
    for row in experiment.recipes:
        assert "trial" in stages[f"train {row.name}"]
    if experiment.teacher:
        assert "teach" in stages
        assert "facebook/bart-base" in stages["generate queries"]
    assert {path.name for path in (hub / ".stillhouse").iterdir()} <= {
        *("candidates", "collection", "encoder-checks", "encoders", "generator-checks")
    }, "what is read and checked, and nothing that takes its time"
