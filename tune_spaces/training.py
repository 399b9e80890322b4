"""How a recipe is trained: learning rate and batch size, which can be searched for every recipe.

For the parameter-free ones, and for baselines whose loss has no knob (margin-mse, infonce-learned, embedding-matching,
relational-matching), these are all that there is to search.
"""

from collections.abc import Mapping, Sequence

from tune_spaces.space import Knob, Range, Value, given_knob

PREFIX = "training."  # of the parameters that are settings of training and not of a loss

_RATES = (
    "3e-4, 1e-4, 5e-5 and 3e-5 are what google-research/bert tried for compact BERTs (Turc et al. 2019, arXiv "
    "1908.08962), 2e-5 is the least of BERT's own (arXiv 1810.04805); those of arXiv 2407.21515, 5e-5 over the batch "
    "size, are for another optimizer without a warm-up"
)

TRAINING: dict[str, Knob] = {
    "learning_rate": Knob(
        parameter=f"{PREFIX}learning_rate",
        values=(5e-5, 1e-4, 3e-5, 3e-4, 2e-5),
        source=_RATES,
        range=Range(2e-5, 3e-4, log=True, source="from the least to the greatest of the values"),
    ),
    "batch_size": Knob(
        parameter=f"{PREFIX}batch_size",
        values=(32, 64, 128),
        source="Gienapp et al. 2025, arXiv 2407.21515, experiments 1 to 3",
    ),
}


def training_knobs(asked: Sequence[str], given: Mapping[str, Sequence[Value] | Range]) -> tuple[Knob, ...]:
    """Those that are asked for by name, or given values as `training.batch_size`, in the order of the table."""
    knobs = []
    for name, knob in TRAINING.items():
        if knob.parameter in given:
            knobs.append(given_knob(knob.parameter, given[knob.parameter]))
        elif name in asked:
            knobs.append(knob)
    return tuple(knobs)
