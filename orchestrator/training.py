"""The training core: plain torch, read from top to bottom; the same under Ray Train, under Ray Tune and alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from data import Batch, BatchPlan, NegativeSource, TokenShards, UserError
from losses import Embeddings, Loss, LossOutput, Signals
from orchestrator.checkpoints import Checkpoints
from orchestrator.config import TrainingSettings
from orchestrator.encoder import BiEncoder
from orchestrator.encoding import Encoding, TokenCount, chunks
from orchestrator.gradient_cache import GradientCache
from orchestrator.group import Group
from orchestrator.records import Cost, Progress
from orchestrator.usage import Gauge, Usage

Costs = tuple[Cost, ...]


class DivergedError(UserError):
    """The loss, or the validation, is no longer finite; `costs` are those up to there."""

    costs: Costs = ()


class Tokens(NamedTuple):
    """What a training worker reads: token ids of queries and documents, by row."""

    queries: TokenShards
    documents: TokenShards


class Validated(NamedTuple):
    """A validation's nDCG@10 and what went through the encoder for it, on this rank."""

    score: float
    encoded: TokenCount


@dataclass
class Meter:
    """What a run has used so far: this rank's counts, or in a checkpoint those of all ranks together."""

    training_seconds: float = 0.0
    validation_seconds: float = 0.0
    training: TokenCount = field(default_factory=TokenCount)
    validation: TokenCount = field(default_factory=TokenCount)
    training_usage: Usage = field(default_factory=Usage)
    validation_usage: Usage = field(default_factory=Usage)

    @classmethod
    def from_counters(cls, counters: dict[str, Any], group: Group) -> Meter:
        """What a checkpoint holds; rank 0 goes on counting from it and the others from 0."""
        kinds = {"training": TokenCount, "validation": TokenCount, "training_usage": Usage, "validation_usage": Usage}
        kept = {name: counters.get(name, {}) if group.rank == 0 else {} for name in kinds}
        return cls(**{**counters, **{name: kind(**kept[name]) for name, kind in kinds.items()}})

    def of_all(self, group: Group) -> Meter:
        """The counts of all ranks together; every rank must ask."""

        def total(count: TokenCount) -> TokenCount:
            tokens, padded = int(group.total(count.tokens)), int(group.total(count.padded))
            return TokenCount(tokens, padded, group.total(count.flops))

        def used(usage: Usage) -> Usage:
            return Usage(int(group.largest(usage.peak_bytes)), group.total(usage.joules))

        return replace(
            self,
            training=total(self.training),
            validation=total(self.validation),
            training_usage=used(self.training_usage),
            validation_usage=used(self.validation_usage),
        )

    def costs(self, point: Progress, device: str, devices: int, precision: str) -> Costs:
        """Ledger entries of training and validation up to a point."""

        def cost(stage: str, seconds: float, examples: int, count: TokenCount, usage: Usage) -> Cost:
            return Cost(
                stage=stage,
                device=device,
                devices=devices,
                device_seconds=seconds * devices,
                wall_seconds=seconds,
                examples=examples,
                tokens=count.tokens,
                flops=count.flops,
                peak_bytes=usage.peak_bytes,
                joules=usage.joules,
                precision=precision,
            )

        return (
            cost("training", self.training_seconds, point.examples, self.training, self.training_usage),
            cost("validation", self.validation_seconds, 0, self.validation, self.validation_usage),
        )


class Learner(Protocol):
    """What `fit` trains.

    `modules` are those that have parameters, by the name that a checkpoint keeps them under; matrices of all but "loss"
    are decayed.
    """

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """By name."""
        ...

    def learn(self, step: int, group: Group) -> tuple[LossOutput, TokenCount]:
        """Give all parameters the gradient of a step's loss."""
        ...


def train(
    plan: BatchPlan,
    tokens: Tokens,
    encoder: BiEncoder,
    loss: Loss,
    settings: TrainingSettings,
    encoding: Encoding,
    *,
    validate: Callable[[BiEncoder, Group], Validated],
    report: Callable[[Progress, Costs], None],
    checkpoints: Checkpoints,
    group: Group | None = None,
    signals: Callable[[Batch], Signals] | None = None,
    refresh: Callable[[int, BiEncoder, Group, TokenCount], NegativeSource] | None = None,
    inherits: bool = False,
) -> None:
    """Minimise `loss` over the batches of `plan`; the trained weights are left in `encoder`.

    Goes on from the newest checkpoint, if there is one, exactly as if it had not been interrupted. Every rank calls
    it with the same arguments; each encodes its part of a batch, and all see the same loss, that of the whole batch.

    Args:
        validate: called on every rank, `settings.validations` times at even distances, the last time at the end.
        report: called on every rank at each validation, with the costs of training and validation so far, and some 200
            times a run without them.
        signals: what a teacher says of a whole batch.
        refresh: what the negatives of an epoch are drawn from, where the encoder in training has a say in it.
        inherits: the documents' vectors are the teacher's, which `signals` has; queries alone are encoded.

    Raises:
        DivergedError: the loss, or the validation, is no longer finite.
    """
    budget = settings.activation_tokens
    learner = _BiEncoderLearner(plan, tokens, encoder, loss, encoding, budget, signals, refresh, inherits)
    fit(
        learner,
        plan,
        settings,
        encoding.device,
        validate=lambda group: validate(encoder, group),
        report=report,
        checkpoints=checkpoints,
        group=group,
    )


def fit(
    learner: Learner,
    plan: BatchPlan,
    settings: TrainingSettings,
    device: torch.device,
    *,
    validate: Callable[[Group], Validated],
    report: Callable[[Progress, Costs], None],
    checkpoints: Checkpoints,
    group: Group | None = None,
) -> None:
    """Train whatever learns from the batches of `plan`; the arguments are those of `train`."""
    group = group or Group()
    modules = learner.modules
    for module in modules.values():
        module.to(device).train()
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    optimizer = _optimizer(modules, settings)
    start, meter = 0, Meter()
    if found := checkpoints.latest():
        found.restore(modules, optimizer)
        start, meter = found.step, Meter.from_counters(found.counters, group)

    devices = group.size * (1 if device.type == "cuda" else torch.get_num_threads())
    gauge = Gauge(device.type)
    counts_energy = group.first_at(gauge.place)  # ranks of one machine would count the same joules

    def used() -> Usage:
        usage = gauge.read()
        return usage if counts_energy else replace(usage, joules=0.0)

    validation_steps = validation_points(plan.total_steps, settings.validations)
    report_every = max(1, plan.total_steps // 200)
    losses: list[torch.Tensor] = []
    saved_at = time.monotonic()
    for step in range(start, plan.total_steps):
        began = time.perf_counter()
        torch.manual_seed(plan.seed * 1_000_003 + step * group.size + group.rank)  # dropout, if any: pure in the step
        for parameter_group in optimizer.param_groups:
            parameter_group["lr"] = settings.learning_rate * learning_rate_factor(
                step, plan.total_steps, settings.warmup, settings.schedule
            )

        optimizer.zero_grad(set_to_none=True)
        output, count = learner.learn(step, group)
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()

        losses.append(output.loss.detach())
        meter.training.include(count)
        done = step + 1
        at_validation = done in validation_steps
        if at_validation or done % report_every == 0:
            mean_loss = float(torch.stack(losses).mean())  # waits for the device
            losses.clear()
            meter.training_seconds += time.perf_counter() - began
            meter.training_usage.include(used())
            score, known = None, {"the loss": mean_loss}
            if at_validation and math.isfinite(mean_loss):
                began = time.perf_counter()
                validated = validate(group)
                score = known["the validation"] = validated.score
                meter.validation.include(validated.encoded)
                meter.validation_seconds += time.perf_counter() - began
                meter.validation_usage.include(used())
            point = Progress(
                step=done,
                examples=plan.examples_before(done),
                device_seconds=meter.training_seconds * devices,
                loss=mean_loss,
                validation=score,
                diagnostics={name: float(value) for name, value in output.diagnostics.items()},
            )
            so_far = meter.of_all(group)
            costs = so_far.costs(point, device.type, devices, settings.precision)
            for what, value in known.items():
                if not math.isfinite(value):
                    diverged = DivergedError(
                        f"{what} is {value} at step {done}",
                        where="training.learning_rate",
                        mend=f"Lower it ({settings.learning_rate}), or use precision: fp32.",
                    )
                    diverged.costs = costs
                    raise diverged
            report(point, costs if at_validation else ())
            # Here and not between two points: the mean loss of the next point then has all its steps after a kill too.
            due = time.monotonic() - saved_at >= settings.checkpoint_seconds
            if group.rank == 0 and done < plan.total_steps and due:
                checkpoints.save(done, modules, optimizer, asdict(so_far))
                saved_at = time.monotonic()
            gauge.read()  # to report and to save is neither training nor validation
        else:
            meter.training_seconds += time.perf_counter() - began
            gauge.poll()


def validation_points(total_steps: int, validations: int) -> list[int]:
    """The steps after which a run is validated: evenly spread, the last step among them."""
    return sorted({math.ceil(total_steps * i / validations) for i in range(1, validations + 1)})


def padding_share(
    plan: BatchPlan, tokens: Tokens, token_budget: int, workers: int, steps: int = 20, inherits: bool = False
) -> float:
    """The share of padding in the chunks that the first worker encodes in the first steps."""
    count = TokenCount()
    for step in range(min(steps, plan.total_steps)):
        batch = _batch(plan, step, tokens, workers).part(0, workers)
        rows = np.unique(batch.queries), np.unique(batch.documents)
        parts = [tokens.queries.lengths[rows[0]], *([] if inherits else [tokens.documents.lengths[rows[1]]])]
        lengths = np.concatenate(parts).astype(np.int64)
        for chunk in chunks(lengths, token_budget):
            count.tokens += int(lengths[chunk].sum())
            count.padded += len(chunk) * int(lengths[chunk[0]])
    return 1 - count.tokens / count.padded


def learning_rate_factor(step: int, total_steps: int, warmup: float, schedule: str = "linear") -> float:
    """Factor of the learning rate: linear from 0 over the warm-up share of the steps, then linear to 0, or 1."""
    warm = warmup * total_steps
    rising = (step + 1) / warm if warm > 0 else 1.0
    falling = (total_steps - step) / max(1.0, total_steps - warm) if schedule == "linear" else 1.0
    return max(0.0, min(1.0, rising, falling))


def _optimizer(modules: Mapping[str, nn.Module], settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW; vectors (biases, norms) and a loss's own parameters are not decayed."""
    trained = [(name, p) for name, module in modules.items() for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if p.ndim > 1 and name != "loss"], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained if p.ndim <= 1 or name == "loss"], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


class _BiEncoderLearner:
    """An encoder that minimises a loss over whole batches."""

    def __init__(
        self,
        plan: BatchPlan,
        tokens: Tokens,
        encoder: BiEncoder,
        loss: Loss,
        encoding: Encoding,
        activation_tokens: int,
        signals: Callable[[Batch], Signals] | None,
        refresh: Callable[[int, BiEncoder, Group, TokenCount], NegativeSource] | None,
        inherits: bool,
    ) -> None:
        self.modules: Mapping[str, nn.Module] = {"encoder": encoder, "loss": loss}
        self._plan, self._tokens, self._encoder, self._loss = plan, tokens, encoder, loss
        self._encoding, self._activation_tokens = encoding, activation_tokens
        self._signals, self._refresh, self._inherits = signals, refresh, inherits
        self._epoch = -1

    def learn(self, step: int, group: Group) -> tuple[LossOutput, TokenCount]:
        """A row that occurs twice in this rank's part of the batch is encoded once."""
        plan, tokens, count = self._plan, self._tokens, TokenCount()
        if self._refresh and plan.epoch_of(step) != self._epoch:
            self._epoch = plan.epoch_of(step)
            plan.negatives = self._refresh(self._epoch, self._encoder, group, count)
        whole = _batch(plan, step, tokens, group.size)
        batch, relevant = whole.part(group.rank, group.size), plan.relevant(whole)
        documents = np.empty(0, np.int64) if self._inherits else batch.documents
        query_rows, query_index = np.unique(batch.queries, return_inverse=True)
        doc_rows, doc_index = np.unique(documents, return_inverse=True)
        sequences = tokens.queries.take(query_rows) + tokens.documents.take(doc_rows)
        cache = GradientCache(self._encoder, self._encoding, sequences, self._activation_tokens)
        index = torch.from_numpy(np.concatenate([query_index, len(query_rows) + doc_index])).to(cache.vectors.device)
        B, K = batch.negatives.shape
        signals = self._signals(whole) if self._signals else None
        vectors = cache.vectors.index_select(0, index)
        q = vectors[:B]
        if self._inherits:
            assert signals is not None
            assert signals.documents is not None
            p, n = signals.documents.to(q).split([1, K], dim=1)
            p = p[:, 0]
        else:
            p, n = (group.gather(each) for each in (vectors[B : 2 * B], vectors[2 * B :].view(B, K, -1)))
        embeddings = Embeddings(
            queries=group.gather(q),
            positives=p,
            negatives=n,
            relevant=torch.from_numpy(relevant).to(q.device) if relevant.any() else None,
        )
        self._loss.at(step / plan.total_steps)
        output = self._loss(embeddings, signals)
        output.loss.backward()
        cache.backward()
        group.sum_gradients(self._encoder.parameters())
        group.sum_gradients(self._loss.parameters(), scale=1 / group.size)  # every rank has the whole of these
        count.include(cache.count)
        return output, count


def _batch(plan: BatchPlan, step: int, tokens: Tokens, workers: int) -> Batch:
    """The batch of a step, in an order in which no worker's part has much more text than another's."""
    batch = plan.batch(step)
    if workers == 1:
        return batch
    documents = tokens.documents.lengths
    sizes = tokens.queries.lengths[batch.queries] + documents[batch.positives] + documents[batch.negatives].sum(axis=1)
    return batch.balanced(sizes, workers)
