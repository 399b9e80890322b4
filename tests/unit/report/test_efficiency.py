"""What is pinned, by hand: where a line in log share meets a quality, which rows are a family, what they are asked;
and the interval around it, by drawing queries one by one.
"""

import dataclasses
import math

import made_up
import numpy as np
import pytest

from orchestrator.report.efficiency import Family, families, interval, reached, share_for

LINE = ((0.01, 0.2), (0.1, 0.4), (1.0, 0.5))


@pytest.mark.parametrize(
    ("quality", "share"),
    [
        (0.3, 0.01 * 10**0.5),  # half-way between 0.01 and 0.1 in logarithms
        (0.4, 0.1),
        (0.425, 0.1 * 10**0.25),
        (0.5, 1.0),
        (0.2, 0.01),
        (0.1, 0.01),  # enough already
        (0.51, None),
    ],
)
def test_where_a_line_meets_a_quality(quality, share):
    assert share_for(LINE, quality) == (None if share is None else pytest.approx(share))


def test_the_first_time_counts_where_quality_falls_again():
    dips = ((0.1, 0.3), (0.2, 0.5), (0.4, 0.35), (0.8, 0.6))
    assert share_for(dips, 0.4) == pytest.approx(0.1 * 2**0.5)
    assert share_for(dips, 0.55) == pytest.approx(0.4 * 2**0.8)  # (0.55 − 0.35) / (0.6 − 0.35)


def test_the_best_point():
    assert Family("f", True, LINE).best == (1.0, 0.5)
    assert Family("f", True, ((0.1, 0.5), (1.0, 0.5))).best == (0.1, 0.5)


def with_shares():
    """arm-adaptive at 10 % and 100 %, infonce at both, static-margin and arm-distributed alone."""
    untrained, static, nce, arm, distributed = made_up.comparison().results

    def at(result, name, share, quality, family):
        measures = {**result.measures, "nDCG@10": quality}
        return dataclasses.replace(result, name=name, share=share, measures=measures, family=family)

    return dataclasses.replace(
        made_up.comparison(),
        results=(
            untrained,
            static,
            at(nce, "infonce", 1.0, 0.68, "infonce"),
            at(nce, "infonce-tenth", 0.1, 0.60, "infonce"),
            at(arm, "arm-adaptive", 1.0, 0.70, "arm-adaptive"),
            at(arm, "arm-tenth", 0.1, 0.64, "arm-adaptive"),
            distributed,
        ),
    )


def test_families_and_what_is_asked_of_them():
    found = {family.name: family for family in families(with_shares())}
    assert list(found) == ["static-margin", "infonce", "arm-adaptive", "arm-distributed"]
    assert found["infonce"].points == ((0.1, 0.60), (1.0, 0.68))
    assert not found["infonce"].parameter_free
    assert found["arm-distributed"].points == ((1.0, 0.6631),)
    asked = {(each.family.name, each.other.name): each for each in reached(list(found.values()))}
    # arm-distributed is parameter-free too, but has one share.
    assert list(asked) == [
        ("arm-adaptive", "static-margin"),
        ("arm-adaptive", "infonce"),
        ("arm-adaptive", "arm-distributed"),
    ]
    assert asked["arm-adaptive", "infonce"].share == pytest.approx(0.1 * 10 ** (2 / 3))
    low = reached([found["arm-adaptive"], Family("poor", False, ((1.0, 0.5),))])
    assert low[0].share == 0.1
    high = reached([found["arm-adaptive"], Family("good", False, ((1.0, 0.71),))])
    assert high[0].share is None


def measured(rows):
    """Families of rows "a" at 10 % and "b" at all of the data against "c", from row → values per query."""
    values = {row: {f"q{i}": value for i, value in enumerate(each)} for row, each in rows.items()}
    mean = {row: float(np.mean(each)) for row, each in rows.items()}
    free = Family("free", True, ((0.1, mean["a"]), (1.0, mean["b"])), ("a", "b"))
    return reached([free, Family("c", False, ((1.0, mean["c"]),), ("c",))])[0], values


def test_the_interval_is_that_of_queries_drawn_anew():
    rng = np.random.default_rng(1)
    rows = {"a": rng.random(40) * 0.6, "b": 0.1 + rng.random(40) * 0.8, "c": 0.15 + rng.random(40) * 0.74}
    each, values = measured(rows)
    low, high = interval(each, values)
    shares = []
    for _ in range(4000):
        drawn = [int(i) for i in rng.integers(40, size=40)]
        a, b, c = (sum(rows[name][i] for i in drawn) / 40 for name in "abc")
        if a >= c:
            shares.append(0.1)
        else:
            shares.append(0.1 ** (1 - (c - a) / (b - a)) if b >= c else math.inf)
    shares.sort()
    assert low == pytest.approx(shares[100], abs=0.03)
    assert high == shares[3900] == math.inf, "in more than one in forty it is not reached"
    assert low < each.share < high


def test_an_interval_without_doubt():
    alike = {"a": [0.3] * 5, "b": [0.5] * 5, "c": [0.4] * 5}
    each, values = measured(alike)
    assert interval(each, values) == pytest.approx((0.1**0.5, 0.1**0.5))
    values["c"] = dict(reversed(values["c"].items()))  # queries in another order
    assert interval(each, values) == pytest.approx((0.1**0.5, 0.1**0.5))
    never, values = measured({**alike, "c": [0.6] * 5})
    assert interval(never, values) == (math.inf, math.inf)
    least, values = measured({**alike, "c": [0.2] * 5})
    assert interval(least, values) == (0.1, 0.1)
    one, values = measured({row: each[:1] for row, each in alike.items()})
    assert interval(one, values) == pytest.approx((0.1**0.5, 0.1**0.5))
    none, values = measured({"a": [0.3], "b": [0.5], "c": [0.6]})
    assert interval(none, values) == (math.inf, math.inf)


def test_rows_without_shares_are_no_families():
    assert families(made_up.comparison()) == []
