"""triplet: the margin of the hinge."""

from tune_spaces.space import Knob, Range, TuneSpace

TRIPLET = TuneSpace(
    recipe="triplet",
    knobs=(
        Knob(
            parameter="margin",
            values=(0.1, 0.2, 0.3, 0.4, 0.5),
            source="common range; its lower end is FaceNet's 0.2 (arXiv 1503.03832), which on squared distances of "
            "unit vectors, 2 - 2 cos, is 0.1 on cosines",
            range=Range(0.1, 0.5, source="from the least to the greatest of the values"),
        ),
    ),
)
