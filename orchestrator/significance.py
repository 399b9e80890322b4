"""Whether the difference between two rows is more than chance: paired tests over the test queries, for all pairs.

Smucker et al. 2007 (CIKM) compare the tests for retrieval: the randomization test and the t-test agree, and others do
not. p-values are corrected after Holm for the number of pairs. That two rows are as good as equal is a claim of its own
and has a test of its own: two one-sided t-tests against a margin (TOST, Schuirmann 1987).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data import Store
from data.store import Json
from orchestrator.records import Difference, to_json

VERSION = 1
RESAMPLES = 9_999  # of the randomization test and of the bootstrap
_AT_ONCE = 1 << 22  # numbers that are resampled at a time

Values = npt.NDArray[np.float64]


def differences(
    store: Store,
    evaluations: Mapping[str, str],
    values: Mapping[str, Mapping[str, float]],
    measure: str,
    margin: float,
    on_pair: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Difference, ...]:
    """Those of all pairs of rows on a measure, the later row less the earlier; made once.

    Args:
        evaluations: by row, what the values are known by.
        values: row → query id → value of the measure.
        margin: a difference that does not matter, in units of the measure.
        on_pair: called with (pairs done, pairs in all); many queries take a second or more a pair.
    """
    inputs: dict[str, Json] = {"rows": dict(evaluations), "order": list(values), "measure": measure, "margin": margin}

    def make(partial: Path) -> None:
        made = [to_json(each) for each in _differences(values, margin, on_pair)]
        (partial / "differences.json").write_text(json.dumps(made), encoding="utf-8")

    folder = store.stage("differences", VERSION, inputs).build(make)
    return tuple(Difference(**each) for each in json.loads((folder / "differences.json").read_text(encoding="utf-8")))


def _differences(
    values: Mapping[str, Mapping[str, float]], margin: float, on_pair: Callable[[int, int], None]
) -> list[Difference]:
    """Of fewer than two queries nothing can be said."""
    from statsmodels.stats.multitest import multipletests

    queries = list(next(iter(values.values()), {}))
    rows = {row: np.array([found[query] for query in queries], np.float64) for row, found in values.items()}
    pairs = [(later, earlier) for earlier, later in combinations(rows, 2)]
    if len(queries) < 2 or not pairs:
        return []
    found = []
    for done, (row, other) in enumerate(pairs, 1):
        found.append(_difference(rows[row], rows[other], margin))
        on_pair(done, len(pairs))
    for name in ("t_test", "randomization", "equivalence"):
        corrected = multipletests([each[name] for each in found], method="holm")[1]
        for each, p in zip(found, corrected, strict=True):
            each[f"{name}_holm"] = float(p)
    return [
        Difference(row=row, other=other, queries=len(queries), **each)
        for (row, other), each in zip(pairs, found, strict=True)
    ]


def _difference(left: Values, right: Values, margin: float) -> dict[str, float]:
    from scipy.stats import bootstrap, permutation_test, ttest_rel
    from statsmodels.stats.weightstats import ttost_paired

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
        n_resamples=RESAMPLES,
        batch=batch,
        rng=np.random.default_rng(0),
    )
    interval = bootstrap(
        (d,), np.mean, method="percentile", n_resamples=RESAMPLES, batch=batch, rng=np.random.default_rng(0)
    ).confidence_interval
    return {
        "mean": mean,
        "low": float(interval.low),
        "high": float(interval.high),
        "effect": mean / deviation,
        "t_test": float(ttest_rel(left, right).pvalue),
        "randomization": float(drawn.pvalue),
        "equivalence": float(ttost_paired(left, right, -margin, margin)[0]),
    }
