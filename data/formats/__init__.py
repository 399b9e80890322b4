"""The formats that a collection may come in. A new one is a module with two functions and a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from data.collection import Collection
from data.formats.beir import beir_sources, read_beir
from data.formats.huggingface import huggingface_sources, read_huggingface
from data.formats.irds import irds_sources, read_irds
from data.formats.msmarco import msmarco_sources, read_msmarco
from data.formats.parquet import parquet_sources, read_parquet
from data.formats.tevatron import read_tevatron, tevatron_sources
from data.formats.trec import read_trec, trec_sources
from data.store import Json


class Format(NamedTuple):
    """Both functions get the path, or name, of a collection and the splits that are wanted, and raise UserError.

    sources: what is read, for the fingerprint; read: the collection, with these splits at least.
    """

    sources: Callable[[str, tuple[str, ...]], dict[str, Json]]
    read: Callable[[str, tuple[str, ...]], Collection]


FORMATS = {
    "beir": Format(beir_sources, read_beir),
    "huggingface": Format(huggingface_sources, read_huggingface),
    "ir_datasets": Format(irds_sources, read_irds),
    "msmarco": Format(msmarco_sources, read_msmarco),
    "parquet": Format(parquet_sources, read_parquet),
    "tevatron": Format(tevatron_sources, read_tevatron),
    "trec": Format(trec_sources, read_trec),
}
