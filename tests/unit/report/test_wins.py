"""What is pinned, by hand: wins, ties and losses, which come first, which pairs are shown, which queries are named."""

import dataclasses

import made_up_whole
import pytest

from orchestrator.records import UNTRAINED
from orchestrator.report import wins
from orchestrator.report.plots_detail import reach
from orchestrator.report.wins import Query, cut, named, pairs


def with_values(comparison, **values):
    """Rows by name, with underscores for hyphens, and their nDCG@10 by query."""
    found = {name.replace("_", "-"): {"nDCG@10": each} for name, each in values.items()}
    results = [dataclasses.replace(each, per_query=found.get(each.name, {})) for each in comparison.results]
    return dataclasses.replace(comparison, results=tuple(results))


def test_wins_ties_and_losses_by_hand(comparison):
    (pair,) = pairs(
        with_values(
            comparison,
            arm_adaptive={"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.2, "e": 0.1 + 0.2, "only": 1.0},
            infonce={"a": 0.5, "b": 0.0, "c": 1.0, "d": 0.3, "e": 0.3, "other": 1.0},
        )
    )
    assert (pair.row, pair.other) == ("arm-adaptive", "infonce")
    assert pair.wins == (Query("a", 1.0, 0.5), Query("b", 0.5, 0.0))  # alike, so in the order of their ids
    assert pair.losses == (Query("c", 0.0, 1.0), Query("d", 0.2, 0.3))  # the greatest loss first
    assert pair.ties == 1  # rounding is no win, and what one of them has no value for does not count
    assert pair.mean == pytest.approx((0.5 + 0.5 - 1.0 - 0.1 + 0.0) / 5)
    assert [query.id for query in pair.greatest] == ["a", "b", "d", "c"]
    assert reach([pair]) == 1.0


def test_five_of_each_are_shown(comparison):
    values = {f"q{number:02}": number / 40 for number in range(41)}  # from 20 losses over a tie to 20 wins
    made = with_values(comparison, arm_adaptive=values, infonce=dict.fromkeys(values, 0.5))
    (pair,) = pairs(made)
    assert (len(pair.wins), pair.ties, len(pair.losses)) == (20, 1, 20)
    shown = ["q40", "q39", "q38", "q37", "q36", "q04", "q03", "q02", "q01", "q00"]
    assert [query.id for query in pair.greatest] == named(made) == shown


def test_each_parameter_free_row_against_each_tuned_one(comparison):
    assert [(pair.row, pair.other) for pair in pairs(comparison)] == [
        ("arm-adaptive", "static-margin"),
        ("arm-adaptive", "infonce"),
        ("arm-distributed", "static-margin"),
        ("arm-distributed", "infonce"),
    ]


def test_of_many_pairs_those_with_the_best_rows(comparison):
    arm = comparison.results[3]
    more = [
        dataclasses.replace(arm, name=f"arm-{number}", measures={**arm.measures, "nDCG@10": 0.6 + number / 100})
        for number in range(1, 6)
    ]
    many = dataclasses.replace(comparison, results=(*comparison.results[:3], *more))
    # Of ten, six; in the order of the table.
    assert [(pair.row, pair.other) for pair in pairs(many)] == [
        (f"arm-{number}", other) for number in (3, 4, 5) for other in ("static-margin", "infonce")
    ]


def test_without_tuned_rows_each_is_held_against_the_best_other(comparison):
    untrained, _, _, adaptive, distributed = comparison.results
    free = dataclasses.replace(comparison, results=(untrained, distributed, adaptive))
    assert [(pair.row, pair.other) for pair in pairs(free)] == [("arm-adaptive", "arm-distributed")]
    one = dataclasses.replace(comparison, results=(untrained, distributed))
    assert [(pair.row, pair.other) for pair in pairs(one)] == [("arm-distributed", UNTRAINED)]
    third = dataclasses.replace(adaptive, name="third", measures={**adaptive.measures, "nDCG@10": 0.1})
    three = dataclasses.replace(free, results=(*free.results, third))
    assert [(pair.row, pair.other) for pair in pairs(three)] == [
        ("arm-adaptive", "arm-distributed"),
        ("third", "arm-adaptive"),
    ]
    assert pairs(dataclasses.replace(comparison, results=(untrained,))) == []


def test_rows_of_a_smaller_share_are_not_shown():
    whole = made_up_whole.comparison()
    assert [(pair.row, pair.other) for pair in pairs(whole)] == [
        ("arm-adaptive", "infonce"),
        ("arm-adaptive", "score-kl"),
        ("arm-generated", "infonce"),
        ("arm-generated", "score-kl"),
    ]
    assert set(whole.query_texts) == set(named(whole))


def test_a_long_text_is_cut_and_a_broken_one_is_one_line():
    assert cut(" a\n b ") == "a b"
    assert cut("x" * wins.CHARACTERS) == "x" * wins.CHARACTERS
    long = cut("word " * 100)
    assert long.endswith("word …")
    assert len(long) <= wins.CHARACTERS + 2
