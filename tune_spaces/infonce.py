"""infonce: the softmax temperature."""

from tune_spaces.space import Knob, TuneSpace

INFONCE = TuneSpace(
    recipe="infonce",
    knobs=(
        Knob(
            parameter="temperature",
            values=(0.05, 0.02, 0.1, 0.01, 0.2),
            source="common range, the commonest first: about a factor of two apart around the 0.05 of SimCSE "
            "(arXiv 2104.08821) and of sentence-transformers (scale 20)",
        ),
    ),
)
