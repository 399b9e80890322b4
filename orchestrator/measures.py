"""Effectiveness measures, and runs in TREC format.

`ir_measures` names and computes the measures. Its providers do not agree on ties: pytrec_eval ranks ties by document id
in descending order after rounding scores to float32, its MS MARCO provider (which has RR@10) in ascending order. So
runs are ranked here, as trec_eval does, and every provider is given the ranks.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data import Qrels as Judged
from data import UserError

if TYPE_CHECKING:
    from ir_measures import Measure

Qrels = Mapping[str, Mapping[str, int]]
PerQuery = dict[str, dict[str, float]]

# How people write measures → how ir_measures does, k for the cut-off.
_FAMILIAR = {
    "ndcg": "nDCG@k",
    "rr": "RR@k",
    "mrr": "RR@k",
    "recip_rank": "RR@k",
    "r": "R@k",
    "recall": "R@k",
    "p": "P@k",
    "precision": "P@k",
    "ap": "AP",
    "map": "AP",
    "success": "Success@k",
    "hit": "Success@k",
    "judged": "Judged@k",
}


@dataclass(frozen=True, eq=False)
class Run:
    """What a system returned: for each query the document ids and their scores (float32), ranked as trec_eval does."""

    query_ids: tuple[str, ...]
    documents: tuple[tuple[str, ...], ...]
    scores: tuple[NDArray[np.float32], ...]

    @classmethod
    def of(cls, scored: Mapping[str, Mapping[str, float]]) -> Run:
        """From query id → document id → score, in any order."""
        lines = [_ranked(documents) for documents in scored.values()]
        return cls(tuple(scored), tuple(ids for ids, _ in lines), tuple(scores for _, scores in lines))

    @classmethod
    def of_hits(
        cls,
        query_ids: Sequence[str],
        document_ids: Sequence[str],
        scores: NDArray[np.float32],
        rows: NDArray[np.int64],
    ) -> Run:
        """From the scores and rows (Q, depth) of a search; row -1 is no document."""
        lines = zip(query_ids, scores, rows, strict=True)
        return cls.of(
            {
                query: {document_ids[row]: float(score) for row, score in zip(found, values, strict=True) if row >= 0}
                for query, values, found in lines
            }
        )


class Measured(NamedTuple):
    """Values by measure, under the name that `str(measure)` gives; `per_query` maps measure → query id → value."""

    mean: dict[str, float]
    per_query: PerQuery


def parse(names: Iterable[str]) -> list[Measure]:
    """Measures from names such as "nDCG@10". Raises UserError, with the nearest names, for one that cannot be had."""
    return [_parse(name, f"evaluation.measures[{position}]") for position, name in enumerate(names)]


def evaluate(run: Run, qrels: Qrels, measures: Sequence[Measure]) -> Measured:
    """The measures of a run over every query of `qrels`.

    A query of `qrels` without results counts 0, in the mean and per query; a query of the run without judgements is
    left out (ir_measures, trec_eval -c). Raises UserError where `qrels` is empty.
    """
    import ir_measures

    if not qrels:
        raise UserError("there are no relevance judgements to evaluate with")
    ranks = {
        query: {document: float(len(documents) - rank) for rank, document in enumerate(documents)}
        for query, documents in zip(run.query_ids, run.documents, strict=True)
        if query in qrels
    }
    judged = {query: dict(documents) for query, documents in qrels.items()}
    result = ir_measures.evaluator(measures, judged).calc(ranks)
    per_query: PerQuery = {str(measure): dict.fromkeys(qrels, 0.0) for measure in measures}
    for metric in result.per_query:
        per_query[str(metric.measure)][metric.query_id] = float(metric.value)
    return Measured({str(measure): float(result.aggregated[measure]) for measure in measures}, per_query)


def judgments(
    qrels: Judged, query_id: Callable[[int], str], document_id: Callable[[int], str]
) -> dict[str, dict[str, int]]:
    """Judgments by row as query id → document id → relevance, with the ids that the functions give the rows."""
    judged: dict[str, dict[str, int]] = {}
    for query, document, relevance in zip(qrels.query_row, qrels.doc_row, qrels.relevance, strict=True):
        judged.setdefault(query_id(int(query)), {})[document_id(int(document))] = int(relevance)
    return judged


def write_trec_run(path: Path, run: Run, tag: str) -> None:
    """Write `query Q0 document rank score tag` lines, compressed where the name ends in .gz; same run, same bytes.

    Scores are the shortest decimals that read back as the same float32. Raises UserError for an id or a tag that the
    format cannot hold.
    """
    lines = []
    for query, documents, scores in zip(run.query_ids, run.documents, run.scores, strict=True):
        for rank, (document, score) in enumerate(zip(documents, scores, strict=True), 1):
            fields = (query, "Q0", document, str(rank), str(score), tag)
            for field in (query, document, tag):
                if len(field.split()) != 1:
                    raise UserError(
                        f'"{field}" cannot stand in a TREC run: it is empty or has white space',
                        where=str(path),
                        mend="Rename it in the collection.",
                    )
            lines.append(" ".join(fields) + "\n")
    content = "".join(lines).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def read_trec_run(path: Path) -> Run:
    """Read a TREC run. The order of the lines and the ranks in them are ignored, as trec_eval does: scores decide.

    Raises UserError with file:line for a line that is not six fields, a score that is not a finite number, or a
    document that stands twice.
    """
    scored: dict[str, dict[str, float]] = {}
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"the run cannot be read: {error}", where=str(path)) from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where, fields = f"{path}:{number}", line.split()
        if len(fields) != 6:
            raise UserError(f"{len(fields)} fields", where=where, mend="A line is `query Q0 document rank score tag`.")
        query, _, document, _, written, _ = fields
        score = _number(written)
        if score is None:
            raise UserError(f'the score "{written}" is not a finite number', where=where)
        if document in scored.setdefault(query, {}):
            raise UserError(f'document "{document}" stands twice for query "{query}"', where=where)
        scored[query][document] = score
    return Run.of(scored)


def write_per_query(path: Path, per_query: PerQuery) -> None:
    """Write values per query: .parquet as the columns query_id, measure, value; .json as measure → query id → value."""
    if path.suffix == ".json":
        path.write_text(json.dumps(per_query, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    if path.suffix != ".parquet":
        raise ValueError(f"{path}: neither .parquet nor .json")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(query, measure, value) for measure, values in per_query.items() for query, value in values.items()]
    schema = pa.schema([("query_id", pa.string()), ("measure", pa.string()), ("value", pa.float64())])
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    pq.write_table(pa.table(columns, schema=schema), path)


def _ranked(documents: Mapping[str, float]) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """By score as float32, which is how trec_eval holds it, then by document id, both descending."""
    order = sorted(((np.float32(score), document) for document, score in documents.items()), reverse=True)
    return tuple(document for _, document in order), np.array([score for score, _ in order], dtype=np.float32)


def _number(text: str) -> float | None:
    try:
        value = np.float32(text)
    except ValueError:
        return None
    return float(value) if np.isfinite(value) else None


def _parse(name: str, where: str) -> Measure:
    import ir_measures

    try:
        measure: Any = ir_measures.parse_measure(name)
        measure.validate_params()
    except (NameError, ValueError, KeyError, AssertionError, TypeError) as error:
        raise UserError(f'"{name}" is not a measure', where=where, mend=_nearest(name)) from error
    # A cut-off of 0 ends the whole process inside trec_eval.
    if measure.params.get("cutoff", 1) < 1:
        raise UserError(f'"{name}" has a cut-off below 1', where=where, mend=_nearest(name))
    providers = [provider for provider in ir_measures.DefaultPipeline.providers if provider.supports(measure)]
    if not any(provider.is_available() for provider in providers):
        install = " or ".join(provider.install_instructions() or provider.NAME for provider in providers)
        mend = f"It needs: {install}." if install else _nearest(name)
        raise UserError(f'"{name}" cannot be computed here', where=where, mend=mend)
    return measure


def _nearest(name: str) -> str:
    import difflib

    stem, _, written = name.strip().partition("@")
    stem = stem.partition("(")[0].lower()
    cutoff = written if written.isdecimal() and int(written) else "10"
    near = [stem] if stem in _FAMILIAR else difflib.get_close_matches(stem, _FAMILIAR)
    suggested = dict.fromkeys(_FAMILIAR[known].replace("k", cutoff) for known in near)
    return f"Did you mean {' or '.join(suggested)}?" if suggested else "Examples: nDCG@10, RR@10, R@100, AP, P@5."
