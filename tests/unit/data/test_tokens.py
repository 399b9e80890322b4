"""Pins: shards hold what the tokenizer says of each text, by row; they are reused, gone on with, and checked."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Collection, Shard, Store, TokenShards, UserError, load, tokenize
from data.arrow import write_arrow
from data.tokens import Tokenize

N = 5


@pytest.fixture
def small(beir_folder: Path, tmp_path: Path) -> tuple[Store, Collection]:
    store = Store(tmp_path / "store")
    return store, load(store, "beir", beir_folder)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.mark.parametrize(("max_tokens", "shard_rows"), [(3, 2), (12, 2), (64, 5), (64, 100)])
def test_rows_are_what_the_tokenizer_says(
    small: tuple[Store, Collection], tokenizer_folder: Path, tokenizer: Any, max_tokens: int, shard_rows: int
) -> None:
    store, collection = small
    shards = tokenize(store, collection, "documents", tokenizer_folder, "wp", max_tokens, shard_rows=shard_rows)
    texts = collection.documents["text"].to_pylist()
    expected = [tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts]
    whole = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert len(shards) == N
    assert [row.tolist() for row in shards.take(range(N))] == expected
    assert [row.tolist() for row in shards.take(np.array([4, 0, 4]))] == [expected[4], expected[0], expected[4]]
    assert (shards.lengths.tolist(), shards.lengths.dtype) == ([len(ids) for ids in expected], np.int32)
    assert shards.truncated == sum(length > max_tokens for length in whole)
    assert shards.max_tokens == max_tokens


def test_the_limit_itself_is_not_truncation(
    small: tuple[Store, Collection], tokenizer_folder: Path, tokenizer: Any
) -> None:
    store, collection = small
    longest = max(len(tokenizer(text)["input_ids"]) for text in collection.queries["text"].to_pylist())
    assert tokenize(store, collection, "queries", tokenizer_folder, "wp", longest).truncated == 0
    assert tokenize(store, collection, "queries", tokenizer_folder, "wp", longest - 1).truncated == 1


def test_rows_are_views(small: tuple[Store, Collection], tokenizer_folder: Path) -> None:
    shards = tokenize(*small, "documents", tokenizer_folder, "wp", 64)
    first, again = shards.take([1, 1])
    assert np.shares_memory(first, again)
    assert not first.flags.writeable
    for row in (-1, N):
        with pytest.raises(IndexError):
            shards.take([row])


def test_reused_for_the_same_texts_only(
    small: tuple[Store, Collection], beir_folder: Path, tokenizer_folder: Path
) -> None:
    store, collection = small
    made: list[tuple[int, int]] = []

    def run(collection: Collection, fingerprint: str = "wp", max_tokens: int = 12) -> Path:
        made.clear()
        return tokenize(
            store,
            collection,
            "documents",
            tokenizer_folder,
            fingerprint,
            max_tokens,
            on_shard=lambda *n: made.append(n),
        ).folder

    first = run(collection)
    assert made == [(0, 1), (1, 1)]
    with (beir_folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q3\td5\t1\n")
    assert run(load(store, "beir", beir_folder)) == first
    assert made == []
    assert len({first, run(collection, fingerprint="other"), run(collection, max_tokens=13)}) == 3


def test_goes_on_with_whole_shards_only(small: tuple[Store, Collection], tokenizer_folder: Path) -> None:
    """Three shards are there of a killed call, one of them cut off: that one and the missing two are made."""
    store, collection = small

    def run(**options: Any) -> TokenShards:
        return tokenize(store, collection, "documents", tokenizer_folder, "wp", 64, shard_rows=1, **options)

    class Killed(BaseException):
        pass

    def kill(done: int, total: int) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        run(on_shard=kill)
    [partial] = (store.root / "tokens").glob("*.partial")
    kept = {shard: Shard(partial, shard).path.stat().st_ino for shard in (0, 2)}
    cut = Shard(partial, 1).path
    cut.write_bytes(cut.read_bytes()[:-20])
    done: list[tuple[int, int]] = []
    shards = run(on_shard=lambda *n: done.append(n))
    assert done == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert {shard: Shard(shards.folder, shard).path.stat().st_ino for shard in kept} == kept
    one = tokenize(store, collection, "documents", tokenizer_folder, "wp", 64)
    assert [row.tolist() for row in shards.take(range(N))] == [row.tolist() for row in one.take(range(N))]


def test_a_cut_off_shard_is_found(small: tuple[Store, Collection], tokenizer_folder: Path) -> None:
    shards = tokenize(*small, "documents", tokenizer_folder, "wp", 64)
    shard = Shard(shards.folder, 0).path
    size = shard.stat().st_size
    del shards
    shard.write_bytes(shard.read_bytes()[:-1])
    for again in (lambda: TokenShards(shard.parent), lambda: tokenize(*small, "documents", tokenizer_folder, "wp", 64)):
        with pytest.raises(UserError) as error:
            again()
        assert str(error.value) == (
            f"{shard}: this file of a finished stage has {size - 1:,} bytes, {size:,} were written. "
            f"Delete the folder {shard.parent} and run again."
        )


def test_refuses(small: tuple[Store, Collection], tokenizer_folder: Path, tmp_path: Path) -> None:
    def told(folder: Path, max_tokens: int) -> str:
        with pytest.raises(UserError) as error:
            tokenize(*small, "documents", folder, "wp", max_tokens)
        return str(error.value)

    assert told(tokenizer_folder, 2) == "2 tokens leave no room for text beside the 2 special ones. Raise the limit."
    nowhere = tmp_path / "nowhere"
    assert told(nowhere, 9) == f"{nowhere}: no such folder with a tokenizer. Mend encoder.model."
    nowhere.mkdir()
    assert told(nowhere, 9).startswith(f"{nowhere}: no tokenizer can be loaded: ")


TEXTS = [
    "Copper stills take the sulphur out of a spirit, and oak gives it colour.",
    "Hefe vergärt Zucker zu Äthanol – naïve façade, 日本のウイスキー   und  mehr!",
    "don't  re-use\tthe yeast\nof 1984's (third) batch…",
]


def trained(kind: str) -> Any:
    """A small tokenizer of that kind, as transformers holds it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special)
    elif kind == "bytes":
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=350, special_tokens=special, initial_alphabet=alphabet)
    else:
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        made.pre_tokenizer = pre_tokenizers.Metaspace(split=kind == "pieces")
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator(TEXTS * 3, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def of_kind(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of each kind a tokenizer, and its folder."""

    @cache
    def make(kind: str) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp(kind)
        made = trained(kind)
        made.save_pretrained(folder)
        return made, folder

    return make


WORDS = st.sampled_from(
    [*" ".join(TEXTS).split(), "", "a", "unheardofwordthatislong" * 3, "日本", "é", "e\u0301", "\u200b"]
)
LONG = st.lists(WORDS, max_size=60).map(" ".join) | st.text(max_size=150) | st.text("a \t\né", max_size=150)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "pieces", "unsplit"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(LONG, min_size=1, max_size=4), max_tokens=st.integers(3, 9))
def test_the_beginning_of_a_long_text_gives_its_first_tokens(
    of_kind: Any, kind: str, texts: list[str], max_tokens: int
) -> None:
    tokenizer, folder = of_kind(kind)
    with tempfile.TemporaryDirectory() as place:
        table = Path(place) / "documents.arrow"
        write_arrow(pa.table({"text": texts}), table)
        made = Tokenize(table, folder, max_tokens, 10)(Shard(Path(place), 0))
    whole = [tokenizer(text)["input_ids"] for text in texts]
    assert made["input_ids"].to_pylist() == [
        tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts
    ]
    assert int(made.schema.metadata[b"truncated"]) == sum(len(ids) > max_tokens for ids in whole)


@pytest.mark.parametrize(
    ("kind", "characters"), [("wordpiece", 8 * 4), ("bytes", 8 * 4), ("pieces", 8 * 4), ("unsplit", None)]
)
def test_no_more_of_a_long_text_is_read_than_it_takes(
    of_kind: Any, kind: str, characters: int | None, tmp_path: Path
) -> None:
    _, folder = of_kind(kind)
    long = " ".join(TEXTS * 20)
    write_arrow(pa.table({"text": [long, "oak", "x" * 2000]}), tmp_path / "documents.arrow")
    worker = Tokenize(tmp_path / "documents.arrow", folder, 4, 10)
    read: list[int] = []

    class Watched:
        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def encode_batch_fast(self, texts: list[str]) -> Any:
            read.extend(map(len, texts))
            return self._tokenizer.encode_batch_fast(texts)

    worker._tokenizer = Watched(worker._tokenizer)
    worker(Shard(tmp_path, 0))
    assert read[0] == (len(long) if characters is None else long.rindex(" ", 0, characters + 1))
    assert read[1:] == [3, 2000]  # without a blank, a text is read whole
