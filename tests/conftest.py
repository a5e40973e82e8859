"""What every test starts from."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.archive_cases import zoo
from ups_data import console

# The same examples on every run, so that a change is what a new failure comes from. To look for new ones:
# `pytest --hypothesis-profile=default`.
settings.register_profile("repeated", derandomize=True, deadline=None)
settings.load_profile("repeated")

# A shell has its background jobs ignore Ctrl-C, nohup the hang-up, and what a test starts would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def normal_console():
    """A stage that was told to be quiet in one test does not silence the next."""
    console.set_level(console.NORMAL)


@pytest.fixture(scope="session")
def animals(tmp_path_factory) -> Path:
    """A folder with one file of every kind that is packed."""
    return zoo(tmp_path_factory.mktemp("zoo") / "files")
