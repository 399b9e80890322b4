"""A comparison with all that a page can show: shares of the training queries, encoders of three sizes, a teacher, a
search over two knobs, generated queries, tests of differences. Nothing in it was measured.
"""

import dataclasses
import itertools
import math
import random

import made_up

from orchestrator.records import TEACHER, UNTRAINED, Comparison, Cost, Difference, EncoderFigures, Result, Trial
from orchestrator.report import wins

QUERIES = 300
GAINS = [0.0, 0.0, 0.2891, 0.3155, 0.3562, 0.3869, 0.4307, 0.5, 0.6309, 0.6309, 1.0, 1.0, 1.0]  # nDCG of one document
SIZES = {"small": (11_200_000, 1.52), "whole": (22_700_000, 2.94), "teacher": (109_500_000, 11.8)}
WORDS = [
    "what is the effect of {} on {}",
    "{} deficiency increases the risk of {} in adults",
    "how does {} regulate {} in patients with chronic kidney disease",
    "{} is associated with lower {} after eight weeks of treatment",
    "does {} inhibit {}",
]
THINGS = [
    "vitamin D",
    "statins",
    "p53",
    "aspirin",
    "insulin <resistance>",
    "gut microbiota",
    "IL-6 & TNF",
    "statin_use*",
]
#          name                    recipe            free   quality  size      share family          taught queries
ROWS = (
    ("infonce", "infonce", False, 0.652, "small", 1.0, "infonce", False, "judged"),
    ("infonce-half", "infonce", False, 0.634, "small", 0.5, "infonce", False, "judged"),
    ("infonce-tenth", "infonce", False, 0.577, "small", 0.1, "infonce", False, "judged"),
    ("score-kl", "score-kl", False, 0.664, "small", 1.0, "", True, "judged"),
    ("embed-distill", "embed-distill", False, 0.671, "whole", 1.0, "", True, "judged"),
    ("arm-adaptive", "arm-adaptive", True, 0.668, "small", 1.0, "arm-adaptive", False, "judged"),
    ("arm-adaptive-half", "arm-adaptive", True, 0.659, "small", 0.5, "arm-adaptive", False, "judged"),
    ("arm-adaptive-tenth", "arm-adaptive", True, 0.631, "small", 0.1, "arm-adaptive", False, "judged"),
    ("arm-generated", "arm-adaptive", True, 0.646, "small", 1.0, "", False, "both"),
)


def comparison() -> Comparison:
    draw = random.Random(5)
    hard = [draw.choice(GAINS) for _ in range(QUERIES)]
    results = [
        _result(draw, UNTRAINED, UNTRAINED, True, 0.588, "whole", hard),
        _result(draw, TEACHER, TEACHER, True, 0.702, "teacher", hard),
    ]
    for name, recipe, free, quality, size, share, family, taught, queries in ROWS:
        row = _result(draw, name, recipe, free, quality, size, hard, _trials(name, recipe, share, quality))
        results.append(dataclasses.replace(row, share=share, family=family, taught=taught, queries=queries))
    costs = [
        Cost("tokenizing", None, None, "cpu", 2, 14.2, 7.1, 6_292, 1_310_000, 0.0),
        Cost("teaching", None, None, "cpu", 2, 188.0, 94.0, 5_992, 1_290_000, 2.3e14),
        Cost("generation", None, None, "cpu", 2, 61.0, 30.5, 5_183, 1_100_000, 4e13, queries=("both",)),
        *(cost for result in results for trial in result.trials for cost in trial.costs),
        *(Cost("evaluation", r.name, r.winner, "cpu", 2, 96.4, 48.2, 5_483, 1_290_000, 1.4e13) for r in results),
    ]
    made = dataclasses.replace(
        made_up.comparison(),
        name="all-there-is",
        results=tuple(results),
        costs=tuple(costs),
        generated_queries=5_183,
        differences=tuple(_differences(results)),
        margin=0.01,
    )
    texts = {
        f"q{n}": random.Random(n).choice(WORDS).format(*random.Random(n).sample(THINGS, 2)) for n in range(QUERIES)
    }
    return dataclasses.replace(
        made, query_texts={id_: wins.cut(texts[id_] * (1 + 9 * (id_ == "q7"))) for id_ in wins.named(made)}
    )


def _result(draw, name, recipe, free, quality, size, hard, trials=()):
    values = [draw.choice(GAINS) if draw.random() < 0.4 else value for value in hard]
    while abs(quality - sum(values) / QUERIES) > 0.001:  # some queries get better, or worse, until the mean is right
        query, up = draw.randrange(QUERIES), quality > sum(values) / QUERIES
        nearer = [gain for gain in GAINS if (gain > values[query] if up else gain < values[query])]
        values[query] = draw.choice(nearer) if nearer else values[query]
    mean = sum(values) / len(values)
    parameters, ms = SIZES[size]
    figures = EncoderFigures(parameters, ms * draw.uniform(0.97, 1.03), 1.6 * ms, 2)
    per_query = {"nDCG@10": {f"q{number}": value for number, value in enumerate(values)}}
    winner = max(trials, key=lambda trial: trial.validation).name if trials else None
    measures = {"nDCG@10": mean, "RR@10": mean - 0.034, "R@100": 0.93 + mean / 30}
    return Result(name, recipe, free, tuple(trials), winner, measures, per_query, encoder=figures)


def _trials(name: str, recipe: str, share: float, quality: float) -> list[Trial]:
    if recipe == "infonce":
        tops = zip((0.01, 0.02, 0.05, 0.1, 0.2), (0.62, 0.64, 0.652, 0.635, 0.6), strict=True)
        return [made_up.trial(name, i, {"temperature": t}, top, rate=7.4 * share) for i, (t, top) in enumerate(tops)]
    if recipe == "score-kl":
        grid = itertools.product((0.02, 0.05, 0.1, 0.5), (0.25, 0.5, 1.0, 2.0))
        return [
            made_up.trial(
                name,
                i,
                {"temperature": t, "weight": w},
                0.65 - 0.03 * abs(math.log10(t / 0.05)) - 0.008 * abs(math.log2(w)),
                steps=8 if i % 3 == 0 else 3,
            )
            for i, (t, w) in enumerate(grid)
        ]
    if recipe == "embed-distill":
        return [made_up.trial(name, 0, {"infonce.temperature": 0.05}, quality, rate=12.1)]
    return [made_up.trial(name, 0, {}, quality, rate=7.9 * share)]


def _differences(results):
    for later, earlier in ((j, i) for i, j in itertools.combinations(range(len(results)), 2)):
        row, other = results[later], results[earlier]
        mean = row.measures["nDCG@10"] - other.measures["nDCG@10"]
        p = min(1.0, math.exp(-abs(mean) / 0.008) * 1.5)
        equal = 0.01 if abs(mean) < 0.002 else 0.9
        yield Difference(
            row.name, other.name, QUERIES, mean, mean - 0.012, mean + 0.012, 4 * mean, p, p, p, p, equal, equal
        )
