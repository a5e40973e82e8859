"""Ctrl-C reaches every process of a terminal at once: the work ends soon, with one sentence, and leaves no process."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

MANY = """
import sys, time
from ups_data.execution import run_all
from stages.common import run, stage_parser

def square(n):
    return n * n

def work(args):
    print("ready", flush=True)
    while True:
        for number, result in run_all(square, {n: (n,) for n in range(400)}, 2):
            assert result == number * number

sys.exit(run(work, stage_parser("", "python -m stages.doing it"), []))
"""


@pytest.mark.parametrize("turns", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_ctrl_c_among_workers_ends_all_of_them(turns):
    moments = random.Random(0)
    for _ in range(turns):
        process = subprocess.Popen(
            [sys.executable, "-c", MANY],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, said = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert said == "python -m stages.doing: interrupted; run the same command again to go on\n"
        assert process.returncode == 130
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
