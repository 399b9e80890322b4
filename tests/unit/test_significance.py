"""Tests of differences, pinned: against every turn of signs, scipy, corrections by hand; made once; rows that are the
same.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from data import Store
from orchestrator import significance
from orchestrator.significance import differences

A = {"q1": 0.9, "q2": 0.4, "q3": 0.7, "q4": 0.6, "q5": 0.8, "q6": 0.5}
B = {"q6": 0.3, "q5": 0.7, "q4": 0.65, "q3": 0.4, "q2": 0.3, "q1": 0.6}  # another order of the queries
C = {"q1": 0.2, "q2": 0.1, "q3": 0.3, "q4": 0.0, "q5": 0.1, "q6": 0.25}
ROWS = {"a": A, "b": B, "c": C}


def found(tmp_path: Path, rows: dict[str, dict[str, float]], margin: float = 0.05):
    return of_seeds(tmp_path, {row: [values] for row, values in rows.items()}, margin)


def of_seeds(tmp_path: Path, rows: dict[str, list[dict[str, float]]], margin: float = 0.05):
    known_by = {row: [f"{row}{seed}" for seed in range(len(seeds))] for row, seeds in rows.items()}
    made = differences(Store(tmp_path), known_by, rows, "nDCG@10", margin)
    return {(each.row, each.other): each for each in made}


def test_every_pair_is_tested(tmp_path: Path) -> None:
    made = found(tmp_path, ROWS)
    assert list(made) == [("b", "a"), ("c", "a"), ("c", "b")]
    for (row, other), each in made.items():
        left, right = (np.array([ROWS[name][query] for query in sorted(A)]) for name in (row, other))
        d = left - right
        assert (each.queries, each.mean) == (6, pytest.approx(d.mean()))
        assert each.effect == pytest.approx(d.mean() / d.std(ddof=1))
        assert each.t_test == pytest.approx(stats.ttest_rel(left, right).pvalue)
        means = [abs((d * signs).mean()) for signs in product((1, -1), repeat=6)]
        assert each.randomization == pytest.approx(np.mean([mean >= abs(d.mean()) - 1e-9 for mean in means]))
        sides = [
            stats.ttest_1samp(d, -0.05, alternative="greater").pvalue,
            stats.ttest_1samp(d, 0.05, alternative="less").pvalue,
        ]
        assert each.equivalence == pytest.approx(max(sides))
        assert each.low < each.mean < each.high
        assert min(d) <= each.low
        assert each.high <= max(d)


def test_of_several_seeds_the_means_are_tested_and_the_interval_is_over_both(tmp_path: Path) -> None:
    def shifted(by: float) -> dict[str, float]:
        return {query: value + by for query, value in A.items()}

    seeds = {"b": [B], "a": [shifted(-0.2), shifted(0.0), shifted(0.2)]}
    several, one = of_seeds(tmp_path, seeds)["a", "b"], found(tmp_path, {"b": B, "a": A})["a", "b"]
    assert (several.seeds, one.seeds) == (3, 1)
    for name in ("mean", "effect", "t_test", "randomization", "equivalence"):
        assert getattr(several, name) == pytest.approx(getattr(one, name)), "a query's value is its mean over seeds"
    d = np.array([[A[q] + by - B[q] for q in A] for by in (-0.2, 0.0, 0.2)])
    rng, means = np.random.default_rng(5), []
    for _ in range(20_000):
        rows, columns = rng.integers(3, size=3), rng.integers(6, size=6)
        means.append(d[np.ix_(rows, columns)].mean())
    assert (several.low, several.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    assert several.low < one.low < one.high < several.high


def test_p_values_are_corrected_after_holm(tmp_path: Path) -> None:
    made = found(tmp_path, ROWS).values()
    for name in ("t_test", "randomization", "equivalence"):
        ordered = sorted(made, key=lambda each: getattr(each, name))
        least = 0.0
        for rank, each in enumerate(ordered):
            least = max(least, min(1.0, (3 - rank) * getattr(each, name)))
            assert getattr(each, f"{name}_holm") == pytest.approx(least)


def test_rows_that_are_the_same_are_equivalent(tmp_path: Path) -> None:
    made = found(tmp_path, {"a": A, "again": dict(A), "more": {query: value + 0.2 for query, value in A.items()}})
    same, more = made["again", "a"], made["more", "a"]
    assert (same.mean, same.t_test, same.randomization, same.equivalence, same.effect) == (0, 1, 1, 0, 0)
    assert (round(more.mean, 6), more.t_test, more.equivalence) == (0.2, 0, 1)


def test_of_one_query_or_row_nothing_is_said(tmp_path: Path) -> None:
    assert found(tmp_path, {"a": {"q": 0.1}, "b": {"q": 0.9}}) == {}
    assert found(tmp_path, {"a": A}) == {}


def test_they_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = found(tmp_path, ROWS)
    monkeypatch.setattr(significance, "_differences", lambda *_: pytest.fail("made again"))
    assert found(tmp_path, ROWS) == first
    with pytest.raises(pytest.fail.Exception):
        found(tmp_path, ROWS, margin=0.1)


def test_of_many_pairs_a_difference_is_still_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 39)  # the least p-value is 0.05, and of six pairs 0.3
    draw = np.random.default_rng(2)
    values = {row: {f"q{i}": float(draw.random()) for i in range(30)} for row in "abc"}
    values["better"] = {query: value + 0.5 + 0.5 * float(draw.random()) for query, value in values["a"].items()}
    made = found(tmp_path, values)
    assert made["better", "c"].randomization_holm == pytest.approx(6 * 2 / 601)
    assert made["c", "b"].randomization_holm > 0.05


def test_a_small_difference_between_many_queries_is_found_and_is_equivalent(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    base = {f"q{i}": float(value) for i, value in enumerate(draw.random(3000))}
    better = {query: value + 0.004 + 0.05 * float(draw.normal()) for query, value in base.items()}
    (each,) = found(tmp_path, {"base": base, "better": better}, margin=0.01).values()
    assert each.randomization < 0.01
    assert each.equivalence < 0.01
    assert 0 < each.low < each.mean < each.high < 0.01
