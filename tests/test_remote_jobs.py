"""A SLURM job and a SkyPilot task run the very script that a person runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

SCRIPTS = Path(__file__).parents[1] / "scripts"
STUB = '#!/usr/bin/env bash\necho "in $PWD: $WANDB_DATASETS, $*"\nexit 7\n'


@pytest.fixture
def project(tmp_path) -> Path:
    """A repository whose run_remote_scale.sh notes how it was called, and a `srun` that runs what it is given."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run_remote_scale.sh").write_text(STUB)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text('#!/usr/bin/env bash\nexec "$@"\n')
    (tmp_path / "bin" / "srun").chmod(0o755)
    return tmp_path


def bash(project: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    settings = os.environ | {"PATH": path, "WANDB_DATASETS": "waves_subset_v1"} | environment
    command = ["bash", *arguments]
    return subprocess.run(command, cwd=project, env=settings, capture_output=True, text=True, check=False)


def test_a_slurm_job_runs_the_script_where_it_was_submitted_and_ends_as_it_does(project, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    job = shutil.copy(SCRIPTS / "run_remote_scale.sbatch", spool / "slurm_script")
    done = bash(project, job, "train.steps=5", SLURM_SUBMIT_DIR=str(project))
    assert done.stdout == f"in {project}: waves_subset_v1, train.steps=5\n"
    assert done.returncode == 7
    alone = bash(project, job)
    assert alone.returncode != 0
    assert "this is a job for sbatch" in alone.stderr


def test_a_skypilot_task_runs_the_script_and_passes_every_setting_it_names(project):
    task = yaml.safe_load((SCRIPTS / "run_remote_scale.sky.yaml").read_text())
    done = bash(project, "-c", task["run"])
    assert done.stdout == f"in {project}: waves_subset_v1, \n"
    assert done.returncode == 7
    script = (SCRIPTS / "run_remote_scale.sh").read_text()
    assert all(f"${{{name}:-" in script for name in task["envs"])
    assert all(isinstance(value, str) for value in task["envs"].values())
