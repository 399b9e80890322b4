"""Sums and cuts of losses, pinned: the weighted terms, schedules, what they declare, refusals; each length by hand."""

import pytest
import torch
from vectors import batch, tensors

import losses
from losses import EmbeddingMatching, InfoNCE, Matryoshka, ScoreKL, Signals, WeightedSum, build
from losses.composite import Term


def signals(B: int = 4, K: int = 2, D: int = 5) -> Signals:
    generator = torch.Generator().manual_seed(8)
    shapes = (B, 1 + K), (B, D), (B, 1 + K, D)
    return Signals(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes), "logit")


def test_a_sum_is_the_weighted_sum_of_its_terms():
    embeddings, said = batch(), signals()
    loss = build(
        "weighted-sum",
        terms="infonce + 0.5*score-kl + 5*embedding-matching",
        **{"infonce.temperature": 0.1, "score-kl.in_batch": True, "embedding-matching.side": "query"},
    )
    parts = InfoNCE(0.1), ScoreKL(in_batch=True), EmbeddingMatching("query")
    found = [part(embeddings, said) for part in parts]
    out = loss(embeddings, said)
    expected = sum(w * each.per_example for w, each in zip((1.0, 0.5, 5.0), found, strict=True))
    torch.testing.assert_close(out.per_example, expected)
    torch.testing.assert_close(out.loss, expected.mean())
    for label, each in zip(("infonce", "score-kl", "embedding-matching"), found, strict=True):
        torch.testing.assert_close(out.diagnostics[f"{label}_loss"], each.loss)
    assert out.diagnostics["accuracy"] == found[0].diagnostics["accuracy"]
    assert out.diagnostics["agreement"] == found[1].diagnostics["agreement"]
    assert {"query_misalignment", "document_misalignment"} <= set(out.diagnostics)


def test_what_a_sum_declares_is_what_its_terms_do():
    terms = "infonce + score-kl + embedding-matching"
    loss = build("weighted-sum", terms=terms, **{"score-kl.in_batch": True})
    assert loss.needs == {"teacher_queries", "teacher_documents"}
    assert loss.knobs == (
        "infonce.temperature",
        "score-kl.temperature",
        "score-kl.weight",
        "embedding-matching.weight",
    )
    assert loss.matches_vectors
    assert loss.negatives_met(6, 2) == 17
    scored = build("weighted-sum", terms="infonce + margin-mse")
    assert scored.needs == {"negatives", "teacher_scores"}
    assert scored.misfit("logit", "cosine") == losses.MarginMSE().misfit("logit", "cosine")
    assert scored.misfit("cosine", "cosine") is None
    assert not scored.matches_vectors


def test_weights_change_linearly_over_the_training():
    embeddings, said = batch(), signals()
    loss = build("weighted-sum", terms="infonce + 4*margin-mse", **{"margin-mse.final_weight": 0.0})
    parts = InfoNCE()(embeddings).loss, losses.MarginMSE()(embeddings, said).loss
    for progress, weight in ((0.0, 4.0), (0.25, 3.0), (1.0, 0.0)):
        loss.at(progress)
        torch.testing.assert_close(loss(embeddings, said).loss, parts[0] + weight * parts[1])
    within = WeightedSum([Term("inner", loss)])
    within.at(0.5)
    assert loss.progress == 0.5


def test_a_loss_that_occurs_twice_has_labels():
    embeddings, said = batch(), signals()
    loss = build(
        "weighted-sum",
        terms="embedding-matching:q + 0.5 * embedding-matching:d",
        **{"q.side": "query", "d.side": "document", "d.weight": 2.0},
    )
    q, d = (EmbeddingMatching(side)(embeddings, said).loss for side in ("query", "document"))
    torch.testing.assert_close(loss(embeddings, said).loss, q + 2 * d)


def test_the_parameters_of_a_term_are_learned_and_kept():
    loss = build("weighted-sum", terms="infonce", **{"infonce.temperature": "learned"})
    assert [name for name, _ in loss.named_parameters()] == ["parts.0.slow_log_temperature"]
    assert loss.knobs == ()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"terms": "infonce score-kl"}, 'terms must be such as "infonce + 0.5*score-kl", not "infonce score-kl"'),
        ({"terms": "-1*infonce"}, 'terms must be such as "infonce + 0.5*score-kl", not "-1*infonce"'),
        ({"terms": 3}, "terms must be a sum of losses, not 3"),
        ({"terms": "infonc"}, '"infonc" is not a loss here; did you mean "infonce"?'),
        ({"terms": "infonce + infonce"}, 'terms has "infonce" twice; give each a label: "infonce:a + infonce:b"'),
        (
            {"terms": "infonce", "temperature": 0.1},
            'the loss "weighted-sum" has no parameter "temperature"; known: "terms"',
        ),
        (
            {"terms": "infonce", "margin.target": 0.1},
            'the loss "weighted-sum" has no parameter "margin.target"; those of its parts: "infonce.…"',
        ),
        (
            {"terms": "infonce", "infonce.temperatur": 0.1},
            'the loss "infonce" has no parameter "temperatur"; did you mean "temperature"?',
        ),
        ({"terms": "infonce", "infonce.weight": "much"}, 'infonce.weight must be a number of at least 0, not "much"'),
        ({"terms": "infonce", "infonce.weight": None}, "infonce.weight must be a number of at least 0, not null"),
        (
            {"terms": "infonce", "infonce.final_weight": -1},
            "infonce.final_weight must be a number of at least 0, not -1",
        ),
        ({}, 'the loss "weighted-sum" needs a value for "terms"'),
    ],
)
def test_sums_that_are_refused(parameters, message):
    with pytest.raises(ValueError) as refused:
        build("weighted-sum", **parameters)
    assert str(refused.value) == message


def test_matryoshka_is_the_mean_over_the_lengths():
    embeddings = batch(masked=True)
    loss = build("matryoshka", loss="infonce", dimensions="3 2", **{"infonce.temperature": 0.1})
    expected = []
    for m in (5, 2, 3):
        cut = losses.Embeddings(*(x[..., :m] for x in tensors(embeddings)), embeddings.relevant)
        expected.append(InfoNCE(0.1)(cut))
    out = loss(embeddings)
    torch.testing.assert_close(out.per_example, sum(each.per_example for each in expected) / 3)
    assert {f"loss_{m}": out.diagnostics[f"loss_{m}"] for m in (5, 2, 3)} == {
        f"loss_{m}": each.loss for m, each in zip((5, 2, 3), expected, strict=True)
    }
    assert out.diagnostics["accuracy"] == expected[0].diagnostics["accuracy"]
    assert (loss.knobs, loss.dimensions) == (("infonce.temperature",), (2, 3))


def test_what_matryoshka_cuts_is_as_long_as_it_was():
    whole = batch()
    loss = build("matryoshka", loss="infonce", dimensions="2", **{"infonce.similarity": "dot"})
    cut = losses.Embeddings(
        *(x[..., :2] * (x.norm(dim=-1) / x[..., :2].norm(dim=-1)).unsqueeze(-1) for x in tensors(whole))
    )
    expected = (build("infonce", similarity="dot")(whole).loss + build("infonce", similarity="dot")(cut).loss) / 2
    torch.testing.assert_close(loss(whole).loss, expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loss": "infonce", "dimensions": "64, 128"}, 'dimensions must be such as "64 128", not "64, 128"'),
        ({"loss": "infonce", "dimensions": 0}, 'dimensions must be such as "64 128", not 0'),
        (
            {"loss": "embedding-matching", "dimensions": 64},
            '"embedding-matching" matches whole vectors, and matryoshka cuts them',
        ),
        ({"loss": "infonce"}, 'the loss "matryoshka" needs a value for "dimensions"'),
    ],
)
def test_cuts_that_are_refused(parameters, message):
    with pytest.raises(ValueError) as refused:
        build("matryoshka", **parameters)
    assert str(refused.value) == message


def test_a_cut_beyond_the_vectors_is_refused():
    with pytest.raises(ValueError, match=r"^5 components are not a part of vectors of 5$"):
        Matryoshka("infonce", InfoNCE(), [2, 5])(batch())
