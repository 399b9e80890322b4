"""static-margin: one constant margin for all triples, found by search as in the paper."""

from tune_spaces.space import Knob, Range, TuneSpace

STATIC_MARGIN = TuneSpace(
    recipe="static-margin",
    knobs=(
        Knob(
            parameter="target",
            values=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
            source="Gienapp et al. 2025, arXiv 2407.21515, experiment 1 (static margins)",
            range=Range(0.1, 1.0, source="from the least to the greatest of the values"),
        ),
    ),
)
