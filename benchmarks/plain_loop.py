"""InfoNCE on SciFact by a plain loop of transformers, to compare quality with: no code of ours but where weights are.

python benchmarks/plain_loop.py [seed]

The settings of experiments/scifact-minilm6.yaml: all six layers, 64 and 160 tokens, batch 32, a random negative each, 2
epochs at 2e-5, temperature 0.05, clipping at 1, no dropout, bf16. Unlike there all training queries are used, and the
last, short batch of an epoch too. Some six minutes on two cores.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import ir_measures
import torch
import torch.nn.functional as F
from ir_measures import RR, R, nDCG
from transformers import AutoModel, AutoTokenizer

from orchestrator.weights import locate

SCIFACT = Path(__file__).resolve().parent.parent / "examples" / "scifact"
QUERY_TOKENS, DOCUMENT_TOKENS, BATCH, EPOCHS, CHUNK = 64, 160, 32, 2, 16
TEMPERATURE, LEARNING_RATE, WEIGHT_DECAY, CLIP = 0.05, 2e-5, 0.01, 1.0


class Encoder:
    """Mean pooling, length 1; chunks of texts of like length."""

    def __init__(self) -> None:
        folder = locate("sentence-transformers/all-MiniLM-L6-v2").path
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()  # no dropout in training

    def __call__(self, texts: Sequence[str], longest: int) -> torch.Tensor:
        ids = self._tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        vectors = []
        for start in range(0, len(ids), CHUNK):
            rows = order[start : start + CHUNK]
            padded = self._tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            with torch.autocast("cpu", torch.bfloat16):
                states = self.model(**padded).last_hidden_state.float()
            mask = padded["attention_mask"][..., None]
            vectors.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(vectors)[torch.tensor(order).argsort()]


def main(seed: int) -> None:
    documents = {value["_id"]: f"{value.get('title', '')} {value['text']}".strip() for value in lines("corpus")}
    queries = {value["_id"]: value["text"] for value in lines("queries")}
    pairs, relevant = [], dict[str, set[str]]()
    for judgment in judgments("train"):
        pairs.append((judgment.query_id, judgment.doc_id))
        relevant.setdefault(judgment.query_id, set()).add(judgment.doc_id)
    encoder, draw, ids = Encoder(), random.Random(seed), list(documents)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in encoder.model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in encoder.model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
    )
    for epoch in range(EPOCHS):
        draw.shuffle(pairs)
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            negatives = [negative(draw, ids, relevant[query]) for query, _ in batch]
            q = encoder([queries[query] for query, _ in batch], QUERY_TOKENS)
            d = encoder([documents[id_] for id_ in [*(positive for _, positive in batch), *negatives]], DOCUMENT_TOKENS)
            loss = F.cross_entropy(q @ d.T / TEMPERATURE, torch.arange(len(batch)))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.model.parameters(), CLIP)
            optimizer.step()
            print(f"epoch {epoch}  {start + len(batch)}/{len(pairs)}  loss {loss.item():.4f}", file=sys.stderr)
    tests = judgments("test")
    wanted = sorted({judgment.query_id for judgment in tests})
    with torch.inference_mode():
        scores = encoder([queries[query] for query in wanted], QUERY_TOKENS)
        scores = scores @ encoder(list(documents.values()), DOCUMENT_TOKENS).T
    run = [
        ir_measures.ScoredDoc(query, ids[column], score)
        for query, best in zip(wanted, zip(*(x.tolist() for x in scores.topk(100)), strict=True), strict=True)
        for score, column in zip(*best, strict=True)
    ]
    print(seed, ir_measures.calc_aggregate([nDCG @ 10, RR @ 10, R @ 100], tests, run))


def negative(draw: random.Random, ids: Sequence[str], relevant: set[str]) -> str:
    """A document that is not relevant."""
    while (id_ := draw.choice(ids)) in relevant:
        pass
    return id_


def lines(name: str) -> list[dict[str, str]]:
    with gzip.open(SCIFACT / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def judgments(split: str) -> list[ir_measures.Qrel]:
    rows = [line.split("\t") for line in (SCIFACT / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]]
    return [ir_measures.Qrel(query, document, int(relevance)) for query, document, relevance in rows]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 13)
