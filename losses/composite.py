"""Losses made of other losses: a weighted sum of several, one over several lengths of the vectors (Matryoshka)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from losses.checks import number, shown
from losses.contract import VECTORS, Embeddings, Loss, LossOutput, Signals, Space, output
from losses.similarity import unit

Build = Callable[..., Loss]


@dataclass(frozen=True)
class Term:
    """A loss in a sum: what its parameters and diagnostics are known by, and its weight at the start and at the end."""

    label: str
    loss: Loss
    weight: float = 1.0
    final_weight: float | None = None  # None: as at the start

    def weight_at(self, progress: float) -> float:
        """Linear between the two."""
        end = self.weight if self.final_weight is None else self.final_weight
        return self.weight + (end - self.weight) * progress


class Composite(Loss):
    """A loss made of others, which declares of itself what they do.

    of: makes one of its parameters, the parts by a function that builds a loss by name.
    """

    of: ClassVar[Callable[..., Composite]]

    def __init__(self, parts: Sequence[tuple[str, Loss]]) -> None:
        super().__init__()
        self.labels = tuple(label for label, _ in parts)
        self.parts = nn.ModuleList(loss for _, loss in parts)
        self.needs = frozenset[str]().union(*(loss.needs for _, loss in parts))
        self.matches_vectors = any(loss.matches_vectors for _, loss in parts)  # type: ignore[misc]
        self.takes_context = all(loss.takes_context for _, loss in parts if loss.needs & VECTORS)

    @property
    def losses(self) -> list[Loss]:
        """The losses that it is made of."""
        return [part for part in self.parts if isinstance(part, Loss)]

    @property
    def knobs(self) -> tuple[str, ...]:
        """Those of its parts."""
        return tuple(
            f"{label}.{knob}" for label, loss in zip(self.labels, self.losses, strict=True) for knob in loss.knobs
        )

    def negatives_met(self, B: int, K: int) -> int:
        """As many as the part does that meets most."""
        return max(loss.negatives_met(B, K) for loss in self.losses)

    def misfit(self, teacher: Space, student: Space) -> str | None:
        """The first that a part finds, where it looks at scores."""
        scored = (loss for loss in self.losses if "teacher_scores" in loss.needs)
        return next((found for loss in scored if (found := loss.misfit(teacher, student))), None)

    def at(self, progress: float) -> None:
        """Told to its parts."""
        for loss in self.losses:
            loss.at(progress)


class WeightedSum(Composite):
    """Several losses at once, each with a weight that may change linearly from the first step to the last.

    loss = Σ w(t) L, of terms such as "infonce + 1.0*score-kl + 5.0*embedding-matching": a weight that is left out is 1.
    Parameters of a term are named after it: infonce.temperature, embedding-matching.side; so are its weights,
    embedding-matching.weight and embedding-matching.final_weight. A loss that occurs twice needs labels:
    "embedding-matching:query + 0.5*embedding-matching:document", and then query.side.

    Args:
        terms: the sum.

    Needs what its terms need. Diagnostics: the value of each term before its weight, and those of the terms; of several
    with one name the first keeps it, the others have their label before it.

    Raises ValueError for a sum that cannot be read, an unknown loss, and what a term refuses.
    """

    name: ClassVar[str] = "weighted-sum"
    paper: ClassVar[str] = "Kim et al. 2023, arXiv 2301.12005"

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__([(term.label, term.loss) for term in terms])
        self.terms, self.progress = tuple(terms), 0.0

    @classmethod
    def of(cls, build: Build, /, terms: str, **parameters: Any) -> WeightedSum:
        """The sum that is written in `terms`, with the parameters of its terms by "label.parameter"."""
        if not isinstance(terms, str):
            raise ValueError(f"terms must be a sum of losses, not {shown(terms)}")
        found = [_TERM.fullmatch(text.strip()) for text in terms.split("+")]
        read = [(match["name"], match["label"] or match["name"], match["weight"]) for match in found if match]
        if len(read) < len(found):
            raise ValueError(f'terms must be such as "infonce + 0.5*score-kl", not "{terms}"')
        labels = [label for _, label, _ in read]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f'terms has "{twice}" twice; give each a label: "{twice}:a + {twice}:b"')
        of_term = _by_label(parameters, labels, "weighted-sum")
        return cls([_term(build, name, label, weight, of_term[label]) for name, label, weight in read])

    @property
    def knobs(self) -> tuple[str, ...]:
        """Those of its terms, and the weights of all but the first, beside which the others are weighed."""
        return (*super().knobs, *(f"{term.label}.weight" for term in self.terms[1:]))

    def at(self, progress: float) -> None:
        """Kept for the weights."""
        super().at(progress)
        self.progress = progress

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        total, told = embeddings.queries.new_zeros(len(embeddings.queries)), dict[str, Tensor]()
        for term in self.terms:
            of_term = term.loss.compute(embeddings, signals)
            total = total + term.weight_at(self.progress) * of_term.per_example
            told[f"{term.label}_loss"] = of_term.loss
            told |= {name if name not in told else f"{term.label}_{name}": x for name, x in of_term.diagnostics.items()}
        return output(total, **told)


class Matryoshka(Composite):
    """One loss over the first components of the vectors too, so that vectors may be cut (Kusupati et al. 2022).

    loss = mean over the lengths m of L(first m components); the whole length is always one of them. What is cut is
    scaled to the length that it had whole, so that unit vectors stay such. Parameters of the loss are named after it:
    infonce.temperature. A teacher's vectors are left whole.

    Args:
        loss: the name of a loss that looks at the student's vectors alone, or at a teacher's scores.
        dimensions: the lengths beside the whole, such as "64 128".

    Needs what that loss needs. Diagnostics: the value at each length, and those of the whole length.

    Raises ValueError for lengths that are no numbers above 0, for a loss that sets vectors against a teacher's, and,
    when it is computed, for a length beyond the vectors'.
    """

    name: ClassVar[str] = "matryoshka"
    paper: ClassVar[str] = "Kusupati et al. 2022, arXiv 2205.13147"

    def __init__(self, label: str, loss: Loss, dimensions: Sequence[int]) -> None:
        super().__init__([(label, loss)])
        if loss.matches_vectors:
            raise ValueError(f'"{label}" matches whole vectors, and matryoshka cuts them')
        self.dimensions = tuple(dimensions)

    @classmethod
    def of(cls, build: Build, /, loss: str, dimensions: str | int, **parameters: Any) -> Matryoshka:
        """The loss of that name, with its parameters by "loss.parameter"."""
        lengths = str(dimensions).split()
        if not lengths or not all(length.isdecimal() and int(length) > 0 for length in lengths):
            raise ValueError(f'dimensions must be such as "64 128", not {shown(dimensions)}')
        inner = build(loss, **_by_label(parameters, [loss], "matryoshka")[loss])
        return cls(loss, inner, sorted({int(length) for length in lengths}))

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        (loss,) = self.losses
        D = embeddings.queries.shape[1]
        if self.dimensions[-1] >= D:
            raise ValueError(f"{self.dimensions[-1]} components are not a part of vectors of {D}")
        whole = loss.compute(embeddings, signals)
        per_example, told = whole.per_example, {**whole.diagnostics, f"loss_{D}": whole.loss}
        for m in self.dimensions:
            cut = replace(
                embeddings,
                queries=_cut(embeddings.queries, m),
                positives=_cut(embeddings.positives, m),
                negatives=_cut(embeddings.negatives, m),
            )
            of_cut = loss.compute(cut, signals)
            per_example = per_example + of_cut.per_example
            told[f"loss_{m}"] = of_cut.loss
        return output(per_example / (1 + len(self.dimensions)), **told)


def _cut(x: Tensor, m: int) -> Tensor:
    """The first m components of vectors (…, D), as long as the vectors were."""
    length: Tensor = x.norm(dim=-1, keepdim=True)  # type: ignore[no-untyped-call]
    return unit(x[..., :m]) * length


_TERM = re.compile(
    r"(?:(?P<weight>\d+(?:\.\d*)?(?:e-?\d+)?)\s*\*\s*)?(?P<name>[a-z][a-z-]*)(?::(?P<label>[a-z][a-z-]*))?"
)


def _term(build: Build, name: str, label: str, weight: str | None, parameters: dict[str, object]) -> Term:
    weights = {key: parameters.pop(key) for key in ("weight", "final_weight") if key in parameters}
    for key, value in weights.items():
        if (found := number(value)) is None or found < 0:
            raise ValueError(f"{label}.{key} must be a number of at least 0, not {shown(value)}")
    start = number(weights.get("weight")) if "weight" in weights else float(weight or 1.0)
    assert start is not None
    return Term(label, build(name, **parameters), start, number(weights.get("final_weight")))


def _by_label(parameters: dict[str, object], labels: Sequence[str], name: str) -> dict[str, dict[str, object]]:
    """The parameters of each part, by their own names."""
    found: dict[str, dict[str, object]] = {label: {} for label in labels}
    for key, value in parameters.items():
        label, _, parameter = key.partition(".")
        if label not in found or not parameter:
            parts = ", ".join(f'"{each}.…"' for each in labels)
            raise ValueError(f'the loss "{name}" has no parameter "{key}"; those of its parts: {parts}')
        found[label][parameter] = value
    return found
