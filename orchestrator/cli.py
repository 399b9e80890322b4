"""The command `stillhouse`. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import cli_store, interrupt
from orchestrator.cli_output import AsJson, Exit, print_json

if TYPE_CHECKING:
    from orchestrator.compare import Job
    from orchestrator.config import Experiment, Variant
    from orchestrator.study import Study
    from tune_spaces import Knob

app = typer.Typer(
    name="stillhouse",
    help="Distil dense retrievers, and see what each way of doing it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(cli_store.app, name="store")

ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as training.epochs=3.")
]


@app.command()
def compare(experiment: ExperimentFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train every recipe, evaluate on the test split, and report quality and cost. Runs what is not yet done."""
    if _load(experiment, overrides).vary:
        _compare_all(experiment, overrides, as_json)
        return
    with _job(experiment, overrides) as job:
        outcome = job.compare()
    from orchestrator.records import to_json
    from orchestrator.report import terminal

    if as_json:
        print_json(to_json(outcome.comparison))
        return
    terminal.show(outcome.comparison)
    typer.echo(f"\nreport  {_short(outcome.report)}")
    _say_where(job.experiment.tracking.uri, outcome.tracked)


@app.command()
def prepare(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    inspect: Annotated[bool, typer.Option("--inspect", help="Print what was understood and what bites.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what --inspect tells as JSON.")] = False,
) -> None:
    """Read and check the collection, and tokenize it once."""
    if inspect or as_json:
        overrides = [*(overrides or []), "collection.skip_dangling=true"]  # --inspect tells of them
    with _job(experiment, overrides) as job:
        found = job.inspect() if inspect or as_json else None
        if found is None:
            job.check()
            job.prepare()
            return
    from orchestrator.report import collection

    if as_json:
        print_json(asdict(found))
    else:
        collection.show(found)


@app.command()
def convert(
    experiment: ExperimentFile,
    form: Annotated[str, typer.Argument(metavar="FORMAT", help="beir, trec or parquet.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    overrides: Overrides = None,
) -> None:
    """Write the collection in another form: documents, queries and the judgments of every split."""
    from data.formats.writers import write

    with _job(experiment, overrides) as job:
        write(job.workspace.collection, form, folder)
    typer.echo(f"{job.experiment.collection.path} → {folder}")


@app.command()
def generate(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FOLDER", help="Write them as a collection of their own, in a new folder."),
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="beir, trec or parquet.")] = "beir",
) -> None:
    """Make queries from the documents; none of them is ever taken for one that somebody asked."""
    with _job(experiment, overrides) as job:
        job.check_generation()
        job.prepare()
        sample = job.generate_alone()
        if save:
            job.save_generated(save, form)
    for text, document in sample:
        typer.echo(f"{document}  {text}")
    if save:
        typer.echo(f"{job.workspace.generation.facts.kept:,} generated queries → {save}")


@app.command()
def mine(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.parquet", help="Write what negatives are drawn from.")
    ] = None,
) -> None:
    """Make the negatives and the validation pool."""
    with _job(experiment, overrides) as job:
        job.check()
        job.prepare()
        job.mine()
        if save:
            typer.echo(f"{job.save_negatives(save):,} negatives → {save}")


@app.command()
def teach(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Make what the recipes learn from a teacher: vectors of texts, scores of pairs."""
    with _job(experiment, overrides) as job:
        job.check()
        job.prepare()
        job.mine()
        job.teach()


@app.command()
def train(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Train the recipes that have nothing to search."""
    with _job(experiment, overrides) as job:
        job.ready()
        trials = job.train(lambda row: row.tune is None)
    _show_trials(trials)


@app.command()
def tune(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Search the knobs of the recipes that have some."""
    with _job(experiment, overrides) as job:
        job.ready()
        trials = job.train(lambda row: row.tune is not None)
    _show_trials(trials)


@app.command()
def evaluate(experiment: ExperimentFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Measure the untrained encoder and each recipe's best on the test split."""
    from orchestrator.compare import mean_of

    with _job(experiment, overrides) as job:
        job.ready()
        trials = job.train()
        job.train_again(trials)
        evaluated = job.evaluate(trials)
    measures = {row: mean_of([each.measures for each in values]) for row, values in evaluated.items()}
    if as_json:
        print_json(measures)
        return
    for row, values in measures.items():
        typer.echo(f"{row}  " + "  ".join(f"{measure} {value:.4f}" for measure, value in values.items()))
        if index := evaluated[row][0].figures:
            typer.echo(f"  index {index.index}: recall {index.recall:.4f}, {index.median_ms:.2f} ms a query")
        for each in evaluated[row]:
            typer.echo(f"  run {_short(each.folder / 'run.trec.gz')}")


@app.command()
def report(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Write the report of a finished comparison again, from the store alone, at the prices that are given now."""
    from data import Store, UserError
    from orchestrator import report as report_package
    from orchestrator.prices import priced
    from orchestrator.records import comparison_from_json
    from orchestrator.report import terminal

    loaded = _load(experiment, overrides)
    if loaded.vary:
        from orchestrator import study
        from orchestrator.config import variants
        from orchestrator.report import study as pages

        found = study.read(loaded, variants(experiment, overrides or ()), _command(experiment))
        page = pages.write(found, study.folder(loaded))
        pages.show(found)
        typer.echo(f"\nreport  {_short(page)}")
        return
    folder = Store(loaded.store).root / "reports" / loaded.name
    file = folder / "comparison.json"
    if not file.is_file():
        raise UserError(
            f'"{loaded.name}" has no finished comparison in {loaded.store}',
            mend=f"Run: stillhouse compare {experiment}",
        )
    comparison = priced(comparison_from_json(json.loads(file.read_text(encoding="utf-8"))), loaded)
    page = report_package.write(comparison, folder)
    terminal.show(comparison)
    typer.echo(f"\nreport  {_short(page)}")


@app.command()
def reproduce(experiment: ExperimentFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Compare, and say which of the numbers that the experiment expects came out. Status 1 where one moved."""
    from data import UserError
    from orchestrator import reproduce as numbers
    from orchestrator.config import variants

    whole = _load(experiment, overrides)
    if not whole.expected:
        what, mend = "the experiment expects no number", f"Add the section, or run: stillhouse compare {experiment}"
        raise UserError(what, where=f"{experiment}: expected", mend=mend)
    checks, changed = [], numbers.changes(overrides or ())
    if whole.vary:
        settings = variants(experiment, overrides or ())
        study, page, _ = _compare_settings(whole, settings, _command(experiment))
        environment = study.settings[0].comparison.environment
        for variant, setting in zip(settings, study.settings, strict=True):
            checks += numbers.check(variant.experiment, setting.comparison, setting.name)
    else:
        with _job(experiment, overrides) as job:
            outcome = job.compare()
        comparison, page = outcome.comparison, outcome.report
        checks, environment = numbers.check(whole, comparison), comparison.environment
    if as_json:
        print_json(numbers.to_json(whole.name, environment, checks, changed))
    else:
        from orchestrator.report import reproduced

        reproduced.show(checks, environment, changed)
        typer.echo(f"report  {_short(page)}")
    if any(check.moved for check in checks):
        raise typer.Exit(Exit.FAILED)


@app.command()
def export(
    experiment: ExperimentFile,
    row: Annotated[str, typer.Argument(metavar="ROW", help="A row of the table, such as arm-adaptive.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    overrides: Overrides = None,
) -> None:
    """Copy a row's trained encoder to a folder that sentence-transformers and transformers load."""
    from data import Store, UserError
    from orchestrator.records import comparison_from_json

    loaded = _load(experiment, overrides)
    _refuse_study(loaded)
    file = Store(loaded.store).root / "reports" / loaded.name / "comparison.json"
    if not file.is_file():
        raise UserError(f'"{loaded.name}" has no finished comparison', mend=f"Run: stillhouse compare {experiment}")
    results = {r.name: r for r in comparison_from_json(json.loads(file.read_text(encoding="utf-8"))).results}
    trained = {name: r.winning_trial.model for name, r in results.items() if r.winning_trial and r.winning_trial.model}
    if row not in trained:
        raise UserError(f'there is no trained row "{row}"', mend=f"Rows: {', '.join(trained)}.")
    if not Path(trained[row]).is_dir():
        raise UserError(f"the encoder of {row} is not at {trained[row]}", mend=f"Run: stillhouse compare {experiment}")
    if folder.exists():
        raise UserError(f"{folder} is there already", mend="Give a new folder.")
    partial = folder.with_name(folder.name + ".partial")
    shutil.copytree(trained[row], partial, dirs_exist_ok=True)
    partial.rename(folder)
    typer.echo(f"{row} → {folder}")


@app.command()
def plan(experiment: ExperimentFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the stages, what is cached, the resources and the steps, and start nothing."""
    from orchestrator.config import variants
    from orchestrator.plan import Planned, describe

    loaded = _load(experiment, overrides)
    stages = [] if loaded.vary else describe(loaded)
    for variant in variants(experiment, overrides or ()) if loaded.vary else ():
        stages += [Planned("setting", "", ", ".join(variant.labels.values())), *describe(variant.experiment)]
    if as_json:
        print_json([stage._asdict() for stage in stages])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "state", "what", box=None, pad_edge=False, header_style="bold")
    for stage in stages:
        table.add_row(stage.stage, stage.state, stage.what)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine, or the cluster that RAY_ADDRESS names."""
    from orchestrator.doctor import check

    findings = check()
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            typer.echo(f"{'ok ' if finding.good else 'BAD'}  {finding.what}: {finding.found}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(Exit.FAILED)


@app.command()
def losses(as_json: AsJson = False) -> None:
    """Print the losses: what each needs, its parameters and its paper."""
    from losses import describe

    descriptions = describe()
    if as_json:
        print_json([description._asdict() for description in descriptions])
        return
    for d in descriptions:
        parameters = ", ".join(p.name if p.required else f"{p.name}={p.default!r}" for p in d.parameters) or "none"
        knobs = ", ".join(d.knobs) or "none"
        _block(d.name, d.summary, parameters=parameters, knobs=knobs, needs=_words(d.needs), paper=d.paper)


@app.command()
def recipes(as_json: AsJson = False) -> None:
    """Print the recipes: loss, needs, what is searched, and the paper."""
    from orchestrator.recipes import RECIPES
    from tune_spaces import TRAINING

    of_training = tuple(TRAINING.values())
    if as_json:
        print_json(
            [
                {
                    "name": r.name,
                    "loss": r.loss,
                    "parameters": dict(r.parameters),
                    "needs": sorted(r.needs),
                    "knobs": {k.parameter: list(k.values) for k in r.tune_space.knobs} if r.tune_space else {},
                    "ranges": {
                        k.parameter: {"low": k.range.low, "high": k.range.high, "log": k.range.log}
                        for k in (*(r.tune_space.knobs if r.tune_space else ()), *of_training)
                        if k.range
                    },
                    "training": {k.parameter: list(k.values) for k in of_training},
                    "paper": r.paper,
                }
                for r in RECIPES.values()
            ]
        )
        return
    for r in RECIPES.values():
        knobs = (
            "; ".join(map(_knob, r.tune_space.knobs))
            if r.tune_space
            else "those of its terms that the row names"
            if r.open
            else "none: parameter-free"
        )
        loss = f"{r.loss}({', '.join(f'{k}={v!r}' for k, v in r.parameters.items())})"
        _block(r.name, r.summary, loss=loss, knobs=knobs, needs=_words(r.needs), paper=r.paper)
    names = ", ".join(TRAINING)
    summary = f"Knobs of every recipe, searched where its row says so: tune: {{training: [{names}]}}"
    _block("training", summary, **{name: _knob(knob) for name, knob in TRAINING.items()})


def _knob(knob: Knob) -> str:
    """What a grid tries and what is drawn from, with the sources."""
    said = f"{knob.parameter} in {', '.join(map(str, knob.values))} ({knob.source})"
    if knob.range is None:
        return said
    log = ", log" if knob.range.log else ""
    return f"{said} or drawn from {knob.range.low:g} to {knob.range.high:g}{log} ({knob.range.source})"


def _compare_all(experiment: Path, overrides: list[str] | None, as_json: bool) -> None:
    """Every setting of a study, and what holds over all of them."""
    from orchestrator.config import variants
    from orchestrator.report import study as pages

    whole, settings = _load(experiment, overrides), variants(experiment, overrides or ())
    found, page, tracked = _compare_settings(whole, settings, _command(experiment))
    if as_json:
        print_json(pages.as_json(found))
        return
    pages.show(found)
    typer.echo(f"\nreport  {_short(page)}")
    _say_where(whole.tracking.uri, tracked)


def _compare_settings(whole: Experiment, settings: list[Variant], command: str) -> tuple[Study, Path, str | None]:
    """Compare the settings of a study, one after the other, and report the whole: what came of it, its page, and where
    the last setting is in MLflow.
    """
    from orchestrator import study
    from orchestrator.report import study as pages
    from orchestrator.tracking import Tracker

    for number, variant in enumerate(settings, 1):
        with _job(variant.experiment) as job:
            job.display.line(f"setting {number} of {len(settings)}: {', '.join(variant.labels.values())}")
            tracked = job.compare().tracked
    found = study.read(whole, settings, command)
    page = pages.write(found, study.folder(whole))
    tracker = Tracker(whole.tracking.uri, whole.tracking.experiment)
    tracker.publish_study(found.fingerprint, found.name, pages.medians(found), page.parent)
    return found, page, tracked


def _command(experiment: Path) -> str:
    return f"stillhouse compare {experiment}"


class _job:  # noqa: N801 - reads as a verb: with _job(…) as job
    """The job of an experiment, with its display, and Ray shut down at the end."""

    def __init__(self, experiment: Path | Experiment, overrides: list[str] | None = None) -> None:
        if isinstance(experiment, Path):
            experiment = _load(experiment, overrides)
            _refuse_study(experiment)
        self._experiment = experiment

    def __enter__(self) -> Job:
        from orchestrator.compare import Job
        from orchestrator.console import Display

        self._display = Display().__enter__()
        try:
            return Job(self._experiment, self._display)
        except BaseException:
            self._display.__exit__(None, None, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, *exception: Any) -> None:
        self._display.__exit__(kind, *exception)
        if "ray" in sys.modules:
            import ray

            ray.shutdown()
        if kind is KeyboardInterrupt:
            typer.echo("interrupted; run the same command again to go on", err=True)


def _load(path: Path, overrides: list[str] | None) -> Experiment:
    from orchestrator.config import load

    return load(path, overrides or ())


def _refuse_study(experiment: Experiment) -> None:
    from data import UserError

    if experiment.vary:
        raise UserError(
            f"this is a study that varies {' and '.join(experiment.vary)}, and this verb takes one setting of it",
            where="vary",
            mend="Take compare, plan, report or reproduce, or one setting: --set vary=null, "
            f"{'--set expected=[], ' if experiment.expected else ''}and a --set for each of its keys.",
        )


def _show_trials(trials: dict[str, Any]) -> None:
    for row in trials.values():
        for trial in sorted(row, key=lambda trial: -trial.validation):
            why = f": {trial.reason}" if trial.reason else ""
            typer.echo(f"{trial.name}  validation nDCG@10 {trial.validation:.4f}  {trial.state}{why}")


def _block(name: str, summary: str, **facts: str) -> None:
    typer.echo(f"{name}\n  {summary}")
    for key, value in facts.items():
        typer.echo(f"  {key:<10} {value}")


def _words(values: Any) -> str:
    return ", ".join(sorted(values)) or "nothing beyond queries and positives"


def _say_where(uri: str, page: str | None) -> None:
    """Where the runs are to be seen; None for a page where MLflow does not have them."""
    if page:
        typer.echo(f"MLflow  {_mlflow(uri, page)}")
    else:
        out = "could not be reached; run the same command again to send the values, which wait in the store"
        typer.echo(f"MLflow  {out}")


def _mlflow(uri: str, page: str) -> str:
    """Where the recipes are to be seen side by side: on the server, or on one that a command starts."""
    if uri.startswith("http"):
        return uri.rstrip("/") + page
    command = Path(sys.executable).with_name("mlflow")
    on_path = shutil.which("mlflow") == str(command)
    started = f"{'mlflow' if on_path else _short(command)} ui --backend-store-uri {uri}"
    return f"{started}\n        http://127.0.0.1:5000{page}"


def _short(path: Path) -> str:
    """A path as a person would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def main() -> None:
    """Run the command; what a user can mend is one line and status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # Importing torch, transformers and MLflow makes some million objects that stay. To look through them for garbage
    # every 700 new ones takes a sixth of the time of these imports, and once more at the end 1.5 s.
    gc.set_threshold(100_000, 50, 100)
    interrupt.listen()
    atexit.register(gc.freeze)
    try:
        app()
    except Exception as error:
        from data.errors import UserError  # here, because its package takes a third of the time of --help

        if not isinstance(error, UserError):
            raise
        typer.echo(str(error), err=True)
        sys.exit(Exit.INPUT)
