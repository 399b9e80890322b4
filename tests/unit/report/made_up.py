"""A comparison as a run on two CPU cores might end. Nothing in it was measured."""

from orchestrator.records import UNTRAINED, Comparison, Cost, Progress, Result, Trial

CONFIG = """\
name: quickstart
seed: 13
collection: {format: beir, path: examples/scifact, validation: 0.1}
encoder: {model: sentence-transformers/all-MiniLM-L6-v2, pooling: mean, normalize: true, layers: [0, 2, 5]}
negatives: {source: random, per_query: 1}
training: {batch_size: 32, epochs: 2, learning_rate: 2.0e-5, warmup: 0.1, precision: bf16}
recipes:
  - {recipe: static-margin, tune: {search: grid, scheduler: asha}}
  - {recipe: infonce, tune: {search: grid}}
  - arm-adaptive
  - arm-distributed
evaluation: {measures: [nDCG@10, RR@10, R@100], index: Flat}
"""
START = 0.588


def trial(recipe, number, parameters, top, *, steps=8, of=8, rate=7.1, model=True):
    """A run that rises from START towards `top` and is stopped after `steps` of `of` evaluations."""
    points = [(step, START + (top - START) * (1 - 0.55**step) - 0.004 * (step % 3 == 2)) for step in range(steps + 1)]
    curve = tuple(
        Progress(step * 6, step * 192, round(rate * step, 2), round(0.08 * 0.8**step, 5), round(value, 4))
        for step, value in points
    )
    name, seconds = f"{recipe}-{number:02d}", round(rate * steps, 2)
    work = {"examples": steps * 192, "tokens": steps * 41_000, "flops": steps * 2.4e11}
    costs = (
        Cost("training", recipe, name, "cpu", 2, seconds, seconds / 2, **work),
        Cost(
            "validation", recipe, name, "cpu", 2, 3.1 * steps, 1.55 * steps, 81 * steps, 810_000 * steps, 1.1e12 * steps
        ),
    )
    state = "finished" if steps == of else "stopped"
    return Trial(name, parameters, state, curve[-1].validation, curve, costs, f"models/{name}" if model else None)


def result(name, trials, winner, values, parameter_free=False):
    per_query = {"nDCG@10": {"1": values[0], "2": values[0]}}
    measures = dict(zip(("nDCG@10", "RR@10", "R@100"), values, strict=True))
    return Result(name, name, parameter_free, tuple(trials), winner, measures, per_query)


def comparison(rename=None):
    """Five rows; `rename` maps a recipe's name to another."""
    label = {
        name: (rename or {}).get(name, name) for name in ("static-margin", "infonce", "arm-adaptive", "arm-distributed")
    }
    static, nce, adaptive, distributed = label.values()
    tops = [0.604, 0.622, 0.631, 0.624, 0.611, 0.600, 0.584, 0.571, 0.560, 0.549]
    margins = [
        trial(static, i, {"margin": (i + 1) / 10}, top, steps=8 if i in (1, 2, 3) else 2 if i > 6 else 4)
        for i, top in enumerate(tops)
    ]
    temperatures = [
        trial(nce, i, {"temperature": t}, top, rate=7.4)
        for i, (t, top) in enumerate(
            zip((0.01, 0.02, 0.05, 0.1, 0.2), (0.628, 0.641, 0.652, 0.635, 0.601), strict=True)
        )
    ]
    results = (
        result(UNTRAINED, [], None, (0.6451, 0.6084, 0.9250), parameter_free=True),
        result(static, margins, f"{static}-02", (0.6602, 0.6247, 0.9317)),
        result(nce, temperatures, f"{nce}-02", (0.6893, 0.6561, 0.9467)),
        result(adaptive, [trial(adaptive, 0, {}, 0.640, rate=7.9)], f"{adaptive}-00", (0.6684, 0.6330, 0.9400), True),
        result(
            distributed,
            [trial(distributed, 0, {}, 0.634, rate=7.2)],
            f"{distributed}-00",
            (0.6631, 0.6271, 0.9367),
            True,
        ),
    )
    shared = (
        Cost("preparing", None, None, "cpu", 2, 14.2, 7.1, 6_292, 1_310_000, 0.0),
        Cost("negatives", None, None, "cpu", 1, 0.6, 0.6, 809, 0, 0.0),
    )
    tests = tuple(Cost("evaluation", r.name, r.winner, "cpu", 2, 96.4, 48.2, 5_483, 1_290_000, 1.4e13) for r in results)
    costs = shared + tuple(cost for r in results for t in r.trials for cost in t.costs) + tests
    return Comparison(
        name="quickstart",
        fingerprint="5f1c0e9a7b23d481",
        collection="scifact",
        documents=5183,
        train_queries=728,
        validation_queries=81,
        test_queries=300,
        encoder="sentence-transformers/all-MiniLM-L6-v2",
        measures=("nDCG@10", "RR@10", "R@100"),
        results=results,
        costs=costs,
        config=CONFIG,
        environment={
            "python": "3.11.9",
            "torch": "2.13.0",
            "ray": "2.60.0",
            "device": "2 CPU cores",
            "platform": "Linux x86_64",
        },
    )
