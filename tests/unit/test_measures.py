"""What is pinned: nDCG, RR and recall by hand with grades and ties; ties as trec_eval has them, for every provider; a
query without results counts 0; a run comes back from its file with the same ranking and measures; what is refused."""

import gzip
import json
from math import log2
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from orchestrator.measures import Run, evaluate, parse, read_trec_run, write_per_query, write_trec_run


def values(scored, qrels, *names):
    measured = evaluate(Run.of(scored), qrels, parse(names))
    return [measured.mean[name] for name in names]


def test_by_hand_with_graded_relevance():
    qrels = {"q": {"a": 2, "b": 0, "c": 1, "e": 3}}  # "e" is not retrieved
    ndcg, rr, recall = values({"q": {"b": 9, "a": 8, "x": 7, "c": 6}}, qrels, "nDCG@10", "RR@10", "R@100")
    assert ndcg == pytest.approx((2 / log2(3) + 1 / log2(5)) / (3 / log2(2) + 2 / log2(3) + 1 / log2(4)))
    assert rr == pytest.approx(1 / 2)
    assert recall == pytest.approx(2 / 3)


def test_cut_offs_by_hand():
    scored = {"q": {f"d{rank:02d}": 100 - rank for rank in range(1, 21)}}
    qrels = {"q": {"d10": 1, "d11": 1}}
    assert values(scored, qrels, "RR@10", "nDCG@10", "R@10", "R@100", "P@10") == pytest.approx(
        [1 / 10, (1 / log2(11)) / (1 + 1 / log2(3)), 1 / 2, 1.0, 1 / 10]
    )
    assert values(scored, {"q": {"d11": 1}}, "RR@10", "nDCG@10") == [0.0, 0.0]


def test_a_query_without_results_counts_zero_and_one_without_judgements_not_at_all():
    measured = evaluate(
        Run.of({"1": {"a": 1.0}, "unjudged": {"a": 1.0}}), {"1": {"a": 1}, "2": {"b": 1}}, parse(["nDCG@10", "RR@10"])
    )
    assert measured.mean == {"nDCG@10": 0.5, "RR@10": 0.5}
    assert measured.per_query == {"nDCG@10": {"1": 1.0, "2": 0.0}, "RR@10": {"1": 1.0, "2": 0.0}}


def test_an_empty_run_scores_zero():
    assert values({}, {"1": {"a": 1}}, "nDCG@10", "RR@10", "R@100") == [0.0, 0.0, 0.0]


def test_a_query_without_a_relevant_document_counts_zero():
    assert values({"1": {"a": 1.0}, "2": {"b": 1.0}}, {"1": {"a": 0}, "2": {"b": 1}}, "nDCG@10", "RR@10") == [0.5, 0.5]


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_ties_go_to_the_last_id_whatever_the_order_and_the_provider(order):
    # Ranked c, b, a. RR comes from trec_eval's code, RR@10 from MS MARCO's, which by itself would rank a, b, c.
    scored = {"q": dict.fromkeys(order, 1.0)}
    assert values(scored, {"q": {"b": 1}}, "RR", "RR@10", "nDCG@10", "Judged@1") == pytest.approx(
        [0.5, 0.5, 1 / log2(3), 0]
    )
    assert values(scored, {"q": {"c": 1}}, "RR", "RR@10", "nDCG@10", "Judged@1") == [1.0, 1.0, 1.0, 1.0]


def test_scores_that_are_the_same_in_float32_are_ties():
    assert values({"q": {"a": 1.00000001, "b": 1.0}}, {"q": {"b": 1}}, "RR", "RR@10") == [1.0, 1.0]


@given(
    st.dictionaries(
        st.sampled_from(["1", "2", "3"]),
        st.dictionaries(
            st.text("abµ𐀀1", min_size=1, max_size=3), st.integers(-2, 2).map(float), min_size=1, max_size=30
        ),
        min_size=1,
    ),
    st.dictionaries(st.text("abµ𐀀1", min_size=1, max_size=3), st.integers(0, 3), min_size=1, max_size=20),
)
def test_equals_trec_eval_where_nearly_everything_is_tied(scored, judged):
    qrels = dict.fromkeys(["1", "2"], judged)
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recip_rank", "recall.10", "map"}).evaluate(scored)
    ours = evaluate(Run.of(scored), qrels, parse(["nDCG@10", "RR", "R@10", "AP"])).per_query
    for ours_name, name in [("nDCG@10", "ndcg_cut_10"), ("RR", "recip_rank"), ("R@10", "recall_10"), ("AP", "map")]:
        for query in qrels:
            assert ours[ours_name][query] == pytest.approx(theirs.get(query, {}).get(name, 0.0))


def test_a_run_from_a_search_drops_row_minus_one():
    scores = np.array([[2.0, 1.0], [3.0, -np.inf]], np.float32)
    run = Run.of_hits(["q1", "q2"], ["a", "b"], scores, np.array([[1, 0], [0, -1]]))
    assert run.query_ids == ("q1", "q2")
    assert run.documents == (("b", "a"), ("a",))
    assert [line.tolist() for line in run.scores] == [[2.0, 1.0], [3.0]]


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_run_file_by_hand(tmp_path, name):
    path = tmp_path / name
    write_trec_run(path, Run.of({"q1": {"a": 0.1, "b": 1e-9, "c": 0.1}, "q2": {"a": -3.0}}), "arm-adaptive")
    raw = path.read_bytes()
    assert (gzip.decompress(raw) if name.endswith(".gz") else raw).decode() == (
        "q1 Q0 c 1 0.1 arm-adaptive\nq1 Q0 a 2 0.1 arm-adaptive\nq1 Q0 b 3 1e-09 arm-adaptive\n"
        "q2 Q0 a 1 -3.0 arm-adaptive\n"
    )
    write_trec_run(path, read_trec_run(path), "arm-adaptive")
    assert path.read_bytes() == raw


@given(
    scores=st.dictionaries(
        st.text("ab1", min_size=1), st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1
    )
)
def test_a_run_survives_its_file_bit_for_bit(tmp_path_factory, scores):
    path: Path = tmp_path_factory.mktemp("run") / "run.gz"
    run = Run.of({"q": scores})
    write_trec_run(path, run, "t")
    back = read_trec_run(path)
    assert (back.query_ids, back.documents) == (run.query_ids, run.documents)
    assert back.scores[0].tobytes() == run.scores[0].tobytes()


def test_reading_ignores_the_order_and_the_ranks_in_the_file(tmp_path):
    path = tmp_path / "run"
    path.write_text("1 Q0 a 1 0.5 x\n\n2 Q0 b 7 1 x\n1 Q0 c 2 0.75 x\n")
    run = read_trec_run(path)
    assert run.query_ids == ("1", "2")
    assert run.documents == (("c", "a"), ("b",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 Q0 b 2 0.5", "5 fields"),
        ("1 Q0 b 2 high x", 'the score "high" is not a finite number'),
        ("1 Q0 b 2 nan x", 'the score "nan" is not a finite number'),
        ("1 Q0 a 2 0.5 x", 'document "a" stands twice for query "1"'),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "run.trec"
    path.write_text(f"1 Q0 a 1 0.9 x\n{line}\n")
    with pytest.raises(UserError) as caught:
        read_trec_run(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize("content", [b"not compressed", gzip.compress(b"1 Q0 a 1 0.9 x\n", mtime=0)[:-6]])
def test_a_broken_gzip_file_is_named(tmp_path, content):
    path = tmp_path / "run.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.gz: the run cannot be read"):
        read_trec_run(path)


def test_an_id_with_white_space_is_refused(tmp_path):
    with pytest.raises(UserError, match='"a b" cannot stand in a TREC run'):
        write_trec_run(tmp_path / "run", Run.of({"q": {"a b": 1.0}}), "t")


def test_names_are_those_of_ir_measures():
    names = ["nDCG@10", "RR@10", "R@100", "AP", "P(rel=2)@5"]
    assert [str(measure) for measure in parse(names)] == names
    assert [str(measure) for measure in parse(["MRR@10", "Recall@100"])] == ["RR@10", "R@100"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ndcg@10", '"ndcg@10" is not a measure. Did you mean nDCG@10?'),
        ("recal@100", '"recal@100" is not a measure. Did you mean R@100?'),
        ("RR(judged_only=True)@5", '"RR(judged_only=True)@5" cannot be computed here. Did you mean RR@5?'),
        ("nDCG@10.5", '"nDCG@10.5" is not a measure. Did you mean nDCG@10?'),
        ("R", '"R" is not a measure. Did you mean R@10?'),
        ("nDCG(gain=2)@5", '"nDCG(gain=2)@5" is not a measure. Did you mean nDCG@5?'),
        ("P@0", '"P@0" has a cut-off below 1. Did you mean P@10?'),
        ("xyz", '"xyz" is not a measure. Examples: nDCG@10, RR@10, R@100, AP, P@5.'),
        ("alpha_nDCG@10", '"alpha_nDCG@10" cannot be computed here. It needs: pip install ir-measures[pyndeval].'),
    ],
)
def test_a_name_that_is_no_measure_is_told_the_nearest(name, message):
    with pytest.raises(UserError) as caught:
        parse(["AP", name])
    assert str(caught.value) == f"evaluation.measures[1]: {message}"


def test_no_judgements():
    with pytest.raises(UserError, match="no relevance judgements"):
        evaluate(Run.of({}), {}, parse(["AP"]))


def test_values_per_query_come_back(tmp_path):
    per_query = {"nDCG@10": {"1": 0.25, "2": 0.0}, "RR@10": {"1": 1.0, "2": 0.0}}
    write_per_query(tmp_path / "v.json", per_query)
    assert json.loads((tmp_path / "v.json").read_text()) == per_query
    write_per_query(tmp_path / "v.parquet", per_query)
    assert pq.read_table(tmp_path / "v.parquet").to_pylist()[:2] == [
        {"query_id": "1", "measure": "nDCG@10", "value": 0.25},
        {"query_id": "2", "measure": "nDCG@10", "value": 0.0},
    ]
    write_per_query(tmp_path / "none.parquet", {})
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0
