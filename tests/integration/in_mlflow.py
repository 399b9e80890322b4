"""What MLflow has to hold of the tiny experiment once it is over."""

from __future__ import annotations

from collections import Counter
from typing import Any

from flow import Flow

ROWS = ["untrained", "static-margin", "arm-adaptive"]
TRIALS = {"static-margin": ["static-margin target=0.3", "static-margin target=1"], "arm-adaptive": ["arm-adaptive"]}
MEASURES = ["nDCG@10", "RR@10", "R@100"]


def runs_in(flow: Flow) -> tuple[Any, list[Any]]:
    """The MLflow client of a flow's database, and all runs."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{flow.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    return client, client.search_runs([experiment.experiment_id], max_results=1000)


def check_mlflow(flow: Flow) -> None:
    """Everything is in MLflow, once: the tree of runs, every curve, every measure, the files."""
    client, runs = runs_in(flow)
    parent_of = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs}
    name_of = {run.info.run_id: run.info.run_name for run in runs}
    tree = Counter((name_of.get(parent_of[run.info.run_id] or ""), run.info.run_name) for run in runs)
    assert tree == Counter(
        [(None, "tiny"), *(("tiny", row) for row in ROWS)]
        + [(row, trial) for row, trials in TRIALS.items() for trial in trials]
    )
    curves, results = flow.curves, {result["name"]: result for result in flow.comparison["results"]}
    keys = {}
    for run in runs:
        name, parent = run.info.run_name, name_of.get(parent_of[run.info.run_id] or "")
        for key in run.data.metrics:
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
            assert len(steps) == len(set(steps)), (name, key, steps)
        stopped = name == "static-margin target=1"
        assert run.info.status == ("KILLED" if stopped else "FINISHED"), name
        if parent in TRIALS:
            losses = client.get_metric_history(run.info.run_id, "train/loss")
            assert [(m.step, m.value) for m in losses] == [(step, loss) for step, loss, _ in curves[name]]
            scores = client.get_metric_history(run.info.run_id, "validation/nDCG_at_10")
            assert [(m.step, m.value) for m in scores] == [(s, score) for s, _, score in curves[name] if score]
            keys[parent, name] = set(run.data.metrics)
        elif parent == "tiny":
            for measure, value in results[name]["measures"].items():
                assert run.data.metrics[f"test/{measure.replace('@', '_at_')}"] == value
            files = {file.path for file in client.list_artifacts(run.info.run_id)}
            assert {"run.trec.gz", "per_query.json"} <= files
            keys[parent, name] = set(run.data.metrics)
        else:
            files = {file.path for file in client.list_artifacts(run.info.run_id)}
            assert files == {"comparison.json", "experiment.yaml", "report.html", "report.md", "report.tex"}
    # Compared side by side in the UI, rows have the same names, and so have trials.
    of_row = keys["tiny", "static-margin"]
    of_trial = keys["static-margin", "static-margin target=1"]
    assert keys["tiny", "arm-adaptive"] - {"speed_up/over_static-margin"} == of_row > keys["tiny", "untrained"]
    assert "speed_up/over_static-margin" in keys["tiny", "arm-adaptive"]
    assert keys["static-margin", "static-margin target=0.3"] == of_trial == keys["arm-adaptive", "arm-adaptive"]
    only_rows = {f"test/{measure.replace('@', '_at_')}" for measure in MEASURES}
    only_rows |= {"cost/chosen_run_seconds", "cost/all_runs_seconds"}
    only_rows |= {f"encoder/{figure}" for figure in ("parameters", "median_ms", "p95_ms")}
    assert of_row - of_trial == only_rows | {"cost/evaluation_device_seconds"}
    assert of_trial < of_row
    # And so have their parameters; every run is found by its tags, and the best by validation is a model.
    (tried,) = (run for run in runs if run.info.run_name == "static-margin target=1")
    named = {key for key in tried.data.params if not key.startswith("loss.")}
    assert {"training.learning_rate", "training.epochs", "negatives.source", "encoder.query_tokens"} <= named
    for run in runs:
        tags = {f"stillhouse.{key}" for key in ("kind", "collection", "encoder", "seed")}
        assert tags <= set(run.data.tags)
        if parent_of[run.info.run_id] is not None and run.info.run_name != "untrained":
            assert named <= set(run.data.params)
            assert run.data.tags["stillhouse.recipe"] == run.info.run_name.split()[0]
            assert run.data.params["loss.target"] == {"target=0.3": "0.3", "target=1": "1.0"}.get(
                run.info.run_name.split()[-1], "adaptive" if "arm" in run.info.run_name else "0.3"
            )
    (model,) = client.search_logged_models([runs[0].info.experiment_id])
    best = max(results.values(), key=lambda each: max([-1, *(t["validation"] for t in each["trials"] if t["model"])]))
    assert (model.name, model.status) == (f"tiny-{best['name']}", "READY")
    assert name_of[model.source_run_id] == best["name"]
