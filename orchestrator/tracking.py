"""MLflow: a parent run for the comparison, a child for each recipe, a grandchild for each trial.

What MLflow shows is a copy: the truth is in the store. Every run is known by the fingerprint of what it logs and every
curve goes on after the last step that MLflow has, so the same thing is never logged twice, by whatever kill or restart;
and where the server cannot be reached, the comparison goes on and a later call sends what is missing.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

from data import UserError
from orchestrator.records import Comparison, Cost, Progress, Result, Trial
from orchestrator.report.ledger import money, utilisation

log = logging.getLogger(__name__)

FINGERPRINT = "stillhouse.fingerprint"
PARENT = "mlflow.parentRunId"
SCHEMES = ("sqlite:", "postgresql", "mysql", "mssql", "http:", "https:", "databricks")
RETRY_SECONDS = 60.0  # how long an unreachable server is left alone
LIVE_SECONDS = 5.0  # between two deliveries of what running trials reported: a request each, whatever their pace
BATCH = 900  # MLflow takes at most 1000 metrics at once
PAGE = 1000  # runs that are asked for at once
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}  # of a trial's state

Curve = list[Progress]


class Tracker:
    """One comparison's runs in MLflow. No method raises when the server is lost; `lost` then tells why."""

    def __init__(self, uri: str, experiment: str) -> None:
        check_uri(uri)
        self._uri, self._experiment_name = uri, experiment
        self._client: Any = None
        self._experiment_id = ""
        self._found: set[str] = set()  # comparisons whose runs in MLflow are in `_runs`
        self._runs: dict[str, tuple[str, bool]] = {}  # fingerprint → id, and whether it is finished
        self._last_steps: dict[str, int] = {}
        self._waiting: dict[tuple[str, str], Curve] = {}
        self._sent_at = self._lost_at = float("-inf")
        self.lost: str | None = None

    def publish_points(self, comparison: tuple[str, str], row: str, trial: str, points: Sequence[Progress]) -> None:
        """Add to a trial's learning curve, live; what does not arrive is sent with the whole at the end.

        Args:
            comparison: its fingerprint and its name.
        """
        self._waiting.setdefault((row, trial), []).extend(points)
        self.deliver(comparison, LIVE_SECONDS)

    def deliver(self, comparison: tuple[str, str], every: float = 0.0) -> None:
        """Send the points that wait, unless that was done less than `every` seconds ago."""

        def send() -> None:
            fingerprint, name = comparison
            parent, _ = self._run(fingerprint, name, (), None)
            for (row, trial), points in waiting.items():
                child, _ = self._run(fingerprint, row, (row,), parent)
                run, _ = self._run(fingerprint, trial, (row, trial), child)
                self._log(run, {"stillhouse.kind": "trial"}, curve=points)

        now = time.monotonic()
        if self._waiting and now - self._sent_at >= every and now - self._lost_at >= RETRY_SECONDS:
            waiting, self._waiting = self._waiting, {}
            self._guard(send)
            self._sent_at = time.monotonic()

    def publish(self, comparison: Comparison, folder: Path, runs: Mapping[str, Path]) -> bool:
        """Bring MLflow up to date with a finished comparison; False if it could not be reached.

        Args:
            folder: the report's files, which become artifacts of the parent.
            runs: row → the folder with its TREC run and per-query values.
        """
        if self._client is None and is_finished(self._uri, self._experiment_name, comparison.fingerprint):
            return True
        return self._guard(lambda: self._publish(comparison, folder, runs))

    def _publish(self, comparison: Comparison, folder: Path, runs: Mapping[str, Path]) -> None:
        parent, finished = self._run(comparison.fingerprint, comparison.name, (), None)
        if finished:
            return
        for result in comparison.results:
            child, child_finished = self._run(comparison.fingerprint, result.name, (result.name,), parent)
            for trial in (*result.trials, *(seeded.trial for seeded in result.seeds[1:])):
                names = result.name, trial.name
                run, trial_finished = self._run(comparison.fingerprint, trial.name, names, child)
                if not trial_finished:
                    tags, values = _trial_tags(result, trial), _cost_metrics(comparison, trial.costs)
                    self._log(run, tags, params=trial.parameters, values=values, curve=trial.curve)
                    self._client.set_terminated(run, STATUS[trial.state])
            if not child_finished:
                self._log_row(child, comparison, result, runs[result.name])
        params = {"collection": comparison.collection, "encoder": comparison.encoder}
        self._log(parent, _parent_tags(comparison), params=params, values=_cost_metrics(comparison, comparison.costs))
        self._client.log_artifacts(parent, str(folder))
        self._client.set_terminated(parent, "FINISHED")

    def _log_row(self, run: str, comparison: Comparison, result: Result, folder: Path) -> None:
        winner = result.winning_trial
        params = {"recipe": result.recipe, **(winner.parameters if winner else {})}
        values = {f"test/{metric_name(measure)}": value for measure, value in result.measures.items()}
        if result.seeds:
            values |= {f"test_sd/{metric_name(measure)}": result.spread(measure) or 0.0 for measure in result.measures}
        values |= _cost_metrics(comparison, (cost for cost in comparison.costs if cost.recipe == result.name))
        if result.index is not None:
            params["index"] = result.index.index
            for figure in ("recall", "median_ms", "p95_ms", "queries_per_second", "build_seconds", "bytes"):
                values[f"index/{figure}"] = getattr(result.index, figure)
        if result.encoder is not None:
            for figure in ("parameters", "median_ms", "p95_ms"):
                values[f"encoder/{figure}"] = getattr(result.encoder, figure)
        if winner:
            values["validation/best"] = winner.validation
        tags, curve = _row_tags(comparison, result), winner.curve if winner else ()
        self._log(run, tags, params=params, values=values, curve=curve)
        self._client.log_artifacts(run, str(folder))
        self._client.set_terminated(run, "FINISHED")

    def _run(self, comparison: str, name: str, within: Sequence[str], parent: str | None) -> tuple[str, bool]:
        """The id of a comparison's run, of its row's or of its trial's, and whether it is finished; made if it is new.

        Args:
            comparison: its fingerprint. The same trial in two comparisons has a run in each.
            within: the names of the row and of the trial, as far as the run is within these.
        """
        self._connect()
        if comparison not in self._found:
            self._find(comparison)
        fingerprint = "/".join((comparison, *within))
        if fingerprint not in self._runs:
            tags = {FINGERPRINT: fingerprint} | ({PARENT: parent} if parent else {})
            run = self._client.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id
            self._runs[fingerprint], self._last_steps[run] = (run, False), -1
        return self._runs[fingerprint]

    def _find(self, comparison: str) -> None:
        """Ask for all runs of a comparison at once."""
        page, wanted = None, f"tags.`{FINGERPRINT}` LIKE '{comparison}%'"
        while True:
            found = self._client.search_runs([self._experiment_id], wanted, max_results=PAGE, page_token=page)
            for run in found:
                finished = run.info.status in STATUS.values()
                self._runs.setdefault(run.data.tags[FINGERPRINT], (run.info.run_id, finished))
            page = found.token
            if not page:
                break
        self._found.add(comparison)

    def _log(
        self,
        run: str,
        tags: Mapping[str, str],
        *,
        params: Mapping[str, Any] | None = None,
        values: Mapping[str, float] | None = None,
        curve: Sequence[Progress] = (),
    ) -> None:
        """All that is to be said of a run, in as few requests as MLflow takes; of a curve what it does not have yet."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, 0) for key, value in (values or {}).items()]
        last = self._last_step(run) if curve else -1
        for point in curve:
            if point.step > last:
                metrics += [Metric(key, value, now, point.step) for key, value in _of_point(point).items()]
        rest = {
            "params": [Param(key, str(value)) for key, value in (params or {}).items()],
            "tags": [RunTag(key, value) for key, value in tags.items()],
        }
        known = self._last_steps.pop(run, -1)  # forgotten while it is uncertain: asked again after a failure
        for part in _parts(metrics):
            self._client.log_batch(run, metrics=part, **rest)
            rest = {}
        self._last_steps[run] = max(known, curve[-1].step) if curve else known

    def _last_step(self, run: str) -> int:
        """The last step of the curve that MLflow holds, -1 if there is none; asked once a run."""
        if run not in self._last_steps:
            history = self._client.get_metric_history(run, "train/loss")
            self._last_steps[run] = max((metric.step for metric in history), default=-1)
        return self._last_steps[run]

    def _connect(self) -> None:
        if self._client is not None:
            return
        # The defaults wait for minutes where a server is down; ours is asked again later.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        found = client.get_experiment_by_name(self._experiment_name)
        self._experiment_id = found.experiment_id if found else client.create_experiment(self._experiment_name)
        self._client = client

    @staticmethod
    def import_mlflow() -> None:
        """Import MLflow. Tune does so too: two threads that are at it at once fail at each other's half of it."""
        import mlflow.exceptions  # noqa: F401

    def _guard(self, action: Callable[[], None]) -> bool:
        """Run an action; where MLflow cannot be reached say so once, and go on."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            action()
        except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
            self._lost_at = time.monotonic()
            if self.lost is None:
                log.warning("MLflow at %s cannot be reached; its values wait in the store: %s", self._uri, error)
            self.lost = str(error)
            self._found.clear()  # a run may have been made and the answer lost
            return False
        self.lost = None
        return True


def check_uri(uri: str) -> None:
    """Raises UserError for a tracking URI that MLflow has no store for."""
    if not uri.startswith(SCHEMES):
        raise UserError(
            f'"{uri}" is no MLflow tracking URI',
            where="tracking.uri",
            mend="Use sqlite:///FILE.db or http://HOST:PORT.",
        )


def metric_name(name: str) -> str:
    """A name that MLflow takes: `nDCG@10` becomes `nDCG_at_10`."""
    return name.replace("@", "_at_").replace("(", "_").replace(")", "").replace("=", "_").replace(",", "_")


def is_finished(uri: str, experiment: str, fingerprint: str) -> bool:
    """Whether a sqlite database of MLflow's holds this run as finished, asked without MLflow: its import takes 2 s.

    False where that cannot be told, be it for a server, for no database or for one of another version.
    """
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not file.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute(_FINISHED, (FINGERPRINT, fingerprint, experiment)).fetchone()
    except sqlite3.Error:
        return False
    return found is not None


_FINISHED = """
SELECT 1 FROM tags JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id)
WHERE tags.key = ? AND tags.value = ? AND experiments.name = ? AND runs.status = 'FINISHED'
AND runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'
"""


def _of_point(point: Progress) -> dict[str, float]:
    """A point of a learning curve by the names of its metrics."""
    values = {"train/loss": point.loss, "train/device_seconds": point.device_seconds}
    values |= {f"train/{metric_name(name)}": value for name, value in point.diagnostics.items()}
    if point.validation is not None:
        values["validation/nDCG_at_10"] = point.validation
    return values


def _parts(metrics: list[Any]) -> Iterator[list[Any]]:
    """Metrics in parts of at most `BATCH`, those of one step together; one empty part if there are none."""
    part: list[Any] = []
    for _, of_step in groupby(metrics, key=lambda metric: metric.step):
        step = list(of_step)
        if len(part) + len(step) > BATCH:
            yield part
            part = []
        part += step
    yield part


def _trial_tags(result: Result, trial: Trial) -> dict[str, str]:
    tags = {"stillhouse.kind": "trial", "stillhouse.recipe": result.recipe, "stillhouse.state": trial.state}
    return {**tags, "stillhouse.reason": trial.reason} if trial.reason else tags


def _parent_tags(comparison: Comparison) -> dict[str, str]:
    tags = {"stillhouse.kind": "comparison", "stillhouse.collection": comparison.collection}
    return tags | {f"stillhouse.{key}": value for key, value in comparison.environment.items()}


def _row_tags(comparison: Comparison, result: Result) -> dict[str, str]:
    return {
        "stillhouse.kind": "recipe",
        "stillhouse.recipe": result.recipe,
        "stillhouse.parameter_free": str(result.parameter_free).lower(),
        "stillhouse.queries": result.queries,
        "stillhouse.collection": comparison.collection,
        "stillhouse.encoder": comparison.encoder,
    }


def _cost_metrics(comparison: Comparison, costs: Iterable[Cost]) -> dict[str, float]:
    """Sums over entries of a comparison's ledger, the device seconds of each stage, and of the rest what is known."""
    values, costs = defaultdict[str, float](float), list(costs)
    for cost in costs:
        values[f"cost/{cost.stage}_device_seconds"] += cost.device_seconds
        for field in ("device_seconds", "wall_seconds", "tokens", "flops"):
            values[f"cost/{field}"] += getattr(cost, field)
    known = {
        "peak_bytes": max((cost.peak_bytes for cost in costs), default=0) or None,
        "joules": sum(cost.joules for cost in costs) or None,
        "utilisation": utilisation(costs, comparison.peak_flops),
        "money": money(costs, comparison.prices),
    }
    return dict(values) | {f"cost/{name}": value for name, value in known.items() if value is not None}
