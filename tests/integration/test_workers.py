"""Pins: two workers learn what one learns; a run that is ended early gives its CPUs back; what the user can mend
arrives from a worker as it is.
"""

from __future__ import annotations

from pathlib import Path

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
def test_workers_learn_from_a_teacher_on_what_was_mined_and_checked(prepared: Flow, tiny_cross_encoder: Path) -> None:
    model = f"model: {tiny_cross_encoder}, query_tokens: 12, document_tokens: 14"
    mined = f"{{source: mined, skip: 1, depth: 20, absolute_margin: 0.01, check: {{{model}}}}}"
    settings = (
        f"negatives={{per_query: 2, mix: [{mined}, {{source: random}}]}}",
        f"teacher={{cross_encoder: {{{model}}}}}",
        "recipes=[margin-mse]",
        "encoder.normalize=false",  # cosines could not take the margins of logits
    )
    ended = prepared.run("compare", *TWO, *(word for setting in settings for word in ("--set", setting)))
    assert ended.status == 0, ended.errors
    assert "queries have fewer than 2 mined; random documents fill up" in ended.errors
    assert "negatives a query: 2 own" in ended.errors
    assert f"teacher: scores of the pairs that training meets, {tiny_cross_encoder} (logit)" in ended.errors
    assert "margin-mse learns from a teacher" in ended.output
    ranked, checked = (cost for cost in prepared.comparison["costs"] if cost["stage"] == "mining")
    assert ranked["examples"] == 60 + 32
    assert checked["examples"] > 32
    (taught,) = (cost for cost in prepared.comparison["costs"] if cost["stage"] == "teaching")
    # Each training query with its document, and with two negatives in each of two epochs, of which some are the same.
    assert 32 < taught["examples"] <= 32 + 2 * 32 * 2
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
