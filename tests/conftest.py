"""What every test starts from."""

import pytest
from hypothesis import settings

from ups_data import console

# The same examples on every run, so that a change is what a new failure comes from. To look for new ones:
# `pytest --hypothesis-profile=default`.
settings.register_profile("repeated", derandomize=True, deadline=None)
settings.load_profile("repeated")


@pytest.fixture(autouse=True)
def normal_console():
    """A stage that was told to be quiet in one test does not silence the next."""
    console.set_level(console.NORMAL)
