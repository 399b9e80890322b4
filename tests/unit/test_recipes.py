"""The recipes and their tune spaces, pinned: the table, its agreement with the losses, grids, refusals."""

import pytest

import losses
from orchestrator.recipes import RECIPES, Recipe, get
from tune_spaces import SPACES, Knob, TuneSpace


@pytest.mark.parametrize(
    ("name", "loss", "parameters", "knobs"),
    [
        ("arm-adaptive", "margin", {"target": "adaptive", "in_batch": "rows"}, ()),
        ("arm-distributed", "margin", {"target": "distributed"}, ()),
        ("static-margin", "margin", {"in_batch": "rows"}, ("target",)),
        ("infonce", "infonce", {}, ("temperature",)),
        ("triplet", "triplet", {}, ("margin",)),
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
    arm, others = ["arm-adaptive", "arm-distributed", "static-margin"], ["infonce", "triplet"]
    taught = ["margin-mse", "score-kl", "ranknet", "lambdarank", "pair-kl", "embedding-matching"]
    assert list(RECIPES) == [*arm, *others, *taught]
    assert {name for name, recipe in RECIPES.items() if not recipe.parameter_free} == set(SPACES)
    assert all(space.recipe == name for name, space in SPACES.items())


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_every_setting_builds_the_loss_with_the_declared_needs_and_knobs(recipe: Recipe):
    for setting in recipe.tune_space.grid() if recipe.tune_space else [{}]:
        loss = losses.build(recipe.loss, **recipe.parameters, **setting)
        assert loss.needs == recipe.needs
        assert set(loss.knobs) == set(setting)


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
