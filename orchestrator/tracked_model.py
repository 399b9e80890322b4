"""The best encoder of a comparison as a model of MLflow's, which `mlflow models serve` answers with.

The best is the one that validation prefers. To take the one with the best measures on the test split would make these
say more of it than is true: a maximum over rows on the very queries that the table reports.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.records import Result, Trial

KINDS = "query", "document"
# What `orchestrator.embedder` imports beside our own packages, which go along with the model.
REQUIRES = "filelock", "mlflow", "numpy", "pandas", "pyarrow", "safetensors", "tokenizers", "torch", "transformers"
SCRIPT = Path(__file__).with_name("embedder.py")


def best(results: Sequence[Result]) -> tuple[Result, Trial] | None:
    """The row whose chosen run has the best validation, the first of equals, and that run; None where none trains."""
    trained = [(result, trial) for result in results if (trial := result.winning_trial) and trial.model]
    return max(trained, key=lambda pair: pair[1].validation, default=None)


def log_model(client: Any, run: Any, name: str, encoder: Path, query_tokens: int) -> str:
    """Make a model of an encoder's folder, as the output of a run; its URI. One that the run has already is kept.

    Args:
        run: MLflow's record of it, whose parameters are the model's too.
        query_tokens: where queries are cut.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    experiment, wanted = run.info.experiment_id, f"source_run_id = '{run.info.run_id}'"
    model = next(iter(client.search_logged_models([experiment], wanted, max_results=1)), None)
    if model is None:
        params = run.data.params
        model = client.create_logged_model(experiment, name, run.info.run_id, params=params, model_type="encoder")
    if model.status != LoggedModelStatus.READY:
        place = {"artifact_path": model.artifact_location, "run_id": run.info.run_id}
        described = Model(**place, model_uuid=model.model_id, model_id=model.model_id)
        with TemporaryDirectory(prefix="stillhouse-model-") as scratch:
            save_model(encoder, query_tokens, Path(scratch) / "model", described)
            client.log_model_artifacts(model.model_id, str(Path(scratch) / "model"))
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return f"models:/{model.model_id}"


def save_model(encoder: Path, query_tokens: int, folder: Path, described: Any = None) -> None:
    """Write an encoder's folder as a model of MLflow's, with a copy of our packages that load it.

    Args:
        described: MLflow's record of the model, where it has one already.
    """
    import mlflow.pyfunc
    import numpy as np
    import pandas as pd  # type: ignore[import-untyped]
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "text")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, dimension(encoder)))]),
        params=ParamSchema([ParamSpec("kind", "string", KINDS[0])]),
    )
    packages = SCRIPT.parent, SCRIPT.parents[1] / "data"
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(SCRIPT),
        artifacts={"encoder": str(encoder)},
        code_paths=[str(package) for package in packages],
        model_config={"query_tokens": query_tokens},
        signature=signature,
        input_example=(pd.DataFrame({"text": ["copper takes sulphur out of the spirit"]}), {"kind": KINDS[0]}),
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in REQUIRES],
        mlflow_model=described,
    )


def dimension(encoder: Path) -> int:
    """D, the length of the vectors of a saved encoder; of two towers, of both."""
    from orchestrator.encoder import DOCUMENT_TOWER, POOLING

    tower = encoder / DOCUMENT_TOWER if (encoder / DOCUMENT_TOWER).is_dir() else encoder
    pooled = json.loads((tower / POOLING / "config.json").read_text(encoding="utf-8"))["word_embedding_dimension"]
    maps = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(tower.glob("?_Dense/config.json"))]
    return int(maps[-1]["out_features"] if maps else pooled)
