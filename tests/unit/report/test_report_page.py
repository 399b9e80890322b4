"""What is pinned: the page parses and closes what it opens, names are escaped everywhere, nothing is fetched, every
plot is there with words for it, labels do not cover each other, colours can be seen, and the same bytes are written
twice."""

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import made_up
import made_up_whole
import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from orchestrator import report
from orchestrator.records import TEACHER, IndexFigures, comparison_from_json, to_json
from orchestrator.report import html, markdown, plots, plots_detail, svg, wins

NASTY = '<b>&"'
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags that are open, all tags seen with their attributes, and the text."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_it_parses_and_closes_what_it_opens(comparison):
    page = Page(html.page(comparison))
    assert page.open == []
    # Results, speed-ups, wins and losses, of each of four pairs the queries, the ledger.
    classes = [None, "detail of-rows", "detail of-rows", *["detail of-query"] * 4, None]
    assert [table.get("class") for table in page.all("table")] == classes
    assert all(head.get("scope") in {"col", "row", "rowgroup"} for head in page.all("th"))
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def test_what_is_shown(comparison):
    text = " ".join(" ".join(Page(html.page(comparison)).text).split())
    for words in (
        "quickstart",
        "scifact: 5,183 documents, 728 training, 81 validation and 300 test queries.",
        "arm-adaptive needs 4.8x less device time than infonce (tuned, 5 trials) but is 0.021 nDCG@10 behind.",
        "One seed; no test of significance is made",
        "infonce: 4.8x",
        "temperature 0.05",
        "7 stopped",
        "Seed 13",
        "5f1c0e9a7b23d481",
        "torch 2.13.0",
        "stillhouse compare quickstart.yaml",
        "layers: [0, 2, 5]",
    ):
        assert words in text
    # The ledger's first line and its total, by hand: 14.2 + 0.6 + 5 x 96.4 + the runs.
    assert "preparing 14.2 7.10 6,292 1,310,000 0.0" in text
    runs = sum(cost.device_seconds for cost in comparison.costs if cost.stage in ("training", "validation"))
    assert f"total {14.2 + 0.6 + 482 + runs:,.0f}" in text


def test_every_plot_is_there_with_words_for_it(comparison):
    source = html.page(comparison)
    labels = [tag["aria-label"] for tag in Page(source).all("div") if tag.get("role") == "img"]
    assert [label.split(":")[0] for label in labels] == [
        "nDCG@10 on the test queries against device seconds of all runs",
        "Device seconds of the other over those of the parameter-free recipe",
        "Difference in nDCG@10 on each test query, arm-adaptive less static-margin",
        "Difference in nDCG@10 on each test query, arm-adaptive less infonce",
        "Difference in nDCG@10 on each test query, arm-distributed less static-margin",
        "Difference in nDCG@10 on each test query, arm-distributed less infonce",
        "Validation nDCG@10 against device seconds of a run, the chosen run of each recipe",
        "Trials of static-margin, margin against validation nDCG@10",
        "Trials of infonce, temperature against validation nDCG@10",
    ]
    assert "infonce 0.6893 at 420 s" in labels[0]
    assert "arm-adaptive 4.8x less than infonce" in labels[1]
    assert "arm-adaptive less infonce: better on 0, as good on 0, worse on 2" in labels[3]
    assert labels[7].count("stopped early") == 7
    assert source.count("<figure>") == 9
    assert source.count("<svg ") == 9 + 4  # and a key for each trained recipe


@pytest.fixture(scope="module")
def whole():
    made = made_up_whole.comparison()
    return made, html.page(made)


def test_a_page_with_all_there_is(whole):
    source = whole[1]
    page = Page(source)
    assert page.open == []
    titles = re.findall('<h2 id="([a-z]*)"', source)
    sections = [
        "results",
        "cost",
        "accountings",
        "differences",
        "wins",
        "shares",
        "encoders",
        "training",
        "ledger",
        "run",
    ]
    assert titles == sections
    assert [link["href"] for link in page.all("a")] == [f"#{name}" for name in sections]
    assert set(re.findall(r'href="#([^"]*)"', source)) <= set(re.findall(r'\bid="([^"]*)"', source))
    labels = [tag["aria-label"] for tag in page.all("div") if tag.get("role") == "img"]
    assert all(labels)
    assert len(labels) == source.count("<figure>") == source.count("<figcaption>") == 15
    assert not {"script", "link", "img"} & {tag for tag, _ in page.tags}
    text = " ".join(" ".join(page.text).split())
    assert "arm-adaptive as good as embed-distill not reached ≤ 10% … not reached 100% 0.6714" in text
    assert text.count("few trials say little") == 1
    assert "The searches of rows that learn from a smaller share" in text
    assert "3 more" in text  # of the sentences


def test_the_queries_are_shown_with_their_texts_whatever_is_in_them(whole):
    comparison, source = whole
    (pair,) = (each for each in wins.pairs(comparison) if (each.row, each.other) == ("arm-adaptive", "infonce"))
    text = " ".join(" ".join(Page(source).text).split())
    for query in pair.greatest:
        words = f"{query.id} {comparison.query_texts[query.id]} {query.row:.4f} {query.other:.4f}"
        assert " ".join(words.split()) in text
    assert "insulin <resistance>" in text
    assert "<resistance>" not in source
    page = markdown.page(comparison)
    assert "insulin &lt;resistance&gt;" in page
    assert "statin\\_use\\*" in page
    first = pair.greatest[0]
    assert f"| {first.id}: " in page
    counts = f"{len(pair.wins)} | {pair.ties} | {len(pair.losses)}"
    assert f"| arm-adaptive − infonce | {counts} | +0.0162 |" in page
    assert re.search(r"^\| temperature \| \d+% \|$", page, flags=re.M)


def test_rows_that_differ_in_their_share_look_alike_and_are_not_raced(whole):
    comparison, source = whole
    alike = {plots.slot(comparison, name) for name in ("arm-adaptive", "arm-adaptive-half", "arm-adaptive-tenth")}
    assert len(alike) == 1
    assert plots.slot(comparison, "arm-generated") not in alike
    assert "arm-adaptive-half against infonce-half" in source
    assert "arm-adaptive-half against infonce<" not in source
    assert "arm-adaptive needs 4.8x less device time than infonce (" in source
    assert "than infonce-tenth (tuned, 5 trials) and" in source  # of the same share


def test_an_encoder_that_is_not_trained_is_a_dashed_line_with_its_name(whole):
    drawn = plots.quality_and_cost(whole[0])
    assert drawn.count("stroke-dasharray") == 2
    assert f">{TEACHER}</text>" in drawn
    assert drawn.count(">untrained</text>") == 1


def test_the_plots_below_the_table_hold_what_they_say(whole):
    comparison = whole[0]
    shares, sizes = plots_detail.quality_and_share(comparison), plots_detail.quality_and_size(comparison)
    assert all(f">{tick}</text>" in shares for tick in ("10%", "50%", "100%"))
    assert all(f">{name}</text>" in sizes for name in ("teacher", "untrained", "embed-distill", "arm-adaptive"))
    assert ">arm-adaptive-tenth</text>" not in sizes
    alike = [dataclasses.replace(each, encoder=comparison.results[0].encoder) for each in comparison.results]
    assert plots_detail.quality_and_size(dataclasses.replace(comparison, results=tuple(alike))) is None
    assert plots_detail.quality_and_share(made_up.comparison()) is None


def test_of_many_queries_some_are_drawn(comparison):
    queries = tuple(wins.Query(str(number), 1 - number / 5000, 0.0) for number in range(5000))
    drawn = plots_detail.waterfall(comparison, wins.Pair("infonce", "arm-adaptive", queries), 1.0)
    assert len(drawn) < 40_000
    assert ">infonce better: 5,000</text>" in drawn
    assert ">5,000 test queries, sorted</text>" in drawn


def test_a_comparison_of_before_is_read_and_shown(whole):
    value = json.loads(json.dumps(to_json(whole[0])))
    del value["query_texts"]
    for result in value["results"]:
        del result["share"], result["family"]
    old = comparison_from_json(value)
    assert old.query_texts == {}
    assert {(result.share, result.family) for result in old.results} == {(1.0, "")}
    source = html.page(old)
    assert 'id="wins"' in source
    assert 'id="shares"' not in source


def test_plots_hold_what_they_say(comparison):
    plane, speed, curves = (
        plots.quality_and_cost(comparison),
        plots.speed_ups(comparison),
        plots.learning_curves(comparison),
    )
    for name in ("static-margin", "infonce", "arm-adaptive", "arm-distributed"):
        assert f">{name}</text>" in plane
        assert f">{name}</text>" in curves
    assert ">untrained</text>" in plane
    assert "stroke-dasharray" in plane
    assert ">4.8x · −0.021 nDCG@10</text>" in speed
    assert ">arm-adaptive against infonce</text>" in speed
    assert curves.count("stroke-opacity: 0.3") == 9 + 4  # the trials that were not chosen
    trials = plots.knob_trials(comparison, comparison.results[1], "margin")
    assert trials.count(">chosen</text>") == 1


def test_a_name_is_escaped_everywhere():
    comparison = made_up.comparison({"infonce": NASTY, "arm-adaptive": "a$b_c$d"})
    comparison = dataclasses.replace(
        comparison, name=NASTY, collection=NASTY, encoder=NASTY, config=NASTY, environment={NASTY: NASTY}
    )
    source = html.page(comparison)
    page = Page(source)
    assert page.open == []
    assert NASTY not in source
    assert [tag for tag, _ in page.tags].count("b") == Page(html.page(made_up.comparison())).tags.count(("b", {}))
    text = " ".join(page.text)
    assert text.count(NASTY) >= 12
    assert "a$b_c$d" in text  # in the plots too: not read as a formula
    assert any(NASTY in (attributes.get("aria-label") or "") for _, attributes in page.tags)


def test_nothing_is_fetched_and_nothing_runs(comparison):
    source = html.page(comparison)
    assert re.findall(r"\w+://[^\s\"'<]*", source.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "")) == []
    page = Page(source)
    assert {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags} == set()
    assert "@import" not in source
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("xlink:href") or "#").startswith("#")
        assert "src" not in attributes


def test_references_inside_the_page_resolve_and_mean_one_thing(comparison):
    source = html.page(comparison)
    names = re.findall(r'\bid="([^"]*)"', source)
    assert len(names) == len(set(names))
    wanted = re.findall(r'xlink:href="#([^"]*)"', source) + re.findall(r"url\(#([^)]*)\)", source)
    wanted += re.findall(r'aria-labelledby="([^"]*)"', source)
    wanted += re.findall(r'href="#([^"]*)"', source)
    assert set(wanted) <= set(names)


def test_colours_come_from_the_page_and_can_be_seen(comparison):
    source = html.page(comparison)
    drawings = "".join(re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", drawings)
    assert "font-family" not in drawings
    papers = re.findall(r"--paper: (#[0-9a-f]{6})", source)
    assert len(papers) == 2
    for colours in svg.PALETTE:
        for colour, paper in zip(colours, papers, strict=True):
            assert contrast(colour, paper) >= 3
    inks, softs = re.findall(r"--ink: (#[0-9a-f]{6})", source), re.findall(r"--soft: (#[0-9a-f]{6})", source)
    for ink, soft, paper in zip(inks, softs, papers, strict=True):
        assert contrast(ink, paper) >= 7
        assert contrast(soft, paper) >= 4.5


def contrast(one, other):
    """WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_labels_do_not_cover_each_other_where_points_crowd():
    points = [(100 + 4 * (i % 3), 0.6 + 0.004 * (i // 3)) for i in range(7)]
    names = [f"recipe-number-{i}" for i in range(7)]
    figure = Figure(figsize=(5.6, 3.7), dpi=72, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.draw_without_rendering()
    axes.set_xscale("log")
    plots.limits(axes, points, [0.59])
    svg.label_points(axes, points, names, list(range(7)), [0.59])
    texts = [child for child in axes.get_children() if isinstance(child, Annotation)]
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in texts]
    assert [text.get_text() for text in texts] == names
    assert all(svg.overlap(left, right) == 0 for left, right in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(svg.overlap(box, frame) == pytest.approx(box.width * box.height) for box in boxes)


def test_a_comparison_of_the_untrained_encoder_alone(comparison):
    alone = dataclasses.replace(comparison, results=comparison.results[:1], costs=())
    page = Page(html.page(alone))
    assert page.open == []
    assert page.all("figure") == []


def test_words_as_knobs_and_scores_that_are_not_numbers(comparison):
    odd = comparison.results[2]
    settings = zip(("rows", "columns", "rows", "none", "none"), (0.1, 0.2, 0.3, 0.2, float("nan")), strict=True)
    trials = tuple(
        dataclasses.replace(trial, parameters={"grid": grid}, validation=score)
        for trial, (grid, score) in zip(odd.trials, settings, strict=True)
    )
    drawn = plots.knob_trials(comparison, dataclasses.replace(odd, trials=trials), "grid")
    assert all(f">{word}</text>" in drawn for word in ("rows", "columns", "none"))


def test_more_recipes_than_colours(comparison):
    many = [dataclasses.replace(comparison.results[3], name=f"arm-{i}", recipe="arm-adaptive") for i in range(11)]
    crowd = dataclasses.replace(comparison, results=(comparison.results[0], *many))
    assert Page(html.page(crowd)).open == []
    assert plots.slot(crowd, "arm-0") == plots.slot(crowd, f"arm-{len(svg.PALETTE)}") == 0


def test_writing_twice_gives_the_same_bytes_whatever_the_style_of_the_day(comparison, tmp_path):
    path = report.write(comparison, tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["comparison.json", "report.html", "report.md", "report.tex"]  # and nothing half-written
    before = {name: (path.parent / name).read_bytes() for name in names}
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30.0, "svg.fonttype": "path"}):
        report.write(comparison, path.parent)
        assert matplotlib.rcParams["font.size"] == 30.0
    assert {name: (path.parent / name).read_bytes() for name in names} == before


def test_the_comparison_comes_back_from_its_file(comparison, tmp_path):
    folder = report.write(comparison, tmp_path).parent
    assert comparison_from_json(json.loads((folder / "comparison.json").read_text(encoding="utf-8"))) == comparison


def test_the_figures_of_an_index(comparison, tmp_path):
    figures = IndexFigures("HNSW32", 100, 0.98765, 0.4321, 0.61, 5200.4, 3.14, 12_345_678, threads=1)
    results = (dataclasses.replace(comparison.results[0], index=figures), *comparison.results[1:])
    indexed = dataclasses.replace(comparison, results=results)
    page = Page(html.page(indexed))
    assert page.open == []
    assert len(page.all("table")) == 9
    text = " ".join(" ".join(page.text).split())
    assert "0.9877 0.43 0.61 5,200 3.14 12.3" in text
    assert "Searched with the index HNSW32 on 1 CPU core. Recall is the share of the exact top 100" in text
    folder = report.write(indexed, tmp_path).parent
    assert comparison_from_json(json.loads((folder / "comparison.json").read_text(encoding="utf-8"))) == indexed


def test_a_failed_write_leaves_the_old_file(comparison, tmp_path, monkeypatch):
    old = report.write(comparison, tmp_path).read_bytes()

    def full(self, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        report.write(dataclasses.replace(comparison, name="other"), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "comparison.json",
        "report.html",
        "report.md",
        "report.tex",
    ]
