"""What is pinned: every cost and speed-up by hand from a small ledger, what is left out of it, and what the words say,
above all where the parameter-free recipe is behind."""

import dataclasses
import io
import json
import re
from dataclasses import replace

import made_up_whole
import pytest
from rich.console import Console

from orchestrator.records import (
    UNTRAINED,
    Comparison,
    Cost,
    Difference,
    EncoderFigures,
    IndexFigures,
    Result,
    Trial,
    comparison_from_json,
    to_json,
)
from orchestrator.report import latex, markdown, terminal, wording
from orchestrator.report.details import details
from orchestrator.report.ledger import ledger, total
from orchestrator.report.table import SpeedUp, rows


def cost(stage, recipe, trial, seconds, device="cpu"):
    return Cost(stage, recipe, trial, device, 2, seconds, seconds / 2, examples=10, tokens=100, flops=1e12)


def result(name, quality, trials=(), winner=None, parameter_free=False):
    return Result(name, name, parameter_free, tuple(trials), winner, {"nDCG@10": quality, "RR@10": 0.5}, {})


def trial(name, state="finished", **parameters):
    return Trial(name, parameters, state, 0.5, (), ())


COSTS = (
    cost("negatives", None, None, 1000.0),
    cost("training", "infonce", "i-0", 40.0),
    cost("validation", "infonce", "i-0", 2.0),
    cost("training", "infonce", "i-1", 50.0),
    cost("validation", "infonce", "i-1", 3.0),
    cost("tuning", "infonce", None, 5.0),
    cost("evaluation", "infonce", "i-1", 70.0),
    cost("training", "arm", "a-0", 9.0),
    cost("validation", "arm", "a-0", 1.0),
    cost("evaluation", "arm", "a-0", 70.0),
)


def small(arm=0.60, infonce=0.65, costs=COSTS, trials=None):
    if trials is None:
        trials = (trial("i-0", "stopped", temperature=0.1), trial("i-1", temperature=0.05, scale=2))
    return Comparison(
        name="small",
        fingerprint="f",
        collection="toy",
        documents=5000,
        train_queries=9,
        validation_queries=1,
        test_queries=3,
        encoder="toy-encoder",
        measures=("nDCG@10", "RR@10"),
        results=(
            result(UNTRAINED, 0.5),
            result("infonce", infonce, trials, trials[-1].name),
            result("arm", arm, [trial("a-0")], "a-0", parameter_free=True),
        ),
        costs=costs,
        config="seed: 13\n",
        environment={},
    )


def test_rows_by_hand():
    untrained, infonce, arm = rows(small())
    assert (untrained.kind, infonce.kind, arm.kind) == ("untrained", "tuned", "parameter-free")
    assert (untrained.winner_seconds, untrained.all_seconds, untrained.trials) == (0, 0, 0)
    # All stages of the recipe but the evaluation, the search's own included; nothing of what all recipes share.
    assert (infonce.winner_seconds, infonce.all_seconds) == (53.0, 100.0)
    assert (infonce.finished, infonce.stopped, infonce.trials) == (1, 1, 2)
    assert infonce.knobs == (("temperature", 0.05), ("scale", 2))
    assert (arm.winner_seconds, arm.all_seconds, arm.trials, arm.knobs) == (10.0, 10.0, 1, ())
    assert infonce.speed_ups == untrained.speed_ups == ()
    assert arm.speed_ups == (SpeedUp("infonce", 10.0, pytest.approx(-0.05)),)


def test_untrained_may_call_itself_parameter_free():
    comparison = small()
    base = dataclasses.replace(comparison.results[0], parameter_free=True)
    assert rows(dataclasses.replace(comparison, results=(base, *comparison.results[1:])))[0].speed_ups == ()


def test_ledger_by_hand():
    summed = ledger(small())
    assert [(entry.recipe, entry.stage, entry.device_seconds) for entry in summed] == [
        (None, "negatives", 1000.0),
        ("infonce", "training", 90.0),
        ("infonce", "validation", 5.0),
        ("infonce", "tuning", 5.0),
        ("infonce", "evaluation", 70.0),
        ("arm", "training", 9.0),
        ("arm", "validation", 1.0),
        ("arm", "evaluation", 70.0),
    ]
    assert (summed[1].wall_seconds, summed[1].examples, summed[1].tokens, summed[1].flops) == (45.0, 20, 200, 2e12)
    assert total(summed).device_seconds == 1250.0
    assert total(summed).tokens == 1000


@pytest.mark.parametrize(
    ("arm", "infonce", "sentence"),
    [
        (0.60, 0.65, "arm needs 10.0x less device time than infonce (tuned, 2 trials) but is 0.050 nDCG@10 behind."),
        (0.66, 0.65, "arm needs 10.0x less device time than infonce (tuned, 2 trials) and is 0.010 nDCG@10 ahead."),
        (0.65, 0.6504, "arm needs 10.0x less device time than infonce (tuned, 2 trials) and is level on nDCG@10."),
    ],
)
def test_the_words_say_who_is_behind(arm, infonce, sentence):
    assert wording.sentences(small(arm, infonce)) == [sentence, wording.UNTESTED]


@pytest.mark.parametrize(
    ("seconds", "arm", "sentence"),
    [
        (199.0, 0.60, "arm needs 2.0x the device time of infonce (tuned, 2 trials) and is 0.050 nDCG@10 behind."),
        (199.0, 0.70, "arm needs 2.0x the device time of infonce (tuned, 2 trials) but is 0.050 nDCG@10 ahead."),
        (99.0, 0.60, "arm needs the device time of infonce (tuned, 2 trials) but is 0.050 nDCG@10 behind."),
    ],
)
def test_the_words_where_nothing_is_saved(seconds, arm, sentence):
    costs = tuple(
        dataclasses.replace(entry, device_seconds=seconds)
        if entry.recipe == "arm" and entry.stage == "training"
        else entry
        for entry in COSTS
    )
    assert wording.sentences(small(arm, costs=costs))[0] == sentence


def test_a_recipe_with_knobs_that_was_not_tuned_is_called_so():
    only = small(trials=(trial("i-1", temperature=0.05),))
    assert rows(only)[1].kind == "fixed"
    assert "infonce (one setting, not tuned) but is" in wording.sentences(only)[0]


def test_worse_than_untrained_is_said():
    said = wording.sentences(small(arm=0.487, infonce=0.5))
    assert "arm ends 0.013 nDCG@10 below the untrained encoder." in said
    assert not any(sentence.startswith("infonce ends") for sentence in said)


def test_seconds_of_a_gpu_and_of_a_core_are_not_compared():
    costs = tuple(dataclasses.replace(entry, device="cuda") if entry.recipe == "arm" else entry for entry in COSTS)
    assert rows(small(costs=costs))[2].speed_ups == ()
    assert wording.sentences(small(costs=costs))[0] == (
        "arm ran on cuda, infonce on cpu: their device seconds are not compared."
    )


def test_nothing_is_said_of_a_recipe_that_cost_nothing():
    assert rows(small(costs=()))[2].speed_ups == ()
    assert wording.sentences(small(costs=())) == [wording.UNTESTED]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "–"), (0.417, "0.42"), (9.126, "9.13"), (58.06, "58.1"), (1204.4, "1,204")]
)
def test_seconds(value, text):
    assert wording.seconds(value) == text


def test_what_was_run():
    assert wording.what_was_run(small()) == (
        "toy: 5,000 documents, 9 training, 1 validation and 3 test queries. Encoder toy-encoder. Seed 13."
    )
    assert wording.what_was_run(dataclasses.replace(small(), config="[")).endswith("Encoder toy-encoder.")
    for seeds, said in (("[13, 14, 15]", "Seeds 13, 14 and 15."), ("[13]", "Seed 13."), ("[]", "Seed 13.")):
        several = dataclasses.replace(small(), config=f"seed: 13\nseeds: {seeds}\n")
        assert wording.what_was_run(several).endswith(f"toy-encoder. {said}")


def test_best_shares_a_tie_as_printed():
    assert wording.best(rows(small(arm=0.65001, infonce=0.64999)), "nDCG@10") == {"infonce", "arm"}
    assert wording.best(rows(small()), "nDCG@10") == {"infonce"}
    assert wording.cheapest(rows(small())) == {"arm"}


def shown(comparison, width, **console):
    with (log := Console(width=width, **console)).capture() as captured:
        terminal.show(comparison, log)
    return captured.get()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_terminal_shows_every_value_whole(comparison, width, is_terminal):
    text = shown(comparison, width, force_terminal=is_terminal, no_color=True)
    lines = text.splitlines()
    for row in rows(comparison):
        line = next(line for line in lines if row.name in line and "0." in line)
        assert all(f"{value:.4f}" in line for value in row.measures.values())
        assert wording.seconds(row.all_seconds) in line
    assert "10 (7)" in text
    assert all(sentence in " ".join(text.split()) for sentence in wording.sentences(comparison))


def test_a_job_log_is_plain_and_keeps_a_sentence_on_a_line(comparison):
    text = shown(comparison, 80, force_terminal=False)
    assert "\x1b" not in text
    assert set(wording.sentences(comparison)) <= set(text.splitlines())


def test_the_terminal_has_the_best_value_bold():
    assert "\x1b[1m 0.6500\x1b[0m" in shown(small(), 120, force_terminal=True)
    assert "\x1b[1m 0.6000\x1b[0m" not in shown(small(), 120, force_terminal=True)


def test_rich_markup_in_a_name_is_text():
    odd = dataclasses.replace(small(), results=(result("[red]x[/red]", 0.5), result("[/]", 0.6)))
    assert "[red]x[/red]" in shown(odd, 80, force_terminal=False)


def test_markdown_by_hand():
    assert markdown.page(small()) == (
        "# small\n\n"
        "toy: 5,000 documents, 9 training, 1 validation and 3 test queries. Encoder toy-encoder. Seed 13.\n\n"
        "| recipe | knobs | trials | nDCG@10 | RR@10 | device s, chosen run | device s, all runs | less than |\n"
        "| :-- | :-- | --: | --: | --: | --: | --: | :-- |\n"
        "| untrained | – | – | 0.5000 | **0.5000** | – | – | – |\n"
        "| infonce | temperature 0.05, scale 2 | 2 (1 stopped early) | **0.6500** | **0.5000** | 53.0 | 100 | – |\n"
        "| arm | none | 1 | 0.6000 | **0.5000** | 10.0 | **10.0** | infonce 10.0x |\n\n"
        "- arm needs 10.0x less device time than infonce (tuned, 2 trials) but is 0.050 nDCG@10 behind.\n"
        "- One seed; no test of significance is made, so a small difference may be chance.\n"
    )


def test_failed_trials_are_counted():
    failed = dataclasses.replace(trial("i-2", "failed", temperature=9.0), reason="the loss is nan at step 5")
    trials = (failed, trial("i-0", "stopped", temperature=0.1), trial("i-1", temperature=0.05, scale=2))
    comparison = small(trials=trials)
    assert "| 3 (1 stopped early, 1 failed) |" in markdown.page(comparison)
    assert "3 (1, 1 failed)" in shown(comparison, 120, force_terminal=False)
    (infonce,) = (row for row in rows(comparison) if row.name == "infonce")
    assert (infonce.trials, infonce.failed, infonce.kind) == (3, 1, "tuned")
    alone = small(trials=(failed, trial("i-1", temperature=0.05)))
    assert "| 2 (1 failed) |" in markdown.page(alone)
    assert "2 (1 failed)" in shown(alone, 120, force_terminal=False)


def test_a_parameter_free_recipe_that_was_searched_shows_what_was_chosen():
    comparison = small()
    searched = [trial("a-0", **{"training.learning_rate": 1e-4}), trial("a-1", **{"training.learning_rate": 2e-4})]
    arm = dataclasses.replace(comparison.results[2], trials=tuple(searched))
    comparison = dataclasses.replace(comparison, results=(*comparison.results[:2], arm))
    (row,) = (row for row in rows(comparison) if row.name == "arm")
    assert (row.kind, row.trials) == ("parameter-free", 2)
    assert "| arm | training.learning\\_rate 0.0001 | 2 |" in markdown.page(comparison)
    assert "training.learning_rate 0.0001" in " ".join(shown(comparison, 160, force_terminal=False).split())


def indexed():
    figures = IndexFigures("IVF256,PQ32", 1000, 0.93456, 1.234, 2.5, 4321.6, 12.3, 5_250_000, threads=2)
    results = tuple(dataclasses.replace(result, index=figures) for result in small().results[:2])
    return dataclasses.replace(small(), results=results)


def test_the_figures_of_an_index_stand_below_the_table():
    assert markdown.page(indexed()).endswith(
        "\nSearched with the index IVF256,PQ32 on 2 CPU cores. Recall is the share of the exact top 1,000 that it "
        "finds; the measures are those of what it found.\n\n"
        "| recipe | recall | ms a query | ms, 95th percentile | queries/s at once | built in s | MB |\n"
        "| :-- | --: | --: | --: | --: | --: | --: |\n"
        "| untrained | 0.9346 | 1.23 | 2.50 | 4,322 | 12.3 | 5.2 |\n"
        "| infonce | 0.9346 | 1.23 | 2.50 | 4,322 | 12.3 | 5.2 |\n"
    )
    for width, is_terminal in [(80, True), (120, False)]:
        text = shown(indexed(), width, force_terminal=is_terminal, no_color=True)
        lines = [line.split() for line in text.splitlines()]
        assert ["infonce", "0.9346", "1.23", "2.50", "4,322", "12.3", "5.2"] in lines
        assert "Searched with the index IVF256,PQ32 on 2 CPU cores." in " ".join(text.split())
    assert "Searched with" not in markdown.page(small()) + shown(small(), 120, force_terminal=False)


def encoded(**changes):
    """Two encoders, the second half as large, the first the teacher's."""
    figures = [EncoderFigures(size, ms, 2 * ms, threads=2) for size, ms in ((22_713_216, 4.0), (11_000_000, 1.5))]
    named = zip(small().results[:2], figures, strict=True)
    results = [dataclasses.replace(result, encoder=each) for result, each in named]
    return dataclasses.replace(small(), results=tuple(results), **changes)


def test_the_encoders_that_queries_wait_for_stand_below_the_table():
    assert markdown.page(encoded()).endswith(
        "\nParameters of the encoder that a query waits for, and what it takes for one query alone, on 2 CPU cores, "
        "without the search.\n\n"
        "| recipe | parameters | ms a query | ms, 95th percentile |\n"
        "| :-- | --: | --: | --: |\n"
        "| untrained | 22.7 M | 4.00 | 8.00 |\n"
        "| infonce | 11.0 M | 1.50 | 3.00 |\n"
    )
    same = dataclasses.replace(encoded(), results=encoded().results[:1])
    assert "Parameters of" not in markdown.page(same)
    assert comparison_from_json(json.loads(json.dumps(to_json(encoded())))) == encoded()


def test_the_share_of_the_teachers_quality_that_is_kept():
    first, second = encoded().results
    kept = f"{second.measures['nDCG@10'] / first.measures['nDCG@10']:.1%}"
    teacher = dataclasses.replace(first, name="teacher", recipe="teacher")
    for comparison in (
        dataclasses.replace(encoded(), teacher="untrained"),
        dataclasses.replace(encoded(), results=(teacher, second)),
    ):
        lines = [line.split() for line in shown(comparison, 120, force_terminal=False).splitlines()]
        assert ["infonce", "11.0", "M", "1.50", "3.00", kept] in lines
        assert "| nDCG@10 of teacher |" in markdown.page(comparison)


def test_there_is_no_share_of_a_teacher_that_finds_nothing():
    first, second = encoded().results
    teacher = dataclasses.replace(first, name="teacher", recipe="teacher", measures={"nDCG@10": 0.0, "RR@10": 0.0})
    page = markdown.page(dataclasses.replace(encoded(), results=(teacher, second)))
    assert "| infonce | 11.0 M | 1.50 | 3.00 | – |" in page


def test_a_row_that_teaches_is_charged_to_those_that_it_teaches():
    taught = dataclasses.replace(
        small(costs=(*COSTS, cost("teaching", None, None, 30.0))),
        results=tuple(dataclasses.replace(result, taught=result.name == "arm") for result in small().results),
        teacher="infonce",
    )
    seconds = {row.name: (row.teacher_seconds, row.all_seconds) for row in rows(taught)}
    assert seconds == {UNTRAINED: (0.0, 0.0), "infonce": (0.0, 100.0), "arm": (130.0, 140.0)}
    assert any("that it cost are" in sentence for sentence in wording.sentences(taught))


def test_many_rows_below_the_untrained_encoder_are_told_of_together():
    worse = [result(f"worse-{number}", 0.4 - number / 10) for number in range(4)]
    three, four = (
        wording.sentences(dataclasses.replace(small(), results=(*small().results[:1], *worse[:count]), costs=()))
        for count in (3, 4)
    )
    assert "worse-2 ends 0.300 nDCG@10 below the untrained encoder." in three
    assert "4 of 4 rows end 0.100 to 0.400 nDCG@10 below the untrained encoder." in four
    assert not any("worse-2 ends" in sentence for sentence in four)


def test_of_many_rivals_those_that_were_tuned_are_compared_with():
    one = [result(f"fixed-{number}", 0.4, [trial(f"f-{number}")], f"f-{number}") for number in range(4)]
    costs = [cost("training", each.name, f"f-{number}", 7.0) for number, each in enumerate(one)]
    few = small(costs=(*COSTS, *costs[:3]))
    few, many = (
        dataclasses.replace(few, results=(*few.results, *one[:count]), costs=(*COSTS, *costs[:count]))
        for count in (3, 4)
    )
    assert [up.over for up in rows(few)[2].speed_ups] == ["infonce", "fixed-0", "fixed-1", "fixed-2"]
    assert [up.over for up in rows(many)[2].speed_ups] == ["infonce"]


def test_markdown_shows_a_name_as_it_is():
    odd = dataclasses.replace(small(), results=(result("a|b_<i>*\n`c`", 0.5),))
    assert "| a\\|b\\_&lt;i&gt;\\* \\`c\\` |" in markdown.page(odd)


def test_what_a_teacher_cost_is_charged_in_full_to_each_that_learns_from_it():
    plain = small(costs=(*COSTS, cost("teaching", None, None, 30.0)))
    untaught = {row.name: row.all_seconds for row in rows(plain)}
    assert untaught == {UNTRAINED: 0.0, "infonce": 100.0, "arm": 10.0}
    results = (plain.results[0], *(dataclasses.replace(result, taught=True) for result in plain.results[1:]))
    taught = dataclasses.replace(plain, results=results)
    assert {row.name: row.all_seconds for row in rows(taught)} == {UNTRAINED: 0.0, "infonce": 130.0, "arm": 40.0}
    assert rows(taught)[2].speed_ups == (SpeedUp("infonce", 130 / 40, pytest.approx(-0.05)),)
    assert total(ledger(taught)).device_seconds == total(COSTS).device_seconds + 30.0
    said = "infonce and arm learn from a teacher; the 30.0 device seconds that it cost are in all runs of each."
    assert said in wording.sentences(taught)
    assert not [sentence for sentence in wording.sentences(plain) if "teacher" in sentence]


def with_differences(comparison: Comparison, *pairs: tuple[str, str, float, float, float]) -> Comparison:
    """With differences of (row, other, mean, p, p of equivalence)."""
    made = tuple(
        Difference(row, other, 300, mean, mean - 0.01, mean + 0.01, 0.2, p, p, p, p, equal, equal)
        for row, other, mean, p, equal in pairs
    )
    return replace(comparison, differences=made, margin=0.01)


def test_letters_say_which_rows_a_row_is_better_than(comparison: Comparison) -> None:
    pairs = [
        ("untrained", "infonce", -0.04, 0.001, 0.9),
        ("arm-adaptive", "infonce", -0.02, 0.04, 0.7),
        ("arm-adaptive", "untrained", 0.02, 0.05, 0.6),  # not below the level
        ("arm-adaptive", "arm-distributed", 0.005, 0.4, 0.01),
    ]
    whole = with_differences(comparison, *pairs)
    found = {row.name: (row.letter, row.beats) for row in rows(whole)}
    assert found == {
        "untrained": ("a", ""),
        "static-margin": ("b", ""),
        "infonce": ("c", "ad"),
        "arm-adaptive": ("d", ""),
        "arm-distributed": ("e", ""),
    }
    page = markdown.page(whole)
    assert "| (c) infonce |" in page
    assert "| **0.6893** <sup>ad</sup> |" in page
    assert "| arm-adaptive − arm-distributed | +0.0050 | −0.0050 … +0.0150 | +0.20 | 0.400 | 0.400 | 0.010 |" in page
    said = wording.sentences(whole)
    assert said[-2:] == [
        "Letters behind nDCG@10 name the rows that a row is better than: randomization test over 300 queries, p < 0.05 "
        "after Holm's correction for 4 pairs.",
        wording.CAVEAT,
    ]
    assert (
        "arm-adaptive and arm-distributed are equivalent within 0.01 nDCG@10 (two one-sided t-tests, p = 0.010)."
        in said
    )
    behind = next(sentence for sentence in said if sentence.startswith("arm-adaptive needs") and "infonce" in sentence)
    assert behind.endswith("but is 0.021 nDCG@10 behind (p = 0.040).")
    console = Console(width=160, file=io.StringIO(), highlight=False)
    terminal.show(whole, console)
    printed = console.file.getvalue()
    assert re.search(r"^ *c +infonce ", printed, flags=re.M)
    assert "0.6893 ad" in printed
    assert comparison_from_json(json.loads(json.dumps(to_json(whole)))) == whole


@pytest.mark.parametrize("width", [80, 100, 120, 132])
def test_no_number_is_cut_where_there_are_letters(comparison: Comparison, width: int) -> None:
    longer = replace(comparison.results[3], name="self-distilled-infonce")
    whole = replace(comparison, results=(*comparison.results[:3], longer, *comparison.results[4:]))
    names = [result.name for result in whole.results]
    pairs = [(row, "infonce", 0.1, 0.001, 0.9) for row in names if row != "infonce"]
    console = Console(width=width, file=io.StringIO(), highlight=False, force_terminal=True, no_color=True)
    terminal.show(with_differences(whole, *pairs), console)
    printed = console.file.getvalue()
    assert "…" not in printed
    numbers = [f"{value:.4f}" for result in whole.results for value in result.measures.values()]
    assert all(number in printed for number in numbers)


def test_the_table_of_a_paper(comparison: Comparison) -> None:
    nasty = replace(comparison.results[1], name="50%_a&b")
    whole = replace(comparison, results=(comparison.results[0], nasty, *comparison.results[2:]))
    page = latex.page(with_differences(whole, ("untrained", "infonce", -0.04, 0.001, 0.9)))
    table = [line for line in page.splitlines() if not line.startswith("%")]
    assert table[:3] == [
        r"\begin{tabular}{lrrrrl}",
        r"\toprule",
        r"recipe & nDCG@10 & RR@10 & R@100 & device s & less than \\",
    ]
    assert table[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert sum(line.endswith(r" \\") and line.count(" & ") == 5 for line in table) == 6
    assert r"(c) infonce & \textbf{0.6893}$^{a}$ & \textbf{0.6561} & \textbf{0.9467} & " in page
    assert r"(b) 50\%\_a\&b & 0.6602 & " in page
    assert r"(a) untrained & 0.6451 & 0.6084 & 0.9250 & -- & -- \\" in page
    assert page.startswith("% scifact: 5,183 documents")
    assert page.count(r"\begin{tabular}") == page.count(r"\end{tabular}") == 2
    assert "rows & wins & ties & losses & mean \\\\" in page
    assert r"arm-adaptive $-$ infonce & 0 & 0 & 2 & $-$0.0209 \\" in page


def test_of_many_pairs_those_of_neighbours_are_shown(comparison: Comparison) -> None:
    names = [result.name for result in comparison.results]
    pairs = [(row, other, 0.0, 0.9, 0.01) for i, row in enumerate(names) for other in names[:i]]
    whole = with_differences(comparison, *(pairs * 2))
    (detail,) = (each for each in details(whole) if each.name == "differences")
    assert len(detail.cells) < len(pairs)
    assert "Of each row and the one above" in detail.caption
    assert "20 of 20 pairs of rows are equivalent within 0.01 nDCG@10." in wording.sentences(whole)


def test_names_are_whole_where_the_speed_ups_leave_no_room_for_them():
    whole = made_up_whole.comparison()
    output = io.StringIO()
    terminal.show(whole, Console(file=output, width=132))
    table = output.getvalue().partition("\n\n")[0]
    assert all(f" {result.name} " in table for result in whole.results)
    assert max(map(len, table.splitlines())) <= 132


@pytest.mark.parametrize(
    ("value", "said"), [(0.01234, "+0.0123"), (-0.004, "−0.0040"), (-0.00001, "+0.0000"), (0.0, "+0.0000")]
)
def test_a_difference_has_a_sign(value, said):
    assert wording.signed(value) == said
