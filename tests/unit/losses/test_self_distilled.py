"""Self-distilled InfoNCE, pinned: by hand, as a loop, InfoNCE where documents are unlike each other, gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from vectors import batch, changed, permuted, tensors

from losses import Embeddings, InfoNCE, SelfDistilledInfoNCE


def test_two_queries_by_hand():
    # Cosines of q1, q2 with p1, p2: .8, 0 and .6, 1; of p1, p2 with each other: .6. D = 2.
    embeddings = Embeddings(
        queries=torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64),
        positives=torch.tensor([[4.0, 3.0], [0.0, 2.0]], dtype=torch.float64),
        negatives=torch.empty(2, 0, 2, dtype=torch.float64),
    )
    out = SelfDistilledInfoNCE()(embeddings)

    def softmax(*x: float) -> list[float]:
        e = [math.exp(math.sqrt(2) * each) for each in x]
        return [each / sum(e) for each in e]

    t = [softmax(1, 0.6), softmax(0.6, 1)]
    s = [softmax(0.8, 0), softmax(0.6, 1)]
    expected = [-sum(a * math.log(b) for a, b in zip(t[i], s[i], strict=True)) for i in (0, 1)]
    assert out.per_example.tolist() == pytest.approx(expected)
    assert out.loss.item() == pytest.approx(sum(expected) / 2)
    assert {name: value.item() for name, value in out.diagnostics.items()} == pytest.approx(
        {"accuracy": 1.0, "positive_similarity": 0.9, "own_share": (t[0][0] + t[1][1]) / 2}
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("K", [0, 1, 3])
def test_equals_the_loop_over_all_candidates(K, masked):
    embeddings = batch(K=K, masked=masked)
    q, p, n = tensors(embeddings)
    candidates = [*p, *(n[j, k] for j in range(4) for k in range(K))]
    expected = []
    for i in range(4):
        kept = [c for c in range(len(candidates)) if not (masked and embeddings.relevant[i, c])]
        logits, targets = (
            torch.stack([math.sqrt(5) * F.cosine_similarity(x[i], candidates[c], dim=0) for c in kept]) for x in (q, p)
        )
        expected.append(F.cross_entropy(logits[None], F.softmax(targets, dim=0)[None]))
    out = SelfDistilledInfoNCE()(embeddings)
    torch.testing.assert_close(out.per_example, torch.stack(expected))
    if K:
        M = F.cosine_similarity(q, p, dim=-1)[:, None] - F.cosine_similarity(q[:, None], n, dim=-1)
        torch.testing.assert_close(out.diagnostics["margin"], M.mean())


def test_it_is_infonce_where_documents_are_unlike_each_other():
    D = 400
    documents = torch.eye(D, dtype=torch.float64)
    q = batch(B=6, D=D).queries
    embeddings = Embeddings(q, documents[:6], documents[6:18].view(6, 2, D))
    found, plain = SelfDistilledInfoNCE()(embeddings), InfoNCE(temperature=1 / 20)(embeddings)
    torch.testing.assert_close(found.loss, plain.loss, atol=1e-6, rtol=0)
    assert found.diagnostics["own_share"] > 1 - 1e-7


def test_a_copy_of_the_positive_shares_its_target():
    embeddings = batch(B=1, K=1)
    q, p, _ = tensors(embeddings)
    copied = changed(embeddings, q, p, p[:, None].clone())
    out = SelfDistilledInfoNCE()(copied)
    assert out.loss.item() == pytest.approx(math.log(2))
    assert out.diagnostics["own_share"].item() == pytest.approx(0.5)


def test_the_target_has_no_gradient():
    embeddings = batch(masked=True)
    vectors = [x.clone().requires_grad_() for x in tensors(embeddings)]
    SelfDistilledInfoNCE()(changed(embeddings, *vectors)).loss.backward()
    with torch.no_grad():
        p, n = (F.normalize(x, dim=-1) for x in vectors[1:])
        documents = torch.cat([p, n.flatten(0, 1)])
        target = F.softmax((math.sqrt(5) * p @ documents.T).masked_fill(embeddings.relevant, -torch.inf), dim=1)
    again = [x.detach().clone().requires_grad_() for x in vectors]
    q, p, n = (F.normalize(x, dim=-1) for x in again)
    logits = (math.sqrt(5) * q @ torch.cat([p, n.flatten(0, 1)]).T).masked_fill(embeddings.relevant, -1e9)
    F.cross_entropy(logits, target).backward()
    for found, expected in zip(vectors, again, strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_the_order_of_the_batch_and_the_length_of_vectors_do_not_matter():
    embeddings, loss = batch(masked=True), SelfDistilledInfoNCE()
    out, order = loss(embeddings), [2, 0, 3, 1]
    torch.testing.assert_close(loss(permuted(embeddings, order)).per_example, out.per_example[order])
    longer = changed(embeddings, *(3 * x for x in tensors(embeddings)))
    torch.testing.assert_close(loss(longer).per_example, out.per_example)
