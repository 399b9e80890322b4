"""A training run on several workers: Ray Train around the training core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data import UserError
from orchestrator.cluster import WorkerSize
from orchestrator.records import Progress
from orchestrator.runs import RunSpec
from orchestrator.trial import read_trial, run_trial, stage_of
from orchestrator.workspace import Opened, Workspace


def run_distributed(
    workspace: Workspace, run: RunSpec, opened: Opened, size: WorkerSize, report: Callable[[Progress], None]
) -> None:
    """Train one run on `scaling.workers` workers; called in a Tune trial, to which every validation is reported.

    A worker that is lost is replaced and the run goes on from its newest checkpoint; so it does when the driver was
    killed and is run again, under the same name.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from orchestrator.tuning import COORDINATOR_CPUS

    stage = stage_of(workspace, run)
    if stage.done:
        for point in read_trial(stage, run).curve:
            if point.validation is not None:
                report(point)
        return
    workers = workspace.experiment.scaling.workers
    held = {"CPU": size.cpus - COORDINATOR_CPUS / workers}
    TorchTrainer(
        _worker,
        train_loop_config={"opened": opened, "run": run, "size": size},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=size.gpus > 0,
            resources_per_worker=held | ({"GPU": size.gpus} if size.gpus else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if size.gpus else "gloo"),
        run_config=RunConfig(
            name=stage.fingerprint,
            storage_path=str(workspace.store.root / "ray-train"),
            failure_config=FailureConfig(max_failures=3),
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def _worker(config: dict[str, Any]) -> None:
    from ray import train

    from orchestrator.tuning import METRIC, TIME, prepare_process, worker_workspace

    seen = 0

    def report(point: Progress) -> None:
        nonlocal seen
        seen += 1
        train.report({METRIC: point.validation, TIME: seen})

    prepare_process(config["size"])
    try:
        run_trial(worker_workspace(config["opened"]), config["run"], report)
    except UserError as error:
        raise RuntimeError(str(error)) from error
