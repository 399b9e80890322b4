"""score-kl: the temperature of the student's softmax, and of the teacher's where that has none of its own."""

from tune_spaces.infonce import INFONCE
from tune_spaces.space import Knob, TuneSpace

SCORE_KL = TuneSpace(
    recipe="score-kl",
    knobs=(
        Knob(
            parameter="temperature",
            values=INFONCE.knobs[0].values,
            source="those of infonce, whose softmax it is; the paper (arXiv 2301.12005) gives no range",
        ),
    ),
)
