"""All training runs of a comparison as one Ray Tune experiment, each recipe with a scheduler of its own.

A run with one worker trains in the trial's own process, and the process is used again for the next trial; with several
workers the trial starts a Ray Train worker group. What a trial came to is in its stage of the store, not in Tune.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from data import UserError
from data.travel import Packed, pack, unpack
from orchestrator.cluster import Resources, WorkerSize
from orchestrator.config import Experiment, RecipeSettings
from orchestrator.group import Group
from orchestrator.journal import reported
from orchestrator.records import Progress, Trial
from orchestrator.runs import RunSpec
from orchestrator.trial import not_kept, read_trial, record, run_trial
from orchestrator.workspace import Opened, Workspace

METRIC = "validation"
TIME = "validations"
COORDINATOR_CPUS = 0.1  # what a trial holds beside its worker group


def run_all(
    workspace: Workspace,
    runs: Sequence[RunSpec],
    size: WorkerSize,
    available: Resources,
    on_over: Callable[[RunSpec], None] = lambda run: None,
) -> None:
    """Train every run to its end, or until the scheduler of its recipe ends it early.

    Trials run side by side as far as the resources go. One at a time (the case of a machine without GPUs, where a
    trial gets all cores) they end in the same order every time, so that ASHA makes the same decisions every time;
    side by side, which trials ASHA ends depends on which is first. `on_over` is called when a trial has ended.

    Raises:
        UserError: a run met what the user can mend.
    """
    from ray import tune

    experiment = workspace.experiment
    held = tune.PlacementGroupFactory([_held(experiment, size)])
    opened = tuple(pack(workspace.for_run(run).opened) for run in runs)
    arguments: dict[str, Any] = {"opened": opened, "size": size, "runs": tuple(runs)}
    if experiment.scaling.workers > 1:
        from orchestrator.distributed import DistributedTrial

        trainable = tune.with_parameters(DistributedTrial, **arguments)
    else:
        trainable = _named(partial(_trainable, **arguments))
    with tempfile.TemporaryDirectory(prefix="stillhouse-tune-") as scratch:
        results = tune.Tuner(
            tune.with_resources(trainable, held),
            param_space={"run": tune.grid_search(list(range(len(runs))))},
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                scheduler=_scheduler(experiment, runs),
                max_concurrent_trials=concurrency(experiment, size, available),
                reuse_actors=experiment.scaling.workers == 1,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a run keeps its own
                stop=_refused(),
                callbacks=[_ends(lambda run: on_over(runs[run]))],
            ),
        ).fit()
    for result in results:
        if result.metrics and "what" in result.metrics:
            raise UserError(result.metrics["what"], where=result.metrics["where"], mend=result.metrics["mend"])
    if results.errors:
        raise results.errors[0]


def trials_of(workspace: Workspace, runs: Sequence[RunSpec]) -> tuple[Trial, ...]:
    """What the runs came to, from the store."""

    def trial(run: RunSpec) -> Trial:
        stage = workspace.trial(run)
        if stage.done:
            return read_trial(stage, run)
        return record(run, reported(stage), "stopped")

    return tuple(trial(run) for run in runs)


def winner_of(trials: Sequence[Trial]) -> Trial:
    """The finished trial with the best last validation; the first of equals."""
    return max((trial for trial in trials if trial.state == "finished"), key=lambda trial: trial.validation)


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


def _trainable(config: dict[str, Any], opened: tuple[Any, ...], size: WorkerSize, runs: tuple[RunSpec, ...]) -> None:
    """What a Tune trial runs."""
    from ray import tune

    run, seen = runs[config["run"]], 0

    def report(point: Progress) -> None:
        nonlocal seen
        seen += 1
        tune.report(score(point, seen))

    try:
        prepare_process(size)
        run_opened(opened[config["run"]], run, report)
    except UserError as error:
        tune.report(refusal(error, seen))


def score(point: Progress, seen: int) -> dict[str, Any]:
    """What Tune is told of a validated point, the `seen`th of its run."""
    return {METRIC: point.validation, TIME: seen}


def refusal(error: UserError, seen: int) -> dict[str, Any]:
    """What Tune is told of a run that met what the user can mend: raised, it would be tried again."""
    return {METRIC: 0.0, TIME: seen, "what": error.what, "where": error.where, "mend": error.mend, "done": True}


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


def _refused() -> Any:
    """Ends everything at the first refusal: the driver is going to raise it."""
    from ray.tune import Stopper

    class Refused(Stopper):  # type: ignore[misc]
        refused = False

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            self.refused = self.refused or "what" in result
            return self.refused

        def stop_all(self) -> bool:
            return self.refused

    return Refused()


def _ends(on_end: Callable[[int], None]) -> Any:
    from ray.tune import Callback

    here = _Here(on_end)

    class Ends(Callback):  # type: ignore[misc]
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            here.call(trial.config["run"])

    return Ends()


class _Here:
    """A function of the driver. Tune pickles its callbacks; the copies do nothing."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return _Here, (_nothing,)


def _nothing(run: int) -> None:
    return None


def _scheduler(experiment: Experiment, runs: Sequence[RunSpec]) -> Any:
    """FIFO over all trials; what to do with a trial's result is left to the scheduler of its recipe."""
    from ray.tune.schedulers import FIFOScheduler

    rows = {row.name: _row_scheduler(experiment, row) for row in experiment.recipes}

    class PerRecipe(FIFOScheduler):  # type: ignore[misc]
        def _of(self, trial: Any) -> Any:
            return rows[runs[trial.config["run"]].row]

        def on_trial_add(self, controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_add(controller, trial)

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision: str = self._of(trial).on_trial_result(controller, trial, result)
            return decision

        def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
            self._of(trial).on_trial_complete(controller, trial, result)

        def on_trial_error(self, controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_error(controller, trial)

        def on_trial_remove(self, controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_remove(controller, trial)

    return PerRecipe()


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
