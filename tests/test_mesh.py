"""Meshes: splits and statistics honest, stores small in number of files, datasets safe."""

import json
import os
import random
import shutil
import signal
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.mesh_cases import SPLIT, TASK, contents, convert, knobs, plain_shard, real_shards, stores
from ups_data.conversion.points import convert_points
from ups_data.datasets import MeshZarrDataset
from ups_data.errors import UpsDataError
from ups_data.params import SPLITS
from ups_data.sources import mesh_npz
from ups_data.sources.npz import write_npz
from ups_data.stores import packed
from ups_data.stores.mesh import MeshStore


@pytest.fixture(scope="module")
def raw():
    return real_shards()


@pytest.fixture(scope="module")
def converted(raw, tmp_path_factory):
    root = tmp_path_factory.mktemp("mesh")
    for index, arrays in enumerate(raw):
        write_npz(root / "raw" / f"m{index}.npz", arrays)
    convert(root)
    return root


# --- the conversion ------------------------------------------------------------------------------


def test_every_field_of_every_sample_is_kept_with_its_source(converted, raw):
    seen = set()
    for store in stores(converted / "out").values():
        assert store.channels == ["permeability", "source", "solution"]
        for sample in range(len(store)):
            file, row = int(store.source_file[sample]), int(store.source_row[sample])
            item = store.read(sample)
            for channel, name in enumerate(store.channels):
                assert np.array_equal(item["fields"][0, :, channel], raw[file][name][row])
            for name in ("coords", "cells", "edges", "laplacian_data", "laplacian_indices", "laplacian_indptr"):
                assert np.array_equal(item[name], raw[file][name])
            seen.add((file, row))
    assert seen == {(file, row) for file in range(3) for row in range(4)}


def test_a_mesh_that_shards_share_is_stored_once(converted, raw):
    store = stores(converted / "out")["train"]
    assert sorted(set(store.source_file)) == [0, 1, 2]
    assert len(store.all("coords")) == len(raw[0]["coords"]) + len(raw[1]["coords"])
    assert store.manifest["resolution"]["topologies"] == 2


def test_splits_are_disjoint_and_twins_stay_together(tmp_path, raw):
    for index in range(3):
        write_npz(tmp_path / f"raw/copy{index}.npz", raw[0] | {"viscosity": np.float64(index)})
    manifest = convert(tmp_path)
    groups = [set(manifest["splits"][split]["groups"]) for split in SPLITS]
    assert len(groups[0] | groups[1] | groups[2]) == sum(map(len, groups)) == 4
    for store in stores(tmp_path / "out").values():
        for row in set(store.source_row):
            assert set(store.source_file[store.source_row == row]) == {0, 1, 2}
        assert sorted(set(store.parameters[:, 0])) == [0, 1, 2]
    assert manifest["parameters"] == {"viscosity": {"raw_name": "viscosity", "values": [0.0, 1.0, 2.0]}}


def test_statistics_come_from_train_alone(converted):
    opened = stores(converted / "out")
    train = opened["train"]
    values = train.all("fields").astype(np.float64)
    for store in opened.values():
        assert store.manifest["statistics"]["count"] == len(values)
        for channel, name in enumerate(store.channels):
            facts = store.manifest["statistics"]["channels"][name]
            assert facts["mean"] == pytest.approx(values[:, channel].mean(), abs=1e-7 * values[:, channel].std())
            assert facts["std"] == pytest.approx(values[:, channel].std(), rel=1e-7)
            assert (facts["minimum"], facts["maximum"]) == (values[:, channel].min(), values[:, channel].max())


def test_manifest_stands_beside_and_inside_the_stores(converted):
    manifest = json.loads((converted / f"out/{TASK}_manifest.json").read_text())
    assert manifest["roles"] == {"input": ["permeability", "source"], "target": ["solution"]}
    assert manifest["frames"] == 1
    for split, store in stores(converted / "out").items():
        assert store.manifest == manifest
        assert manifest["splits"][split]["samples"] == len(store)
        assert sorted(store.groups) == manifest["splits"][split]["groups"]


def test_a_second_run_and_one_after_a_kill_give_the_same_bytes(converted, tmp_path, monkeypatch):
    before = contents(converted / "out")
    shutil.copytree(converted / "raw", tmp_path / "raw")
    with monkeypatch.context() as patch:
        patch.setattr("ups_data.files.publish", lambda *paths: os.kill(os.getpid(), signal.SIGKILL))
        victim = get_context("fork").Process(target=convert, args=(tmp_path,))
        victim.start()
        victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert (tmp_path / f"out/.{TASK}.partial").exists()
    assert not list((tmp_path / "out").glob("*.zarr"))
    convert(tmp_path)
    assert contents(tmp_path / "out") == before


def test_a_store_is_a_few_files_whatever_the_number_of_samples(converted, tmp_path, raw):
    write_npz(tmp_path / "raw/m.npz", {k: np.tile(v, (40, 1)) if v.shape[0] == 4 else v for k, v in raw[0].items()})
    shard = tmp_path / "raw/m.npz"
    arrays = dict(np.load(shard))
    arrays["source"] += np.arange(160, dtype=np.float32)[:, None]
    write_npz(shard, arrays)
    convert(tmp_path)
    few, many = (len(contents(root / f"out/{TASK}_train.zarr")) for root in (converted, tmp_path))
    assert many == few < 50


def test_limit_and_samples_take_less(converted):
    manifest = convert(converted, "less", limit=2, samples=3)
    assert [(f["name"], f["samples"]) for f in manifest["source"]["files"]] == [("raw/m0.npz", 3), ("raw/m1.npz", 3)]
    assert sum(facts["samples"] for facts in manifest["splits"].values()) == 6


def test_the_root_may_be_the_folder_itself(converted, tmp_path):
    manifest = convert_points(TASK, "mesh", knobs(converted / "raw"), SPLIT, tmp_path)
    assert sum(s["samples"] for s in manifest["splits"].values()) == 12


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (plain_shard(pressure=np.ones((2, 4))), r"channels is \['permeability', 'pressure', 'solution'\], expected"),
        (plain_shard(coords=np.eye(4)[:, :3]), "dimensions is 3, expected 2 as in 0.npz"),
        (plain_shard(beta=np.float64(1)), r"parameters is \['beta'\], expected \[\]"),
        (plain_shard(times=np.arange(3.0), solution=np.ones((2, 3, 4))), "frames is 3, expected 1"),
    ],
)
def test_shards_that_differ_in_kind_are_refused(tmp_path, second, sentence):
    write_npz(tmp_path / "raw/0.npz", plain_shard())
    write_npz(tmp_path / "raw/1.npz", second)
    with pytest.raises(UpsDataError, match=sentence):
        convert(tmp_path)


def test_no_matching_file_and_an_official_split_are_sentences(tmp_path):
    with pytest.raises(UpsDataError, match="no file matches"):
        convert(tmp_path)
    official = SPLIT.model_copy(update={"protocol": "pdebench"})
    with pytest.raises(UpsDataError, match="expected 'grouped'"):
        convert_points(TASK, "mesh", knobs(tmp_path), official, tmp_path)


# --- fields in time ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """Five samples of five frames on four nodes, with a coefficient that is constant in time."""
    root = tmp_path_factory.mktemp("moving")
    rng = np.random.default_rng(0)
    arrays = plain_shard(
        solution=None,
        times=np.linspace(0, 1, 5),
        permeability=rng.random((5, 4), dtype=np.float32),
        temperature=rng.random((5, 5, 4), dtype=np.float32),
    )
    write_npz(root / "raw/m.npz", arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_npz, "BLOCK_BYTES", 70)  # two frames a block
        manifest = convert(root)
    return root, arrays, manifest


def test_fields_in_time_keep_every_frame_and_constant_ones_are_repeated(moving):
    root, arrays, manifest = moving
    assert manifest["roles"] == {"input": ["permeability"], "target": ["temperature"]}
    assert (manifest["frames"], manifest["time_step"]) == (5, 0.25)
    for store in stores(root / "out").values():
        for sample, row in enumerate(store.source_row):
            fields = store.fields(sample)
            assert np.array_equal(fields[..., 1], arrays["temperature"][row])
            assert np.array_equal(fields[..., 0], np.broadcast_to(arrays["permeability"][row], (5, 4)))
            assert np.array_equal(store.fields(sample, 2, 4), fields[2:4])


def test_one_start_under_several_coefficients_stands_in_one_split(tmp_path):
    rng = np.random.default_rng(0)
    temperature = rng.random((20, 3, 4), dtype=np.float32)
    temperature[:, 0] = rng.random((5, 4), dtype=np.float32)[np.arange(20) % 5]
    coefficient = rng.random((20, 4), dtype=np.float32)
    shard = plain_shard(solution=None, times=np.arange(3.0), permeability=coefficient, temperature=temperature)
    write_npz(tmp_path / "raw/m.npz", shard)
    manifest = convert(tmp_path)
    assert manifest["grouped_by"] == ["temperature"]
    assert [len(facts["groups"]) for facts in manifest["splits"].values()] == [3, 1, 1]
    assert [facts["samples"] for facts in manifest["splits"].values()] == [12, 4, 4]


def test_a_window_dataset_counts_every_window_of_every_trajectory(moving):
    dataset = MeshZarrDataset(moving[0] / f"out/{TASK}_train.zarr", window=2)
    assert len(dataset) == 3 * 4
    item = dataset[5]
    assert (item["sample"], item["start"]) == (1, 1)
    assert torch.equal(item["times"], torch.tensor([0.25, 0.5]))
    assert np.array_equal(item["fields"].numpy(), dataset.store.fields(1, 1, 3))
    with pytest.raises(IndexError):
        dataset[12]


@pytest.mark.parametrize("window", [0, 6])
def test_a_window_that_does_not_fit_is_refused(moving, window):
    with pytest.raises(UpsDataError, match=f"window of {window} frames, expected 1 to 5"):
        MeshZarrDataset(moving[0] / f"out/{TASK}_train.zarr", window=window)


# --- the dataset and the store -------------------------------------------------------------------


def test_an_item_is_torch_tensors_of_the_whole_sample(converted):
    item = MeshZarrDataset(converted / f"out/{TASK}_train.zarr")[0]
    nodes = len(item["coords"])
    assert item["fields"].shape == (1, nodes, 3)
    assert {item[k].dtype for k in ("fields", "coords", "laplacian_data", "times", "parameters")} == {torch.float32}
    assert {item[k].dtype for k in ("cells", "edges", "laplacian_indices", "laplacian_indptr")} == {torch.int64}
    assert item["laplacian_indptr"].shape == (nodes + 1,)
    rows = torch.repeat_interleave(torch.arange(nodes), item["laplacian_indptr"].diff())
    sums = torch.zeros(nodes).index_add(0, rows, item["laplacian_data"])
    assert sums.abs().max() < 1e-5


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_read_what_this_one_reads(converted, method):
    dataset = MeshZarrDataset(converted / f"out/{TASK}_train.zarr")
    expected = [dataset[i] for i in range(len(dataset))]  # the parent has its store open when it forks
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)
    for got, wanted in zip(loader, expected, strict=True):
        assert got.keys() == wanted.keys()
        assert all(torch.equal(torch.as_tensor(got[k]), torch.as_tensor(wanted[k])) for k in wanted)


def test_a_store_that_is_missing_damaged_or_foreign_is_a_sentence(converted, tmp_path):
    with pytest.raises(UpsDataError, match="is missing; make it"):
        MeshStore(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(UpsDataError, match="is not a readable Zarr v3 group"):
        MeshStore(tmp_path / "empty.zarr")
    broken = tmp_path / "broken.zarr"
    shutil.copytree(converted / f"out/{TASK}_train.zarr", broken)
    (broken / "fields/c/0/0").unlink()
    with pytest.raises(UpsDataError, match="fields/c/0/0 is missing"):
        MeshStore(broken).fields(0)
    (broken / "zarr.json").write_text((broken / "zarr.json").read_text().replace("ups-data/mesh", "other/mesh"))
    with pytest.raises(UpsDataError, match="got format 'other/mesh' version 1, expected 'ups-data/mesh'"):
        MeshStore(broken)


def listing(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8), width=st.sampled_from([(), (3,)]), seed=st.integers()
)
def test_rows_written_in_any_order_are_the_very_files_that_zarr_writes(tmp_path_factory, sizes, width, seed):
    values = np.random.default_rng(0).normal(size=(sum(sizes), *width))
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "CHUNK_BYTES", 64)
        patch.setattr(packed, "SHARD_BYTES", 256)
        packed.create_group(folder / "ours")
        array = packed.Array(str(folder / "ours/a"), values.shape, "<f8")
        packed.create(array)
        spans = list(pairwise(packed.offsets_of(sizes).tolist()))
        random.Random(seed).shuffle(spans)
        for start, stop in spans:
            array.write(start, values[start:stop])
        assert array.lies_plain() and np.array_equal(array.read(0, len(values)), values)
        cell = (array.chunk_rows, *width)
        shard = (array.file_rows, *width) if array.is_sharded else None
    zarrs = zarr.create_group(store=zarr.storage.LocalStore(folder / "zarr"), zarr_format=3)
    theirs = zarrs.create_array(
        "a", shape=values.shape, dtype="<f8", chunks=cell, shards=shard, compressors=None, filters=None, fill_value=0,
        config={"write_empty_chunks": True},
    )  # fmt: skip
    theirs[:] = values
    assert listing(folder / "ours") == listing(folder / "zarr")


@pytest.mark.parametrize("other", [{"chunks": (7, 3)}, {"compressors": "auto"}, {"dtype": ">f4"}])
def test_a_store_whose_arrays_lie_otherwise_reads_the_same(converted, tmp_path, other):
    path = tmp_path / "other.zarr"
    shutil.copytree(converted / f"out/{TASK}_train.zarr", path)
    fields = MeshStore(path).all("fields")
    plain = {"chunks": fields.shape, "dtype": "<f4", "compressors": None, "filters": None}
    root = zarr.open_group(store=zarr.storage.LocalStore(path), mode="r+", zarr_format=3)
    root.create_array("fields", shape=fields.shape, overwrite=True, **plain | other)[:] = fields
    ours, theirs = stores(converted / "out")["train"], MeshStore(path)
    assert all(np.array_equal(ours.fields(k), theirs.fields(k)) for k in range(len(ours)))


def test_samples_that_straddle_files_are_read_whole_and_a_damaged_index_is_a_sentence(raw, converted, tmp_path):
    for index, shard in enumerate(raw):
        write_npz(tmp_path / f"raw/m{index}.npz", shard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "CHUNK_BYTES", 120)
        patch.setattr(packed, "SHARD_BYTES", 360)
        convert(tmp_path)
        ours, parts = stores(converted / "out")["train"], stores(tmp_path / "out")["train"]
        files = sorted((parts.path / "fields/c").glob("*/0"))
        assert len(files) > 3 and all(np.array_equal(ours.fields(k), parts.fields(k)) for k in range(len(ours)))
        data = files[0].read_bytes()
        files[0].write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
        with pytest.raises(UpsDataError, match=r"fields cannot be read .*; fetch or convert it again"):
            MeshStore(parts.path).fields(0)
        files[0].write_bytes(data[:-1])
        with pytest.raises(UpsDataError, match=r"fields cannot be read .*; fetch or convert it again"):
            MeshStore(parts.path).fields(0)
        files[0].write_bytes(data[:8])
        with pytest.raises(UpsDataError, match=r"fields cannot be read .* ends too early"):
            parts.fields(0)


@pytest.mark.parametrize("rows", [2, 4])
def test_a_sample_that_is_not_as_long_as_its_place_is_refused(tmp_path, rows):
    packed.create_group(tmp_path / "g.zarr")
    array = packed.Array(str(tmp_path / "g.zarr/a"), (6,), "<f4")
    packed.create(array)
    array.write(3, np.ones(3))
    with pytest.raises(UpsDataError, match=rf"/a: got {rows} rows of a sample, expected 3; the raw files changed"):
        with packed.filling({"a": packed.Run(array, 0, 3)}) as append:
            append("a", np.full(rows, 2.0))
    whole = np.fromfile(array.file(0), dtype="<f4")
    assert whole[3:].tolist() == [1, 1, 1], "its neighbour is as it was"


def test_a_radius_of_a_mesh_is_a_parameter(tmp_path):
    for index, radius in enumerate((0.1, 0.2)):
        fields = np.random.default_rng(index).random((2, 4))
        arrays = plain_shard(permeability=fields, solution=fields, radius=np.float64(radius))
        write_npz(tmp_path / "raw" / f"m{index}.npz", arrays)
    assert convert(tmp_path)["parameters"]["radius"]["values"] == [0.1, 0.2]


def test_float64_fields_are_rounded_with_a_report_or_refused(tmp_path, capsys):
    fields = np.arange(1.0, 17.0).reshape(4, 4)
    fields[2, 1] = 1.0 + 0.75 * 2.0**-24
    write_npz(tmp_path / "raw" / "m0.npz", plain_shard(permeability=fields, solution=np.ones((4, 4), "f4")))
    facts = convert(tmp_path)["float64"]
    assert facts == {"files": ["raw/m0.npz"], "greatest_relative_loss": pytest.approx(0.75 * 2.0**-24, rel=1e-6)}
    assert "1 of 1 files are float64, rounded to float32 with a greatest relative loss of 4.5e-08" in (
        capsys.readouterr().out
    )
    before = contents(tmp_path / "out")
    with pytest.raises(UpsDataError, match=r"m0\.npz: its numbers are float64 .* knob convert\.float64 to round"):
        convert(tmp_path, float64="refuse")
    assert contents(tmp_path / "out") == before
