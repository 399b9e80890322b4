"""Queries made from documents without a model: their titles, their salient sentences, or any of their sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.arrow import mask, numbers, read_arrow
from data.collection import Collection, Rows, open_collection
from data.sharded import Shard
from data.tokens import TokenShards, fast_tokenizer

Excerpt = Literal["title", "salient", "inverse-cloze"]
EXCERPTS: tuple[Excerpt, ...] = ("title", "salient", "inverse-cloze")
SHARD_DOCUMENTS = 32_768
SHORTEST = 4  # tokens of a sentence that can stand for a query, special ones not counted

Weights = npt.NDArray[np.float64]


class ExcerptQueries:
    """The worker: for each of a shard's documents passages of its own, as `document` (its row) and `text`.

    `title`: its title. `salient`: the sentences whose terms are most those of the other ones, by the cosine of the two
    vectors of term frequency times inverse document frequency, the best first. (Radev et al. 2004 rank sentences by a
    centroid of which the sentence itself is a part; that prefers lists of rare terms, such as numbers.)
    `inverse-cloze`: sentences drawn at random, as in the inverse cloze task (Lee et al. 2019, arXiv 1906.00300); what
    is relevant for one is the whole document, from which it is not taken out. A document without a title, or without a
    sentence of at least four tokens, gives nothing.

    Args:
        collection: its folder in the store.
        rows: an Arrow file with the rows of the documents, `document`.
        per_document: at most so many of a document.
        tokenizer_folder: of the tokenizer that sentences are cut into terms with.
        weights: for salient ones an Arrow file with the inverse document frequency of every token id, `weight`.
        seed: what is drawn from a document depends on it and on the document's row alone.
    """

    def __init__(
        self,
        collection: Path,
        rows: Path,
        kind: Excerpt,
        per_document: int,
        tokenizer_folder: Path,
        weights: Path | None,
        seed: int,
        threads: int = 1,
    ) -> None:
        from nltk.tokenize.punkt import PunktSentenceTokenizer

        opened = open_collection(collection)
        self._texts, self._titles = opened.documents["text"], opened.titles
        self._rows = numbers(read_arrow(rows)["document"])
        self._kind, self._per_document, self._seed = kind, per_document, seed
        self._tokenizer = fast_tokenizer(tokenizer_folder).backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._weights: Weights = np.empty(0) if weights is None else numbers(read_arrow(weights)["weight"])
        self._sentences = PunktSentenceTokenizer()

    def __call__(self, shard: Shard) -> pa.Table:
        rows = shard_rows(self._rows, shard)
        documents: list[int] = []
        texts: list[str] = []
        for row in rows.tolist():
            found = self._of(row)
            documents += [row] * len(found)
            texts += found
        return pa.table({"document": pa.array(documents, pa.int64()), "text": pa.array(texts, pa.string())})

    def _of(self, row: int) -> list[str]:
        text = self._texts[row].as_py()
        length = 0 if self._titles is None else int(self._titles["length"][row].as_py())
        title, body = text[:length], text[length:].strip()
        if self._kind == "title":
            return [title] if title else []
        sentences = list(dict.fromkeys(self._sentences.tokenize(body)))
        ids = self._tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
        long_enough = [place for place, found in enumerate(ids) if len(found.ids) >= SHORTEST]
        if self._kind == "inverse-cloze":
            drawn = np.random.default_rng([self._seed, row]).permutation(long_enough)
            return [sentences[place] for place in drawn[: self._per_document]]
        salience = saliences([found.ids for found in ids], self._weights)
        best = sorted(long_enough, key=lambda place: -salience[place])
        return [sentences[place] for place in best[: self._per_document]]


def shard_rows(rows: Rows, shard: Shard, size: int = SHARD_DOCUMENTS) -> Rows:
    """The documents of a shard of so many."""
    return rows[shard.number * size : (shard.number + 1) * size]


def saliences(sentences: Sequence[Sequence[int]], weights: Weights) -> Weights:
    """How much each sentence, a list of token ids, says of what the others say together: (S,), from 0 to 1.

    The cosine between its vector of term frequency times weight and the sum of all other sentences' vectors. `weights`
    (V,) are by token id, not negative; where all terms of one of the two weigh nothing the cosine is 0.
    """
    if not sentences:
        return np.empty(0)
    terms, place = np.unique(np.concatenate([np.asarray(ids, np.int64) for ids in sentences]), return_inverse=True)
    vectors = np.zeros((len(sentences), len(terms)))
    np.add.at(vectors, (np.repeat(np.arange(len(sentences)), [len(ids) for ids in sentences]), place), 1.0)
    vectors *= weights[terms]
    others = vectors.sum(axis=0) - vectors
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    products = np.einsum("st,st->s", vectors, others)
    cosines: Weights = np.divide(products, norms, out=np.zeros(len(sentences)), where=norms > 0)
    return cosines


def inverse_document_frequencies(tokens: TokenShards, vocabulary: int) -> Weights:
    """log(N / n) for each of so many token ids, of which n of the N texts hold it; where none does, n is taken as 1."""
    counts = np.zeros(vocabulary, np.int64)
    for row in range(len(tokens)):
        (ids,) = tokens.take([row])
        counts[np.unique(ids)] += 1
    return np.log(len(tokens) / np.maximum(counts, 1, dtype=np.float64))


def drawn_documents(collection: Collection, count: int | None, seed: int) -> Rows:
    """The rows of documents that have a text, ascending: all of them, or so many, drawn by the seed."""
    rows = np.flatnonzero(mask(pc.not_equal(collection.documents["text"], "")))
    if count is None or count >= len(rows):
        return rows
    generator = np.random.default_rng([seed, 1])
    return np.sort(generator.choice(rows, count, replace=False))
