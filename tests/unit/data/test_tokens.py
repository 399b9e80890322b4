"""Pins: shards hold what the tokenizer says of each text, by row; they are reused, gone on with, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import Collection, Shard, Store, TokenShards, UserError, load, tokenize

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
