"""Equal to sentence-transformers' losses, values and gradients, at what both define; a line where they differ.

Pair-kl, relational-matching and the margin losses have no counterpart there.
"""

import pytest
import torch
from torch.nn.functional import normalize
from vectors import batch, changed, taught, tensors

from losses import EmbeddingMatching, InfoNCE, ListNet, MarginMSE, RankNet, ScoreKL, Signals, Triplet, build


class Given(torch.nn.Module):
    """A bi-encoder and a cross-encoder whose vectors and scores are those that it is given."""

    num_labels, max_seq_length, device = 1, 8, torch.device("cpu")

    def __init__(self, tokenizer=None, scores=None):
        super().__init__()
        self.tokenizer, self.scores = tokenizer, scores

    def get_embedding_dimension(self):
        return 5

    def preprocess(self, pairs, **how):
        return {}

    def forward(self, features):
        return {**features, "scores": self.scores}


def columns(q, p, n):
    """The queries, their positives and their negatives, as sentence-transformers has them."""
    return [q, p, *n.unbind(1)]


def agree(loss, theirs, K=2, signals=None, exact=True):
    """The loss and its gradients are those of `theirs(q, p, n)`."""
    embeddings = batch(K=K)
    inputs = [x.requires_grad_() for x in tensors(embeddings)]
    found = [loss(changed(embeddings, *inputs), signals).loss, theirs(*inputs)]
    how = {} if exact else {"check_dtype": False, "rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(*found, **how)
    gradients = [torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True) for value in found]
    for ours, other in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, other, **how)
    assert any(gradient.any() for gradient in gradients[0])


@pytest.mark.parametrize("K", [0, 1, 3])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_infonce(similarity, K):
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.util import cos_sim, dot_score

    score = {"cosine": cos_sim, "dot": dot_score}[similarity]
    theirs = MultipleNegativesRankingLoss(None, scale=20.0, similarity_fct=score)
    ours = InfoNCE(0.05, similarity=similarity)
    agree(ours, lambda *x: theirs.compute_loss_from_embeddings(columns(*x), None), K)


@pytest.mark.parametrize("K", [0, 1])
def test_infonce_with_the_mask_of_a_teacher(K):
    """Of GISTEmbed queries against documents; its contrasts among queries and among positives are switched off.

    Its guide scores by cosines, and a teacher by dot products: the same where the teacher normalizes.
    """
    from sentence_transformers.losses import GISTEmbedLoss
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    said = taught(K=K)
    said = Signals(queries=normalize(said.queries, dim=-1), documents=normalize(said.documents, dim=-1))
    model, guide = (Given(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel()))) for _ in "ab")
    guide.forward = lambda features: {"sentence_embedding": features["guide"]}
    theirs = GISTEmbedLoss(model, guide, 0.05, contrast_anchors=False, contrast_positives=False)

    def loss(*x):
        pairs = zip(columns(*x), [said.queries, *said.documents.unbind(1)], strict=True)
        return theirs([{"sentence_embedding": own, "guide": other} for own, other in pairs], None)

    ours = InfoNCE(0.05, mask="teacher")
    assert ours(batch(K=K), said).diagnostics["masked"] > 0
    agree(ours, loss, K, said)


@pytest.mark.parametrize("K", [1, 3])
def test_triplet(K):
    from sentence_transformers.losses import TripletDistanceMetric, TripletLoss

    theirs = TripletLoss(None, TripletDistanceMetric.COSINE, triplet_margin=0.4)

    def loss(q, p, n):
        return sum(theirs.compute_loss_from_embeddings([q, p, x], None) for x in n.unbind(1)) / K

    agree(Triplet(0.4), loss, K)


@pytest.mark.parametrize("K", [1, 3])
def test_margin_mse(K):
    from sentence_transformers.losses import MarginMSELoss

    said, theirs = taught(K=K), MarginMSELoss(None)
    margins = said.scores[:, :1] - said.scores[:, 1:]
    agree(MarginMSE(), lambda *x: theirs.compute_loss_from_embeddings(columns(*x), margins), K, said)


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("teacher", [None, 2.0])
def test_score_kl(teacher, K):
    """Over the query's own documents; theirs is multiplied by the square of the student's temperature."""
    from sentence_transformers.losses import DistillKLDivLoss

    said, theirs = taught(K=K), DistillKLDivLoss(None, temperature=0.5, teacher_temperature=teacher)
    agree(
        ScoreKL(0.5, teacher),
        lambda *x: theirs.compute_loss_from_embeddings(columns(*x), said.scores) / 0.5**2,
        K,
        said,
    )


@pytest.mark.parametrize(("distance", "metric"), [("squared", "mse"), ("norm", "l2"), ("cosine", "cosine")])
@pytest.mark.parametrize("side", ["query", "document", "both"])
def test_embedding_matching(side, distance, metric):
    """Theirs is the mean over all columns, and of the squares the mean over the D components, not the sum."""
    from sentence_transformers.losses import MSELoss
    from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

    said = taught()
    theirs, factor = (MSELoss(None), 5) if metric == "mse" else (EmbedDistillLoss(None, metric), 1)
    sides = {"query": [slice(1)], "document": [slice(1, None)], "both": [slice(1), slice(1, None)]}[side]

    def loss(*x):
        own, given = columns(*x), [said.queries, *said.documents.unbind(1)]
        return factor * sum(theirs.compute_loss_from_embeddings(own[part], given[part]) for part in sides)

    agree(EmbeddingMatching(side, distance), loss, signals=said)


def test_matryoshka():
    """Theirs is the sum over the lengths, and makes unit vectors of what is cut, as a cosine does."""
    from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    model = Given()
    theirs = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=10.0), [5, 3, 2])
    ours = build("matryoshka", loss="infonce", dimensions="2 3", **{"infonce.temperature": 0.1})
    agree(ours, lambda *x: theirs([{"sentence_embedding": column} for column in columns(*x)], None) / 3)


def reranking(make, temperature, labels):
    """A loss of cross-encoders over the dot products of queries and documents (B, 1 + K); it computes in float32."""
    texts = ["query"] * len(labels), [["document"] * len(row) for row in labels]

    def loss(q, p, n):
        scores = torch.einsum("id,icd->ic", q, torch.cat([p[:, None], n], dim=1)) / temperature
        return make(Given(scores=scores), mini_batch_size=-1)(texts, list(labels))

    return loss


@pytest.mark.parametrize("order", ["judged", "teacher"])
def test_listnet(order):
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    said = taught(K=3)
    labels = said.scores / 2 if order == "teacher" else torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 4)
    agree(ListNet(0.5, order, 2.0), reranking(ListNetLoss, 0.5, labels), 3, said, exact=False)


@pytest.mark.parametrize("weight", [None, "ndcg"])
@pytest.mark.parametrize("order", ["judged", "teacher"])
def test_ranknet(order, weight):
    """Theirs is the mean over the pairs of a batch: that over queries where all have as many.

    With weights it has the gain 2^y - 1 of a label y: of a teacher's rank r, y = log2(1 + 1 / r) gives 1 / r.
    """
    from sentence_transformers.cross_encoder.losses import LambdaLoss, LambdaRankScheme, RankNetLoss

    said = taught(K=3)
    ranks = said.scores.argsort(dim=1, descending=True).argsort(dim=1) + 1
    labels = torch.log2(1 + 1 / ranks) if order == "teacher" else torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 4)

    def make(model, **how):
        if weight is None:
            return RankNetLoss(model, reduction_log="natural", **how)
        return LambdaLoss(model, LambdaRankScheme(), reduction_log="natural", **how)

    agree(RankNet(0.5, order, weight), reranking(make, 0.5, labels), 3, said, exact=False)
