"""A disk without room is told before anything is written."""

from types import SimpleNamespace

import pytest

from stages import simulate
from ups_data import files
from ups_data.errors import UpsDataError
from ups_data.models.autoencoder import save_autoencoder

from . import small_data
from .small_data import TASKS, trained
from .test_predict import grid_file, roll_out, save_operator


@pytest.fixture
def full(monkeypatch):
    """Call it, and the disk is full from then on."""
    return lambda: monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))


def test_by_a_simulation(tmp_path, full, capsys):
    full()
    assert simulate.main(["burgers1d", "--samples", "2", "--out", str(tmp_path / "raw"), "--device", "cpu"]) == 1
    assert f"the sample in {tmp_path / 'raw'} needs" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.hdf5"))


def test_by_a_conversion_of_meshes(tmp_path, full):
    full()  # raw files of this size are written all the same
    with pytest.raises(UpsDataError, match=r"converting darcy2d_mesh needs .* free some room"):
        small_data.write_mesh(tmp_path)
    assert not [path for path in tmp_path.glob("*darcy2d_mesh*") if path.suffix != ".lock"]


def test_by_a_prediction(tmp_path, full, capsys):
    small_data.write_grid(tmp_path)
    model, curve = trained(tmp_path, "grid", steps=1)
    folder = tmp_path / "models" / TASKS["grid"]
    save_autoencoder(folder / "autoencoder.safetensors", model, curve[-1][0])
    save_operator(folder, "grid", model)
    full()
    assert roll_out(tmp_path, "grid", grid_file(tmp_path), tmp_path / "out" / "r.h5", "--given", "2") == 1
    assert f"the rollout {tmp_path / 'out' / 'r.h5'} needs" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))
