"""The entries of docs/families.md are valid and take the official files they mean."""

import fnmatch
import re
from pathlib import Path

import pytest
import yaml

from ups_data.catalogue import all_entries, read_catalogue
from ups_data.params import Params
from ups_data.training.augment import check_augment

ROOT = Path(__file__).parents[1]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
BLOCKS = re.findall(
    r"```yaml\n# (\w+): the entry of (\w+), changed\n(.*?)```", (ROOT / "docs/families.md").read_text(), re.DOTALL
)
FILES = {
    "advection1d": 8,
    "burgers1d": 12,
    "burgers_advection1d": 20,
    "reaction_diffusion1d": 16,
    "diffusion_sorption1d": 1,
    "cfd1d": 3,
    "cfd1d_shock": 1,
    "darcy2d": 5,
    "darcy2d_mesh": 5,
    "diffusion_reaction2d": 1,
    "shallow_water2d": 1,
    "navier_stokes2d": 275,
    "particles_advect": 275,
    "cfd2d": 4,
    "cfd3d": 2,
}


PERIODIC = ("burgers", "advection", "reaction_diffusion", "cfd1d", "cfd2d", "cfd3d")  # and cfd1d_shock is not


def merged(old, new):
    """`new` over `old`, section by section."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


def test_every_family_has_an_entry():
    assert [task for task, _, _ in BLOCKS] == list(FILES)


@pytest.mark.parametrize(("task", "base", "text"), BLOCKS, ids=[block[0] for block in BLOCKS])
def test_an_entry_is_valid_and_takes_its_files(task, base, text):
    entry = merged(PARAMS["datasets"][base], yaml.safe_load(text)[task])
    knobs = Params.model_validate(PARAMS | {"datasets": {task: entry}}).datasets[task].convert
    official = [entry.path for entry in all_entries(read_catalogue(ROOT))]
    wanted = f"{knobs.folder}/{knobs.pattern}"
    taken = [path for path in official if fnmatch.fnmatch(path, wanted) and path.count("/") == wanted.count("/")]
    assert knobs.root == "data/raw/pdebench" and len(taken) == FILES[task]


@pytest.mark.parametrize(("task", "base", "text"), BLOCKS, ids=[block[0] for block in BLOCKS])
def test_an_entry_is_augmented_by_symmetries_of_its_domain(task, base, text):
    entry = merged(PARAMS["datasets"][base], yaml.safe_load(text)[task])
    wraps = task.startswith(PERIODIC) and "shock" not in task
    check_augment(entry["train"]["augment"], entry["kind"], [wraps], task)
