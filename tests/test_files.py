"""Outputs are whole or absent, and what killed processes leave does not pile up."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ups_data import files
from ups_data.errors import UpsDataError


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "out.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"] and path.read_text() == "old"


@pytest.mark.parametrize("folder", [False, True])
def test_only_what_was_abandoned_long_ago_is_swept(tmp_path, folder):
    """A younger temporary file may be that of a process at work; other files are never touched."""
    path, other = tmp_path / "out[1]", tmp_path / ".other.1234.tmp"
    old, young = tmp_path / ".out[1].0123abcd.tmp", tmp_path / ".out[1].4567abcd.tmp"
    for left in (old, young):
        if folder:
            left.mkdir()
            (left / "part").write_text("x")
        else:
            left.write_text("x")
    other.write_text("x")
    long_ago = time.time() - 2 * files.ABANDONED
    for left in [other, old, *old.rglob("*")]:
        os.utime(left, (long_ago, long_ago))
    if folder:  # the folder itself was made long ago, but its process still writes into it
        os.utime(young, (long_ago, long_ago))
    files.write_text(path, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, young.name, other.name])


WRITE_HALF = """
import sys, time
from ups_data import files
with files.atomic(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_with_the_next_write_and_what_a_live_one_makes_stays(tmp_path):
    path, home = tmp_path / "out", Path(files.__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", WRITE_HALF, path], cwd=home, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "half\n"
        files.write_text(path, "new")
        assert len(list(tmp_path.iterdir())) == 2, "the other process is at work"
    finally:
        process.kill()
        process.communicate()
    files.write_text(path, "newer")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out", "newer")]


def test_a_stop_between_two_renames_leaves_the_old_folder(tmp_path, monkeypatch):
    with files.atomic(tmp_path / "out") as temporary:
        temporary.mkdir()
        (temporary / "part").write_text("old")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", stop)
        with files.atomic(tmp_path / "out") as temporary:
            temporary.mkdir()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["out", "out/part"]


def test_what_a_kill_between_two_renames_moved_aside_comes_back_or_goes(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    aside = tmp_path / f".out.0123abcd.{files._here()}-{dead.pid}.old"
    aside.mkdir()
    (aside / "part").write_text("old")
    with pytest.raises(RuntimeError), files.atomic(tmp_path / "out"):
        raise RuntimeError
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["out", "out/part"]
    aside.mkdir()
    with files.atomic(tmp_path / "out") as temporary:
        temporary.mkdir()
    assert [p.name for p in tmp_path.rglob("*")] == ["out"]


def test_what_a_living_process_and_one_of_another_file_moved_aside_stays(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    kept = [f".out.0123abcd.{files._here()}-{os.getpid()}.old", f".out.x.0123abcd.{files._here()}-{dead.pid}.old"]
    for name in kept:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    with pytest.raises(RuntimeError), files.atomic(tmp_path / "out"):
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == kept


def test_a_name_as_long_as_names_may_be_can_be_written_again(tmp_path):
    path = tmp_path / ("x" * 255)
    for text in ("old", "new"):
        files.write_text(path, text)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_what_a_process_of_another_machine_makes_stays_for_a_day(tmp_path):
    path, elsewhere = tmp_path / "out", tmp_path / ".out.12345678.0123abcd-999999999.tmp"
    elsewhere.write_text("another's")
    files.write_text(path, "mine")
    assert elsewhere.read_text() == "another's"


def test_what_may_not_be_removed_is_no_reason_not_to_write(tmp_path, monkeypatch):
    (tmp_path / ".out.0123abcd.tmp").write_text("another's")
    os.utime(tmp_path / ".out.0123abcd.tmp", (0, 0))

    def refuse(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "remove", refuse)
    files._sweep(tmp_path / "out")
    assert (tmp_path / ".out.0123abcd.tmp").exists()


WRITE_OFTEN = """
import sys
from ups_data import files
for _ in range(100):
    files.write_text(sys.argv[1], sys.argv[2])
"""


def test_processes_that_write_one_file_all_succeed(tmp_path):
    path, home = tmp_path / "out", Path(files.__file__).parents[1]
    commands = [[sys.executable, "-c", WRITE_OFTEN, path, name] for name in "pqr"]
    running = [subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate()[1] for process in running] == [""] * 3
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and path.read_text() in "pqr"


def test_equal_values_are_equal_bytes_and_nan_is_refused(tmp_path):
    files.write_json(tmp_path / "a", {"b": 1, "a": [1.5]})
    files.write_json(tmp_path / "b", {"a": [1.5], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "c", {"a": float("nan")})
    assert not (tmp_path / "c").exists()


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    kept = tmp_path / "mine" / "thesis.tex"
    kept.parent.mkdir()
    kept.write_text("years")
    (tmp_path / "empty").mkdir()
    for folder in (kept.parent, tmp_path / "empty"):
        with pytest.raises(UpsDataError, match="is a folder, and a file is to be written there"):
            files.write_text(folder, "new")
    assert kept.read_text() == "years" and sorted(p.name for p in tmp_path.iterdir()) == ["empty", "mine"]


def test_the_shards_of_a_file_give_way_to_it(tmp_path):
    shards = tmp_path / "u_train.h5"
    shards.mkdir()
    (shards / "u_train_000.h5").write_text("old")
    files.write_text(shards, "new")
    assert shards.read_text() == "new"


PUBLISH_OFTEN = """
import sys
from pathlib import Path
from ups_data import files
mine, final = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(200):
    (mine / "inner").mkdir(parents=True)
    (mine / "inner" / "a").write_text(mine.name)
    (mine / "b").write_text(mine.name)
    files.publish(mine, final)
"""


def test_processes_that_publish_the_same_place_all_succeed(tmp_path):
    """Folders replace each other many times over: nobody fails, and what stays is one process's whole."""
    final, home = tmp_path / "out", Path(files.__file__).parents[1]
    commands = [[sys.executable, "-c", PUBLISH_OFTEN, tmp_path / name, final] for name in "pqr"]
    running = [subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate()[1] for process in running] == [""] * 3
    assert [process.returncode for process in running] == [0] * 3
    assert list(tmp_path.iterdir()) == [final]
    assert len({path.read_text() for path in (final / "b", final / "inner" / "a")}) == 1


def test_a_folder_that_cannot_be_put_in_its_place_leaves_the_old_one_there(tmp_path, monkeypatch):
    for name in ("new", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)

    def fail(*_):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="the disk is broken"):
        files.publish(tmp_path / "new", tmp_path / "out")
    assert (tmp_path / "out" / "which").read_text() == "out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out"]


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (75_812_345, "75.8 MB"),
     (999_999_999, "1 GB"), (8_232_960_000, "8.23 GB"), (2.7e12, "2.7 TB")],
)  # fmt: skip
def test_an_amount_is_said_in_the_unit_that_fits(size, said):
    assert files.amount(size) == said


def test_a_rate_is_said_in_the_unit_that_fits(monkeypatch):
    monkeypatch.setattr(files.time, "monotonic", lambda: 14.0)
    assert (files.rate(151_624_690, 12.0), files.rate(5e9, 13.0)) == ("75.8 MB/s", "5 GB/s")
    assert files.rate(0, 14.0) == "0 B/s"
