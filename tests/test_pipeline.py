"""The pipeline re-runs what a change touches, and nothing else."""

import ast
import hashlib
import subprocess
from pathlib import Path

import pytest
import yaml

from ups_data import files
from ups_data.modules import LISTS, module_graph, used_by, write_lists
from ups_data.params import Dataset, Params, load_params

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


CODE = [name for name in STAGES if name != "code"]
GRAPH = module_graph(ROOT)


@pytest.mark.parametrize("name", CODE)
def test_a_stage_depends_on_the_list_of_the_modules_it_uses(name):
    deps = STAGES[name].get("do", STAGES[name])["deps"]
    assert [d for d in deps if d.startswith(("stages", "ups_data", LISTS))] == [f"{LISTS}/{name}.txt"]


def test_the_lists_are_made_for_every_stage():
    outs = [path for out in STAGES["code"]["outs"] for path in out]
    assert outs == [f"{LISTS}/{name}.txt" for name in CODE]


def test_training_code_never_converts_again():
    for name in ("simulate", "convert", "package"):
        used = used_by(f"stages/{name}.py", GRAPH)
        assert not [path for path in used if path.startswith(("ups_data/models", "ups_data/training"))]


def test_a_list_has_what_a_stage_imports_anywhere(tmp_path):
    """In a function, through a package, and the files beside its modules; but nothing it does not import."""
    texts = {
        "stages/one.py": "def work():\n    from ups_data.a import b\n",
        "stages/two.py": "import json\n",
        "ups_data/__init__.py": "import ups_data.other\n",
        "ups_data/a/__init__.py": "from ups_data.deep import thing\n",
        "ups_data/a/b.py": "import ups_data.errors\n",
        "ups_data/a/page.html": "<p>",
        "ups_data/a/unused.py": "",
        "ups_data/deep.py": "thing = 1\n",
        "ups_data/errors.py": "",
        "ups_data/other.py": "",
    }
    for path, text in texts.items():
        files.write_text(tmp_path / path, text)
    folder = write_lists(["one", "two"], tmp_path)
    lists = {
        name: [line.split()[1] for line in (folder / f"{name}.txt").read_text().splitlines()] for name in ("one", "two")
    }
    assert lists == {
        "one": [
            "stages/one.py",
            "ups_data/a/__init__.py",
            "ups_data/a/b.py",
            "ups_data/a/page.html",
            "ups_data/deep.py",
        ],
        "two": ["stages/two.py"],
    }
    before = (folder / "two.txt").read_bytes()
    files.write_text(tmp_path / "ups_data/deep.py", "thing = 2\n")
    write_lists(["one", "two"], tmp_path)
    assert (folder / "two.txt").read_bytes() == before
    assert hashlib.sha256(b"thing = 2\n").hexdigest() in (folder / "one.txt").read_text()


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


def test_git_holds_no_data():
    """What is large belongs to DVC: a stray file in a commit stays in the history for everyone."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if (ROOT / name).is_file()}
    assert sizes and {name for name, size in sizes.items() if size > 2_000_000} == set()


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
