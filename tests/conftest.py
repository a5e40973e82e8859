"""What every test starts from."""

import pytest

from ups_data import console


@pytest.fixture(autouse=True)
def normal_console():
    """A stage that was told to be quiet in one test does not silence the next."""
    console.set_level(console.NORMAL)
