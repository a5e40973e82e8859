"""The remote job runs every stage on every dataset named, goes on where it stopped, and tells how it ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.archive_cases import converted
from tests.dvc_project import git
from ups_data import registry
from ups_data.packaging import package_dataset
from ups_data.params import Package

ROOT = Path(__file__).parents[1]
OUTPUTS = {
    "autoencoder": "models/{}/autoencoder.safetensors",
    "latents": "data/latent_cache/{}_test/manifest.json",
    "train": "models/{}/operator.safetensors",
    "baseline": "models/{}/baseline.safetensors",
    "evaluate": "reports/{}/metrics.json",
}
STUB = """\
import pathlib, sys
log = pathlib.Path("calls.txt")
log.open("a").write(" ".join(["{stage}", *sys.argv[1:]]) + "\\n")
if pathlib.Path("break-{stage}").exists():
    sys.exit(3)
out = pathlib.Path("{output}".format(sys.argv[1]))
if "{stage}" == "latents" and out.exists() and "--overwrite" not in sys.argv:
    sys.exit("made with another config; encode again with --overwrite")
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text("done")
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """The script in a project of two published datasets, whose training stages only note that they were called."""
    for name in ("scripts", "stages", "docs"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "scripts" / "run_remote_scale.sh", tmp_path / "scripts")
    (tmp_path / "ups_data").symlink_to(ROOT / "ups_data")
    knobs = yaml.safe_load((ROOT / "params.yaml").read_text())
    knobs["datasets"] = {"waves": knobs["datasets"]["burgers1d"], "tides": knobs["datasets"]["advection1d"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(knobs))
    for name in ("__init__.py", "common.py", "hydrate.py"):
        shutil.copy(ROOT / "stages" / name, tmp_path / "stages")
    for stage, output in OUTPUTS.items():
        (tmp_path / "stages" / f"{stage}.py").write_text(STUB.format(stage=stage, output=output))
    for task in ("waves", "tides"):
        converted(tmp_path / "made", task)
        knobs = Package(name=f"{task}_subset_v1", codec="pcodec", suffix="upk", description=task)
        package_dataset(task, knobs, tmp_path / "made", tmp_path / "artifacts", tmp_path / registry.ENTRIES)
    registry.merge(tmp_path / registry.ENTRIES, tmp_path / registry.REGISTRY)
    return tmp_path


def run(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {"NO_ENV": "1", "MIN_FREE_GB": "0", "PATH": path, **environment}
    command = ["bash", project / "scripts" / "run_remote_scale.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | settings, check=False)


def calls(project: Path) -> list[str]:
    return (project / "calls.txt").read_text().splitlines()


def test_a_failed_job_says_so_and_goes_on_where_it_stopped(project):
    (project / "break-train").touch()
    names = "waves_subset_v1 tides_subset_v1"
    flags = {"WANDB_DATASETS": names, "OVERRIDES": "train.batch=64"}
    assert run(project, "datasets.tides.train.steps=5", **flags).returncode == 3
    assert [call.split()[0] for call in calls(project)] == ["autoencoder", "latents", "train"]
    (project / "break-train").unlink()
    done = run(project, "datasets.tides.train.steps=5", **flags)
    assert done.returncode == 0, done.stderr
    assert [call.split()[:2] for call in calls(project)[3:]] == [
        *([stage, "waves"] for stage in ("train", "baseline", "evaluate")),
        *([stage, "tides"] for stage in OUTPUTS),
    ]
    assert calls(project)[-1] == "evaluate tides --set datasets.tides.train.batch=64 --set datasets.tides.train.steps=5"
    assert (project / "data/pdebench/tides_test.h5").read_bytes() == (project / "made/tides_test.h5").read_bytes()


def test_knobs_tried_before_are_run_again_after_others_took_their_outputs(project):
    for steps in (5, 7, 5):
        assert run(project, f"train.steps={steps}", WANDB_DATASETS="waves_subset_v1").returncode == 0
    trained = [call for call in calls(project) if call.startswith("train ")]
    assert [call[-1] for call in trained] == ["5", "7", "5"]


def test_another_dataset_of_the_task_takes_the_outputs_and_the_marks(project):
    path = project / registry.REGISTRY
    listed = yaml.safe_load(path.read_text())
    listed["waves_subset_v2"] = listed["waves_subset_v1"]
    path.write_text(yaml.safe_dump(listed))
    for name in ("waves_subset_v1", "waves_subset_v2", "waves_subset_v1"):
        assert run(project, WANDB_DATASETS=name).returncode == 0
    assert [call.split()[0] for call in calls(project)] == [*OUTPUTS] * 3
    assert "waves_subset_v1: evaluate is done" in run(project, WANDB_DATASETS="waves_subset_v1").stdout


def test_wrong_names_and_arguments_end_the_job_before_any_work(project):
    for arguments, names, message in (
        ([], "", "WANDB_DATASETS names no dataset"),
        (["steps"], "waves_subset_v1", "got 'steps', expected KEY=VALUE"),
        ([], "waves_subset_v1 sea_subset_v1", "no dataset 'sea_subset_v1'; it has tides_subset_v1, waves_subset_v1"),
        (["train.stepz=3"], "waves_subset_v1", "--set datasets.waves.train.stepz: no such knob"),
        (["datasets.tides.train.steps=many"], "waves_subset_v1 tides_subset_v1", "datasets.tides.train.steps"),
    ):
        done = run(project, *arguments, WANDB_DATASETS=names)
        assert done.returncode == 1
        assert message in done.stderr
    for room, message in (("999999", "999999 wanted"), ("1.5", "MIN_FREE_GB: got '1.5'"), ("lots", "got 'lots'")):
        done = run(project, WANDB_DATASETS="waves_subset_v1", MIN_FREE_GB=room)
        assert done.returncode == 1 and "line" not in done.stderr
        assert message in done.stderr
    assert not (project / "calls.txt").exists() and not (project / "data").exists()


def test_names_and_knobs_on_several_lines_all_count(project):
    knobs = "train.batch=64\nautoencoder.steps=5\n"
    done = run(project, WANDB_DATASETS="waves_subset_v1\ntides_subset_v1\n", OVERRIDES=knobs)
    assert done.returncode == 0, done.stderr
    flags = "--set datasets.{0}.train.batch=64 --set datasets.{0}.autoencoder.steps=5"
    for task in ("waves", "tides"):
        assert f"train {task} {flags.format(task)}" in calls(project)


def test_a_version_that_one_dataset_lacks_ends_the_job_before_any_work(project):
    for arguments in (["init", "-q"], ["add", "docs"], ["commit", "-q", "-m", "all"], ["tag", "waves-subset@v1.0.0"]):
        git(project, *arguments)
    done = run(project, WANDB_DATASETS="waves_subset_v1 tides_subset_v1", VERSION="v1.0.0")
    assert done.returncode == 1
    assert "run_remote_scale: tides_subset_v1 has no version 'v1.0.0' here" in done.stderr
    assert not (project / "data").exists()
