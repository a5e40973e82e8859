"""The pipeline re-runs what a change touches, and nothing else."""

import ast
from pathlib import Path

import pytest
import yaml

from ups_data.params import Dataset, Params, load_params

ROOT = Path(__file__).parents[1]
# Modules that every stage uses and that shape no output: how it fails, what it prints, where it runs, the schema
# (its values are tracked as params).
INFRASTRUCTURE = {
    "stages/common.py",
    "ups_data/console.py",
    "ups_data/errors.py",
    "ups_data/execution.py",
    "ups_data/files.py",
    "ups_data/params.py",
    "ups_data/training/tracking.py",
}
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def imported(path):
    """The project's own modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            file = Path(*name.split(".")).with_suffix(".py")
            if name.split(".")[0] in ("ups_data", "stages") and (ROOT / file).is_file():
                found.add(file.as_posix())
    return found


def closure(path):
    seen, todo = set(), {path}
    while todo:
        seen |= todo
        todo = {other for one in todo for other in imported(one)} - seen - INFRASTRUCTURE
    return seen


def code_dependencies(stage):
    found = set()
    for path in stage.get("do", stage)["deps"]:
        if path.startswith(("stages/", "ups_data/")):
            inside = (ROOT / path).rglob("*.py") if (ROOT / path).is_dir() else [ROOT / path]
            found |= {p.relative_to(ROOT).as_posix() for p in inside if p.name != "__init__.py"}
    return found


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_modules_it_uses(name):
    expected = closure(f"stages/{name}.py")
    assert sorted(code_dependencies(STAGES[name])) == sorted(expected)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_knobs_of_its_own_dataset_alone(name):
    for key in STAGES[name].get("do", STAGES[name]).get("params", []):
        assert key.startswith(("datasets.${key}.", "simulate.${key}", "sync."))


def test_a_training_knob_never_converts_again():
    for name in ("convert", "package"):
        knobs = {key.rsplit(".", 1)[1] for key in STAGES[name]["do"]["params"]}
        assert not knobs & {"view", "autoencoder", "latents", "train", "baseline", "evaluate"}


def test_every_knob_is_tracked_by_some_stage():
    tracked = {key.split(".")[-1] for stage in STAGES.values() for key in stage.get("do", stage).get("params", [])}
    # `store` is the suffix of the outputs: it is tracked through their names.
    assert set(Dataset.model_fields) - {"store"} <= tracked
    assert set(Params.model_fields) == {"simulate", "datasets", "sync"}


def test_every_dataset_reads_what_some_solver_writes():
    params = load_params(ROOT / "params.yaml")
    written = {solver.folder for solver in params.simulate.values()}
    assert {f"{d.convert.root}/{d.convert.folder}" for d in params.datasets.values()} <= written


LIGHT = ["audit", "convert", "download", "hydrate", "package", "registry", "simulate", "sync", "verify"]


@pytest.mark.parametrize("module", LIGHT)
def test_a_stage_that_needs_no_torch_does_not_import_it_to_say_what_it_does(module):
    """`--help` of any stage, and a conversion, work where torch is missing or slow to load."""
    heavy = {"torch", "matplotlib", "wandb", "skfem"}
    tree = ast.parse((ROOT / f"stages/{module}.py").read_text())
    top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name.split(".")[0] for n in top for a in n.names}
    names |= {(getattr(n, "module", "") or "").split(".")[0] for n in top}
    assert not names & heavy
