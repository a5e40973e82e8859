"""A mistake in params.yaml is one sentence: the key, what it got, what it wants."""

import math
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from stages import convert
from ups_data.errors import UpsDataError
from ups_data.knobs import read_tree
from ups_data.params import load_params

ROOT = Path(__file__).parents[1]
PARAMS = ROOT / "params.yaml"


def broken(tmp_path, key, value):
    tree = yaml.safe_load(PARAMS.read_text())
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        node = node[part]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def edited(tmp_path, old, new):
    """The project's params.yaml with the first `old` replaced, as text."""
    text = PARAMS.read_text()
    assert old in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


def refusal(path, overrides=()):
    with pytest.raises(UpsDataError) as caught:
        load_params(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_projects_own_params_are_valid():
    assert {"burgers1d", "darcy2d_mesh"} <= set(load_params(PARAMS).datasets)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("datasets.burgers1d.train.stpes", 5, ["datasets.burgers1d.train.stpes", "unknown key"]),
        ("datasets.burgers1d.train.steps", "many", ["datasets.burgers1d.train.steps", "'many'", "integer"]),
        ("datasets.burgers1d.train.steps", 1.5, ["datasets.burgers1d.train.steps", "1.5", "integer"]),
        ("datasets.burgers1d.train.seed", 1 << 32, ["datasets.burgers1d.train.seed", "less than 4294967296"]),
        ("datasets.burgers1d.train.steps", KeyError, ["datasets.burgers1d.train.steps", "missing"]),
        ("datasets.burgers1d.train.steps", {"a": 1}, ["datasets.burgers1d.train.steps: got a section", "integer"]),
        ("datasets.burgers1d.evaluate.given", [10, 10], ["datasets.burgers1d.evaluate.given", "same number twice"]),
        ("datasets.burgers1d.splits.train", 0.9, ["datasets.burgers1d.splits: train + val + test must be 1, got 1.1"]),
        ("datasets.burgers1d.splits.test", -0.1, ["datasets.burgers1d.splits.test", "-0.1"]),
        ("datasets.burgers1d.package.name", "Burgers v1", ["package.name", "'Burgers v1'"]),
        ("datasets.burgers1d.package.suffix", "tar.gz", ["datasets.burgers1d.package", "pcodec", "upk"]),
        ("datasets.burgers1d.store", "zarr", ["datasets.burgers1d", "grid", "h5"]),
        ("datasets.darcy2d_mesh.view.space_stride", 4, ["view.space_stride of the kind mesh is 1, got 4"]),
        ("simulate.burgers1d.values", [0.1, -1.0], ["simulate.burgers1d.values.1", "-1.0", "greater than 0"]),
        ("simulate.burgers1d.solver", "magic", ["simulate.burgers1d", "magic"]),
        ("simulate.burgers1d.sample", 3, ["simulate.burgers1d.sample", "unknown key"]),
    ],
)
def test_a_wrong_knob_is_named(tmp_path, key, value, words):
    said = refusal(broken(tmp_path, key, value))
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("right", "wrong", "key"),
    [
        ("limit: null", "limitt: null", "datasets.burgers1d.convert.limitt"),
        ("shard_gb: 64.0", "shard_gbs: 64.0", "datasets.burgers1d.convert.shard_gbs"),  # nothing is missing: optional
        ("resolution: 1024", "resolutoin: 1024", "simulate.burgers1d.resolutoin"),
        ("limit: null", "limit: null\n      limitt: null", "datasets.burgers1d.convert.limitt"),
    ],
)
def test_a_misspelt_knob_is_named_with_the_right_one(tmp_path, right, wrong, key):
    name = right.partition(":")[0]
    assert f"{key}: unknown key (did you mean '{name}'?)" in refusal(edited(tmp_path, right, wrong))


def test_an_unknown_key_is_not_said_to_mean_itself():
    said = refusal(PARAMS, ["datasets.burgers1d.train.equations=several"])
    assert "datasets.burgers1d.train.equations: unknown key; take it out" in said


@pytest.mark.parametrize("section", ["simulate", "datasets"])
@pytest.mark.parametrize("name", ["a/b", "a b", "..", "", "a.b", 1])
def test_a_name_that_cannot_name_files_is_refused(tmp_path, section, name):
    tree = yaml.safe_load(PARAMS.read_text())
    tree[section][name] = tree[section].pop("burgers1d")
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert f"{section}: got the name {name!r}, expected text of letters, digits, _ and -" in refusal(path)


def test_two_datasets_with_one_package_name_are_refused(tmp_path):
    said = refusal(broken(tmp_path, "datasets.advection1d.package.name", "burgers1d_subset_v1"))
    assert "datasets: advection1d and burgers1d have the same package.name, burgers1d_subset_v1" in said


def test_two_solvers_that_would_remove_each_others_files_are_refused(tmp_path):
    said = refusal(broken(tmp_path, "simulate.advection1d.folder", "./data/raw//1D/Burgers/Test/../Train/"))
    assert "simulate: advection1d and burgers1d have the same folder, data/raw/1D/Burgers/Train" in said


# --- the file as text ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.0e-3", ".001", "+1e-03"])
def test_a_float_is_read_in_every_spelling(tmp_path, number):
    path = edited(tmp_path, "learning_rate: 4.0e-3", f"learning_rate: {number}")
    assert load_params(path).datasets["burgers1d"].autoencoder.learning_rate == 0.001
    params = load_params(PARAMS, [f"datasets.burgers1d.train.learning_rate={number}"])
    assert params.datasets["burgers1d"].train.learning_rate == 0.001


SCALARS = """
1e-3 1E5 1e3 +1e3 .5 -.5 1. 1.e3 4.0e-3 12e03 1_0.5 .inf -.INF 0 -12 +12 1_000 010 08 0o10 -0o7 0x1F 0b11 1:30 1:30:15.5
yes No on OFF y n true False TRUE null ~ Null 2001-01-01 1e e3 1.2.3 . + 0x _1 inf '1e3' "1" 'yes'
"""


@pytest.mark.parametrize("text", SCALARS.split())
def test_a_value_is_what_dvc_reads(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(f"knob: {text}\n{text}: knob\n")
    ours, theirs = read_tree(path), YAML(typ="safe").load(path)
    assert ours == theirs and [*map(type, ours)] == [*map(type, theirs)]
    assert type(ours["knob"]) is type(theirs["knob"])


def test_not_a_number_is_what_dvc_reads(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("knob: .nan\n")
    assert math.isnan(read_tree(path)["knob"]) and math.isnan(YAML(typ="safe").load(path)["knob"])


@pytest.mark.parametrize("path", [PARAMS, *sorted((ROOT / "configs").glob("*.yaml"))], ids=lambda path: path.name)
def test_the_projects_files_are_what_dvc_reads(path):
    assert read_tree(path) == YAML(typ="safe").load(path)
    assert load_params(path).datasets


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    path = edited(tmp_path, "      limit: null", "      limit: 1\n      limit: null")
    line = path.read_text().splitlines().index("      limit: 1") + 2
    said = refusal(path)
    assert said.startswith(f"{path}, line {line}, column 7: the key datasets.burgers1d.convert.limit is given twice")
    assert "the key given is given twice" in refusal(PARAMS, ["datasets.burgers1d.evaluate={given: [1], given: [2]}"])


def test_a_merged_key_may_be_given_again(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: &a {x: 1, y: 1}\nb: &b\n  <<: *a\n  x: 2\nc: {<<: *b, x: 3}\n")
    assert read_tree(path) == {"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}, "c": {"x": 3, "y": 1}}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("sync: {a: 1\ndatasets: 2\n", ", line 2, column "),
        ("sync: 1\ndatasets: a: b\n", ", line 2, column 12: "),
        ("sync: 1\n\tdatasets: 2\n", ", line 2, column 1: "),
        ("sync: *there\n", ", line 1, column 7: "),
        ("sync: 2024-13-45\n", " is not valid YAML: "),
        ("sync: \a\n", " is not valid YAML: "),
    ],
)
def test_a_mistake_of_syntax_is_one_sentence_with_its_place(tmp_path, text, place):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    said = refusal(path)
    assert said.startswith(f"{path}{place}")
    assert "unicode string" not in said and "^" not in said


# --- one knob on the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("datasets.burgers1d.train.stpes=1", "did you mean 'steps'"),
        ("datasets.burger1d.train.steps=1", "did you mean 'burgers1d'"),
        ("datasets.burgers1d.train.steps", "KEY=VALUE"),
        ("datasets.burgers1d.train.steps=0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_override_is_named(override, words):
    with pytest.raises(UpsDataError, match=words):
        load_params(PARAMS, [override])


def test_an_override_replaces_one_knob():
    assert load_params(PARAMS, ["datasets.burgers1d.train.steps=3"]).datasets["burgers1d"].train.steps == 3


def test_a_stage_says_the_sentence_and_exits_with_1(tmp_path, capsys):
    path = broken(tmp_path, "datasets.burgers1d.splits.train", 0.9)
    assert convert.main(["burgers1d", "--params", str(path)]) == 1
    printed = capsys.readouterr()
    assert "must be 1, got 1.1" in printed.err and "Traceback" not in printed.err


def test_an_unknown_task_lists_the_known_ones(capsys):
    assert convert.main(["burger1d", "--params", str(PARAMS)]) == 1
    assert "did you mean 'burgers1d'" in capsys.readouterr().err
