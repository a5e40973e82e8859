"""Where numbers stand in a file is a hint: whatever a file says of itself, the same bytes come back."""

from __future__ import annotations

import fcntl
import json
import shutil

import h5py
import numpy as np
import pytest

from tests.archive_cases import pack_all, tree
from ups_data import archive
from ups_data.archive.layout import description, regions


def test_numbers_are_found_where_hdf5_zarr_safetensors_and_npy_keep_them(animals):
    files = {path: animals / path for path in tree(animals)}
    found = {path: regions(file, description(path, files)) for path, file in files.items()}
    sizes = {path: sum(r.size for r in found[path]) / max(1, file.stat().st_size) for path, file in files.items()}
    shards = [p for p in sizes if p.startswith("mesh.zarr/fields/c")]
    assert len(shards) == 3
    assert all(sizes[p] > 0.9 for p in ["model.safetensors", "array.npy", *shards])
    assert 0.5 < sizes["grid.h5"] < 1  # the filtered dataset stays as it is
    assert sizes["broken.h5"] == sizes["random.bin"] == sizes["empty"] == 0


@pytest.mark.parametrize("axes", [16, 17, 20])
def test_arrays_of_any_number_of_axes_come_back(tmp_path, axes):
    numbers = np.cumsum(np.random.default_rng(0).normal(size=1 << axes)).astype("f4").reshape((2,) * axes)
    np.save(tmp_path / "many.npy", numbers)
    archive.pack({"many.npy": tmp_path / "many.npy"}, tmp_path / "many.upk")
    archive.extract(tmp_path / "many.upk", tmp_path / "out")
    assert tree(tmp_path / "out") == {"many.npy": (tmp_path / "many.npy").read_bytes()}
    assert (tmp_path / "many.upk").stat().st_size < 0.97 * numbers.nbytes, "its numbers were packed as numbers"


def _tensor(**changes):
    header = json.dumps({"w": {"dtype": "F32", "shape": [256, 256], "data_offsets": [0, 1 << 18]} | changes}).encode()
    return len(header).to_bytes(8, "little") + header


def _array(shape):
    return (
        np.lib.format.magic(1, 0)
        + len(text := f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}").to_bytes(2, "little")
        + text.encode()
    )


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("x.safetensors", _tensor(shape=[-256, -256])),
        ("x.safetensors", _tensor(shape=[65536.0])),
        ("x.safetensors", _tensor(shape=["x"])),
        ("x.safetensors", _tensor(data_offsets=[0.0, 1.0])),
        ("x.safetensors", _tensor(data_offsets=[-(1 << 20), 1.0])),
        ("x.npy", _array("(-256, -256)")),
        ("x.npy", _array("(256, 256")),
    ],
)
def test_a_file_that_lies_about_its_numbers_comes_back_all_the_same(tmp_path, name, header):
    data = header + np.random.default_rng(0).normal(size=(256, 256)).astype("f4").tobytes()
    (tmp_path / name).write_bytes(data)
    assert [m.path for m in archive.pack({name: tmp_path / name}, tmp_path / "x.upk")] == [name]
    archive.extract(tmp_path / "x.upk", tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == data


@pytest.mark.parametrize("chunk", [[-256, -256], [0], [10**30], ["x"]])
def test_a_zarr_array_that_lies_about_its_chunks_comes_back_all_the_same(animals, tmp_path, chunk):
    shutil.copytree(animals / "mesh.zarr" / "fields", tmp_path / "in" / "fields")
    facts = json.loads((tmp_path / "in/fields/zarr.json").read_text())
    facts["chunk_grid"]["configuration"]["chunk_shape"] = chunk
    (tmp_path / "in/fields/zarr.json").write_text(json.dumps(facts))
    pack_all(tmp_path / "in", tmp_path / "x.upk")
    archive.extract(tmp_path / "x.upk", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "in")


def test_what_stands_above_the_packed_files_and_who_holds_them_changes_no_byte(animals, tmp_path):
    home = tmp_path / "inside.zarr" / "in"
    home.mkdir(parents=True)
    shutil.copy(animals / "mesh.zarr/fields/zarr.json", home.parent)
    for name in ("random.bin", "grid.h5"):
        shutil.copy(animals / name, home)
    np.random.default_rng(0).normal(size=40_000).astype("f4").tofile(home / "raw.bin")
    pack_all(home, tmp_path / "one.upk")
    shutil.copytree(home, tmp_path / "elsewhere")
    with open(tmp_path / "elsewhere" / "grid.h5", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 does while it writes
        pack_all(tmp_path / "elsewhere", tmp_path / "two.upk")
    with h5py.File(tmp_path / "elsewhere" / "grid.h5"):
        pack_all(tmp_path / "elsewhere", tmp_path / "two.upk")
    assert (tmp_path / "one.upk").read_bytes() == (tmp_path / "two.upk").read_bytes()
