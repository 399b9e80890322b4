"""What is pinned: peaks, energy, utilisation, money and shares by hand from a small ledger; that what is divided adds
up to what was spent; that the page shows a column only where it has something to say, and old files are read."""

import dataclasses
import json
from html.parser import HTMLParser

import pytest

from orchestrator.config import load
from orchestrator.prices import priced
from orchestrator.records import (
    UNTRAINED,
    Comparison,
    Cost,
    Prices,
    Result,
    Trial,
    comparison_from_json,
    costs_from_json,
    to_json,
)
from orchestrator.report import html, latex, markdown, terminal, wording
from orchestrator.report.ledger import charges, ledger_total, lines, money, utilisation
from orchestrator.report.ledger_table import ledger_table, shared_costs
from orchestrator.report.table import rows

RATES = {"cpu bf16": 50.0, "cpu fp32": 20.0}


def cost(stage, recipe, seconds, made="", queries=(), **more):
    return Cost(
        stage, recipe, f"{recipe}-0" if recipe else None, device_seconds=seconds, made=made, queries=queries, **more
    )


def result(name, taught=False, queries="judged"):
    trials = () if name == UNTRAINED else (Trial(f"{name}-0", {}, "finished", 0.5, (), ()),)
    winner = trials[0].name if trials else None
    return Result(name, name, True, trials, winner, {"nDCG@10": 0.5}, {}, taught=taught, queries=queries)


# big teaches small and tiny; tiny learns from generated queries as well. The corpus' vectors are mined in and taught.
COSTS = (
    cost("tokenizing", None, 3.0, made="t"),
    cost("mining", None, 60.0, made="corpus", queries=("judged", "both")),
    cost("mining", None, 6.0, made="ranking", queries=("judged",)),
    cost("teaching", None, 60.0, made="corpus", queries=("judged", "both")),
    cost("teaching", None, 12.0, made="queries", queries=("judged", "both")),
    cost("generation", None, 20.0, made="drafts", queries=("both",)),
    cost("training", "big", 90.0, peak_bytes=300, joules=40.0, flops=1000.0, precision="bf16"),
    cost("validation", "big", 9.0, peak_bytes=500, joules=4.0, flops=400.0, precision="fp32"),
    cost("training", "small", 30.0, peak_bytes=100),
    cost("training", "tiny", 15.0),
    cost("training", "plain", 45.0),
    *(cost("evaluation", name, 70.0) for name in ("untrained", "big", "small", "tiny", "plain")),
)


def comparison(costs=COSTS, **more):
    return Comparison(
        name="c",
        fingerprint="f",
        collection="toy",
        documents=9,
        train_queries=9,
        validation_queries=1,
        test_queries=3,
        encoder="m",
        measures=("nDCG@10",),
        results=(
            result(UNTRAINED),
            result("big"),
            result("small", taught=True),
            result("tiny", taught=True, queries="both"),
            result("plain"),
        ),
        costs=costs,
        config="seed: 13\n",
        environment={},
        teacher="big",
        **more,
    )


def test_utilisation_by_hand():
    # 1000 FLOPs at 50 a second are 20 s, 400 at 20 are 20 s more; the devices were held for 100.
    bf16 = Cost("training", device_seconds=60.0, flops=1000.0, precision="bf16")
    fp32 = Cost("validation", device_seconds=30.0, flops=400.0, precision="fp32")
    search = Cost("mining", device_seconds=10.0)
    assert utilisation([bf16, fp32, search], RATES) == pytest.approx(0.4)
    assert utilisation([bf16], RATES) == pytest.approx(20 / 60)
    assert utilisation([search], RATES) is None
    assert utilisation([bf16, dataclasses.replace(fp32, precision="")], RATES) is None
    assert utilisation([bf16, dataclasses.replace(fp32, device="cuda")], RATES) is None
    assert utilisation([dataclasses.replace(bf16, device_seconds=0.0)], RATES) is None


def test_money_by_hand():
    core, gpu = Cost("a", device_seconds=7200.0), Cost("b", device="cuda", device_seconds=900.0)
    assert money([core, gpu], Prices(cpu=0.04, cuda=2.4)) == pytest.approx(2 * 0.04 + 0.25 * 2.4)
    assert money([core, gpu], Prices(cuda=2.4)) == pytest.approx(0.6)  # the cores are in the price of the GPU
    assert money([core], Prices(cpu=0.0)) == 0.0
    assert money([core], Prices(cuda=2.4)) is None
    assert money([core], None) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.00"), (0.00001, "< 0.0001"), (0.00381, "0.0038"), (0.418, "0.42"), (1204.5, "1,204.50")],
)
def test_money_in_words(value, text):
    assert wording.money(value) == text


def test_lines_by_hand():
    once_more = cost("training", "big", 10.0, peak_bytes=200, joules=2.0, flops=500.0, precision="bf16")
    found = lines(comparison((*COSTS, once_more), peak_flops=RATES, prices=Prices(cpu=3.6)))
    training = next(line for line in found if (line.cost.recipe, line.cost.stage) == ("big", "training"))
    assert (training.cost.peak_bytes, training.cost.joules) == (300, 42.0)  # the largest, and the sum
    assert training.utilisation == pytest.approx(1500 / 50 / 100)
    assert training.money == pytest.approx(0.1)  # 100 s at 0.001 a second
    assert found[0].cost.recipe is None
    assert found[0].utilisation is None
    whole = ledger_total(comparison(peak_flops=RATES))
    assert (whole.cost.peak_bytes, whole.cost.joules) == (500, 44.0)
    assert whole.utilisation == pytest.approx(40 / whole.cost.device_seconds)


def test_charges_by_hand():
    found = charges(comparison(prices=Prices(cpu=3.6)))
    assert list(found) == ["big", "small", "tiny", "plain"]
    # The corpus is encoded once, whoever reads it.
    in_full = {
        "big": 99 + 66,
        "small": 30 + 66 + 12 + 99,
        "tiny": 15 + 66 + 12 + 99 + 20,  # what its teacher was trained with too: the ranking
        "plain": 45 + 66,
    }
    assert {name: charge.in_full for name, charge in found.items()} == pytest.approx(in_full)
    assert {name: charge.own for name, charge in found.items()} == {"big": 99, "small": 30, "tiny": 15, "plain": 45}
    divided = {
        "big": 99 / 3 + 66 / 4,
        "small": 30 + 66 / 4 + 12 / 2 + 99 / 3,
        "tiny": 15 + 66 / 4 + 12 / 2 + 99 / 3 + 20,
        "plain": 45 + 66 / 4,
    }
    assert {name: charge.divided for name, charge in found.items()} == pytest.approx(divided)
    spent = sum(c.device_seconds for c in COSTS if c.stage not in ("evaluation", "tokenizing")) - 60  # once
    assert sum(divided.values()) == pytest.approx(spent)
    assert found["tiny"].among == {"mining": (4,), "teaching": (2,), "generation": (1,), "big": (3,)}
    assert found["big"].among == {"mining": (4,)}
    assert found["plain"].money == pytest.approx(0.111)
    assert found["plain"].money_divided == pytest.approx((45 + 66 / 4) / 1000)
    assert {row.name: row.all_seconds for row in rows(comparison()) if row.all_seconds} == pytest.approx(in_full)


def test_nothing_shared_nothing_said():
    alone = [c for c in COSTS if c.recipe == "plain" or c.stage == "tokenizing"]
    plain = dataclasses.replace(comparison(tuple(alone)), results=(result("plain"),), teacher=None)
    assert charges(plain) == {}
    assert list(shared_costs(plain)) == []


def test_what_it_took_to_mine_is_in_all_runs_and_random_negatives_change_nothing():
    by_name = {row.name: row for row in rows(comparison())}
    assert (by_name["plain"].mining_seconds, by_name["plain"].all_seconds) == (66.0, 111.0)
    assert by_name["plain"].winner_seconds == 45.0
    said = wording.sentences(comparison())
    assert "The 66.0 device seconds that it took to mine negatives are in all runs of each row." in said
    random = comparison(tuple(c for c in COSTS if c.stage != "mining"))
    assert {row.name: row.all_seconds for row in rows(random)}["plain"] == 45.0
    assert not any("mine" in sentence for sentence in wording.sentences(random))


def test_what_was_mined_on_another_kind_of_device_is_in_no_runs():
    costs = tuple(dataclasses.replace(c, device="cuda") if c.recipe else c for c in COSTS)
    plain = next(row for row in rows(comparison(costs)) if row.name == "plain")
    assert (plain.all_seconds, plain.devices) == (45.0, ("cuda",))


class Cells(HTMLParser):
    """The rows of the table behind a heading, as lists of cells."""

    def __init__(self, source, heading):
        super().__init__()
        self.found, self.inside = [], False
        self.feed(source[source.index(f'id="{heading}"') :].partition("</table>")[0])

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.found.append([])
        if tag in ("td", "th"):
            self.inside = True
            self.found[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.found[-1][-1] += data.strip()


def test_the_page_shows_the_ledger():
    gigabytes = tuple(dataclasses.replace(c, peak_bytes=c.peak_bytes * 10**7, joules=c.joules * 900) for c in COSTS)
    page = html.page(comparison(gigabytes, peak_flops=RATES, prices=Prices(cpu=3.6, currency="EUR")))
    head, *body = Cells(page, "ledger").found
    assert head[2:] == [
        "device s", "wall s", "examples", "tokens", "model TFLOPs",
        "of the products' rate", "peak memory, GB", "energy, Wh", "cost, EUR",
    ]  # fmt: skip
    assert body[0] == ["shared", "tokenizing", "3.00", "–", "0", "0", "0.0", "–", "–", "–", "0.0030"]
    training = next(row for row in body if row[:2] == ["big", "training"])
    assert training[2:] == ["90.0", "–", "0", "0", "0.0", "22.2%", "3.00", "10.0", "0.090"]
    assert body[-1][0] == "total"
    assert body[-1][-1] == wording.money(sum(c.device_seconds for c in COSTS) / 1000)
    head, *body = Cells(page, "shared-costs").found
    assert head == ["row", "own runs, device s", "charged in full", "divided", "among", "EUR, in full", "EUR, divided"]
    assert body[1] == [
        "small", "30.0", "207", "85.5", "mining 4, teaching 2, big 3", "0.21", "0.085"
    ]  # fmt: skip
    main = Cells(page, "results").found
    assert main[0][4] == "cost, EUR"
    assert main[2][:1] + main[2][4:5] == ["big", wording.money(0.165)]


def test_columns_that_say_nothing_are_left_out():
    bare = ledger_table(comparison(tuple(Cost(c.stage, c.recipe, device_seconds=1.0) for c in COSTS)))
    assert bare.heads == ("device s", "wall s", "examples", "tokens", "model TFLOPs")
    assert bare.notes == ()
    assert ledger_table(comparison(())) is None


def test_prices_in_the_other_tables():
    plain, paid = comparison(), comparison(prices=Prices(cpu=3.6))
    for page in (markdown.page, latex.page):
        assert "USD" not in page(plain)
        assert "cost, USD" in page(paid)
    assert "| plain | none | 1 | **0.5000** | 45.0 | **111** | 0.11 | – |" in markdown.page(paid)
    assert "plain & \\textbf{0.5000} & 111 & 0.11 & -- \\\\" in latex.page(paid)
    heads = [str(column.header) for column in terminal.table(plain).columns]
    with_prices = [str(column.header) for column in terminal.table(paid).columns]
    assert [head for head in with_prices if head not in heads] == ["cost,\nUSD"]


def test_other_prices_are_other_prices_alone(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("name: x\ncollection: {path: c}\nencoder: {model: m}\nrecipes: [arm-adaptive]\n")
    before = comparison()
    assert priced(before, load(file)) == before
    after = priced(before, load(file, ["prices={cpu: 1}"]))
    assert after.prices == Prices(cpu=1.0)
    assert "prices:\n  cpu: 1" in after.config
    assert dataclasses.replace(after, prices=None, config=before.config) == before
    assert priced(after, load(file)).prices is None


def test_what_was_written_before_is_read():
    whole = comparison(peak_flops=RATES, prices=Prices(cpu=1.0))
    assert comparison_from_json(json.loads(json.dumps(to_json(whole)))) == whole
    value = json.loads(json.dumps(to_json(comparison())))
    for name in ("peak_flops", "prices"):
        del value[name]
    for each in value["costs"]:
        for name in ("peak_bytes", "joules", "precision", "made"):
            del each[name]
    old = comparison_from_json(value)
    assert old.costs == tuple(dataclasses.replace(c, peak_bytes=0, joules=0.0, precision="", made="") for c in COSTS)
    assert (old.peak_flops, old.prices) == ({}, None)
    assert costs_from_json([{"stage": "training", "device_seconds": 2.0}]) == (Cost("training", device_seconds=2.0),)
