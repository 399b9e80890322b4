"""A training run of seconds: a tiny BERT, eight queries, fourteen documents; and what two ranks do with it."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ranks
import torch
from safetensors.torch import save_file
from tiny import Memory, model, sequences

from data import Batch, BatchPlan, Examples, PooledNegatives, Qrels, RandomNegatives
from losses import Loss, Signals
from orchestrator import training
from orchestrator.checkpoints import Checkpoints
from orchestrator.config import Experiment, TrainingSettings
from orchestrator.encoder import BiEncoder
from orchestrator.encoding import Encoding, TokenCount
from orchestrator.group import Group
from orchestrator.records import Cost, Progress
from orchestrator.refresh import Refresh
from orchestrator.training import Tokens, Validated, train
from orchestrator.tuning import run_opened
from orchestrator.validation import Validator
from orchestrator.workspace import Workspace

QUERY_LENGTHS = [3, 4, 5, 6, 3, 4, 5, 6]
DOCUMENT_LENGTHS = [4, 12, 7, 5, 9, 11, 4, 8, 10, 6, 5, 7, 12, 3]
BATCH = 4
RELEVANT = Qrels(np.arange(8), np.array([0, 1, 2, 3, 4, 5, 6, 6]), np.ones(8, np.int32))  # two queries share one

LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "adaptive-rows": ("margin", {"target": "adaptive", "in_batch": "rows"}),
    "static-columns": ("margin", {"target": 0.3, "in_batch": "columns"}),
    "distributed": ("margin", {"target": "distributed"}),
    "infonce": ("infonce", {"temperature": 0.1}),
    "scaled": ("scaled", {}),  # has a parameter of its own
    "margin-mse": ("margin-mse", {}),
    "score-kl": ("score-kl", {"in_batch": True}),
    "matching": ("embedding-matching", {}),
    "inherited": ("infonce", {"temperature": 0.1}),  # queries alone are encoded
}


def tokens() -> Tokens:
    rows = (Memory(sequences(QUERY_LENGTHS, seed=1)), Memory(sequences(DOCUMENT_LENGTHS, seed=2)))
    return Tokens(*rows)  # type: ignore[arg-type]


def plan(epochs: int = 3, K: int = 1, batch_size: int = BATCH) -> BatchPlan:
    """Two steps an epoch."""
    return BatchPlan(Examples.of(RELEVANT), RandomNegatives(14, RELEVANT, K), batch_size, epochs, seed=5)


def settings(**changes: Any) -> TrainingSettings:
    values = {
        "batch_size": BATCH,
        "epochs": 3,
        "learning_rate": 1e-3,
        "warmup": 0.5,
        "weight_decay": 5.0,
        "clip": 0.5,
        "precision": "fp32",
        "token_budget": 10_000,
        "activation_tokens": 10_000,
        "validations": 2,
        "checkpoint_seconds": 1000.0,
    }
    return TrainingSettings(**{**values, **changes})


def signals(batch: Batch) -> Signals:
    """What a teacher with fixed vectors says."""
    generator = torch.Generator().manual_seed(11)
    queries, documents = (torch.randn(count, 32, generator=generator) / 6 for count in (8, 14))
    rows = np.concatenate([batch.positives[:, None], batch.negatives], axis=1)
    q, d = queries[torch.from_numpy(batch.queries)], documents[torch.from_numpy(rows)]
    return Signals(torch.einsum("bd,bcd->bc", q, d), q, d, "dot")


def encoder(dropout: float = 0.0) -> BiEncoder:
    backbone = model("bert", layers=2, dropout=dropout)
    backbone.pooler = None
    return BiEncoder(backbone, "mean", True).eval()


def encoding(token_budget: int = 10_000) -> Encoding:
    return Encoding(torch.device("cpu"), "fp32", token_budget, pad_id=0)


VALIDATED = Validated(0.5, TokenCount(tokens=7, padded=9, flops=100.0))


class Recorder:
    """Keeps what a run reports; `stop_after` reports it raises, as a kill or a scheduler would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.points: list[Progress] = []
        self.costs: list[tuple[Cost, ...]] = []
        self.stop_after = stop_after

    def __call__(self, point: Progress, costs: tuple[Cost, ...]) -> None:
        self.points.append(point)
        self.costs.append(costs)
        if len(self.points) == self.stop_after:
            raise Stopped

    @property
    def curve(self) -> list[tuple[Any, ...]]:
        """Everything about the points but the seconds."""
        return [(p.step, p.examples, p.loss, p.validation, p.diagnostics) for p in self.points]


class Stopped(BaseException):
    """The end of a run before its time."""


def run(
    loss: Loss,
    folder: Path,
    recorder: Recorder,
    *,
    trained: BiEncoder | None = None,
    group: Group | None = None,
    of: BatchPlan | None = None,
    validate: Callable[[BiEncoder, Group], Validated] = lambda encoder, group: VALIDATED,
    inherits: bool = False,
    **changes: Any,
) -> BiEncoder:
    """Train; the trained encoder."""
    trained, chosen = trained or encoder(), settings(**changes)
    train(
        of or plan(),
        tokens(),
        trained,
        loss,
        chosen,
        encoding(chosen.token_budget),
        validate=validate,
        report=recorder,
        checkpoints=Checkpoints(folder),
        group=group,
        signals=signals if inherits or loss.needs & {"teacher_documents", "teacher_scores"} else None,
        inherits=inherits,
    )
    return trained


def validator(token_budget: int = 40) -> Validator:
    """Scores on six queries, judged otherwise than trained, over twelve of the documents."""
    relevance = np.array([1, 2, 1, 0, 3, 1, 1], np.int32)
    qrels = Qrels(np.array([0, 0, 1, 2, 3, 4, 5]), np.array([3, 8, 2, 9, 5, 1, 7]), relevance)
    return Validator(tokens(), qrels, np.arange(1, 13), encoding(token_budget))


def curves(group: Group, folder: Path) -> None:
    """Rank task: every loss trained, then one stopped and resumed, and a validation."""
    for name in LOSSES:
        loss, recorder = ranks.build(*LOSSES[name]), Recorder()
        inherits = name == "inherited"
        trained = run(loss, folder / f"none-{name}", recorder, group=group, of=plan(K=2), inherits=inherits)
        write(folder / f"{name}-{group.rank}", trained, loss, recorder)
    for attempt in (3, None):  # stopped in its third report; then to the end
        loss, recorder = ranks.build(*LOSSES["infonce"]), Recorder(attempt)
        trained = encoder()
        try:
            run(loss, folder / "kept", recorder, trained=trained, group=group, of=plan(K=2), checkpoint_seconds=0.0)
        except Stopped:
            group.wait()
    write(folder / f"resumed-{group.rank}", trained, loss, recorder)
    validated = validator()(encoder(), group)
    (folder / f"validated-{group.rank}.json").write_text(json.dumps([validated.score, asdict(validated.encoded)]))


def write(path: Path, trained: BiEncoder, loss: Loss, recorder: Recorder) -> None:
    weights = {**trained.state_dict(), **{f"loss.{k}": v for k, v in loss.state_dict().items()}}
    save_file(weights, str(path.with_name(f"{path.name}.safetensors")))
    value = {
        "losses": [point.loss for point in recorder.points],
        "validations": [point.validation for point in recorder.points],
        "costs": [[cost.stage, cost.examples, cost.tokens, cost.flops, cost.devices] for cost in recorder.costs[-1]],
    }
    path.with_name(f"{path.name}.json").write_text(json.dumps(value))


def weights(trained: BiEncoder) -> torch.Tensor:
    """All weights in a row but the keys' biases: their true gradient is 0, and Adam turns rounding into steps."""
    kept = [parameter for name, parameter in trained.named_parameters() if "key.bias" not in name]
    return torch.nn.utils.parameters_to_vector(kept).detach()


def cached(group: Group, folder: Path) -> None:
    """Rank task: trained with dropout, each batch encoded once, and with gradient caching."""
    found = {}
    for name, (way, activation_tokens) in product(("distributed", "scaled"), (("plain", 10_000), ("cached", 24))):
        trained = run(
            ranks.build(*LOSSES[name]),
            folder / f"none-{name}-{way}",
            Recorder(),
            trained=encoder(dropout=0.2),
            group=group,
            of=plan(K=2),
            token_budget=24,
            activation_tokens=activation_tokens,
        )
        found[f"{name} {way}"] = weights(trained)
    save_file(found, str(folder / f"rank-{group.rank}.safetensors"))


def refreshed(group: Group, folder: Path) -> None:
    """Rank task: the negatives of the second epoch, for the experiment in the folder."""
    workspace = Workspace(Experiment.model_validate_json((folder / "experiment.json").read_text()))
    count = TokenCount()
    refresh = Refresh(workspace, folder / "run", workspace.encoding("fp32", None))
    source = refresh(1, workspace.load_encoder(), group, count)
    assert isinstance(source, PooledNegatives)
    value = {"rows": source.pools[0].rows.tolist(), "tokens": count.tokens}
    (folder / f"rows-{group.rank}.json").write_text(json.dumps(value))


def on_machines(group: Group, folder: Path) -> None:
    """Rank task: a run of an opened workspace, each rank on a machine of its own; it may be killed before a step."""
    opened, spec, deadly, machines = pickle.loads((folder / "run.pickle").read_bytes())  # noqa: S301 - the test's own
    os.environ["STILLHOUSE_CACHE"] = machines[group.rank]
    learn, steps = training._BiEncoderLearner.learn, []

    def noted(self: Any, step: int, group: Group) -> Any:
        if step and step == deadly:
            raise KeyboardInterrupt
        steps.append(step)
        return learn(self, step, group)

    training._BiEncoderLearner.learn = noted  # type: ignore[method-assign]
    with suppress(KeyboardInterrupt):
        run_opened(opened, spec, lambda point: None, group)
    (folder / f"steps-{group.rank}.json").write_text(json.dumps(steps))
