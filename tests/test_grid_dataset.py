"""A grid dataset gives what was stored, whole or in windows, from any number of worker processes."""

import pickle
import random

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.raw import SPLITS, convert_knobs, write_burgers
from ups_data.conversion.grid import convert_grid
from ups_data.datasets import GridDataset
from ups_data.errors import UpsDataError
from ups_data.stores.grid import GridReader


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    convert_grid("burgers1d", convert_knobs(write_burgers(folder / "raw")), SPLITS, folder / "out")
    return folder / "out/burgers1d_train.h5"


def test_an_item_is_a_trajectory_with_its_parameters_and_coordinates(path):
    data, reader = GridDataset(path), GridReader(path)
    assert len(data) == 48
    item = data[5]
    assert item["fields"].dtype == torch.float32
    np.testing.assert_array_equal(item["fields"], reader.data[5])
    np.testing.assert_allclose(item["parameters"], reader.parameters[5])
    assert item["times"].shape == (6,) and item["x"].shape == (16,) and (item["sample"], item["start"]) == (5, 0)


def test_windows_cover_every_start_of_every_trajectory_at_the_view(path):
    data, reader = GridDataset(path, window=2, space_stride=4, time_stride=2), GridReader(path)
    assert len(data) == 48 * 2
    item = data[7]
    assert (item["sample"], item["start"]) == (3, 1)
    np.testing.assert_array_equal(item["fields"], reader.data[3, 2:6:2, ::4])
    np.testing.assert_allclose(item["times"], reader.time[2:6:2])
    np.testing.assert_allclose(item["x"], reader.coordinates["x"][::4])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_read_what_one_process_reads(path, context):
    data = GridDataset(path, window=3)
    data[0]  # the parent has the file open before the workers start
    loader = DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context=context)
    together = torch.cat([batch["fields"] for batch in loader])
    assert torch.equal(together, torch.stack([data[i]["fields"] for i in range(len(data))]))


def test_a_dataset_travels_to_another_process_without_its_data(path):
    data = GridDataset(path)
    data[0]
    assert len(pickle.dumps(data)) < 50_000


def test_indices_count_from_the_end_and_stop_at_it(path):
    data = GridDataset(path)
    assert data[-1]["sample"] == 47
    with pytest.raises(IndexError):
        data[48]


@pytest.mark.parametrize("window", [7, 0, -1])
def test_a_window_that_a_trajectory_does_not_have_is_refused(path, window):
    with pytest.raises(UpsDataError, match=f"window of {window} frames, expected 1 to 6"):
        GridDataset(path, window=window)


@pytest.mark.parametrize("strides", [{"time_stride": 0}, {"time_stride": -1}, {"space_stride": 0}])
def test_a_stride_that_leads_nowhere_is_refused(path, strides):
    with pytest.raises(UpsDataError, match="expected 1 or more"):
        GridDataset(path, **strides)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.unlink(), "is missing"),
        (lambda p: p.write_bytes(b"<html>"), "not a readable HDF5 file"),
        (lambda p: p.write_bytes(p.read_bytes()[:9000]), "not a readable HDF5 file|truncated"),
    ],
)
def test_a_damaged_file_is_a_sentence(path, tmp_path, damage, words):
    copy = tmp_path / "burgers1d_train.h5"
    copy.write_bytes(path.read_bytes())
    damage(copy)
    with pytest.raises(UpsDataError, match=words):
        GridReader(copy)


def test_a_flipped_bit_of_the_description_is_a_sentence_where_it_matters(path, tmp_path):
    raw, copy, flips = path.read_bytes(), tmp_path / "burgers1d_train.h5", random.Random(0)
    with h5py.File(path) as file:
        start = file["data"].id.get_offset()
        stop = start + 4 * file["data"].size
    # The tables at either side of the data, and the manifest.
    places = [*range(start), *range(stop, stop + 1400)], range(raw.rindex(b'{"channels"'), len(raw))
    refused = 0
    for place in [flips.choice(some) for some in places for _ in range(60)]:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << flips.randrange(8)
        copy.write_bytes(damaged)
        try:
            GridReader(copy)
        except UpsDataError as error:
            refused += str(copy) in str(error)
    assert refused > 10
