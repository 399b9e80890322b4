"""MLflow: a parent run for the comparison, a child for each recipe, a grandchild for each trial.

What MLflow shows is a copy: the truth is in the store. Every run is known by the fingerprint of what it logs and every
curve goes on after the last step that MLflow has, so the same thing is never logged twice, by whatever kill or restart;
and where the server cannot be reached, the comparison goes on and a later call sends what is missing.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data import UserError
from orchestrator.records import Comparison, Cost, Progress, Result, Trial

log = logging.getLogger(__name__)

FINGERPRINT = "stillhouse.fingerprint"
PARENT = "mlflow.parentRunId"
SCHEMES = ("sqlite:", "postgresql", "mysql", "mssql", "http:", "https:", "databricks")
RETRY_SECONDS = 60.0  # how long an unreachable server is left alone
BATCH = 900  # MLflow takes at most 1000 metrics at once


class Tracker:
    """One comparison's runs in MLflow. No method raises when the server is lost; `lost` then tells why."""

    def __init__(self, uri: str, experiment: str) -> None:
        check_uri(uri)
        self._uri, self._experiment_name = uri, experiment
        self._client: Any = None
        self._experiment_id = ""
        self._runs: dict[str, tuple[str, bool]] = {}
        self._lost_at = float("-inf")
        self.lost: str | None = None

    def publish_points(self, comparison: tuple[str, str], row: str, trial: str, points: Sequence[Progress]) -> None:
        """Add to a trial's learning curve, live; what does not arrive is sent with the whole at the end.

        Args:
            comparison: its fingerprint and its name.
        """

        def send() -> None:
            fingerprint, name = comparison
            parent, _ = self._run(name, fingerprint, None, {})
            child, _ = self._run(row, _within(fingerprint, row), parent, {})
            run, _ = self._run(trial, _within(fingerprint, row, trial), child, {"stillhouse.kind": "trial"})
            self._log_points(run, points)

        if time.monotonic() - self._lost_at >= RETRY_SECONDS:
            self._guard(send)

    def publish(self, comparison: Comparison, folder: Path, runs: Mapping[str, Path]) -> bool:
        """Bring MLflow up to date with a finished comparison; False if it could not be reached.

        Args:
            folder: the report's files, which become artifacts of the parent.
            runs: row → the folder with its TREC run and per-query values.
        """
        return self._guard(lambda: self._publish(comparison, folder, runs))

    def _publish(self, comparison: Comparison, folder: Path, runs: Mapping[str, Path]) -> None:
        parent, finished = self._run(comparison.name, comparison.fingerprint, None, _parent_tags(comparison))
        if finished:
            return
        for result in comparison.results:
            child, child_finished = self._run(
                result.name, _within(comparison.fingerprint, result.name), parent, _row_tags(comparison, result)
            )
            for trial in result.trials:
                fingerprint = _within(comparison.fingerprint, result.name, trial.name)
                run, trial_finished = self._run(trial.name, fingerprint, child, _trial_tags(result, trial))
                if not trial_finished:
                    self._log_trial(run, trial)
            if not child_finished:
                self._log_row(child, comparison, result, runs[result.name])
        self._log_params(parent, {"collection": comparison.collection, "encoder": comparison.encoder})
        self._log_values(parent, _cost_metrics(comparison.costs))
        for file in sorted(folder.iterdir()):
            self._client.log_artifact(parent, str(file))
        self._client.set_terminated(parent, "FINISHED")

    def _log_trial(self, run: str, trial: Trial) -> None:
        self._log_params(run, trial.parameters)
        self._log_points(run, trial.curve)
        self._log_values(run, _cost_metrics(trial.costs))
        self._client.set_terminated(run, "FINISHED" if trial.state == "finished" else "KILLED")

    def _log_row(self, run: str, comparison: Comparison, result: Result, folder: Path) -> None:
        winner = result.winning_trial
        self._log_params(run, {"recipe": result.recipe, **(winner.parameters if winner else {})})
        if winner:
            self._log_points(run, winner.curve)
            self._log_values(run, {"validation/best": winner.validation})
        values = {f"test/{metric_name(measure)}": value for measure, value in result.measures.items()}
        if result.index is not None:
            self._log_params(run, {"index": result.index.index})
            for figure in ("recall", "median_ms", "p95_ms", "queries_per_second", "build_seconds", "bytes"):
                values[f"index/{figure}"] = getattr(result.index, figure)
        costs = [cost for cost in comparison.costs if cost.recipe == result.name]
        self._log_values(run, values | _cost_metrics(costs))
        for file in sorted(folder.iterdir()):
            self._client.log_artifact(run, str(file))
        self._client.set_terminated(run, "FINISHED")

    def _run(self, name: str, fingerprint: str, parent: str | None, tags: Mapping[str, str]) -> tuple[str, bool]:
        """The id of the run with this fingerprint, made if there is none, and whether it is finished."""
        if fingerprint in self._runs:
            run, finished = self._runs[fingerprint]
            for key, value in tags.items():
                self._client.set_tag(run, key, value)
            return run, finished
        self._connect()
        found = self._client.search_runs(
            [self._experiment_id], f"tags.`{FINGERPRINT}` = '{fingerprint}'", max_results=1
        )
        if found:
            run, status = found[0].info.run_id, found[0].info.status
            finished = status in ("FINISHED", "KILLED")
        else:
            own = {FINGERPRINT: fingerprint, **tags} | ({PARENT: parent} if parent else {})
            run = self._client.create_run(self._experiment_id, tags=own, run_name=name).info.run_id
            finished = False
        self._runs[fingerprint] = run, finished
        return run, finished

    def _log_points(self, run: str, points: Iterable[Progress]) -> None:
        from mlflow.entities import Metric

        history = self._client.get_metric_history(run, "train/loss")
        last = max((metric.step for metric in history), default=-1)
        now = int(time.time() * 1000)
        metrics: list[Metric] = []
        for point in points:
            if point.step <= last:
                continue
            values = {"train/loss": point.loss, "train/device_seconds": point.device_seconds}
            values |= {f"train/{metric_name(name)}": value for name, value in point.diagnostics.items()}
            if point.validation is not None:
                values["validation/nDCG_at_10"] = point.validation
            if len(metrics) + len(values) > BATCH:
                self._client.log_batch(run, metrics=metrics)
                metrics = []
            metrics += [Metric(key, value, now, point.step) for key, value in values.items()]
        if metrics:
            self._client.log_batch(run, metrics=metrics)

    def _log_values(self, run: str, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(run, metrics=[Metric(key, float(value), now, 0) for key, value in values.items()])

    def _log_params(self, run: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self._client.log_batch(run, params=[Param(key, str(value)) for key, value in values.items()])

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

    def _guard(self, action: Callable[[], None]) -> bool:
        """Run an action; where MLflow cannot be reached say so once and go on."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            action()
        except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
            if self.lost is None:
                log.warning("MLflow at %s cannot be reached; its values wait in the store: %s", self._uri, error)
            self.lost, self._lost_at = str(error), time.monotonic()
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


def _within(comparison: str, *names: str) -> str:
    """What a row's or a trial's run is known by: the same trial in two comparisons has a run in each."""
    return "/".join((comparison, *names))


def _trial_tags(result: Result, trial: Trial) -> dict[str, str]:
    return {"stillhouse.kind": "trial", "stillhouse.recipe": result.recipe, "stillhouse.state": trial.state}


def _parent_tags(comparison: Comparison) -> dict[str, str]:
    tags = {"stillhouse.kind": "comparison", "stillhouse.collection": comparison.collection}
    return tags | {f"stillhouse.{key}": value for key, value in comparison.environment.items()}


def _row_tags(comparison: Comparison, result: Result) -> dict[str, str]:
    return {
        "stillhouse.kind": "recipe",
        "stillhouse.recipe": result.recipe,
        "stillhouse.parameter_free": str(result.parameter_free).lower(),
        "stillhouse.collection": comparison.collection,
        "stillhouse.encoder": comparison.encoder,
    }


def _cost_metrics(costs: Iterable[Cost]) -> dict[str, float]:
    """Sums over the ledger's entries, and the device seconds of each stage."""
    values: defaultdict[str, float] = defaultdict(float)
    for cost in costs:
        values[f"cost/{cost.stage}_device_seconds"] += cost.device_seconds
        for field in ("device_seconds", "wall_seconds", "tokens", "flops"):
            values[f"cost/{field}"] += getattr(cost, field)
    return dict(values)
