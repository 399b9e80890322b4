"""Exact search against one faiss IndexFlatIP, in turn in one run, then approximate indexes by factory string.

python benchmarks/bench_search.py          in this process, from one array and from shards of 1,024 documents in files
python benchmarks/bench_search.py --ray    Ray tasks of one CPU each from the same shards, then those of an evaluation
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from timing import seconds, spread

from orchestrator import cluster
from orchestrator.search import Found, Stored, Tasks, search, search_shards, table
from orchestrator.search.vectors import Floats

ROUNDS, QUERIES, DOCUMENTS, DIMENSION, SHARD = 5, 1000, 500_000, 384, 1024
DEPTHS = (100, 1000)
FEW, SOME = 300, 100_000  # queries and documents where faiss does not multiply matrices by default
INDEXED, CLUSTERS, INDEXES = 50_000, 500, ("IVF256,Flat", "IVF256,PQ32", "HNSW32")


def main() -> None:
    over_ray, cpus = "--ray" in sys.argv, cluster.local_cpus()
    rng = np.random.default_rng(0)
    queries, documents = unit(rng, QUERIES), unit(rng, DOCUMENTS)
    ids = [f"d{row}" for row in range(DOCUMENTS)]
    faiss.omp_set_num_threads(cpus)
    flat = faiss.IndexFlatIP(DIMENSION)
    flat.add(documents)
    with tempfile.TemporaryDirectory() as folder:
        shards = stored(Path(folder), documents)
        if over_ray:
            cluster.connect()
            for tasks in (Tasks(cpus, 1), Tasks.of_cluster()):  # one after the other: Ray stops workers that wait
                for depth in DEPTHS:
                    ours = {"tasks": partial(search_shards, queries, shards, depth, ids=ids, tasks=tasks)}
                    compare(f"{tasks}, top {depth}", partial(flat.search, queries, depth), ours)
            return
        for depth in DEPTHS:
            ours = {
                "one array": partial(search, queries, documents, depth, ids=ids),
                f"{len(shards)} shards": partial(search_shards, queries, shards, depth, ids=ids),
            }
            compare(f"top {depth}", partial(flat.search, queries, depth), ours)
    flat.reset()
    flat.add(documents[:SOME])
    few = {"one array": lambda: search(queries[:FEW], documents[:SOME], 100, ids=ids[:SOME])}
    compare(f"{FEW} queries, {SOME:,} documents, top 100", lambda: flat.search(queries[:FEW], 100), few)
    indexes(rng)


def compare(what: str, theirs: Callable[[], object], ours: dict[str, Callable[[], Found]]) -> None:
    """Each in turn, `ROUNDS` times after one to warm up; the ratio of each round is to faiss's time in that round."""
    hits = [run() for run in ours.values()]
    theirs()
    rounds = [[seconds(theirs), *map(seconds, ours.values())] for _ in range(ROUNDS)]
    base, *others = zip(*rounds, strict=True)
    print(f"{what}: {'IndexFlatIP':<12} {statistics.median(base):5.2f} s (median of {ROUNDS})")
    for name, times in zip(ours, others, strict=True):
        ratios = spread(time / of for time, of in zip(times, base, strict=True))
        print(f"{what}: {name:<12} {statistics.median(times):5.2f} s, {ratios} times as long")
    assert all((found.rows == hits[0].rows).all() for found in hits)


def indexes(rng: np.random.Generator) -> None:
    """Approximate indexes on vectors in clusters, as encoders make them: random ones have no neighbours to find."""
    centres = unit(rng, CLUSTERS)
    documents, queries = (
        normalised(centres[rng.integers(CLUSTERS, size=count)] + 0.9 * unit(rng, count)) for count in (INDEXED, QUERIES)
    )
    ids = [f"d{row}" for row in range(INDEXED)]
    print(f"{INDEXED:,} documents in {CLUSTERS} clusters, top 100, {QUERIES:,} queries")
    for index in INDEXES:
        figures = search(queries, documents, 100, index, ids=ids).figures
        assert figures is not None
        print(
            f"{index:<12} recall {figures.recall:.3f}  {figures.median_ms:.2f} ms a query, 95th percentile "
            f"{figures.p95_ms:.2f}  {figures.queries_per_second:,.0f} queries/s at once  "
            f"built in {figures.build_seconds:.1f} s  {figures.bytes / 1e6:.1f} MB"
        )


def stored(folder: Path, documents: Floats) -> list[Stored]:
    """The documents in shards, as the evaluation leaves them in the store."""
    shards = []
    for number, start in enumerate(range(0, len(documents), SHARD)):
        content, path = table(documents[start : start + SHARD]), folder / f"part-{number:05d}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
            writer.write_table(content)
        shards.append(Stored.of(path))
    return shards


def unit(rng: np.random.Generator, count: int) -> Floats:
    return normalised(rng.standard_normal((count, DIMENSION), dtype=np.float32))


def normalised(vectors: Floats) -> Floats:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


if __name__ == "__main__":
    main()
