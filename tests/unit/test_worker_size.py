"""What a training worker holds, pinned by hand; what can never be scheduled is refused, word for word."""

from __future__ import annotations

from typing import Any

import pytest

from data import UserError
from orchestrator.cluster import Resources, WorkerSize, worker_size
from orchestrator.config import Experiment

LAPTOP = Resources(cpus=2, gpus=0, node_cpus=2, node_gpus=0)
WORKSTATION = Resources(cpus=16, gpus=2, node_cpus=16, node_gpus=2)
CLUSTER = Resources(cpus=12, gpus=4, node_cpus=4, node_gpus=2)  # three machines, two of them with two GPUs


def size(available: Resources, **scaling: Any) -> WorkerSize:
    experiment = Experiment.model_validate(
        {
            "name": "e",
            "collection": {"path": "c"},
            "encoder": {"model": "m"},
            "recipes": ["arm-adaptive"],
            "scaling": scaling,
        }
    )
    return worker_size(experiment, available)


@pytest.mark.parametrize(
    ("available", "scaling", "expected"),
    [
        (LAPTOP, {}, WorkerSize(2, 0)),  # the whole machine
        (LAPTOP, {"workers": 2}, WorkerSize(1, 0)),
        (LAPTOP, {"workers": 1, "cpus_per_worker": 1}, WorkerSize(1, 0)),
        (WORKSTATION, {"workers": 3}, WorkerSize(5, 0)),
        (WORKSTATION, {"gpus_per_worker": 1}, WorkerSize(1, 1)),
        (WORKSTATION, {"workers": 4, "gpus_per_worker": 0.5}, WorkerSize(1, 0.5)),
        (WORKSTATION, {"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 8}, WorkerSize(8, 1)),
        (CLUSTER, {}, WorkerSize(4, 0)),
        (CLUSTER, {"workers": 3}, WorkerSize(1, 0)),
        (CLUSTER, {"workers": 3, "cpus_per_worker": 4}, WorkerSize(4, 0)),
        (CLUSTER, {"workers": 4, "gpus_per_worker": 1}, WorkerSize(1, 1)),
    ],
)
def test_sizes_by_hand(available: Resources, scaling: dict[str, Any], expected: WorkerSize) -> None:
    assert size(available, **scaling) == expected


@pytest.mark.parametrize(
    ("available", "scaling", "text"),
    [
        (
            LAPTOP,
            {"workers": 3},
            "scaling.workers: 3 workers × 1 CPUs need 3, there are 2. "
            "Set scaling.workers to 2 or less, or connect to a larger cluster.",
        ),
        (
            WORKSTATION,
            {"workers": 4, "cpus_per_worker": 5},
            "scaling.workers: 4 workers × 5 CPUs need 20, there are 16. "
            "Set scaling.workers to 3 or less, or connect to a larger cluster.",
        ),
        (
            LAPTOP,
            {"gpus_per_worker": 1},
            "scaling.gpus_per_worker: 1 workers × 1 GPUs need 1, there are 0. "
            "Set scaling.gpus_per_worker to 0 to train on CPUs.",
        ),
        (
            WORKSTATION,
            {"workers": 5, "gpus_per_worker": 0.5},
            "scaling.gpus_per_worker: 5 workers × 0.5 GPUs need 2.5, there are 2. Ask for fewer.",
        ),
        # There is as much in all, but on no single machine.
        (
            CLUSTER,
            {"cpus_per_worker": 6},
            "scaling.cpus_per_worker: a worker of 6 CPUs fits no machine: the largest has 4. Set it to 4 or less.",
        ),
        (
            CLUSTER,
            {"gpus_per_worker": 3},
            "scaling.gpus_per_worker: a worker of 3 GPUs fits no machine: the largest has 2. Set it to 2 or less.",
        ),
    ],
)
def test_what_can_never_be_scheduled(available: Resources, scaling: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as refused:
        size(available, **scaling)
    assert str(refused.value) == text
