"""Ctrl-C reaches every process of a terminal at once: the work ends soon, with one sentence, and leaves no process."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MANY = """
import sys
from ups_data.execution import run_all
from ups_data.simulate import workers
from stages.common import run, stage_parser

workers.cores = lambda: 2

def converting():
    for number, result in run_all(abs, {n: (-n,) for n in range(400)}, 2):
        assert result == number

def simulating():
    with workers.pool(400, "cpu") as team:
        assert list(workers.in_order(team, abs, range(0, -400, -1))) == list(range(400))

def work(args):
    print("ready", flush=True)
    while True:
        WORK()

sys.exit(run(work, stage_parser("", "python -m stages.doing it"), []))
"""


@pytest.mark.parametrize("work", ["converting", "simulating"])
@pytest.mark.parametrize("turns", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_ctrl_c_among_workers_ends_all_of_them(turns, work):
    moments = random.Random(0)
    for _ in range(turns):
        process = subprocess.Popen(
            [sys.executable, "-c", MANY.replace("WORK", work)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, said = process.communicate(timeout=20)  # to the end of the pipes, which every process left would hold
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert said == "python -m stages.doing: interrupted; run the same command again to go on\n"
        assert process.returncode == 130


STARTING = """
import signal, sys
sys.argv = ["-m"]  # as while Python looks for the script of `python -m stages.<stage>`
from stages.common import run, stage_parser

def work(args):
    signal.raise_signal(signal.SIGINT)

if EARLY:
    signal.raise_signal(signal.SIGINT)
sys.exit(run(work, stage_parser("", "python -m stages.doing it"), []))
"""


@pytest.mark.parametrize(
    ("early", "status", "said"), [(True, -signal.SIGINT, ""), (False, 130, "python -m stages.doing: interrupted; run")]
)
def test_ctrl_c_before_a_stage_listens_ends_it_without_a_traceback(early, status, said):
    command = [sys.executable, "-c", STARTING.replace("EARLY", str(early))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert done.stderr.startswith(said) and done.stderr.count("\n") <= 1


IMPORTING = """
import sys
from stages.common import run, stage_parser


def work(args):
    try:
        import killed_while_imported
    except BaseException:
        pass  # as a library may that imports something of its own
    return "done"


sys.exit(run(work, stage_parser("", "python -m stages.doing it"), []))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_a_module_is_imported_is_not_swallowed(tmp_path, number):
    (tmp_path / "killed_while_imported.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nprint('on')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    ended = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, env=environment)
    assert ended.returncode == 128 + number and not ended.stdout
    assert "interrupted; run the same command again" in ended.stderr and ended.stderr.count("\n") == 1
