"""The configuration, pinned: every default; every refusal as the line that a user reads; overrides; the round trip."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from orchestrator import precision
from orchestrator.config import Experiment, TrainingSettings, load, resolved
from orchestrator.precision import cpu_precision
from orchestrator.recipes import RECIPES
from tune_spaces import Range

ROOT = Path(__file__).parents[2]

QUICKSTART = """\
name: quickstart
seed: 13
collection: {format: beir, path: examples/scifact, validation: 0.1}
encoder: {model: sentence-transformers/all-MiniLM-L6-v2, pooling: mean, normalize: true, layers: [0, 2, 5]}
negatives: {source: random, per_query: 1}
training:
  batch_size: 32
  epochs: 2
  learning_rate: 2e-5
recipes:
  - {recipe: static-margin, tune: {search: grid, scheduler: asha}}
  - {recipe: infonce, tune: {search: grid}}
  - arm-adaptive
  - arm-distributed
evaluation: {measures: [nDCG@10, RR@10, R@100], index: Flat}
"""

MINIMAL = """\
name: small
collection: {path: c}
encoder: {model: m}
recipes: [arm-adaptive]
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def experiment(text: str, *overrides: str) -> Experiment:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return load("x.yaml", overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        experiment(text, *overrides)
    message = str(refused.value)
    assert "\n" not in message
    return message


def changed(old: str, new: str) -> str:
    assert QUICKSTART.count(old) == 1
    return QUICKSTART.replace(old, new)


# What a valid file says


def test_minimal_experiment_has_every_default():
    assert experiment(MINIMAL).model_dump() == {
        "name": "small",
        "seed": 13,
        "seeds": (),
        "collection": {
            "format": "beir",
            "path": "c",
            "validation": 0.1,
            "validation_pool": None,
            "skip_dangling": False,
            "train_split": "train",
            "test_split": "test",
        },
        "encoder": {
            "model": "m",
            "pooling": None,
            "normalize": None,
            "query_tokens": 64,
            "document_tokens": 256,
            "layers": None,
            "dropout": 0.0,
        },
        "negatives": {
            "source": "random",
            "path": None,
            "skip": 0,
            "depth": 100,
            "encoder": None,
            "absolute_margin": None,
            "relative_margin": None,
            "check": None,
            "refresh": None,
            "per_query": 1,
            "mix": (),
        },
        "generation": None,
        "teacher": None,
        "training": {
            "batch_size": 32,
            "queries": "judged",
            "examples": "judgments",
            "share": 1.0,
            "epochs": 2,
            "learning_rate": 2e-5,
            "warmup": 0.1,
            "schedule": "linear",
            "weight_decay": 0.01,
            "clip": 1.0,
            "precision": cpu_precision(),
            "token_budget": None,
            "activation_tokens": 32768,
            "validations": 4,
            "checkpoint_seconds": 300.0,
        },
        "recipes": (
            {"recipe": "arm-adaptive", "name": "arm-adaptive", "loss": {}, "encoder": {}, "training": {}, "tune": None},
        ),
        "evaluation": {"measures": ("nDCG@10", "RR@10", "R@100"), "margin": 0.01, "index": "Flat", "depth": None},
        "scaling": {"workers": 1, "gpus_per_worker": 0.0, "cpus_per_worker": None},
        "tracking": {"uri": "sqlite:///stillhouse.db", "experiment": "small", "model": True},
        "prices": None,
        "store": ".stillhouse",
        "vary": {},
        "expected": (),
    }


def test_quickstart_of_the_design():
    quickstart = experiment(QUICKSTART)
    assert quickstart.encoder.layers == (0, 2, 5)
    assert quickstart.training.learning_rate == 2e-5  # which YAML 1.1 takes for text
    assert [row.name for row in quickstart.recipes] == ["static-margin", "infonce", "arm-adaptive", "arm-distributed"]
    asha = quickstart.recipes[0].tune
    assert (asha.search, asha.scheduler, asha.reduction_factor, asha.space) == ("grid", "asha", 3, {})
    assert quickstart.recipes[1].tune.scheduler is None
    assert quickstart.recipes[2].tune is None


def test_a_precision_that_is_not_named_is_that_of_the_device(monkeypatch, tmp_path, request):
    request.addfinalizer(cpu_precision.cache_clear)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    cases = {
        "flags\t\t: fpu avx512_bf16 amx_int8\n": "bf16",
        "flags: fpu avx2 avx512f avx512_vnni\n": "fp32",
        "Features\t: fp asimd bf16\n": "bf16",
        "processor: 0\nmodel name: bf16\n": "fp32",
        None: "fp32",
    }
    rows = "[{recipe: infonce, training: {precision: fp32}}, {recipe: infonce, name: other}]"
    teacher = "{average: [{cross_encoder: {model: t, training: {}}}, {scores: {space: logit}}]}"
    on_gpus = f"recipes: {rows}\nteacher: {teacher}\ngeneration: {{}}\nscaling: {{gpus_per_worker: 1}}\n"
    for text, expected in cases.items():
        cpu_precision.cache_clear()
        precision.CPUINFO.unlink(missing_ok=True)
        if text:
            precision.CPUINFO.write_text(text)
        assert experiment(MINIMAL).training.precision == expected
        there = experiment(MINIMAL.replace("recipes: [arm-adaptive]\n", on_gpus))
        assert there.training.precision == there.generation.training.precision == "bf16"
        assert there.teacher.average[0].cross_encoder.training.precision == "bf16"
        assert [there.training_for(row).precision for row in there.recipes] == ["fp32", "bf16"]
        assert experiment(resolved(there)) == there  # on a machine with another default


def test_a_row_changes_training_for_itself_alone():
    changed_rows = experiment(
        changed("  - arm-adaptive", "  - {recipe: arm-adaptive, training: {batch_size: 8, clip: null}}")
    )
    third, fourth = changed_rows.recipes[2:]
    assert third.training == {"batch_size": 8, "clip": None}
    assert changed_rows.training_for(third) == TrainingSettings(batch_size=8, clip=None)
    assert changed_rows.training_for(fourth) == TrainingSettings()


def test_a_row_tuned_over_given_values_and_one_fixed():
    text = changed(
        "  - {recipe: infonce, tune: {search: grid}}",
        "  - {recipe: infonce, name: cold, loss: {temperature: 2e-2}}\n"
        "  - {recipe: triplet, loss: {in_batch: rows}, tune: {space: {margin: [0.1, 1]}}}",
    )
    cold, triplet = experiment(text).recipes[1:3]
    assert (cold.name, cold.loss, cold.tune) == ("cold", {"temperature": 0.02}, None)
    assert triplet.tune.space == {"margin": (0.1, 1.0)}


def test_a_row_that_is_searched_over_a_range_and_over_training():
    text = changed(
        "  - {recipe: infonce, tune: {search: grid}}",
        "  - recipe: infonce\n"
        "    tune:\n"
        "      search: tpe\n"
        "      trials: 20\n"
        "      device_seconds: 3600\n"
        "      patience: 6\n"
        "      training: [learning_rate]\n"
        "      space: {temperature: {low: 0.01, high: 2e-1, log: true}, training.batch_size: [16, 64, 4096 tokens]}\n"
        "  - {recipe: triplet, loss: {margin: 0.2}, tune: {training: [batch_size]}}\n"
        "  - {recipe: margin-mse, tune: {search: random, training: [learning_rate]}}",
    )
    text += "teacher: {encoder: {model: t}}\n"
    loaded = experiment(text)
    tune = loaded.recipes[1].tune
    assert (tune.search, tune.drawn, tune.most_trials, tune.device_seconds, tune.patience) == ("tpe", True, 20, 3600, 6)
    assert tune.given == {"temperature": Range(0.01, 0.2, log=True), "training.batch_size": (16, 64, "4096 tokens")}
    assert [type(size) for size in tune.given["training.batch_size"]] == [int, int, str]
    assert (loaded.recipes[2].tune.most_trials, loaded.recipes[3].tune.most_trials) == (None, 10)
    over = experiment(text, "recipes.1.tune.space.temperature={low: 0.1, high: 1}", "recipes.1.tune.trials=null")
    assert (over.recipes[1].tune.given["temperature"], over.recipes[1].tune.most_trials) == (Range(0.1, 1.0), 10)


def test_measures_take_the_spelling_of_ir_measures():
    measures = experiment(changed("[nDCG@10, RR@10, R@100]", "[NDCG@10, MRR@10, 'P(rel=2)@5']")).evaluation.measures
    assert measures == ("nDCG@10", "RR@10", "P(rel=2)@5")


def test_keys_merged_from_an_anchor():
    text = changed("  - arm-adaptive\n", "  - &arm {recipe: arm-adaptive}\n  - {<<: *arm, name: again}\n")
    assert [row.name for row in experiment(text).recipes[2:4]] == ["arm-adaptive", "again"]


# What is wrong with a file as a whole


def test_missing_file_and_folder():
    for path, message in [
        ("none.yaml", "none.yaml: there is no such file. Check the path."),
        (".", ".: cannot be read: Is a directory"),
    ]:
        with pytest.raises(UserError) as refused:
            load(path)
        assert str(refused.value) == message


def test_bytes_that_are_no_text():
    Path("x.yaml").write_bytes(b"name: \xff")
    with pytest.raises(UserError) as refused:
        load("x.yaml")
    assert str(refused.value) == "x.yaml: is not UTF-8 text: byte 6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml: is empty. Write an experiment, beginning with its name."),
        ("# only this\n", "x.yaml: is empty. Write an experiment, beginning with its name."),
        ("- a\n", "x.yaml:1: must be a mapping of keys. Begin with `name: …`."),
        ("hello\n", "x.yaml:1: must be a mapping of keys. Begin with `name: …`."),
        ("name: a\nseed: [1\n", "x.yaml:3: is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("name: a\n\tseed: 1\n", "x.yaml:2: is not valid YAML: found character '\\t' that cannot start any token"),
        ("name: a\nseed: \x07\n", "x.yaml:2: is not valid YAML: special characters are not allowed"),
        ("name: a\n---\nname: b\n", "x.yaml:2: is not valid YAML: but found another document"),
        ("name: !!python/name:os.system x\n", "x.yaml:1: is not valid YAML: could not determine a constructor for "
         "the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("name: a\nseed: !!int x\n", 'x.yaml:2: is not valid YAML: "x" is no int'),
        ("name: a\nseed: 0b_\n", 'x.yaml:2: is not valid YAML: "0b_" is no int'),
        ("name: a\n[x]: b\n", "x.yaml:2: is not valid YAML: found unhashable key"),
        ("name: a\nx: &x [*x]\n", "x.yaml:2: is not valid YAML: an alias inside what it names"),
        ("name: a\nname: b\n", "x.yaml:2: name: has a value already, in line 1. Remove one."),
        (
            QUICKSTART.replace("  epochs: 2\n", "  epochs: 2\n  batch_size: 64\n"),
            "x.yaml:9: training.batch_size: has a value already, in line 7. Remove one.",
        ),
    ],
)  # fmt: skip
def test_files_that_are_no_experiment(text, message):
    assert refusal(text) == message


# What is wrong with a value


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  batch_size: 32", "  batch_size: 0 tokens", "7: training.batch_size: must be greater than 0, not 0"),
        ("  batch_size: 32", "  batch_size: many tokens",
         '7: training.batch_size: must be a whole number, or such as "8192 tokens", not "many tokens"'),
        ("  batch_size: 32", "  batch_size: -3", "7: training.batch_size: must be greater than 0, not -3"),
        ("  batch_size: 32", "  batch_size: 32.5",
         '7: training.batch_size: must be a whole number, or such as "8192 tokens", not 32.5'),
        ("  batch_size: 32", "  batch_size: true",
         '7: training.batch_size: must be a whole number, or such as "8192 tokens", not true'),
        ("  batch_size: 32", "  batch_size: '32'",
         '7: training.batch_size: must be a whole number, or such as "8192 tokens", not "32"'),
        ("  batch_size: 32", "  batch_size:",
         '7: training.batch_size: must be a whole number, or such as "8192 tokens", not null'),
        ("2e-5", "fast", '9: training.learning_rate: must be a number, not "fast"'),
        ("2e-5", ".inf", "9: training.learning_rate: must be finite, not inf"),
        ("2e-5", "[1, 2]", "9: training.learning_rate: must be a number, not a list"),
        ("  epochs: 2", "  warmup: 1", "8: training.warmup: must be less than 1, not 1"),
        ("  epochs: 2", "  weight_decay: -0.1", "8: training.weight_decay: must be at least 0, not -0.1"),
        ("  epochs: 2", "  clip: 0", "8: training.clip: must be greater than 0, not 0"),
        ("  epochs: 2", "  precision: fp23",
         '8: training.precision: must be "bf16" or "fp32", not "fp23". Did you mean "fp32"?'),
        ("  epochs: 2", "  precision: 16",
         '8: training.precision: must be "bf16" or "fp32", not 16. Did you mean "bf16"?'),
        ("  batch_size: 32", "  batchsize: 32",
         '7: training.batchsize: "batchsize" is not a key here. Did you mean "batch_size"?'),
        ("  batch_size: 32", "  optimizer: adam",
         '7: training.optimizer: "optimizer" is not a key here. Keys here: queries, batch_size, examples, share, '
         "epochs, learning_rate, warmup, schedule, weight_decay, clip, precision, token_budget, activation_tokens, "
         "validations, checkpoint_seconds."),
        ("seed: 13", "sede: 13", '2: sede: "sede" is not a key here. Did you mean "seed"?'),
        ("seed: 13", "seed: -1", "2: seed: must be at least 0, not -1"),
        ("seed: 13", "seed: 4294967296", "2: seed: must be less than 4294967296, not 4294967296"),
        ("seed: 13", "seeds: [13, 14, 13]", "2: seeds: has 13 twice. Remove one."),
        ("seed: 13", "seeds: [13, -1]", "2: seeds.1: must be at least 0, not -1"),
        ("name: quickstart", "name: quickstart\nseeds: [14, 13]",
         "3: seed: is 13, and the first of seeds is 14. Remove it, or put it first among the seeds."),
        ("seed: 13", "store: ''", "2: store: must not be empty"),
        ("seed: 13", "scaling: {workers: 0}", "2: scaling.workers: must be greater than 0, not 0"),
        ("seed: 13", "scaling: {gpus_per_worker: 1.5}",
         "2: scaling.gpus_per_worker: must be a whole number, or a share of one GPU, not 1.5"),
        ("seed: 13", "tracking: {uri: 5}", '2: tracking.uri: must be text, not 5. Put it in quotes: "5".'),
        ("seed: 13", "prices: {currency: EUR}",
         "2: prices: names no price. Give cpu, cuda or both: an hour of a core, of a GPU."),
        ("seed: 13", "prices: {cpu: -1}", "2: prices.cpu: must be at least 0, not -1"),
        ("seed: 13", "tracking: here", '2: tracking: must be a mapping of keys, not "here"'),
        ("name: quickstart", "name: 2024", '1: name: must be text, not 2024. Put it in quotes: "2024".'),
        ("name: quickstart", "name: a b",
         '1: name: must be letters, digits, "-", "_" and ".", beginning with a letter or digit, not "a b"'),
        ("name: quickstart", 'name: "a\\nb"',
         '1: name: must be letters, digits, "-", "_" and ".", beginning with a letter or digit, not "a\\nb"'),
        ("name: quickstart", "name: ..",
         '1: name: must be letters, digits, "-", "_" and ".", beginning with a letter or digit, not ".."'),
        ("name: quickstart", "title: quickstart",
         '1: title: "title" is not a key here (and 1 more). Keys here: name, seed, seeds, collection, encoder, '
         "negatives, generation, teacher, training, recipes, evaluation, scaling, tracking, prices, "
         "store, vary, expected."),
        ("name: quickstart\n", "", "1: name: is missing. Add it."),
        ("path: examples/scifact, ", "", "3: collection.path: is missing. Add it."),
        ("validation: 0.1", "validation: 1.0", "3: collection.validation: must be less than 1, not 1.0"),
        ("format: beir", "format: tree", '3: collection.format: must be "beir", "huggingface", "ir_datasets", '
         '"msmarco", "parquet", "tevatron" or "trec", not "tree". Did you mean "trec"?'),
        ("validation: 0.1", "test_split: train", '3: collection.test_split: "train" is what the recipes train on, and '
         "says nothing about other queries. Name another split."),
        ("pooling: mean", "pooling: men",
         '4: encoder.pooling: must be "cls", "mean" or "pooler", not "men". Did you mean "mean"?'),
        ("normalize: true", "normalize: 1", "4: encoder.normalize: must be true or false, not 1"),
        ("[0, 2, 5]", "[0, 5, 2]", "4: encoder.layers: must be distinct and ascending, not [0, 5, 2]"),
        ("[0, 2, 5]", "[0, 0]", "4: encoder.layers: must be distinct and ascending, not [0, 0]"),
        ("[0, 2, 5]", "[-1, 2]", "4: encoder.layers.0: must be at least 0, not -1"),
        ("[0, 2, 5]", "[]", "4: encoder.layers: must have at least one item"),
        ("[0, 2, 5]", "3", "4: encoder.layers: must be a list, not 3"),
        ("normalize: true", "query_tokens: 2", "4: encoder.query_tokens: must be at least 3, not 2"),
        ("normalize: true", "dropout: 1", "4: encoder.dropout: must be less than 1, not 1"),
        ("random, per_query: 1", "bm25, per_query: 8, depth: 5",
         "5: negatives.depth: 5 document(s) a query cannot give 8 negative(s). Set it to 8 or more."),
        ("random, per_query: 1", "mined, skip: 10, depth: 10",
         "5: negatives.depth: 0 document(s) a query cannot give 1 negative(s). Set it to 11 or more."),
        ("random, per_query: 1", "bm25, relative_margin: 0.05",
         "5: negatives.relative_margin: says nothing of bm25 negatives. It is for mined."),
        ("random, per_query: 1", "given, skip: 5",
         "5: negatives.skip: says nothing of given negatives. It is for bm25, mined, file."),
        ("random, per_query: 1", "file",
         "5: negatives.path: is missing. Add the path of the file with the negatives."),
        ("source: random, per_query: 1", "mix: [{source: bm25}, {encoder: {model: m}}]",
         "5: negatives.mix.1.encoder: says nothing of random negatives. It is for mined."),
        ("source: random, per_query: 1", "mix: [{source: mined, weight: 0}]",
         "5: negatives.mix.0.weight: must be greater than 0, not 0"),
        ("source: random, per_query: 1", "source: bm25, mix: [{source: mined}]",
         "5: negatives.source: is said of a single source, and there is a mix. Move it into the mix."),
        ("[nDCG@10, RR@10, R@100]", "[nDCG@10, ndcg@5]",
         '15: evaluation.measures.1: "ndcg@5" is not a measure that ir_measures knows. Did you mean "nDCG@5"?'),
        ("[nDCG@10, RR@10, R@100]", "[zzz]",
         '15: evaluation.measures.0: "zzz" is not a measure that ir_measures knows. See ir-measur.es for the names.'),
        ("[nDCG@10, RR@10, R@100]", "[nDCG@, R@100]", '15: evaluation.measures.0: "nDCG@" cannot be read as a measure. '
         "Write NAME@CUTOFF, such as nDCG@10."),
        ("[nDCG@10, RR@10, R@100]", "[P]",
         '15: evaluation.measures.0: "P" cannot be read as a measure. Write NAME@CUTOFF, such as nDCG@10.'),
        ("[nDCG@10, RR@10, R@100]", "[nDCG(k=3)@10]",
         '15: evaluation.measures.0: "nDCG(k=3)@10" cannot be read as a measure. Write NAME@CUTOFF, such as nDCG@10.'),
        ("[nDCG@10, RR@10, R@100]", "[nDCG@0]", '15: evaluation.measures.0: "nDCG@0" must have a cutoff of at least 1'),
        ("[nDCG@10, RR@10, R@100]", "[RR@10, MRR@10]", "15: evaluation.measures: has RR@10 twice. Remove one."),
        ("[nDCG@10, RR@10, R@100]", "[]", "15: evaluation.measures: must have at least one item"),
        ("index: Flat", "depth: 50", "15: evaluation.depth: 50 documents are fewer than R@100 reads. "
         "Set it to 100 or more, or leave it out."),
    ],
)  # fmt: skip
def test_values_that_are_refused(old, new, message):
    assert refusal(changed(old, new)) == f"x.yaml:{message}"


def test_keys_that_are_no_text():
    assert refusal(QUICKSTART + "3: x\n") == "x.yaml:1: 3: is refused: Keys should be strings"


def test_an_empty_section_is_not_its_defaults():
    assert refusal(MINIMAL + "training:\n") == "x.yaml:5: training: must be a mapping of keys, not null"


# What is wrong with a row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("arm-adaptve", '13: recipes.2: "arm-adaptve" is not a recipe here. Did you mean "arm-adaptive"?'),
        ("arm adaptive", '13: recipes.2: "arm adaptive" is not a recipe here. Did you mean "arm-adaptive"?'),
        ("{recipe: zzz}", f'13: recipes.2.recipe: "zzz" is not a recipe here. Recipes here: {", ".join(RECIPES)}.'),
        ("{name: mine}", "13: recipes.2.recipe: is missing. Add it."),
        ("{recipe: 3}", '13: recipes.2.recipe: must be text, not 3. Put it in quotes: "3".'),
        ("3", "13: recipes.2: must be a mapping of keys, not 3"),
        ("[arm-adaptive]", "13: recipes.2: must be a mapping of keys, not a list"),
        ("arm-distributed", '14: recipes.3: the name "arm-distributed" is that of recipes.2 already. '
         'Give one of them another "name".'),
        ("{recipe: arm-adaptive, name: infonce}",
         '13: recipes.2.name: the name "infonce" is that of recipes.1 already. Give one of them another "name".'),
        ("{recipe: arm-adaptive, name: untrained}",
         '13: recipes.2.name: "untrained" is the name of the encoder before training. Choose another.'),
        ("{recipe: arm-adaptive, name: a/b}",
         '13: recipes.2.name: must be letters, digits, "-", "_" and ".", beginning with a letter or digit, not "a/b"'),
        ("{recipe: arm-adaptive, losses: {}}",
         '13: recipes.2.losses: "losses" is not a key here. Did you mean "loss"?'),
        ("{recipe: arm-adaptive, tune: {}}",
         '13: recipes.2.tune: arm-adaptive is parameter-free: there is nothing to tune. '
         'Remove "tune", or search how it is trained: tune: {training: [learning_rate]}.'),
        ("{recipe: arm-adaptive, loss: {eror: l1}}",
         '13: recipes.2.loss: the loss "margin" has no parameter "eror"; did you mean "error"?'),
        ("{recipe: arm-adaptive, loss: {error: huber}}",
         '13: recipes.2.loss: error must be one of "l2", "l1", "soft", not "huber"'),
        ("{recipe: arm-adaptive, loss: {error: [l1]}}",
         "13: recipes.2.loss.error: must be a number, a word, true, false or null, not a list"),
        ("{recipe: arm-adaptive, loss: {error: !!timestamp 2024-01-31}}",
         "13: recipes.2.loss.error: must be a number, a word, true, false or null, not 2024-01-31"),
        ("{recipe: triplet, loss: {margin: .inf}}",
         "13: recipes.2.loss: margin must be a number greater than 0 and at most 2, not inf"),
        ("{recipe: arm-adaptive, loss: {target: 0.3}}", "13: recipes.2.loss.target: 0.3 makes it a knob, and "
         "arm-adaptive is parameter-free. Take the recipe for it: static-margin."),
        ("{recipe: static-margin, name: s, loss: {target: adaptive}}", '13: recipes.2.loss.target: "adaptive" leaves '
         "static-margin nothing to tune. Take the recipe for it: arm-adaptive or arm-distributed."),
        ("{recipe: arm-distributed, name: d, loss: {in_batch: rows}}", '13: recipes.2.loss: target "distributed" and '
         'in_batch "rows" exclude each other: distributed targets span the batch already'),
        ("{recipe: triplet}",
         '13: recipes.2: triplet needs a value for its knob "margin". Add "tune: {}" to search it, '
         'or "loss: {margin: 0.1}" to fix it.'),
        ("triplet", '13: recipes.2: triplet needs a value for its knob "margin". Add "tune: {}" to search it, '
         'or "loss: {margin: 0.1}" to fix it.'),
        ("{recipe: triplet, loss: {margin: 3}}",
         "13: recipes.2.loss: margin must be a number greater than 0 and at most 2, not 3"),
        ("{recipe: triplet, loss: {margin: 0.2}, tune: {}}",
         '13: recipes.2.loss.margin: is fixed here and tuned in the same row. Remove it, or "tune".'),
        ("{recipe: triplet, tune: {space: {temperature: [0.1]}}}",
         '13: recipes.2.tune.space.temperature: "temperature" is not a knob of triplet. '
         'Its knobs: margin, training.learning_rate, training.batch_size.'),
        ("{recipe: triplet, tune: {space: {margni: [0.1]}}}",
         '13: recipes.2.tune.space.margni: "margni" is not a knob of triplet. Did you mean "margin"?'),
        ("{recipe: triplet, tune: {space: {margin: []}}}",
         "13: recipes.2.tune.space.margin: must have at least one item"),
        ("{recipe: triplet, tune: {space: {margin: [0.1, 0.2, 0.1]}}}",
         "13: recipes.2.tune.space.margin: has 0.1 twice. Remove one."),
        ("{recipe: triplet, tune: {space: {margin: [0.1, wide]}}}",
         '13: recipes.2.tune.space.margin.1: must be a number, not "wide"'),
        ("{recipe: triplet, tune: {space: {margin: [0.1, 2.5]}}}",
         "13: recipes.2.tune.space.margin.1: margin must be a number greater than 0 and at most 2, not 2.5"),
        ("{recipe: triplet, tune: {space: {margin: 0.1}}}",
         "13: recipes.2.tune.space.margin: must be a list, not 0.1"),
        ("{recipe: triplet, tune: {space: {margin: [8 tokens]}}}",
         '13: recipes.2.tune.space.margin.0: must be a number, not "8 tokens"'),
        ("{recipe: triplet, tune: {space: {margin: {low: 0.1, high: 0.5}}}}",
         "13: recipes.2.tune.space.margin: is a range, and a grid has values. "
         "List them, or set tune.search to random or tpe."),
        ("{recipe: triplet, tune: {search: tpe, space: {margin: {low: 0.5, high: 0.5}}}}",
         "13: recipes.2.tune.space.margin: must have a low that is less than its high, not 0.5 and 0.5"),
        ("{recipe: triplet, tune: {search: tpe, space: {margin: {low: 0, high: 0.5, log: true}}}}",
         "13: recipes.2.tune.space.margin: must begin above 0 to be logarithmic, not at 0"),
        ("{recipe: triplet, tune: {search: tpe, space: {margin: {low: 0.1, high: 0.5, logg: true}}}}",
         '13: recipes.2.tune.space.margin.logg: "logg" is not a key here. Did you mean "log"?'),
        ("{recipe: triplet, tune: {search: tpe, space: {margin: {low: 0.1, high: 2.5}}}}",
         "13: recipes.2.tune.space.margin.high: margin must be a number greater than 0 and at most 2, not 2.5"),
        ("{recipe: triplet, tune: {search: bayes}}",
         '13: recipes.2.tune.search: must be "grid", "random" or "tpe", not "bayes"'),
        ("{recipe: triplet, tune: {trials: 0}}", "13: recipes.2.tune.trials: must be greater than 0, not 0"),
        ("{recipe: triplet, tune: {patience: 0}}", "13: recipes.2.tune.patience: must be greater than 0, not 0"),
        ("{recipe: triplet, tune: {device_seconds: 0}}",
         "13: recipes.2.tune.device_seconds: must be greater than 0, not 0"),
        ("{recipe: triplet, tune: {training: [epochs]}}",
         '13: recipes.2.tune.training.0: must be "learning_rate" or "batch_size", not "epochs"'),
        ("{recipe: triplet, tune: {training: [batch_size, batch_size]}}",
         "13: recipes.2.tune.training: has batch_size twice. Remove one."),
        ("{recipe: arm-adaptive, tune: {space: {training.learning_rte: [1.0e-4]}}}",
         "13: recipes.2.tune: arm-adaptive is parameter-free: there is nothing to tune. "
         'Remove "tune", or search how it is trained: tune: {training: [learning_rate]}.'),
        ("{recipe: arm-adaptive, tune: {training: [batch_size], space: {training.learning_rte: [1.0e-4]}}}",
         '13: recipes.2.tune.space.training.learning_rte: "training.learning_rte" is not a knob of arm-adaptive. '
         'Did you mean "training.learning_rate"?'),
        ("{recipe: arm-adaptive, tune: {space: {training.learning_rate: [1.0e-4, 0]}}}",
         "13: recipes.2.tune.space.training.learning_rate.1: must be greater than 0, not 0"),
        ("{recipe: arm-adaptive, tune: {search: tpe, space: {training.learning_rate: {low: 0, high: 1}}}}",
         "13: recipes.2.tune.space.training.learning_rate.low: must be greater than 0, not 0"),
        ("{recipe: arm-adaptive, tune: {space: {training.batch_size: [8, 8.5]}}}",
         '13: recipes.2.tune.space.training.batch_size.1: must be a whole number, or such as "8192 tokens", not 8.5'),
        ("{recipe: arm-adaptive, tune: {space: {training.batch_size: [0 tokens]}}}",
         "13: recipes.2.tune.space.training.batch_size.0: must be greater than 0, not 0"),
        ("{recipe: arm-adaptive, tune: {search: tpe, space: {training.batch_size: {low: 8, high: 64}}}}",
         "13: recipes.2.tune.space.training.batch_size: is a range, and the size of a batch is one of some values. "
         "List them: [32, 64]."),
        ("{recipe: arm-adaptive, training: {batch_size: 8}, tune: {training: [batch_size]}}",
         "13: recipes.2.training.batch_size: is fixed here and tuned in the same row. Remove it, or the knob."),
        ("{recipe: triplet, loss: {margin: 0.2}, tune: {training: [batch_size], space: {margin: [0.1]}}}",
         '13: recipes.2.loss.margin: is fixed here and tuned in the same row. Remove it, or "tune".'),
        ("{recipe: weighted-sum, loss: {terms: infonce}, tune: {search: tpe}}",
         "13: recipes.2.tune: weighted-sum has the knobs that its row names, and none is named. "
         "Name one: tune: {space: {infonce.temperature: [0.02, 0.05]}}."),
        ("{recipe: triplet, loss: {in_batch: columns}, tune: {}}",
         '13: recipes.2.loss: in_batch must be one of null, "rows", not "columns"'),
        ("{recipe: triplet, tune: {scheduler: hyperband}}",
         '13: recipes.2.tune.scheduler: must be "asha", not "hyperband"'),
        ("{recipe: triplet, tune: {reduction_factor: 1}}",
         "13: recipes.2.tune.reduction_factor: must be at least 2, not 1"),
        ("{recipe: triplet, tune: {scheduler: asha}, training: {validations: 1}}",
         "13: recipes.2.tune.scheduler: asha compares runs on their way, and training.validations is 1. "
         "Set training.validations to 2 or more, or scheduler to null."),
        ("{recipe: arm-adaptive, training: {batch_size: 0}}",
         "13: recipes.2.training.batch_size: must be greater than 0, not 0"),
        ("{recipe: arm-adaptive, training: {epoch: 1}}",
         '13: recipes.2.training.epoch: "epoch" is not a key here. Did you mean "epochs"?'),
        ("{recipe: arm-adaptive, training: 3}", "13: recipes.2.training: must be a mapping of keys, not 3"),
    ],
)  # fmt: skip
def test_rows_that_are_refused(row, message):
    assert refusal(changed("  - arm-adaptive", f"  - {row}")) == f"x.yaml:{message}"


def test_no_rows_leave_the_untrained_encoder():
    assert experiment(MINIMAL.replace("[arm-adaptive]", "[]")).recipes == ()


def test_rows_are_a_list():
    assert refusal(MINIMAL.replace("[arm-adaptive]", "arm-adaptive")) == (
        'x.yaml:4: recipes: must be a list, not "arm-adaptive"'
    )


def test_ablations_of_a_parameter_free_recipe_are_allowed():
    row = "  - {recipe: arm-adaptive, loss: {in_batch: null, error: soft, detach_target: true}}"
    assert experiment(changed("  - arm-adaptive", row)).recipes[2].loss == {
        "in_batch": None,
        "error": "soft",
        "detach_target": True,
    }


# Several errors


def test_the_first_in_the_file_is_told_and_the_others_are_counted():
    text = changed("  epochs: 2", "  epochs: 0").replace("seed: 13", "seed: x").replace("0.1", "7")
    assert refusal(text) == 'x.yaml:2: seed: must be a whole number, not "x" (and 2 more)'
    text = changed("  - arm-adaptive", "  - nothing").replace("arm-distributed", "triplet")
    assert refusal(text) == (
        f'x.yaml:13: recipes.2: "nothing" is not a recipe here (and 1 more). Recipes here: {", ".join(RECIPES)}.'
    )


def test_a_misspelt_key_is_told_before_the_one_it_leaves_missing():
    text = changed("encoder: {model:", "encoder: {modle:")
    assert refusal(text) == ('x.yaml:4: encoder.modle: "modle" is not a key here (and 1 more). Did you mean "model"?')


# Overrides


def test_overrides_are_yaml_values_at_a_path():
    base = experiment(QUICKSTART)
    over = experiment(
        QUICKSTART,
        "training.epochs=5",
        "training.epochs=3",
        "training.learning_rate=1e-6",
        "training.clip=null",
        "encoder.layers=[1, 3]",
        "recipes.1.tune.scheduler=asha",
        "recipes.2.loss.in_batch=columns",
        "recipes.3={recipe: triplet, loss: {margin: 0.2}}",
        "scaling.workers=2",
        "tracking.uri=http://tracker:5000",
    )
    assert over.training == TrainingSettings(epochs=3, learning_rate=1e-6, clip=None)
    assert over.encoder.layers == (1, 3)
    assert over.recipes[1].tune.scheduler == "asha"
    assert (over.recipes[2].recipe, over.recipes[2].loss) == ("arm-adaptive", {"in_batch": "columns"})
    assert (over.recipes[3].name, over.recipes[3].loss) == ("triplet", {"margin": 0.2})
    assert over.scaling.workers == 2
    assert over.tracking.uri == "http://tracker:5000"
    assert over.recipes[0] == base.recipes[0]
    assert over.collection == base.collection


def test_an_override_makes_the_sections_it_needs():
    over = experiment(MINIMAL, "recipes.0=static-margin", "recipes.0.tune.scheduler=asha", "training.validations=2")
    assert over.recipes[0].tune.scheduler == "asha"
    assert over.training.validations == 2


def test_an_override_below_an_alias_leaves_the_others_alone():
    text = MINIMAL.replace(
        "[arm-adaptive]",
        "\n  - {recipe: arm-adaptive, loss: &loss {error: l1}}\n  - {recipe: arm-distributed, loss: *loss}",
    )
    over = experiment(text, "recipes.0.loss.error=soft")
    assert [row.loss["error"] for row in over.recipes] == ["soft", "l1"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.batch_size=-3", "--set training.batch_size: must be greater than 0, not -3"),
        ("training.bathc=3", '--set training.bathc: "bathc" is not a key here. Did you mean "batch_size"?'),
        ("trainin.epochs=3", '--set trainin.epochs: "trainin" is not a key here. Did you mean "training"?'),
        ("encoder.layers=[2, x]", '--set encoder.layers.1: must be a whole number, not "x"'),
        ("recipes.3.loss.in_batch=rows",
         '--set recipes.3.loss.in_batch: target "distributed" and in_batch "rows" exclude each other: '
         "distributed targets span the batch already"),
        ("recipes.2=arm-adaptve",
         '--set recipes.2.recipe: "arm-adaptve" is not a recipe here. Did you mean "arm-adaptive"?'),
        ("recipes.9=infonce", '--set recipes.9: "9" is not an item of the list. Items here: 0 to 3.'),
        ("recipes.first.name=a", '--set recipes.first.name: "first" is not an item of the list. Items here: 0 to 3.'),
        ("seed.x=1", "--set seed.x: seed is 13, a value with no keys in it"),
        ("training.epochs", "--set training.epochs: is not KEY=VALUE. Write, for example, --set training.epochs=3."),
        ("=3", "--set : is not KEY=VALUE. Write, for example, --set training.epochs=3."),
        ("training..epochs=3",
         "--set training..epochs: is not KEY=VALUE. Write, for example, --set training.epochs=3."),
        ("encoder.layers=[1", "--set encoder.layers: is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("training={epochs: 1, epochs: 2}", "--set training: epochs: has a value already, in line 1. Remove one."),
    ],
)  # fmt: skip
def test_overrides_that_are_refused(override, message):
    assert refusal(QUICKSTART, override) == message


KEYS = """name seed collection collection.path encoder.layers encoder.layers.1 encoder.dropout training training.epochs
training.clip training.validations recipes recipes.0 recipes.2 recipes.9 recipes.0.recipe recipes.2.name recipes.2.loss
recipes.2.loss.target recipes.2.loss.in_batch recipes.1.loss.temperature recipes.2.training recipes.2.training.clip
teacher teacher.encoder teacher.scores.space teacher.cross_encoder.model
recipes.1.tune recipes.1.tune.space recipes.1.tune.space.temperature recipes.1.tune.space.target
recipes.1.tune.scheduler recipes.1.tune.search recipes.1.tune.training recipes.1.tune.space.training.batch_size
evaluation evaluation.measures evaluation.measures.0 evaluation.depth
scaling.gpus_per_worker tracking tracking.experiment no.such.key"""
VALUES = """null|1|-1|0.5|.inf|.nan|1e400|[]|{}|[1]|[1, 2, 2]|[a]|[[]]|{a: 1}|{1: 2}|{recipe: infonce}|[triplet]
infonce|asha|tpe|8 tokens|[8 tokens]|[batch_size]|{low: 1, high: 2}|{low: 2, high: a}
rows|margin-mse|{encoder: {model: m}}
2024-01-31|0b_|!!int x|!!bool x|~|=|<<||''|nDCG@10|[nDCG@x]|[AP]
*a|&a|&a [*a]|!!set {a}|!!binary aaa|{a|? a|b|{[1]: 2}|true"""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    overrides=st.lists(
        st.tuples(st.sampled_from(KEYS.split()), st.sampled_from(VALUES.replace("\n", "|").split("|"))),
        min_size=1,
        max_size=3,
    )
)
def test_whatever_is_set_either_loads_or_is_told_in_one_line(overrides):
    try:
        loaded = experiment(QUICKSTART, *(f"{key}={value}" for key, value in overrides))
    except UserError as refused:
        message = str(refused)
        assert "\n" not in message
        assert message.startswith(("x.yaml:", "--set "))
    else:
        assert isinstance(loaded, Experiment)


# What is wrong with a teacher

ENCODER = "{encoder: {model: m}}"
CROSS = "{cross_encoder: {model: m}}"


@pytest.mark.parametrize(
    ("row", "overrides", "message"),
    [
        ("margin-mse", [], "x.yaml:13: recipes.2: margin-mse learns from a teacher, and there is none. "
         'Add a section such as "teacher: {encoder: {model: …}}".'),
        ("embedding-matching", [f"teacher={CROSS}"], "x.yaml:13: recipes.2: embedding-matching needs teacher documents "
         'and teacher queries, which this teacher lacks. Name an encoder, such as "teacher: {encoder: {model: …}}", or '
         "a cross_encoder with scorer: dual."),
        ("{recipe: score-kl, loss: {in_batch: true, temperature: 1}}", [f"teacher={CROSS}"],
         "x.yaml:13: recipes.2: score-kl needs teacher documents and teacher queries, which this teacher lacks. Name "
         'an encoder, such as "teacher: {encoder: {model: …}}".'),
        ("margin-mse", [f"teacher={CROSS}"],
         "x.yaml:13: recipes.2: margin-mse regresses a student's margins of cosines, at most 2 wide, on a "
         "teacher's margins in logit scores. Set encoder.normalize to false, or take another teacher or recipe, "
         "such as score-kl."),
        ("{recipe: score-kl, loss: {temperature: 1}}",
         ["teacher={scores: {path: s, space: probability}}", "encoder.normalize=false"],
         "x.yaml:13: recipes.2: score-kl takes a softmax over a teacher's scores, and these are probabilities, not "
         "logits. Take another teacher."),
        ("margin-mse", ["teacher={}"],
         "--set teacher: names no teacher. Give one of encoder, row, cross_encoder, scores and average."),
        ("margin-mse", [f"teacher={ENCODER}", "teacher.cross_encoder={model: c}"],
         "--set teacher: names encoder and cross_encoder. Give one of encoder, row, cross_encoder, scores and "
         "average."),
        ("margin-mse", ["teacher={scores: {path: s, space: logits}}"],
         '--set teacher.scores.space: must be "logit", "probability", "cosine" or "dot", not "logits". Did '
         'you mean "logit"?'),
        ("margin-mse", ["teacher={scores: {path: s}}"], "--set teacher.scores.space: is missing. Add it."),
    ],
)  # fmt: skip
def test_teachers_that_are_refused(row, overrides, message):
    assert refusal(QUICKSTART.replace("- arm-adaptive", f"- {row}"), *overrides) == message


@pytest.mark.parametrize(
    ("row", "overrides"),
    [
        ("margin-mse", [f"teacher={ENCODER}"]),
        ("margin-mse", [f"teacher={CROSS}", "encoder.normalize=false"]),
        ("score-kl", [f"teacher={CROSS}"]),
        ("{recipe: score-kl, loss: {in_batch: true}, tune: {}}", [f"teacher={ENCODER}"]),
        ("embedding-matching", [f"teacher={ENCODER}"]),
        ("arm-adaptive", [f"teacher={ENCODER}"]),
    ],
)
def test_teachers_that_are_taken(row, overrides):
    loaded = experiment(QUICKSTART.replace("- arm-adaptive", f"- {row}"), *overrides)
    assert loaded.teacher is not None
    assert experiment(resolved(loaded)) == loaded


# The round trip

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True).filter(lambda name: name != "untrained")
texts = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
counts = st.integers(1, 2**31)
shares = st.floats(0, 1, exclude_max=True)
positive = st.floats(min_value=0, exclude_min=True, max_value=1e300)
trainings = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": counts | counts.map("{} tokens".format),
        "examples": st.sampled_from(["judgments", "queries"]),
        "epochs": counts,
        "learning_rate": positive,
        "warmup": shares,
        "schedule": st.sampled_from(["linear", "constant"]),
        "weight_decay": st.floats(0, 1e9),
        "clip": st.none() | positive,
        "precision": st.sampled_from(["bf16", "fp32"]),
        "token_budget": counts,
        "activation_tokens": counts,
        "validations": st.integers(2, 99),
        "checkpoint_seconds": st.floats(0, 1e9),
    },
)


def tunes(knob: str, values: st.SearchStrategy[float]) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries(
        {},
        optional={
            "scheduler": st.sampled_from([None, "asha"]),
            "reduction_factor": st.integers(2, 9),
            "space": st.just({}) | st.fixed_dictionaries({knob: st.lists(values, min_size=1, max_size=4, unique=True)}),
            "trials": st.none() | counts,
            "patience": st.none() | counts,
            "device_seconds": st.none() | positive,
            "search": st.sampled_from(["grid", "random", "tpe"]),
            "training": st.sampled_from([[], ["learning_rate"], ["batch_size", "learning_rate"]]),
        },
    )


rows = st.one_of(
    st.sampled_from(["arm-adaptive", "arm-distributed", "infonce"]),
    st.fixed_dictionaries(
        {"recipe": st.just("arm-adaptive")},
        optional={
            "training": trainings,
            "loss": st.fixed_dictionaries(
                {},
                optional={"in_batch": st.sampled_from([None, "rows", "columns"]), "detach_target": st.booleans()},
            ),
        },
    ),
    st.fixed_dictionaries({"recipe": st.just("static-margin"), "tune": tunes("target", st.floats(-1, 1))}),
    st.fixed_dictionaries({"recipe": st.just("infonce"), "tune": tunes("temperature", positive)}),
    st.fixed_dictionaries(
        {"recipe": st.just("triplet"), "loss": st.fixed_dictionaries({"margin": st.floats(0.01, 2) | st.just(1)})}
    ),
)
experiments = st.fixed_dictionaries(
    {
        "name": names,
        "collection": st.fixed_dictionaries(
            {"path": texts}, optional={"validation": st.floats(0.001, 0.999), "validation_pool": st.none() | counts}
        ),
        "encoder": st.fixed_dictionaries(
            {"model": texts},
            optional={
                "layers": st.none() | st.sets(st.integers(0, 99), min_size=1).map(sorted),
                "pooling": st.sampled_from(["cls", "mean", "pooler"]),
                "normalize": st.booleans(),
                "dropout": shares,
            },
        ),
        "recipes": st.lists(st.tuples(names, rows), min_size=1, max_size=4, unique_by=lambda row: row[0]).map(
            lambda named: [{**({"recipe": row} if isinstance(row, str) else row), "name": name} for name, row in named]
        ),
    },
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "training": trainings,
        "evaluation": st.fixed_dictionaries({"measures": st.sampled_from([["AP"], ["nDCG@3", "RBP(p=0.8)"]])}),
        "scaling": st.fixed_dictionaries({"gpus_per_worker": st.sampled_from([0, 0.25, 1, 2.0])}),
        "tracking": st.fixed_dictionaries({}, optional={"uri": texts, "experiment": st.none() | texts}),
        "prices": st.none()
        | st.fixed_dictionaries({"cpu": st.floats(0, 1e9)}, optional={"cuda": st.floats(0, 1e9), "currency": texts}),
        "store": texts,
    },
)


@settings(max_examples=60, deadline=None)
@given(value=experiments)
def test_resolved_loads_back_to_an_equal_experiment(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("round") / "x.yaml"
    first = Experiment.model_validate(value)
    path.write_text(resolved(first), encoding="utf-8")
    again = load(path)
    assert again == first
    assert resolved(again) == resolved(first)


def test_texts_that_look_like_numbers_stay_texts():
    text = MINIMAL.replace("path: c", "path: '1e5'").replace("model: m", "model: '0x10'")
    again = experiment(resolved(experiment(text)))
    assert (again.collection.path, again.encoder.model) == ("1e5", "0x10")


def test_a_date_is_a_text():
    assert experiment(MINIMAL.replace("name: small", "name: 2024-01-31")).name == "2024-01-31"


def test_importing_the_configuration_brings_nothing_heavy():
    program = "import json, sys, orchestrator.config; print(json.dumps(list(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "ray", "transformers", "mlflow", "faiss", "losses", "ir_measures", "bm25s", "datasets"}
    assert not heavy & set(json.loads(printed.stdout))
