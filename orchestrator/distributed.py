"""A training run on several workers: Ray Train around the training core, in a trial of Ray Tune.

Rank 0 offers every validated point to the trial and waits until Tune has decided on it, so a run that is ended early
has come no further than it would have on one worker. All ranks then end of their own accord, and the trial waits for
them. That is why the trial is a `Trainable` with a `cleanup` and no function, which Tune ends without asking.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from concurrent.futures import Future, wait
from typing import Any

import ray
from pyarrow.fs import FileSystem, FileType, LocalFileSystem
from ray import tune

from data import Stage, UserError
from orchestrator.cluster import WorkerSize
from orchestrator.group import Group
from orchestrator.records import Progress
from orchestrator.trial import read_trial
from orchestrator.tuning import (
    COORDINATOR_CPUS,
    Started,
    prepare_process,
    refusal,
    run_opened,
    score,
    worker_workspace,
)

PLACEMENT = "placement-group"  # the file with the id of what a run's worker group holds
_FOLDER = "ray-train/{}"  # of a run, in the store
LISTEN_SECONDS = 0.5
ENDING_SECONDS = 60.0


class DistributedTrial(tune.Trainable):  # type: ignore[misc]
    """Trains one run on `scaling.workers` workers; every step of the trial is a validation of the run.

    A worker that is lost ends the trial; Tune starts it again, and the run goes on from its newest checkpoint.
    """

    def setup(self, config: dict[str, Any], started: Started, size: WorkerSize) -> None:
        """Start the workers, unless the run is finished."""
        run, mine = started.of(config)
        self._stage = worker_workspace(mine).trial(run)
        self._ended: Future[None] = Future()
        self._seen = self._step = 0
        self._known: list[Progress] = []
        if self._stage.done:
            self._known = [point for point in read_trial(self._stage, run).curve if point.validation is not None]
            self._ended.set_result(None)
            return
        _release(self._stage)  # what an attempt that was lost left behind
        self._gate = ray.remote(num_cpus=0)(Gate).remote()
        trainer = _trainer({"opened": mine, "run": run, "size": size, "gate": self._gate}, self._stage)

        def fit() -> None:
            try:
                trainer.fit()
                self._ended.set_result(None)
            except BaseException as error:  # raised by step, in the trial's own thread
                self._ended.set_exception(error)

        threading.Thread(target=fit, name="ray-train", daemon=True).start()

    def step(self) -> dict[str, Any]:
        """The next validation; at the end of the run the last one again, marked as done."""
        if self._known:
            return self._score(self._known.pop(0))
        if self._seen and not self._ended.done():
            ray.get(self._gate.answer.remote(True))
        while not self._stage.here or not self._ended.done():
            ended = self._ended.done()  # asked first, so that what was said before the end is heard
            said = ray.get(self._gate.listen.remote())
            if isinstance(said, UserError):
                return refusal(said, self._seen)
            if isinstance(said, Progress) and said.step > self._step:
                return self._score(said)
            if isinstance(said, Progress):  # said again, by workers that took the place of lost ones
                ray.get(self._gate.answer.remote(True))
            elif ended:
                break
        self._ended.result()
        return {**self._last, "done": True}

    def _score(self, point: Progress) -> dict[str, Any]:
        self._seen, self._step = self._seen + 1, point.step
        self._last = score(point, self._seen)
        return self._last

    def cleanup(self) -> None:
        """Let the workers end, if the run has not."""
        if not self._ended.done():
            ray.get(self._gate.answer.remote(False))
            wait([self._ended], ENDING_SECONDS)
        _release(self._stage)


class Gate:
    """An actor between the workers of a run and their trial."""

    def __init__(self) -> None:
        self._points: asyncio.Queue[Progress] = asyncio.Queue()
        self._answers: asyncio.Queue[bool] = asyncio.Queue()
        self._refusal: UserError | None = None

    async def offer(self, point: Progress) -> bool:
        """For rank 0: whether to go on after a point, once the trial has answered."""
        self._points.put_nowait(point)
        return await self._answers.get()

    async def refuse(self, error: UserError) -> None:
        """For any rank: what the user has to mend before there is any sense in going on."""
        self._refusal = self._refusal or error

    async def listen(self) -> Progress | UserError | None:
        """For the trial: a point that waits for an answer, or a refusal; None where there is neither for a while."""
        if self._refusal is None:
            try:
                return await asyncio.wait_for(self._points.get(), LISTEN_SECONDS)
            except TimeoutError:
                pass
        return self._refusal

    async def answer(self, go_on: bool) -> None:
        """For the trial: the answer to the point that it heard last."""
        self._answers.put_nowait(go_on)


class _EndedEarly(Exception):  # noqa: N818 - no error
    """The scheduler has ended the run early."""


def _release(stage: Stage) -> None:
    """Give back what the worker group of a run holds, if it is still there.

    Ray Train leaves that to an actor which asks the dashboard whether the run is still alive; where there is no
    dashboard, a worker group whose trial was lost would hold its CPUs for ever, and the next one wait for them.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    files, folder = _place(stage)
    if files.get_file_info(file := f"{folder}/{PLACEMENT}").type == FileType.File:
        with files.open_input_stream(file) as stream:
            placement = bytes.fromhex(stream.read().decode())
        remove_placement_group(PlacementGroup(PlacementGroupID(placement)))
        files.delete_file(file)
    if stage.remote:
        stage.remote.remove_folder(_FOLDER.format(stage.fingerprint))


def _place(stage: Stage) -> tuple[FileSystem, str]:
    """A folder that all machines see, and the file system that it is in."""
    if stage.remote:
        return stage.remote.place(_FOLDER.format(stage.fingerprint))
    return LocalFileSystem(), str(stage.root / _FOLDER.format(stage.fingerprint))


def _trainer(config: dict[str, Any], stage: Stage) -> Any:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    size, workers = config["size"], worker_workspace(config["opened"]).experiment.scaling.workers
    files, folder = _place(stage)
    held = {"CPU": size.cpus - COORDINATOR_CPUS}  # whichever of them is on the trial's machine, both fit there
    return TorchTrainer(
        _worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=size.gpus > 0,
            resources_per_worker=held | ({"GPU": size.gpus} if size.gpus else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if size.gpus else "gloo"),
        run_config=RunConfig(
            name=uuid.uuid4().hex,  # under a name that it knows Ray would resume; the store does that
            storage_path=folder,
            storage_filesystem=files,
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    from ray.util import get_current_placement_group

    gate, group = config["gate"], Group()

    def report(point: Progress) -> None:
        ended = group.rank == 0 and not ray.get(gate.offer.remote(point))
        if group.total(float(ended)):
            raise _EndedEarly

    prepare_process(config["size"])
    workspace = worker_workspace(config["opened"])
    if group.rank == 0:
        placement = get_current_placement_group()
        assert placement is not None
        files, folder = _place(workspace.trial(config["run"]))
        with files.open_output_stream(f"{folder}/{PLACEMENT}") as stream:
            stream.write(placement.id.hex().encode())
    try:
        run_opened(config["opened"], config["run"], report, group)
    except UserError as error:
        ray.get(gate.refuse.remote(error))
        raise  # the other ranks may be waiting for this one: all of them have to end
    except _EndedEarly:
        return
