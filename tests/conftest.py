"""What several test files share: a small local Ray, and a tiny collection on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_flow

# Read when Ray is first imported, here and in every process that a test starts.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

ROOT = Path(__file__).parent.parent

CORPUS = """\
{"_id": "d1", "title": "Copper", "text": "Copper stills take sulphur out of the spirit."}
{"_id": "d2", "title": "", "text": "Oak casks give the spirit its colour."}
{"_id": "d3", "text": "Barley is malted before it is mashed."}
{"_id": "d4", "title": "Yeast", "text": "Yeast turns sugar into alcohol."}
{"_id": "d5", "title": "Water", "text": ""}
"""
QUERIES = """\
{"_id": "q1", "text": "why are stills made of copper"}
{"_id": "q2", "text": "where does the colour come from"}
{"_id": "q3", "text": "what makes alcohol"}
"""
TRAIN = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\nq2\td3\t0\n"
TEST = "query-id\tcorpus-id\tscore\nq3\td4\t1\n"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray with 2 CPUs for the whole test session."""
    import ray

    # Ray workers import the packages of this checkout, wherever the tests were started, and what tests define for them.
    path = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests" / "integration"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    ray.init(
        num_cpus=2,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def scifact() -> Path:
    """The SciFact collection that comes with the project."""
    return ROOT / "examples" / "scifact"


@pytest.fixture
def beir_folder(tmp_path: Path) -> Path:
    """A BEIR folder with five documents, three queries and two splits."""
    return write_beir(tmp_path / "tiny")


def write_beir(
    folder: Path, *, corpus: str = CORPUS, queries: str = QUERIES, train: str = TRAIN, test: str = TEST
) -> Path:
    """Write a BEIR folder with these contents."""
    (folder / "qrels").mkdir(parents=True)
    files = {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels/train.tsv": train, "qrels/test.tsv": test}
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer whose vocabulary is letters and a few words."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["the", "copper", "oak", "still", "##s", "spirit", "yeast", "of", "in", "##ing", ".", ","]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *words,
        *letters,
        *(f"##{c}" for c in letters if c != "s"),
    ]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture
def beir(tmp_path: Path) -> Callable[..., Path]:
    """Write a BEIR folder some of whose files hold something else: `beir(corpus=...)`."""
    return lambda **files: write_beir(tmp_path / "mine", **files)


@pytest.fixture(scope="session")
def tiny_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up collection on which training helps; not to be changed."""
    return tiny_flow.write_collection(tmp_path_factory.mktemp("tiny") / "collection")


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The cross-encoder of `tiny_flow`."""
    return tiny_flow.write_cross_encoder(tmp_path_factory.mktemp("tiny") / "cross-encoder", tiny_model)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two small layers that knows the words of the made-up collection; not to be changed."""
    return tiny_flow.write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of one CPU: what would be the work of Ray's workers is that of this process."""
    from orchestrator import cluster

    monkeypatch.setattr(cluster, "resources", lambda: cluster.Resources(1, 0.0, 1, 0.0))
