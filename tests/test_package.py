"""A packaged dataset is one deterministic archive and an entry that says how to know it again."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from stages import package
from stages import registry as registry_stage
from tests.archive_cases import CODECS, converted, tree
from ups_data import archive, files, registry
from ups_data.archive import format as layout
from ups_data.errors import UpsDataError
from ups_data.packaging import package_dataset
from ups_data.params import Package

KNOBS = Package(name="waves_subset_v1", codec="pcodec", suffix="upk", description="Travelling waves")


def packaged(folder: Path, task: str = "waves", kind: str = "grid", knobs: Package = KNOBS) -> registry.Entry:
    """Convert and package a small dataset under `folder`."""
    converted(folder / "data", task, kind)
    return package_dataset(task, knobs, folder / "data", folder / "artifacts", folder / "registry")[1]


@pytest.mark.parametrize("kind", ["grid", "mesh"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_same_data_gives_the_same_archive_and_entry(tmp_path, kind, codec):
    knobs = KNOBS.model_copy(update={"codec": codec, "suffix": CODECS[codec][1:]})
    for folder in ("one", "two"):
        packaged(tmp_path / folder, kind=kind, knobs=knobs)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_the_entry_says_what_the_archive_holds(tmp_path):
    entry = packaged(tmp_path)
    packed = (tmp_path / "artifacts" / "waves_subset_v1.upk").read_bytes()
    assert entry.archive.file == "waves_subset_v1.upk"
    assert (entry.archive.size, entry.archive.sha256) == (len(packed), hashlib.sha256(packed).hexdigest())
    assert entry.archive.md5 == hashlib.md5(packed).hexdigest()
    test = (tmp_path / "data" / "waves_test.h5").read_bytes()
    assert (entry.splits["test"].sha256, entry.splits["test"].samples) == (hashlib.sha256(test).hexdigest(), 2)
    assert entry.normalisation["velocity"].std == 2.0
    assert (entry.protocol, entry.seed, entry.version, entry.wandb) == ("grouped", 0, 1, None)
    assert registry.read_registry(tmp_path / "registry" / "waves_subset_v1.yaml") == {"waves_subset_v1": entry}


def test_a_folder_is_known_by_the_checksum_of_its_sha256sum_listing(tmp_path):
    entry = packaged(tmp_path, kind="mesh")
    store = tmp_path / "data" / "waves_val.zarr"
    listing = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in tree(store).items())
    text = "".join(f"{digest}  {path}\n" for path, digest in listing)
    assert entry.splits["val"].sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert entry.splits["val"].files == len(listing) > 1


def test_splits_of_two_conversions_are_not_packaged_together(tmp_path):
    packaged(tmp_path)
    before = tree(tmp_path / "artifacts")
    converted(tmp_path / "other", "waves", samples={"train": 5, "val": 2, "test": 2})
    shutil.copy(tmp_path / "other" / "waves_val.h5", tmp_path / "data")
    with pytest.raises(UpsDataError, match=r"waves_val.h5 is of another conversion .* convert again"):
        package_dataset("waves", KNOBS, tmp_path / "data", tmp_path / "artifacts", tmp_path / "registry")
    shutil.copy(tmp_path / "data" / "waves_test.h5", tmp_path / "data" / "waves_val.h5")
    with pytest.raises(UpsDataError, match=r"waves_val.h5 holds the split 'test' of 'waves', expected 'val'"):
        package_dataset("waves", KNOBS, tmp_path / "data", tmp_path / "artifacts", tmp_path / "registry")
    (tmp_path / "data" / "waves_val.h5").unlink()
    with pytest.raises(UpsDataError, match=r"waves_val.h5 is missing"):
        package_dataset("waves", KNOBS, tmp_path / "data", tmp_path / "artifacts", tmp_path / "registry")
    assert tree(tmp_path / "artifacts") == before


def _spoil_number(store: Path) -> None:
    with h5py.File(store, "r+") as file:
        file["data"][0, 3] = np.nan


def _change_number(store: Path) -> None:
    with h5py.File(store, "r+") as file:
        file["data"][0, 3, :40] = 0.9 * file["data"][0, 3, :40]


def _swap_samples(store: Path) -> None:
    with h5py.File(store, "r+") as file:
        file["data"][:] = file["data"][:][::-1]


def _spoil_axis(store: Path) -> None:
    with h5py.File(store, "r+") as file:
        file["x"][3] = np.nan


def _lose_array(store: Path) -> None:
    shutil.rmtree(store / "edges")


def _cut_chunk(store: Path) -> None:
    os.truncate(next(path for path in (store / "fields" / "c").rglob("*") if path.is_file()), 1000)


@pytest.mark.parametrize(
    ("kind", "spoil", "sentence"),
    [
        ("grid", _spoil_number, r"waves_test.h5: its numbers are not those that were converted; fetch it again or run"),
        ("grid", _change_number, r"waves_test.h5: its numbers are not those that were converted"),
        ("grid", _swap_samples, r"waves_test.h5: its numbers are not those that were converted"),
        ("grid", _spoil_axis, r"waves_test.h5: its numbers are not those that were converted"),
        ("mesh", _lose_array, r"waves_test.zarr/edges cannot be read"),
        ("mesh", _cut_chunk, r"waves_test.zarr/fields cannot be read"),
    ],
)
def test_a_damaged_split_is_not_packaged(tmp_path, kind, spoil, sentence):
    converted(tmp_path / "data", "waves", kind)
    spoil(tmp_path / "data" / f"waves_test.{'h5' if kind == 'grid' else 'zarr'}")
    with pytest.raises(UpsDataError, match=sentence):
        package_dataset("waves", KNOBS, tmp_path / "data", tmp_path / "out", tmp_path / "entries")
    assert not (tmp_path / "out").exists() and not (tmp_path / "entries").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), PermissionError(13, "Permission denied")])
@pytest.mark.parametrize("place", ["registry.write_entry", "files.publish"])
def test_an_archive_without_its_entry_is_not_published(tmp_path, monkeypatch, place, stop):
    packaged(tmp_path)
    before = published(tmp_path)
    converted(tmp_path / "other", "waves", "mesh")

    def refuse(*_):
        raise stop

    monkeypatch.setattr(f"ups_data.{place}", refuse)
    with pytest.raises(type(stop)):
        repackaged(tmp_path)
    assert published(tmp_path) == before


def test_ctrl_c_between_an_archive_and_its_entry_comes_after_both(tmp_path, monkeypatch):
    entry, publish = packaged(tmp_path), files.publish
    converted(tmp_path / "other", "waves", "mesh")

    def interrupted(temporary: Path, final: Path) -> None:
        publish(temporary, final)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(files, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repackaged(tmp_path)
    found = registry.read_registry(tmp_path / "registry" / "waves_subset_v1.yaml")["waves_subset_v1"]
    packed = (tmp_path / "artifacts" / "waves_subset_v1.upk").read_bytes()
    assert found.archive.sha256 == hashlib.sha256(packed).hexdigest() != entry.archive.sha256


def repackaged(folder: Path) -> None:
    """Package the other data under the name of those that `packaged` did."""
    package_dataset("waves", KNOBS, folder / "other", folder / "artifacts", folder / "registry")


def published(folder: Path) -> tuple[dict, dict]:
    return tree(folder / "artifacts"), tree(folder / "registry")


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    converted(tmp_path / "data", "waves")
    path = tmp_path / "data" / "waves_manifest.json"
    path.write_text(path.read_text().replace('"mean": 0.5', '"mean": 123.0'))
    with pytest.raises(UpsDataError, match=r"waves_manifest.json was changed: its key is of other contents"):
        package_dataset("waves", KNOBS, tmp_path / "data", tmp_path / "artifacts", tmp_path / "registry")
    path.write_text('{"format": "ups-data/manifest", "version": 1}')
    with pytest.raises(UpsDataError, match=r"waves_manifest.json was changed"):
        package_dataset("waves", KNOBS, tmp_path / "data", tmp_path / "artifacts", tmp_path / "registry")


def test_merging_keeps_every_entry_and_its_bytes_do_not_depend_on_the_order(tmp_path):
    for name in ("waves_b_v2", "waves_a_v1"):
        packaged(tmp_path, knobs=KNOBS.model_copy(update={"name": name}))
    merged = tmp_path / "docs" / "dataset_registry.yaml"
    flags = ["--entries", str(tmp_path / "registry"), "--out", str(merged)]
    assert registry_stage.main(flags) == 0
    first = merged.read_bytes()
    assert list(registry.read_registry(merged)) == ["waves_a_v1", "waves_b_v2"]
    assert registry_stage.main(flags) == 0
    assert merged.read_bytes() == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"archive": {"size": "12"}}, r"waves_subset_v1.archive.size: got '12'"),
        ({"archive": {"file": "../../etc/passwd"}}, r"waves_subset_v1.archive.file: got '../../etc/passwd'"),
        ({"manifest": {"path": "/etc/passwd"}}, r"waves_subset_v1.manifest.path"),
        ({"archive": {"sha256": "0"}}, r"waves_subset_v1.archive.sha256"),
        ({"surprise": 1}, r"waves_subset_v1.surprise"),
        ({"task": None}, r"waves_subset_v1.task"),
    ],
)
def test_a_broken_entry_is_a_sentence_that_names_the_key(tmp_path, change, message):
    packaged(tmp_path)
    path = tmp_path / "registry" / "waves_subset_v1.yaml"
    entries = yaml.safe_load(path.read_text())
    for key, value in change.items():
        entry = entries["waves_subset_v1"]
        entry[key] = {**entry[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(UpsDataError, match=message):
        registry.read_registry(path)


def test_the_stage_packs_a_task_of_params(tmp_path, monkeypatch, capsys):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    converted(tmp_path / "data" / "pdebench", "burgers1d")
    assert package.main(["burgers1d", "--params", str(root / "params.yaml"), "--codec", "pcodec"]) == 0
    (packed,) = (tmp_path / "artifacts").iterdir()
    assert packed.read_bytes()[:8] == layout.MAGIC
    assert archive.members(packed)[0].path == "burgers1d_manifest.json"
    assert "ratio" in capsys.readouterr().out
    assert package.main(["burgers", "--params", str(root / "params.yaml")]) == 1
    said = capsys.readouterr().err
    assert f"{root / 'params.yaml'} has no datasets.burgers (did you mean 'burgers1d'?)" in said
