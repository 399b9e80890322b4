"""What orchestration costs: each of its five bounds, measured on a made-up collection and an encoder of MiniLM's size.

python benchmarks/bench_orchestration.py

- `stillhouse --help`: seconds until it has ended.
- A cached stage: seconds until a stage of each kind is known to be there and sound, in a process that has not seen it.
- A further trial: seconds from the last point of a run to the first of the next, in the same trial process.
- Overhead: all seconds of a comparison of one recipe that are outside of `train()` and of the evaluation's encoding, so
  more than those of Ray, MLflow and the report, and their share of a training of 10 minutes. That is computed: the
  training measured here is shorter, but reports as often (200 times), and nothing else of the overhead grows with it.
- Start: seconds from the command to the beginning of the first training step, a part of the overhead ("before it").
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny_flow  # noqa: E402
from timing import seconds  # noqa: E402

TRAINING_SECONDS = 600.0
POLL_SECONDS = 0.005
ROUNDS = 7
EXPERIMENT = """\
name: {name}
collection: {{format: beir, path: {folder}/collection, validation: 0.2}}
encoder: {{model: {folder}/model, query_tokens: 16, document_tokens: 24}}
training: {{batch_size: 8, learning_rate: 2.0e-5, validations: 2, epochs: {epochs}}}
recipes: [{recipe}]
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
store: {folder}/store-{name}
"""
SEARCH = "{recipe: infonce, tune: {space: {temperature: [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]}}}"
VERIFY = """\
import json, sys, time
from pathlib import Path
from data.store import verify
seconds = {}
for folder in map(Path, sys.argv[1:]):
    began = time.perf_counter()
    verify(folder)
    seconds.setdefault(folder.parent.name, []).append(time.perf_counter() - began)
print(json.dumps(seconds))
"""


def main() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    median("--help", [seconds(lambda: run("-m", "orchestrator", "--help")) for _ in range(ROUNDS)])
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as temporary:
        folder = Path(temporary)
        tiny_flow.write_collection(folder / "collection")
        write_model(folder / "model")

        def compare(name: str, recipe: str, epochs: int) -> Watched:
            path = folder / f"{name}.yaml"
            path.write_text(EXPERIMENT.format(name=name, folder=folder, epochs=epochs, recipe=recipe))
            return Watched([sys.executable, "-m", "orchestrator", "compare", str(path)], folder / f"store-{name}")

        one = compare("one", "arm-adaptive", 50)
        training, encoding = one.costs("training", "validation"), one.costs("evaluation")
        overhead = one.seconds - training - encoding
        line("overhead", overhead, f"of {one.seconds:.1f} s; train() {training:.1f} s, encoding {encoding:.1f} s")
        line("  before it", one.first - one.first_step, "from the command to the first step")
        line(
            "  while training", one.span + one.first_step - training, "from there to the last point, outside of train()"
        )
        line("  after it", one.after - encoding, "from the last point to the end, encoding left out")
        print(f"{'  of 10 minutes':<24}{overhead / TRAINING_SECONDS:8.1%}    computed")
        again = seconds(lambda: run("-m", "orchestrator", "compare", str(folder / "one.yaml")))
        line("on a filled store", again, "the whole command")
        median("further trial", compare("search", SEARCH, 2).gaps)

        stages = [str(path.parent) for path in sorted(folder.glob("store-one/*/*/manifest.json"))]
        seen = [json.loads(run("-c", VERIFY, *stages)) for _ in range(ROUNDS)]
        for kind in seen[0]:
            median(f"cached {kind}", [value for values in seen for value in values[kind]])


def line(what: str, value: float, words: str) -> None:
    """A line of the result."""
    print(f"{what:<24}{value:8.3f} s  {words}", flush=True)


def median(what: str, values: list[float]) -> None:
    """A line of the result that sums up rounds."""
    line(what, statistics.median(values), f"median of {len(values)}, {min(values):.3f} to {max(values):.3f}")


class Watched:
    """A comparison as a process, whose journals are looked at while it runs.

    `seconds` is all of it, `first` those to the end of its first step, `span` from there to the last point of the last
    run, `after` from there to the end, `gaps` those between two runs.
    """

    def __init__(self, command: list[str], store: Path) -> None:
        self._store = store
        began, runs = time.perf_counter(), dict[str, list[float]]()
        sizes = dict[str, int]()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            for journal in store.glob("trials/*/journal.jsonl"):
                run, size = (
                    journal.parent.name.removesuffix(".partial"),
                    journal.stat().st_size if journal.exists() else 0,
                )
                if size > sizes.get(run, 0):
                    sizes[run] = size
                    runs.setdefault(run, []).append(time.perf_counter() - began)
            time.sleep(POLL_SECONDS)
        self.seconds = time.perf_counter() - began
        output, errors = process.communicate()
        assert process.returncode == 0, output + errors
        points = sorted(runs.values())
        self.first, last = points[0][0], points[-1][-1]
        self.span, self.after = last - self.first, self.seconds - last
        self.gaps = [after[0] - before[-1] for before, after in pairwise(points)]

    @property
    def _comparison(self) -> Any:
        (path,) = self._store.glob("reports/*/comparison.json")
        return json.loads(path.read_text())

    def costs(self, *stages: str) -> float:
        """Wall seconds of stages, by the ledger of the comparison."""
        return float(sum(cost["wall_seconds"] for cost in self._comparison["costs"] if cost["stage"] in stages))

    @property
    def first_step(self) -> float:
        """Wall seconds of the first step of the first run."""
        trial = self._comparison["results"][1]["trials"][0]
        return float(trial["curve"][0]["device_seconds"] / trial["costs"][0]["devices"])


def write_model(folder: Path) -> None:
    """A BERT of random weights, as large as MiniLM with three layers, whose tokens are the words of the collection."""
    import torch
    from transformers import BertConfig, BertModel

    tiny_flow.write_model(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=30_522, hidden_size=384, num_hidden_layers=3, num_attention_heads=12, intermediate_size=1536
    )
    BertModel(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
