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
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlencode

from data import UserError
from orchestrator.records import Comparison, Cost, Progress, Result
from orchestrator.report import table
from orchestrator.report.ledger import money, utilisation
from orchestrator.run_facts import Facts
from orchestrator.runs import RunSpec

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
        self._started: dict[str, int] = {}  # run → when, in ms
        self._params: defaultdict[str, set[str]] = defaultdict(set)  # run → those that it has; MLflow lets none change
        self._waiting: dict[tuple[str, str], tuple[RunSpec, Curve]] = {}
        self._sent_at = self._lost_at = float("-inf")
        self.lost: str | None = None

    def page(self, measure: str) -> str:
        """Where the UI shows the recipes of the experiment side by side, the best first: a path, once it is known.

        MLflow opens an experiment at a page for language models, and shows recipes within their comparison, folded up,
        unless it is asked for another order than that of time.
        """
        asked = {
            "workflowType": "machine_learning",
            "compareRunsMode": "CHART",
            "searchFilter": "tags.`stillhouse.kind` = 'recipe'",
            "orderByKey": f"metrics.`test/{metric_name(measure)}`",
            "orderByAsc": "false",
        }
        return f"/#/experiments/{self._experiment_id}/runs?{urlencode(asked, quote_via=quote)}"

    def publish_points(self, facts: Facts, run: RunSpec, points: Sequence[Progress]) -> None:
        """Add to a trial's learning curve, live; what does not arrive is sent with the whole at the end."""
        self._waiting.setdefault((run.row, run.name), (run, []))[1].extend(points)
        self.deliver(facts, LIVE_SECONDS)

    def deliver(self, facts: Facts, every: float = 0.0) -> None:
        """Send the points that wait, unless that was done less than `every` seconds ago."""

        def send() -> None:
            parent, _ = self._run(facts, (), None)
            for (row, trial), (made, points) in waiting.items():
                child, _ = self._run(facts, (row,), parent)
                run, _ = self._run(facts, (row, trial), child, made=made)
                self._log(run, params=facts.params(row, made), curve=points)

        now = time.monotonic()
        if self._waiting and now - self._sent_at >= every and now - self._lost_at >= RETRY_SECONDS:
            waiting, self._waiting = self._waiting, {}
            self._guard(send)
            self._sent_at = time.monotonic()

    def publish(self, comparison: Comparison, facts: Facts, folder: Path, runs: Mapping[str, Path]) -> bool:
        """Bring MLflow up to date with a finished comparison; False if it could not be reached.

        Args:
            folder: the report's files, which become artifacts of the parent.
            runs: row → the folder with its TREC run and per-query values.
        """
        if self._client is None and (found := finished_in(self._uri, self._experiment_name, comparison.fingerprint)):
            self._experiment_id = found
            return True
        return self._guard(lambda: self._publish(comparison, facts, folder, runs))

    def publish_study(self, fingerprint: str, name: str, values: Mapping[str, float], folder: Path) -> bool:
        """Bring MLflow up to date with a finished study: a run beside those of its comparisons; False if it could not
        be reached.

        Args:
            fingerprint: that of its comparisons together.
            folder: the report's files, which become artifacts.
        """
        if self._client is None and finished_in(self._uri, self._experiment_name, fingerprint):
            return True

        def send() -> None:
            self._connect()
            self._find(fingerprint)
            if fingerprint not in self._runs:
                tags = {FINGERPRINT: fingerprint, "stillhouse.kind": "study"}
                made = self._client.create_run(self._experiment_id, tags=tags, run_name=name)
                self._runs[fingerprint] = made.info.run_id, False
            run, finished = self._runs[fingerprint]
            if not finished:
                self._log(run, values={metric_name(key): value for key, value in values.items()})
                self._client.log_artifacts(run, str(folder))
                self._client.set_terminated(run, "FINISHED")

        return self._guard(send)

    def _publish(self, comparison: Comparison, facts: Facts, folder: Path, runs: Mapping[str, Path]) -> None:
        parent, finished = self._run(facts, (), None)
        if finished:
            return
        rows = {row.name: row for row in table.rows(comparison)}
        for result in comparison.results:
            costs = [cost for cost in comparison.costs if cost.recipe == result.name]
            child, child_finished = self._run(facts, (result.name,), parent, _wall(costs))
            measures = {each.trial.name: each.measures for each in result.seeds}
            further = [(each.trial, each.seed) for each in result.seeds[1:]]
            for trial, seed in [*((each, None) for each in result.trials), *further]:
                made = facts.run_of(result.name, trial, seed)
                run, trial_finished = self._run(facts, (result.name, trial.name), child, _wall(trial.costs), made)
                if not trial_finished:
                    tags = {**facts.tags(result.name, made), "stillhouse.state": trial.state}
                    tags |= {"stillhouse.reason": trial.reason} if trial.reason else {}
                    values = {**_cost_metrics(comparison, trial.costs), "validation/best": trial.validation}
                    values |= _test_metrics(measures.get(trial.name, {}))
                    self._log(run, tags, params=facts.params(result.name, made), values=values, curve=trial.curve)
                    self._end(run, _wall(trial.costs), STATUS[trial.state])
            if not child_finished:
                self._log_row(child, comparison, facts, result, rows[result.name], runs[result.name])
                self._end(child, _wall(costs))
        tags = facts.tags()
        if facts.experiment.tracking.model and (model := self._log_model(comparison, facts)):
            tags["stillhouse.model"] = model
        self._log(parent, tags, params=facts.params(), values=_cost_metrics(comparison, comparison.costs))
        self._client.log_artifacts(parent, str(folder))
        self._client.set_terminated(parent, "FINISHED")

    def _log_row(
        self, run: str, comparison: Comparison, facts: Facts, result: Result, row: table.Row, folder: Path
    ) -> None:
        winner = result.winning_trial
        params = facts.params(result.name, facts.run_of(result.name, winner) if winner else None)
        values = _test_metrics(result.measures)
        if result.seeds:
            values |= {f"test_sd/{metric_name(measure)}": result.spread(measure) or 0.0 for measure in result.measures}
        values |= _cost_metrics(comparison, [cost for cost in comparison.costs if cost.recipe == result.name])
        if result.index is not None:
            params["index"] = result.index.index
            for figure in ("recall", "median_ms", "p95_ms", "queries_per_second", "build_seconds", "bytes"):
                values[f"index/{figure}"] = getattr(result.index, figure)
        if result.encoder is not None:
            for figure in ("parameters", "median_ms", "p95_ms"):
                values[f"encoder/{figure}"] = getattr(result.encoder, figure)
        if winner:
            values["validation/best"] = winner.validation
            values |= {"cost/chosen_run_seconds": row.winner_seconds, "cost/all_runs_seconds": row.all_seconds}
            values |= {f"speed_up/over_{metric_name(each.over)}": each.ratio for each in row.speed_ups}
        self._log(run, facts.tags(result.name), params=params, values=values, curve=winner.curve if winner else ())
        self._client.log_artifacts(run, str(folder))

    def _log_model(self, comparison: Comparison, facts: Facts) -> str | None:
        """The best encoder as a model of its row's run; its URI, None where there is none."""
        from orchestrator import tracked_model

        chosen = tracked_model.best(comparison.results)
        if chosen is None:
            return None
        result, trial = chosen
        encoder = Path(trial.model or "")
        if not encoder.is_dir():
            log.warning("MLflow gets no model: the encoder of %s is not at %s", result.name, encoder)
            return None
        run = self._client.get_run(self._runs[f"{facts.fingerprint}/{result.name}"][0])
        name = f"{comparison.name}-{result.name}".replace(".", "-")  # which MLflow takes in no model's name
        return tracked_model.log_model(self._client, run, name, encoder, facts.query_tokens(result.name))

    def _end(self, run: str, seconds: float, state: str = "FINISHED") -> None:
        """Say that a run is over, and that it took so many seconds: what happened, not how long it took to log it."""
        self._client.set_terminated(run, state, self._started[run] + int(1000 * seconds))

    def _run(
        self,
        facts: Facts,
        within: tuple[str, ...],
        parent: str | None,
        seconds: float = 0.0,
        made: RunSpec | None = None,
    ) -> tuple[str, bool]:
        """The id of a comparison's run, of its row's or of its trial's, and whether it is finished; made if it is new.

        Args:
            facts: the comparison's. The same trial in two comparisons has a run in each.
            within: the names of the row and of the trial, as far as the run is within these.
            seconds: how long ago it began.
            made: what a trial is a run of.
        """
        self._connect()
        if facts.fingerprint not in self._found:
            self._find(facts.fingerprint)
        fingerprint = "/".join((facts.fingerprint, *within))
        if fingerprint not in self._runs:
            tags = {FINGERPRINT: fingerprint, **facts.tags(within[0] if within else None, made)} | (
                {PARENT: parent} if parent else {}
            )
            name = within[-1] if within else facts.experiment.name
            began = int(1000 * (time.time() - seconds))
            run = self._client.create_run(self._experiment_id, began, tags, name).info.run_id
            self._runs[fingerprint], self._last_steps[run], self._started[run] = (run, False), -1, began
        return self._runs[fingerprint]

    def _find(self, comparison: str) -> None:
        """Ask for all runs of a comparison at once."""
        page, wanted = None, f"tags.`{FINGERPRINT}` LIKE '{comparison}%'"
        while True:
            found = self._client.search_runs([self._experiment_id], wanted, max_results=PAGE, page_token=page)
            for run in found:
                finished = run.info.status in STATUS.values()
                self._runs.setdefault(run.data.tags[FINGERPRINT], (run.info.run_id, finished))
                self._started[run.info.run_id] = run.info.start_time
                self._params[run.info.run_id] |= {*run.data.params}
            page = found.token
            if not page:
                break
        self._found.add(comparison)

    def _log(
        self,
        run: str,
        tags: Mapping[str, str] = MappingProxyType({}),
        *,
        params: Mapping[str, str] | None = None,
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
        new = {key: value for key, value in (params or {}).items() if key not in self._params[run]}
        rest = {
            "params": [Param(key, value) for key, value in new.items()],
            "tags": [RunTag(key, value) for key, value in tags.items()],
        }
        known = self._last_steps.pop(run, -1)  # forgotten while it is uncertain: asked again after a failure
        for part in _parts(metrics):
            self._client.log_batch(run, metrics=part, **rest)
            rest = {}
        self._params[run] |= {*new}
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
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
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


def finished_in(uri: str, experiment: str, fingerprint: str) -> str | None:
    """The id of the experiment in which a sqlite database of MLflow's holds this run as finished, asked without MLflow:
    its import takes 2 s.

    None where that cannot be told, be it for a server, for no database or for one of another version.
    """
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not file.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute(_FINISHED, (FINGERPRINT, fingerprint, experiment)).fetchone()
    except sqlite3.Error:
        return None
    return str(found[0]) if found else None


_FINISHED = """
SELECT experiment_id FROM tags JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id)
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


def _test_metrics(measures: Mapping[str, float]) -> dict[str, float]:
    return {f"test/{metric_name(measure)}": value for measure, value in measures.items()}


def _wall(costs: Iterable[Cost]) -> float:
    return sum(cost.wall_seconds for cost in costs)


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
