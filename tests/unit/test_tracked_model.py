"""Pins: the best encoder is the one that validation prefers; as a model of MLflow's it answers with the vectors that
the encoder has, queries and documents each by their own tower and length; it is there once, and nothing in it is a
pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from orchestrator.encoder import BiEncoder, Tower, load_encoder, save_encoder, save_towers
from orchestrator.records import Result, Trial
from orchestrator.tracked_model import best, log_model, save_model

QUERIES = ["askba bado fike lonu", "mifi"]
LONG = "docba " * 12 + "bado fike"


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> BiEncoder:
    """With a map behind its pooling, so that all parts of a saved folder are read."""
    made = load_encoder(tiny_model, pooling="mean", normalize=True)
    made.project(8, seed=1)
    return made


@pytest.fixture(scope="module")
def other(tiny_model: Path) -> BiEncoder:
    made = load_encoder(tiny_model, pooling="mean", normalize=True, layers=(1,))
    made.project(8, seed=1)
    return made


def vectors(encoder: BiEncoder, model: Path, texts: list[str], max_tokens: int) -> Any:
    """By transformers' own tokenizer and the plain forward pass, one text at a time."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        each = [tokenizer([t], truncation=True, max_length=max_tokens, return_tensors="pt") for t in texts]
        return np.concatenate([encoder(ids["input_ids"], ids["attention_mask"]).numpy() for ids in each])


def test_one_encoder(encoder: BiEncoder, tiny_model: Path, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path / "encoder", tokenizer=tiny_model, max_tokens=14)
    save_model(tmp_path / "encoder", 5, tmp_path / "model")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    texts = pd.DataFrame({"text": [*QUERIES, LONG]})
    found = loaded.predict(texts)
    assert found.dtype == np.float32
    assert found == pytest.approx(vectors(encoder, tiny_model, [*QUERIES, LONG], 5), abs=1e-5)
    documents = vectors(encoder, tiny_model, [*QUERIES, LONG], 14)
    assert loaded.predict(texts, params={"kind": "document"}) == pytest.approx(documents, abs=1e-5)
    assert abs(found - documents).max() > 0.01  # a query is cut earlier
    with pytest.raises(MlflowException, match='kind must be "query" or "document", not "title"'):
        loaded.predict(texts, params={"kind": "title"})
    assert not [file for file in (tmp_path / "model").rglob("*") if file.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    assert loaded.metadata.signature.outputs.inputs[0].shape == (-1, 8)
    example = loaded.metadata.load_input_example(str(tmp_path / "model"))
    assert loaded.predict(example).shape == (1, 8)


def test_two_towers(encoder: BiEncoder, other: BiEncoder, tiny_model: Path, tmp_path: Path) -> None:
    save_towers(Tower(other, tiny_model, 6), Tower(encoder, tiny_model, 14), tmp_path / "encoder")
    save_model(tmp_path / "encoder", 6, tmp_path / "model")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    texts = pd.DataFrame({"text": [*QUERIES, LONG]})
    queries = vectors(other, tiny_model, [*QUERIES, LONG], 6)
    assert loaded.predict(texts, params={"kind": "query"}) == pytest.approx(queries, abs=1e-5)
    documents = vectors(encoder, tiny_model, [*QUERIES, LONG], 14)
    assert loaded.predict(texts, params={"kind": "document"}) == pytest.approx(documents, abs=1e-5)


def test_a_run_has_one(encoder: BiEncoder, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_encoder(encoder, tmp_path / "encoder", tokenizer=tiny_model, max_tokens=14)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run = client.create_run(client.create_experiment("x"))

    # Killed when it was half there.
    def killed(self: Any, *arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", killed)
        with pytest.raises(KeyboardInterrupt):
            log_model(client, run, "tiny-arm", tmp_path / "encoder", 5)
    uri = log_model(client, run, "tiny-arm", tmp_path / "encoder", 5)
    assert log_model(client, run, "tiny-arm", tmp_path / "encoder", 5) == uri
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.model_uri, model.name, str(model.status)) == (uri, "tiny-arm", "READY")
    assert model.source_run_id == run.info.run_id
    assert [each.model_id for each in client.get_run(run.info.run_id).outputs.model_outputs] == [model.model_id]
    weights = [file for file in (tmp_path / "mlruns").rglob("*.safetensors") if "Dense" not in str(file)]
    assert len(weights) == 1


def result(name: str, validation: float, test: float, model: str | None = "m") -> Result:
    trial = Trial(name, {}, "finished", validation, (), (), model)
    return Result(name, name, True, (trial,), name, {"nDCG@10": test}, {})


def test_the_best_is_by_validation() -> None:
    untrained = Result("untrained", "untrained", True, (), None, {"nDCG@10": 0.9}, {})
    rows = [untrained, result("a", 0.4, 0.8), result("b", 0.5, 0.3), result("c", 0.5, 0.5), result("d", 0.9, 0.9, None)]
    chosen = best(rows)
    assert chosen is not None
    assert chosen[0].name == "b"  # the first of equals, whatever the test split says
    assert best([untrained]) is None
