"""A conversion killed at any moment leaves old outputs or new ones, and goes on where it was to the same bytes."""

import os
import random
import signal
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.raw import SPLITS, convert_knobs, line_values, write_burgers, write_one_array
from ups_data import files
from ups_data.conversion import blocks
from ups_data.conversion.grid import convert_grid


def digests(folder):
    """Checksums of all that a reader could open."""
    found = [p for p in Path(folder).rglob("*") if p.is_file()]
    names = {p: p.relative_to(folder).as_posix() for p in found}
    return {name: files.checksum(p) for p, name in sorted(names.items()) if not name.startswith(".")}


def killed_at(moment, work):
    """Do the work in a process that is killed at its moment-th call of a function; return its exit status.

    Every call counts, of Python and of C: planning, copying, describing, renaming.
    """

    def victim():
        left, me = moment, os.getpid()

        def count(frame, event, argument):
            nonlocal left
            left -= event in ("call", "c_call") and os.getpid() == me
            if left == 0:
                os.kill(me, signal.SIGKILL)

        sys.setprofile(count)
        work()
        sys.setprofile(None)
        os.write(calls, str(moment - left).encode())

    read, calls = os.pipe()
    process = get_context("fork").Process(target=victim)
    process.start()
    process.join()
    os.close(calls)
    with os.fdopen(read) as text:
        made = text.read()
    return process.exitcode, int(made or 0)


def check_kills(work, out, whole, unit, kills, log):
    """Kill the work `kills` times at seeded moments; in between and at the end, outputs are those of `whole` or none.

    `log` gets a line for each unit of work; a kill costs one at most.
    """
    log.write_text("")
    status, calls = killed_at(-1, work)
    assert status == 0 and digests(out) == whole
    units = len(log.read_text().split())
    assert units == unit
    for name in whole:
        (out / name).unlink()
    moments = random.Random(0)
    log.write_text("")
    survived = 0
    for _ in range(kills):
        status, _ = killed_at(moments.randint(1, calls), work)
        assert status in (0, -signal.SIGKILL)
        visible = digests(out)
        assert visible.items() <= whole.items(), "an output that is there is whole"
        if status == 0 or visible == whole:
            survived += 1
            for name in visible:
                (out / name).unlink()
    work()
    assert digests(out) == whole
    assert len(log.read_text().split()) <= units * (survived + 1) + kills


def check_kills_beside_workers(work, out, whole):
    """Kill the work ten times while two processes work for it; outputs are those of `whole` or none."""
    moments = random.Random(1)
    for _ in range(10):
        killed_at(moments.randint(1, 30_000), lambda: work(workers=2))
        assert digests(out).items() <= whole.items()
    work()
    assert digests(out) == whole


COPY = blocks.copy_block


def logged_copy(*block):
    """Where worker processes find it too."""
    with open(os.environ["BLOCK_LOG"], "a") as file:
        file.write("block\n")
    return COPY(*block)


@pytest.fixture
def grids(tmp_path, monkeypatch):
    """A grid conversion of nine blocks, its outputs, and a log of the blocks that were begun."""
    raw, log = write_burgers(tmp_path / "raw"), tmp_path / "log"
    monkeypatch.setattr(blocks, "BLOCK", 3000)
    convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "whole", workers=1)
    monkeypatch.setenv("BLOCK_LOG", str(log))
    monkeypatch.setattr(blocks, "copy_block", logged_copy)

    def work(workers=1):
        convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "out", workers=workers)

    return work, tmp_path / "out", digests(tmp_path / "whole"), log


@pytest.mark.parametrize("kills", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_a_grid_conversion_survives_kills_at_any_moment(grids, kills):
    work, out, whole, log = grids
    check_kills(work, out, whole, 9, kills, log)


@pytest.mark.slow
def test_so_it_does_with_worker_processes(grids):
    check_kills_beside_workers(*grids[:3])


def test_what_a_killed_run_has_published_and_another_took_away_is_made_again(grids, monkeypatch):
    work, out, whole, _ = grids

    real = files.publish

    def publish_one(temporary, final):
        real(temporary, final)
        if final.name == "burgers1d_train.h5":
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(files, "publish", publish_one)
        process = get_context("fork").Process(target=work)
        process.start()
        process.join()
    assert list(digests(out)) == ["burgers1d_train.h5"]
    (out / "burgers1d_train.h5").write_bytes(b"of another conversion")
    work()
    assert digests(out) == whole


def test_parts_of_other_raw_files_are_not_taken_over(grids, tmp_path):
    work, out, whole, _ = grids
    killed_at(15_000, work)
    assert (out / ".burgers1d.partial/journal.jsonl").exists(), "killed while it copied"
    changed = tmp_path / "raw/1D_Burgers_Sols_Nu0.1.hdf5"
    write_one_array(changed, line_values(20, decay=0.2), {"Nu": 0.1})  # the same initial conditions, other frames
    work()
    convert_grid("burgers1d", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / "fresh", workers=1)
    assert digests(out) == digests(tmp_path / "fresh") != whole
