"""Whether the difference between two rows is more than chance: paired tests over the test queries, for all pairs.

Smucker et al. 2007 (CIKM) compare the tests for retrieval: the randomization test and the t-test agree, and others do
not. p-values are corrected after Holm for the number of pairs. That two rows are as good as equal is a claim of its own
and has a test of its own: two one-sided t-tests against a margin (TOST, Schuirmann 1987).

Where rows were trained with several seeds, a query's value is the mean over these, and the interval is the bootstrap's
over queries and over seeds, both drawn anew and independently (Owen 2007, the pigeonhole bootstrap).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data import Store
from data.store import Json
from orchestrator.records import Difference, to_json

VERSION = 1
RESAMPLES = 9_999  # of the bootstrap, and of the randomization test at least
FOR_A_PAIR = 100  # of the latter, for each pair: its least p-value, corrected for their number, is then 0.02
_AT_ONCE = 1 << 22  # numbers that are resampled at a time

Values = npt.NDArray[np.float64]


def differences(
    store: Store,
    evaluations: Mapping[str, Sequence[str]],
    values: Mapping[str, Sequence[Mapping[str, float]]],
    measure: str,
    margin: float,
    on_pair: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Difference, ...]:
    """Those of all pairs of rows on a measure, the later row less the earlier; made once.

    Args:
        evaluations: by row, what the values of each seed are known by.
        values: row → for each seed, query id → value of the measure; for one seed, or for as many as others have.
        margin: a difference that does not matter, in units of the measure.
        on_pair: called with (pairs done, pairs in all); many queries take a second or more a pair.
    """
    rows: dict[str, Json] = {row: names[0] if len(names) == 1 else list(names) for row, names in evaluations.items()}
    inputs: dict[str, Json] = {"rows": rows, "order": list(values), "measure": measure, "margin": margin}
    if (resamples := _resamples(len(rows))) > RESAMPLES:
        inputs["resamples"] = resamples

    def make(partial: Path) -> None:
        made = [to_json(each) for each in _differences(values, margin, on_pair)]
        (partial / "differences.json").write_text(json.dumps(made), encoding="utf-8")

    folder = store.stage("differences", VERSION, inputs).build(make)
    return tuple(Difference(**each) for each in json.loads((folder / "differences.json").read_text(encoding="utf-8")))


def _resamples(rows: int) -> int:
    """Of the randomization test, by the number of rows."""
    return max(RESAMPLES, FOR_A_PAIR * math.comb(rows, 2))


def _differences(
    values: Mapping[str, Sequence[Mapping[str, float]]], margin: float, on_pair: Callable[[int, int], None]
) -> list[Difference]:
    """Of fewer than two queries nothing can be said."""
    from statsmodels.stats.multitest import multipletests

    queries = list(next(iter(values.values()), [{}])[0])
    rows = {  # each (seeds, queries)
        row: np.array([[found[query] for query in queries] for found in seeds], np.float64)
        for row, seeds in values.items()
    }
    pairs = [(later, earlier) for earlier, later in combinations(rows, 2)]
    if len(queries) < 2 or not pairs:
        return []
    found = []
    for done, (row, other) in enumerate(pairs, 1):
        found.append(_difference(rows[row], rows[other], margin, _resamples(len(rows))))
        on_pair(done, len(pairs))
    for name in ("t_test", "randomization", "equivalence"):
        corrected = multipletests([each[name] for each in found], method="holm")[1]
        for each, p in zip(found, corrected, strict=True):
            each[f"{name}_holm"] = float(p)
    return [
        Difference(row=row, other=other, queries=len(queries), **each, seeds=max(len(rows[row]), len(rows[other])))
        for (row, other), each in zip(pairs, found, strict=True)
    ]


def _difference(of_left: Values, of_right: Values, margin: float, resamples: int) -> dict[str, float]:
    """Of two rows' values, each (S, Q), or (1, Q) for a row that has no seeds; the randomization test draws `resamples`
    times.
    """
    from scipy.stats import bootstrap, permutation_test, ttest_rel
    from statsmodels.stats.weightstats import ttost_paired

    left, right = of_left.mean(axis=0), of_right.mean(axis=0)
    d = left - right
    mean, deviation = float(d.mean()), float(d.std(ddof=1))
    if deviation < 1e-12:  # the same for each query: the tests divide by it
        same = abs(mean) < 1e-12
        p = {"t_test": float(same), "randomization": float(same), "equivalence": float(abs(mean) >= margin)}
        return {"mean": mean, "low": mean, "high": mean, "effect": 0.0, **p}
    batch = max(1, _AT_ONCE // len(d))
    drawn = permutation_test(
        (d,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",  # of one sample: signs are turned
        vectorized=True,
        n_resamples=resamples,
        batch=batch,
        rng=np.random.default_rng(0),
    )
    if max(len(of_left), len(of_right)) > 1:
        low, high = _interval(of_left - of_right)
    else:
        low, high = bootstrap(
            (d,), np.mean, method="percentile", n_resamples=RESAMPLES, batch=batch, rng=np.random.default_rng(0)
        ).confidence_interval
    return {
        "mean": mean,
        "low": float(low),
        "high": float(high),
        "effect": mean / deviation,
        "t_test": float(ttest_rel(left, right).pvalue),
        "randomization": float(drawn.pvalue),
        "equivalence": float(ttost_paired(left, right, -margin, margin)[0]),
    }


def _interval(d: Values) -> tuple[float, float]:
    """The bootstrap's 95 % of the mean of d (S, Q), rows and columns drawn anew and independently."""
    rng, (S, Q) = np.random.default_rng(0), d.shape
    means: list[Values] = []
    for first in range(0, RESAMPLES, batch := max(1, _AT_ONCE // Q)):
        count = min(batch, RESAMPLES - first)
        seeds = rng.multinomial(S, np.full(S, 1 / S), size=count)  # how often each is drawn
        queries = rng.multinomial(Q, np.full(Q, 1 / Q), size=count)
        means.append(((seeds @ d) * queries).sum(axis=1) / (S * Q))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)
