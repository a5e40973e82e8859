"""A fresh clone gets the very bytes that were packaged, or a sentence and nothing at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from stages import verify as verify_stage
from tests.archive_cases import converted, tree
from ups_data import archive, registry
from ups_data.dvc_files import what_failed
from ups_data.errors import UpsDataError
from ups_data.hydrate import Places, hydrate, locked
from ups_data.packaging import package_dataset
from ups_data.params import Package

ROOT = Path(__file__).parents[1]
TASKS = {"waves": "grid", "bars": "mesh"}
GIT = {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
PIPELINE = """\
stages:
  convert:
    foreach: {{waves: h5, bars: zarr}}
    do:
      cmd: echo converted ${{key}}
      outs:
      - data/pdebench/${{key}}_train.${{item}}
      - data/pdebench/${{key}}_val.${{item}}
      - data/pdebench/${{key}}_test.${{item}}
      - data/pdebench/${{key}}_manifest.json
  package:
    foreach: [waves, bars]
    do:
      cmd: echo packaged ${{item}}
      outs:
      - artifacts/${{item}}_subset_v1.upk
""".replace("{{", "{").replace("}}", "}")


def knobs(task: str) -> Package:
    return Package(name=f"{task}_subset_v1", codec="pcodec", suffix="upk", description=task)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, env=os.environ | GIT)


def produce(folder: Path, samples: int) -> None:
    """Convert and package both tasks in a project, `samples` of them in train."""
    for task, kind in TASKS.items():
        shutil.rmtree(folder / "data" / "pdebench" / f"{task}_train.zarr", ignore_errors=True)
        for split in ("val", "test"):
            shutil.rmtree(folder / "data" / "pdebench" / f"{task}_{split}.zarr", ignore_errors=True)
        converted(folder / "data" / "pdebench", task, kind, {"train": samples, "val": 2, "test": 2})
        data, entries = folder / "data" / "pdebench", folder / registry.ENTRIES
        package_dataset(task, knobs(task), data, folder / "artifacts", entries)
    registry.merge(folder / registry.ENTRIES, folder / registry.REGISTRY)


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A project with a local DVC remote, pushed at two versions: waves-subset@v1.0.0, then the head."""
    from dvc.repo import Repo

    base = tmp_path_factory.mktemp("project")
    origin = base / "origin"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    Repo.init(str(origin)).close()
    (origin / ".dvc" / "config").write_text(
        "[core]\n    remote = store\n    analytics = false\n"
        f"['remote \"store\"']\n    url = {base / 'store'}\n    verify = true\n"
    )
    (origin / ".gitignore").write_text("/data/\n/artifacts/\n")
    (origin / "dvc.yaml").write_text(PIPELINE)
    for version, samples in (("v1.0.0", 3), ("v2.0.0", 6)):
        produce(origin, samples)
        with Repo(str(origin)) as repo:
            repo.commit(force=True)
            repo.push()
        git(origin, "add", "-A")
        git(origin, "commit", "-q", "-m", version)
        git(origin, "tag", f"waves-subset@{version}")
    return origin


@pytest.fixture
def clone(project, tmp_path, monkeypatch) -> Path:
    """A fresh clone of the project, and the working folder."""
    git(tmp_path, "clone", "-q", str(project), "clone")
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


@pytest.fixture
def at_hand(project, tmp_path, monkeypatch) -> Places:
    """The registry and the archives of the project without DVC or git: a copy of the archives in the cache."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    shutil.copy(project / registry.REGISTRY, tmp_path / registry.REGISTRY)
    shutil.copytree(project / "artifacts", tmp_path / "cache", ignore=shutil.ignore_patterns(".*"))
    return Places(root=tmp_path / "root", cache=tmp_path / "cache")


def stage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.hydrate", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def data_of(folder: Path, *prefixes: str) -> dict[str, bytes]:
    return {k: v for k, v in tree(folder).items() if k.startswith(prefixes) and not k.startswith(".")}


def test_a_fresh_clone_hydrates_the_very_bytes_and_dvc_finds_them_clean(project, clone):
    from dvc.repo import Repo

    done = stage(clone, "waves_subset_v1", "bars_subset_v1", "--root", "data/pdebench", "--cache", "artifacts/cache")
    assert done.returncode == 0, done.stderr
    assert re.search(r"at [0-9.]+ [kMG]B/s", done.stdout)
    assert data_of(clone / "data" / "pdebench", "") == data_of(project / "data" / "pdebench", "")
    with Repo(str(clone)) as repo:
        assert repo.status(targets=["convert"]) == {}
    again = stage(clone, "waves_subset_v1", "bars_subset_v1")
    assert again.stdout.count("already in data/pdebench") == 2 and "open_dataset('waves_subset_v1') (" in again.stdout
    assert "fetching" not in again.stdout


def test_a_name_that_is_wrong_is_told_before_the_first_one_is_fetched(clone):
    done = stage(clone, "waves_subset_v1", "bar_subset_v1", "--root", "elsewhere")
    assert done.returncode == 1
    assert "no dataset 'bar_subset_v1'" in done.stderr
    assert not (clone / "elsewhere").exists()


@pytest.mark.slow
def test_a_version_restores_the_data_of_its_tag(project, clone, tmp_path):
    git(project.parent, "clone", "-q", str(project), str(tmp_path / "old"))
    done = stage(clone, "waves_subset_v1", "--version", "v1.0.0", "--split", "train", "--root", str(tmp_path / "root"))
    assert done.returncode == 0, done.stderr
    converted(tmp_path / "wanted", "waves", "grid", {"train": 3, "val": 2, "test": 2})
    wanted = data_of(tmp_path / "wanted", "waves_train", "waves_manifest")
    assert data_of(tmp_path / "root", "") == wanted
    unknown = stage(clone, "waves_subset_v1", "--version", "v9")
    assert "it has waves-subset@v1.0.0, waves-subset@v2.0.0" in unknown.stderr


@pytest.mark.slow
def test_a_damaged_dvc_cache_is_mended_from_the_remote(project, clone):
    entry = registry.read_registry()["waves_subset_v1"]
    cached = clone / ".dvc" / "cache" / "files" / "md5" / entry.archive.md5[:2] / entry.archive.md5[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"damaged")
    cached.chmod(0o444)  # DVC trusts what it protected
    hydrate("waves_subset_v1", ("test",))
    wanted = data_of(project / "data" / "pdebench", "waves_test", "waves_manifest")
    assert data_of(clone / "data" / "pdebench", "") == wanted
    assert cached.read_bytes() == (project / "artifacts" / "waves_subset_v1.upk").read_bytes()


@pytest.mark.parametrize("version", [None, "v2.0.0"])
def test_a_remote_without_the_archive_is_a_sentence(clone, tmp_path, version):
    (clone / ".dvc" / "config.local").write_text(f"['remote \"store\"']\n    url = {tmp_path / 'empty'}\n")
    start = "DVC could not get" if version else "the DVC remote store has no archive"
    with pytest.raises(UpsDataError, match=rf"{start} .*waves_subset_v1.upk.*; check the remote .* \(`make push`\)"):
        hydrate("waves_subset_v1", version=version, remote="store")
    assert data_of(clone / "data" / "pdebench", "") == {}


def test_one_split_and_the_manifest_are_restored_alone(project, at_hand):
    hydrate("bars_subset_v1", ("test",), at_hand)
    wanted = data_of(project / "data" / "pdebench", "bars_test.zarr/", "bars_manifest.json")
    assert data_of(at_hand.root, "") == wanted


def test_what_is_there_and_right_stays_and_what_differs_is_replaced(project, at_hand, capsys):
    hydrate("waves_subset_v1", (), at_hand)
    kept = (at_hand.root / "waves_train.h5").stat().st_mtime_ns
    whole = (at_hand.root / "waves_test.h5").read_bytes()
    (at_hand.root / "waves_test.h5").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said = hydrate("waves_subset_v1", (), at_hand)
    assert "waves_test.h5" in said and "waves_train.h5" not in said
    assert "waves_test.h5 differs from the published one and is replaced" in capsys.readouterr().out
    assert (at_hand.root / "waves_train.h5").stat().st_mtime_ns == kept
    assert data_of(at_hand.root, "") == data_of(project / "data" / "pdebench", "waves_")


def test_splits_of_another_version_that_stay_beside_the_new_manifest_are_named(at_hand, capsys):
    converted(at_hand.root, "waves", "grid", {"train": 3, "val": 2, "test": 2})
    hydrate("waves_subset_v1", ("test",), at_hand)
    assert f"waves_train.h5, waves_val.h5 in {at_hand.root}: of another version" in capsys.readouterr().out
    hydrate("waves_subset_v1", (), at_hand)
    assert "of another version" not in capsys.readouterr().out
    (at_hand.root / "waves_manifest.json").unlink()
    hydrate("waves_subset_v1", ("test",), at_hand)
    assert "of another version" not in capsys.readouterr().out, "they are those of the manifest"


def test_two_processes_at_once_both_succeed(project, at_hand, tmp_path):
    command = [sys.executable, "-m", "stages.hydrate", "waves_subset_v1", "--root", "root", "--cache", "cache"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(b"already in" in output for output in outputs) == 1
    assert all(b"open_dataset('waves_subset_v1', root='root')" in output for output in outputs)
    assert data_of(tmp_path / "root", "") == data_of(project / "data" / "pdebench", "waves_")


def test_who_comes_second_says_so_and_waits(tmp_path, capsys):
    order = []

    def second():
        with locked(tmp_path, "another process hydrates"):
            order.append("second")

    with locked(tmp_path, "nobody"):
        waiting = Thread(target=second)
        waiting.start()
        waiting.join(0.5)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
    assert capsys.readouterr().out == "another process hydrates; waiting for it\n"


def test_an_archive_that_is_not_the_registrys_is_never_unpacked(at_hand):
    packed = at_hand.cache / "waves_subset_v1.upk"
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UpsDataError, match=r"neither in artifacts nor in .*cache: DVC does not work here"):
        hydrate("waves_subset_v1", (), at_hand)
    assert data_of(at_hand.root, "") == {}


def test_members_that_are_not_the_registrys_are_never_unpacked(at_hand, tmp_path):
    """The archive's checksum agrees, one member's does not: the registry was tampered with or is stale."""
    path = tmp_path / registry.REGISTRY
    entry = registry.read_registry(path)["waves_subset_v1"]
    path.write_text(path.read_text().replace(entry.splits["val"].sha256, "f" * 64))
    with pytest.raises(UpsDataError, match=r"waves_val.h5 has .* the registry says .*ffff; nothing was restored"):
        hydrate("waves_subset_v1", (), at_hand)
    assert data_of(at_hand.root, "") == {}


def test_unknown_names_and_splits_are_sentences(at_hand, tmp_path):
    with pytest.raises(UpsDataError, match="no dataset 'wave'; it has bars_subset_v1, waves_subset_v1"):
        hydrate("wave", (), at_hand)
    with pytest.raises(UpsDataError, match="source: got 'WandB', expected dvc or wandb"):
        hydrate("waves_subset_v1", (), at_hand, source="WandB")
    with pytest.raises(UpsDataError, match=r"dataset_registry.yaml is missing; run this in the project's folder"):
        hydrate("wave", (), replace(at_hand, repository=tmp_path / "nowhere"))


def test_what_dvc_says_first_is_the_reason():
    said = "WARNING: slow\nERROR: failed to connect to s3 (b/x) - Forbidden\nERROR: failed to fetch - 1 files failed\n"
    assert what_failed(said) == "failed to connect to s3 (b/x) - Forbidden"
    assert what_failed("hint: x\nfatal: not a git repository\n\n") == "fatal: not a git repository"


def test_a_disk_without_room_is_found_out_first(at_hand, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("ups_data.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UpsDataError, match=r"hydrating waves_subset_v1 needs .* free some room"):
        hydrate("waves_subset_v1", (), at_hand)
    assert data_of(at_hand.root, "") == {}


def test_verify_finds_what_dvc_trusts(clone, capsys):
    from dvc.repo import Repo

    with Repo(str(clone)) as repo:
        repo.pull()
    assert verify_stage.main([]) == 0
    entry = registry.read_registry()["bars_subset_v1"]
    spoilt = [
        clone / ".dvc/cache/files/md5" / entry.archive.md5[:2] / entry.archive.md5[2:],
        clone / "data/pdebench/waves_test.h5",
        clone / "data/pdebench/bars_val.zarr/zarr.json",
        clone / "artifacts/waves_subset_v1.upk",
    ]
    for path in spoilt:
        data = path.read_bytes()
        path.unlink()  # a link into the cache must not carry the damage over
        path.write_bytes(data[:-1] + b"!")
    capsys.readouterr()
    assert verify_stage.main([]) == 1
    said = capsys.readouterr()
    assert "5 broken" in said.err
    assert f"rm -f {spoilt[0]} && dvc fetch artifacts/bars_subset_v1.upk" in said.out
    assert "dvc checkout --force data/pdebench/bars_val.zarr" in said.out
    assert "BROKEN archive of waves_subset_v1" in said.out
    assert archive.members(clone / "artifacts/bars_subset_v1.upk")
