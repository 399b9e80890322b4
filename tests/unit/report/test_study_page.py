"""A study's tables and sentences, pinned by hand on made-up comparisons: who is better than whom in which setting,
where settings have other rows or nothing was tested; the same in every form.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made_up
import pytest

from orchestrator.records import Comparison, Difference
from orchestrator.report import study as pages
from orchestrator.study import Setting, Study


def differ(row: str, other: str, mean: float, p: float = 1.0, level: float = 1.0) -> Difference:
    """A difference with the p-values, after Holm, of the randomization test and of the equivalence test."""
    return Difference(row, other, 300, mean, mean, mean, 0, p, p, p, p, level, level)


def comparison(*differences: Difference, without: str = "") -> Comparison:
    whole = made_up.comparison()
    results = tuple(each for each in whole.results if each.name != without)
    return replace(whole, name=f"s.{len(differences)}", results=results, differences=differences, margin=0.01)


FIRST = comparison(
    differ("infonce", "untrained", 0.04, p=0.01),
    differ("infonce", "static-margin", 0.03, p=0.049),
    differ("arm-adaptive", "infonce", -0.02, p=0.05),
    differ("arm-distributed", "infonce", -0.03, p=0.001),
    differ("arm-distributed", "static-margin", 0.003, p=0.9, level=0.02),
)
SECOND = comparison(differ("infonce", "arm-adaptive", 0.02, p=0.01), without="untrained")


def study(*comparisons: Comparison) -> Study:
    return Study("s", tuple(Setting({"batch": f"{n}"}, each) for n, each in enumerate(comparisons)))


def test_letters_say_whom_a_row_is_better_than() -> None:
    quality = pages.tables(study(FIRST, SECOND))[0]
    assert quality.heads == (
        "(a) untrained", "(b) static-margin", "(c) infonce", "(d) arm-adaptive", "(e) arm-distributed",
    )  # fmt: skip
    cells = {name: [" ".join(cell.split()) for cell in row] for name, row in quality.cells.items()}
    assert cells == {
        "0": ["0.6451", "0.6602", "0.6893 abe", "0.6684", "0.6631"],
        "1": ["–", "0.6602", "0.6893 d", "0.6684", "0.6631"],
    }
    lengths = [[len(row[column]) for row in quality.cells.values()] for column in range(1, 5)]
    assert lengths == [[6, 6], [10, 10], [6, 6], [6, 6]], "numbers stand below one another"
    assert "nDCG@10 on 300 test queries, one seed. Behind it the letters of those" in quality.caption


def test_where_nothing_was_tested_nothing_is_marked() -> None:
    quality = pages.tables(study(comparison(), comparison()))[0]
    assert quality.heads[:2] == ("untrained", "static-margin")
    assert quality.cells["0"] == ["0.6451", "0.6602", "0.6893", "0.6684", "0.6631"]
    assert "letters" not in quality.caption


@pytest.mark.parametrize(
    ("row", "over", "said"),
    [
        ("arm-adaptive", "infonce", "the higher nDCG@10 in 0 of them (significantly in 0) and the lower in 2 "
         "(significantly in 1)."),
        ("arm-distributed", "static-margin", "the higher nDCG@10 in 2 of them (significantly in 0) and the lower in 0 "
         "(significantly in 0), and is equivalent within 0.01 in 1."),
    ],
)  # fmt: skip
def test_what_holds_over_all_settings(row: str, over: str, said: str) -> None:
    (sentence,) = [
        each
        for each in pages.sentences(study(FIRST, SECOND))
        if each.startswith(f"The search of {over} took") and f"{row} has" in each
    ]
    assert sentence.endswith(f"{row} has {said}")


def test_every_form_has_every_table(tmp_path: Path) -> None:
    whole = study(FIRST, SECOND)
    assert pages.write(whole, tmp_path) == tmp_path / "report.html"
    latex = (tmp_path / "report.tex").read_text()
    assert latex.startswith("% scifact: 2 comparisons, over batch.\n% The search of static-margin took")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == len(pages.tables(whole)) == 3
    assert r"0 & 0.6451 & 0.6602 & 0.6893 abe & 0.6684 & 0.6631 \\" in latex
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        for each in pages.tables(whole):
            assert each.title in text
        assert "0.6893 abe" in text
        assert "and is equivalent within 0.01 in 1." in text
