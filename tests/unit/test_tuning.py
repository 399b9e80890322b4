"""What tuning decides without Ray, pinned: the winner, and how many trials run side by side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster import Resources, WorkerSize
from orchestrator.config import Experiment
from orchestrator.records import Trial
from orchestrator.searches import winner_of
from orchestrator.tuning import concurrency


def experiment(workers: int) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "e",
            "collection": {"path": "c"},
            "encoder": {"model": "m"},
            "recipes": ["arm-adaptive"],
            "scaling": {"workers": workers},
        }
    )


def trial(name: str, validation: float, state: str = "finished") -> Trial:
    return Trial(name=name, parameters={}, state=state, validation=validation, curve=(), costs=())


def test_the_winner_by_hand() -> None:
    trials = [trial("a", 0.4), trial("b", 0.6), trial("c", 0.6), trial("d", 0.9, "stopped"), trial("e", 1, "failed")]
    assert winner_of(trials).name == "b", "the first of equals, and none that was stopped or failed"
    assert winner_of(trials[2:]).name == "c"
    assert winner_of(trials[:1]).name == "a"


@pytest.mark.parametrize(
    ("workers", "size", "available", "trials"),
    [
        (1, WorkerSize(2, 0), Resources(2, 0, 2, 0), 1),  # a trial has the whole machine
        (1, WorkerSize(2, 0), Resources(9, 0, 9, 0), 4),
        (2, WorkerSize(2, 0), Resources(9, 0, 9, 0), 2),
        (1, WorkerSize(1, 1), Resources(16, 4, 16, 4), 4),  # the GPUs are what there is least of
        (4, WorkerSize(1, 1), Resources(16, 8, 16, 8), 2),
        (1, WorkerSize(8, 1), Resources(16, 4, 16, 4), 2),  # or the CPUs
        (1, WorkerSize(1, 0.5), Resources(16, 1, 16, 1), 2),
        (1, WorkerSize(1, 0.25), Resources(16, 1, 16, 1), 4),
        (1, WorkerSize(1, 0.25), Resources(3, 1, 3, 1), 3),  # a core each
        (1, WorkerSize(1, 0.25), Resources(16, 2, 8, 1), 8),
        (3, WorkerSize(1, 0.1), Resources(64, 3, 64, 3), 10),  # 3 × 0.1 is a little more than 0.3
        (2, WorkerSize(1, 0), Resources(0, 0, 0, 0), 1),  # a cluster that has yet to grow
    ],
)
def test_trials_side_by_side(workers: int, size: WorkerSize, available: Resources, trials: int) -> None:
    assert concurrency(experiment(workers), size, available) == trials


@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 2.0]),
    st.integers(0, 64),
    st.integers(0, 8),
)
def test_never_more_than_there_is_room_for(workers: int, cpus: int, gpus: float, all_cpus: int, all_gpus: int) -> None:
    trials = concurrency(experiment(workers), WorkerSize(cpus, gpus), Resources(all_cpus, all_gpus, 8, 8))
    assert trials >= 1
    if trials > 1:
        assert trials * workers * cpus <= all_cpus
        assert trials * workers * gpus <= all_gpus + 1e-6
