"""On a Dask cluster: the same bytes with any number of workers, also when one of them is killed in mid-work."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from stages import convert as stage
from tests.raw import SPLITS, convert_knobs, write_burgers
from tests.test_convert_kills import digests
from ups_data import console
from ups_data.conversion import blocks
from ups_data.conversion.grid import convert_grid
from ups_data.execution import SCHEDULER, run_all

DASK = [sys.executable, "-m", "dask"]
ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def process(*command, **environment):
    """A process that ends with the block."""
    running = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def worker(address, **environment):
    return process(
        *DASK, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "20",
        **environment,
    )  # fmt: skip


@pytest.fixture
def scheduler():
    """The address of a real scheduler on loopback."""
    address = f"tcp://127.0.0.1:{free_port()}"
    with process(*DASK, "scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"):
        yield address


def kill_at_step(number, victim, monkeypatch):
    """Kill a worker when the progress of what runs next takes that step."""
    steps = iter(range(1000))
    advance = console.Progress.advance

    def kill_one(bar, *amount):
        if next(steps) == number:
            victim.send_signal(signal.SIGKILL)
        advance(bar, *amount)

    monkeypatch.setattr(console.Progress, "advance", kill_one)


@pytest.mark.slow
def test_any_number_of_workers_makes_the_same_bytes(tmp_path, scheduler, monkeypatch):
    raw = write_burgers(tmp_path / "raw")
    monkeypatch.setattr(blocks, "BLOCK", 3000)
    convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "here", workers=1)
    with ExitStack() as stack:
        for count in (1, 2, 4):
            while len(stack._exit_callbacks) < count:
                stack.enter_context(worker(scheduler))
            out = tmp_path / f"workers{count}"
            convert_grid("burgers1d", convert_knobs(raw), SPLITS, out, scheduler=scheduler)
            assert digests(out) == digests(tmp_path / "here")


def slow_square(number, folder):
    """A task that says who works on it, and takes a while."""
    Path(folder, f"{number}.{os.getpid()}").touch()
    hashlib.sha256(bytes(50_000_000))
    return number * number


@pytest.mark.slow
def test_a_worker_killed_in_mid_work_costs_its_own_tasks_alone(tmp_path, scheduler, capsys):
    tasks = {n: (n, str(tmp_path)) for n in range(60)}
    with worker(scheduler) as victim, worker(scheduler):
        found = {}
        for number, result in run_all(slow_square, tasks, scheduler=scheduler):
            found[number] = result
            if len(found) == 20:
                victim.send_signal(signal.SIGKILL)
    assert found == {n: n * n for n in range(60)}
    begun = [path.name.split(".") for path in tmp_path.iterdir()]
    assert len({pid for _, pid in begun}) == 2, "both had a share"
    assert 60 <= len(begun) <= 62, "what the victim had in hand was done again, nothing else"


@pytest.mark.slow
def test_a_conversion_that_lost_a_worker_has_the_same_bytes(tmp_path, scheduler, monkeypatch):
    raw = write_burgers(tmp_path / "raw", samples=40)
    monkeypatch.setattr(blocks, "BLOCK", 400)
    convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "here", workers=1)
    with worker(scheduler) as victim, worker(scheduler):
        kill_at_step(20, victim, monkeypatch)
        convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "out", scheduler=scheduler)
        assert victim.wait(20) == -signal.SIGKILL
    assert digests(tmp_path / "out") == digests(tmp_path / "here")


def test_an_address_without_a_port_is_one_sentence_to_the_very_end(tmp_path):
    write_burgers(tmp_path / "raw")
    command = [sys.executable, "-m", "stages.convert", "--pattern", str(tmp_path / "raw/*.hdf5")]
    flags = ["--out", str(tmp_path / "x_train.h5"), "--scheduler", "tcp://localhost"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no Dask scheduler answers at tcp://localhost (missing port number" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_address_where_nobody_answers_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ups_data.execution.ANSWER", 1)
    write_burgers(tmp_path / "raw")
    for address in (f"tcp://127.0.0.1:{free_port()}", "nonsense://x"):
        monkeypatch.setenv(SCHEDULER, address)
        flags = ["--pattern", str(tmp_path / "raw/*.hdf5"), "--out", str(tmp_path / "out/x_train.h5")]
        assert stage.main(flags) == 1
        error = capsys.readouterr().err
        assert f"no Dask scheduler answers at {address}" in error and "unset $DASK_SCHEDULER_ADDRESS" in error
    assert digests(tmp_path / "out") == {}
