"""infonce and its kin, over a query's own documents and with a teacher's mask: the softmax temperature."""

from tune_spaces.space import Knob, Range, TuneSpace

INFONCE, LOCALIZED, GIST = (
    TuneSpace(
        recipe=recipe,
        knobs=(
            Knob(
                parameter="temperature",
                values=(0.05, 0.02, 0.1, 0.01, 0.2),
                source="common range, the commonest first: about a factor of two apart around the 0.05 of SimCSE "
                "(arXiv 2104.08821) and of sentence-transformers (scale 20)",
                range=Range(0.01, 0.2, log=True, source="from the least to the greatest of the values"),
            ),
        ),
    )
    for recipe in ("infonce", "localized-contrastive", "gist")
)
