"""A split too large for one file is a folder of files, and reads as one."""

import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.raw import SPLITS, convert_knobs, write_burgers
from ups_data.audit import audit
from ups_data.conversion.grid import convert_grid
from ups_data.datasets import GridDataset
from ups_data.errors import UpsDataError
from ups_data.hydrate import item_on_disk
from ups_data.packaging import package_dataset
from ups_data.params import Package, View
from ups_data.stores.grid import GridReader, Stacked, _files
from ups_data.training.frames import open_frames

TASK, SAMPLE = "burgers1d", 6 * 16 * 4  # bytes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One conversion as a file a split, and one of at most 20 samples a file."""
    root = tmp_path_factory.mktemp("shards")
    raw = write_burgers(root / "raw")
    whole, cut = root / "whole", root / "cut"
    manifests = [
        convert_grid(TASK, convert_knobs(raw), SPLITS, whole, workers=1),
        convert_grid(TASK, convert_knobs(raw, shard_gb=20.5 * SAMPLE / 1e9), SPLITS, cut, workers=2),
    ]
    return whole, cut, *manifests


def test_a_split_of_more_than_the_knob_is_a_folder_that_the_manifest_describes(folders):
    _, cut, whole_manifest, manifest = folders
    names = [f"{TASK}_train_{i:03d}.h5" for i in range(3)]
    assert sorted(p.name for p in (cut / f"{TASK}_train.h5").iterdir()) == names
    assert manifest["splits"]["train"]["shards"] == [
        {"name": name, "samples": count} for name, count in zip(names, (20, 20, 8), strict=True)
    ]
    assert (cut / f"{TASK}_test.h5").is_file() and "shards" not in manifest["splits"]["test"]
    assert manifest["statistics"] == whole_manifest["statistics"]
    assert [len(GridReader(cut / f"{TASK}_train.h5" / name)) for name in names] == [20, 20, 8], "each reads alone"


def test_it_reads_as_the_one_file_would(folders):
    whole, cut = (GridReader(folder / f"{TASK}_train.h5") for folder in folders[:2])
    assert cut.shape == whole.shape and cut.groups == whole.groups
    for name in ("parameters", "source_file", "source_row", "time"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))
    np.testing.assert_array_equal(cut.data[:][:48], whole.data)
    np.testing.assert_array_equal(cut.static[5], whole.static[5])


def test_datasets_frames_and_audit_see_no_difference(folders):
    items = [GridDataset(folder / f"{TASK}_train.h5", window=2, space_stride=4) for folder in folders[:2]]
    for one, other in zip(*items, strict=True):
        assert all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)
    loaded = torch.cat([batch["fields"] for batch in DataLoader(items[1], batch_size=50, num_workers=1)])
    assert torch.equal(loaded, torch.stack([items[0][i]["fields"] for i in range(len(items[0]))]))
    frames = [open_frames(f, TASK, "train", "grid", View(space_stride=2, time_stride=2)) for f in folders[:2]]
    index = np.array([100, 3, 59, 60, 61, 143, 3])
    assert torch.equal(*(f.read(index, "state")["fields"] for f in frames))
    assert audit(folders[1], TASK).groups == audit(folders[0], TASK).groups


def test_it_is_packed_like_any_folder(folders, tmp_path):
    knobs = Package(name="burgers1d_cut_v1", codec="pcodec", suffix="upk", description="cut")
    _, entry = package_dataset(TASK, knobs, folders[1], tmp_path, tmp_path, workers=1)
    assert entry.splits["train"].files == 3
    assert item_on_disk(folders[1], f"{TASK}_train.h5").sha256 == entry.splits["train"].sha256


def test_a_file_takes_the_place_of_a_folder_and_back(folders, tmp_path):
    raw = convert_knobs(folders[0].parent / "raw")
    for shard_gb in (None, 20.5 * SAMPLE / 1e9, None):
        knobs = raw.model_copy(update={"shard_gb": shard_gb})
        convert_grid(TASK, knobs, SPLITS, tmp_path, workers=1)
        assert (tmp_path / f"{TASK}_train.h5").is_dir() == (shard_gb is not None)
        assert GridReader(tmp_path / f"{TASK}_train.h5").shape[0] == 48


def copied(folders, tmp_path):
    shutil.copytree(folders[1] / f"{TASK}_train.h5", tmp_path / "train.h5")
    return tmp_path / "train.h5"


def test_a_folder_that_lacks_a_file_or_has_one_of_another_conversion_is_refused(folders, tmp_path):
    folder = copied(folders, tmp_path)
    (folder / f"{TASK}_train_001.h5").rename(tmp_path / "kept")
    with pytest.raises(UpsDataError, match="got 2 files, expected 3"):
        GridReader(folder)
    other = convert_knobs(folders[0].parent / "raw", samples=15, shard_gb=20.5 * SAMPLE / 1e9)
    convert_grid(TASK, other, SPLITS, tmp_path / "other", workers=1)
    (tmp_path / f"other/{TASK}_train.h5/{TASK}_train_001.h5").rename(folder / f"{TASK}_train_001.h5")
    with pytest.raises(UpsDataError, match=r"_001\.h5 is of another conversion than burgers1d_train_000\.h5"):
        GridReader(folder)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(UpsDataError, match="is a folder without a file of a split"):
        GridReader(folder)


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        7,
        (4, slice(1, 3), slice(None, None, 2)),
        (np.array([9, 0, 4, 4, 8]), np.array([0, 1, 2, 0, 1])),
        (np.array([[1, 9], [5, 0]]).reshape(-1), slice(0, 2)),
        slice(2, 9, 3),
        (slice(None), slice(1, 2), slice(None, None, 3)),
        np.array([], dtype=int),
    ],
)
def test_stacked_arrays_are_indexed_as_one_array_is(key):
    array = np.arange(10 * 3 * 4).reshape(10, 3, 4)
    stack = Stacked([array[:4], array[4:8], array[8:]])
    got = stack[key]
    np.testing.assert_array_equal(np.concatenate(got.parts) if isinstance(got, Stacked) else got, array[key])


def test_a_sample_beyond_the_last_is_an_index_error():
    stack = Stacked([np.zeros((2, 1)), np.zeros((1, 1))])
    for row in (3, -4):
        with pytest.raises(IndexError):
            stack[row]


def test_files_are_in_the_order_of_their_numbers_beyond_a_thousand(tmp_path):
    folder = tmp_path / "task_train.h5"
    folder.mkdir()
    numbers = [999, 1000, 101, 1001]
    for number in numbers:
        (folder / f"task_train_{number:03d}.h5").touch()
    assert _files(folder) == [folder / f"task_train_{number}.h5" for number in sorted(numbers)]


def test_truth_values_choose_the_samples_that_they_choose_in_one_array():
    whole = np.arange(30).reshape(10, 3)
    cut = Stacked([whole[:4], whole[4:]])
    chosen = whole[:, 0] > 12
    np.testing.assert_array_equal(cut[chosen], whole[chosen])
    np.testing.assert_array_equal(cut[~chosen, 1], whole[~chosen, 1])
    with pytest.raises(IndexError, match=r"shape \(9,\), expected one for each of 10"):
        cut[chosen[:9]]
