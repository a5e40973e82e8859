"""The report of a pull request says what its knobs, data, metrics and plots are beside those it started from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages import report as report_stage
from tests import dvc_project
from tests.dvc_project import git, produce
from ups_data.report import report


@pytest.fixture(scope="module")
def branched(tmp_path_factory) -> Path:
    """A branch `more` that doubles the samples and halves the error, while `main` went on without it."""
    project = dvc_project.create(tmp_path_factory.mktemp("branched"))
    git(project, "checkout", "-q", "-b", "more")
    produce(project, samples=6, steps=20)
    git(project, "commit", "-qam", "More samples, longer training")
    git(project, "checkout", "-q", "main")
    (project / "notes.txt").write_text("something else\n")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "Unrelated")
    git(project, "checkout", "-q", "more")
    return project


@pytest.fixture
def clone(branched, tmp_path, monkeypatch) -> Path:
    """A clone of the branch, without data, and the working folder."""
    git(tmp_path, "clone", "-q", str(branched), "clone")
    git(tmp_path / "clone", "branch", "-q", "main", "origin/main")
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_a_clone_without_data_reports_knobs_data_metrics_and_plots(clone):
    text = report("main")
    assert section(text, "Parameters").splitlines()[-2:] == [
        "| `params.yaml` | `datasets.waves.samples` | 3 | 6 |",
        "| `params.yaml` | `datasets.waves.steps` | 10 | 20 |",
    ]
    data = section(text, "Data")
    assert "| `waves_subset_v1` | grid | 256 | 6 samples, 268 kB | 2 samples, 100 kB | 2 samples, 100 kB |" in data
    assert "was train 3 samples, 142 kB |" in data
    assert "| `waves_subset_v1` | velocity | 0.5 | 0.5 | 2 | 2 |" in data.split("<details>")[1]
    metrics = section(text, "Metrics")
    assert "| `reports/waves/metrics.json` | nrmse | 1 | 0.5 | -50.0% |" in metrics.split("<details>")[0]
    assert "| `reports/waves/metrics.json` | persistence | 0.5 |" in metrics.split("<details>")[1]
    plots = section(text, "Plots")
    assert "| `reports/waves/operator.csv` | val_loss | 0.2 | 0.1 | 0.1 | 0.05 |" in plots
    assert "![reports/waves/rollout.png](reports/waves/rollout.png)" in plots


def test_what_the_base_did_meanwhile_is_no_part_of_the_report(clone):
    left = git(clone, "merge-base", "main", "HEAD")
    assert report("main").startswith(f"# What changes against `main` ({left[:7]})")
    assert left != git(clone, "rev-parse", "main")


def test_equal_revisions_give_equal_reports_and_nothing_changed_says_so(clone, tmp_path):
    shutil.copytree(clone, tmp_path / "twin")
    assert report("main") == report("main", tmp_path / "twin")
    same = report("HEAD")
    for words in ("No knob changes.", "No metric changes.", "| none |", "2 plots do not change."):
        assert words in same


def test_values_that_differ_and_packing_that_differs_are_told_apart(branched, tmp_path):
    from ups_data import registry

    shutil.copytree(branched, tmp_path / "copy")
    path = tmp_path / "copy" / registry.REGISTRY
    entry, text = registry.read_registry(path)["waves_subset_v1"], path.read_text()
    path.write_text(text.replace(entry.archive.sha256, "e" * 64))
    assert "packed differently, same data" in report("HEAD", tmp_path / "copy")
    path.write_text(path.read_text().replace(entry.splits["val"].sha256, "e" * 64))
    assert "| other values |" in report("HEAD", tmp_path / "copy")
    path.unlink()
    assert "| removed |" in report("HEAD", tmp_path / "copy")


def test_the_first_pull_request_has_everything_new(branched, tmp_path, monkeypatch):
    """The base has neither data nor pipeline."""
    shutil.copytree(branched, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    git(tmp_path / "copy", "checkout", "-q", "--orphan", "empty")
    git(tmp_path / "copy", "rm", "-rqf", "--cached", ".")
    git(tmp_path / "copy", "commit", "-q", "--allow-empty", "-m", "Nothing yet")
    git(tmp_path / "copy", "checkout", "-qf", "more")
    text = report("empty")
    assert "| new |" in text
    assert "`reports/waves/rollout.png` (new)" in text
    assert "| `reports/waves/operator.csv` | val_loss | – | 0.1 | – | 0.05 |" in text


def test_the_stage_writes_a_file_whose_pictures_are_seen_on_a_forge(clone, capsys):
    link = "https://example.org/raw/abc/"
    assert report_stage.main(["--base", "main", "--out", "report.md", "--link", link]) == 0
    text = (clone / "report.md").read_text()
    assert "![reports/waves/rollout.png](https://example.org/raw/abc/reports/waves/rollout.png)" in text
    assert report_stage.main(["--base", "nowhere"]) == 1
    assert "git knows no revision 'nowhere' here; `git fetch origin nowhere` may get it" in capsys.readouterr().err
