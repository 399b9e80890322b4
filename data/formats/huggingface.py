"""Hugging Face datasets, from the hub by name or from a local folder.

In the style of BEIR: configurations "corpus" and "queries", and judgments by split in the configuration "qrels" or
"default", or in the data set "<name>-qrels". In the style of sentence-transformers: a query, a positive and negatives
in every row; where there are several configurations, "name:configuration" says which. Nothing of a data set is run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.collection import Collection
from data.errors import UserError
from data.formats.assemble import Texts, assembled
from data.formats.files import digests
from data.formats.tables import Row, add_texts, judged, of_pairs, rows_of
from data.store import Json

JUDGMENTS = "qrels", "default"


def huggingface_sources(path: str, splits: tuple[str, ...]) -> dict[str, Json]:
    """The files of a local folder with their checksums; or the commit of the hub's main branch, if it is there."""
    name, _, configuration = path.partition(":")
    what: dict[str, Json] = {"name": name, "configuration": configuration, "splits": splits}
    if Path(name).is_dir():
        files = [file for file in sorted(Path(name).rglob("*")) if file.is_file()]
        return {**what, "name": "", "files": digests(name, files)}
    return {**what, "commit": _commit(name)}


def read_huggingface(path: str, splits: tuple[str, ...] = ()) -> Collection:
    """Load the wanted splits, or all if none is named; those that there are not are left out.

    Raises UserError where there is no such data set, where it has several configurations and none is chosen, and,
    naming the row, for what does not fit.
    """
    name, _, chosen = path.partition(":")
    configurations = _configurations(name)
    if {"corpus", "queries"} <= set(configurations) and not chosen:
        return _in_beir_style(name, configurations, splits)
    if not chosen and len(configurations) > 1:
        raise UserError(
            f"the data set {name} has {len(configurations)} configurations: {', '.join(configurations)}",
            where="collection.path",
            mend=f"Choose one: {name}:{configurations[0]}.",
        )
    return of_pairs(
        {split: _rows(name, chosen or None, split) for split in _splits(name, chosen or None, splits)}, name
    )


def _in_beir_style(name: str, configurations: list[str], splits: tuple[str, ...]) -> Collection:
    documents = add_texts(Texts("doc"), _whole(name, "corpus"), f"{name}, corpus")
    queries = add_texts(Texts("query"), _whole(name, "queries"), f"{name}, queries")
    inside = next((configuration for configuration in JUDGMENTS if configuration in configurations), None)
    source = name if inside else f"{name}-qrels"
    return assembled(
        documents,
        queries,
        {
            split: judged(_rows(source, inside, split), f"{source}, {split}", queries, documents)
            for split in _splits(source, inside, splits)
        },
    )


def _whole(name: str, configuration: str) -> Iterator[Row]:
    """The rows of all splits of a configuration, which the hub's data sets name after what they hold."""
    for split in _splits(name, configuration, ()):
        yield from _rows(name, configuration, split)


def _rows(name: str, configuration: str | None, split: str) -> Iterator[Row]:
    loaded = _ask(name, "load_dataset", configuration, split=split)
    return rows_of(loaded.data.to_batches())


def _splits(name: str, configuration: str | None, wanted: tuple[str, ...]) -> list[str]:
    there = _ask(name, "get_dataset_split_names", configuration)
    return [split for split in there if not wanted or split in wanted]


def _configurations(name: str) -> list[str]:
    return list(_ask(name, "get_dataset_config_names"))


def _ask(name: str, function: str, *arguments: Any, **named: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return getattr(datasets, function)(name, *arguments, **named)
    except (FileNotFoundError, ConnectionError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the data set {name} cannot be read: {reason}",
            where="collection.path",
            mend="Name a data set of the hub, or a local folder of one.",
        ) from None


def _commit(name: str) -> str:
    """The commit of the hub's main branch; empty where the hub cannot be reached and a cached copy has to do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return ""
    try:
        return str(HfApi().dataset_info(name, timeout=10).sha)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return ""
