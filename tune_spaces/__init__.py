"""Which knobs a baseline has, one file a baseline, with the source of each range."""

from tune_spaces.embed_distill import EMBED_DISTILL
from tune_spaces.infonce import GIST, INFONCE, LOCALIZED
from tune_spaces.ranknet import LAMBDARANK, PAIR_KL, RANKNET
from tune_spaces.score_kl import LISTNET, SCORE_KL
from tune_spaces.space import GIVEN, Knob, Point, Range, TuneSpace, Value, given_knob
from tune_spaces.static_margin import STATIC_MARGIN
from tune_spaces.training import PREFIX, TRAINING, training_knobs
from tune_spaces.triplet import TRIPLET

SPACES: dict[str, TuneSpace] = {
    "static-margin": STATIC_MARGIN,
    "infonce": INFONCE,
    "localized-contrastive": LOCALIZED,
    "gist": GIST,
    "triplet": TRIPLET,
    "score-kl": SCORE_KL,
    "listnet": LISTNET,
    "ranknet": RANKNET,
    "lambdarank": LAMBDARANK,
    "pair-kl": PAIR_KL,
    "embed-distill": EMBED_DISTILL,
}

__all__ = [
    "GIVEN",
    "PREFIX",
    "SPACES",
    "TRAINING",
    "Knob",
    "Point",
    "Range",
    "TuneSpace",
    "Value",
    "given_knob",
    "training_knobs",
]
