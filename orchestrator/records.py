"""What flows between the stages of a comparison: plain, frozen records that convert to JSON and back."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

UNTRAINED, TEACHER = "untrained", "teacher"  # the rows of encoders that are measured as they come


@dataclass(frozen=True)
class Cost:
    """One entry of the cost ledger: what one stage of one recipe (or of all of them, `recipe=None`) used.

    `device_seconds` is wall seconds times the devices held: CPU cores, or GPUs where there are some.
    `flops` are model FLOPs counted from the tokens that went through the encoder, not measured. What recipes share says
    for which kinds of queries it was made: `queries` has those that some recipe learns from, none where it is for all;
    and `made`, the fingerprint of the stage of the store that the cost is of.

    `peak_bytes` is the most memory that a process held, of several the largest; 0 where it is not known. `joules` is
    what the devices drew, all that ran on them included; 0.0 where the machine does not tell. `precision` is that of
    most of the FLOPs ("bf16", "fp32"), empty where it is not known.
    """

    stage: str
    recipe: str | None = None
    trial: str | None = None
    device: str = "cpu"
    devices: int = 1
    device_seconds: float = 0.0
    wall_seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    flops: float = 0.0
    queries: tuple[str, ...] = ()
    peak_bytes: int = 0
    joules: float = 0.0
    precision: str = ""
    made: str = ""


@dataclass(frozen=True)
class Progress:
    """One point of a learning curve. `validation` is nDCG@10 on the validation part, where it was measured."""

    step: int
    examples: int
    device_seconds: float
    loss: float
    validation: float | None = None
    diagnostics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One training run of a recipe with one setting of its knobs.

    `state` is "finished", "stopped" (ended early by the scheduler) or "failed" (diverged, or out of memory: `reason`).
    `validation` is the last validation score. `model` is the folder of the trained encoder, None unless it is finished.
    """

    name: str
    parameters: dict[str, float | int | str]
    state: str
    validation: float
    curve: tuple[Progress, ...]
    costs: tuple[Cost, ...]
    model: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class IndexFigures:
    """What an approximate index does: `recall` is the share of the exact top `depth` that it finds.

    `median_ms` and `p95_ms` are milliseconds of one query searched alone, `queries_per_second` is the rate of all
    queries searched at once; both on `threads` CPU cores. `build_seconds` has training and adding; `bytes` is the size
    of the index as faiss writes it to a file.
    """

    index: str
    depth: int
    recall: float
    median_ms: float
    p95_ms: float
    queries_per_second: float
    build_seconds: float
    bytes: int
    threads: int


@dataclass(frozen=True)
class EncoderFigures:
    """What a query waits for before it is searched: `parameters` of the encoder, and the milliseconds that it takes in
    float32 for one query alone, on `threads` CPU cores or on a GPU.
    """

    parameters: int
    median_ms: float
    p95_ms: float
    threads: int


@dataclass(frozen=True)
class Seeded:
    """What the run that validation chose came to with one of several seeds, on the test split."""

    seed: int
    trial: Trial
    measures: dict[str, float]


@dataclass(frozen=True)
class Result:
    """What one recipe came to: all its trials, the one that validation chose, and its measures on the test split.

    With several seeds the search has the first of them, `seeds` has what each one gave, and `measures` and `per_query`
    are means over them.

    `name` labels the row, `recipe` is the registered recipe. An encoder as it comes has no trials and no winner: the
    one that training starts from ("untrained"), and a teacher that is none of the rows ("teacher").
    `per_query` maps measure → query id → value. `index` has the figures of the index that was searched, None where
    search was exact. `taught` says whether the recipe learns from a teacher, whose cost is the ledger's "teaching";
    `queries` which ones it learns from: "judged", "generated" (whose cost is the ledger's "generation"), or "both".
    `share` is that of the judged training queries that it learns from. Rows that differ in nothing else have the same
    `family`, the name of the one with the largest share; it is empty for a row that is alone.
    """

    name: str
    recipe: str
    parameter_free: bool
    trials: tuple[Trial, ...]
    winner: str | None
    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    index: IndexFigures | None = None
    taught: bool = False
    queries: str = "judged"
    encoder: EncoderFigures | None = None
    share: float = 1.0
    family: str = ""
    seeds: tuple[Seeded, ...] = ()

    def spread(self, measure: str) -> float | None:
        """The standard deviation of a measure over the seeds; None where there is one."""
        return statistics.stdev(each.measures[measure] for each in self.seeds) if self.seeds else None

    @property
    def lesser(self) -> bool:
        """Whether another row is the same with a larger share of the training queries."""
        return self.family not in ("", self.name)

    @property
    def winning_trial(self) -> Trial | None:
        """The trial that validation chose; None for the untrained encoder."""
        return next((trial for trial in self.trials if trial.name == self.winner), None)


@dataclass(frozen=True)
class Difference:
    """A row's first measure less another row's, over `queries` test queries; each query's is a mean over `seeds` seeds.

    `low` and `high` bound the mean with 95 % (bootstrap over queries, and over seeds where there are several); `effect`
    is the mean over the standard deviation (Cohen's d). `t_test` and `randomization` are p-values of the paired tests
    that there is no difference, `equivalence` is that of the two one-sided tests that it is as large as the
    comparison's margin; `…_holm` are the same corrected for the number of pairs of rows.
    """

    row: str
    other: str
    queries: int
    mean: float
    low: float
    high: float
    effect: float
    t_test: float
    t_test_holm: float
    randomization: float
    randomization_holm: float
    equivalence: float
    equivalence_holm: float
    seeds: int = 1


@dataclass(frozen=True)
class Prices:
    """What an hour costs of a CPU core and of a GPU; None of what is not priced."""

    cpu: float | None = None
    cuda: float | None = None
    currency: str = "USD"


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows. `results[0]` is the untrained encoder. `costs` holds the whole ledger.

    `teacher` is the row that teaches the others, if one does. `differences` are those of all pairs of rows, `margin`
    is what does not matter of one, both on the first measure. `query_texts` has the texts of the test queries that the
    report names, by id, cut where they are long. `peak_flops` is what one device does at most by the second, by its
    kind and the precision ("cpu bf16"), as far as that was measured.
    """

    name: str
    fingerprint: str
    collection: str
    documents: int
    train_queries: int
    validation_queries: int
    test_queries: int
    encoder: str
    measures: tuple[str, ...]
    results: tuple[Result, ...]
    costs: tuple[Cost, ...]
    config: str
    environment: dict[str, str]
    generated_queries: int = 0
    teacher: str | None = None
    differences: tuple[Difference, ...] = ()
    margin: float = 0.0
    query_texts: dict[str, str] = field(default_factory=dict)
    peak_flops: dict[str, float] = field(default_factory=dict)
    prices: Prices | None = None


def to_json(record: Any) -> Any:
    """A record as JSON-ready dicts and lists."""
    return dataclasses.asdict(record)


def comparison_from_json(value: dict[str, Any]) -> Comparison:
    """The inverse of `to_json` for a whole comparison."""
    results = tuple(_result_from_json(result) for result in value["results"])
    differences = tuple(Difference(**each) for each in value.get("differences", ()))
    parts = {"measures": tuple(value["measures"]), "results": results, "costs": costs_from_json(value["costs"])}
    prices = Prices(**value["prices"]) if value.get("prices") else None
    return Comparison(**{**value, **parts, "differences": differences, "prices": prices})


def _result_from_json(value: dict[str, Any]) -> Result:
    index, encoder = value.get("index"), value.get("encoder")
    trials = tuple(trial_from_json(trial) for trial in value["trials"])
    figures = {
        "index": IndexFigures(**index) if index else None,
        "encoder": EncoderFigures(**encoder) if encoder else None,
        "seeds": tuple(
            Seeded(**{**seeded, "trial": trial_from_json(seeded["trial"])}) for seeded in value.get("seeds", ())
        ),
    }
    return Result(**{**value, "trials": trials, **figures})


def trial_from_json(value: dict[str, Any]) -> Trial:
    """The inverse of `to_json` for one trial."""
    curve = tuple(Progress(**point) for point in value["curve"])
    return Trial(**{**value, "curve": curve, "costs": costs_from_json(value["costs"])})


def costs_from_json(values: Iterable[dict[str, Any]]) -> tuple[Cost, ...]:
    """Ledger entries from their JSON form."""
    return tuple(Cost(**{**value, "queries": tuple(value.get("queries", ()))}) for value in values)
