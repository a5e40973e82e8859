"""Samples read past HDF5: what comes is what HDF5 gives, whatever the chunks, and what is packed is left to it."""

import os
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from tests.raw import converted, random, write_groups
from ups_data.conversion import blocks
from ups_data.errors import UpsDataError
from ups_data.sources import stored as stored_module
from ups_data.sources.stored import Boxes, read_boxes, sample_of

SHAPE = (11, 6, 9, 2)  # [T, Y, X, C]
X_FIRST, AS_IS = (3, 0, 2, 1), (3, 0, 1, 2)


@pytest.fixture
def opened(tmp_path):
    """`opened(values, **layout)`: those values as a dataset of a file, with the file's descriptor."""
    descriptors = []

    def make(values, before=0, **layout):
        path = tmp_path / "sample.h5"
        with h5py.File(path, "w", userblock_size=before) as file:
            file.create_dataset("data", data=values, **layout)
        descriptors.append(os.open(path, os.O_RDONLY))
        return path, h5py.File(path)["data"].id, descriptors[-1]

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("order", [X_FIRST, AS_IS], ids=["x-first", "as-is"])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"before": 512},
        {"chunks": (1, 6, 9, 2)},
        {"chunks": (4, 4, 4, 1)},
        {"chunks": (3, 6, 5, 2), "before": 512},
        {"chunks": (16, 8, 16, 4), "maxshape": (None,) * 4},
    ],
    ids=str,
)
def test_frames_are_those_that_hdf5_reads(opened, layout, order):
    values = random(*SHAPE)
    path, data, descriptor = opened(values, **layout)
    stored = sample_of(data, order)
    for start in range(SHAPE[0]):
        for stop in range(start + 1, SHAPE[0] + 1):
            got = read_boxes(path, descriptor, stored, start, stop)
            np.testing.assert_array_equal(got, values[start:stop].transpose(order))


def test_one_channel_without_chunks_is_a_plane(opened):
    values = random(4, 5, 1)
    _, data, descriptor = opened(values)
    (at,) = sample_of(data, (2, 0, 1))
    assert np.frombuffer(os.pread(descriptor, values.nbytes, at), "<f4").tolist() == values.ravel().tolist()


def test_chunks_that_lzf_has_packed_are_read_with_those_that_it_left_as_they_are(opened):
    values = random(24, 8, 64, 1)
    values[4:8] = 0
    values[10:16, ::2] = 1.5
    path, data, descriptor = opened(values, chunks=(2, 8, 64, 1), compression="lzf")
    stored = sample_of(data, AS_IS)
    assert (stored.packed.ravel() > 0).tolist() == [False] * 2 + [True] * 2 + [False] + [True] * 3 + [False] * 4
    assert list(stored.steps(1, 24, 10**9)) == [(1, 24, True)]
    for start, stop in ((0, 24), (1, 12), (4, 6), (5, 6), (3, 9), (11, 12), (16, 24)):
        got = read_boxes(path, descriptor, stored, start, stop)
        np.testing.assert_array_equal(got, values[start:stop].transpose(AS_IS))


@pytest.mark.parametrize("boxes", [1, 3, 4, 5, 11])
def test_any_number_of_packed_chunks_is_unpacked(opened, boxes, monkeypatch):
    monkeypatch.setattr(stored_module, "UNPACKED", 4 * 2 * 64)
    values = np.repeat(random(2 * boxes, 1, 1, 1), 64, axis=2)
    path, data, descriptor = opened(values, chunks=(2, 1, 64, 1), compression="lzf")
    stored = sample_of(data, AS_IS)
    assert (stored.packed > 0).all()
    got = read_boxes(path, descriptor, stored, 0, len(values))
    np.testing.assert_array_equal(got, values.transpose(AS_IS))


def test_threads_unpack_at_the_same_time(opened):
    values = np.repeat(random(64, 1, 1, 1), 64, axis=2)
    path, data, descriptor = opened(values, chunks=(2, 1, 64, 1), compression="lzf")
    stored = sample_of(data, AS_IS)

    def read(start):
        wanted = values[start : start + 8].transpose(AS_IS)
        got = (read_boxes(path, descriptor, stored, start, start + 8) for _ in range(50))
        return all(np.array_equal(one, wanted) for one in got)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(0, 56, 7)))


@pytest.mark.parametrize(
    "kind", [{"compression": "gzip"}, {"shuffle": True, "compression": "lzf"}, {"fletcher32": True}]
)
def test_chunks_that_a_filter_has_touched_are_left_to_hdf5(opened, kind):
    _, data, _ = opened(random(4, 8, 16, 1), chunks=(2, 8, 16, 1), **kind)
    assert sample_of(data, AS_IS) is None


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "<i4"])
def test_numbers_that_have_to_be_converted_are_left_to_hdf5(opened, dtype):
    _, data, _ = opened(np.ones((4, 8, 16, 1), dtype), chunks=(2, 8, 16, 1))
    assert sample_of(data, AS_IS) is None


def test_a_chunk_that_was_never_written_is_left_to_hdf5(tmp_path):
    with h5py.File(tmp_path / "sample.h5", "w") as file:
        data = file.create_dataset("data", (4, 8, 1), "<f4", chunks=(2, 8, 1), fillvalue=3.0)
        data[2:] = 1.0
        stored = sample_of(data.id, (2, 0, 1))
    assert list(stored.steps(0, 4, 10**9)) == [(0, 2, False), (2, 4, True)]


def test_a_file_that_ends_before_its_chunks_do_is_refused(opened):
    values = random(*SHAPE)
    path, data, descriptor = opened(values)
    stored = sample_of(data, X_FIRST)
    beyond = Boxes(stored.offsets + path.stat().st_size, *stored[1:])
    with pytest.raises(UpsDataError, match="truncated"):
        read_boxes(path, descriptor, beyond, 0, 1)


@pytest.mark.parametrize("pieces", [1 << 20, 4 << 10, 1 << 10], ids=["whole", "some frames", "a frame"])
def test_samples_in_chunks_convert_to_the_very_numbers(tmp_path, monkeypatch, pieces):
    """Some chunks packed, the last ones beyond the sample, two channels, y before x, cut at any frame."""
    monkeypatch.setattr(blocks, "BLOCK", pieces)
    data = [random(*SHAPE) for _ in range(10)]
    for values in data:
        values[3:5] = 0.5
    config = "name: 2d_diff-react\nsim:\n  Du: 0.001\n  Dv: 5E-3\n  k: 0.005\n"
    path = tmp_path / "2D_diff-react_NA_NA.h5"
    write_groups(path, data, [config] * 10, "yx", chunks=(2, 4, 5, 1))
    samples, manifest = converted(tmp_path, "*.h5", tmp_path / "out")
    for row in range(10):
        np.testing.assert_array_equal(samples[path.name, row][0], data[row].transpose(0, 2, 1, 3))
    train = np.concatenate([samples[path.name, row][0] for row in manifest_rows(tmp_path / "out/task_train.h5")])
    for index, name in enumerate(manifest["channels"]):
        found = manifest["statistics"]["channels"][name]
        assert found["mean"] == pytest.approx(train[..., index].mean(dtype=np.float64), abs=1e-7)
        assert found["std"] == pytest.approx(train[..., index].std(dtype=np.float64), abs=1e-7)


def manifest_rows(path):
    with h5py.File(path) as file:
        return file["source_row"][()].tolist()
