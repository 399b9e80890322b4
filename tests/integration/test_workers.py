"""Pins: two workers learn what one learns; a run that is ended early gives its CPUs back; what the user can mend
arrives from a worker as it is.
"""

from __future__ import annotations

import pytest
from flow import Ended, Flow

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TWO = ("--set", "scaling.workers=2", "--set", "scaling.cpus_per_worker=1")
SEARCH = "{recipe: static-margin, tune: {scheduler: asha, reduction_factor: 2, space: {target: [0.3, 1.0]}}}"


@pytest.mark.timeout(300)
def test_two_workers_learn_what_one_learns(compared: tuple[Flow, Ended], prepared: Flow) -> None:
    # The second run is ended early; were its workers still there, the evaluation would wait for the CPUs for ever.
    ended = prepared.run("compare", *TWO, "--set", f"recipes=[{SEARCH}]")
    assert ended.status == 0, ended.errors
    assert [trial["state"] for trial in prepared.comparison["results"][1]["trials"]] == ["finished", "stopped"]
    for trial, curve in prepared.curves.items():
        of_one = compared[0].curves[trial]
        assert [step for step, _, _ in curve] == [step for step, _, _ in of_one]
        assert [loss for _, loss, _ in curve] == pytest.approx([loss for _, loss, _ in of_one], abs=1e-4)
        assert [score for *_, score in curve] == [score for *_, score in of_one]
    assert prepared.measures["static-margin"] == compared[0].measures["static-margin"]
    used = {cost["devices"] for cost in prepared.comparison["costs"] if cost["stage"] == "training"}
    assert used == {2}


@pytest.mark.timeout(200)
def test_what_the_user_can_mend_arrives_from_a_worker(prepared: Flow) -> None:
    diverging = ("training.learning_rate=1e30", "training.clip=null", "recipes=[arm-adaptive]")
    ended = prepared.run("compare", *TWO, *(word for setting in diverging for word in ("--set", setting)))
    assert ended.status == 2, ended.errors
    assert ended.errors.splitlines()[-1].startswith(
        "training.learning_rate: arm-adaptive: the loss is nan at step 2. Lower it (1e+30)"
    )
    assert "Traceback" not in ended.errors
    assert not (prepared.store / "reports").exists()
