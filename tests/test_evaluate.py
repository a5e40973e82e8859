"""From a cache to a report: the stages train, baseline and evaluate on small data of every kind."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr

from stages import baseline, evaluate, train
from ups_data.errors import UpsDataError
from ups_data.evaluation.advection import advect
from ups_data.evaluation.forecast import Forecast, Forecasts
from ups_data.evaluation.record import write_rollouts
from ups_data.evaluation.report import DEFINITIONS, gather, score, summary
from ups_data.evaluation.spectra import POWERS
from ups_data.files import checksum, read_json
from ups_data.models.autoencoder import save_autoencoder
from ups_data.models.checkpoint import load_model, save_model
from ups_data.params import View
from ups_data.training.caching import cache_split

from . import small_data
from .small_data import CPU, LATENTS, TASKS, VIEWS, WRITERS, frames_of, trained

PARAMS = Path(__file__).parents[1] / "params.yaml"
KINDS = tuple(TASKS)
REPORT = (
    "metrics.json", "details.json", "error_per_step.csv", "spectrum.csv", "spectrum.png", "rollout.png", "rollout.gif",
    "rollouts.npz", "../leaderboard/{task}.csv",
)  # fmt: skip
KNOBS = {
    "train": {"width": 16, "depth": 1, "heads": 2, "history": 1, "bundle": 1, "unroll": "[1]", "steps": 10, "batch": 4},
    "baseline": {"width": 8, "depth": 2, "bundle": 1, "unroll": 1, "steps": 5, "batch": 4},
    "evaluate": {"given": 2, "stride": 1, "points": 1, "pictures": 2},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with data, autoencoders and caches of every kind."""
    root = tmp_path_factory.mktemp("evaluate")
    for kind, task in TASKS.items():
        WRITERS[kind](root / "data")
        model, curve = trained(root / "data", kind, steps=15)
        save_autoencoder(root / "models" / task / "autoencoder.safetensors", model, curve[-1][0])
        for split in ("train", "val", "test"):
            frames = frames_of(root / "data", kind, split)
            cache_split(model, frames, root / "cache" / f"{task}_{split}", LATENTS, device=CPU)
    return root


def flags(root, kind, stage, **changes):
    """The command line of a stage with the small knobs."""
    task = TASKS[kind]
    sets = {f"{stage}.{name}": value for name, value in (KNOBS[stage] | changes).items()}
    sets |= {f"view.{name}": value for name, value in VIEWS[kind].model_dump().items()}
    where = {"data": "data", "models": "models", "reports": "reports", "cache-dir": "cache"}
    if stage != "evaluate":
        where.pop("cache-dir" if stage == "baseline" else "data")
    named = [part for name, folder in where.items() for part in (f"--{name}", str(root / folder))]
    settings = [part for name, value in sets.items() for part in ("--set", f"datasets.{task}.{name}={value}")]
    return [task, "--params", str(PARAMS), "--device", "cpu", "-q", *named, *settings]


@pytest.fixture(scope="module")
def reports(places, tmp_path_factory):
    """The folder of the reports after the three stages ran on every kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))  # .state lies in the current folder
        for kind in KINDS:
            for name, stage in (("train", train), ("baseline", baseline), ("evaluate", evaluate)):
                assert stage.main(flags(places, kind, name)) == 0
        assert not [path for path in Path(".state").rglob("*") if path.is_file()]
    return places / "reports"


def test_every_task_reports_the_same_flat_keys(reports):
    metrics = {kind: read_json(reports / task / "metrics.json") for kind, task in TASKS.items()}
    assert len({tuple(values) for values in metrics.values()}) == 1
    for kind, values in metrics.items():
        missing = {name for name, value in values.items() if value is None}
        assert (
            missing
            == {
                "grid": set(),
                "mesh": {"nrmse_persistence"},
                "particles": {"nrmse_low", "nrmse_mid", "nrmse_high"},
            }[kind]
        )
        assert all(math.isfinite(value) for value in values.values() if value is not None)
        assert values["nrmse_roundtrip"] < min(values["nrmse"], values["nrmse_mean"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_average_to_the_whole(reports, kind):
    metrics = read_json(reports / TASKS[kind] / "metrics.json")
    table = np.genfromtxt(reports / TASKS[kind] / "error_per_step.csv", delimiter=",", names=True)
    for column, key in (("operator", "nrmse"), ("baseline", "nrmse_baseline"), ("roundtrip", "nrmse_roundtrip")):
        assert np.mean(table[column]) == pytest.approx(metrics[key], rel=1e-3)
    assert np.atleast_1d(table["operator"])[-1] == pytest.approx(metrics["nrmse_last_step"], rel=1e-3)


def test_steps_and_times_follow_the_given_frames(reports):
    table = np.genfromtxt(reports / TASKS["grid"] / "error_per_step.csv", delimiter=",", names=True)
    # 9 frames, 0.01 apart, of which every second is seen: 5, of which 2 are given.
    assert table["step"].tolist() == [2, 3, 4]
    assert table["time"] == pytest.approx([0.04, 0.06, 0.08], rel=1e-5)


def test_details_tell_protocol_channels_and_parameters(reports):
    details = read_json(reports / TASKS["grid"] / "details.json")
    metrics = read_json(reports / TASKS["grid"] / "metrics.json")
    assert details["protocol"]["given_frames"] == 2
    assert details["protocol"]["split"] == "test"
    by_speed = details["parameters"]["advection_speed"]
    assert [entry["value"] for entry in by_speed] == [0.5, 1.0]
    assert np.mean([entry["operator"] for entry in by_speed]) == pytest.approx(metrics["nrmse"], rel=1e-3)
    particles = read_json(reports / TASKS["particles"] / "details.json")
    assert list(particles["channels"]) == ["displacement_x", "displacement_y", "velocity_x", "velocity_y"]
    assert particles["channels"]["displacement_x"]["mean"] == pytest.approx(1.0)  # no motion misses all of it


def test_the_pictures_are_small_and_the_report_is_the_same_on_a_second_run(places, reports, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for kind, task in TASKS.items():
        assert (reports / task / "rollout.png").stat().st_size < 250_000
        assert (reports / task / "rollout.gif").stat().st_size < 400_000
        before = {name: checksum(reports / task / name.format(task=task)) for name in REPORT}
        assert evaluate.main(flags(places, kind, "evaluate")) == 0
        assert {name: checksum(reports / task / name.format(task=task)) for name in REPORT} == before


def test_a_stride_sees_the_same_truth_at_fewer_times(places, reports, tmp_path, monkeypatch):
    """The baseline knows one time step and makes the frames between; the others meet the truth where it is."""
    monkeypatch.chdir(tmp_path)
    tables = {}
    for stride in (1, 2):
        changes = flags(places, "grid", "evaluate", given=1, stride=stride)
        changes[changes.index("--reports") + 1] = str(tmp_path / str(stride))
        assert evaluate.main(changes) == 0
        path = tmp_path / str(stride) / TASKS["grid"] / "error_per_step.csv"
        tables[stride] = np.genfromtxt(path, delimiter=",", names=True)
    assert tables[1]["time"] == pytest.approx([0.02, 0.04, 0.06, 0.08], rel=1e-5)
    assert tables[2]["time"] == pytest.approx([0.04, 0.08], rel=1e-5)
    for name in ("baseline", "persistence", "mean", "roundtrip"):
        assert tables[2][name] == pytest.approx(tables[1][name][1::2], rel=1e-4)


@pytest.mark.parametrize(("strides", "told"), [("[1]", True), ("[1,2]", False)])
def test_a_stride_that_was_not_trained_is_told(places, reports, tmp_path, capsys, monkeypatch, strides, told):
    monkeypatch.chdir(tmp_path)
    changes = flags(places, "grid", "evaluate", given=1, stride=2)
    changes[changes.index("--reports") + 1] = str(tmp_path)
    changes.remove("-q")
    assert evaluate.main([*changes, "--set", f"datasets.{TASKS['grid']}.train.strides={strides}"]) == 0
    said = f"{TASKS['grid']}, evaluate.stride 2: its time step is 0.04, the operator was trained at 0.02"
    assert (said in capsys.readouterr().out) == told


def test_every_protocol_has_its_rows_on_the_leaderboard(places, reports, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = flags(places, "grid", "evaluate", given="[2,1]", points="[1,2]")
    changes[changes.index("--reports") + 1] = str(tmp_path)
    assert evaluate.main(changes) == 0
    with open(tmp_path / "leaderboard" / f"{TASKS['grid']}.csv", newline="") as file:
        table = list(csv.DictReader(file))
    protocols = {(row["given"], row["every_point"], row["every_frame"]) for row in table}
    assert protocols == {("2", "2", "2"), ("2", "4", "2"), ("1", "2", "2"), ("1", "4", "2")}
    assert {row["subset"] for row in table} == {"all", "advection_speed=0.5", "advection_speed=1"}
    whole = [row for row in table if row["subset"] == "all" and (row["given"], row["every_point"]) == ("2", "2")]
    metrics = read_json(tmp_path / TASKS["grid"] / "metrics.json")
    for row in whole:
        key = "nrmse" if row["model"] == "operator" else f"nrmse_{row['model']}"
        assert float(row["nrmse"]) == pytest.approx(metrics[key], rel=1e-4)
        assert float(row["low"]) <= float(row["nrmse"]) <= float(row["high"])
    assert metrics == read_json(reports / TASKS["grid"] / "metrics.json")  # the first protocol alone makes them


def test_trainings_note_how_long_they_took(reports):
    noted = read_json(reports / TASKS["grid"] / "minutes.json")
    assert {name: entry["device"] for name, entry in noted.items()} == {"operator": "cpu", "baseline": "cpu"}
    assert not any(entry["resumed"] for entry in noted.values())


@pytest.mark.parametrize(("given", "most"), [(0, 4), (5, 4)])
def test_given_frames_that_leave_nothing_to_do_are_refused(places, reports, capsys, given, most):
    assert evaluate.main(flags(places, "grid", "evaluate", given=given)) == 1
    wanted = "greater than or equal to 1" if given == 0 else f"expected 1 (the frames the models see) to {most}"
    assert wanted in capsys.readouterr().err


def test_a_cache_of_another_autoencoder_is_refused_by_training_and_evaluation(places, reports, tmp_path, capsys):
    root, task = tmp_path / "copy", TASKS["grid"]
    shutil.copytree(places, root)
    other, curve = trained(root / "data", "grid", seed=1, steps=5)
    save_autoencoder(root / "models" / task / "autoencoder.safetensors", other, curve[-1][0])
    for name, stage in (("train", train), ("evaluate", evaluate)):
        assert stage.main(flags(root, "grid", name)) == 1
        assert "is stale: its latents were made with another" in capsys.readouterr().err


def test_an_operator_trained_on_other_latents_is_refused(places, reports, tmp_path, capsys):
    root, task = tmp_path / "copy", TASKS["grid"]
    shutil.copytree(places, root)
    other, curve = trained(root / "data", "grid", seed=1, steps=5)
    save_autoencoder(root / "models" / task / "autoencoder.safetensors", other, curve[-1][0])
    for split in ("train", "val", "test"):
        cache = root / "cache" / f"{task}_{split}"
        cache_split(other, frames_of(root / "data", "grid", split), cache, LATENTS, device=CPU)
    assert evaluate.main(flags(root, "grid", "evaluate")) == 1
    assert "was trained on the latents of another autoencoder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["time_stride", "space_stride"])
def test_another_view_than_that_of_the_models_is_refused(places, reports, capsys, name):
    before = checksum(reports / TASKS["grid"] / "metrics.json")
    assert evaluate.main([*flags(places, "grid", "evaluate"), "--set", f"datasets.{TASKS['grid']}.view.{name}=4"]) == 1
    assert "the autoencoder was trained at the view" in capsys.readouterr().err
    assert checksum(reports / TASKS["grid"] / "metrics.json") == before


@pytest.mark.parametrize(("kind", "name"), [("grid", "advection_speed"), ("particles", "beta")])
def test_a_parameter_of_the_test_split_that_has_no_logarithm_is_refused(places, reports, tmp_path, capsys, kind, name):
    root, task = tmp_path / "copy", TASKS[kind]
    shutil.copytree(places, root)
    if kind == "grid":
        with h5py.File(root / "data" / f"{task}_test.h5", "r+") as file:
            file["parameters"][-1] = 0.0
    else:
        zarr.open(str(root / "data" / f"{task}_test.zarr"), mode="r+")["parameters"][-1] = 0.0
    before = checksum(root / "reports" / task / "metrics.json")
    assert evaluate.main(flags(root, kind, "evaluate")) == 1
    assert f"{name}: got 0, expected a positive number" in capsys.readouterr().err
    assert checksum(root / "reports" / task / "metrics.json") == before


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_were_converted_anew_are_not_compared_with_latents_of_the_old_ones(
    places, reports, tmp_path, capsys, monkeypatch, kind
):
    root = tmp_path / "copy"
    shutil.copytree(places, root)
    monkeypatch.setattr(small_data, "SPLIT", small_data.SPLIT.model_copy(update={"seed": 1}))
    WRITERS[kind](root / "data")
    before = checksum(root / "reports" / TASKS[kind] / "metrics.json")
    assert evaluate.main(flags(root, kind, "evaluate")) == 1
    assert f"{TASKS[kind]} was converted anew since its models were trained" in capsys.readouterr().err
    assert checksum(root / "reports" / TASKS[kind] / "metrics.json") == before


def test_the_test_split_of_a_grid_is_evaluated_where_there_is_no_other(places, reports, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, task = tmp_path / "copy", TASKS["grid"]
    shutil.copytree(places, root)
    for split in ("train", "val"):
        (root / "data" / f"{task}_{split}.h5").unlink()
    assert evaluate.main(flags(root, "grid", "evaluate")) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_of_another_conversion_or_name_is_never_taken_for_the_one_asked_for(
    places, reports, tmp_path, capsys, monkeypatch, kind
):
    monkeypatch.chdir(tmp_path)
    root, task, suffix = tmp_path / "copy", TASKS[kind], "h5" if kind == "grid" else "zarr"
    shutil.copytree(places, root)
    monkeypatch.setattr(small_data, "SPLIT", small_data.SPLIT.model_copy(update={"seed": 1}))
    WRITERS[kind](tmp_path / "other")

    def put(source, split):
        target = root / "data" / f"{task}_{split}.{suffix}"
        if kind == "grid":
            shutil.copy(source, target)
        else:
            shutil.rmtree(target)
            shutil.copytree(source, target)

    put(tmp_path / "other" / f"{task}_test.{suffix}", "test")
    assert evaluate.main(flags(root, kind, "evaluate")) == 1
    assert f"{task}_test.{suffix} is of another conversion" in capsys.readouterr().err
    put(root / "data" / f"{task}_val.{suffix}", "test")
    assert evaluate.main(flags(root, kind, "evaluate")) == 1
    assert f"holds the split 'val' of '{task}', expected 'test'" in capsys.readouterr().err
    put(tmp_path / "other" / f"{task}_val.{suffix}", "val")
    assert baseline.main(flags(root, kind, "baseline")) == 1
    assert f"{task}_val.{suffix} is of another conversion" in capsys.readouterr().err
    with pytest.raises(UpsDataError, match="is of another conversion"):
        frames_of(root / "data", kind, "val")
    cache = root / "cache"
    shutil.rmtree(cache / f"{task}_train")
    shutil.copytree(cache / f"{task}_test", cache / f"{task}_train")
    assert train.main(flags(root, kind, "train")) == 1
    assert f"holds the latents of the split 'test' of '{task}', expected 'train'" in capsys.readouterr().err


def test_a_baseline_trained_at_another_view_is_refused(places, reports, tmp_path, capsys):
    root, task = tmp_path / "copy", TASKS["grid"]
    shutil.copytree(places, root)
    assert baseline.main([*flags(root, "grid", "baseline"), "--set", f"datasets.{task}.view.space_stride=4"]) == 0
    assert evaluate.main(flags(root, "grid", "evaluate")) == 1
    assert "was trained on other data or at another view" in capsys.readouterr().err


def test_errors_at_fewer_points_than_two_or_with_a_seam_are_refused(places, reports, capsys):
    assert evaluate.main(flags(places, "grid", "evaluate", points="[1,32]")) == 1
    assert "evaluate.points: got 32, expected 1 to 31: the view has 32 points" in capsys.readouterr().err
    assert evaluate.main(flags(places, "grid", "evaluate", points="[3]")) == 1
    assert "evaluate.points: got 3, expected a divisor of the 32 points of a periodic axis" in capsys.readouterr().err


def test_a_rollout_that_is_not_finite_is_named_and_the_old_report_stays(places, reports, tmp_path, capsys):
    root, task = tmp_path / "copy", TASKS["grid"]
    shutil.copytree(places, root)
    before = checksum(root / "reports" / task / "details.json")
    path = root / "models" / task / "operator.safetensors"
    weights, config = load_model(path)
    save_model(path, weights | {"outward.bias": torch.full_like(weights["outward.bias"], torch.nan)}, config)
    assert evaluate.main(flags(root, "grid", "evaluate")) == 1
    assert "operator: its prediction is not finite in 4 of 4 test trajectories; lower" in capsys.readouterr().err
    assert checksum(root / "reports" / task / "details.json") == before


def test_trajectories_of_a_single_frame_are_refused(places, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, task = tmp_path / "copy", TASKS["grid"]
    shutil.copytree(places, root)
    monkeypatch.setitem(small_data.VIEWS, "grid", View(space_stride=2, time_stride=20))
    model, curve = trained(root / "data", "grid", steps=1)
    save_autoencoder(root / "models" / task / "autoencoder.safetensors", model, curve[-1][0])
    for split in ("train", "val"):
        cache_split(
            model, frames_of(root / "data", "grid", split), root / "cache" / f"{task}_{split}", LATENTS, device=CPU
        )
    assert train.main(flags(root, "grid", "train")) == 1
    assert "its trajectories have one frame, expected two at least; lower view.time_stride" in capsys.readouterr().err
    assert baseline.main(flags(root, "grid", "baseline")) == 1
    assert "has one frame, there is nothing to roll out" in capsys.readouterr().err


def test_particles_carried_by_a_turning_flow_stay_on_their_circle():
    def field(step, places):  # solid rotation about the origin, one radian a unit of time
        return torch.stack([-places[..., 1], places[..., 0]], dim=-1)

    start = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])
    places, speeds = advect(field, start, field(-1, start), 0.05, 40)
    turned = math.cos(2.0), math.sin(2.0)
    assert places[0, -1, 0].tolist() == pytest.approx(turned, abs=2e-3)  # 40 steps of 0.05, Heun's error of order dt^2
    assert speeds[0, -1, 1].norm().item() == pytest.approx(0.5, abs=2e-3)


def test_the_bands_add_up_to_the_error_of_a_frame_as_their_definition_says():
    rng = np.random.default_rng(0)
    truth, made = rng.normal(size=(2, 3, 5, 64, 2))
    forecast = Forecast([0, 1, 2], truth, {"operator": made}, {})
    scores = score(forecast, np.ones(2), POWERS["grid"](forecast)["operator"])
    assert np.square(scores["bands"]).sum(axis=-1) == pytest.approx(np.square(scores["operator"]), rel=1e-9)
    means = scores["bands"].mean(axis=(0, 1, 2))
    assert np.square(means).sum() != pytest.approx(np.square(scores["operator"].mean()), rel=1e-4)
    assert "of a frame and channel, not of means, the squares add up" in DEFINITIONS["nrmse_high"]
    assert "cycles a box, on meshes a unit of length" in DEFINITIONS["nrmse_low"]


def test_batches_are_put_back_into_the_order_of_the_samples():
    truth = np.ones((4, 1, 6, 1)) * np.array([1.0, 2.0, 3.0, 4.0])[:, None, None, None]
    wrong = truth * np.array([1.1, 1.2, 1.3, 1.4])[:, None, None, None]
    parts = [
        Forecast(rows, truth[rows], {"operator": wrong[rows], "baseline": truth[rows]}, {}) for rows in ([2, 0], [3, 1])
    ]
    forecasts = Forecasts(["u"], np.ones(1), np.zeros(1), np.zeros((4, 0)), [], list("abcd"), iter(parts))
    found = gather(forecasts, keep={3})
    scores, kept = found.scores[1], found.kept
    assert scores["operator"][:, 0, 0] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [forecast.samples for forecast in kept] == [[3]]
    assert summary(scores, 0.5)["nrmse"] == pytest.approx(0.25)


def test_a_plain_network_that_would_reach_around_the_period_is_refused(places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert baseline.main(flags(places, "grid", "baseline", depth=6)) == 1
    assert "baseline.depth: got 6, whose convolutions reach 64 points to each side, but the view has 32" in (
        capsys.readouterr().err
    )


def test_a_view_that_does_not_divide_the_period_is_refused(places):
    with pytest.raises(UpsDataError, match=r"advection1d: got 7, which does not divide the 64 points"):
        frames_of(places / "data", "grid", view=View(space_stride=7, time_stride=1))


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, np.float16), (1e6, np.float32), (1e-6, np.float32)])
def test_a_rollout_is_kept_in_numbers_that_hold_it(tmp_path, scale, dtype):
    truth = scale * np.linspace(1, 2, 12, dtype=np.float32).reshape(1, 3, 4, 1)
    forecasts = Forecasts(["u"], np.ones(1), np.arange(3.0), np.zeros((1, 0)), [], ["a"], iter(()))
    kept = [Forecast([0], truth, {"operator": truth}, {"x": np.arange(4)})]
    write_rollouts(tmp_path / "rollouts.npz", "grid", forecasts, kept, np.zeros(1))
    with np.load(tmp_path / "rollouts.npz") as found:
        assert found["truth"].dtype == dtype
        np.testing.assert_allclose(found["truth"], truth, rtol=1e-3)


def test_an_evaluation_that_is_stopped_leaves_the_one_before(places, reports, monkeypatch, capsys):
    folder = reports / TASKS["mesh"]
    before = {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()}

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ups_data.evaluation.record.write_rollouts", stop)
    assert evaluate.main(flags(places, "mesh", "evaluate")) == 130
    assert {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()} == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
