"""What the readers of files share: finding them, their lines, and the values in them. What is wrong is a UserError."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.store import Json, file_digest

Source = Path | zipfile.Path  # a file or folder on disk, or in a zip archive


def folder_at(path: str | Path) -> Path:
    """The folder at `path`. Raises UserError, naming its neighbours, where there is none."""
    path = Path(path)
    if path.is_file():
        raise UserError("this is a file", where=str(path), mend="Name the folder that it belongs to.")
    if not path.is_dir():
        mend = f"There are: {names(path.parent)}." if path.parent.is_dir() else "Mend collection.path."
        raise UserError("no such folder", where=str(path), mend=mend)
    return path


def root(path: str | Path) -> Source:
    """The folder at `path`, or the inside of the zip archive; that of its only folder, if there is nothing else.

    Raises UserError where there is neither.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".zip":
        try:
            inside = zipfile.Path(path)
        except zipfile.BadZipFile:
            raise UserError("this is no zip archive", where=str(path), mend="Copy it again.") from None
        there = [entry for entry in inside.iterdir() if entry.name != "__MACOSX"]
        return there[0] if len(there) == 1 and there[0].is_dir() else inside
    return folder_at(path)


def digests(path: str | Path, files: Iterable[Source]) -> dict[str, Json]:
    """File → checksum, for the fingerprint of what is read; of a zip archive, that of the archive."""
    path = Path(path)
    if path.is_file():
        return {path.name: file_digest(path)}
    return {Path(str(file)).relative_to(path).as_posix(): file_digest(Path(str(file))) for file in files}


def one_of(folder: Source, name: str, layout: str) -> Source:
    """`name` in `folder`, plain or compressed. Raises UserError, telling the layout, where it is missing or twice."""
    there = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not there:
        raise missing(folder, name, layout)
    if len(there) == 2:
        raise UserError(f"both {name} and {name}.gz are there", where=str(folder), mend="Remove the one that is old.")
    return there[0]


def missing(folder: Source, name: str, layout: str) -> UserError:
    """What is missing, what is there instead, and what should be."""
    return UserError(f"{name} is missing (there are: {names(folder)})", where=str(folder).rstrip("/"), mend=layout)


def names(folder: Source, most: int = 10) -> str:
    """What lies in a folder, in words."""
    found = sorted(path.name for path in folder.iterdir())
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more or "no files"


def lines(path: Source) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1; a byte order mark is dropped."""
    number = 0
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.name.endswith(".gz") else nullcontext(raw) as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text and not text.isspace():
                    yield number, text
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {error.start + 1} of the line is not UTF-8",
            where=f"{path}:{number}",
            mend="Convert the file, for example with iconv.",
        ) from None
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error):
        raise UserError(
            "the compressed file is damaged or cut off after this line" if number else "this is not a gzip file",
            where=f"{path}:{number}" if number else str(path),
            mend="Copy or compress it again.",
        ) from None


def cells(line: str, columns: tuple[str, ...], where: str) -> list[str]:
    """The cells of a line of so many columns, separated by tabs. Raises UserError where there are more or fewer."""
    found = [cell.strip() for cell in line.split("\t")]
    if len(found) != len(columns):
        raise UserError(
            f"{len(found)} {'column' if len(found) == 1 else 'columns'} where there should be {len(columns)}",
            where=where,
            mend=f"A line is {'<TAB>'.join(columns)}, separated by tabs.",
        )
    return found


def records(path: Source, form: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its number and its place; `form` is told where a line is none."""
    for number, line in lines(path):
        where = f"{path}:{number}"
        yield number, where, _record(line, where, form)


def _record(line: str, where: str, form: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:  # also what json says of integers with thousands of digits
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"not a line of JSON: {reason}", where=where, mend="Mend the line.") from None
    except RecursionError:
        raise UserError("not a line of JSON: nested too deeply", where=where, mend="Mend the line.") from None
    if not isinstance(value, dict):
        raise UserError(f"a JSON {kind(value)} where there should be an object", where=where, mend=f"A line is {form}.")
    return value


def identifier(value: dict[str, Any], key: str, where: str) -> str:
    """An id: a string without white space, or a whole number, which is read as one."""
    if key not in value:
        raise _no_key(value, key, where)
    id_ = value[key]
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)
    if not isinstance(id_, str):
        raise UserError(f"{key} is a JSON {kind(id_)}", where=where, mend="Make it a string or a whole number.")
    return without_blanks(_encodable(id_, key, where), key, where)


def without_blanks(id_: str, key: str, where: str) -> str:
    """The id, if a run file, which has blanks between its columns, can carry it."""
    if id_.split() != [id_]:
        raise UserError(
            f'{key} "{id_}" is empty or holds white space', where=where, mend="A run file cannot carry it: rename it."
        )
    return id_


def string(value: dict[str, Any], key: str, where: str) -> str:
    """A string that can be written as UTF-8."""
    if key not in value:
        raise _no_key(value, key, where)
    text = value[key]
    if not isinstance(text, str):
        raise UserError(f"{key} is a JSON {kind(text)}", where=where, mend='Make it a string; "" if there is none.')
    return _encodable(text, key, where)


class Titled(str):
    """A text of which the first `title_length` characters are its title."""

    title_length = 0

    @classmethod
    def of(cls, text: str, title: str) -> Titled:
        """The text, stripped; it has no title where it does not begin with this one."""
        titled, title = cls(text.strip()), title.strip()
        titled.title_length = len(title) if titled.startswith(title) else 0
        return titled


def titled(value: dict[str, Any], where: str, key: str = "text") -> Titled:
    """A title, if there is one, a blank and the text, which is under `key`."""
    text = string(value, key, where)
    if value.get("title") is None:
        return Titled(text)
    title = string(value, "title", where)
    return Titled.of(f"{title} {text}", title)


def _encodable(value: str, key: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{key} holds half of a surrogate pair (\\ud800 to \\udfff)", where=where, mend="Remove it."
        ) from None
    return value


def _no_key(value: dict[str, Any], key: str, where: str) -> UserError:
    there = ", ".join(f'"{name}"' for name in value) or "none"
    return UserError(f'key "{key}" is missing (there are: {there})', where=where, mend="Add it.")


def kind(value: object) -> str:
    """What JSON calls the type of a value."""
    known = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "list"}
    return known.get(type(value), "object")


def whole(text: str) -> int | None:
    """`text` as a relevance, None where it is no integer of 32 bits."""
    if not re.fullmatch(r"[+-]?[0-9]{1,10}", text):
        return None
    value = int(text)
    return value if -(2**31) <= value < 2**31 else None
