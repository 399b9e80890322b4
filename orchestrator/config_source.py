"""An experiment as it was written: the values, the line of each key, and what `--set` laid over it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.errors import UserError

KeyPath = tuple[str | int, ...]

# YAML 1.1, which PyYAML reads, takes 2e-5 for text: only 2.0e-5 is a number there.
_SCIENTIFIC = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """Safe loading, with 2e-5 as a number and dates as text."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A node's value. One that its tag cannot have (`!!int x`, `0b_`) is an error of the YAML, with its line."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, AttributeError) as error:
            what = f'"{node.value}" is no {node.tag.rpartition(":")[2]}'
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Quotes a text that `_Loader` would take for a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":value"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+.0123456789"))


def dump(value: object) -> str:
    """YAML that `Source.read` reads back as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def undump(text: str) -> Any:
    """The value of what `dump` wrote."""
    value, _, _ = _parse(text, lambda line: f"line {line}")
    return value


@dataclass
class Source:
    """The raw values of an experiment, and where each comes from.

    `lines` maps the path of a key or list item to its line, counted from 1; `settings` are the paths that were laid
    over it, and where each comes from: `--set a.b`, or a line of the file.
    """

    file: str
    value: Any
    lines: dict[KeyPath, int]
    leaves: set[KeyPath]
    settings: dict[KeyPath, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Source:
        """Read a YAML file and lay `a.b=value` overrides over it.

        Raises UserError for a file that is not there, empty, not YAML or not a mapping, and for a bad override.
        """
        source = cls(str(path), *_parse(_text(path), lambda line: f"{path}:{line}"))
        if source.value is None:
            raise UserError("is empty", where=source.file, mend="Write an experiment, beginning with its name.")
        if not isinstance(source.value, dict):
            raise UserError("must be a mapping of keys", where=f"{path}:1", mend="Begin with `name: …`.")
        for override in overrides:
            source.lay(override)
        return source

    def lay(self, override: str) -> None:
        """Lay one `a.b=value` over the values; a number in the path counts the items of a list from 0."""
        key, equals, text = override.partition("=")
        where = f"--set {key}"
        if not equals or not all(key.split(".")):
            raise UserError("is not KEY=VALUE", where=where, mend="Write, for example, --set training.epochs=3.")
        value, _, _ = _parse(text, lambda _: where)
        self.put(key, value, where)

    def put(self, key: str, value: Any, where: str) -> None:
        """Lay one value over the others, at a dotted path; `where` is what is blamed for it."""
        inner: Any = self.value
        path: KeyPath = ()
        *parents, last = key.split(".")
        for part in parents:
            step: Any = _step(inner, part, where)
            child = inner[step] if isinstance(inner, list) else inner.get(step)
            if path == ("recipes",) and isinstance(child, str):  # a bare name stands for a row
                child = {"recipe": child}
            path, inner[step] = (*path, step), {} if child is None else child
            inner = inner[step]
            if not isinstance(inner, dict | list):
                raise UserError(f"{_dotted(path)} is {inner}, a value with no keys in it", where=where)
        step = _step(inner, last, where)
        inner[step] = value
        self.settings.pop((*path, step), None)  # the last one is blamed
        self.settings[(*path, step)] = where

    def where(self, path: KeyPath) -> str:
        """`file:line: a.b`, or `--set a.b` for what an override brought in."""
        blamed = self._override(path)
        if blamed is not None:
            where = self.settings[blamed]
            return f"--set {_dotted(path)}" if where.startswith("--set ") and len(blamed) <= len(path) else where
        known = self._written(path)
        shown = known if known in self.leaves else path
        return f"{self.file}:{self.lines[known]}" + (f": {_dotted(shown)}" if shown else "")

    def line(self, path: KeyPath) -> int:
        """The line of a path, or of the nearest key above it."""
        return self.lines[self._written(path)]

    def _written(self, path: KeyPath) -> KeyPath:
        return next(path[:n] for n in range(len(path), -1, -1) if path[:n] in self.lines)

    def _override(self, path: KeyPath) -> KeyPath | None:
        """The override to blame: the last at or above the path, or, where the file does not know the path, below it."""
        above = [given for given in self.settings if path[: len(given)] == given]
        below = [given for given in self.settings if given[: len(path)] == path and path not in self.lines]
        return next(reversed(above or below), None)


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _step(inner: Any, part: str, where: str) -> str | int:
    """The key of a mapping, or the index of a list, that a part of an override's path means."""
    if not isinstance(inner, list):
        return part
    if not part.isdecimal() or int(part) >= len(inner):
        items = f"0 to {len(inner) - 1}" if inner else "none"
        raise UserError(f'"{part}" is not an item of the list', where=where, mend=f"Items here: {items}.")
    return int(part)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path), mend="Check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text: byte {error.start}", where=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None


def _parse(text: str, where: Callable[[int], str]) -> tuple[Any, dict[KeyPath, int], set[KeyPath]]:
    """The value of a YAML text, the line of each path in it, and the paths that hold single values."""
    lines: dict[KeyPath, int] = {(): 1}
    leaves: set[KeyPath] = set()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines, leaves
        for path, mark, child in _walk(node, (), (), where):
            lines[path] = mark.line + 1
            if isinstance(child, yaml.ScalarNode):
                leaves.add(path)
        return _own(loader.construct_document(node)), lines, leaves
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"is not valid YAML: {error.problem}", where=where(line)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"is not valid YAML: {error.reason}", where=where(line)) from None


def _walk(
    node: yaml.Node, path: KeyPath, above: tuple[int, ...], where: Callable[[int], str]
) -> Iterator[tuple[KeyPath, yaml.Mark, yaml.Node]]:
    """Each key and item below a node, with its mark. Refuses doubled keys, and an alias inside its own anchor."""
    if id(node) in above:
        raise UserError("is not valid YAML: an alias inside what it names", where=where(node.start_mark.line + 1))
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused when it is constructed, or later for not being text
            here, word, line = (*path, key.value), (key.tag, key.value), key.start_mark.line + 1
            if word in first:
                what = f"{_dotted(here)}: has a value already, in line {first[word]}"
                raise UserError(what, where=where(line), mend="Remove one.")
            first[word] = line
            yield here, key.start_mark, value
            yield from _walk(value, here, above, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark, value
            yield from _walk(value, (*path, index), above, where)


def _own(value: Any) -> Any:
    """A copy in which no two places share a mapping, as they would behind a YAML alias."""
    if isinstance(value, dict):
        return {key: _own(child) for key, child in value.items()}
    return [_own(child) for child in value] if isinstance(value, list) else value
