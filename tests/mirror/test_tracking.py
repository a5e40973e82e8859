"""Training runs on W&B: what they say when it is on, and that they need it for nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stages import sync
from tests.mirror.names import NAME, TASK, only
from tests.wandb_backend import KEY
from ups_data.mirror.sync import offline_runs
from ups_data.params import load_params
from ups_data.training import tracking
from ups_data.training.loop import CURVE

ROWS = [(10, 0.5, 0.6, 0.002), (20, 0.3, 0.4, 0.001), (30, 0.2, 0.3, 0.0005)]
MODEL = Path(f"models/{TASK}/operator.safetensors")


def train():
    """What a stage does: rows of the curve while it works, then the whole curve, metrics and outputs."""
    from matplotlib import pyplot

    Path("reports/picture.png").parent.mkdir(exist_ok=True)
    figure = pyplot.figure(figsize=(0.5, 0.5))
    figure.savefig("reports/picture.png")
    pyplot.close(figure)
    with tracking.tracked(load_params(), TASK, "train") as tracker:
        tracking.curve(CURVE, ROWS[:1])
        tracking.curve(CURVE, ROWS[:2])
        tracker.curve(CURVE, ROWS)
        tracker.metrics({"nrmse": 0.125, "nothing": None})
        tracker.picture("rollout", Path("reports/picture.png"))
        tracker.model("operator", MODEL)


def test_a_run_has_curve_metrics_picture_input_and_output(mirrored, backend):
    train()
    run = backend.runs()[-1]
    curve = [row for row in run.history if "val_loss" in row]
    assert [(row["step"], row["train_loss"], row["val_loss"]) for row in curve] == [row[:3] for row in ROWS]
    summary = json.loads(run.summary)
    assert (summary["nrmse"], summary["rollout"]["_type"]) == (0.125, "image-file")
    assert json.loads(run.config)["train"]["value"]["batch"] == load_params().datasets[TASK].train.batch
    assert (run.job_type, only(backend.versions(NAME)).used_by) == ("train", [run])
    model = only(backend.versions(f"{TASK}_operator"))
    assert (model.run, backend.files_of(model)) == (run.name, {MODEL.name: MODEL.read_bytes()})


def test_the_model_that_training_logged_is_recognised_by_sync(mirrored, backend):
    train()
    assert sync.main([NAME, "--models"]) == 0
    only(backend.versions(f"{TASK}_operator"))


def test_data_of_another_conversion_is_not_called_the_input(mirrored, backend):
    Path(f"data/pdebench/{TASK}_manifest.json").write_text("{}")
    train()
    assert only(backend.versions(NAME)).used_by == []


def test_where_w_and_b_is_off_training_does_not_import_its_client(project):
    code = """
import sys
from pathlib import Path
from ups_data.params import load_params
from ups_data.training import tracking
with tracking.tracked(load_params(), "burgers1d", "train") as tracker:
    tracking.curve(("step", "loss"), [(1, 0.5)])
    tracker.metrics({"nrmse": 1})
    tracker.picture("p", Path("nowhere.png"))
    tracker.model("operator", Path("nowhere"))
sys.exit("wandb" in sys.modules)
"""
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(project.parent / "home")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not Path("wandb").exists()


def test_a_failure_of_the_work_is_the_failure_that_is_seen(backend):
    with pytest.raises(ZeroDivisionError), tracking.tracked(load_params(), TASK, "train"):
        1 / 0  # noqa: B018
    assert tracking._active == []
    assert len(backend.runs()) == 1


def test_a_key_without_the_client_and_a_lost_picture_stop_no_training(backend, monkeypatch, capsys):
    with tracking.tracked(load_params(), TASK, "train") as tracker:
        tracker.picture("rollout", Path("nowhere.png"))
        tracker.metrics({"nrmse": 0.5})
    assert "W&B was not told all of this training" in capsys.readouterr().out
    assert json.loads(only(backend.runs()).summary)["nrmse"] == 0.5
    monkeypatch.setitem(sys.modules, "wandb", None)
    train()
    assert capsys.readouterr().out.count("the package wandb is not installed") == 1


@pytest.mark.slow
def test_a_run_logged_offline_is_uploaded_later_with_the_weights_of_its_time(backend, new_process, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY")
    weights = MODEL.read_bytes()
    train()
    MODEL.write_bytes(b"trained anew")
    assert len(offline_runs()) == 1
    assert backend.runs() == []
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    new_process()
    assert sync.main([]) == 0
    assert "uploaded 1 runs that were logged offline" in capsys.readouterr().out
    assert offline_runs() == []
    (run,) = [run for run in backend.runs() if run.job_type == "train"]
    assert [row["step"] for row in run.history if "step" in row] == [row[0] for row in ROWS]
    assert backend.files_of(only(backend.versions(f"{TASK}_operator"))) == {MODEL.name: weights}


@pytest.mark.slow
def test_training_goes_on_where_w_and_b_is_away_and_its_run_waits(backend, capsys):
    backend.faults.down = True
    train()
    assert "W&B does not follow this training" in capsys.readouterr().out
    assert len(offline_runs()) == 1
