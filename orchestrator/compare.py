"""The main job: train every recipe, evaluate, and say what each one cost. Each verb is this job up to some stage."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np

import losses
from data import Inspection, PooledNegatives, Qrels, UserError, fingerprint, inspect
from data.collection import GENERATED
from data.store import Json, manifest
from orchestrator import checks, cluster, interrupt, recipes, report
from orchestrator.config import Experiment, RecipeSettings, resolved
from orchestrator.console import Display
from orchestrator.encoding import TOKEN_BUDGET
from orchestrator.evaluation import Evaluated, evaluate_all, teacher, trained, untrained
from orchestrator.families import families
from orchestrator.journal import Entry
from orchestrator.rates import peak_flops
from orchestrator.records import (
    TEACHER,
    UNTRAINED,
    Comparison,
    Cost,
    Prices,
    Result,
    Seeded,
    Trial,
    to_json,
    trial_from_json,
)
from orchestrator.report import wins, wording
from orchestrator.run_facts import Facts
from orchestrator.runs import RunSpec, first_run, most_runs, run_at
from orchestrator.searches import chosen_on_the_way, search_stage, started_runs, trials_of, winner_of
from orchestrator.significance import differences
from orchestrator.tracking import Tracker
from orchestrator.training import padding_share
from orchestrator.trial import costs_of
from orchestrator.tuning import run_all
from orchestrator.watch import Watch
from orchestrator.workspace import MODEL, Workspace

AT_SEED = "@"  # between the name of a row, which cannot have it, and a further seed
SHOWN = 5  # generated queries
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A finished comparison, the path of its HTML report, and where MLflow's UI shows it: None if MLflow lacks some."""

    comparison: Comparison
    report: Path
    tracked: str | None


class Job:
    """An experiment on its way through the stages; what the store holds is reused and said so."""

    def __init__(self, experiment: Experiment, display: Display) -> None:
        self.experiment = experiment
        self.display = display
        self.workspace = Workspace(experiment, self._connect, display.shards)
        self.workspace.store.check()
        self.available = cluster.resources()
        self.size = cluster.worker_size(experiment, self.available)
        self.tracker = Tracker(experiment.tracking.uri, experiment.tracking.experiment)

    def _connect(self) -> None:
        if not cluster.connected():
            self.display.line("starting Ray")
            cluster.connect()

    def check(self) -> None:
        """Read the collection, and refuse what would fail later."""
        workspace = self.workspace
        collection = workspace.collection
        training, validation = workspace.split
        counts = _queries(training), _queries(validation), _queries(workspace.test_qrels)
        generated = int(collection.generated[np.unique(training.query_row)].sum())
        queries = wording.queries(counts[0] - generated, generated, *counts[1:])
        documents = f"{collection.documents.num_rows:,} documents"
        self.display.line(f"collection {self.experiment.collection.path}: {documents}, {queries}")
        checks.collection(workspace)
        checks.encoders(workspace)

    def inspect(self) -> Inspection:
        """What the collection holds, as it was understood, and what of it bites."""
        workspace, splits = self.workspace, self.experiment.collection
        tokens = workspace.tokens
        return inspect(workspace.collection, tokens.queries, tokens.documents, splits.train_split, splits.test_split)

    def prepare(self) -> None:
        """Tokenize."""
        tokens = self.workspace.tokens
        for field, shards in (("queries", tokens.queries), ("documents", tokens.documents)):
            share = shards.truncated / len(shards)
            self.display.line(f"tokens of {field}: {share:.0%} truncated at {shards.max_tokens} tokens")

    def generate(self) -> None:
        """The generated queries, if a recipe learns from some."""
        if any(workspace.learns != "judged" for workspace in self.workspace.learned_from):
            self.generate_alone()
            checks.collection(self.workspace)  # of what is learned from them
        elif self.experiment.generation:
            self.display.line("generation: no recipe here learns from generated queries")

    def check_generation(self) -> None:
        """Refuse what would fail later when queries are generated; no judgment is needed but by what learns from it."""
        if self.experiment.generation is None:
            what, mend = "there is nothing that says how", 'Add a section such as "generation: {generator: salient}".'
            raise UserError(what, where="generation", mend=mend)
        path, documents = self.experiment.collection.path, self.workspace.collection.documents.num_rows
        self.display.line(f"collection {path}: {documents:,} documents")
        self.workspace.check_encoder("encoder")
        self.workspace.generation.check()

    def generate_alone(self) -> list[tuple[str, str]]:
        """The generated queries; some of them, with the id of a document that each was made from."""
        generation = self.workspace.generation
        self.display.line(f"generation: {generation.in_words}")
        made, facts = generation.collection, generation.facts
        dropped = f", {facts.kept:,} kept" if generation.filtered else ""
        self.display.line(f"generated {facts.distinct:,} queries from {facts.documents:,} documents{dropped}")
        qrels = made.qrels[GENERATED]
        places = [len(qrels) * part // SHOWN for part in range(min(SHOWN, len(qrels)))]
        texts, ids = made.queries["text"], made.document_ids
        return [(texts[int(qrels.query_row[place])].as_py(), ids[qrels.doc_row[place]]) for place in places]

    def save_generated(self, folder: Path, form: str) -> None:
        """Write the generated queries as a collection of their own, with how they came about and the test split."""
        from data.formats.writers import write
        from data.generated import generated_alone

        generation = self.workspace.generation
        alone = generated_alone(generation.collection, self.experiment.collection.test_split)
        write(alone, form, folder, {"generated.json": generation.provenance})

    def mine(self) -> None:
        """The negatives, the validation pool, and the order of the batches."""
        for workspace in self.workspace.learned_from:
            negatives = workspace.negatives
            if isinstance(negatives, PooledNegatives):
                for source, queries in negatives.short.items():
                    if queries:
                        self.display.line(
                            f"negatives: {queries:,} of {len(negatives.query_rows):,} queries have fewer than "
                            f"{negatives.per_query} {source}; random documents fill up"
                        )
        for row in self.experiment.recipes:
            self.display.line(f"{row.name}: {self._batches(row)}")
        self.display.line(f"validation pool: {len(self.workspace.pool):,} documents")

    def teach(self) -> None:
        """What the recipes learn from a teacher; one that is a row is trained first."""
        teachings = [each.teaching for each in self.workspace.learned_from if each.teaching]
        if teachings and self.experiment.teaching_row:
            self.train(lambda row: row == self.experiment.teaching_row)
        for teaching in teachings:
            self.display.line(f"teacher: {teaching.in_words}")
            teaching.make()
            for line in teaching.trained_in_words:
                self.display.line(f"teacher: {line}")
        if self.experiment.teacher and not teachings:
            self.display.line("teacher: no recipe here learns from it")

    def save_negatives(self, file: Path) -> int:
        """Write the documents that negatives are drawn from, with their source, to a new Parquet file; how many."""
        from data.formats.writers import write_table

        workspace = self.workspace.learned_from[0]
        negatives, collection = workspace.negatives, workspace.collection
        if not isinstance(negatives, PooledNegatives):
            raise UserError(
                "random negatives are drawn from the whole corpus: there is nothing to save",
                where="negatives.source",
                mend="Set it to bm25, mined, given or file.",
            )
        query_ids = collection.queries["query_id"]
        table = negatives.table(lambda row: query_ids[row].as_py(), collection.document_ids.__getitem__)
        write_table(table, file)
        return len(table)

    def _batches(self, row: RecipeSettings) -> str:
        """What the batches of a row are made of, in words."""
        run, workers = first_run(self.experiment, row), self.experiment.scaling.workers
        settings = run.training
        workspace = self.workspace.for_run(run)
        plan = workspace.plan(settings)
        B, K = round(plan.examples_before(plan.total_steps) / plan.total_steps), plan.negatives.per_query
        others = losses.build(run.loss, **run.parameters).negatives_met(B, K) - K
        elsewhere = round(others * (B - B / workers) / max(1, B - 1))
        budget = settings.token_budget or TOKEN_BUDGET["cuda" if self.size.gpus else "cpu"]
        padding = padding_share(plan, workspace.tokens, budget, workers, inherits=run.encoder.inherits)
        size = f"{settings.batch_tokens:,} tokens, about {B} queries" if settings.batch_tokens else f"{B} queries"
        across = f", {elsewhere:,} of these cross-device" if workers > 1 else ""
        learned = {"judged": "", "generated": "generated queries alone, ", "both": "judged and generated queries, "}
        own = f"negatives a query: {K} own, {others:,} in-batch{across}"
        return f"{learned[settings.queries]}{plan.total_steps} steps of {size}; {own}; padding {padding:.1%}"

    def ready(self) -> None:
        """Check, prepare, generate, mine and teach."""
        self.check()
        self.prepare()
        self.generate()
        self.mine()
        self.teach()

    def train(self, wanted: Callable[[RecipeSettings], bool] = lambda row: True) -> dict[str, tuple[Trial, ...]]:
        """Train the wanted rows, all their trials; row → its trials."""
        rows = [row for row in self.experiment.recipes if wanted(row)]
        pending = [row for row in rows if not search_stage(self.workspace, row).done]
        for row in rows:
            if row not in pending:
                self.display.line(f"{row.name}: {len(started_runs(self.workspace, row))} trial(s) reused")
        if pending:
            self._run(pending)
        return {row.name: self._finished(row) for row in rows}

    def _run(self, rows: list[RecipeSettings], again: Sequence[RunSpec] = ()) -> None:
        steps: dict[str, int] = {}
        most = sum(most_runs(row) for row in rows) + len(again)
        self._connect()
        self.display.line(f"training {'at most ' if any(map(chosen_on_the_way, rows)) else ''}{most} run(s)")

        def on_entries(run: RunSpec, entries: list[Entry]) -> None:
            for entry in entries:
                self.display.point(run, entry, steps[run.name])
            self.tracker.publish_points(self.facts, run, [entry.point for entry in entries])

        self.tracker.import_mlflow()
        try:
            with Watch([], on_entries) as watch:

                def on_start(run: RunSpec) -> None:
                    steps[run.name] = self.workspace.for_run(run).plan(run.training).total_steps
                    watch.add(run, self.workspace.trial(run))

                counting = self.display.counting(most)
                run_all(self.workspace, rows, self.size, self.available, on_start, counting, again)
        finally:
            self.tracker.deliver(self.facts)
        interrupt.check()

    def _finished(self, row: RecipeSettings) -> tuple[Trial, ...]:
        runs = started_runs(self.workspace, row)

        def write(partial: Path) -> None:
            trials = [to_json(trial) for trial in trials_of(self.workspace, runs)]
            (partial / "trials.json").write_text(json.dumps(trials), encoding="utf-8")

        folder = search_stage(self.workspace, row).build(write)
        values = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
        models = [str(self.workspace.trial(run).path / MODEL) for run in runs]  # where the store is now
        trials = [trial_from_json(value) for value in values]
        return tuple(
            replace(trial, model=model if trial.model else None, costs=costs_of(run, trial.costs))
            for trial, model, run in zip(trials, models, runs, strict=True)
        )

    def train_again(self, trials: dict[str, tuple[Trial, ...]]) -> dict[str, tuple[Trial, ...]]:
        """What validation chose, trained with each further seed; row → one trial a seed."""
        runs = {
            row: [winner.with_seed(seed) for seed in self.experiment.further_seeds]
            for row, winner in self._winners(trials).items()
        }
        every = [run for row in runs.values() for run in row]
        pending = [run for run in every if not self.workspace.trial(run).done]
        if every:
            self.display.line(f"further seeds: {len(every) - len(pending)} of {len(every)} run(s) reused")
        if pending:
            self._run([], pending)
        return {row: trials_of(self.workspace, again) for row, again in runs.items()}

    def _winners(self, trials: dict[str, tuple[Trial, ...]]) -> dict[str, RunSpec]:
        """Row → the run that validation chose."""
        return {
            row.name: run_at(self.experiment, row, winner_of(trials[row.name]).parameters)
            for row in self.experiment.recipes
        }

    def evaluate(self, trials: dict[str, tuple[Trial, ...]]) -> dict[str, list[Evaluated]]:
        """The untrained encoder and each row's winner on the test split; of the winner one for each seed."""
        vectors = {UNTRAINED: untrained(self.workspace)}
        if self.experiment.teacher and self.experiment.teacher.encoder and self.workspace.teaching:
            vectors[TEACHER] = teacher(self.workspace)
        for row, winner in self._winners(trials).items():
            vectors[row] = trained(self.workspace, winner)
            for seed in self.experiment.further_seeds:
                vectors[f"{row}{AT_SEED}{seed}"] = trained(self.workspace, winner.with_seed(seed))
        found: dict[str, list[Evaluated]] = {}
        for name, evaluated in evaluate_all(self.workspace, vectors).items():
            found.setdefault(name.partition(AT_SEED)[0], []).append(evaluated)
        return found

    def compare(self) -> Outcome:
        """All of it: trials, evaluation, report, MLflow."""
        self.ready()
        trials = self.train()
        again = self.train_again(trials)
        evaluated = self.evaluate(trials)
        comparison = self._comparison(trials, again, evaluated)
        folder = self.workspace.store.root / "reports" / self.experiment.name
        page = report.write(comparison, folder)
        (folder / "experiment.yaml").write_text(comparison.config, encoding="utf-8")
        self.workspace.store.share(folder)
        runs = {row: values[0].folder for row, values in evaluated.items()}
        published = self.tracker.publish(comparison, self.facts, folder, runs)
        return Outcome(comparison, page, self.tracker.page(comparison.measures[0]) if published else None)

    @cached_property
    def facts(self) -> Facts:
        """What is known of the comparison before it has any value."""
        return Facts(self.fingerprint, self.experiment, environment(self.available, self.size))

    @cached_property
    def fingerprint(self) -> str:
        """What the comparison is known by: everything that its numbers depend on."""
        searches: list[Json] = [search_stage(self.workspace, row).fingerprint for row in self.experiment.recipes]
        test = self.workspace.collection.parts[f"qrels/{self.experiment.collection.test_split}"]
        evaluation = self.experiment.evaluation.model_dump()
        inputs: dict[str, Json] = {"searches": searches, "test": test, "evaluation": evaluation}
        if self.experiment.further_seeds:
            inputs["seeds"] = self.experiment.seeds
        if self.experiment.prices:  # in MLflow they are part of the numbers, so other prices are another entry
            inputs["prices"] = self.experiment.prices.model_dump()
        return fingerprint({"name": self.experiment.name, **inputs})

    def _comparison(
        self,
        trials: dict[str, tuple[Trial, ...]],
        again: dict[str, tuple[Trial, ...]],
        evaluated: dict[str, list[Evaluated]],
    ) -> Comparison:
        workspace, experiment = self.workspace, self.experiment
        training, validation = workspace.split
        results = [
            Result(name, name, True, (), None, each.measures, each.per_query, each.figures, encoder=each.encoder)
            for name, (each, *_) in evaluated.items()
            if name in (UNTRAINED, TEACHER) and name not in trials
        ]
        family = families(experiment)
        for row in experiment.recipes:
            recipe, values = recipes.get(row.recipe), evaluated[row.name]
            value, runs = values[0], [winner_of(trials[row.name]), *again[row.name]]
            seeded = zip(experiment.seeds, runs, values, strict=True) if experiment.further_seeds else ()
            results.append(
                Result(
                    name=row.name,
                    recipe=row.recipe,
                    parameter_free=recipe.parameter_free,
                    trials=trials[row.name],
                    winner=winner_of(trials[row.name]).name,
                    measures=mean_of([each.measures for each in values]),
                    per_query={
                        measure: mean_of([each.per_query[measure] for each in values]) for measure in value.per_query
                    },
                    seeds=tuple(Seeded(seed, trial, each.measures) for seed, trial, each in seeded),
                    index=value.figures,
                    taught=bool(first_run(experiment, row).teacher_needs),
                    queries=experiment.training_for(row).queries,
                    encoder=value.encoder,
                    share=experiment.training_for(row).share,
                    family=family[row.name],
                )
            )
        measure, margin = experiment.evaluation.measures[0], experiment.evaluation.margin
        scored = {result.name: [each.per_query[measure] for each in evaluated[result.name]] for result in results}
        known_by = {name: [each.folder.name for each in values] for name, values in evaluated.items()}
        costs = [*self._shared_costs()]
        costs += [cost for row in (*trials.values(), *again.values()) for trial in row for cost in trial.costs]
        costs += [value.cost for values in evaluated.values() for value in values]
        comparison = Comparison(
            name=experiment.name,
            fingerprint=self.fingerprint,
            collection=experiment.collection.path,
            documents=workspace.collection.documents.num_rows,
            train_queries=int((~workspace.collection.generated[np.unique(training.query_row)]).sum()),
            validation_queries=_queries(validation),
            test_queries=len(next(iter(results[0].per_query.values()))),
            generated_queries=max(
                int(each.collection.generated[np.unique(each.split[0].query_row)].sum())
                for each in workspace.learned_from
            ),
            encoder=experiment.encoder.model,
            measures=tuple(experiment.evaluation.measures),
            results=tuple(results),
            costs=tuple(costs),
            config=resolved(experiment),
            teacher=experiment.teaching_row.name if experiment.teaching_row else None,
            differences=differences(
                workspace.store,
                known_by,
                scored,
                measure,
                margin,
                lambda done, total: workspace.on_shard("testing the differences", done, total),
            ),
            margin=margin,
            environment=dict(self.facts.environment),
            peak_flops=peak_flops(workspace.store, self._precisions, self.size, self.available),
            prices=Prices(**experiment.prices.model_dump()) if experiment.prices else None,
        )
        return replace(comparison, query_texts=self._texts(wins.named(comparison)))

    def _texts(self, queries: list[str]) -> dict[str, str]:
        """The texts of the test queries with these ids, as the report shows them."""
        table, wanted = self.workspace.collection.queries, {*queries}
        rows = {id_: row for row, id_ in enumerate(table["query_id"].to_pylist()) if id_ in wanted}
        return {id_: wins.cut(table["text"][row].as_py()) for id_, row in rows.items()}

    @property
    def _precisions(self) -> set[str]:
        """In which something is encoded; queries of the evaluation are always in fp32."""
        return {"fp32", *(self.experiment.training_for(row).precision for row in self.experiment.recipes)}

    def _shared_costs(self) -> list[Cost]:
        """What recipes share: tokenizing, as the store's manifests have it, generating, mining and teaching; each stage
        of the store once, with the kinds of queries that it was made for.
        """
        found: dict[tuple[str, str], Cost] = {}
        for workspace in self.workspace.students:
            costs: dict[str, Cost] = {}
            for shards in workspace.tokens:
                seconds = manifest(shards.folder)["seconds"]
                costs[shards.folder.name] = Cost(
                    stage="tokenizing", device_seconds=seconds, wall_seconds=seconds, examples=len(shards)
                )
            parts = [costs, workspace.sources.costs, workspace.teaching.costs if workspace.teaching else {}]
            if workspace.learns != "judged":
                parts.append(workspace.generation.costs)
            for name, cost in (each for part in parts for each in part.items()):
                before = found.get((cost.stage, name))
                kinds = dict.fromkeys((*(before.queries if before else ()), workspace.learns))
                found[cost.stage, name] = replace(cost, queries=tuple(kinds), made=name)
        return list(found.values())


def environment(available: cluster.Resources, size: cluster.WorkerSize) -> dict[str, str]:
    """Where a comparison ran: versions and machine."""
    values = {name: version(name) for name in ("torch", "transformers", "ray", "mlflow", "faiss-cpu")}
    values["python"] = platform.python_version()
    values["machine"] = f"{platform.machine()}, {available.cpus} CPUs, {available.gpus:g} GPUs"
    values["worker"] = f"{size.cpus} CPUs, {size.gpus:g} GPUs"
    if commit := _commit():
        values["commit"] = commit
    return values


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def mean_of(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each value, over several mappings with the same keys."""
    return {key: sum(each[key] for each in values) / len(values) for key in values[0]}


def _queries(qrels: Qrels) -> int:
    return len({*qrels.query_row.tolist()})
