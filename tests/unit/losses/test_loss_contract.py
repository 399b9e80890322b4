"""The records around a loss, the registry, and what `import losses` costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vectors import batch, tensors

import losses
from losses import Embeddings, Loss, Signals
from losses.contract import output
from losses.registry import LOSSES, Parameter


@pytest.mark.parametrize(
    ("queries", "positives", "negatives"),
    [
        ((2, 3), (2, 4), (2, 1, 3)),
        ((2, 3), (1, 3), (2, 1, 3)),
        ((2, 3), (2, 3), (2, 3)),
        ((2, 3), (2, 3), (1, 1, 3)),
        ((2, 3), (2, 3), (2, 1, 4)),
        ((2, 1, 3), (2, 1, 3), (2, 1, 3)),
        ((0, 3), (0, 3), (0, 1, 3)),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_with_their_shapes(queries, positives, negatives):
    with pytest.raises(ValueError) as refused:
        Embeddings(torch.zeros(queries), torch.zeros(positives), torch.zeros(negatives))
    assert str(refused.value) == (
        "embeddings must be queries (B, D), positives (B, D), negatives (B, K, D) with B > 0, "
        f"not queries {queries}, positives {positives}, negatives {negatives}"
    )


@pytest.mark.parametrize("mask", [torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 4)])
def test_a_mask_that_does_not_fit_is_refused(mask):
    embeddings = torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 1, 3)
    assert Embeddings(*embeddings, torch.zeros(2, 4, dtype=torch.bool)).kept.shape == (2, 2, 1)
    with pytest.raises(ValueError) as refused:
        Embeddings(*embeddings, mask)
    message = "what else is relevant must be (B, B + B·K) of bool, here (2, 4), not"
    assert str(refused.value) == f"{message} {tuple(mask.shape)} of {mask.dtype}"


def test_signals_know_their_spaces():
    assert Signals().scores is None
    assert Signals(scores=torch.zeros(2, 3), space="cosine").space == "cosine"
    message = "^the space of teacher scores must be one of logit, probability, cosine, dot, not 'logits'$"
    with pytest.raises(ValueError, match=message):
        Signals(space="logits")


def test_a_loss_gets_what_it_needs_or_says_what_is_missing():
    class Distilled(Loss):
        name, paper = "distilled", ""
        needs = frozenset({"negatives", "teacher_scores", "teacher_queries"})

        def compute(self, embeddings, signals):
            return output(signals.scores.sum(dim=1))

    embeddings = Embeddings(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 0, 3))
    message = '^the loss "distilled" needs negatives, teacher_queries, teacher_scores, and the batch has none$'
    with pytest.raises(ValueError, match=message):
        Distilled()(embeddings)
    embeddings = Embeddings(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 1, 3))
    out = Distilled()(embeddings, Signals(scores=torch.tensor([[1.0, 2.0], [3.0, 5.0]]), queries=torch.ones(2, 7)))
    assert out.per_example.tolist() == [3.0, 8.0]
    assert out.loss.item() == 5.5


@pytest.mark.parametrize(
    ("loss", "met"),
    [
        (losses.InfoNCE(), 5 + 12),
        (losses.Margin("adaptive", detach_target=True), 2),
        (losses.Margin("adaptive", in_batch="rows", detach_target=True), 12),
        (losses.Margin("distributed", detach_target=True), 2),
        (losses.Triplet(2.0), 2),
        (losses.Triplet(2.0, in_batch="rows"), 12),
    ],
)
def test_the_negatives_that_a_query_meets_are_those_that_its_loss_moves(loss, met):
    embeddings = batch(B=6, K=2)
    documents = [x.requires_grad_() for x in tensors(embeddings)[1:]]
    gradients = torch.autograd.grad(loss(embeddings).per_example[0], documents)
    moved = sum(int(gradient.flatten(0, -2).any(dim=-1).sum()) for gradient in gradients)
    assert loss.negatives_met(B=6, K=2) == met == moved - 1  # its positive moves too


def test_build_finds_each_loss_by_its_own_name():
    assert all(cls.name == name for name, cls in LOSSES.items())
    built = losses.build("margin", target="adaptive", in_batch="rows", error="soft", detach_target=True)
    assert isinstance(built, losses.Margin)
    assert (built.target, built.in_batch, built.error, built.detach_target) == ("adaptive", "rows", "soft", True)
    assert losses.build("infonce", temperature=1).temperature == 1.0
    assert losses.build("triplet", margin=0.2, in_batch="rows").in_batch == "rows"


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("margn", {}, '"margn" is not a loss here; did you mean "margin"?'),
        (
            "ordinal",
            {},
            '"ordinal" is not a loss here; known: "margin", "infonce", "self-distilled-infonce", "triplet", '
            '"margin-mse", "score-kl", '
            '"listnet", "ranknet", "pair-kl", "embedding-matching", "relational-matching", "weighted-sum", '
            '"matryoshka"',
        ),
        ("margin", {"traget": 0.3}, 'the loss "margin" has no parameter "traget"; did you mean "target"?'),
        (
            "infonce",
            {"scale": 20},
            'the loss "infonce" has no parameter "scale"; known: "temperature", "candidates", "similarity", "mask"',
        ),
        ("margin", {"in_batch": "rows"}, 'the loss "margin" needs a value for "target"'),
        ("triplet", {}, 'the loss "triplet" needs a value for "margin"'),
    ],
)
def test_build_names_the_nearest_known(name, parameters, message):
    with pytest.raises(ValueError) as refused:
        losses.build(name, **parameters)
    assert str(refused.value) == message


def test_describe_lists_names_needs_knobs_and_defaults():
    described = {loss.name: loss for loss in losses.describe()}
    names = ("margin", "infonce", "triplet", "margin-mse", "score-kl", "ranknet", "pair-kl", "embedding-matching")
    margin, infonce, triplet, margin_mse, score_kl, ranknet, pair_kl, matching = map(described.__getitem__, names)
    composed = described["weighted-sum"], described["matryoshka"]
    assert [[parameter.name for parameter in loss.parameters] for loss in composed] == [
        ["terms"],
        ["loss", "dimensions"],
    ]
    assert (margin.name, margin.needs, margin.knobs) == ("margin", ("negatives",), ("target",))
    assert margin.parameters == (
        Parameter("target", required=True, default=None),
        Parameter("in_batch", required=False, default=None),
        Parameter("error", required=False, default="l2"),
        Parameter("detach_target", required=False, default=False),
    )
    assert margin.paper == "Gienapp et al. 2025, arXiv 2407.21515"
    assert margin.summary.startswith("Drive the relevance margin of each triple to a target")
    assert (infonce.name, infonce.needs, infonce.knobs) == ("infonce", (), ("temperature",))
    assert infonce.parameters[0] == Parameter("temperature", required=False, default=0.05)
    assert (triplet.name, triplet.needs, triplet.knobs) == ("triplet", ("negatives",), ("margin",))
    assert (margin_mse.name, margin_mse.needs, margin_mse.knobs) == ("margin-mse", ("negatives", "teacher_scores"), ())
    assert (score_kl.needs, score_kl.knobs) == (("negatives", "teacher_scores"), ("temperature",))
    assert (ranknet.needs, ranknet.knobs) == (("negatives",), ("temperature",))
    assert (pair_kl.needs, pair_kl.knobs) == (("negatives", "teacher_scores"), ("temperature",))
    assert (matching.needs, matching.knobs) == (("teacher_documents", "teacher_queries"), ())


def test_import_takes_torch_and_nothing_more():
    program = (
        "import json, sys, torch; before = set(sys.modules); import losses;"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    root = Path(__file__).parents[3]
    printed = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert [name for name in json.loads(printed.stdout) if name not in sys.stdlib_module_names] == ["losses"]
