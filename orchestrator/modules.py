"""What a folder of sentence-transformers is made of: its modules in their order, and of two towers those of each."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data import UserError

ROUTER = "router_config.json"  # which modules a query goes through and which a document, in the folder of a Router
_ROUTERS = ("Router", "Asym")  # the second is what it was called before; its file is config.json
_ROUTES = {"query": ("query",), "document": ("document", "passage", "corpus", "doc")}
_READ = re.compile("Transformer( Pooling)?( Dense)*( Normalize)*")  # in which order they can be read


class Module(NamedTuple):
    """A module: the last name of its type, such as "Pooling", and where its files are."""

    kind: str
    folder: Path


class Made(NamedTuple):
    """The modules that a query goes through, and those of a document where these are others.

    `plain` says that the transformer's files are in the model's own folder, with those of the other modules within it.
    """

    queries: tuple[Module, ...]
    documents: tuple[Module, ...] | None = None
    plain: bool = True

    @property
    def all(self) -> tuple[Module, ...]:
        """Those of both."""
        return self.queries + (self.documents or ())


def made_of(path: Path, model: str) -> Made:
    """The modules of the model in a folder; `model` is what it is called in a message. None of a plain transformer.

    Raises:
        UserError: modules that are not read here, or a router that has no route for a query or a document.
    """
    listed = [_module(path, each["path"], each["type"]) for each in _read(path / "modules.json", [])]
    at = next((i for i, module in enumerate(listed) if module.kind in _ROUTERS), None)
    if at is None:
        return Made(_readable(listed, f'"{model}"'), plain=not listed or listed[0].folder == path)
    before, after = listed[:at], listed[at + 1 :]
    queries, documents = (
        _readable([*before, *_route(listed[at].folder, text, model), *after], f'the {text} tower of "{model}"')
        for text in _ROUTES
    )
    return Made(queries, documents if documents != queries else None, plain=False)


def standing_alone(made: Made) -> list[Path]:
    """The folders of the towers that can be named as a model: those with all of their modules within them."""
    towers = [tower for tower in (made.queries, made.documents or ()) if len(tower) > 1]
    own = [tower[0].folder for tower in towers if all(each.folder.parent == tower[0].folder for each in tower[1:])]
    return [folder for folder in own if (folder / "modules.json").is_file()]


def _route(folder: Path, text: str, model: str) -> list[Module]:
    """The modules that a router sends a text through, as `encode_query` and `encode_document` find them."""
    config = _read(folder / ROUTER, None) or _read(folder / "config.json", {})
    structure = config["structure"]
    mapped = {ast.literal_eval(key): route for key, route in config["parameters"].get("route_mappings", {}).items()}
    wanted = [mapped.get(key) for key in ((text, "text"), (text, None), (None, "text"), (None, None))]
    route = next((each for each in (*wanted, *_ROUTES[text], "text") if each in structure), None)
    if route is None:
        raise UserError(
            f'"{model}" has no route for a {text}, but {" and ".join(structure)}',
            where="encoder.model",
            mend="Take a model with the routes query and document.",
        )
    return [_module(folder, place, config["types"][place]) for place in structure[route]]


def _module(root: Path, place: str, kind: str) -> Module:
    if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
        what = f'a module of "{root}" is outside of it, in "{place}"'
        raise UserError(what, where="encoder.model", mend="Save the model anew.")
    return Module(kind.rsplit(".", 1)[-1], root / place)


def _readable(modules: list[Module], what: str) -> tuple[Module, ...]:
    """Without dropout, which does nothing to vectors."""
    found = tuple(module for module in modules if module.kind != "Dropout")
    if found and not _READ.fullmatch(" ".join(module.kind for module in found)):
        raise UserError(
            f"{what} is made of {', '.join(module.kind for module in found)}, which cannot be read here",
            where="encoder.model",
            mend="Take one of Transformer, Pooling, Dense and Normalize, in this order.",
        )
    return found


def _read(file: Path, otherwise: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else otherwise
