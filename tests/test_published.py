"""A published dataset is opened by its name: hydrated when it is not here, with names, and lazily."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.raw import SPLITS, convert_knobs, write_burgers
from tests.small_data import TASKS, WRITERS
from ups_data import open_dataset, registry
from ups_data.conversion.grid import convert_grid
from ups_data.errors import UpsDataError
from ups_data.labelled import label
from ups_data.packaging import package_dataset
from ups_data.params import Package
from ups_data.stores.grid import GridReader
from ups_data.stores.mesh import MeshStore
from ups_data.stores.particles import ParticleStore

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "open_dataset.ipynb"


def publish(clone: Path, task: str) -> str:
    """Package the converted task and register it; the converted files themselves are gone afterwards."""
    name = f"{task}_subset_v1"
    knobs = Package(name=name, codec="pcodec", suffix="upk", description=task)
    data = clone / "data" / "pdebench"
    package_dataset(task, knobs, data, clone / "artifacts", clone / registry.ENTRIES)
    registry.merge(clone / registry.ENTRIES, clone / registry.REGISTRY, clone / registry.MIRROR)
    shutil.copytree(data, clone / "truth", dirs_exist_ok=True)
    shutil.rmtree(data)
    return name


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone with Burgers and small data of every kind, published and not on this machine."""
    clone = tmp_path_factory.mktemp("clone")
    data = clone / "data" / "pdebench"
    knobs = convert_knobs(write_burgers(clone / "raw", 20, (0.001, 1.0), points=64))
    convert_grid("burgers1d", knobs, SPLITS, data, workers=1)
    publish(clone, "burgers1d")
    for kind, write in WRITERS.items():
        write(data)
        shutil.rmtree(data / "raw")
        publish(clone, TASKS[kind])
    return clone


def opened(clone: Path, task: str, split: str = "test"):
    return open_dataset(f"{task}_subset_v1", split, repository=clone)


def test_importing_the_library_loads_nothing_heavy():
    heavy = "numpy, torch, xarray, zarr, h5py"
    code = f"import sys, ups_data; print([m for m in '{heavy}'.split(', ') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_opening_brings_one_split_and_the_manifest_and_the_second_time_nothing(clone, tmp_path, capsys):
    root = tmp_path / "fresh"
    data = open_dataset("advection1d_subset_v1", "val", root=root, repository=clone)
    assert sorted(p.name for p in root.iterdir() if not p.name.startswith(".")) == [
        "advection1d_manifest.json",
        "advection1d_val.h5",
    ]
    assert data.path.read_bytes() == (clone / "truth" / "advection1d_val.h5").read_bytes()
    shutil.move(clone / "artifacts", tmp_path / "away")
    try:
        assert open_dataset("advection1d_subset_v1", "val", root=root, repository=clone) == data
    finally:
        shutil.move(tmp_path / "away", clone / "artifacts")


def test_a_split_that_lost_its_end_is_hydrated_again(clone, tmp_path):
    data = open_dataset("advection1d_subset_v1", "val", root=tmp_path, repository=clone)
    whole = data.path.read_bytes()
    data.path.write_bytes(whole[:-1])
    open_dataset("advection1d_subset_v1", "val", root=tmp_path, repository=clone)
    assert data.path.read_bytes() == whole


def test_a_split_under_the_name_of_another_is_not_opened(clone, tmp_path):
    for split in ("val", "test"):
        open_dataset("burgers1d_subset_v1", split=split, root=tmp_path, repository=clone)
    val, test = (tmp_path / f"burgers1d_{split}.h5" for split in ("val", "test"))
    assert val.stat().st_size == test.stat().st_size  # a size does not tell them apart
    shutil.copy(val, test)
    with pytest.raises(UpsDataError, match=r"burgers1d_test.h5 holds the split 'val' of 'burgers1d', expected 'test'"):
        open_dataset("burgers1d_subset_v1", split="test", root=tmp_path, repository=clone)


def test_another_conversion_of_the_task_is_not_replaced(clone, tmp_path):
    manifest = tmp_path / "advection1d_manifest.json"
    manifest.write_text("{}")
    with pytest.raises(UpsDataError, match="holds another conversion of advection1d; give another root"):
        open_dataset("advection1d_subset_v1", "val", root=tmp_path, repository=clone)
    assert manifest.read_text() == "{}"


@pytest.mark.parametrize(
    ("name", "split", "sentence"),
    [("nonsense_v1", "test", "has no dataset 'nonsense_v1'; it has"), ("burgers1d_subset_v1", "dev", "no split 'dev'")],
)
def test_unknown_names_are_sentences(clone, name, split, sentence):
    with pytest.raises(UpsDataError, match=sentence):
        open_dataset(name, split, repository=clone)


def test_the_clone_is_found_from_a_folder_within_it(clone, monkeypatch):
    (clone / "notebooks").mkdir(exist_ok=True)
    monkeypatch.chdir(clone / "notebooks")
    assert open_dataset("burgers1d_subset_v1", "test").path == clone / "data/pdebench/burgers1d_test.h5"


def test_a_grid_has_named_dimensions_and_its_parameters_select_samples(clone):
    data = opened(clone, "burgers1d", "train")
    labelled, reader = data.xarray(), GridReader(data.path)
    assert labelled.fields.dims == ("sample", "time", "x", "channel")
    np.testing.assert_array_equal(labelled.time, reader.time)
    np.testing.assert_array_equal(labelled.x, reader.coordinates["x"])
    thin = labelled.fields.isel(sample=labelled.viscosity.values == 0.001)
    rows = np.flatnonzero(reader.parameters[:, 0] == 0.001)
    assert 0 < len(rows) < len(reader)
    np.testing.assert_array_equal(thin, reader.data[rows])
    nearest = labelled.fields.sel(x=0.3, time=reader.time[2], method="nearest")
    np.testing.assert_array_equal(nearest, reader.data[:, 2, np.abs(reader.coordinates["x"] - 0.3).argmin()])
    assert labelled.source_file.values[0].endswith("1D_Burgers_Sols_Nu0.001.hdf5")


def test_a_split_of_several_files_is_one_array(tmp_path):
    raw = write_burgers(tmp_path / "raw", 20, (0.001, 1.0), points=64)
    for out, shard_gb in (("one", None), ("several", 2e-5)):
        convert_grid("task", convert_knobs(raw, shard_gb=shard_gb), SPLITS, tmp_path / out, workers=1)
    one, several = (label(tmp_path / out / "task_train.h5", "grid") for out in ("one", "several"))
    assert (tmp_path / "several" / "task_train.h5").is_dir()
    assert several.fields.shape == one.fields.shape
    for index in (slice(None), slice(3, None, 7), [20, 1, 1], -1, slice(0, 0)):
        np.testing.assert_array_equal(several.fields[index, ::2], one.fields[index, ::2])
    np.testing.assert_array_equal(several.source_row, one.source_row)


def test_a_parameter_with_the_name_of_something_else_is_there_too(clone, tmp_path):
    path = Path(shutil.copy(opened(clone, "burgers1d", "train").path, tmp_path))
    path.chmod(0o644)
    with h5py.File(path, "r+") as file:
        file.attrs["parameter_names"] = json.dumps(["group"])
    labelled, reader = label(path, "grid"), GridReader(path)
    np.testing.assert_array_equal(labelled.parameter_group, reader.parameters[:, 0])
    assert labelled.group[0] == reader.groups[0]


def test_only_what_is_asked_for_is_read(clone, monkeypatch):
    from ups_data.labelled import Stored

    asked = []
    read = Stored._read
    monkeypatch.setattr(Stored, "_read", lambda self, key: asked.append(key) or read(self, key))
    fields = opened(clone, "burgers1d").xarray().fields
    chosen = fields.isel(sample=1, time=slice(0, 2)).sel(channel="u")
    assert asked == []
    chosen.load()
    assert asked == [(1, slice(0, 2, 1), slice(None), 0)]


def test_dask_computes_what_numpy_does(clone):
    fields = opened(clone, "burgers1d", "train").xarray().fields
    mean = fields.chunk({"sample": 5}).mean("sample").compute(scheduler="synchronous")
    np.testing.assert_allclose(mean, fields.values.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_a_split_that_was_replaced_is_read_anew(tmp_path):
    for out, decay in (("first", 0.5), ("second", 0.9)):
        raw = write_burgers(tmp_path / f"raw_{out}", 20, (decay,))
        convert_grid("task", convert_knobs(raw), SPLITS, tmp_path / out, workers=1)
    path, other = (tmp_path / out / "task_train.h5" for out in ("first", "second"))
    before = label(path, "grid").fields[0].values.copy()
    other.replace(path)
    after = label(path, "grid").fields[0].values
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(after, GridReader(path).data[0])


def test_what_travels_to_a_worker_is_a_path_and_not_the_numbers(clone):
    labelled = opened(clone, "burgers1d", "train").xarray()
    sent = pickle.dumps(labelled)
    assert len(sent) < labelled.fields.nbytes / 2
    np.testing.assert_array_equal(pickle.loads(sent).fields[5], labelled.fields[5])


def test_meshes_are_a_tree_with_the_samples_of_each_topology(clone):
    data = opened(clone, "darcy2d_mesh", "train")
    tree, store = data.xarray(), MeshStore(data.path)
    assert [len(child.fields) for child in tree.children.values()] == np.bincount(store.topology_of).tolist()
    for child in tree.children.values():
        assert child.fields.dims == ("sample", "time", "node", "channel")
        sample = int(child.sample[-1])
        np.testing.assert_array_equal(child.fields[-1], store.fields(sample))
        topology = store.topology(int(store.topology_of[sample]))
        np.testing.assert_array_equal(np.stack([child.x, child.y], axis=1), topology.coords)
        np.testing.assert_array_equal(child.cells, topology.cells)


def test_particles_that_others_have_more_of_are_nan(clone):
    data = opened(clone, "particles_advect", "train")
    labelled, store = data.xarray(), ParticleStore(data.path)
    counts = [store.particles(s) for s in range(len(store))]
    assert len(set(counts)) > 1
    assert labelled.particles.values.tolist() == counts
    for sample, count in enumerate(counts):
        stored = labelled.positions[sample, 2:5:2]
        np.testing.assert_array_equal(stored[:, :count], store.trajectory("positions", sample)[2:5:2])
        assert np.isnan(stored[:, count:]).all()
    np.testing.assert_array_equal(labelled.velocities[[2, 0], 1, 3], labelled.velocities.values[[2, 0], 1, 3])


@pytest.mark.parametrize("task", ["burgers1d", "darcy2d_mesh", "particles_advect"])
def test_torch_datasets_of_every_kind_come_from_the_same_call(clone, task):
    item = opened(clone, task).torch(window=1)[0]
    assert item["start"] == 0
    assert next(iter(item.values())).shape[0] == 1


@pytest.mark.slow
def test_the_notebook_runs_on_a_clone_without_data(clone, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    shutil.rmtree(clone / "data" / "pdebench", ignore_errors=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    ran = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(clone)}}).execute()
    plain = "".join(
        output.get("data", {}).get("text/plain", "") for cell in ran.cells for output in cell.get("outputs", [])
    )
    assert "Published(name='burgers1d_subset_v1', split='test', kind='grid'" in plain
    assert "'fields': (3, 4, 32, 1)" in plain


def test_the_notebook_is_stored_without_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
