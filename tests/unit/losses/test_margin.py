"""Margin, pinned: equal to the double loop in value and gradient for every variant; by hand on three 2-D triples;
`distributed` = regression on the mean target + variance of the targets; gradients against finite differences; rows and
columns apart; blind to the lengths of vectors, to the order of the batch and to half precision; its refusals.
"""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vectors import changed, counts, permuted, tensors

import losses
from losses import Embeddings, Margin

TARGETS = (0.3, "adaptive", "distributed")
GRIDS = (None, "rows", "columns")
ERRORS = ("l2", "l1", "soft")
VARIANTS = [
    (target, in_batch) for target, in_batch in product(TARGETS, GRIDS) if target != "distributed" or in_batch is None
]


def batch(K: int = 1, **more) -> Embeddings:
    embeddings = vectors.batch(K=K, **more)
    return changed(embeddings, *(x.requires_grad_() for x in tensors(embeddings)))


def cos(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def naive(embeddings: Embeddings, target, in_batch, error, detach) -> list[Tensor]:
    """The loss of each query, entry by entry as in the table of the paper's variants."""
    q, p, n = tensors(embeddings)
    B, K, _ = n.shape
    e = {"l2": lambda x: x * x, "l1": lambda x: x if x > 0 else -x, "soft": lambda x: torch.log(1 + torch.exp(-x))}
    entries: list[list[Tensor]] = [[] for _ in range(B)]
    for i in range(B):
        for j in range(B):
            for k in range(K):
                if target == "distributed":
                    owner, M = j, cos(q[j], p[j]) - cos(q[j], n[j, k])
                elif in_batch == "columns":
                    owner, M = i, cos(q[j], p[j]) - cos(q[i], n[j, k])
                elif in_batch == "rows" or i == j:
                    owner, M = i, cos(q[i], p[i]) - cos(q[i], n[j, k])
                else:
                    continue
                if in_batch and not counts(embeddings, i, j, k):
                    continue
                T = (1 + cos(p[i], n[j, k])) / 2 if isinstance(target, str) else torch.tensor(target)
                entries[owner].append(e[error](M - (T.detach() if detach else T)))
    return [sum(row) / len(row) for row in entries]


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("target", "in_batch"), VARIANTS)
def test_equals_the_double_loop_in_value_and_gradient(target, in_batch, error, detach, masked, K):
    embeddings = batch(K=K, masked=masked)
    out = Margin(target, in_batch, error, detach)(embeddings)
    expected = torch.stack(naive(embeddings, target, in_batch, error, detach))
    torch.testing.assert_close(out.per_example, expected)
    torch.testing.assert_close(out.loss, expected.mean())
    for ours, theirs in zip(
        torch.autograd.grad(out.loss, tensors(embeddings), retain_graph=True),
        torch.autograd.grad(expected.mean(), tensors(embeddings)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


# Three triples whose cosines are short decimals; the lengths 2, 5 and 10 must not matter.
#   P[i,i] = .8 .8 .6     N[i,j] = 0  1  -.6     S[i,j] = .6 .8 0      m[j] = .8 .8 .32
#                                  1  0   .8              .8 .6 .28
#                                  .8 .6  .28             0  1  -.6
BY_HAND = Embeddings(
    queries=torch.tensor([[2.0, 0.0], [0.0, 5.0], [6.0, 8.0]], dtype=torch.float64),
    positives=torch.tensor([[4.0, 3.0], [0.6, 0.8], [2.0, 0.0]], dtype=torch.float64),
    negatives=torch.tensor([[[0.0, 1.0]], [[5.0, 0.0]], [[-3.0, 4.0]]], dtype=torch.float64),
)


@pytest.mark.parametrize(
    ("loss", "per_example"),
    [
        (Margin(0.5), [0.09, 0.09, 0.0324]),
        (Margin(0.5, error="l1"), [0.3, 0.3, 0.18]),
        (Margin(0.5, error="soft"), [math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(-0.3)), 0.787191799]),
        (Margin("adaptive"), [0.0, 0.0, 0.0144]),
        # M = .8 -.2 1.4 | -.2 .8 0 | -.2 0 .32
        (Margin(0.5, "rows"), [(0.09 + 0.49 + 0.81) / 3, (0.49 + 0.09 + 0.25) / 3, (0.49 + 0.25 + 0.0324) / 3]),
        # M = .8 -.2 1.2 | -.2 .8 -.2 | 0 .2 .32
        (Margin(0.5, "columns"), [(0.09 + 0.49 + 0.49) / 3, (0.49 + 0.09 + 0.49) / 3, (0.25 + 0.09 + 0.0324) / 3]),
        # T = .8 .9 .5 | .9 .8 .64 | .5 1 .2
        (Margin("adaptive", "rows"), [(0 + 1.21 + 0.81) / 3, (1.21 + 0 + 0.4096) / 3, (0.49 + 1 + 0.0144) / 3]),
        (Margin("adaptive", "columns"), [(0 + 1.21 + 0.49) / 3, (1.21 + 0 + 0.7056) / 3, (0.25 + 0.64 + 0.0144) / 3]),
        (Margin("distributed"), [(0 + 0.01 + 0.09) / 3, (0.01 + 0 + 0.04) / 3, (0.0324 + 0.1024 + 0.0144) / 3]),
    ],
)
def test_three_triples_by_hand(loss, per_example):
    out = loss(BY_HAND)
    assert out.per_example.tolist() == pytest.approx(per_example)
    assert out.loss.item() == pytest.approx(sum(per_example) / 3)


def test_rows_and_columns_differ():
    rows, columns = (Margin("adaptive", in_batch)(BY_HAND).loss.item() for in_batch in ("rows", "columns"))
    assert rows == pytest.approx(5.144 / 9)
    assert columns == pytest.approx(4.52 / 9)


def test_diagnostics_by_hand():
    diagnostics = {name: value.item() for name, value in Margin("adaptive", "rows")(BY_HAND).diagnostics.items()}
    assert diagnostics == pytest.approx(
        {
            "margin": 2.72 / 9,
            "target": 6.24 / 9,
            "positive_similarity": 2.2 / 3,
            "negative_similarity": 0.28 / 3,
            "satisfied": 4 / 9,
        },
        abs=1e-12,
    )


def test_diagnostics_are_detached_scalars():
    for value in Margin("distributed")(batch()).diagnostics.values():
        assert value.shape == ()
        assert not value.requires_grad


def test_diagnostics_leave_out_what_is_relevant():
    # Without n_1 for query 0 and n_2 for query 1: M = .8 . 1.4 | -.2 .8 . | -.2 0 .32
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, 4] = mask[1, 5] = True
    out = Margin("adaptive", "rows")(replace(BY_HAND, relevant=mask))
    assert out.per_example.tolist() == pytest.approx([0.81 / 2, 1.21 / 2, (0.49 + 1 + 0.0144) / 3])
    assert out.diagnostics["margin"].item() == pytest.approx(2.92 / 7)
    assert out.diagnostics["target"].item() == pytest.approx((0.8 + 0.5 + 0.9 + 0.8 + 0.5 + 1 + 0.2) / 7)
    assert out.diagnostics["satisfied"].item() == pytest.approx(4 / 7)


def test_satisfied_counts_margins_that_reach_their_target():
    assert Margin(0.5)(BY_HAND).diagnostics["satisfied"].item() == pytest.approx(2 / 3)
    assert Margin(0.9)(BY_HAND).diagnostics["satisfied"].item() == 0.0


@pytest.mark.parametrize("K", [1, 2])
def test_distributed_is_regression_on_the_mean_target_plus_its_variance(K):
    embeddings = batch(B=6, K=K)
    q, p, n = (torch.nn.functional.normalize(x, dim=-1) for x in tensors(embeddings))
    T = (1 + torch.einsum("id,jkd->ijk", p, n)) / 2
    m = (q * p).sum(-1)[:, None] - torch.einsum("jd,jkd->jk", q, n)
    expected = (m - T.mean(dim=0)).square().mean() + T.var(dim=0, correction=0).mean()
    torch.testing.assert_close(Margin("distributed")(embeddings).loss, expected)


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("target", "in_batch"), VARIANTS)
def test_gradient_against_finite_differences(target, in_batch, error, K):
    embeddings = batch(B=3, K=K, D=3, masked=True)
    loss = Margin(target, in_batch, error)
    # l1 has a kink where an entry is 0; the nearest entry of this batch is thousands of steps of 1e-6 away.
    assert torch.autograd.gradcheck(lambda *x: loss(changed(embeddings, *x)).loss, tensors(embeddings))


@pytest.mark.parametrize(("target", "in_batch"), [variant for variant in VARIANTS if variant[0] != 0.3])
def test_detach_target_changes_the_gradient_and_not_the_value(target, in_batch):
    embeddings = batch()
    whole, detached = (Margin(target, in_batch, detach_target=detach)(embeddings).loss for detach in (False, True))
    assert whole.item() == detached.item()
    _, p_whole, n_whole = torch.autograd.grad(whole, tensors(embeddings))
    _, p_detached, n_detached = torch.autograd.grad(detached, tensors(embeddings))
    assert not torch.allclose(p_whole, p_detached)
    assert not torch.allclose(n_whole, n_detached)


@settings(max_examples=40, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    error=st.sampled_from(ERRORS),
    order=st.integers(1, 6).flatmap(lambda B: st.permutations(range(B))),
    K=st.integers(1, 3),
    seed=st.integers(0, 1000),
    masked=st.booleans(),
)
def test_order_of_the_batch_does_not_matter(variant, error, order, K, seed, masked):
    embeddings = batch(B=len(order), K=K, seed=seed, masked=masked)
    loss = Margin(*variant, error)
    out, other = loss(embeddings), loss(permuted(embeddings, order))
    torch.testing.assert_close(other.per_example, out.per_example[order])
    torch.testing.assert_close(other.loss, out.loss)
    torch.testing.assert_close(out.per_example.mean(), out.loss)


@pytest.mark.parametrize(("target", "in_batch"), VARIANTS)
@pytest.mark.parametrize("exponent", [-100, -10, 10, 100])
def test_length_of_a_vector_does_not_matter(target, in_batch, exponent):
    embeddings = batch(dtype=torch.float32)
    loss = Margin(target, in_batch)
    stretched = Embeddings(*(x * 2.0**exponent for x in tensors(embeddings)))  # a power of two rounds nothing
    assert torch.equal(loss(stretched).per_example, loss(embeddings).per_example)


@pytest.mark.parametrize(("target", "in_batch"), VARIANTS)
def test_zero_vectors_count_as_cosine_zero_with_finite_gradients(target, in_batch):
    zero = Embeddings(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1, 3))
    for x in tensors(zero):
        x.requires_grad_()
    out = Margin(target, in_batch)(zero)
    T = 0.3 if target == 0.3 else 0.5
    assert out.loss.item() == pytest.approx(T**2)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.loss, tensors(zero)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_to_float32(dtype):
    half = Embeddings(*(x.detach().to(dtype).requires_grad_() for x in tensors(batch())))
    whole = Embeddings(*(x.detach().float() for x in tensors(half)))
    out = Margin("adaptive", "rows")(half)
    assert out.loss.dtype == torch.float32
    assert torch.equal(out.per_example, Margin("adaptive", "rows")(whole).per_example)
    assert all(gradient.dtype == dtype for gradient in torch.autograd.grad(out.loss, tensors(half)))


def test_autocast_does_not_lower_the_similarities():
    embeddings = batch(dtype=torch.float32)
    loss = Margin("adaptive", "rows")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = loss(embeddings)
    assert torch.equal(lowered.per_example, loss(embeddings).per_example)


def test_float64_stays():
    assert Margin(0.3)(batch()).loss.dtype == torch.float64


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"target": "distributed", "in_batch": "rows"},
            'target "distributed" and in_batch "rows" exclude each other: distributed targets span the batch already',
        ),
        ({"target": 1.5}, 'target must be a number in [-1, 1], "adaptive" or "distributed", not 1.5'),
        ({"target": "adaptiv"}, 'target must be a number in [-1, 1], "adaptive" or "distributed", not "adaptiv"'),
        ({"target": True}, 'target must be a number in [-1, 1], "adaptive" or "distributed", not true'),
        ({"target": math.nan}, 'target must be a number in [-1, 1], "adaptive" or "distributed", not nan'),
        ({"target": 0.3, "in_batch": "cols"}, 'in_batch must be one of null, "rows", "columns", not "cols"'),
        ({"target": 0.3, "error": "huber"}, 'error must be one of "l2", "l1", "soft", not "huber"'),
        ({"target": 0.3, "error": None}, 'error must be one of "l2", "l1", "soft", not null'),
        ({"target": 0.3, "detach_target": "no"}, 'detach_target must be true or false, not "no"'),
    ],
)
def test_refusals(parameters, message):
    with pytest.raises(ValueError) as refused:
        losses.build("margin", **parameters)
    assert str(refused.value) == message


def test_without_negatives_it_refuses():
    with pytest.raises(ValueError, match=r'^the loss "margin" needs negatives, and the batch has none$'):
        Margin(0.3)(batch(K=0))


def test_only_a_constant_target_is_a_knob():
    assert Margin(0.3).knobs == ("target",)
    assert Margin("adaptive").knobs == ()
    assert Margin("distributed").knobs == ()
