"""A mistake in params.yaml is one sentence: the key, what it got, what it wants."""

from pathlib import Path

import pytest
import yaml

from stages import convert
from ups_data.errors import UpsDataError
from ups_data.params import load_params

PARAMS = Path(__file__).parents[1] / "params.yaml"


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


def test_the_projects_own_params_are_valid():
    assert {"burgers1d", "darcy2d_mesh"} <= set(load_params(PARAMS).datasets)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("datasets.burgers1d.train.stpes", 5, ["datasets.burgers1d.train.stpes", "unknown key"]),
        ("datasets.burgers1d.train.steps", "many", ["datasets.burgers1d.train.steps", "'many'", "integer"]),
        ("datasets.burgers1d.train.steps", 1.5, ["datasets.burgers1d.train.steps", "1.5", "integer"]),
        ("datasets.burgers1d.train.steps", KeyError, ["datasets.burgers1d.train.steps", "missing"]),
        ("datasets.burgers1d.splits.train", 0.9, ["datasets.burgers1d.splits", "must be 1", "1.1"]),
        ("datasets.burgers1d.splits.test", -0.1, ["datasets.burgers1d.splits.test", "-0.1"]),
        ("datasets.burgers1d.package.name", "Burgers v1", ["package.name", "'Burgers v1'"]),
        ("datasets.burgers1d.package.suffix", "tar.gz", ["datasets.burgers1d.package", "pcodec", "upk"]),
        ("datasets.burgers1d.store", "zarr", ["datasets.burgers1d", "grid", "h5"]),
        ("simulate.burgers1d.values", [0.1, -1.0], ["simulate.burgers1d.values.1", "-1.0", "greater than 0"]),
        ("simulate.burgers1d.solver", "magic", ["simulate.burgers1d", "magic"]),
        ("simulate.burgers1d.sample", 3, ["simulate.burgers1d.sample", "unknown key"]),
    ],
)
def test_a_wrong_knob_is_named(tmp_path, key, value, words):
    with pytest.raises(UpsDataError) as caught:
        load_params(broken(tmp_path, key, value))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


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
