"""What is wrong with an experiment, in words: pydantic's findings turned into what and how to mend it."""

from __future__ import annotations

import difflib
import re
import typing
from typing import Any, NamedTuple

from pydantic import ValidationError

from orchestrator.config_schema import Experiment, KeysOf, Section, shown
from orchestrator.config_source import KeyPath


class Problem(NamedTuple):
    """One thing to mend. A missing key is told last: the misspelt one beside it is the likelier cause."""

    path: KeyPath
    what: str
    mend: str | None = None
    missing: bool = False


def in_words(error: ValidationError) -> list[Problem]:
    """Every finding as a problem."""
    return [_problem(finding["loc"], finding) for finding in error.errors(include_url=False)]


def nearest(word: str, known: typing.Iterable[str], otherwise: str) -> str:
    """`Did you mean "known"?`, or all that is known, introduced by `otherwise`."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)  # "bathc" is 0.53 from batch_size
    return f'Did you mean "{near[0]}"?' if near else f"{otherwise}: {', '.join(known)}."


def _problem(path: KeyPath, finding: Any) -> Problem:
    context, value = finding.get("ctx", {}), finding["input"]
    match finding["type"]:
        case "refusal":
            return Problem(path, context["what"], context["mend"])
        case "missing":
            return Problem(path, "is missing", "Add it.", missing=True)
        case "extra_forbidden":
            key = str(path[-1])
            return Problem(path, f'"{key}" is not a key here', nearest(key, _keys(path[:-1]), "Keys here"))
        case "literal_error":
            words = context["expected"].replace("'", '"')
            near = difflib.get_close_matches(str(value), re.findall(r'"(.*?)"', words), n=1)
            return Problem(path, f"must be {words}, not {shown(value)}", f'Did you mean "{near[0]}"?' if near else None)
        case "string_type":
            quoted = None if value is None or isinstance(value, dict | list) else f'Put it in quotes: "{value}".'
            return Problem(path, f"must be text, not {shown(value)}", quoted)
        case kind if kind in _MUST:
            must = _MUST[kind].format(
                *(f"{bound:.10g}" for bound in context.values() if isinstance(bound, int | float))
            )
            return Problem(path, f"must {must}, not {shown(value)}" if value != "" else f"must {must}")
        case _:
            return Problem(path, f"is refused: {finding['msg']}")


_MUST = {
    "greater_than": "be greater than {}",
    "greater_than_equal": "be at least {}",
    "less_than": "be less than {}",
    "finite_number": "be finite",
    "int_type": "be a whole number",
    "float_type": "be a number",
    "bool_type": "be true or false",
    "model_type": "be a mapping of keys",
    "dict_type": "be a mapping of keys",
    "tuple_type": "be a list",
    "string_too_short": "not be empty",
}


def _keys(path: KeyPath) -> list[str]:
    """The keys of the section at a path."""
    section: type[Section] = Experiment
    for part in path:
        if isinstance(part, str) and part in section.model_fields:  # others are keys of a mapping, such as knobs
            field = section.model_fields[part]
            section = next(_sections((field.annotation, *field.metadata)))
    return list(section.model_fields)


def _sections(annotations: tuple[object, ...]) -> typing.Iterator[type[Section]]:
    """The sections named in annotations, however deep: tuple[Row, ...], Section | None, a dict marked by KeysOf."""
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield annotation
        elif isinstance(annotation, KeysOf):
            yield annotation.section
        else:
            yield from _sections(typing.get_args(annotation))
