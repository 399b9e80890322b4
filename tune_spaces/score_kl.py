"""score-kl and listnet: the temperature of the student's softmax, and of the teacher's where it has none of its own."""

from tune_spaces.infonce import INFONCE
from tune_spaces.space import Knob, TuneSpace

SCORE_KL, LISTNET = (
    TuneSpace(
        recipe=recipe,
        knobs=(
            Knob(
                parameter="temperature",
                values=INFONCE.knobs[0].values,
                source="those of infonce, whose softmax it is; the paper gives no range",
                range=INFONCE.knobs[0].range,
            ),
        ),
    )
    for recipe in ("score-kl", "listnet")
)
