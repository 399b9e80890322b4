"""Cross-encoders, pinned for every family: pairs put together as the tokenizer does it, logits equal to those of
`transformers` and of sentence-transformers, whatever the chunks; what is no cross-encoder is refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import config
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from data import UserError
from orchestrator.cross_encoder import CrossEncoder, PairLayout, Scoring, load_cross_encoder
from orchestrator.encoding import Encoding, TokenCount, pad
from orchestrator.packed import architecture

CPU = torch.device("cpu")
WORDS = ["a", "b", "copper", "oak", "still", "spirit", "yeast", "of", "the"]
CLASSES = {
    "bert": "BertForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "mpnet": "MPNetForSequenceClassification",
    "modernbert": "ModernBertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
}
QUERIES = ["copper", "oak still of the spirit", "a", "yeast yeast"]
DOCUMENTS = ["the oak", "still", "spirit of the copper still of the yeast of oak", "b a b a b a the the"]


def tokenizer(family: str, folder: Path) -> Any:
    # Every word is known: the id of the unknown one is that of padding in some families, which count positions by it.
    specials = {"roberta": ("<s>", "</s>", "</s>"), "mpnet": ("<s>", "</s>", "</s>")}
    begin, end, unknown = specials.get(family, ("[CLS]", "[SEP]", "[UNK]"))
    double = family in specials
    vocabulary = {word: row for row, word in enumerate(["[PAD]", unknown + "?", begin, end, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown + "?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    typed = family in ("bert", "electra")
    second = 1 if typed else 0
    pair = f"{begin} $A {end} {end + ' ' if double else ''}$B:{second} {end}:{second}"
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", pair=pair, special_tokens=[(begin, 2), (end, 3)]
    )
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token=begin, sep_token=end, model_input_names=names
    )
    fast.save_pretrained(folder)
    return fast


def cross_encoder(family: str, folder: Path, labels: int = 1) -> Path:
    """A model folder with random weights, none of them at 0 or 1."""
    settings = transformers.ElectraConfig(
        vocab_size=80, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=40,
    ) if family == "electra" else config(family, layers=2)  # fmt: skip
    settings.num_labels = labels
    settings.pad_token_id = 0 if family != "roberta" else settings.pad_token_id
    torch.manual_seed(5)
    model = getattr(transformers, CLASSES[family])(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer(family, folder)
    return folder


def theirs(folder: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():  # each by itself, so that no padding is looked at
        logits = [model(**tokens(*pair, return_tensors="pt")).logits[0] for pair in pairs]
    return torch.stack(logits).numpy()


def sequences(folder: Path, pairs: list[tuple[str, str]], layout: PairLayout) -> list[np.ndarray]:
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    alone = [[np.array(tokens(text)["input_ids"], np.int32) for text in pair] for pair in pairs]
    return [layout.join(*pair) for pair in alone]


PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]


@pytest.mark.parametrize("family", CLASSES)
def test_pairs_are_put_together_as_the_tokenizer_does_it(family: str, tmp_path: Path) -> None:
    tokens = tokenizer(family, tmp_path)
    layout = PairLayout.of(tmp_path)
    for pair, joined in zip(PAIRS, sequences(tmp_path, PAIRS, layout), strict=True):
        assert joined.tolist() == tokens(*pair)["input_ids"]
        assert len(joined) == sum(len(tokens(text)["input_ids"]) for text in pair) + layout.longer
    assert (layout.separator is not None) == (family in ("bert", "electra"))


@pytest.mark.parametrize("budget", [1, 30, 10_000])
@pytest.mark.parametrize("family", CLASSES)
def test_logits_are_those_of_transformers(family: str, budget: int, tmp_path: Path) -> None:
    model = load_cross_encoder(cross_encoder(family, tmp_path))
    assert (architecture(model.backbone) is None) == (family == "electra")
    rows, count = sequences(tmp_path, PAIRS, model.layout), TokenCount()
    found = Encoding(CPU, "fp32", budget, pad_id=1 if family == "roberta" else 0).embed(model, rows, count)
    np.testing.assert_allclose(found.numpy(), theirs(tmp_path, PAIRS), atol=2e-5)
    assert found.shape == (len(PAIRS), 1)
    assert count.tokens == sum(map(len, rows))
    assert np.ptp(found.numpy()) > 0.1


def test_logits_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder as Theirs

    model = load_cross_encoder(cross_encoder("bert", tmp_path))
    rows = sequences(tmp_path, PAIRS, model.layout)
    found = Encoding(CPU, "fp32", 100, pad_id=0).embed(model, rows)[:, 0]
    other = Theirs(str(tmp_path), device="cpu", local_files_only=True)
    np.testing.assert_allclose(found, other.predict(PAIRS, activation_fn=torch.nn.Identity()), atol=2e-5)


def test_two_labels_make_one_score(tmp_path: Path) -> None:
    model = load_cross_encoder(cross_encoder("bert", tmp_path, labels=2))
    found = Encoding(CPU, "fp32", 100, pad_id=0).embed(model, sequences(tmp_path, PAIRS, model.layout))[:, 0]
    logits = theirs(tmp_path, PAIRS)
    np.testing.assert_allclose(found, logits[:, 1] - logits[:, 0], atol=2e-5)


def test_bf16_is_near(tmp_path: Path) -> None:
    model = load_cross_encoder(cross_encoder("bert", tmp_path))
    rows = sequences(tmp_path, PAIRS, model.layout)
    precise, rough = (Encoding(CPU, each, 100, pad_id=0).embed(model, rows)[:, 0].numpy() for each in ("fp32", "bf16"))
    assert 0 < np.abs(precise - rough).max() < 0.05 * np.ptp(precise)


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    cross_encoder("bert", tmp_path / "three", labels=3)
    (tmp_path / "empty").mkdir()
    shutil.copytree(tiny_model, tmp_path / "encoder")
    for folder, why in (
        ("three", "it tells 3 labels apart"),
        ("encoder", "2 weights are missing, the first classifier.bias"),
        ("empty", ""),
    ):
        with pytest.raises(UserError, match=f'{folder}" cannot be loaded as a cross-encoder: {why}'):
            load_cross_encoder(tmp_path / folder)


def test_the_longest_pair(tmp_path: Path) -> None:
    model = load_cross_encoder(cross_encoder("bert", tmp_path))
    assert isinstance(model, CrossEncoder)
    assert (model.max_tokens, model.layout.longer) == (40, -1)


def encoder(family: str, folder: Path) -> Path:
    """A model folder without a head, of a family's random weights."""
    torch.manual_seed(6)
    model = transformers.AutoModel.from_config(config(family, layers=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer(family, folder)
    return folder


def vectors_by_hand(folder: Path, pair: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Means of the last states up to the first separator, and behind it."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    read = tokens(*pair, return_tensors="pt")
    with torch.no_grad():
        states = model(**read).last_hidden_state[0].numpy()
    end = read["input_ids"][0].tolist().index(3)
    return states[: end + 1].mean(axis=0), states[end + 1 :].mean(axis=0)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "mpnet", "modernbert"])
def test_dual_pooling_is_the_product_of_two_means(family: str, normalize: bool, tmp_path: Path) -> None:
    model = load_cross_encoder(encoder(family, tmp_path), Scoring("dual", normalize))
    rows = sequences(tmp_path, PAIRS, model.layout)
    found = [Encoding(CPU, "fp32", budget, pad_id=0).embed(model, rows) for budget in (1, 30, 10_000)]
    for pair, vector, score in zip(PAIRS, found[0], model.scores(found[0]), strict=True):
        q, d = vectors_by_hand(tmp_path, pair)
        if normalize:
            q, d = q / np.linalg.norm(q), d / np.linalg.norm(d)
        np.testing.assert_allclose(vector.numpy(), np.concatenate([q, d]), atol=2e-5)
        assert float(score) == pytest.approx(float(q @ d), abs=1e-4)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=2e-5, rtol=0)
    ids, mask = pad(rows, 0)  # the way of families that are left to transformers
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask), found[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", CLASSES)
def test_what_is_saved_is_a_model_of_transformers(family: str, tmp_path: Path) -> None:
    model = load_cross_encoder(cross_encoder(family, tmp_path / "was"))
    rows = sequences(tmp_path / "was", PAIRS, model.layout)
    model.save(tmp_path / "saved", tmp_path / "was")
    np.testing.assert_allclose(
        theirs(tmp_path / "saved", PAIRS),
        Encoding(CPU, "fp32", 100, pad_id=1 if family == "roberta" else 0).embed(model, rows).numpy(),
        atol=2e-5,
    )
    assert not (tmp_path / "saved" / "pytorch_model.bin").exists()


def test_a_dual_cross_encoder_is_saved(tmp_path: Path) -> None:
    model = load_cross_encoder(encoder("bert", tmp_path / "was"), Scoring("dual"))
    model.save(tmp_path / "saved", tmp_path / "was")
    again = load_cross_encoder(tmp_path / "saved", Scoring("dual"))
    rows = sequences(tmp_path / "was", PAIRS, model.layout)
    found = [Encoding(CPU, "fp32", 100, pad_id=0).embed(each, rows) for each in (model, again)]
    torch.testing.assert_close(*found, atol=0, rtol=0)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert"])
def test_an_encoder_is_given_a_new_head(family: str, tmp_path: Path) -> None:
    folder = encoder(family, tmp_path)
    with pytest.raises(UserError, match=r"weights are missing, the first"):
        load_cross_encoder(folder)
    rows = None
    scores = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = load_cross_encoder(folder, new_head=True)
        rows = rows or sequences(folder, PAIRS, model.layout)
        scores.append(Encoding(CPU, "fp32", 100, pad_id=0).embed(model, rows))
        assert scores[-1].shape == (len(PAIRS), 1)
    torch.testing.assert_close(scores[0], scores[1], atol=0, rtol=0)
    assert float((scores[0] - scores[2]).abs().max()) > 1e-3


def test_a_head_that_is_there_is_kept(tmp_path: Path) -> None:
    folder = cross_encoder("bert", tmp_path)
    model = load_cross_encoder(folder, new_head=True)
    found = Encoding(CPU, "fp32", 100, pad_id=0).embed(model, sequences(folder, PAIRS, model.layout))
    np.testing.assert_allclose(found.numpy(), theirs(folder, PAIRS), atol=2e-5)
