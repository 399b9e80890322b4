"""Triplet, pinned: by hand; equal to the loop; no gradient from a satisfied triple; gradient; refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import batch, changed, counts, permuted, tensors

from losses import Embeddings, Margin, Triplet

# M within the triples: .8 - 0, 1 - .8. M of the rows: .8 - 0, .8 - .6 | 1 - 1, 1 - .8.
BY_HAND = Embeddings(
    queries=torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64),
    positives=torch.tensor([[4.0, 3.0], [0.0, 7.0]], dtype=torch.float64),
    negatives=torch.tensor([[[0.0, 1.0]], [[3.0, 4.0]]], dtype=torch.float64),
)


@pytest.mark.parametrize(
    ("in_batch", "per_example", "margin"),
    [(None, [0.0, 0.3], 0.5), ("rows", [0.15, 0.4], 0.3)],
)
def test_two_triples_by_hand(in_batch, per_example, margin):
    out = Triplet(0.5, in_batch)(BY_HAND)
    assert out.per_example.tolist() == pytest.approx(per_example)
    assert out.loss.item() == pytest.approx(sum(per_example) / 2)
    assert {name: value.item() for name, value in out.diagnostics.items()} == pytest.approx(
        {
            "margin": margin,
            "positive_similarity": 0.9,
            "negative_similarity": 0.4,
            "satisfied": 0.5 if in_batch is None else 0.25,
        }
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("in_batch", [None, "rows"])
@pytest.mark.parametrize("K", [1, 2])
def test_equals_the_loop(in_batch, K, masked):
    embeddings = batch(K=K, masked=masked)
    q, p, n = embeddings.queries, embeddings.positives, embeddings.negatives
    cos = torch.nn.functional.cosine_similarity
    expected = []
    for i in range(4):
        others = range(4) if in_batch else [i]
        entries = [(j, k) for j in others for k in range(K) if counts(embeddings, i, j, k)]
        M = [cos(q[i], p[i], dim=0) - cos(q[i], n[entry], dim=0) for entry in entries]
        expected.append(sum(max(0.0, 0.4 - m.item()) for m in M) / len(M))
    assert Triplet(0.4, in_batch)(embeddings).per_example.tolist() == pytest.approx(expected)


def test_a_satisfied_triple_gives_no_gradient_where_a_margin_does():
    satisfied = [x[:1].clone().requires_grad_() for x in tensors(BY_HAND)]  # M = .8
    triplet = torch.autograd.grad(Triplet(0.5)(Embeddings(*satisfied)).loss, satisfied)
    margin = torch.autograd.grad(Margin(0.5)(Embeddings(*satisfied)).loss, satisfied)
    assert all(gradient.count_nonzero() == 0 for gradient in triplet)
    assert all(gradient.count_nonzero() > 0 for gradient in margin)


@pytest.mark.parametrize("in_batch", [None, "rows"])
@pytest.mark.parametrize("K", [1, 2])
def test_gradient_against_finite_differences(in_batch, K):
    embeddings = batch(B=3, K=K, D=3, masked=True)
    inputs = [x.requires_grad_() for x in tensors(embeddings)]
    assert torch.autograd.gradcheck(lambda *x: Triplet(0.5, in_batch)(changed(embeddings, *x)).loss, inputs)


@settings(max_examples=25, deadline=None)
@given(
    order=st.integers(1, 6).flatmap(lambda B: st.permutations(range(B))),
    in_batch=st.sampled_from([None, "rows"]),
    seed=st.integers(0, 99),
    masked=st.booleans(),
)
def test_order_of_the_batch_does_not_matter(order, in_batch, seed, masked):
    embeddings = batch(B=len(order), seed=seed, masked=masked)
    out, other = (Triplet(0.3, in_batch)(x) for x in (embeddings, permuted(embeddings, order)))
    torch.testing.assert_close(other.per_example, out.per_example[order])
    torch.testing.assert_close(other.loss, out.loss)
    torch.testing.assert_close(out.per_example.mean(), out.loss)


def test_length_of_a_vector_and_half_precision():
    embeddings = batch()
    stretched = Embeddings(embeddings.queries * 2**30, embeddings.positives / 2**40, embeddings.negatives * 2**5)
    assert torch.equal(Triplet(0.3)(stretched).per_example, Triplet(0.3)(embeddings).per_example)
    half = Embeddings(*(x.bfloat16() for x in tensors(embeddings)))
    assert Triplet(0.3)(half).loss.dtype == torch.float32


@pytest.mark.parametrize(("value", "word"), [(0, "0"), (2.1, "2.1"), (True, "true"), (None, "null")])
def test_refuses_a_margin_that_cosines_cannot_have(value, word):
    with pytest.raises(ValueError, match=f"^margin must be a number greater than 0 and at most 2, not {word}$"):
        Triplet(value)


def test_refuses_columns_and_a_batch_without_negatives():
    with pytest.raises(ValueError, match=r'^in_batch must be one of null, "rows", not "columns"$'):
        Triplet(0.3, "columns")
    with pytest.raises(ValueError, match=r'^the loss "triplet" needs negatives, and the batch has none$'):
        Triplet(0.3)(batch(K=0))
