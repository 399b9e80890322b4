"""The training core, pinned: curve, learning rates and weights equal a loop written out by hand; stopped and resumed,
it ends with the same bits; two ranks follow the curve of one; a document that occurs twice is encoded once; the
schedule, the validation points and the costs by hand; a loss that is not finite is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import state_equal
from tiny_training import (
    BATCH,
    DOCUMENT_LENGTHS,
    LOSSES,
    QUERY_LENGTHS,
    RELEVANT,
    VALIDATED,
    Recorder,
    Stopped,
    encoder,
    plan,
    run,
    settings,
    tokens,
    validator,
)
from torch import nn

import losses
from data import BatchPlan, Examples, Qrels, RandomNegatives, UserError
from losses import Embeddings, Loss, LossOutput, Signals
from orchestrator import training as training_core
from orchestrator.checkpoints import Checkpoints
from orchestrator.encoder import BiEncoder
from orchestrator.encoding import Encoding
from orchestrator.group import Group
from orchestrator.training import Meter, learning_rate_factor, validation_points
from orchestrator.usage import Usage

# By hand: 6 steps, half of them warm-up: a third, two thirds, the whole; then from the whole down by thirds.
RATES = [1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3]


PAIRS = set(zip(RELEVANT.query_row.tolist(), RELEVANT.doc_row.tolist(), strict=True))


def by_hand(trained: BiEncoder, loss: Loss, of: BatchPlan) -> tuple[list[float], list[float]]:
    """Train with nothing but arithmetic; the losses and the gradient norms of all steps."""
    chosen, rows = settings(), tokens()
    named = [*trained.named_parameters(), *((f"loss.{name}", p) for name, p in loss.named_parameters())]
    first, second = ({name: torch.zeros_like(p) for name, p in named} for _ in range(2))
    curve, norms, masked = [], [], []
    for step in range(6):
        batch = of.batch(step)

        def vector(ids: Any) -> torch.Tensor:
            states = trained.backbone(input_ids=torch.tensor(ids[None], dtype=torch.int64)).last_hidden_state[0]
            mean = states.mean(0)
            return mean / mean.norm()

        documents = [*batch.positives, *batch.negatives.ravel()]
        other = [[i != c and (q, d) in PAIRS for c, d in enumerate(documents)] for i, q in enumerate(batch.queries)]
        masked.append(any(map(any, other)))
        out = loss(
            Embeddings(
                torch.stack([vector(rows.queries.take([row])[0]) for row in batch.queries]),
                torch.stack([vector(rows.documents.take([row])[0]) for row in batch.positives]),
                torch.stack(
                    [torch.stack([vector(rows.documents.take([n])[0]) for n in line]) for line in batch.negatives]
                ),
                torch.tensor(other),
            )
        )
        curve.append(out.loss.item())
        grads = torch.autograd.grad(out.loss, [p for _, p in named], allow_unused=True)
        gradients = {name: g for (name, _), g in zip(named, grads, strict=True) if g is not None}
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
        norms.append(norm)
        t, rate = step + 1, chosen.learning_rate * RATES[step]
        with torch.no_grad():
            for name, p in named:
                g = gradients[name] * min(1.0, 0.5 / norm)
                m = first[name] = 0.9 * first[name] + 0.1 * g
                v = second[name] = 0.999 * second[name] + 0.001 * g * g
                if p.ndim > 1:
                    p -= rate * chosen.weight_decay * p
                p -= rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    assert any(masked), "what is relevant to another query is met"
    return curve, norms


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("name", ["adaptive-rows", "infonce", "scaled"])
def test_equals_the_loop_by_hand(tmp_path: Path, name: str, K: int) -> None:
    expected, expected_loss = encoder(), ranks.build(*LOSSES[name])
    expected.train()  # without dropout the same as at rest
    curve, norms = by_hand(expected, expected_loss, plan(K=K))
    assert max(norms) > 0.5, "clipping acts"
    loss, recorder = ranks.build(*LOSSES[name]), Recorder()
    trained = run(loss, tmp_path, recorder, of=plan(K=K))
    assert [point.step for point in recorder.points] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([point.loss for point in recorder.points], curve, rtol=2e-4)
    before = dict(encoder().named_parameters())
    moved = 0.0
    for (key, ours), theirs in zip(trained.named_parameters(), expected.parameters(), strict=True):
        # A key's bias cancels in the softmax: its true gradient is 0, and Adam turns what rounding leaves into steps.
        if "key.bias" not in key:
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3, msg=key)
            moved = max(moved, (ours - before[key]).abs().max().item())
    assert moved > 2e-3, "and this is not because nothing moved"
    torch.testing.assert_close(list(loss.parameters()), list(expected_loss.parameters()), atol=1e-5, rtol=0)


def test_the_learning_rates_by_hand() -> None:
    assert [learning_rate_factor(step, 6, 0.5) for step in range(6)] == pytest.approx(RATES)
    assert [learning_rate_factor(step, 4, 0.0) for step in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert [learning_rate_factor(step, 4, 0.25) for step in range(4)] == pytest.approx([1, 1, 2 / 3, 1 / 3])
    assert [learning_rate_factor(step, 5, 0.5) for step in range(5)] == pytest.approx([0.4, 0.8, 1, 0.8, 0.4])
    assert learning_rate_factor(0, 1, 0.1) == 1
    assert [learning_rate_factor(step, 4, 0.5, "constant") for step in range(4)] == [0.5, 1, 1, 1]


@given(st.integers(1, 1000), st.floats(0, 0.99))
def test_the_learning_rate_rises_and_falls_within_its_bounds(total: int, warmup: float) -> None:
    rates = [learning_rate_factor(step, total, warmup) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_validation_points_by_hand() -> None:
    assert validation_points(10, 4) == [3, 5, 8, 10]  # 2.5, 5, 7.5 and 10, rounded up
    assert validation_points(6, 1) == [6]
    assert validation_points(3, 4) == [1, 2, 3]  # no step twice
    assert validation_points(200, 4) == [50, 100, 150, 200]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_stopped_and_resumed_ends_with_the_same_bits(tmp_path: Path, stop_after: int, dropout: float) -> None:
    whole = Recorder()
    loss = ranks.build(*LOSSES["scaled"])
    uninterrupted = run(loss, tmp_path / "never", whole, trained=encoder(dropout))
    parts = [Recorder(stop_after), Recorder()]
    with pytest.raises(Stopped):
        run(ranks.build(*LOSSES["scaled"]), tmp_path / "kept", parts[0], trained=encoder(dropout), checkpoint_seconds=0)
    torch.manual_seed(99)  # another process has other random numbers
    again = ranks.build(*LOSSES["scaled"])
    resumed = run(again, tmp_path / "kept", parts[1], trained=encoder(dropout), checkpoint_seconds=0)
    assert state_equal(resumed.state_dict(), uninterrupted.state_dict())
    assert state_equal(again.state_dict(), loss.state_dict())
    # It was stopped in a report, before the checkpoint of that step.
    assert parts[1].curve == whole.curve[stop_after - 1 :]
    assert parts[0].curve == whole.curve[:stop_after]
    # Costs go on from the checkpoint too.
    untimed = [[(c.stage, c.examples, c.tokens, c.flops) for c in costs] for costs in parts[1].costs]
    assert (
        untimed == [[(c.stage, c.examples, c.tokens, c.flops) for c in costs] for costs in whole.costs][-len(untimed) :]
    )


class Table(nn.Module):
    """An encoder of microseconds: a table of word vectors. Raises at its n-th call."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(80, 4)
        self.calls, self.fail_at = 0, fail_at

    class config:  # noqa: N801 - stands for a configuration
        hidden_size, num_hidden_layers, intermediate_size = 4, 1, 8

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.calls += 1
        if self.calls == self.fail_at:
            raise Stopped
        return type("Output", (), {"last_hidden_state": self.words(input_ids)})


@pytest.mark.parametrize("fail_at", [22, 23])
def test_a_kill_between_two_reports_changes_no_point(tmp_path: Path, fail_at: int) -> None:
    # A long run reports the mean loss of every so many steps; what a kill cuts off must not be missing from a mean.
    of = plan(epochs=201)
    assert of.total_steps == 402  # a report every 2 steps, and at the validations after 201 and 402
    whole, parts = Recorder(), [Recorder(), Recorder()]
    loss = losses.build("infonce")
    uninterrupted = run(loss, tmp_path / "never", whole, trained=BiEncoder(Table(), "mean", True), of=of)
    assert len(whole.points) == 202
    assert whole.points[10].loss != whole.points[11].loss
    with pytest.raises(Stopped):
        run(
            loss,
            tmp_path / "kept",
            parts[0],
            trained=BiEncoder(Table(fail_at), "mean", True),
            of=of,
            checkpoint_seconds=0,
        )
    trained = BiEncoder(Table(), "mean", True)
    resumed = run(loss, tmp_path / "kept", parts[1], trained=trained, of=of)
    assert trained.backbone.calls == 402 - (20 if fail_at == 22 else 22)  # it did not begin again
    assert parts[1].curve == whole.curve[-len(parts[1].points) :]
    assert len(parts[0].points) + len(parts[1].points) == 202
    assert state_equal(resumed.state_dict(), uninterrupted.state_dict())


def test_a_finished_run_keeps_no_checkpoint_of_its_last_step(tmp_path: Path) -> None:
    run(losses.build("infonce"), tmp_path, Recorder(), checkpoint_seconds=0)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
    run(losses.build("infonce"), tmp_path / "none", Recorder(), checkpoint_seconds=1000)
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote."""
    folder = tmp_path_factory.mktemp("two-ranks")
    ranks.together("curves", folder)
    return folder


@pytest.mark.parametrize("name", [*LOSSES, "resumed"])
def test_two_ranks_follow_the_curve_of_one(two: Path, tmp_path: Path, name: str) -> None:
    loss, recorder = ranks.build(*LOSSES[name if name in LOSSES else "infonce"]), Recorder()
    trained = run(loss, tmp_path, recorder, of=plan(K=2), inherits=name == "inherited")
    curve = [point.loss for point in recorder.points]
    assert len(set(curve)) == 6
    found = [json.loads((two / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0]["losses"] == found[1]["losses"]
    np.testing.assert_allclose(found[0]["losses"], curve[-len(found[0]["losses"]) :], rtol=1e-4)
    assert len(found[0]["losses"]) == (4 if name == "resumed" else 6)
    assert found[0]["validations"][-1] == 0.5
    weights = [load_file(two / f"{name}-{rank}.safetensors") for rank in (0, 1)]
    assert state_equal(*weights)
    for key, ours in {**trained.state_dict(), **{f"loss.{k}": v for k, v in loss.state_dict().items()}}.items():
        if "key.bias" not in key:
            torch.testing.assert_close(weights[0][key], ours, atol=2e-4, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", ["infonce", "resumed"])
def test_two_ranks_count_what_both_encode(two: Path, name: str) -> None:
    expected = 0
    for step in range(6):
        batch = plan(K=2).batch(step)
        sizes = [
            QUERY_LENGTHS[query] + sum(DOCUMENT_LENGTHS[row] for row in (positive, *negatives))
            for query, positive, negatives in zip(*(column.tolist() for column in batch), strict=True)
        ]
        for rank in (0, 1):
            part = batch.balanced(np.array(sizes), 2).part(rank, 2)
            rows = {*part.positives.tolist(), *part.negatives.ravel().tolist()}
            expected += sum(QUERY_LENGTHS[row] for row in {*part.queries.tolist()})
            expected += sum(DOCUMENT_LENGTHS[row] for row in rows)
    for rank in (0, 1):
        training, validation = json.loads((two / f"{name}-{rank}.json").read_text())["costs"]
        assert (training[:3], training[4]) == (["training", 24, expected], 2)  # two ranks with a thread each
        assert validation == ["validation", 0, 2 * 2 * VALIDATED.encoded.tokens, 400.0, 2]


def test_two_ranks_validate_as_one(two: Path) -> None:
    alone = validator()(encoder(), Group())
    found = [json.loads((two / f"validated-{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0][0] == found[1][0] == alone.score
    assert found[0][1]["tokens"] + found[1][1]["tokens"] == alone.encoded.tokens
    assert min(found[0][1]["tokens"], found[1][1]["tokens"]) > 0


class Counted(Encoding):
    """Keeps the sequences that were encoded."""

    def encode_chunks(self, encoder: BiEncoder, chunks: Any, count: Any = None) -> Iterator[torch.Tensor]:
        seen.append([sequence.tolist() for chunk in chunks for sequence in chunk])
        return super().encode_chunks(encoder, chunks, count)


seen: list[list[list[int]]] = []


def test_what_occurs_twice_in_a_batch_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Four examples of two queries, one document for all, and of four documents only three to draw from.
    qrels = Qrels(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.ones(4, np.int32))
    of = BatchPlan(Examples.of(qrels), RandomNegatives(4, qrels, 2), batch_size=4, epochs=1, seed=0)
    batch = of.batch(0)
    documents = [*batch.positives.tolist(), *batch.negatives.ravel().tolist()]
    assert len(documents) == 12
    assert len(set(documents)) == 4
    assert len(set(batch.queries.tolist())) == 2
    monkeypatch.setattr("tiny_training.encoding", lambda budget: Counted(torch.device("cpu"), "fp32", budget, 0))
    seen.clear()
    recorder = Recorder()
    run(losses.build("infonce", temperature=0.1), tmp_path, recorder, of=of, clip=None)
    (encoded,) = seen
    rows = tokens()
    assert sorted(encoded) == sorted(
        [x.tolist() for x in rows.queries.take([0, 1])] + [x.tolist() for x in rows.documents.take([0, 1, 2, 3])]
    )

    # The same loss, each occurrence encoded by itself.
    at_rest, alone = encoder(), Encoding(torch.device("cpu"), "fp32", 10_000, 0)
    with torch.no_grad():
        out = losses.build("infonce", temperature=0.1)(
            Embeddings(
                alone.encode(at_rest, rows.queries.take(batch.queries)),
                alone.encode(at_rest, rows.documents.take(batch.positives)),
                alone.encode(at_rest, rows.documents.take(batch.negatives.ravel())).view(4, 2, -1),
                # Both queries have both positives, and the negatives are neither.
                torch.cat([~torch.eye(4, dtype=torch.bool), torch.zeros(4, 8, dtype=torch.bool)], dim=1),
            )
        )
    assert recorder.points[0].loss == pytest.approx(out.loss.item(), rel=1e-5)
    expected = {name: value.item() for name, value in out.diagnostics.items()}
    assert recorder.points[0].diagnostics == pytest.approx(expected, rel=1e-4, abs=1e-6)  # margins are differences
    (training, _) = recorder.costs[0]
    assert training.tokens == 3 + 4 + 4 + 12 + 7 + 5


@pytest.mark.parametrize("token_budget", [10_000, 24])
def test_costs_by_hand(tmp_path: Path, token_budget: int) -> None:
    recorder = Recorder()
    run(losses.build("infonce"), tmp_path, recorder, token_budget=token_budget)
    assert [bool(costs) for costs in recorder.costs] == [False, False, True, False, False, True]  # where validated
    assert [point.validation for point in recorder.points] == [None, None, 0.5, None, None, 0.5]
    assert [point.examples for point in recorder.points] == [4, 8, 12, 16, 20, 24]
    of, count, flops, expected = plan(), 0, 0, []
    for step in range(6):
        batch = of.batch(step)
        documents = {*batch.positives.tolist(), *batch.negatives.ravel().tolist()}
        lengths = [QUERY_LENGTHS[row] for row in batch.queries] + [DOCUMENT_LENGTHS[row] for row in documents]
        count += sum(lengths)
        left = sorted(lengths, reverse=True)
        while left:
            n, L = max(1, min(len(left), token_budget // left[0])), left[0]
            # D = 32, F = 64, two layers, 2 FLOPs a multiply-add; forward and, twice as much, backward.
            # Products of the tokens, attention over the padded chunk.
            flops += 3 * 2 * (sum(left[:n]) * 2 * (4 * 32 * 32 + 2 * 32 * 64) + n * L * 4 * L * 32)
            left = left[n:]
        expected.append((count, flops))
    for step, validations in ((3, 1), (6, 2)):
        training, validation = recorder.costs[step - 1]
        assert (training.stage, training.examples) == ("training", step * BATCH)
        assert (training.tokens, training.flops) == expected[step - 1]
        assert (validation.stage, validation.examples) == ("validation", 0)
        assert (validation.tokens, validation.flops) == (7 * validations, 100.0 * validations)
        for cost in (training, validation):
            assert (cost.device, cost.devices, cost.precision) == ("cpu", torch.get_num_threads(), "fp32")
            assert cost.device_seconds == cost.wall_seconds * cost.devices > 0
            assert 5e7 < cost.peak_bytes < 1e11  # torch alone is more than 50 MB
        assert recorder.points[step - 1].device_seconds == training.device_seconds
    seconds = [point.device_seconds for point in recorder.points]
    assert seconds == sorted(seconds)


class Scripted:
    """A gauge of usages in their order: of what came before the first step, then of each reading."""

    place = "here"

    def __init__(self, usages: list[Usage]) -> None:
        self._usages = iter(usages)

    def read(self) -> Usage:
        return next(self._usages)

    def poll(self) -> None:
        pass


def test_peaks_and_energy_go_to_the_stage_that_they_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    between = Usage(9_999, 99.0)  # while it is reported
    validated = [Usage(300, 4.0), Usage(700, 1.0), between]
    read = [Usage(100, 1.0), between, Usage(200, 2.0), between, *validated]
    gauge = Scripted([*read, *read])
    monkeypatch.setattr(training_core, "Gauge", lambda device: gauge)
    recorder = Recorder()
    run(losses.build("infonce"), tmp_path, recorder, checkpoint_seconds=0)
    for step, parts in ((3, 1), (6, 2)):
        training, validation = recorder.costs[step - 1]
        assert (training.peak_bytes, training.joules) == (300, 7.0 * parts)
        assert (validation.peak_bytes, validation.joules) == (700, 1.0 * parts)
    # What a checkpoint has is gone on from; one that was written before has none of it.
    counters = Checkpoints(tmp_path).latest().counters  # type: ignore[union-attr]
    meter = Meter.from_counters(counters, Group())
    assert meter.training_usage == Usage(300, 10.0)  # after five steps
    old = {name: value for name, value in counters.items() if not name.endswith("usage")}
    assert Meter.from_counters(old, Group()).training_usage == Usage()


class Diverging(Loss):
    """Is no longer finite from its second call on."""

    name, paper = "diverging", "made up"

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.calls = value, 0

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        self.calls += 1
        per_example = embeddings.queries.sum(1) * (self.value if self.calls > 1 else 1.0)
        return LossOutput(per_example.mean(), per_example, {})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_and_not_kept(tmp_path: Path, value: float) -> None:
    recorder = Recorder()
    with pytest.raises(UserError) as refused:
        run(Diverging(value), tmp_path, recorder, checkpoint_seconds=0)
    text = str(refused.value)
    assert text.startswith("training.learning_rate: the loss is ")
    assert text.endswith(" at step 2. Lower it (0.001), or use precision: fp32.")
    assert [point.step for point in recorder.points] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
