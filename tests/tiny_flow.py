"""A made-up collection, a BERT of two small layers, and an experiment on them that takes seconds.

A document is about two things and says so among words that every document has; a query names the two things among
words that every query has. So an encoder that has not been trained finds some of them, and training, which teaches it
what to overlook, helps with queries that it has not seen.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

DOCUMENTS, TRAIN_QUERIES, TEST_QUERIES = 60, 40, 10
_SYLLABLES = ["ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pa", "re"]
THINGS = [a + b for a in _SYLLABLES for b in _SYLLABLES][:30]
OF_DOCUMENTS = [f"doc{a}" for a in _SYLLABLES]
OF_QUERIES = [f"ask{a}" for a in _SYLLABLES]

EXPERIMENT = """\
name: tiny
collection: {{format: beir, path: {collection}, validation: 0.2}}
encoder: {{model: {model}, query_tokens: 16, document_tokens: 24}}
training: {{batch_size: 8, epochs: 2, learning_rate: 2.0e-3, precision: fp32, validations: 2}}
recipes:
  - {{recipe: static-margin, tune: {{scheduler: asha, reduction_factor: 2, space: {{target: [0.3, 1.0]}}}}}}
  - arm-adaptive
tracking: {{uri: "sqlite:///{folder}/mlflow.db", experiment: tiny}}
store: {folder}/store
"""


def write_collection(folder: Path) -> Path:
    """A BEIR folder: 60 documents, 40 training queries and 10 test queries with one relevant document each."""
    draw = random.Random(7)
    pairs = draw.sample([(a, b) for a in THINGS for b in THINGS if a < b], DOCUMENTS)
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as file:
        for row, pair in enumerate(pairs):
            words = draw.sample(OF_DOCUMENTS, 5) + list(pair)
            draw.shuffle(words)
            file.write(json.dumps({"_id": f"d{row}", "title": words[0], "text": " ".join(words[1:])}) + "\n")
    targets = draw.sample(range(DOCUMENTS), TRAIN_QUERIES + TEST_QUERIES)
    with (folder / "queries.jsonl").open("w") as file:
        for row, target in enumerate(targets):
            words = draw.sample(OF_QUERIES, 3) + list(pairs[target])
            draw.shuffle(words)
            file.write(json.dumps({"_id": f"q{row}", "text": " ".join(words)}) + "\n")
    for split, rows in (("train", range(TRAIN_QUERIES)), ("test", range(TRAIN_QUERIES, len(targets)))):
        lines = [f"q{row}\td{targets[row]}\t1" for row in rows]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


def write_model(folder: Path) -> Path:
    """A BERT of random weights whose tokens are the words of the collection."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *THINGS, *OF_DOCUMENTS, *OF_QUERIES]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(3)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.2,
        )
    ).save_pretrained(folder)
    return folder


def write_cross_encoder(folder: Path, model: Path) -> Path:
    """A cross-encoder of random weights with the tokenizer of that BERT."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    BertForSequenceClassification(
        BertConfig(
            vocab_size=_words(model),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.3,
            num_labels=1,
        )
    ).save_pretrained(folder)
    copy_tokenizer(model, folder)
    return folder


def write_seq2seq(folder: Path, model: Path) -> Path:
    """A BART of random weights with the tokenizer of that BERT."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(4)
    BartForConditionalGeneration(
        BartConfig(
            vocab_size=_words(model),
            d_model=32,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=48,
            max_position_embeddings=40,
            init_std=0.4,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            forced_eos_token_id=3,
            decoder_start_token_id=2,
        )
    ).save_pretrained(folder)
    copy_tokenizer(model, folder)
    return folder


def copy_tokenizer(model: Path, folder: Path) -> None:
    """Copy the tokenizer of a model folder to another."""
    for file in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / file, folder / file)


def _words(model: Path) -> int:
    return len((model / "vocab.txt").read_text().split("\n"))


def write_experiment(folder: Path, collection: Path, model: Path) -> Path:
    """The experiment, with a store and an MLflow database of its own in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(EXPERIMENT.format(collection=collection, model=model, folder=folder))
    return path
