"""The pairwise recipes: the temperature of the logistic function, of RankNet and of pairwise distillation."""

from tune_spaces.infonce import INFONCE
from tune_spaces.space import Knob, TuneSpace

_SOURCE = "those of infonce: a difference of scores is as wide as a score; the papers, on unbounded scores, have none"


def _of(recipe: str) -> TuneSpace:
    (knob,) = INFONCE.knobs
    return TuneSpace(recipe, (Knob(knob.parameter, knob.values, _SOURCE, knob.range),))


RANKNET, LAMBDARANK, PAIR_KL = map(_of, ("ranknet", "lambdarank", "pair-kl"))
