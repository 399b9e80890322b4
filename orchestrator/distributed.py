"""A training run on several workers: Ray Train around the training core."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import Stage, UserError
from orchestrator.cluster import WorkerSize
from orchestrator.records import Progress
from orchestrator.runs import RunSpec
from orchestrator.trial import read_trial, run_trial, stage_of
from orchestrator.workspace import Opened, Workspace

PLACEMENT = "placement-group"  # the file with the id of what a run's worker group holds


def run_distributed(
    workspace: Workspace, run: RunSpec, opened: Opened, size: WorkerSize, report: Callable[[Progress], None]
) -> None:
    """Train one run on `scaling.workers` workers; called in a Tune trial, to which every validation is reported.

    A worker that is lost ends the trial; Tune starts it again, and the run goes on from its newest checkpoint.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from orchestrator.tuning import COORDINATOR_CPUS

    stage = stage_of(workspace, run)
    if stage.done:
        for point in read_trial(stage, run).curve:
            if point.validation is not None:
                report(point)
        return
    release(stage)  # what an attempt that was lost left behind
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
            name=uuid.uuid4().hex,  # under a name that it knows Ray would resume; the store does that
            storage_path=str(_folder(stage)),
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def release(stage: Stage) -> None:
    """Give back what the worker group of a run holds, if it is still there.

    Ray Train leaves that to an actor which asks the dashboard whether the run is still alive; where there is no
    dashboard, a trial that Tune has ended would hold its CPUs for ever, and the next one wait for them.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    file = _folder(stage) / PLACEMENT
    if file.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(file.read_text()))))
        file.unlink()


def _folder(stage: Stage) -> Path:
    return stage.root / "ray-train" / stage.fingerprint


def _worker(config: dict[str, Any]) -> None:
    from ray import train
    from ray.util import get_current_placement_group

    from orchestrator.tuning import METRIC, TIME, prepare_process, worker_workspace

    seen = 0

    def report(point: Progress) -> None:
        nonlocal seen
        seen += 1
        train.report({METRIC: point.validation, TIME: seen})

    prepare_process(config["size"])
    workspace = worker_workspace(config["opened"])
    if train.get_context().get_world_rank() == 0:
        placement = get_current_placement_group()
        assert placement is not None
        (_folder(stage_of(workspace, config["run"])) / PLACEMENT).write_text(placement.id.hex())
    try:
        run_trial(workspace, config["run"], report)
    except UserError as error:
        raise RuntimeError(str(error)) from error
