"""What is pinned: the cut-off by hand with ties that straddle it, equality with a full sort, independence of shards,
pieces, query blocks and threads on ties and on floats, copies of a document tie; how much is held at once, counted; an
approximate index's figures; what is refused."""

import logging
import re

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from orchestrator.search import Hits, Stored, exact, recall, score_pairs, scores, search, search_shards, table, vectors
from orchestrator.search.exact import Candidates, Here, merged

NAMES = ["d1", "d10", "d2", "d3", "d9"]


def whole(rows):
    return np.array(rows, dtype=np.float32)


def by_full_sort(queries, documents, depth, ids):
    """Score every pair in Python integers and sort: score descending, then id descending."""
    lines = []
    for query in queries.astype(int).tolist():
        scored = [
            (sum(a * b for a, b in zip(query, document, strict=True)), name, row)
            for row, (document, name) in enumerate(zip(documents.astype(int).tolist(), ids, strict=True))
        ]
        lines.append(sorted(scored, reverse=True)[:depth])
    scores = [[score for score, _, _ in line] for line in lines]
    return np.array(scores, np.float32), np.array([[row for _, _, row in line] for line in lines], np.int64)


def merged_by_query(hits):
    return Hits(np.concatenate([line.scores for line in hits]), np.concatenate([line.rows for line in hits]))


def test_by_hand():
    hits = search(whole([[1, 2]]), whole([[1, 0], [0, 1], [3, 3], [-1, 0], [2, 0]]), 3, ids=NAMES)
    assert hits.rows.tolist() == [[2, 4, 1]]  # 9, then 2 twice: "d9" before "d10"
    assert hits.scores.tolist() == [[9.0, 2.0, 2.0]]
    assert (hits.scores.dtype, hits.rows.dtype, hits.figures) == (np.float32, np.int64, None)


def test_ties_at_the_cut_off_go_to_the_last_ids():
    documents = whole([[1], [1], [1], [5], [1]])
    for depth, names in [(1, ["d3"]), (2, ["d3", "d9"]), (3, ["d3", "d9", "d2"]), (4, ["d3", "d9", "d2", "d10"])]:
        assert [NAMES[row] for row in search(whole([[1]]), documents, depth, ids=NAMES).rows[0]] == names


def test_a_collapsed_encoder_still_ranks_by_id():
    ids = [f"d{i:04d}" for i in range(1500)]
    hits = search(np.ones((3, 8), np.float32), np.ones((1500, 8), np.float32), 5, ids=ids)
    assert hits.rows.tolist() == [[1499, 1498, 1497, 1496, 1495]] * 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_shards_give_what_one_index_gives_and_a_full_sort(data):
    # Small whole numbers: nearly every score is tied, and every sum is exact.
    count = data.draw(st.integers(1, 150), label="documents")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    documents = rng.integers(-1, 2, (count, 3)).astype(np.float32)
    queries = rng.integers(-1, 2, (data.draw(st.integers(1, 4), label="queries"), 3)).astype(np.float32)
    ids = [f"d{i}" for i in rng.permutation(count)]
    depth = data.draw(st.integers(1, 12), label="depth")
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=8), label="cuts"))

    one = search(queries, documents, depth, ids=ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "PIECE", 3 * data.draw(st.integers(1, 60), label="rows of a piece"))
        patch.setattr(exact, "HELD", data.draw(st.integers(1, 200), label="candidates of a block"))
        patch.setattr(exact, "SPARE", data.draw(st.integers(1, 8), label="spare"))
        many = search_shards(queries, np.split(documents, cuts), depth, ids=ids)
    scores, rows = by_full_sort(queries, documents, depth, ids)
    assert one.rows.tolist() == rows.tolist()
    assert one.scores.tolist() == scores.tolist()
    assert many.rows.tolist() == rows.tolist()
    assert many.scores.tolist() == scores.tolist()


def test_on_floats_neither_shards_nor_threads_nor_the_other_queries_change_a_bit(monkeypatch):
    monkeypatch.setattr(exact, "_SHARE", 8)
    rng = np.random.default_rng(7)
    documents = rng.standard_normal((700, 48)).astype(np.float32)
    documents[350:] = documents[:350]  # every document twice
    queries = rng.standard_normal((33, 48)).astype(np.float32)
    ids = [f"{i:03d}" for i in rng.permutation(700)]
    one = search(queries, documents, 21, ids=ids)
    for other in (
        search_shards(queries, np.split(documents, [1, 113, 350]), 21, ids=ids),
        search(queries, documents, 21, ids=ids, threads=1),
        search_shards(queries, np.split(documents, [1, 113, 350]), 21, ids=ids, threads=4),  # which share the queries
        merged_by_query([search(query[None], documents, 21, ids=ids) for query in queries]),
    ):
        assert (one.rows == other.rows).all()
        assert (one.scores == other.scores).all()
    # The two copies of a document stand side by side with one score, the later id first.
    assert (one.scores[:, 0] == one.scores[:, 1]).all()
    assert (one.rows[:, 0] % 350 == one.rows[:, 1] % 350).all()
    assert all(ids[first] > ids[second] for first, second in one.rows[:, :2])
    truth = queries.astype(np.float64) @ documents.astype(np.float64).T
    np.testing.assert_allclose(one.scores, -np.sort(-truth, axis=1)[:, :21], rtol=1e-7)


def test_depth_is_capped_at_the_corpus():
    hits = search(whole([[1]]), whole([[1], [2]]), 100, ids=["a", "b"])
    assert hits.rows.tolist() == [[1, 0]]


def test_merging_keeps_what_may_be_among_the_best(monkeypatch):
    monkeypatch.setattr(exact, "SPARE", 1)
    documents = whole([[3], [1], [0], [2], [3], [-1]])
    here = Here(*vectors.parts([documents], 1), threads=1)

    def candidates(*rows):
        return Candidates(documents[list(rows)].T.copy(), np.array([rows]), np.array([0.1]))

    kept = merged(candidates(0, 1, 2), candidates(4, 3, 5), 2, whole([[1]]), here, list("abcdef"))
    assert sorted(kept.rows[0].tolist()) == [0, 3, 4]
    # Of three that tie for two places and the one that is spare, only the first two by id can be among the best.
    documents[:] = 7
    kept = merged(candidates(0, 1, 2), candidates(4, 3, 5), 2, whole([[1]]), here, list("abcdef"))
    assert kept.rows[0].tolist() == [5, 4, -1]


def test_recall_by_hand():
    assert recall(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [3, 9]])) == pytest.approx(3 / 4)
    assert recall(np.array([[1, -1]]), np.array([[1, 0]])) == pytest.approx(1 / 2)


def naive(queries, documents, depth, ids):
    """Every pair in float64, rounded once; score descending, then id descending."""
    scores = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    place = np.argsort(np.argsort(ids))
    rows = np.array([np.lexsort((-place, -line))[:depth] for line in scores])
    return np.take_along_axis(scores, rows, axis=1), rows


def test_on_floats_any_piece_gives_what_a_full_sort_gives(monkeypatch):
    rng = np.random.default_rng(11)
    documents = rng.standard_normal((3000, 24)).astype(np.float32)
    documents[1500:] += 3 * np.sign(documents[0])  # the best of some queries lie close together, at the end
    documents[2000:2150] = documents[7]  # more copies than there are spare places
    queries = rng.standard_normal((40, 24)).astype(np.float32)
    queries[:5] = documents[7] + 0.01 * queries[:5]
    ids = [f"{i:04d}" for i in rng.permutation(3000)]
    scores, rows = naive(queries, documents, 50, ids)
    for piece in (24 * 100, 24 * 700, 1 << 26):
        monkeypatch.setattr(vectors, "PIECE", piece)
        found = search_shards(queries, np.split(documents, range(100, 3000, 100)), 50, ids=ids)
        assert (found.rows == rows).all()
        assert (found.scores == scores).all()


@pytest.fixture
def counted(monkeypatch):
    """What is held: the rows that faiss is given, the candidates that it gives back, and the places that are merged."""
    held = {"rows": [], "fetched": [], "merged": []}
    plain_knn, plain_merged = faiss.knn, exact.merged

    def knn(queries, documents, k, **options):
        held["rows"].append(len(documents))
        held["fetched"].append(len(queries) * k)
        return plain_knn(queries, documents, k, **options)

    def counting(left, right, *rest):
        held["merged"].append(left.rows.size + right.rows.size)
        return plain_merged(left, right, *rest)

    monkeypatch.setattr(faiss, "knn", knn)
    monkeypatch.setattr(exact, "merged", counting)
    return held


@pytest.mark.parametrize("documents", [4_000, 16_000])
def test_what_is_held_does_not_grow_with_the_corpus(counted, monkeypatch, documents):
    monkeypatch.setattr(vectors, "PIECE", 8 * 1000)
    rng = np.random.default_rng(2)
    corpus, queries = (rng.standard_normal((n, 8)).astype(np.float32) for n in (documents, 30))
    search_shards(queries, np.split(corpus, documents // 250), 20, ids=[str(i) for i in range(documents)])
    assert len(counted["rows"]) >= documents // 1000
    assert max(counted["rows"]) == 1000
    assert max(counted["fetched"]) == 30 * (20 + exact.SPARE)
    assert max(counted["merged"]) <= 2 * 30 * (20 + exact.SPARE)


def test_what_is_held_does_not_grow_with_the_queries(counted, monkeypatch):
    monkeypatch.setattr(exact, "HELD", 840)
    rng = np.random.default_rng(2)
    corpus, queries = (rng.standard_normal((n, 8)).astype(np.float32) for n in (1000, 300))
    ids = [str(i) for i in range(1000)]
    found = search_shards(queries, np.split(corpus, 4), 20, ids=ids)
    assert max(counted["fetched"]) == 840  # ten queries
    assert (found.rows == naive(queries, corpus, 20, ids)[1]).all()


def test_faiss_multiplies_by_blas_where_it_has_queries_for_it():
    before, seen = faiss.cvar.distance_compute_blas_threshold, []
    plain, faiss.knn = (
        faiss.knn,
        lambda *a, **k: seen.append(faiss.cvar.distance_compute_blas_threshold) or plain(*a, **k),
    )
    try:
        search(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 1, ids=["a", "b"], threads=2)
    finally:
        faiss.knn = plain
    assert seen == [1600]  # numbers in a block of queries: five of 384 dimensions
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_an_approximate_index_tells_what_it_loses_and_costs(caplog):
    rng = np.random.default_rng(3)
    documents, queries = (rng.standard_normal((n, 16)).astype(np.float32) for n in (400, 20))
    ids = [str(i) for i in range(400)]
    best = search(queries, documents, 10, ids=ids)
    with caplog.at_level(logging.INFO, logger="orchestrator.search"):
        found = search(queries, documents, 10, "IVF10,Flat", ids=ids, threads=1)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.rows, best.rows, strict=True)])
    figures = found.figures
    assert (figures.index, figures.depth, figures.threads) == ("IVF10,Flat", 10, 1)
    assert 0.1 < figures.recall < 1.0
    assert figures.recall == pytest.approx(overlap)
    assert 0 < figures.median_ms <= figures.p95_ms < 1000
    assert min(figures.queries_per_second, figures.build_seconds) > 0
    assert f"index IVF10,Flat: recall {figures.recall:.4f} of the exact top 10" in caplog.text


@pytest.mark.parametrize(("factory", "vector"), [("HNSW32", 4 * 32), ("IVF4,PQ8x4", 8 + 4), ("SQ8", 32)])
def test_the_size_of_an_index_is_that_of_its_file(factory, vector, tmp_path):
    rng = np.random.default_rng(4)
    documents = rng.standard_normal((2000, 32)).astype(np.float32)
    found = search(documents[:3], documents, 5, factory, ids=[str(i) for i in range(2000)])
    index = faiss.index_factory(32, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(documents)
    index.add(documents)
    faiss.write_index(index, str(tmp_path / "index"))
    size = (tmp_path / "index").stat().st_size
    assert found.figures.bytes == pytest.approx(size, rel=0.05)  # HNSW draws the levels of its nodes
    assert found.figures.bytes > 2000 * vector


def test_what_no_search_uses_is_not_trained(monkeypatch):
    built = []
    plain = faiss.index_factory
    monkeypatch.setattr(faiss, "index_factory", lambda *options: built.append(plain(*options)) or built[-1])
    documents = np.random.default_rng(4).standard_normal((300, 8)).astype(np.float32)
    search(documents[:3], documents, 5, "IVF2,PQ4x4", ids=[str(i) for i in range(300)])
    search(documents[:3], documents, 5, "PCA4,IVF2,PQ4x4", ids=[str(i) for i in range(300)])
    plain_ones = [faiss.downcast_index(faiss.extract_index_ivf(index)) for index in built[1::2]]
    assert [index.do_polysemous_training for index in plain_ones] == [False, False]


def test_one_approximate_index_holds_all_shards(monkeypatch):
    rng = np.random.default_rng(5)
    documents, queries = (rng.standard_normal((n, 8)).astype(np.float32) for n in (60, 4))
    ids = [f"{i:02d}" for i in range(60)]
    best = search(queries, documents, 7, ids=ids)
    monkeypatch.setattr(vectors, "PIECE", 8 * 20)
    found = search_shards(queries, np.split(documents, [25, 40]), 7, "HNSW32", ids=ids)
    assert found.figures.recall == 1.0
    assert found.rows.tolist() == best.rows.tolist()
    # Were there one index a shard, none could be trained: each has fewer documents than cells.
    assert search_shards(queries, np.split(documents, 6), 7, "IVF12,Flat", ids=ids).figures.recall > 0


def test_what_an_approximate_index_does_not_find_is_row_minus_one():
    documents = whole([[1, 0], [1, 0.1], [-1, 0], [-1, 0.1]])  # two cells, one probed
    hits = search(whole([[1, 0]]), documents, 4, "IVF2,Flat", ids=list("abcd"))
    assert sorted(hits.rows[0, :2].tolist()) == [0, 1]
    assert hits.rows[0, 2:].tolist() == [-1, -1]
    assert np.isneginf(hits.scores[0, 2:]).all()
    assert hits.figures.recall == 0.5


@pytest.mark.parametrize("index", ["Flatt", "", "LSH", "PQ3", "IVF64,Flat"])
def test_an_index_that_cannot_be_built(index):
    documents = np.eye(8, dtype=np.float32)
    with pytest.raises(
        UserError, match=f'evaluation.index: faiss cannot build "{re.escape(index)}".*IVF256,Flat'
    ) as caught:
        search(documents, documents, 2, index, ids=list("abcdefgh"))
    assert ".cpp" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(bad):
    documents = np.eye(3, dtype=np.float32)
    broken = documents.copy()
    broken[2, 1] = bad
    with pytest.raises(UserError, match="embedding of document 2 is not finite"):
        search(documents, broken, 1, ids=list("abc"))
    with pytest.raises(UserError, match="embedding of query 2 is not finite"):
        search(broken, documents, 1, ids=list("abc"))


def test_faiss_gets_the_cores_and_gives_them_back():
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1)  # as in a Ray worker
        seen = []
        plain, faiss.knn = faiss.knn, lambda *a, **k: seen.append(faiss.omp_get_max_threads()) or plain(*a, **k)
        search(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 1, ids=["a", "b"], threads=2)
        assert seen == [2]
        assert faiss.omp_get_max_threads() == 1
    finally:
        faiss.knn = plain
        faiss.omp_set_num_threads(before)


def test_threads_share_the_queries_where_these_are_enough(monkeypatch):
    seen = []
    plain = faiss.knn
    monkeypatch.setattr(
        faiss, "knn", lambda q, *a, **k: seen.append((len(q), faiss.omp_get_max_threads())) or plain(q, *a, **k)
    )
    monkeypatch.setattr(exact, "_SHARE", 10)
    rng = np.random.default_rng(3)
    documents = rng.standard_normal((40, 4)).astype(np.float32)
    for count, threads, expected in [(19, 4, [(19, 4)]), (21, 4, [(11, 2), (10, 2)]), (60, 6, [(10, 1)] * 6)]:
        seen.clear()
        queries = rng.standard_normal((count, 4)).astype(np.float32)
        found = search(queries, documents, 5, ids=[f"{i:02d}" for i in range(40)], threads=threads)
        assert sorted(seen, reverse=True) == expected
        assert (found.rows == naive(queries, documents, 5, [f"{i:02d}" for i in range(40)])[1]).all()


def test_pairs_are_scored_as_a_loop_of_dot_products_in_float64_does(monkeypatch):
    monkeypatch.setattr(scores, "_AT_ONCE", 7 * 24)  # seven pairs at once
    rng = np.random.default_rng(4)
    documents, queries = (rng.standard_normal((n, 24)).astype(np.float32) for n in (60, 9))
    query, rows = rng.integers(9, size=200), rng.integers(60, size=200)  # some pairs twice
    found = score_pairs(queries, np.split(documents, [1, 20, 21, 50]), query, rows)
    pairs = zip(queries[query].astype(np.float64), documents[rows].astype(np.float64), strict=True)
    assert (found == np.array([np.dot(left, right) for left, right in pairs]).astype(np.float32)).all()
    assert score_pairs(queries, [documents], query[:0], rows[:0]).shape == (0,)


def test_a_stored_shard_is_what_was_written(tmp_path):
    written = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)
    path = tmp_path / "part-00000.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table(written).schema) as writer:
        writer.write_table(table(written).replace_schema_metadata({"cost": "x" * 999}))
    shard, copy = Stored.of(path), np.zeros((7, 5), np.float32)
    shard.read(copy)
    assert (shard.shape, len(shard)) == ((7, 5), 7)
    assert (shard.open() == written).all()
    assert (copy == written).all()
    path.write_bytes(path.read_bytes()[: shard.offset + 100])
    with pytest.raises(EOFError, match="ends before its vectors do"):
        shard.read(copy)
