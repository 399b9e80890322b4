"""The encoder behind `mlflow models serve`. MLflow runs this file to make the model ("models from code"): no pickle is
read.

In: a column `text`, and the parameter `kind`, "query" (the default) or "document", since these are cut at different
lengths and a model of two towers encodes each with its own. Out: vectors (n, D) in float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd  # type: ignore[import-untyped]

from data.tokens import fast_tokenizer
from orchestrator.encoder import DOCUMENT_TOWER, LENGTH, QUERY_TOWER, load_encoder, own_pooling, pad_id
from orchestrator.encoding import Encoding, device
from orchestrator.modules import ROUTER
from orchestrator.weights import locate


class Embedder(mlflow.pyfunc.PythonModel):
    """Vectors of texts, as the evaluation has them, in float32.

    `context.artifacts["encoder"]` is the folder of a trained encoder, `context.model_config` has `query_tokens`, where
    queries are cut; where documents are, the folder says.
    """

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["encoder"])
        two = (folder / ROUTER).is_file()
        queries = _Tower(folder / QUERY_TOWER if two else folder)
        documents = _Tower(folder / DOCUMENT_TOWER) if two else queries
        self._kinds = {
            "query": _Texts(queries, context.model_config["query_tokens"]),
            "document": _Texts(documents, documents.max_tokens),
        }

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> npt.NDArray[np.float32]:
        """
        Raises:
            MlflowException: `kind` is no kind of text; the server answers with status 400.
        """
        kind = (params or {}).get("kind", "query")
        if kind not in self._kinds:
            raise mlflow.MlflowException.invalid_parameter_value(f'kind must be "query" or "document", not "{kind}"')
        return self._kinds[kind].encode(model_input["text"].tolist())


class _Tower:
    """An encoder on the device where this process encodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.max_tokens: int = json.loads((folder / LENGTH).read_text(encoding="utf-8"))["max_seq_length"]
        encoder = load_encoder(folder, pooling=own_pooling(folder), normalize=locate(str(folder)).normalizes)
        self.encoder = encoder.to(device())
        self.encoding = Encoding.on(device(), "fp32", None, pad_id(folder))


class _Texts:
    """One kind of texts, with a tokenizer of its own: its truncation must not change under another request's hands."""

    def __init__(self, tower: _Tower, max_tokens: int) -> None:
        self._tower, tokenizer = tower, fast_tokenizer(tower.folder)
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
        self._tokenizer.no_padding()

    def encode(self, texts: list[str]) -> npt.NDArray[np.float32]:
        ids = [np.array(each.ids, np.int32) for each in self._tokenizer.encode_batch_fast(texts)]
        return self._tower.encoding.embed(self._tower.encoder, ids).cpu().numpy()  # type: ignore[no-any-return]


mlflow.models.set_model(Embedder())
