"""The recipes and their tune spaces, pinned: the table, its agreement with the losses, grids, refusals."""

import pytest

import losses
from orchestrator.recipes import RECIPES, Recipe, get
from tune_spaces import GIVEN, SPACES, TRAINING, Knob, Range, TuneSpace, training_knobs


@pytest.mark.parametrize(
    ("name", "loss", "parameters", "knobs"),
    [
        ("arm-adaptive", "margin", {"target": "adaptive", "in_batch": "rows"}, ()),
        ("arm-distributed", "margin", {"target": "distributed"}, ()),
        ("self-distilled-infonce", "self-distilled-infonce", {}, ()),
        ("static-margin", "margin", {"in_batch": "rows"}, ("target",)),
        ("infonce", "infonce", {}, ("temperature",)),
        ("infonce-learned", "infonce", {"temperature": "learned"}, ()),
        ("localized-contrastive", "infonce", {"candidates": "own"}, ("temperature",)),
        ("gist", "infonce", {"mask": "teacher"}, ("temperature",)),
        ("triplet", "triplet", {}, ("margin",)),
        ("listnet", "listnet", {}, ("temperature",)),
        ("relational-matching", "relational-matching", {}, ()),
        ("margin-mse", "margin-mse", {}, ()),
        ("score-kl", "score-kl", {}, ("temperature",)),
        ("ranknet", "ranknet", {}, ("temperature",)),
        ("lambdarank", "ranknet", {"order": "teacher", "weight": "ndcg"}, ("temperature",)),
        ("pair-kl", "pair-kl", {}, ("temperature",)),
        ("embedding-matching", "embedding-matching", {}, ()),
    ],
)
def test_the_table(name, loss, parameters, knobs):
    recipe = get(name)
    assert (recipe.name, recipe.loss, recipe.parameters) == (name, loss, parameters)
    assert recipe.parameter_free is (knobs == ())
    assert (recipe.tune_space.parameters if recipe.tune_space else ()) == knobs


def test_the_table_is_whole():
    arm = ["arm-adaptive", "arm-distributed", "self-distilled-infonce", "static-margin"]
    others = ["infonce", "infonce-learned", "localized-contrastive", "gist", "triplet"]
    taught = ["margin-mse", "score-kl", "listnet", "ranknet", "lambdarank", "pair-kl"]
    vectors = ["embedding-matching", "embed-distill", "relational-matching"]
    assert list(RECIPES) == [*arm, *others, *taught, *vectors, "matryoshka", "weighted-sum"]
    assert {name for name, recipe in RECIPES.items() if recipe.tune_space} == set(SPACES)
    assert [name for name, recipe in RECIPES.items() if recipe.open] == ["matryoshka", "weighted-sum"]
    assert all(space.recipe == name for name, space in SPACES.items())


CLOSED = [recipe for recipe in RECIPES.values() if not recipe.open]


@pytest.mark.parametrize("recipe", CLOSED, ids=[recipe.name for recipe in CLOSED])
def test_every_setting_builds_the_loss_with_the_declared_needs_and_knobs(recipe: Recipe):
    for setting in recipe.tune_space.grid() if recipe.tune_space else [{}]:
        loss = losses.build(recipe.loss, **recipe.parameters, **setting)
        assert loss.needs == recipe.needs
        assert set(loss.knobs) == set(setting)


def test_an_open_recipe_has_the_knobs_that_its_row_names():
    space = get("weighted-sum").space_of({"infonce.temperature": (0.02, 0.05), "ranknet.weight": (1.0,)})
    assert space.parameters == ("infonce.temperature", "ranknet.weight")
    assert len(space.grid()) == 2
    assert not get("weighted-sum").parameter_free
    assert get("arm-adaptive").space_of({}) is None


def test_embed_distill_is_the_papers_sum():
    loss = losses.build("weighted-sum", **get("embed-distill").parameters)
    assert [(term.label, term.weight) for term in loss.terms] == [
        ("infonce", 1.0),
        ("score-kl", 1.0),
        ("embedding-matching", 1.0),
    ]
    assert (loss.terms[1].loss.in_batch, loss.terms[2].loss.side, loss.terms[2].loss.distance) == (True, "both", "norm")


def test_grids_by_hand():
    assert SPACES["static-margin"].grid() == tuple({"target": tenth / 10} for tenth in range(1, 11))
    assert SPACES["infonce"].grid() == tuple({"temperature": tau} for tau in (0.05, 0.02, 0.1, 0.01, 0.2))
    assert SPACES["triplet"].grid() == tuple({"margin": tenth / 10} for tenth in range(1, 6))


def test_a_grid_of_two_knobs_turns_the_last_fastest():
    space = TuneSpace("two", (Knob("a", (1, 2), "made up"), Knob("b", (0.5, 0.7), "made up")))
    assert space.grid() == ({"a": 1, "b": 0.5}, {"a": 1, "b": 0.7}, {"a": 2, "b": 0.5}, {"a": 2, "b": 0.7})


def test_other_values_replace_those_of_the_named_knob():
    space = TuneSpace("two", (Knob("a", (1, 2), "made up"), Knob("b", (0.5,), "made up")))
    assert space.with_values({"a": [9]}).knobs == (Knob("a", (9,), "given in the experiment"), space.knobs[1])
    assert space.with_values({}) == space


def test_a_range_replaces_what_a_knob_is_drawn_from():
    space = TuneSpace("two", (Knob("a", (1, 2), "made up", Range(1, 2)), Knob("b", (0.5,), "made up")))
    assert not space.finite
    given = space.with_values({"b": Range(0.1, 0.9, log=True)})
    assert given.knobs == (space.knobs[0], Knob("b", (), GIVEN, Range(0.1, 0.9, log=True)))
    assert (space.first, given.first) == ({"a": 1, "b": 0.5}, {"a": 1, "b": 0.1})
    listed = space.with_values({"a": [1, 7]})
    assert listed.knobs[0].range is None, "values that are given are all that is drawn"
    assert listed.finite
    with pytest.raises(ValueError, match=r'^the knob "b" has a range, and a grid takes values$'):
        given.grid()


def test_every_knob_has_its_values_within_its_range_and_a_source():
    knobs = [knob for space in SPACES.values() for knob in space.knobs]
    for knob in (*knobs, *TRAINING.values()):
        assert knob.source
        assert knob.values
        if knob.range:
            assert knob.range.source
            assert knob.range.low <= min(knob.values) < max(knob.values) <= knob.range.high


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_training_can_be_searched_for_every_recipe(recipe: Recipe):
    own = recipe.tune_space.parameters if recipe.tune_space else ()
    assert recipe.searched({}).parameters == own
    both = recipe.searched({}, ["batch_size", "learning_rate"])
    assert both.parameters == (*own, "training.learning_rate", "training.batch_size")
    given = recipe.searched({"training.batch_size": (8, "64 tokens")}, fixed=own)
    assert given.knobs == (Knob("training.batch_size", (8, "64 tokens"), GIVEN),)


def test_the_knobs_of_training():
    assert TRAINING["batch_size"].values == (32, 64, 128)
    assert training_knobs((), {}) == ()
    assert training_knobs(["learning_rate"], {}) == (TRAINING["learning_rate"],)
    (knob,) = training_knobs(["learning_rate"], {"training.learning_rate": Range(1e-5, 1e-3, log=True)})
    assert knob == Knob("training.learning_rate", (), GIVEN, Range(1e-5, 1e-3, log=True))


def test_ranges_that_are_none():
    for low, high, log in ((1.0, 1.0, False), (2.0, 1.0, True), (0.0, 1.0, True)):
        with pytest.raises(ValueError, match=r"^a (logarithmic )?range must"):
            Range(low, high, log)


def test_refusals():
    with pytest.raises(ValueError, match=r'^"arm-adaptve" is not a recipe here; did you mean "arm-adaptive"\?$'):
        get("arm-adaptve")
    known = f"known: {', '.join(RECIPES)}"
    with pytest.raises(ValueError, match=f'^"zzz" is not a recipe here; {known}$'):
        get("zzz")
    with pytest.raises(ValueError, match=r'^"margin" is not a knob of static-margin; its knobs: target$'):
        SPACES["static-margin"].with_values({"margin": [0.1]})
    for values in ((), (0.1, 0.1)):
        with pytest.raises(ValueError) as refused:
            Knob("target", values, "made up")
        assert str(refused.value) == f'the knob "target" must have values, each once, not {list(values)}'
