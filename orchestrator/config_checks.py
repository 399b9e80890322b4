"""What pydantic cannot see: whether recipes, losses, tune spaces and sections fit each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from data.pair_scores import Space
from orchestrator import recipes
from orchestrator.config_problems import Problem, nearest
from orchestrator.config_schema import (
    ExpectedSettings,
    Experiment,
    GenerationSettings,
    RangeSettings,
    RecipeSettings,
    Scalar,
    Section,
    SourceSettings,
    TrainingSettings,
    shown,
)
from orchestrator.config_source import KeyPath
from orchestrator.recipes import Recipe
from orchestrator.records import TEACHER, UNTRAINED
from tune_spaces import PREFIX, TRAINING, TuneSpace, Value, training_knobs

if TYPE_CHECKING:
    from losses import Loss


def check(experiment: Experiment) -> list[Problem]:
    """Every misfit of a valid experiment."""
    numbers = {} if experiment.vary else dict(enumerate(experiment.expected))
    return [*_sections(experiment), *_rows(experiment), *_numbers(experiment), *expected(experiment, numbers)]


def _sections(experiment: Experiment) -> Iterator[Problem]:
    collection, negatives, evaluation = experiment.collection, experiment.negatives, experiment.evaluation
    if experiment.seeds and experiment.seeds[0] != experiment.seed:
        what = f"is {experiment.seed}, and the first of seeds is {experiment.seeds[0]}"
        yield Problem(("seed",), what, "Remove it, or put it first among the seeds.")
    if collection.test_split == collection.train_split:
        what = f'"{collection.test_split}" is what the recipes train on, and says nothing about other queries'
        yield Problem(("collection", "test_split"), what, "Name another split.")
    if negatives.mix:
        for key in _said(negatives, SourceSettings):
            yield Problem(("negatives", key), "is said of a single source, and there is a mix", "Move it into the mix.")
        for index, source in enumerate(negatives.mix):
            yield from _source(("negatives", "mix", index), source, 1)
    else:
        yield from _source(("negatives",), negatives, negatives.per_query)
    yield from _generation(experiment)
    yield from _teacher(experiment)
    if evaluation.depth is not None:
        import ir_measures

        cutoffs = {name: ir_measures.parse_measure(name).params.get("cutoff", 0) for name in evaluation.measures}
        deepest = max(cutoffs, key=lambda name: cutoffs[name])
        if cutoffs[deepest] > evaluation.depth:
            what = f"{evaluation.depth} documents are fewer than {deepest} reads"
            yield Problem(("evaluation", "depth"), what, f"Set it to {cutoffs[deepest]} or more, or leave it out.")


def _numbers(experiment: Experiment) -> Iterator[Problem]:
    """Whether what is expected of a study is said of one of its settings."""
    vary = experiment.vary
    for index, each in enumerate(experiment.expected):
        here: KeyPath = ("expected", index)
        if not vary and each.setting:
            yield Problem(
                (*here, "setting"), "nothing varies here", "Remove it (where vary=null was set, set expected=[] too)."
            )
        for thing in [thing for thing in each.setting if vary and thing not in vary]:
            what = f'"{thing}" is nothing that varies'
            yield Problem((*here, "setting", thing), what, nearest(thing, list(vary), "Things"))
        for thing, labels in vary.items():
            if thing not in each.setting:
                what = f"does not say which {thing}, and each setting of a study has numbers of its own"
                yield Problem((*here, "setting"), what, f"Add {thing}: {' or '.join(labels)}.")
            elif each.setting[thing] not in labels:
                what = f'{thing} has no label "{each.setting[thing]}"'
                yield Problem((*here, "setting", thing), what, nearest(each.setting[thing], list(labels), "Labels"))


def expected(experiment: Experiment, numbers: Mapping[int, ExpectedSettings]) -> Iterator[Problem]:
    """Whether the table will have the numbers that are expected of it, which have these places in the file."""
    rows = {row.name: row for row in experiment.recipes}
    names = [UNTRAINED, *([TEACHER] if experiment.teacher and experiment.teacher.encoder else []), *rows]
    measures = experiment.evaluation.measures
    for index, each in numbers.items():
        here: KeyPath = ("expected", index)
        if each.row not in names:
            yield Problem((*here, "row"), f'there is no row "{each.row}"', nearest(each.row, names, "Rows"))
        elif each.measure and each.measure not in measures:
            what = f'"{each.measure}" is not measured'
            yield Problem((*here, "measure"), what, f"Add it to evaluation.measures, or take {' or '.join(measures)}.")
        elif each.speed_up_over:
            free = {name for name, row in rows.items() if row.recipe in recipes.RECIPES and _is_free(row)}
            if each.row not in free:
                what = f"{each.row} has no speed-up, which is that of a parameter-free recipe"
                yield Problem((*here, "row"), what, f"Rows: {', '.join(name for name in rows if name in free)}.")
            elif each.speed_up_over not in rows or each.speed_up_over in free:
                tuned = [name for name in rows if name not in free]
                what = f'there is no row with knobs "{each.speed_up_over}"'
                yield Problem((*here, "speed_up_over"), what, nearest(each.speed_up_over, tuned, "Rows"))


def _is_free(row: RecipeSettings) -> bool:
    return recipes.get(row.recipe).parameter_free


def _source(here: KeyPath, source: SourceSettings, least: int) -> Iterator[Problem]:
    """Whether what is said of a source of negatives is something that it has, and leaves it enough documents."""
    ranked = ("bm25", "mined", "file")
    if source.source == "file" and source.path is None:
        yield Problem((*here, "path"), "is missing", "Add the path of the file with the negatives.")
    for key, sources in (
        ("path", ("file",)),
        ("skip", ranked),
        ("depth", ranked),
        ("encoder", ("mined",)),
        ("absolute_margin", ("mined",)),
        ("relative_margin", ("mined",)),
        ("check", ranked),
        ("refresh", ("mined",)),
    ):
        if key in _said(source, SourceSettings) and source.source not in sources:
            yield Problem(
                (*here, key), f"says nothing of {source.source} negatives", f"It is for {', '.join(sources)}."
            )
    if source.refresh and source.check:
        what = "is not made of what is mined during training"
        yield Problem((*here, "check"), what, "Remove it or refresh, or leave out by relative_margin.")
    left = max(0, source.depth - source.skip)
    if source.source in ranked and left < least:
        yield Problem(
            (*here, "depth"),
            f"{left} document(s) a query cannot give {least} negative(s)",
            f"Set it to {source.skip + least} or more.",
        )


def _generation(experiment: Experiment) -> Iterator[Problem]:
    """Whether what is said of a generator is something that it has, and whether somebody generates what is learned."""
    generation, here = experiment.generation, "generation"
    if generation is None:
        for path, training in _trainings(experiment):
            if training.get("queries", "judged") != "judged":
                what, mend = (
                    "there are no generated queries",
                    'Add a section such as "generation: {generator: salient}".',
                )
                yield Problem((*path, "queries"), what, mend)
        return
    models, wrote = ("seq2seq", "trained"), generation.generator
    for key, generators in (
        ("model", models),
        ("prompt", ("seq2seq",)),
        ("temperature", models),
        ("top_k", models),
        ("top_p", models),
        ("training", ("trained",)),
        ("per_document", ("salient", "inverse-cloze", *models)),
    ):
        if key in _said(generation, GenerationSettings) and wrote not in generators:
            yield Problem((here, key), f"says nothing of {wrote} queries", f"It is for {', '.join(generators)}.")
    if wrote == "seq2seq" and generation.model is None:
        yield Problem((here, "model"), "is missing", "Add a folder or a hub id, or take the generator salient.")
    if generation.training.batch_tokens:
        what = "a generator's batch is sized by queries"
        yield Problem((here, "training", "batch_size"), what, "Give a number of them.")
    if generation.training.queries != "judged":
        what = "a generator is trained on judged queries"
        yield Problem((here, "training", "queries"), what, "Remove it.")


def _teacher(experiment: Experiment) -> Iterator[Problem]:
    """Whether the row that teaches is one that can, and rows take of a teacher's encoder where there is one."""
    teacher = experiment.teacher
    if teacher and teacher.row:
        here: KeyPath = ("teacher", "row")
        row = experiment.teaching_row
        if row is None:
            names = [row.name for row in experiment.recipes]
            yield Problem(here, f'there is no row "{teacher.row}"', nearest(teacher.row, names, "Rows"))
        elif row.tune is not None:
            what = f"{row.name} is tuned, and a teacher is one run"
            yield Problem(here, what, f'Fix its knobs: "loss: {{…}}" instead of "tune" in {row.name}.')
        elif row.recipe in recipes.RECIPES and _learns_from_a_teacher(row, recipes.get(row.recipe)):
            yield Problem(here, f"{row.name} learns from a teacher itself", "Name a row that learns from judgments.")
    if teacher and teacher.average:
        spaces = [experiment.space_of(each) for each in teacher.average]
        for number, space in enumerate(spaces):
            if told := no_mean(spaces[0], space):
                yield Problem(("teacher", "average", number), *told)
    for index, row in enumerate(experiment.recipes):
        if teacher and teacher.encoder and row.name == TEACHER:
            what = f'"{TEACHER}" is the name of the encoder that teaches'
            yield Problem(("recipes", index, "name"), what, "Choose another.")
        student = experiment.encoder_for(row)
        for key in ("model", "document_encoder"):
            if getattr(student, key) != TEACHER:
                continue
            path: KeyPath = ("recipes", index, "encoder", key)
            if teacher is None or not teacher.encodes:
                what = "there is no teacher with an encoder"
                yield Problem(path, what, 'Add a section such as "teacher: {encoder: {model: …}}".')
            elif row.name == teacher.row:
                yield Problem(path, "is the row's own: it is the teacher", "Remove it.")


def _learns_from_a_teacher(row: RecipeSettings, recipe: Recipe) -> bool:
    """Whether the loss of a row without a search asks a teacher; one that cannot be built is told of elsewhere."""
    import losses

    try:
        needs = losses.build(recipe.loss, **{**recipe.parameters, **row.loss}).needs
    except ValueError:
        return False
    return any(need.startswith("teacher_") for need in needs)


def _trainings(experiment: Experiment) -> Iterator[tuple[KeyPath, Mapping[str, object]]]:
    """What is said of training, in the section and in the rows."""
    yield ("training",), experiment.training.model_dump()
    for index, row in enumerate(experiment.recipes):
        yield ("recipes", index, "training"), row.training


def _said(section: Section, keys: type[Section]) -> list[str]:
    """The keys that are not at their defaults; one that is made may have another machine's precision."""
    said = []
    for key, field in keys.model_fields.items():
        value, default = getattr(section, key), field.get_default(call_default_factory=True)
        if isinstance(default, TrainingSettings):
            value = value.model_copy(update={"precision": default.precision})
        if value != default:
            said.append(key)
    return said


def _rows(experiment: Experiment) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, row in enumerate(experiment.recipes):
        here: KeyPath = ("recipes", index)
        if row.recipe not in recipes.RECIPES:
            mend = nearest(row.recipe, recipes.RECIPES, "Recipes here")
            yield Problem((*here, "recipe"), f'"{row.recipe}" is not a recipe here', mend)
            continue
        if row.name in first:
            what = f'the name "{row.name}" is that of recipes.{first[row.name]} already'
            yield Problem((*here, "name"), what, 'Give one of them another "name".')
        first.setdefault(row.name, index)
        recipe = recipes.get(row.recipe)
        misfits = [*_tuning(experiment, row, recipe, here)]
        yield from misfits or _losses(experiment, row, recipe, here)


def _tuning(experiment: Experiment, row: RecipeSettings, recipe: Recipe, here: KeyPath) -> Iterator[Problem]:
    """Whether the row's search has something to search, and can stop trials as it says."""
    tune, space = row.tune, recipe.tune_space
    if tune is None:
        return
    of_training = [knob.parameter for knob in training_knobs(tune.training, tune.given)]
    if recipe.open and not tune.space and not of_training:
        what = f"{recipe.name} has the knobs that its row names, and none is named"
        yield Problem((*here, "tune"), what, "Name one: tune: {space: {infonce.temperature: [0.02, 0.05]}}.")
    if space is None and not recipe.open and not of_training:
        what = f"{recipe.name} is parameter-free: there is nothing to tune"
        mend = 'Remove "tune", or search how it is trained: tune: {training: [learning_rate]}.'
        yield Problem((*here, "tune"), what, mend)
        return
    known = [*(space.parameters if space else ()), *(knob.parameter for knob in TRAINING.values())]
    for knob, tried in tune.space.items():
        path = (*here, "tune", "space", knob)
        if knob not in known and (not recipe.open or knob.startswith(PREFIX)):
            yield Problem(path, f'"{knob}" is not a knob of {recipe.name}', nearest(knob, known, "Its knobs"))
        else:
            yield from _values(path, knob, tried, tune.drawn)
    for knob in [*(space.parameters if space else ()), *(tune.space if recipe.open else ())]:
        if knob in row.loss and (knob in tune.space or not of_training):
            yield Problem((*here, "loss", knob), "is fixed here and tuned in the same row", 'Remove it, or "tune".')
    for knob in of_training:
        if (key := knob.removeprefix(PREFIX)) in row.training:
            what = "is fixed here and tuned in the same row"
            yield Problem((*here, "training", key), what, "Remove it, or the knob.")
    if tune.scheduler == "asha" and experiment.training_for(row).validations < 2:
        what = "asha compares runs on their way, and training.validations is 1"
        mend = "Set training.validations to 2 or more, or scheduler to null."
        yield Problem((*here, "tune", "scheduler"), what, mend)


def _values(path: KeyPath, knob: str, tried: tuple[float | str, ...] | RangeSettings, drawn: bool) -> Iterator[Problem]:
    """Whether a search takes the values or the range that are given for a knob, and training those of its own."""
    size, rate = (knob == TRAINING[name].parameter for name in ("batch_size", "learning_rate"))
    if isinstance(tried, RangeSettings):
        if size:
            yield Problem(path, "is a range, and the size of a batch is one of some values", "List them: [32, 64].")
        elif not drawn:
            yield Problem(path, "is a range, and a grid has values", "List them, or set tune.search to random or tpe.")
        elif rate and tried.low <= 0:
            yield Problem((*path, "low"), f"must be greater than 0, not {tried.low:g}")
        return
    for index, value in enumerate(tried):
        here = (*path, index)
        if size and not isinstance(value, str) and not value.is_integer():
            yield Problem(here, f'must be a whole number, or such as "8192 tokens", not {value:g}')
        elif not size and isinstance(value, str):
            yield Problem(here, f"must be a number, not {shown(value)}")
        elif (size or rate) and not isinstance(value, str) and value <= 0:
            yield Problem(here, f"must be greater than 0, not {value:g}")


def _losses(experiment: Experiment, row: RecipeSettings, recipe: Recipe, here: KeyPath) -> Iterator[Problem]:
    """Whether the loss can be built, with every value of every knob, and is still the recipe's: its first misfit."""
    import losses  # brings torch, which `--help` does without

    (description,) = (loss for loss in losses.describe() if loss.name == recipe.loss)
    space = recipe.space_of(row.tune.given if row.tune else {}) or TuneSpace(recipe.name, ())
    for path, setting in _settings(space, row, {**recipe.parameters, **row.loss}, here):
        for knob in space.knobs:
            required = any(p.required for p in description.parameters if p.name == knob.parameter)
            if required and knob.parameter not in setting:
                mend = f'Add "tune: {{}}" to search it, or "loss: {{{knob.parameter}: {knob.first}}}" to fix it.'
                yield Problem(here, f'{recipe.name} needs a value for its knob "{knob.parameter}"', mend)
                return
        try:
            loss = losses.build(recipe.loss, **setting)
        except ValueError as error:
            yield Problem(path, str(error))
            return
        for parameter in set() if recipe.open else set(loss.knobs) ^ set(space.parameters):
            yield _another_recipe(recipe, parameter, setting[parameter], here)
            return
        if problem := _taught(experiment, row, loss, recipe, here):
            yield problem
            return


def _settings(
    space: TuneSpace, row: RecipeSettings, parameters: Mapping[str, Scalar], here: KeyPath
) -> Iterator[tuple[KeyPath, dict[str, Scalar]]]:
    """What the loss is built with, and the path that it was written at: each value of each knob, or the ends of its
    range, beside the first values of the others, or the one setting of a row that tunes nothing.
    """
    written = (*here, "loss") if row.loss else here
    knobs = [knob for knob in space.knobs if knob.parameter not in row.loss] if row.tune else []
    if row.tune is None or not knobs:
        yield written, {**parameters}
        return
    first = {knob.parameter: knob.first for knob in knobs}
    for knob in knobs:
        tried: list[tuple[int | str, Value]] = list(enumerate(knob.values))
        if knob.range and row.tune.drawn:
            tried += [("low", knob.range.low), ("high", knob.range.high)]
        for key, value in tried:
            given = (*here, "tune", "space", knob.parameter, key) if knob.parameter in row.tune.space else written
            yield given, {**parameters, **first, knob.parameter: value}


def _taught(experiment: Experiment, row: RecipeSettings, loss: Loss, recipe: Recipe, here: KeyPath) -> Problem | None:
    """Whether the teacher gives the loss what it needs, in scores that it can do something with."""
    needs = sorted(need for need in loss.needs if need.startswith("teacher_"))
    teacher = experiment.teacher
    if not needs:
        return None
    if teacher is None:
        what = f"{recipe.name} learns from a teacher, and there is none"
        return Problem(here, what, 'Add a section such as "teacher: {encoder: {model: …}}".')
    if lacking := [need for need in needs if need not in teacher.offers]:
        what = (
            f"{recipe.name} needs {' and '.join(need.replace('_', ' ') for need in lacking)}, which this teacher lacks"
        )
        dual = ", or a cross_encoder with scorer: dual" if loss.takes_context else ""
        mend = f'Name an encoder, such as "teacher: {{encoder: {{model: …}}}}"{dual}.'
        return Problem(here, what, mend)
    if teacher.in_context and "teacher_queries" in needs and not loss.takes_context:
        what = f"{recipe.name} needs vectors of texts alone, and a cross_encoder's are of pairs"
        return Problem(here, what, "Take a recipe such as embedding-matching, or an encoder as teacher.")
    if any(each.scores for _, each in teacher.members) and experiment.training_for(row).queries != "judged":
        what = f"{recipe.name} needs scores of generated queries, and the teacher's are written already"
        return Problem(here, what, "Name an encoder or a cross_encoder as teacher.")
    if "teacher_scores" not in needs and not teacher.in_context:
        return None
    if not all(each.encodes for _, each in teacher.members) and any(
        source.refresh for source in experiment.negatives.sources
    ):
        what = f"{recipe.name} needs scores of its pairs before it trains, and refreshed negatives are not known then"
        return Problem(here, what, "Remove refresh, or take an encoder as teacher.")
    if "teacher_scores" not in needs:
        return None
    told = misfit(recipe.name, loss, experiment.space_of(teacher), experiment.encoder_for(row).space)
    return Problem(here, *told) if told else None


def misfit(recipe: str, loss: Loss, teacher: Space | None, student: Space | None) -> tuple[str, str] | None:
    """What a loss cannot do with scores of these spaces, and the mend; None where it can, or one is not known yet."""
    if not teacher or not student or not (what := loss.misfit(teacher, student)):
        return None
    mend = "Set encoder.normalize to false, or take another teacher or recipe, such as score-kl."
    return f"{recipe} {what}", mend if student == "cosine" else "Take another teacher."


def no_mean(first: Space | None, other: Space | None) -> tuple[str, str] | None:
    """Why the scores of two teachers cannot be averaged, and the mend; None where they can, or one is not known yet."""
    if not first or not other or first == other:
        return None
    return f"its scores are {other} and the first's {first}, which have no mean", "Average teachers of one space."


def _another_recipe(recipe: Recipe, parameter: str, value: Scalar, here: KeyPath) -> Problem:
    """A value that gives a parameter-free recipe a knob, or takes a recipe's knob away: the row would be misnamed."""
    if recipe.parameter_free:
        what = f"{shown(value)} makes it a knob, and {recipe.name} is parameter-free"
    else:
        what = f"{shown(value)} leaves {recipe.name} nothing to tune"
    others = [
        other.name
        for other in recipes.RECIPES.values()
        if other.loss == recipe.loss and other.parameter_free != recipe.parameter_free
    ]
    return Problem((*here, "loss", parameter), what, f"Take the recipe for it: {' or '.join(others)}.")
