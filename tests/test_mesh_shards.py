"""Mesh shards are checked: what is missing is built, what is wrong is a sentence."""

import zipfile

import numpy as np
import pytest

from tests.mesh_cases import TASK, contents, convert, plain_shard, real_shards
from ups_data.errors import UpsDataError
from ups_data.geometry import edges_of_cells
from ups_data.sources.mesh_npz import MeshShard
from ups_data.sources.npz import write_npz


@pytest.fixture(scope="module")
def raw():
    return real_shards()


def test_missing_edges_and_laplacian_are_built(tmp_path, raw):
    bare = {k: v for k, v in raw[0].items() if k != "edges" and not k.startswith("laplacian")}
    with MeshShard(write_npz(tmp_path / "m.npz", bare)) as shard:
        for name in ("edges", "laplacian_indices", "laplacian_indptr", "laplacian_data"):
            assert np.array_equal(getattr(shard.topology, name), raw[0][name])


def test_a_single_precision_laplacian_and_turned_edges_are_accepted(tmp_path, raw):
    changed = {"laplacian_data": raw[0]["laplacian_data"].astype(np.float32), "edges": raw[0]["edges"][::-1, ::-1]}
    with MeshShard(write_npz(tmp_path / "m.npz", raw[0] | changed)) as shard:
        assert np.array_equal(shard.topology.edges, edges_of_cells(raw[0]["cells"]))


NAN = np.array([[0, 1, 2, 3], [4, np.nan, 6, 7]], dtype=np.float32)
LAPLACIAN = {
    "laplacian_data": np.array([1, -0.5, -0.5, -0.5, 1, -0.5, -0.5, 1, -0.5, -0.5, -0.5, 1]),
    "laplacian_indices": np.array([0, 1, 3, 0, 1, 2, 1, 2, 3, 0, 2, 3]),
    "laplacian_indptr": np.array([0, 3, 6, 9, 12]),
}


def test_a_folder_named_like_a_shard_is_a_sentence(tmp_path):
    (tmp_path / "m.npz").mkdir()
    with pytest.raises(UpsDataError, match=r"m.npz cannot be read: Is a directory; expected an .npz file"):
        MeshShard(tmp_path / "m.npz")


def test_the_hand_made_laplacian_of_a_square_is_accepted(tmp_path):
    with MeshShard(write_npz(tmp_path / "m.npz", plain_shard(**LAPLACIAN))) as shard:
        assert shard.samples == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"coords": None}, "needs the key 'coords'"),
        ({"coords": np.zeros((4, 4))}, r"coords: got shape \(4, 4\)"),
        ({"coords": np.array([[0, 0], [1, 0], [1, np.inf], [0, 1]])}, r"coords\[2, 1\]: got inf"),
        ({"cells": np.array([[0, 1, 2], [0, 2, 4]])}, r"cells: got a number outside 0..3"),
        ({"cells": np.array([[0, 1, 2], [0, 2, -1]])}, r"cells: got a number outside 0..3"),
        ({"cells": np.array([[0, 1, 2], [0, 2, 2]])}, r"cells\[1\]: got a triangle of no area"),
        ({"cells": np.array([[0.0, 1, 2]])}, "cells: got float64, expected integers"),
        ({"edges": np.array([[0, 1], [1, 2], [0, 2], [2, 3]])}, "edges: got 4 .* expected each of their 5"),
        ({"solution": None}, "fields: got permeability, expected the key 'solution'"),
        ({"solution": NAN}, r"solution\[1, 1\]: got nan, expected a finite number"),
        ({"solution": np.zeros((2, 5))}, r"solution: got shape \(2, 5\), expected \[N\], \[S, N\] with N = 4"),
        ({"permeability": np.ones((3, 4))}, "permeability: got 3 samples, expected 2 as solution has"),
        ({"solution": np.full((2, 4), 1e300)}, r"solution\[\d, 0\]: got inf"),
        (LAPLACIAN | {"laplacian_indptr": None}, "needs the key 'laplacian_indptr'"),
        (LAPLACIAN | {"laplacian_indptr": np.array([1, 3, 6, 9, 12])}, "laplacian_indptr: got 1..12"),
        (LAPLACIAN | {"laplacian_indptr": np.array([0, 3, 6, 9, 11])}, "laplacian_indptr: got 0..11"),
        (LAPLACIAN | {"laplacian_indptr": np.array([0, 6, 3, 9, 12])}, "laplacian_indptr: .* a climb"),
        (LAPLACIAN | {"laplacian_indptr": np.array([0, 3, 12])}, r"laplacian_indptr: got shape \(3,\)"),
        (LAPLACIAN | {"laplacian_indices": np.array([0, 1, 3, 0, 1, 2, 1, 2, 3, 0, 2, 2])}, "columns out of order"),
        (LAPLACIAN | {"laplacian_indices": np.array([0, 1, 3, 0, 1, 2, 1, 2, 3, 0, 2, 4])}, "outside 0..3"),
        (LAPLACIAN | {"laplacian_data": -LAPLACIAN["laplacian_data"]}, "laplacian_data: got a matrix off by 2.0"),
        (LAPLACIAN | {"laplacian_data": LAPLACIAN["laplacian_data"] * 1.0003}, "laplacian_data: got a matrix off"),
    ],
)
def test_a_bad_shard_is_refused_with_a_sentence_and_old_outputs_stay(tmp_path, changes, sentence):
    for index in range(4):
        write_npz(tmp_path / f"raw/{index}.npz", plain_shard(solution=np.full((2, 4), index, dtype=np.float32)))
        write_npz(tmp_path / f"raw/{index}.npz", plain_shard(permeability=np.full((2, 4), 1.0 + index)))
    (tmp_path / f"out/{TASK}_train.zarr").mkdir(parents=True)
    write_npz(tmp_path / "raw/5.npz", plain_shard(**changes))
    before = contents(tmp_path)
    with pytest.raises(UpsDataError, match=sentence) as error:
        convert(tmp_path)
    assert "5.npz" in str(error.value)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert [p.name for p in (tmp_path / "out").iterdir() if not p.name.endswith(".lock")] == [f"{TASK}_train.zarr"]


def pickled(path):
    np.savez(path, **plain_shard(), note=np.array([{"a": 1}], dtype=object))


def truncated(path):
    write_npz(path, plain_shard())
    path.write_bytes(path.read_bytes()[:-200])


def corrupt(path):
    write_npz(path, plain_shard())
    data = bytearray(path.read_bytes())
    data[data.index(plain_shard()["coords"].tobytes())] ^= 1
    path.write_bytes(data)


def boastful(path):
    """A header that announces more numbers than there are."""
    write_npz(path.with_suffix(".honest"), plain_shard())
    with zipfile.ZipFile(path.with_suffix(".honest")) as honest, zipfile.ZipFile(path, "w") as target:
        for name in honest.namelist():
            target.writestr(name, honest.read(name).replace(b"'shape': (4, 2)", b"'shape': (9, 2)"))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (pickled, "note holds pickled Python objects, which are never loaded"),
        (truncated, "is not a whole .npz file"),
        (corrupt, "is not a whole .npz file .*CRC"),
        (boastful, "coords announces 144 bytes of numbers and holds 64"),
        (lambda path: path.write_bytes(b"no zip at all"), "is not a whole .npz file"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "hello"), "is not a whole .npz file"),
    ],
)
def test_a_file_that_is_no_npz_is_refused(tmp_path, spoil, sentence):
    path = tmp_path / "m.npz"
    spoil(path)
    with pytest.raises(UpsDataError, match=sentence):
        MeshShard(path)


@pytest.mark.parametrize("save", [np.savez_compressed, np.savez])
def test_compressed_and_column_major_arrays_read_alike(tmp_path, raw, save):
    save(tmp_path / "m.npz", **{name: np.asfortranarray(value) for name, value in raw[0].items()})
    with MeshShard(tmp_path / "m.npz") as shard:
        blocks = np.concatenate(list(shard.blocks([1, 3], shard.channels, 1)))
    expected = np.stack([raw[0][name][[1, 3]] for name in shard.channels], axis=-1)
    assert np.array_equal(blocks, expected)
