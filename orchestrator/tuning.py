"""All training runs of a comparison as one Ray Tune experiment, each row with a search and a scheduler of its own.

A run with one worker trains in the trial's own process, and the process is used again for the next trial; with several
workers the trial starts a Ray Train worker group. What a trial came to is in its stage of the store, not in Tune.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from data import UserError
from data.travel import Packed, pack, unpack
from orchestrator.cluster import Resources, WorkerSize
from orchestrator.config import Experiment, RecipeSettings
from orchestrator.group import Group
from orchestrator.records import Progress, Trial
from orchestrator.runs import RunSpec, first_run, run_at
from orchestrator.searches import Again, RowSearch, Search
from orchestrator.trial import TrialFailedError, fail, not_kept, out_of_memory, run_trial
from orchestrator.workspace import Opened, Workspace

METRIC = "validation"
TIME = "validations"
COORDINATOR_CPUS = 0.1  # what a trial holds beside its worker group
KILLED_FOR_MEMORY = ("low on memory", "OutOfMemoryError")  # what Ray says of a worker that it ended


@dataclass(frozen=True)
class Started:
    """What a trial of Tune makes its run of."""

    experiment: Experiment
    opened: Mapping[tuple[str, int], Any]  # by row and seed, as `pack` makes it of `Opened`

    def of(self, config: Mapping[str, Any]) -> tuple[RunSpec, Any]:
        """The run of a trial, and what its workspace is opened from."""
        row = next(row for row in self.experiment.recipes if row.name == config["row"])
        run = run_at(self.experiment, row, json.loads(config["point"]))
        run = run.with_seed(config["seed"]) if "seed" in config else run
        return run, self.opened[run.row, run.seed]


def run_all(
    workspace: Workspace,
    rows: Sequence[RecipeSettings],
    size: WorkerSize,
    available: Resources,
    on_start: Callable[[RunSpec], None] = lambda run: None,
    on_over: Callable[[Trial], None] = lambda trial: None,
    again: Sequence[RunSpec] = (),
) -> None:
    """Train every run of the rows to its end, or until the scheduler of its row ends it early, or it fails; and those
    that are made `again` with further seeds, which nothing ends early.

    Trials run side by side as far as the resources go. One at a time (the case of a machine without GPUs, where a
    trial gets all cores) they end in the same order every time, so that ASHA and TPE make the same decisions every
    time; side by side, what these know is a matter of which trial is first. `on_over` is called when a trial has ended.

    Raises:
        UserError: a run met what the user can mend, or all trials of a row have failed.
    """
    from ray import tune

    experiment = workspace.experiment
    held = tune.PlacementGroupFactory([_held(experiment, size)])
    side_by_side = concurrency(experiment, size, available)
    searches: list[Search] = [RowSearch(workspace, row, side_by_side > 1) for row in rows]
    searches += [Again(workspace, again)] if again else []
    searcher = _searcher(workspace, searches, on_start, on_over)
    begun = [*(first_run(experiment, row) for row in rows), *again]
    opened = {(run.row, run.seed): pack(workspace.for_run(run).opened) for run in begun}
    arguments: dict[str, Any] = {"started": Started(experiment, opened), "size": size}
    if experiment.scaling.workers > 1:
        from orchestrator.distributed import DistributedTrial

        trainable = tune.with_parameters(DistributedTrial, **arguments)
    else:
        trainable = _named(partial(_trainable, **arguments))
    with tempfile.TemporaryDirectory(prefix="stillhouse-tune-") as scratch:
        results = tune.Tuner(
            tune.with_resources(trainable, held),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                search_alg=searcher,
                num_samples=-1,  # as many as the searches suggest
                scheduler=_scheduler(experiment, searcher),
                max_concurrent_trials=side_by_side,
                reuse_actors=experiment.scaling.workers == 1,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a run keeps its own
                stop=_stopper(searcher),
            ),
        ).fit()
    for result in results:
        if result.metrics and "what" in result.metrics:
            raise UserError(result.metrics["what"], where=result.metrics["where"], mend=result.metrics["mend"])
    if searcher.failure:
        raise searcher.failure
    for result in results:
        if result.error and (result.config["row"], result.config["number"]) not in searcher.out_of_memory:
            raise result.error


def concurrency(experiment: Experiment, size: WorkerSize, available: Resources) -> int:
    """How many trials can run side by side on what there is, so that none waits for a part of what it needs."""
    workers = experiment.scaling.workers
    by_cpu = available.cpus // (workers * size.cpus)
    by_gpu = by_cpu
    if size.gpus:
        by_gpu = int(round(available.gpus / (workers * size.gpus), 6))  # 3 × 0.1 is a little more than 0.3
    return max(1, min(by_cpu, by_gpu))


def _held(experiment: Experiment, size: WorkerSize) -> dict[str, float]:
    if experiment.scaling.workers > 1:
        return {"CPU": COORDINATOR_CPUS}
    return {"CPU": size.cpus} | ({"GPU": size.gpus} if size.gpus else {})


def _named(trainable: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def trial(config: dict[str, Any]) -> None:
        trainable(config)

    return trial


def _trainable(config: dict[str, Any], started: Started, size: WorkerSize) -> None:
    """What a Tune trial runs."""
    from ray import tune

    seen = 0

    def report(point: Progress) -> None:
        nonlocal seen
        seen += 1
        tune.report(score(point, seen))

    try:
        run, opened = started.of(config)
        prepare_process(size)
        run_opened(opened, run, report)
    except UserError as error:
        tune.report(refusal(error, seen))


def score(point: Progress, seen: int) -> dict[str, Any]:
    """What Tune is told of a validated point, the `seen`th of its run."""
    return {METRIC: point.validation, TIME: seen}


def refusal(error: UserError, seen: int) -> dict[str, Any]:
    """What Tune is told of a run that has failed, or met what the user can mend: raised, it would be tried again."""
    over = {METRIC: 0.0, TIME: seen, "done": True}
    if isinstance(error, TrialFailedError):
        return {**over, "failed": True}
    return {**over, "what": error.what, "where": error.where, "mend": error.mend}


def run_opened(opened: Any, run: RunSpec, report: Callable[[Progress], None], group: Group | None = None) -> None:
    """`run_trial` in a training worker, which may be on another machine than the driver.

    Raises:
        UserError: as `run_trial`; what the run leaves cannot be taken to where the driver finds it.
    """
    workspace = worker_workspace(opened)
    run_trial(workspace, run, report, group)
    if isinstance(opened, Packed) and not opened.home and not (stage := workspace.trial(run)).kept:
        raise not_kept(stage)


def worker_workspace(opened: Any) -> Workspace:
    """The workspace of a training worker, of what `pack` makes of `Opened`: everything is in the store by now."""
    return _workspace(unpack(opened))


@lru_cache(maxsize=3)  # of the kinds of queries and the encoders that runs may have
def _workspace(opened: Opened) -> Workspace:
    """Kept for the process's next trial."""
    return Workspace.of(opened)


def prepare_process(size: WorkerSize) -> None:
    """Use the CPUs that were granted (Ray sets OMP_NUM_THREADS=1)."""
    import torch

    torch.set_num_threads(size.cpus)
    gc.set_threshold(100_000, 50, 100)  # as in the driver (`cli.main`): transformers is about to be imported


def _stopper(searcher: Any) -> Any:
    """Ends a trial that has failed, and everything at the first refusal: the driver is going to raise it."""
    from ray.tune import Stopper

    class Refused(Stopper):  # type: ignore[misc]
        refused = False

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            self.refused = self.refused or "what" in result
            return self.refused or "failed" in result

        def stop_all(self) -> bool:
            return self.refused or searcher.failure is not None

    return Refused()


def _searcher(
    workspace: Workspace,
    searches: Sequence[Search],
    on_start: Callable[[RunSpec], None],
    on_over: Callable[[Trial], None],
) -> Any:
    """What tells Tune the next trial: the rows one after another, each as its own search has it."""
    from ray.tune.search import Searcher

    class Rows(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric=METRIC, mode="max")
            self.started: dict[str, tuple[Search, RunSpec, int]] = {}  # by the trial's id
            self.crashed: dict[str, str] = {}  # what Ray says of a trial whose process was lost for good
            self.out_of_memory: set[tuple[str, int]] = set()
            self.failure: UserError | None = None
            self._rest = list(searches)
            self._numbers: Counter[str] = Counter()

        def suggest(self, trial_id: str) -> Any:
            while self._rest and not self.failure:
                search = self._rest[0]
                run = search.next()
                if run is None:
                    self._rest.pop(0)
                    self.failure = self.failure or search.failure()
                    continue
                number = self._numbers[run.row]
                self._numbers[run.row] += 1
                self.started[trial_id] = search, run, number
                on_start(run)
                config = {"row": run.row, "number": number, "point": json.dumps(run.knobs)}
                return {**config, "seed": run.seed} if run.again else config
            return Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            search, run, number = self.started[trial_id]
            if error and any(said in self.crashed.get(trial_id, "") for said in KILLED_FOR_MEMORY):
                fail(workspace.trial(run), out_of_memory(run))
                self.out_of_memory.add((run.row, number))
            elif error:
                self._rest.clear()  # what is under way goes on, and the driver is going to raise it
                return
            on_over(search.ended(run))
            self.failure = self.failure or search.failure()

        def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
            """The store has all that there is to keep."""

        def __reduce__(self) -> Any:
            return _Copy, ()

    return Rows()


class _Copy:
    """What is left of the searcher where Tune pickles it: it stays in the driver."""

    failure = None


def _scheduler(experiment: Experiment, searcher: Any) -> Any:
    """FIFO over all trials; what to do with a trial's result is left to the scheduler of its row."""
    from ray.tune.schedulers import FIFOScheduler

    rows, to_the_end = {row.name: _row_scheduler(experiment, row) for row in experiment.recipes}, FIFOScheduler()

    class PerRow(FIFOScheduler):  # type: ignore[misc]
        def _of(self, trial: Any) -> Any:
            return to_the_end if "seed" in trial.config else rows[trial.config["row"]]

        def on_trial_add(self, controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_add(controller, trial)

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision: str = self._of(trial).on_trial_result(controller, trial, result)
            return decision

        def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
            if "failed" not in result:  # of which there is no validation to compare others with
                self._of(trial).on_trial_complete(controller, trial, result)

        def on_trial_error(self, controller: Any, trial: Any) -> None:
            file = Path(trial.error_file or "")
            said = file.read_text(encoding="utf-8") if file.is_file() else ""
            searcher.crashed[trial.trial_id] = said.rpartition("Failure #")[2]  # the last one
            self._of(trial).on_trial_error(controller, trial)

        def on_trial_remove(self, controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_remove(controller, trial)

    return PerRow()


def _row_scheduler(experiment: Experiment, row: RecipeSettings) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if row.tune is None or row.tune.scheduler is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=TIME,
        metric=METRIC,
        mode="max",
        grace_period=1,
        reduction_factor=row.tune.reduction_factor,
        # Beyond the last validation: a run that has come to its end is finished, not stopped.
        max_t=experiment.training_for(row).validations + 1,
    )
