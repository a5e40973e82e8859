"""The stage latents: all splits of a task encoded, or a sentence and nothing written."""

from pathlib import Path

import pytest
from safetensors import SafetensorError

from stages import latents
from ups_data.files import read_json
from ups_data.models.autoencoder import save_autoencoder
from ups_data.stores.latents import LatentCache, cache_folder

from . import small_data
from .archive_cases import tree
from .small_data import TASKS, frames_of, trained

PARAMS = Path(__file__).parents[1] / "params.yaml"
TASK = TASKS["grid"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    small_data.write_grid(root)
    return root


@pytest.fixture(scope="module")
def model(data):
    return trained(data, "grid", steps=20)[0]


@pytest.fixture
def run(data, model, tmp_path):
    """The stage on the data and the model of this file, with more flags; returns its exit status."""
    save_autoencoder(tmp_path / "models" / TASK / "autoencoder.safetensors", model, 20)
    facts = {f"autoencoder.{name}": model.config[name] for name in ("latent_len", "latent_dim")}
    facts |= {f"view.{name}": value for name, value in model.config["view"].items()}
    sets = [flag for name, value in facts.items() for flag in ("--set", f"datasets.{TASK}.{name}={value}")]
    places = ["--data", str(data), "--models", str(tmp_path / "models"), "--cache-dir", str(tmp_path / "cache")]

    def call(*flags):
        return latents.main([TASK, "--params", str(PARAMS), *places, *sets, *flags])

    return call


def test_the_stage_encodes_all_splits_and_leaves_what_is_up_to_date(run, data, tmp_path, capsys):
    assert run("--batch-size", "9", "--workers", "0") == 0
    said, train = capsys.readouterr().out, cache_folder(tmp_path / "cache", TASK, "train")
    for split in ("train", "val", "test"):
        cache = LatentCache(cache_folder(tmp_path / "cache", TASK, split))
        assert cache.samples == frames_of(data, "grid", split).samples
        assert f"{cache.folder}: " in said
    before = tree(train)
    assert run("--splits", "train") == 0
    assert "already there" in capsys.readouterr().out
    assert run("--splits", "train", "--dtype", "float32") == 1
    assert "made with another dtype" in capsys.readouterr().err
    assert tree(train) == before
    assert run("--splits", "train", "--dtype", "float32", "--overwrite") == 0
    assert read_json(train / "manifest.json")["dtype"] == "float32"


def test_the_stage_refuses_data_that_the_autoencoder_was_not_trained_on(run, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(small_data, "SPLIT", small_data.SPLIT.model_copy(update={"seed": 1}))
    small_data.write_grid(tmp_path / "anew")
    assert run("--data", str(tmp_path / "anew")) == 1
    assert "was converted anew since its models were trained; train them again" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_the_stage_refuses_latents_that_the_autoencoder_does_not_have(run, tmp_path, capsys):
    assert run("--latent-dim", "5") == 1
    assert "has latent_dim 4, got 5; train one with `python -m stages.autoencoder" in capsys.readouterr().err
    assert run("--latent-len", "16") == 1
    assert "has latent_len 8, got 16" in capsys.readouterr().err
    assert run("--set", "datasets.advection1d.view.time_stride=3") == 1
    assert "was trained at the view" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--workers", "-1"), "got '-1', expected a whole number from 0"),
        (("--device", "meta"), "device: got 'meta', expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_flag_that_nothing_can_be_done_with_is_a_sentence(run, tmp_path, capsys, flags, sentence):
    try:
        status = run(*flags)
    except SystemExit as stopped:  # argparse
        status = stopped.code
    assert status in (1, 2)
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_fills_up_while_a_cache_is_written_is_named(run, tmp_path, monkeypatch, capsys):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("ups_data.stores.latents.save_file", full)
    assert run("--splits", "test") == 1
    assert "no room left on" in capsys.readouterr().err
    assert not list((tmp_path / "cache").iterdir())
