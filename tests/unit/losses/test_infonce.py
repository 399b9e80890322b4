"""InfoNCE, pinned: by hand; equal to a loop over candidates; gradient; invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import batch, changed, permuted, tensors

from losses import Embeddings, InfoNCE, Signals


def test_two_queries_by_hand():
    # Cosines: q1 with p1 .8, p2 0, n1 .6, n2 -1; q2 with p1 .6, p2 1, n1 .8, n2 0.
    embeddings = Embeddings(
        queries=torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64),
        positives=torch.tensor([[4.0, 3.0], [0.0, 2.0]], dtype=torch.float64),
        negatives=torch.tensor([[[3.0, 4.0]], [[-1.0, 0.0]]], dtype=torch.float64),
    )
    out = InfoNCE(temperature=0.5)(embeddings)
    e = math.exp
    first = -math.log(e(1.6) / (e(1.6) + e(0) + e(1.2) + e(-2)))
    second = -math.log(e(2) / (e(1.2) + e(2) + e(1.6) + e(0)))
    assert out.per_example.tolist() == pytest.approx([first, second])
    assert out.loss.item() == pytest.approx((first + second) / 2)
    assert {name: value.item() for name, value in out.diagnostics.items()} == pytest.approx(
        {"accuracy": 1.0, "positive_similarity": 0.9, "negative_similarity": 0.3, "margin": 0.6}
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("K", [0, 1, 3])
def test_equals_the_loop_over_all_candidates(K, masked):
    embeddings = batch(K=K, masked=masked)
    q, p, n = embeddings.queries, embeddings.positives, embeddings.negatives
    candidates = [*p, *(n[j, k] for j in range(4) for k in range(K))]
    expected, first = [], 0
    for i in range(4):
        kept = [c for c in range(len(candidates)) if not (masked and embeddings.relevant[i, c])]
        logits = torch.stack([torch.nn.functional.cosine_similarity(q[i], candidates[c], dim=0) / 0.1 for c in kept])
        at = kept.index(i)
        expected.append(torch.nn.functional.cross_entropy(logits[None], torch.tensor([at])))
        first += all(logits[at] >= logit for logit in logits)
    out = InfoNCE(temperature=0.1)(embeddings)
    torch.testing.assert_close(out.per_example, torch.stack(expected))
    torch.testing.assert_close(out.loss, out.per_example.mean())
    assert out.diagnostics["accuracy"].item() == first / 4


def test_without_negatives_no_diagnostic_speaks_of_them():
    assert set(InfoNCE()(batch(K=0)).diagnostics) == {"accuracy", "positive_similarity"}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("K", [0, 1, 2])
def test_gradient_against_finite_differences(K, masked):
    embeddings = batch(B=3, K=K, D=3, masked=masked)
    inputs = [x.requires_grad_() for x in tensors(embeddings)]
    assert torch.autograd.gradcheck(lambda *x: InfoNCE(0.5)(changed(embeddings, *x)).loss, inputs)


@settings(max_examples=25, deadline=None)
@given(
    order=st.integers(1, 6).flatmap(lambda B: st.permutations(range(B))),
    K=st.integers(0, 3),
    seed=st.integers(0, 99),
    masked=st.booleans(),
)
def test_order_of_the_batch_does_not_matter(order, K, seed, masked):
    embeddings = batch(B=len(order), K=K, seed=seed, masked=masked)
    out, other = InfoNCE()(embeddings), InfoNCE()(permuted(embeddings, order))
    torch.testing.assert_close(other.per_example, out.per_example[order])
    torch.testing.assert_close(other.loss, out.loss)


def test_length_of_a_vector_does_not_matter():
    embeddings = batch()
    stretched = Embeddings(embeddings.queries * 2**30, embeddings.positives / 2**40, embeddings.negatives * 2**5)
    assert torch.equal(InfoNCE()(stretched).per_example, InfoNCE()(embeddings).per_example)


def test_bfloat16_is_raised_to_float32():
    half = Embeddings(*(x.bfloat16() for x in tensors(batch())))
    out = InfoNCE()(half)
    assert out.loss.dtype == torch.float32
    assert torch.equal(out.loss, InfoNCE()(Embeddings(*(x.float() for x in tensors(half)))).loss)


@pytest.mark.parametrize(("value", "word"), [(0, "0"), (-0.1, "-0.1"), ("warm", '"warm"'), (math.inf, "inf")])
def test_refuses_a_temperature_that_is_not_positive(value, word):
    with pytest.raises(ValueError, match=f"^temperature must be a number greater than 0, not {word}$"):
        InfoNCE(value)


def test_the_dot_product_is_the_cosine_of_unit_vectors_and_not_of_others():
    embeddings = batch(masked=True)
    units = changed(embeddings, *(torch.nn.functional.normalize(x, dim=-1) for x in tensors(embeddings)))
    by_dot = InfoNCE(0.1, similarity="dot")
    torch.testing.assert_close(by_dot(units).per_example, InfoNCE(0.1)(embeddings).per_example)
    q, p, n = tensors(embeddings)
    scores = (q @ torch.cat([p, n.flatten(0, 1)]).T / 0.1).masked_fill(embeddings.relevant, -torch.inf)
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(4), reduction="none")
    torch.testing.assert_close(by_dot(embeddings).per_example, expected)


@pytest.mark.parametrize("K", [1, 3])
def test_own_candidates_are_the_cross_entropy_over_a_querys_documents(K):
    embeddings = batch(K=K, masked=True)
    q, p, n = tensors(embeddings)
    expected = []
    for i in range(4):
        logits = torch.stack([torch.nn.functional.cosine_similarity(q[i], d, dim=0) / 0.1 for d in (p[i], *n[i])])
        expected.append(-logits.log_softmax(0)[0])
    loss = InfoNCE(temperature=0.1, candidates="own")
    torch.testing.assert_close(loss(embeddings).per_example, torch.stack(expected))
    assert (loss.needs, loss.negatives_met(4, K)) == ({"negatives"}, K)


def guide(B: int = 4, K: int = 2) -> Signals:
    generator = torch.Generator().manual_seed(9)
    shapes = (B, 7), (B, 1 + K, 7)
    return Signals(None, *(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))


@pytest.mark.parametrize("candidates", ["batch", "own"])
def test_what_a_teacher_scores_above_the_positive_is_left_out(candidates):
    embeddings, signals = batch(masked=True), guide()
    q, p, n = tensors(embeddings)
    documents, theirs = [*p, *n.flatten(0, 1)], [*signals.documents[:, 0], *signals.documents[:, 1:].flatten(0, 1)]
    expected, left, candidate = [], 0, 0
    for i in range(4):
        own = {i, *(4 + i * 2 + k for k in range(2))}
        offered = [c for c in range(12) if not embeddings.relevant[i, c] and (candidates == "batch" or c in own)]
        scores = [float(signals.queries[i] @ theirs[c]) for c in range(12)]
        kept = [c for c in offered if scores[c] <= scores[i]]
        logits = torch.stack([torch.nn.functional.cosine_similarity(q[i], documents[c], dim=0) / 0.1 for c in kept])
        expected.append(-logits.log_softmax(0)[kept.index(i)])
        left, candidate = left + len(offered) - len(kept), candidate + len(offered)
    loss = InfoNCE(temperature=0.1, mask="teacher", candidates=candidates)
    out = loss(embeddings, signals)
    torch.testing.assert_close(out.per_example, torch.stack(expected))
    assert left > 2
    assert out.diagnostics["masked"].item() == pytest.approx(left / candidate)
    assert loss.needs >= {"teacher_queries", "teacher_documents"}


def test_a_mask_over_positives_alone_is_a_cross_entropy_over_what_is_left():
    embeddings, signals = batch(B=5, K=0), guide(5, 0)
    q, p, _ = tensors(embeddings)
    S = torch.nn.functional.cosine_similarity(q[:, None], p[None], dim=-1)
    T = signals.queries @ signals.documents[:, 0].T
    S = S.masked_fill(T.diagonal()[:, None] < T, -torch.inf)
    expected = torch.nn.functional.cross_entropy(S / 0.01, torch.arange(5))
    torch.testing.assert_close(InfoNCE(0.01, mask="teacher")(embeddings, signals).loss, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_a_learned_temperature_starts_at_the_default_and_has_the_gradient_of_the_loss(masked):
    embeddings, loss = batch(B=6, masked=masked), InfoNCE(temperature="learned").double()
    out = loss(embeddings)
    torch.testing.assert_close(out.loss, InfoNCE()(embeddings).loss)
    assert (loss.knobs, out.diagnostics["temperature"].item()) == ((), pytest.approx(0.05))
    out.loss.backward()
    step = 1e-7
    tau = [0.05 * math.exp(100 * sign * step) for sign in (1, -1)]
    numeric = (InfoNCE(tau[0])(embeddings).loss - InfoNCE(tau[1])(embeddings).loss) / (2 * step)
    torch.testing.assert_close(loss.slow_log_temperature.grad, numeric, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        loss.slow_log_temperature.fill_(-1.0)
    loss.at(0.5)
    loss.zero_grad()
    bounded = loss(embeddings).loss
    torch.testing.assert_close(bounded, InfoNCE(0.01)(embeddings).loss)
    bounded.backward()
    assert float(loss.slow_log_temperature.grad) != 0, "it can leave the bound again"
    (parameter,) = loss.parameters()
    optimizer = torch.optim.Adam([parameter], lr=2e-5)
    with torch.no_grad():
        parameter.fill_(math.log(0.05) / 100)
    for _ in range(200):
        optimizer.zero_grad()
        loss(embeddings).loss.backward()
        optimizer.step()
    assert loss(embeddings).diagnostics["temperature"] > 0.06  # random vectors: a flatter softmax is less wrong


@pytest.mark.parametrize("parameters", [{}, {"candidates": "own"}, {"mask": "teacher"}])
def test_a_learned_temperature_has_a_gradient_where_candidates_are_left_out(parameters):
    embeddings, loss, step = batch(masked=True), InfoNCE("learned", **parameters).double(), 1e-6
    loss(embeddings, guide()).loss.backward()
    over, under = (
        InfoNCE(0.05 * math.exp(100 * sign * step), **parameters)(embeddings, guide()).loss for sign in (1, -1)
    )
    torch.testing.assert_close(loss.slow_log_temperature.grad, (over - under) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": "learnt"}, 'temperature must be a number greater than 0, not "learnt"'),
        ({"candidates": "all"}, 'candidates must be one of "batch", "own", not "all"'),
        ({"similarity": "l2"}, 'similarity must be one of "cosine", "dot", not "l2"'),
        ({"mask": "guide"}, 'mask must be one of null, "teacher", not "guide"'),
    ],
)
def test_words_that_are_refused(parameters, message):
    with pytest.raises(ValueError) as refused:
        InfoNCE(**parameters)
    assert str(refused.value) == message
