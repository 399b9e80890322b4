"""Which knobs a baseline has, one file a baseline, with the source of each range."""

from tune_spaces.infonce import INFONCE
from tune_spaces.ranknet import LAMBDARANK, PAIR_KL, RANKNET
from tune_spaces.score_kl import SCORE_KL
from tune_spaces.space import Knob, TuneSpace
from tune_spaces.static_margin import STATIC_MARGIN
from tune_spaces.triplet import TRIPLET

SPACES: dict[str, TuneSpace] = {
    "static-margin": STATIC_MARGIN,
    "infonce": INFONCE,
    "triplet": TRIPLET,
    "score-kl": SCORE_KL,
    "ranknet": RANKNET,
    "lambdarank": LAMBDARANK,
    "pair-kl": PAIR_KL,
}

__all__ = ["SPACES", "Knob", "TuneSpace"]
