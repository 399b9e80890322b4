"""The differences between rows of a comparison, with bootstrap intervals over the test queries.

    python benchmarks/intervals.py .stillhouse/reports/NAME/comparison.json ROW ROW [ROW …]

prints, for each row and the one named before it, the mean difference of the first measure over the queries, and the
95 % interval of that mean (scipy's percentile bootstrap, 9,999 resamples of the queries).
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from orchestrator.records import Result, comparison_from_json


def difference(later: Result, earlier: Result, measure: str, seed: int = 0) -> tuple[float, float, float]:
    """The mean over queries of later minus earlier, and the ends of its 95 % interval."""
    values = later.per_query[measure], earlier.per_query[measure]
    found = np.array([values[0][query] - values[1][query] for query in values[0]])
    interval = bootstrap((found,), np.mean, method="percentile", rng=np.random.default_rng(seed)).confidence_interval
    return float(found.mean()), float(interval.low), float(interval.high)


def main(file: str, *rows: str) -> None:
    """Print the table."""
    comparison = comparison_from_json(json.loads(Path(file).read_text(encoding="utf-8")))
    results, measure = {result.name: result for result in comparison.results}, comparison.measures[0]
    for earlier, later in pairwise(rows):
        mean, low, high = difference(results[later], results[earlier], measure)
        print(f"{later} - {earlier}  {measure} {mean:+.4f}  [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
