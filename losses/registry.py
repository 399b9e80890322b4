"""The losses by name."""

import difflib
import inspect
from collections.abc import Iterable
from typing import NamedTuple

from losses.composite import Composite, Matryoshka, WeightedSum
from losses.contract import Loss
from losses.embedding_matching import EmbeddingMatching
from losses.infonce import InfoNCE
from losses.listnet import ListNet
from losses.margin import Margin
from losses.margin_mse import MarginMSE
from losses.pair_kl import PairKL
from losses.ranknet import RankNet
from losses.relational_matching import RelationalMatching
from losses.score_kl import ScoreKL
from losses.self_distilled import SelfDistilledInfoNCE
from losses.triplet import Triplet

LOSSES: dict[str, type[Loss]] = {
    "margin": Margin,
    "infonce": InfoNCE,
    "self-distilled-infonce": SelfDistilledInfoNCE,
    "triplet": Triplet,
    "margin-mse": MarginMSE,
    "score-kl": ScoreKL,
    "listnet": ListNet,
    "ranknet": RankNet,
    "pair-kl": PairKL,
    "embedding-matching": EmbeddingMatching,
    "relational-matching": RelationalMatching,
    "weighted-sum": WeightedSum,
    "matryoshka": Matryoshka,
}


class Parameter(NamedTuple):
    """A parameter of a loss; `default` has no meaning where it is required."""

    name: str
    required: bool
    default: float | str | bool | None


class Description(NamedTuple):
    """What `stillhouse losses` prints. `knobs` are the parameters that want tuning while they are numbers."""

    name: str
    needs: tuple[str, ...]
    knobs: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    paper: str
    summary: str


def build(name: str, /, **parameters: object) -> Loss:
    """The loss of that name. Of a loss made of others, "infonce.temperature" is a parameter of a part of it.

    Raises ValueError for an unknown loss or parameter, naming the nearest known one, for a required parameter that is
    missing, and for a value that the loss refuses.
    """
    if name not in LOSSES:
        raise ValueError(f'"{name}" is not a loss here; {_nearest(name, LOSSES)}')
    cls = LOSSES[name]
    known = {parameter.name: parameter for parameter in parameters_of(cls)}
    for given in parameters:
        if given not in known and not (issubclass(cls, Composite) and "." in given):
            raise ValueError(f'the loss "{name}" has no parameter "{given}"; {_nearest(given, known)}')
    for parameter in known.values():
        if parameter.required and parameter.name not in parameters:
            raise ValueError(f'the loss "{name}" needs a value for "{parameter.name}"')
    return cls.of(build, **parameters) if issubclass(cls, Composite) else cls(**parameters)


def describe() -> tuple[Description, ...]:
    """All losses, in the order of the table."""
    return tuple(
        Description(
            name=name,
            needs=tuple(sorted(cls.needs)),
            knobs=cls.tunable,
            parameters=parameters_of(cls),
            paper=cls.paper,
            summary=(inspect.getdoc(cls) or "").split("\n")[0],
        )
        for name, cls in LOSSES.items()
    )


def parameters_of(cls: type[Loss]) -> tuple[Parameter, ...]:
    """The parameters of a loss, read from its constructor; of one made of others, without those of its parts."""
    signature = inspect.signature(cls.of if issubclass(cls, Composite) else cls).parameters.values()
    return tuple(
        Parameter(p.name, required=p.default is p.empty, default=None if p.default is p.empty else p.default)
        for p in signature
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "build"
    )


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f'did you mean "{near[0]}"?' if near else "known: " + ", ".join(f'"{name}"' for name in known)
