"""MarginMSE: a teacher's score margins as the student's targets (Hofstätter et al. 2020, arXiv 2010.02666)."""

from typing import ClassVar

import torch

from losses.contract import Embeddings, Loss, LossOutput, Signals, Space, output


class MarginMSE(Loss):
    """Regress each triple's margin on the margin that a teacher gives it.

    loss = mean over i, k of ((s(q_i, p_i) - s(q_i, n_ik)) - (t(q_i, p_i) - t(q_i, n_ik)))², with s the dot product,
    which is the cosine where the encoder normalizes. It is sentence-transformers' MarginMSELoss.

    Needs queries (B, D), positives (B, D), negatives (B, K, D), K >= 1, and teacher scores (B, 1 + K). `per_example` is
    the mean over a query's negatives. Diagnostics: the mean margins of student and teacher, and the share of triples
    whose margins agree in sign. Use ScoreKL where the scales of the two scores differ.
    """

    name: ClassVar[str] = "margin-mse"
    needs: frozenset[str] = frozenset({"negatives", "teacher_scores"})
    paper: ClassVar[str] = "Hofstätter et al. 2020, arXiv 2010.02666"

    def misfit(self, teacher: Space, student: Space) -> str | None:
        """A cosine cannot take the margins that unbounded scores have."""
        if student == "cosine" and teacher in ("logit", "dot"):
            return (
                f"regresses a student's margins of cosines, at most 2 wide, on a teacher's margins in {teacher} scores"
            )
        return None

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        q, p, n = embeddings.queries, embeddings.positives, embeddings.negatives
        M = torch.einsum("id,id->i", q, p)[:, None] - torch.einsum("id,ikd->ik", q, n)
        t = signals.scores_like(q)
        T = t[:, :1] - t[:, 1:]
        return output(
            (M - T).square().mean(dim=1),
            margin=M.mean(),
            target=T.mean(),
            agreement=(M.sign() == T.sign()).to(M.dtype).mean(),
        )
