"""embed-distill: the temperatures of its two softmaxes, and the weights of its terms beside the labels'."""

from tune_spaces.infonce import INFONCE
from tune_spaces.score_kl import SCORE_KL
from tune_spaces.space import Knob, Range, TuneSpace

_WEIGHTS = "arXiv 2301.12005: 1.0 for all terms, 5.0 for embeddings of its smallest student with generated queries"
_TEMPERATURES = INFONCE.knobs[0].range

EMBED_DISTILL = TuneSpace(
    recipe="embed-distill",
    knobs=(
        Knob("infonce.temperature", INFONCE.knobs[0].values[:3], INFONCE.knobs[0].source, _TEMPERATURES),
        Knob("score-kl.temperature", SCORE_KL.knobs[0].values[:3], SCORE_KL.knobs[0].source, _TEMPERATURES),
        Knob("score-kl.weight", (1.0,), _WEIGHTS),
        Knob("embedding-matching.weight", (1.0, 5.0), _WEIGHTS, Range(1.0, 5.0, log=True, source="between the values")),
    ),
)
