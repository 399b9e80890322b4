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
from orchestrator.cross_encoder import CrossEncoder, PairLayout, load_cross_encoder
from orchestrator.encoding import Encoding, TokenCount
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
