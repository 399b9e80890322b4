"""What is pinned, by hand: where a line in log share meets a quality, which rows are a family, what they are asked."""

import dataclasses

import made_up
import pytest

from orchestrator.report.efficiency import Family, families, reached, share_for

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
    assert not asked["arm-adaptive", "infonce"].at_least
    low = reached([found["arm-adaptive"], Family("poor", False, ((1.0, 0.5),))])
    assert (low[0].share, low[0].at_least) == (0.1, True)
    high = reached([found["arm-adaptive"], Family("good", False, ((1.0, 0.71),))])
    assert (high[0].share, high[0].at_least) == (None, False)


def test_rows_without_shares_are_no_families():
    assert families(made_up.comparison()) == []
