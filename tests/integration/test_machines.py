"""A cluster of machines that share no folder, with a store in S3, pinned: a comparison comes to its end and has the
numbers of one machine, though the machine that trains is lost on the way, with all that lies on it.

The machines are Ray nodes that work in folders of their own. The driver's is `/proc/self/cwd/cache`, which is another
folder for every process, so nobody else can read what is in it by its path.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny_flow
import torch
from flow import ROOT, end_session

from data import Store
from data.remote import Remote
from orchestrator.config import load
from orchestrator.runs import runs_of
from orchestrator.trial import read_trial, run_trial
from orchestrator.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# The search for which tasks pay is done in tasks, on the machines that have CPUs.
DRIVER = "from orchestrator.search import tasks; tasks._PAYING = 0; from orchestrator.cli import main; main()"
DETECTED = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


@pytest.fixture
def uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder in a bucket of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "some")
    uri = f"s3://bucket/deep?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    Remote(uri)._files.create_dir("bucket")
    yield uri
    server.stop()


class Machines:
    """A head without CPUs, and two machines of so many, each with a folder to work in."""

    def __init__(self, folder: Path, cpus: int) -> None:
        from ray.cluster_utils import Cluster

        self.folders = {name: folder / name for name in ("a", "b")}
        head = {"num_cpus": 0, "env_vars": self._environment(folder / "head"), "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": DETECTED})
        self.nodes = {
            name: self.cluster.add_node(num_cpus=cpus, env_vars=self._environment(here))
            for name, here in self.folders.items()
        }

    def _environment(self, folder: Path) -> dict[str, str]:
        return {"STILLHOUSE_CACHE": str(folder), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}

    def have(self, pattern: str) -> list[str]:
        """The machines that have a file."""
        return [name for name, folder in self.folders.items() if list(folder.glob(f"*/{pattern}"))]

    def lose(self, name: str) -> None:
        """A machine and its disk."""
        self.cluster.remove_node(self.nodes[name], allow_graceful=False)
        while self._working(str(self.folders[name])):
            time.sleep(0.05)
        shutil.rmtree(self.folders[name])

    def _working(self, folder: str) -> bool:
        """Whether some process still works in a folder."""
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"STILLHOUSE_CACHE={folder}".encode() in environment.read_bytes().split(b"\0"):
                    return True
        return False


@pytest.fixture
def machines(request: pytest.FixtureRequest, tmp_path: Path, uri: str) -> Iterator[Machines]:
    """Started after the URI's credentials are in the environment."""
    machines = Machines(tmp_path / "machines", request.param)
    yield machines
    machines.cluster.shutdown()


def compare(machines: Machines, folder: Path, uri: str, *settings: str) -> subprocess.Popen[str]:
    """The driver, as a process of its own."""
    chosen = [part for setting in (f"store={uri}", *settings) for part in ("--set", setting)]
    environment = {
        **os.environ,
        "RAY_ADDRESS": machines.cluster.address,
        "STILLHOUSE_CACHE": "/proc/self/cwd/cache",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, "compare", "tiny.yaml", *chosen],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def curve(trial: Any) -> list[tuple[int, float, float | None]]:
    return [(point["step"], point["loss"], point["validation"]) for point in trial["curve"]]


def trained(folder: Path, uri: str) -> Any:
    """The only trial of the report."""
    report = folder / "cache" / Store(uri).root.name / "reports" / "tiny" / "comparison.json"
    (trial,) = [trial for result in json.loads(report.read_text())["results"] for trial in result["trials"]]
    return trial


@pytest.mark.timeout(600)
@pytest.mark.parametrize("machines", [1], indirect=True)  # one worker fills it, beside the trial
def test_a_run_on_two_machines(
    machines: Machines, uri: str, tmp_path: Path, tiny_collection: Path, tiny_model: Path
) -> None:
    tiny_flow.write_experiment(tmp_path / "driver", tiny_collection, tiny_model)
    workers = ["scaling.workers=2", "scaling.cpus_per_worker=1", "training.checkpoint_seconds=0"]
    process = compare(machines, tmp_path / "driver", uri, "recipes=[arm-adaptive]", *workers)
    try:
        output, errors = process.communicate(timeout=250)
    finally:
        end_session(process.pid)
    assert process.returncode == 0, errors
    for stage in ("collection", "tokens", "encoders", "trials"):
        assert machines.have(f"{stage}/*/manifest.json") == ["a", "b"], output
    trial = trained(tmp_path / "driver", uri)
    assert [step for step, _, score in curve(trial) if score is not None] == [4, 8]
    assert Remote(uri).names("ray-train") == []
    assert not [name for name in Remote(uri).names("trials") if ".partial/" in name]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("machines", [1], indirect=True)
def test_a_comparison_outlives_a_machine(
    machines: Machines, uri: str, tmp_path: Path, tiny_collection: Path, tiny_model: Path
) -> None:
    path = tiny_flow.write_experiment(tmp_path / "driver", tiny_collection, tiny_model)
    recipes = "recipes=[arm-adaptive]"
    training = ["training.epochs=60", "training.validations=6", "training.checkpoint_seconds=0.2"]
    process = compare(machines, tmp_path / "driver", uri, recipes, *training)
    try:
        remote = Remote(uri)
        while not (runs := [name for name in remote.names("trials") if "/run-" in name]):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        (lost,) = machines.have("trials/*.partial")
        (kept,) = {"a", "b"} - {lost}
        machines.lose(lost)
        output, errors = process.communicate(timeout=200)
    finally:
        end_session(process.pid)
    assert process.returncode == 0, errors
    assert runs

    # The one that was left has finished the run, and has from the URI what it took.
    for stage in ("collection", "tokens", "encoders", "trials"):
        assert machines.have(f"{stage}/*/manifest.json") == [kept], output
    assert not (Path.cwd() / "cache").exists()
    assert remote.names("ray-train") == []
    assert not [name for name in remote.names("trials") if ".partial/" in name]
    trial = trained(tmp_path / "driver", uri)

    # What one process makes of it.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    workspace = Workspace(load(path, [recipes, *training, f"store={tmp_path}/folder"]))
    (run,) = runs_of(workspace.experiment, workspace.experiment.recipes[0])
    run_trial(workspace, run, lambda point: None)
    torch.set_num_threads(threads)
    expected = read_trial(workspace.trial(run), run)
    assert curve(trial) == [(point.step, point.loss, point.validation) for point in expected.curve]
