"""Burgers and advection in one dataset: a parameter that an equation does not have is NaN, and nowhere a number."""

from __future__ import annotations

import csv
import json
import math
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import yaml

from bench import full_size
from stages import autoencoder, baseline, convert, evaluate, latents, predict, train
from ups_data import cards
from ups_data.conversion.grid import convert_grid
from ups_data.datasets import GridDataset
from ups_data.errors import UpsDataError
from ups_data.evaluation import leaderboard
from ups_data.files import read_json
from ups_data.gallery import exhibit, looks
from ups_data.inspection import inspect
from ups_data.labelled import label
from ups_data.models.operator import Conditioning, check_conditioning, conditioning_facts
from ups_data.params import Splits, View, load_params
from ups_data.simulate import advection, burgers, initial_conditions
from ups_data.stores.grid import GridReader
from ups_data.training.baseline import grid_problem

from .raw import convert_knobs, line_values, write_one_array
from .small_data import CPU
from .test_convert_kills import digests
from .test_operator import fit, rotating_waves

ROOT = Path(__file__).parents[1]
TASK = "burgers_advection1d"
SPLITS = Splits(protocol="grouped", seed=0, train=0.6, val=0.2, test=0.2)
NAMES = ["advection_speed", "viscosity"]
SOLS = "*/Train/1D_*_Sols_*.hdf5"
SPEEDS, VISCOSITY, STARTS = (0.5, 1.0), 0.1, 10
NAN = math.nan


def write_raw(root: Path) -> Path:
    """The official folders: 10 states under one viscosity and two speeds, 9 frames of 64 points, really solved."""
    x, times = initial_conditions.cell_centres(64), 0.01 * np.arange(9)
    functions = initial_conditions.draw(0, range(STARTS))
    start = initial_conditions.evaluate(functions, x).astype(np.float32)
    path = root / "1D/Burgers/Train" / f"1D_Burgers_Sols_Nu{VISCOSITY}.hdf5"
    write_one_array(path, burgers.solve(start, VISCOSITY, times).numpy(), {"Nu": VISCOSITY})
    for speed in SPEEDS:
        path = root / "1D/Advection/Train" / f"1D_Advection_Sols_beta{speed}.hdf5"
        write_one_array(path, advection.solve(functions, speed, x, times, "float32"), {"beta": speed})
    return root


def knobs_of(root: Path, equations: str = "several"):
    return convert_knobs(root, SOLS, folder="1D", equations=equations)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def data(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    convert_grid(TASK, knobs_of(raw), SPLITS, out, workers=1)
    return out


def readers(folder):
    return {split: GridReader(folder / f"{TASK}_{split}.h5") for split in ("train", "val", "test")}


# --- the data ------------------------------------------------------------------------------------


def test_a_sample_has_the_parameters_of_its_equation_and_nan_in_the_others(raw, data):
    for reader in readers(data).values():
        assert reader.parameter_names == NAMES
        files = [file["name"] for file in reader.manifest["source"]["files"]]
        for i in range(len(reader)):
            with h5py.File(raw / files[reader.source_file[i]]) as file:
                known = [file.attrs.get("beta", NAN), file.attrs.get("Nu", NAN)]
                np.testing.assert_array_equal(reader.parameters[i], known)
                np.testing.assert_array_equal(reader.data[i, ..., 0], file["tensor"][reader.source_row[i]])


def test_what_both_equations_start_from_stands_in_one_split(data):
    homes = {}
    for split, reader in readers(data).items():
        assert len(reader) == 3 * len(set(reader.groups)), "each state under one viscosity and two speeds"
        for group in reader.groups:
            assert homes.setdefault(group, split) == split
    assert len(homes) == STARTS


def test_the_manifest_is_json_of_numbers_that_says_how_many_samples_lack_a_parameter(data):
    manifest = read_json(data / f"{TASK}_manifest.json")
    json.dumps(manifest, allow_nan=False)
    assert manifest["parameters"] == {
        "advection_speed": {"raw_name": "beta", "values": [0.5, 1.0], "missing": 10},
        "viscosity": {"raw_name": "Nu", "values": [0.1], "missing": 20},
    }
    channel = manifest["statistics"]["channels"]["u"]
    assert channel["mean"] == pytest.approx(readers(data)["train"].data.mean(dtype=np.float64), abs=1e-6)


def test_the_same_files_make_the_same_bytes(raw, data, tmp_path):
    convert_grid(TASK, knobs_of(raw), SPLITS, tmp_path, workers=2)
    assert digests(tmp_path) == digests(data)


def test_files_of_one_equation_make_the_same_bytes_with_the_knob(raw, tmp_path):
    for equations in ("one", "several"):
        knobs = convert_knobs(raw / "1D/Advection/Train", equations=equations)
        convert_grid(TASK, knobs, SPLITS, tmp_path / equations, workers=1)
    assert digests(tmp_path / "one") == digests(tmp_path / "several")


def test_without_the_knob_two_equations_are_refused_and_the_sentence_names_it(raw, tmp_path, capsys):
    with pytest.raises(UpsDataError, match=r"parameters is .*viscosity.* set the knob convert.equations to several"):
        convert_grid(TASK, knobs_of(raw, "one"), SPLITS, tmp_path)
    flags = ["--pattern", str(raw / "1D" / SOLS), "--out", str(tmp_path / "x_train.h5")]
    assert convert.main(flags) == 1
    assert "convert files that differ as datasets of their own" in capsys.readouterr().err


def shift_x(path):
    with h5py.File(path, "r+") as file:
        file["x-coordinate"][:] = 2 * file["x-coordinate"][:]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: write_one_array(path, line_values(4, frames=9, points=32), {"Nu": 0.1}), "resolution is 32"),
        (lambda path: write_one_array(path, line_values(4, frames=8, points=64), {"Nu": 0.1}), "frames is 8"),
        (shift_x, "its x differs from that of 1D_Advection_Sols_beta0.5.hdf5"),
        (lambda path: write_one_array(path, line_values(4, frames=9, points=64), {"Nu": NAN}), "nan in the attribute"),
    ],
)
def test_all_but_the_parameters_must_agree(tmp_path, spoil, words):
    write_raw(tmp_path)
    spoil(tmp_path / "1D/Burgers/Train" / f"1D_Burgers_Sols_Nu{VISCOSITY}.hdf5")
    with pytest.raises(UpsDataError, match=words):
        convert_grid(TASK, knobs_of(tmp_path), SPLITS, tmp_path / "out", workers=1)


def test_a_parameter_that_is_no_number_in_the_file_is_refused(tmp_path):
    write_one_array(tmp_path / "lines.hdf5", line_values(10), {"Nu": NAN})
    with pytest.raises(UpsDataError, match=r"lines.hdf5: viscosity is nan in sample 0, expected a number"):
        convert_grid(TASK, convert_knobs(tmp_path), SPLITS, tmp_path / "out", workers=1)


def test_equal_files_are_copies_only_of_one_equation(tmp_path):
    for name in ("1D_Burgers_Sols_Nu1.0", "1D_Advection_Sols_beta1.0"):
        write_one_array(tmp_path / f"{name}.hdf5", line_values(10))
    assert len({path.read_bytes() for path in tmp_path.glob("*.hdf5")}) == 1
    manifest = convert_grid(TASK, convert_knobs(tmp_path, equations="several"), SPLITS, tmp_path / "out", workers=1)
    assert "twins" not in manifest and len(manifest["source"]["files"]) == 2


def test_torch_and_xarray_give_the_parameters(data):
    items = GridDataset(data / f"{TASK}_test.h5")
    parameters = torch.stack([items[i]["parameters"] for i in range(len(items))])
    assert items.parameter_names == NAMES
    assert (parameters.isnan().sum(dim=1) == 1).all() and parameters.isnan().any(dim=0).all()
    labelled = label(data / f"{TASK}_test.h5", "grid")
    fast = labelled.fields.isel(sample=labelled.advection_speed.values == 1.0)
    assert fast.sizes["sample"] == 2 and np.isnan(fast.viscosity.values).all()


# --- what is said of them ------------------------------------------------------------------------


def test_what_describes_the_data_leaves_out_what_an_equation_does_not_have(data):
    manifest = read_json(data / f"{TASK}_manifest.json")
    said = inspect(data / f"{TASK}_test.h5").facts["parameters"]
    assert said == "advection_speed 0.5, 1 (beta) in 4 of 6 samples; viscosity 0.1 (Nu) in 2 of 6 samples"
    card = cards.card(cards.part_of(TASK, "1D"), manifest, None, "x_v1", None)
    assert "| `advection_speed` | `beta` | 0.5, 1; 10 samples have none |" in card
    drawn = {part["name"]: part for part in exhibit.parameters(data, TASK, manifest)}
    assert drawn["viscosity"]["facts"] == "1 value, 20 samples have none"
    assert "Samples by viscosity: 0.1: 10" in drawn["viscosity"]["picture"]
    player, _ = looks.look(data, TASK, manifest)
    shown = json.dumps(player)
    for caption in ("advection_speed 0.5", "advection_speed 1", "viscosity 0.1"):
        assert f'"{caption}"' in shown
    assert " nan" not in shown


def test_the_card_knows_the_sample_by_the_folders_of_its_files(data):
    manifest, params = read_json(data / f"{TASK}_manifest.json"), load_params(ROOT / "params.yaml")
    dataset = params.datasets["burgers1d"]
    both = dataset.model_copy(update={"convert": knobs_of(Path("data/raw"))})
    assert cards.origin_of(manifest, both, params, {}) == "Sample"
    assert cards.origin_of(manifest, dataset.model_copy(update={"convert": knobs_of(Path("x"))}), params, {}) is None


def test_a_single_value_makes_a_subset_where_others_do_not_have_the_parameter():
    parameters = np.array([[NAN, 0.1], [0.5, NAN], [1.0, NAN], [NAN, 0.1]])
    found = {name: chosen.tolist() for name, chosen in leaderboard.subsets(parameters, NAMES)}
    assert list(found) == ["all", "advection_speed=0.5", "advection_speed=1", "viscosity=0.1"]
    assert found["viscosity=0.1"] == [True, False, False, True]
    assert [name for name, _ in leaderboard.subsets(np.array([[0.1], [0.1]]), ["viscosity"])] == ["all"]
    assert [name for name, _ in leaderboard.subsets(np.array([[NAN], [NAN]]), ["viscosity"])] == ["all"]


def test_the_bench_scores_by_every_parameter():
    test = SimpleNamespace(parameters=torch.tensor([[NAN, 0.1], [0.5, NAN], [1.0, NAN], [NAN, 0.1]]), names=NAMES)
    row = full_size.Test._summary(test, torch.tensor([1.0, 2.0, 3.0, 5.0]))
    assert row["by_advection_speed"] == {"0.5": 2.0, "1": 3.0} and row["by_viscosity"] == {"0.1": 3.0}
    one = SimpleNamespace(parameters=torch.full((4, 1), 0.1), names=["viscosity"])
    assert set(full_size.Test._summary(one, torch.rand(4))) == {"nrmse", "plus_minus", "median", "trajectories"}


def test_the_bench_simulates_all_that_its_file_names_at_once(tmp_path, monkeypatch, capsys):
    ran, both = [], threading.Barrier(2, timeout=60)

    def run_stage(stage, name, **_):
        if stage == "simulate":
            both.wait()
        ran.append((stage, name))

    monkeypatch.setattr(full_size, "run_stage", run_stage)
    config = ROOT / "configs" / "burgers_advection1d_gpu.yaml"
    assert full_size.main(["--params", str(config), "--folder", str(tmp_path), "--stages", "simulate", "convert"]) == 0
    assert sorted(ran[:2]) == [("simulate", "advection1d"), ("simulate", "burgers1d")]
    assert ran[2:] == [("convert", TASK)]
    assert [json.loads(line)["stage"] for line in capsys.readouterr().out.splitlines()] == ["simulate", "convert"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_is_valid_and_simulates_what_it_converts(path):
    _, dataset = full_size.the_dataset(path, ())
    sections = load_params(path).simulate.values()
    taken = Path(dataset.convert.root, dataset.convert.folder)
    assert all(Path(section.folder).is_relative_to(taken) for section in sections)
    assert (dataset.convert.equations == "several") == (len({section.solver for section in sections}) > 1)


def test_the_knob_is_of_grids_and_may_be_set_where_the_file_does_not_name_it():
    params = load_params(ROOT / "params.yaml", ["datasets.burgers1d.convert.equations=several"])
    assert params.datasets["burgers1d"].convert.equations == "several"
    assert params.datasets["advection1d"].convert.equations == "one"
    with pytest.raises(UpsDataError, match=r"convert.equations of the kind mesh is one"):
        load_params(ROOT / "params.yaml", ["datasets.darcy2d_mesh.convert.equations=several"])
    with pytest.raises(UpsDataError, match=r"datasets.burgers1d.train.equations: unknown key"):
        load_params(ROOT / "params.yaml", ["datasets.burgers1d.train.equations=several"])


# --- the conditioning ----------------------------------------------------------------------------

BOTH = torch.tensor([[0.1, NAN], [10.0, NAN], [NAN, 0.5], [NAN, 0.5]], dtype=torch.float64)


def conditioning(parameters, names):
    torch.manual_seed(0)
    facts = conditioning_facts(parameters, 0.05, names)
    return Conditioning({"conditioning": facts}, 8), facts


def test_without_missing_parameters_shape_weights_and_facts_are_those_of_one_equation():
    torch.manual_seed(0)
    first = torch.nn.Linear(2, 8)
    model, facts = conditioning(torch.tensor([[0.1], [10.0]]), ["viscosity"])
    assert "optional" not in facts and facts["equations"] == [["viscosity"]]
    assert list(model.state_dict()) == ["layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"]
    assert torch.equal(model.layers[0].weight, first.weight)
    seen = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    inputs = (seen.log() - math.log(0.1) / 2 - math.log(10.0) / 2) / math.log(10.0)
    expected = model.layers(torch.cat([inputs, torch.zeros(2, 1)], dim=1).float())
    assert torch.allclose(model(seen, torch.full((2,), 0.05)), expected, atol=1e-6)


def test_a_column_is_standardised_over_the_samples_that_have_it():
    model, facts = conditioning(BOTH, NAMES)
    assert facts["log"] == [1.0, 1.0, 1.0] and facts["optional"] == [0, 1]
    assert facts["mean"][:2] == pytest.approx([0.0, math.log(0.5)], abs=1e-12)
    assert facts["std"][:2] == pytest.approx([math.log(10.0), 1.0])
    assert facts["names"] == NAMES and facts["equations"] == [["advection_speed"], ["viscosity"]]
    json.dumps(facts, allow_nan=False)
    assert model.layers[0].in_features == 5
    assert conditioning(torch.tensor([[-1.0, NAN], [1.0, 2.0]]), NAMES)[1]["log"] == [0.0, 1.0, 1.0]


def test_a_missing_parameter_gives_numbers_and_is_told_from_the_mean_of_the_others():
    model, _ = conditioning(BOTH, NAMES)
    step = torch.full((4,), 0.05)
    made = model(BOTH, step)
    assert made.isfinite().all()
    assert not torch.allclose(made[0], made[2], atol=1e-3)
    mean = torch.tensor([[1.0, NAN], [NAN, NAN], [1.0, 0.5]], dtype=torch.float64)  # the mean of the logarithms
    there, none, both = model(mean, step[:3])
    assert not torch.allclose(there, none, atol=1e-3), "0 where it is missing is not 0 where it is the mean"
    assert not torch.allclose(there, both, atol=1e-3)
    made.sum().backward()
    assert all(weights.grad.isfinite().all() for weights in model.parameters())


def test_samples_of_an_equation_that_no_training_sample_has_are_refused():
    _, one = conditioning(torch.tensor([[0.1, 1.0], [10.0, 2.0]]), NAMES)
    _, both = conditioning(BOTH, NAMES)
    check_conditioning(one, torch.tensor([[0.3, 0.2]]), NAMES, "test")
    check_conditioning(both, BOTH[1:], NAMES, "test")
    with pytest.raises(UpsDataError, match=r"test: some samples have the parameters viscosity, those of train have "):
        check_conditioning(one, torch.tensor([[NAN, 0.2]]), NAMES, "test")
    with pytest.raises(UpsDataError, match=r"advection_speed and viscosity, .* advection_speed or viscosity;"):
        check_conditioning(both, torch.tensor([[0.3, 0.2]]), NAMES, "test")


def test_training_refuses_a_validation_split_with_an_equation_that_train_lacks(data, tmp_path):
    shutil.copy(data / f"{TASK}_train.h5", tmp_path / "train.h5")
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file["parameters"][:] = 1.0
    knobs, view = load_params(ROOT / "params.yaml").datasets["burgers1d"], View(space_stride=1, time_stride=1)
    small = knobs.baseline.model_copy(update={"bundle": 1, "unroll": 1})
    with pytest.raises(UpsDataError, match=r"_val.h5: .* those of train have advection_speed and viscosity"):
        grid_problem(tmp_path / "train.h5", data / f"{TASK}_val.h5", small, view, CPU)
    caches = [rotating_waves(tmp_path / split, 4) for split in ("train", "val")]
    caches[1].parameters[0] = NAN
    with pytest.raises(UpsDataError, match=r"waves: val: some samples have the parameters none, .* have speed;"):
        fit(caches, tmp_path / "state")


# --- from raw files to a rollout -----------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(raw, tmp_path_factory):
    """A folder in which every stage has run on both equations, shortly."""
    folder = tmp_path_factory.mktemp("trained")
    entry = yaml.safe_load((ROOT / "params.yaml").read_text())
    dataset = entry["datasets"]["burgers1d"]
    dataset["convert"] |= knobs_of(raw).model_dump(include={"root", "folder", "pattern", "equations"})
    dataset["splits"] = SPLITS.model_dump()
    dataset["view"] = {"space_stride": 2, "time_stride": 1}
    dataset["autoencoder"] |= {"latent_len": 8, "latent_dim": 4, "width": 16, "depth": 1, "steps": 15, "batch": 16}
    dataset["train"] |= {"width": 16, "depth": 1, "heads": 2, "bundle": 2, "steps": 10, "batch": 4}
    dataset["baseline"] |= {"width": 8, "depth": 2, "bundle": 1, "unroll": 1, "steps": 5, "batch": 4}
    dataset["evaluate"] |= {"given": [2], "pictures": 3}
    entry["datasets"] = {TASK: dataset}
    (folder / "params.yaml").write_text(yaml.safe_dump(entry))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert convert.main([TASK, "-q", "--workers", "1"]) == 0
        for stage in (autoencoder, latents, train, baseline, evaluate):
            assert stage.main([TASK, "-q", "--device", "cpu"]) == 0
    return folder


def test_the_evaluation_tells_the_scores_of_both_equations(trained):
    reports = trained / "reports"
    details = read_json(reports / TASK / "details.json")["parameters"]
    assert {name: [entry["value"] for entry in own] for name, own in details.items()} == {
        "advection_speed": [0.5, 1.0],
        "viscosity": [0.1],
    }
    errors = [entry["operator"] for own in details.values() for entry in own]  # of as many samples each
    assert np.mean(errors) == pytest.approx(read_json(reports / TASK / "metrics.json")["nrmse"], rel=1e-3)
    with open(reports / "leaderboard" / f"{TASK}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["subset"] for row in rows} == {"all", "advection_speed=0.5", "advection_speed=1", "viscosity=0.1"}
    assert all(math.isfinite(float(row["nrmse"])) for row in rows)
    with np.load(reports / TASK / "rollouts.npz") as arrays:
        captions = exhibit.players._captions(dict(arrays))
    assert all(caption.count(",") == 1 and "nan" not in caption for caption in captions)
    assert {caption.split()[0] for caption in captions} == set(NAMES)


def rolled(trained, file, out):
    where = ["--task", TASK, "--models", str(trained / "models"), "--params", str(trained / "params.yaml")]
    return predict.main([str(file), "--out", str(out), *where, "--device", "cpu", "-q"])


def test_a_raw_file_of_either_equation_is_rolled_out(trained, raw, tmp_path):
    made = {}
    for path in sorted(raw.glob(f"1D/{SOLS}")):
        assert rolled(trained, path, tmp_path / "r.h5") == 0
        with h5py.File(tmp_path / "r.h5") as file:
            made[path.name] = file["data"][:]
            name = "viscosity" if "Burgers" in path.name else "advection_speed"
            assert json.loads(file.attrs["parameter_names"]) == [name]
            assert np.isfinite(file["parameters"][:]).all() and np.isfinite(file["error"][:]).all()
    slow, fast, _ = made.values()
    assert all(np.isfinite(fields).all() for fields in made.values()) and not np.array_equal(slow, fast)


@pytest.mark.parametrize(
    ("attributes", "got"), [({}, "none"), ({"Nu": 0.1, "beta": 1.0}, "advection_speed and viscosity")]
)
def test_a_raw_file_of_another_equation_is_refused(trained, tmp_path, capsys, attributes, got):
    path = write_one_array(tmp_path / "lines.hdf5", line_values(4, frames=9, points=64), attributes)
    assert rolled(trained, path, tmp_path / "r.h5") == 1
    said = capsys.readouterr().err
    assert f"got the physical parameters {got}, expected advection_speed or viscosity: the operator of {TASK}" in said
