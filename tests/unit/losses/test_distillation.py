"""The losses that learn from a teacher, pinned: by hand; equal to loops; gradients."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from vectors import batch, changed, taught, tensors

import losses
from losses import (
    EmbeddingMatching,
    Embeddings,
    InfoNCE,
    ListNet,
    MarginMSE,
    PairKL,
    RankNet,
    RelationalMatching,
    ScoreKL,
    Signals,
)

TWO = Embeddings(
    queries=torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64),
    positives=torch.tensor([[3.0, 1.0], [5.0, 1.0]], dtype=torch.float64),
    negatives=torch.tensor([[[1.0, 9.0]], [[0.0, 4.0]]], dtype=torch.float64),
)


def test_margin_mse_by_hand():
    # Margins of the student 3 - 1 = 2 and 2 - 8 = -6, of the teacher 1.5 and 1.
    out = MarginMSE()(TWO, Signals(scores=torch.tensor([[2.0, 0.5], [0.0, -1.0]]), space="dot"))
    assert out.per_example.tolist() == [0.25, 49.0]
    assert {name: value.item() for name, value in out.diagnostics.items()} == pytest.approx(
        {"margin": -2.0, "target": 1.25, "agreement": 0.5}
    )


def test_score_kl_by_hand():
    out = ScoreKL(temperature=2.0)(TWO, Signals(scores=torch.tensor([[2.0, 0.0], [0.0, 0.0]]), space="logit"))
    p, s = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-1))  # (2 - 0) / 2 and (3 - 1) / 2
    first = p * math.log(p / s) + (1 - p) * math.log((1 - p) / (1 - s))
    s = 1 / (1 + math.exp(3))  # (2 - 8) / 2
    second = 0.5 * math.log(0.5 / s) + 0.5 * math.log(0.5 / (1 - s))
    assert out.per_example.tolist() == pytest.approx([first, second])
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p) + 2 * 0.5 * math.log(0.5)) / 2
    assert out.diagnostics["teacher_entropy"].item() == pytest.approx(entropy)
    assert out.diagnostics["agreement"].item() == 0.5


@pytest.mark.parametrize(
    ("K", "in_batch", "teacher"), [(1, False, None), (3, False, 2.0), (0, True, None), (2, True, 1)]
)
def test_score_kl_equals_the_loop_and_has_the_gradient_of_the_papers_cross_entropy(K, in_batch, teacher):
    embeddings, signals = batch(K=K), taught(K=K)
    q, p, n = (x.requires_grad_() for x in tensors(embeddings))
    loss = ScoreKL(0.5, teacher, in_batch)
    expected, entropies = [], []
    for i in range(4):
        whose = range(4) if in_batch else [i]
        places = [(j, 0) for j in whose] + [(j, k) for j in whose for k in range(1, 1 + K)]
        student = torch.stack([q[i] @ (p[j] if k == 0 else n[j, k - 1]) for j, k in places]) / 0.5
        said = [signals.queries[i] @ signals.documents[j, k] if in_batch else signals.scores[j, k] for j, k in places]
        target = torch.softmax(torch.stack(said) / (teacher or 0.5), dim=0)
        expected.append(-(target * torch.log_softmax(student, dim=0)).sum())
        entropies.append(-(target * target.log()).sum())
    out = loss(changed(embeddings, q, p, n), signals)
    cross_entropy = torch.stack(expected)
    torch.testing.assert_close(out.per_example, cross_entropy - torch.stack(entropies))
    inputs = [q, p, n] if K else [q, p]
    ours = torch.autograd.grad(out.loss, inputs, retain_graph=True)
    for one, other in zip(ours, torch.autograd.grad(cross_entropy.mean(), inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_score_kl_is_zero_where_student_and_teacher_agree():
    embeddings = batch()
    documents = torch.cat([embeddings.positives[:, None], embeddings.negatives], dim=1)
    scores = torch.einsum("id,icd->ic", embeddings.queries, documents)
    signals = Signals(scores + 3, embeddings.queries, documents, "dot")
    for in_batch in (False, True):
        assert ScoreKL(1.0, in_batch=in_batch)(embeddings, signals).loss.item() == pytest.approx(0, abs=1e-12)


def ndcg_lost(student: list[float], gains: list[float], a: int, b: int) -> float:
    """By ranking, changing two places, and ranking again."""
    order = sorted(range(len(student)), key=lambda place: -student[place])
    ideal = sum(gain / math.log2(2 + rank) for rank, gain in enumerate(sorted(gains, reverse=True)))

    def ndcg(places: list[int]) -> float:
        return sum(gains[place] / math.log2(2 + rank) for rank, place in enumerate(places)) / ideal

    swapped = [{a: b, b: a}.get(place, place) for place in order]
    return abs(ndcg(order) - ndcg(swapped))


@pytest.mark.parametrize("weight", [None, "ndcg"])
@pytest.mark.parametrize("order", ["judged", "teacher"])
@pytest.mark.parametrize("K", [1, 4])
def test_ranknet_equals_the_loop(K, order, weight):
    embeddings, signals = batch(K=K), taught(K=K)
    signals.scores[1] = 0.5  # no order at all
    q, p, n = tensors(embeddings)
    loss, expected, counts = RankNet(0.7, order, weight), [], []
    for i in range(4):
        s = [float(q[i] @ d) for d in (p[i], *n[i])]
        t = signals.scores[i].tolist() if order == "teacher" else [1.0] + [0.0] * K
        ranks = {place: rank for rank, place in enumerate(sorted(range(1 + K), key=lambda place: -t[place]), 1)}
        gains = [1 / ranks[place] for place in range(1 + K)] if order == "teacher" else t
        pairs = [(a, b) for a in range(1 + K) for b in range(1 + K) if t[a] > t[b]]
        of_each = [
            (ndcg_lost(s, gains, a, b) if weight else 1.0) * math.log1p(math.exp(-(s[a] - s[b]) / 0.7))
            for a, b in pairs
        ]
        expected.append(sum(of_each) / len(pairs) if pairs else 0.0)
        counts.append((len(pairs), sum(s[a] > s[b] for a, b in pairs)))
    out = loss(embeddings, signals)
    assert out.per_example.tolist() == pytest.approx(expected)
    assert out.diagnostics["pairs"].item() == pytest.approx(sum(count for count, _ in counts) / 4)
    in_order = sum(right / count for count, right in counts if count) / 4
    assert out.diagnostics["in_order"].item() == pytest.approx(in_order)


def test_ranknet_of_judged_pairs_is_a_softmax_over_two():
    """With one negative, the logistic loss is InfoNCE's over the query's own two documents."""
    embeddings = batch(K=1)
    q, p, n = (F.normalize(x, dim=-1) for x in tensors(embeddings))
    logits = torch.stack([(q * p).sum(1), (q * n[:, 0]).sum(1)], dim=1) / 0.05
    expected = F.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(RankNet()(changed(embeddings, q, p, n)).loss, expected)


@pytest.mark.parametrize(("K", "teacher"), [(1, None), (4, 2.0)])
def test_pair_kl_equals_the_loop(K, teacher):
    embeddings, signals = batch(K=K), taught(K=K)
    q, p, n = tensors(embeddings)
    expected = []
    for i in range(4):
        s, t = [float(q[i] @ d) for d in (p[i], *n[i])], signals.scores[i].tolist()
        of_each = []
        for a in range(1 + K):
            for b in range(a + 1, 1 + K):
                T = 1 / (1 + math.exp(-(t[a] - t[b]) / (teacher or 0.5)))
                S = 1 / (1 + math.exp(-(s[a] - s[b]) / 0.5))
                of_each.append(T * math.log(T / S) + (1 - T) * math.log((1 - T) / (1 - S)))
        expected.append(sum(of_each) / len(of_each))
    out = PairKL(0.5, teacher)(embeddings, signals)
    assert out.per_example.tolist() == pytest.approx(expected)


def test_pair_kl_of_two_documents_is_score_kl():
    embeddings, signals = batch(K=1), taught(K=1)
    ours, theirs = (loss(embeddings, signals).per_example for loss in (PairKL(0.5, 1.0), ScoreKL(0.5, 1.0)))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("distance", ["norm", "squared", "cosine"])
@pytest.mark.parametrize("side", ["query", "document", "both"])
def test_embedding_matching_equals_the_loop(side, distance):
    embeddings, signals = batch(), taught()
    of = {
        "norm": lambda x, y: (x - y).norm(),
        "squared": lambda x, y: (x - y).square().sum(),
        "cosine": lambda x, y: 1 - F.cosine_similarity(x, y, dim=0),
    }[distance]
    q, p, n = tensors(embeddings)
    expected = []
    for i in range(4):
        own = [p[i], *n[i]]
        value = 0.0
        if side != "document":
            value += of(q[i], signals.queries[i])
        if side != "query":
            value += sum(of(x, y) for x, y in zip(own, signals.documents[i], strict=True)) / 3
        expected.append(value)
    out = EmbeddingMatching(side, distance)(embeddings, signals)
    torch.testing.assert_close(out.per_example, torch.stack(expected))


def test_every_loss_tells_the_misalignments_of_vectors_of_one_dimension():
    embeddings, signals = batch(), taught()
    q, p, n = tensors(embeddings)
    queries = sum((x - y).norm() for x, y in zip(q, signals.queries, strict=True)) / 4
    own = [torch.cat([p[i][None], n[i]]) for i in range(4)]
    documents = sum((x - y).norm() for i in range(4) for x, y in zip(own[i], signals.documents[i], strict=True)) / 12
    for loss in (EmbeddingMatching(), ScoreKL(), InfoNCE()):
        told = loss(embeddings, signals).diagnostics
        torch.testing.assert_close(told["query_misalignment"], queries)
        torch.testing.assert_close(told["document_misalignment"], documents)
    other = replace(signals, queries=signals.queries[:, :3])
    told = InfoNCE()(embeddings, other).diagnostics
    assert "query_misalignment" not in told
    assert "document_misalignment" in told
    assert not {"query_misalignment", "document_misalignment"} & set(InfoNCE()(embeddings).diagnostics)


def test_embedding_matching_has_a_gradient_where_student_and_teacher_are_one():
    embeddings = batch()
    q = embeddings.queries.requires_grad_()
    out = EmbeddingMatching("query")(embeddings, Signals(queries=q.detach().clone()))
    (gradient,) = torch.autograd.grad(out.loss, q)
    assert gradient.abs().max() == 0
    assert out.loss.item() < 1e-100


def test_embedding_matching_refuses_other_dimensions():
    message = "^the teacher's vectors have 7 dimensions and the student's 5$"
    with pytest.raises(ValueError, match=message):
        EmbeddingMatching("document")(batch(), taught(D=7))


@pytest.mark.parametrize("order", ["judged", "teacher"])
@pytest.mark.parametrize("K", [1, 3])
def test_listnet_equals_the_loop(order, K):
    embeddings, signals = batch(K=K), taught(K=K)
    q, p, n = tensors(embeddings)
    expected = []
    for i in range(4):
        S = [math.exp(float(q[i] @ d) / 0.5) for d in (p[i], *n[i])]
        y = [1.0, *[0.0] * K] if order == "judged" else [float(t) / 2 for t in signals.scores[i]]
        P = [math.exp(each) / sum(map(math.exp, y)) for each in y]
        expected.append(-sum(a * math.log(s / sum(S)) for a, s in zip(P, S, strict=True)))
    loss = ListNet(0.5, order, 2.0)
    assert loss(embeddings, signals).per_example.tolist() == pytest.approx(expected)
    assert loss.needs == {"negatives"} | ({"teacher_scores"} if order == "teacher" else set())


def test_listnet_of_a_teacher_is_score_kl_and_the_teachers_entropy():
    embeddings, signals = batch(), taught()
    kl = ScoreKL(0.5, 2.0)(embeddings, signals)
    found = ListNet(0.5, "teacher", 2.0)(embeddings, signals)
    torch.testing.assert_close(found.loss, kl.loss + kl.diagnostics["teacher_entropy"])


@pytest.mark.parametrize("K", [0, 2])
@pytest.mark.parametrize("between", ["query-document", "query", "document"])
def test_relational_matching_equals_the_loop(between, K):
    embeddings, signals = batch(K=K), taught(K=K, D=7)
    q, p, n = tensors(embeddings)

    def similar(x, y):
        return F.cosine_similarity(x, y, dim=0)

    theirs = signals.queries, signals.documents[:, 0], signals.documents[:, 1:]
    sides = {
        "query-document": [(x, [*y, *z.flatten(0, 1)]) for x, y, z in ((q, p, n), theirs)],
        "query": [(x, list(x)) for x in (q, theirs[0])],
        "document": [(x, list(x)) for x in (p, theirs[1])],
    }[between]
    expected = []
    for i in range(4):
        kept = [c for c in range(len(sides[0][1])) if between == "query-document" or c != i]
        differences = [similar(sides[0][0][i], sides[0][1][c]) - similar(sides[1][0][i], sides[1][1][c]) for c in kept]
        expected.append(sum(difference.square() for difference in differences) / len(kept))
    out = RelationalMatching(between)(embeddings, signals)
    torch.testing.assert_close(out.per_example, torch.stack(expected))


def test_relational_matching_asks_for_angles_alone():
    embeddings = batch()
    q, p, n = tensors(embeddings)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    same = Signals(None, 3 * q @ turn, torch.cat([p[:, None], n], dim=1) @ turn)
    assert RelationalMatching()(embeddings, same).loss < 1e-25
    assert RelationalMatching("query")(batch(B=1), Signals(queries=torch.ones(1, 5))).loss == 0


@pytest.mark.parametrize(
    "loss",
    [
        MarginMSE(),
        ScoreKL(0.5),
        ScoreKL(0.5, 1.0, in_batch=True),
        PairKL(0.5, 1.0),
        RankNet(0.5),
        RankNet(0.5, "teacher"),
        ListNet(0.5),
        ListNet(0.5, "teacher", 1.0),
        *map(RelationalMatching, ("query-document", "query", "document")),
        InfoNCE("learned", mask="teacher"),
        *map(EmbeddingMatching, ("query", "document", "both")),
    ],
    ids=lambda loss: f"{loss.name}-{len(loss.needs)}",
)
def test_gradients_against_finite_differences(loss):
    embeddings, signals = batch(B=3, D=3), taught(B=3, D=3)
    inputs = [x.requires_grad_() for x in tensors(embeddings)]
    assert torch.autograd.gradcheck(lambda *x: loss(changed(embeddings, *x), signals).loss, inputs)


def test_what_each_needs_by_its_parameters():
    assert ScoreKL().needs == {"negatives", "teacher_scores"}
    assert ScoreKL(in_batch=True).needs == {"teacher_queries", "teacher_documents"}
    assert (ScoreKL().negatives_met(4, 2), ScoreKL(in_batch=True).negatives_met(4, 2)) == (2, 11)
    assert EmbeddingMatching("query").needs == {"teacher_queries"}
    assert EmbeddingMatching("document").needs == {"teacher_documents"}
    with pytest.raises(ValueError, match='"score-kl" needs teacher_documents, and the batch has none'):
        ScoreKL(in_batch=True)(batch(), Signals(queries=torch.ones(4, 5)))


def test_spaces_that_are_not_to_be_mixed():
    assert "a teacher's margins in logit scores" in MarginMSE().misfit("logit", "cosine")
    assert MarginMSE().misfit("dot", "cosine")
    assert "are probabilities, not logits" in ScoreKL().misfit("probability", "dot")
    fitting = [("logit", "dot"), ("cosine", "cosine"), ("probability", "cosine"), ("cosine", "dot")]
    assert [MarginMSE().misfit(*spaces) for spaces in fitting] == [None] * 4
    assert ScoreKL().misfit("logit", "cosine") is None
    assert losses.InfoNCE().misfit("probability", "cosine") is None
    assert "and these are probabilities" in PairKL().misfit("probability", "dot")
    assert PairKL().misfit("logit", "cosine") is RankNet(order="teacher").misfit("probability", "dot") is None


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("score-kl", {"temperature": 0}, "temperature must be a number greater than 0, not 0"),
        ("score-kl", {"teacher_temperature": "1"}, 'teacher_temperature must be a number greater than 0, not "1"'),
        ("score-kl", {"in_batch": "rows"}, 'in_batch must be true or false, not "rows"'),
        ("pair-kl", {"teacher_temperature": -1}, "teacher_temperature must be a number greater than 0, not -1"),
        ("ranknet", {"order": "labels"}, 'order must be one of "judged", "teacher", not "labels"'),
        ("ranknet", {"weight": "map"}, 'weight must be one of null, "ndcg", not "map"'),
        ("listnet", {"order": "labels"}, 'order must be one of "judged", "teacher", not "labels"'),
        (
            "relational-matching",
            {"between": "both"},
            'between must be one of "query-document", "query", "document", not "both"',
        ),
        ("embedding-matching", {"side": "queries"}, 'side must be one of "query", "document", "both", not "queries"'),
        ("embedding-matching", {"distance": "l2"}, 'distance must be one of "norm", "squared", "cosine", not "l2"'),
    ],
)
def test_refusals(name, parameters, message):
    with pytest.raises(ValueError) as refused:
        losses.build(name, **parameters)
    assert str(refused.value) == message


def test_half_precision_is_raised_and_the_teacher_follows():
    embeddings = batch(dtype=torch.bfloat16)
    signals = Signals(torch.randn(4, 3), torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 3, 5), "cosine")
    every = ListNet(), RelationalMatching(), InfoNCE(mask="teacher"), EmbeddingMatching()
    for loss in (MarginMSE(), ScoreKL(), ScoreKL(in_batch=True), PairKL(), RankNet(), *every):
        assert loss(embeddings, signals).per_example.dtype == torch.float32
