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


@pytest.mark.timeout(300)
def test_workers_draw_from_what_an_encoder_mined(prepared: Flow) -> None:
    mix = (
        "negatives={per_query: 2, mix: [{source: mined, skip: 1, depth: 20, absolute_margin: 0.01}, {source: random}]}"
    )
    ended = prepared.run("compare", *TWO, "--set", mix, "--set", "recipes=[arm-adaptive]")
    assert ended.status == 0, ended.errors
    assert "queries have fewer than 2 mined; random documents fill up" in ended.errors
    assert "negatives a query: 2 own" in ended.errors
    (mined,) = (cost for cost in prepared.comparison["costs"] if cost["stage"] == "mining")
    assert mined["examples"] == 60 + 32
    # The corpus was encoded once untrained, for mining and evaluation, and once trained.
    sizes = [
        len(list(folder.glob("part-*"))) for folder in (prepared.store / "embeddings").iterdir() if folder.is_dir()
    ]
    assert len(sizes) == 5  # two corpora, two times the test queries, and the training queries


@pytest.mark.timeout(200)
def test_what_the_user_can_mend_arrives_from_a_worker(prepared: Flow) -> None:
    ended = prepared.run("compare", *TWO, "--set", "training.learning_rate=1e30", "--set", "training.clip=null")
    assert ended.status == 2, ended.errors
    assert ended.errors.splitlines()[-1].startswith(
        "training.learning_rate: the loss is nan at step 2. Lower it (1e+30)"
    )
    assert "Traceback" not in ended.errors
    assert not (prepared.store / "reports").exists()
