"""Tokenizing a large corpus with Ray Data: texts a second and core beside the bare tokenizer, and the memory it takes.

make bench, or python benchmarks/bench_tokens.py [documents | beginnings]

Documents of two to four sentences of SciFact, cut at 64 tokens, MiniLM's tokenizer. The bare tokenizer goes through a
part of them in one process a core, without Ray and without writing anything, before and after. Memory is that of the
whole machine, page cache left out: what the run adds to it up to its first quarter, and up to its end.

`beginnings` tokenizes SciFact's documents in this process, reading no more of them than fills the limit, and whole.

2026-11-21, 2 cores (AVX-512 bf16, no AMX): 2,000,000 documents in 62 shards, 218 s with the start of two actors; bare
3,983 and 4,045 documents/s and core, Ray Data once started 4,837, which is 1.20 to 1.21 of it (it reads no more of a
long text than fills the limit); memory added 821 MB after a quarter and 821 MB at most.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
from timing import seconds, spread

import data
from data import Collection, Shard, Store
from data.tokens import SHARD_ROWS, Tokenize
from orchestrator import cluster
from orchestrator.weights import locate

SCIFACT = Path(__file__).resolve().parent.parent / "examples" / "scifact"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DOCUMENTS, TOKENS, BATCH, BARE = 2_000_000, 64, 1000, 60_000


def main(documents: int) -> None:
    cpus = cluster.local_cpus()
    model = locate(MODEL)
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        collection = written(Path(folder) / "collection", documents)
        bare = [bare_rate(collection, model.path, cpus)]
        cluster.connect()
        made: list[tuple[int, float, float]] = []  # shards, at what time, memory so far
        with Memory() as memory:
            whole = seconds(
                lambda: data.tokenize(
                    Store(Path(folder) / "store"),
                    collection,
                    "documents",
                    model.path,
                    model.tokenizer_fingerprint,
                    TOKENS,
                    cluster.connect,
                    concurrency=cpus,
                    on_shard=lambda done, total: made.append((done, time.perf_counter(), memory.most)),
                )
            )
        bare.append(bare_rate(collection, model.path, cpus))
    (first, began, _), (last, ended, _) = made[1], made[-1]
    steady = (last - first) / last * documents / (ended - began) / cpus
    quarter = next(most for shards, _, most in made if shards >= last / 4)
    print(f"{documents:,} documents in {last} shards, {cpus} actors of one core: {whole:.0f} s with their start")
    print(f"bare tokenizer {' and '.join(f'{rate:,.0f}' for rate in bare)} documents/s and core, before and after")
    print(f"Ray Data, once started, {steady:,.0f}: {min(steady / rate for rate in bare):.2f} to "
          f"{max(steady / rate for rate in bare):.2f} of it")  # fmt: skip
    print(f"memory added: {quarter / 2**20:,.0f} MB after a quarter, {memory.most / 2**20:,.0f} MB at most")


def beginnings() -> None:
    model = locate(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        documents = data.load(Store(folder), "beir", SCIFACT).file("documents")
        for limit in (64, 200):
            worker = Tokenize(documents, model.path, limit, SHARD_ROWS)
            print(f"{limit} tokens: {spread(whole_over_beginnings(worker))} times as fast as whole", flush=True)


def whole_over_beginnings(worker: Tokenize, rounds: int = 5) -> list[float]:
    """Seconds for whole texts over those for beginnings; the first round is left out."""
    enough, shard, ratios = worker._enough, Shard(Path(), 0), []
    for _ in range(rounds + 1):
        worker._enough = enough
        begun = seconds(lambda: worker(shard))
        worker._enough = None
        ratios.append(seconds(lambda: worker(shard)) / begun)
    return ratios[1:]


def written(folder: Path, documents: int) -> Collection:
    """A collection of made-up documents, as a finished stage holds it, written a batch at a time."""
    with gzip.open(SCIFACT / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        sentences = [part for line in file for part in re.split(r"(?<=\.) ", json.loads(line)["text"])]
    draw, schema = random.Random(13), pa.schema({"doc_id": pa.string(), "text": pa.string()})
    folder.mkdir()
    with pa.OSFile(str(folder / "documents.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, documents, 65_536):
            rows = range(start, min(documents, start + 65_536))
            texts = [" ".join(draw.choices(sentences, k=draw.randint(2, 4))) for _ in rows]
            writer.write_table(pa.table([pa.array([f"d{row}" for row in rows]), texts], schema))
    nothing = pa.table({"query_id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    table = pa.ipc.open_file(pa.memory_map(str(folder / "documents.arrow"))).read_all()
    return Collection(table, nothing, {}, {"documents": f"made up {documents}"}, folder)


def bare_rate(collection: Collection, tokenizer: Path, cpus: int) -> float:
    """Documents a second of one core, where each core has a tokenizer to itself."""
    context = multiprocessing.get_context("spawn")
    rates = context.Queue()
    assert collection.folder is not None
    workers = [
        context.Process(target=_bare, args=(collection.folder, tokenizer, core * BARE, rates)) for core in range(cpus)
    ]
    for worker in workers:
        worker.start()
    found = [rates.get() for _ in workers]
    for worker in workers:
        worker.join()
    return float(sum(found) / cpus)


def _bare(folder: Path, tokenizer: Path, start: int, rates: multiprocessing.Queue[float]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    backend = AutoTokenizer.from_pretrained(tokenizer).backend_tokenizer
    backend.enable_truncation(TOKENS)
    backend.no_padding()
    table = pa.ipc.open_file(pa.memory_map(str(folder / "documents.arrow"))).read_all()
    texts = table["text"].slice(start % max(1, len(table) - BARE), BARE).to_pylist()
    backend.encode_batch_fast(texts[:BATCH])
    took = seconds(lambda: [backend.encode_batch_fast(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)])
    rates.put(len(texts) / took)


class Memory:
    """The most that the machine's memory in use grew by, in bytes, read twice a second."""

    most = 0

    def __enter__(self) -> Memory:
        self._before, self._end = _used(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            self.most = max(self.most, _used() - self._before)


def _used() -> int:
    values = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return (int(values["MemTotal"].split()[0]) - int(values["MemAvailable"].split()[0])) * 1024


if __name__ == "__main__":
    if sys.argv[1:] == ["beginnings"]:
        beginnings()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENTS)
