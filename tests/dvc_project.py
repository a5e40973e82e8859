"""A small project with DVC, git and one published dataset, on which versions, remotes and reports are tested."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from tests.archive_cases import converted
from ups_data import registry
from ups_data.files import write_json, write_text
from ups_data.packaging import package_dataset
from ups_data.params import Package

ROOT = Path(__file__).parents[1]
NAME, ARTIFACT, ARCHIVE = "waves_subset_v1", "waves-subset", "artifacts/waves_subset_v1.upk"
PARAMS = """\
datasets:
  waves:
    samples: {samples}
    steps: {steps}
    package: {{name: waves_subset_v1, suffix: upk, description: Travelling waves}}
"""
PIPELINE = """\
stages:
  convert:
    foreach: ${datasets}
    do:
      cmd: echo converted ${key}
      params:
      - datasets.${key}.samples
      outs:
      - data/pdebench/${key}_train.h5
      - data/pdebench/${key}_val.h5
      - data/pdebench/${key}_test.h5
      - data/pdebench/${key}_manifest.json
  train:
    foreach: ${datasets}
    do:
      cmd: echo trained ${key}
      deps:
      - code.py
      - data/pdebench/${key}_train.h5
      params:
      - datasets.${key}.steps
      metrics:
      - reports/${key}/metrics.json: {cache: false}
      plots:
      - reports/${key}/operator.csv: {cache: false, x: step, y: val_loss}
      - reports/${key}/rollout.png: {cache: false}
  package:
    foreach: ${datasets}
    do:
      cmd: echo packaged ${key}
      deps:
      - data/pdebench/${key}_train.h5
      outs:
      - artifacts/${item.package.name}.${item.package.suffix}
artifacts:
  waves-subset:
    path: artifacts/${datasets.waves.package.name}.${datasets.waves.package.suffix}
    type: dataset
    desc: ${datasets.waves.package.description}
    labels: [grid]
"""
KNOBS = Package(name=NAME, codec="pcodec", suffix="upk", description="Travelling waves")
PERSON = {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def run(folder: Path, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with this Python's programs and this project's modules found first."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    settings = os.environ | PERSON | path | environment
    return subprocess.run(words, cwd=folder, env=settings, capture_output=True, text=True, check=False)


def git(folder: Path, *arguments: str) -> str:
    """Run git, which must succeed; its output."""
    done = run(folder, "git", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program dvc, as a person does."""
    return run(folder, "dvc", *arguments, **environment)


def stage(folder: Path, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m stages.<name>` there."""
    return run(folder, sys.executable, "-m", f"stages.{name}", *arguments, **environment)


def produce(project: Path, samples: int, steps: int) -> None:
    """Do what the pipeline's stages stand for: convert, train, package, register; then `dvc commit`."""
    from dvc.repo import Repo

    write_text(project / "params.yaml", PARAMS.format(samples=samples, steps=steps))
    data = project / "data" / "pdebench"
    converted(data, "waves", samples={"train": samples, "val": 2, "test": 2})
    package_dataset("waves", KNOBS, data, project / "artifacts", project / registry.ENTRIES)
    registry.merge(project / registry.ENTRIES, project / registry.REGISTRY)
    reports = project / "reports" / "waves"
    write_json(reports / "metrics.json", {"nrmse": 10.0 / steps, "persistence": 0.5})
    write_text(reports / "operator.csv", f"step,val_loss\n0,1\n5,{1 / steps:g}\n{steps},{2 / steps:g}\n")
    (reports / "rollout.png").write_bytes(b"\x89PNG" + bytes([steps]))
    with contextlib.chdir(project), Repo() as repo:
        repo.commit(force=True)


def create(base: Path, remote: str = "../../store") -> Path:
    """A committed project `base/origin`; its DVC remote is the folder `base/store` unless a URL is given."""
    from dvc.repo import Repo

    project = base / "origin"
    project.mkdir(parents=True)
    git(project, "init", "-q", "-b", "main")
    git(project, "config", "user.name", "Test")
    git(project, "config", "user.email", "test@example.org")
    Repo.init(str(project)).close()
    config = f"[core]\n    remote = store\n    analytics = false\n['remote \"store\"']\n    url = {remote}\n"
    write_text(project / ".dvc" / "config", config + "    verify = true\n")
    write_text(project / ".gitignore", "/data/\n/artifacts/\n")
    write_text(project / "dvc.yaml", PIPELINE)
    write_text(project / "code.py", "def train(): ...\n")
    produce(project, samples=3, steps=10)
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "First data")
    return project
