"""Encode the documents: folder, model, and who does it. The vectors are left in the folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from serve import serve

LENGTH, BATCH = 200, 32
Encode = Callable[[list[str]], Any]


def sentence_transformers(model_folder: str, precision: str) -> Encode:
    """`SentenceTransformer.encode`; "bf16" has its weights in bf16."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_folder, device="cuda" if torch.cuda.is_available() else "cpu")
    model.max_seq_length = LENGTH
    if precision == "bf16":
        model.bfloat16()
    return lambda texts: model.encode(texts, batch_size=BATCH, show_progress_bar=False)


def openvino(model_folder: str, precision: str) -> Encode:
    """OpenVINO's compiled model in batches of texts of like length, mean pooling and normalising in numpy."""
    import openvino as ov
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModel.from_pretrained(model_folder).eval()
    inputs = dict(tokenizer(["an example", "another one"], return_tensors="pt", padding=True))
    with torch.no_grad():
        converted = ov.convert_model(model, example_input=inputs)
    hint = {"bf16": "bf16", "fp32": "f32"}[precision]
    compiled = ov.Core().compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    )

    def encode(texts: list[str]) -> Any:
        ids = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        vectors = np.empty((len(ids), 384), np.float32)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            padded = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="np")
            feed = {name: padded[name] for name in ("input_ids", "attention_mask")}
            feed["token_type_ids"] = np.zeros_like(padded["input_ids"])
            names = {port.get_any_name() for port in compiled.inputs}
            states = compiled({name: value for name, value in feed.items() if name in names})[0]
            mask = padded["attention_mask"][..., None].astype(np.float32)
            mean = (states * mask).sum(1) / mask.sum(1)
            vectors[rows] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return vectors

    return encode


def stillhouse(model_folder: str, precision: str) -> Encode:
    """Stillhouse's encoding, the tokenization included."""
    import torch
    from transformers import AutoTokenizer

    from orchestrator.cluster import local_cpus
    from orchestrator.encoder import load_encoder
    from orchestrator.encoding import Encoding

    torch.set_num_threads(local_cpus())
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    encoder = load_encoder(Path(model_folder), pooling="mean", normalize=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    encoding = Encoding.on(device, precision, None, tokenizer.pad_token_id)

    def encode(texts: list[str]) -> Any:
        ids = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
        return encoding.embed(encoder, [np.array(row, np.int32) for row in ids]).cpu().numpy()

    return encode


def main(folder: Path, model_folder: str, who: str, precision: str) -> None:
    documents = json.loads((folder / "documents.json").read_text())
    encode = {f.__name__: f for f in (sentence_transformers, openvino, stillhouse)}[who](model_folder, precision)

    def run() -> tuple[float, float, dict[str, Any]]:
        began = time.perf_counter()
        vectors = encode(documents)
        seconds = time.perf_counter() - began
        np.save(folder / f"{who}-{precision}.npy", vectors)
        return len(documents), seconds, {}

    serve(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
