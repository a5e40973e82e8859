"""A dataset on W&B: one version for one content, all that is known of it, and a registry that agrees."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from stages import registry as registry_stage
from stages import sync
from tests.mirror.names import ARCHIVE, NAME, ROOT, TASK, only, record
from ups_data import registry


def test_a_dataset_becomes_an_artifact_with_all_that_is_known_of_it(backend):
    assert sync.main([NAME]) == 0
    version = only(backend.versions(NAME))
    entry = registry.read_registry(f"{registry.ENTRIES}/{NAME}.yaml")[NAME]
    assert backend.files_of(version) == {Path(ARCHIVE).name: Path(ARCHIVE).read_bytes()}
    assert version.collection.type == "dataset"
    assert set(version.collection.aliases) == {"latest", "dataset-v1"}
    assert version.description == entry.description
    meta = version.meta()
    assert (meta["dvc_md5"], meta["sha256"], meta["size"]) == (
        entry.archive.md5,
        entry.archive.sha256,
        entry.archive.size,
    )
    assert meta["splits"]["test"]["samples"] == entry.splits["test"].samples
    assert meta["samples"] == sum(split.samples for split in entry.splits.values())
    assert {"resolution", "parameters", "git_revision", "channels", "unpacked_size"} <= set(meta)


def test_the_run_that_made_it_says_with_which_knobs_and_how_good_it_is(backend):
    assert sync.main([NAME]) == 0
    run = only(backend.runs())
    assert only(backend.versions(NAME)).run == run.name
    config = json.loads(run.config)
    assert config["convert"]["value"]["pattern"] == "1D_Burgers_Sols_Nu*.hdf5"
    assert json.loads(run.summary)["nrmse"] == 0.25
    assert run.job_type == "sync"


def test_running_twice_makes_no_second_version_and_uploads_nothing(backend, capsys):
    assert sync.main([NAME]) == 0
    first, uploaded, runs = record(), list(backend.uploaded), len(backend.runs())
    assert sync.main([NAME]) == 0
    assert "there already, nothing uploaded" in capsys.readouterr().out
    assert (record(), backend.uploaded, len(backend.runs())) == (first, uploaded, runs)
    only(backend.versions(NAME))


def test_content_that_is_there_under_an_older_version_is_recognised(backend):
    assert sync.main([NAME]) == 0
    first = record()
    assert sync.main(["--name", NAME, "--path", "params.yaml"]) == 0
    assert only(backend.versions(NAME)[1:]).collection.aliases["latest"] == backend.versions(NAME)[1].id
    uploaded = list(backend.uploaded)
    assert sync.main([NAME]) == 0
    assert (record(), backend.uploaded) == (first, uploaded)
    assert backend.versions(NAME)[0].collection.aliases["latest"] == backend.versions(NAME)[0].id


def test_changed_metadata_is_updated_without_a_new_version(backend, capsys):
    assert sync.main([NAME]) == 0
    path = Path(registry.ENTRIES) / f"{NAME}.yaml"
    entry = registry.read_registry(path)[NAME]
    registry.write_entry(path, NAME, entry.model_copy(update={"description": "better", "seed": 7}))
    assert sync.main([NAME]) == 0
    assert "its metadata updated" in capsys.readouterr().out
    version = only(backend.versions(NAME))
    assert (version.description, version.meta()["seed"]) == ("better", 7)


def test_the_card_of_a_dataset_is_its_description(backend):
    card = Path("docs/datasets") / f"{TASK}.md"
    card.parent.mkdir(parents=True)
    card.write_text("# Burgers\n")
    assert sync.main([NAME]) == 0
    assert only(backend.versions(NAME)).description == "# Burgers\n"


def test_a_git_tag_of_the_dataset_is_an_alias_and_its_commit_is_recorded(backend):
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"], ["tag", "burgers1d-subset@v1.2.0"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert sync.main([NAME]) == 0
    assert "v1.2.0" in only(backend.versions(NAME)).collection.aliases
    assert only(backend.versions(NAME)).meta()["git_revision"] == head


def test_the_registry_says_where_it_is_and_forgets_when_the_archive_changes(mirrored, backend):
    copy = mirrored.wandb.dataset
    assert copy.artifact == f"local/ups-data/{NAME}:v0"
    assert (copy.digest, copy.md5) == (only(backend.versions(NAME)).digest, mirrored.archive.md5)
    path = Path(registry.ENTRIES) / f"{NAME}.yaml"
    path.write_text(path.read_text().replace(mirrored.archive.md5, "f" * 32))
    assert registry_stage.main([]) == 0
    assert registry.read_registry()[NAME].wandb is None


def test_an_archive_that_is_not_the_registered_one_is_not_mirrored(backend, capsys):
    Path(ARCHIVE).write_bytes(b"else")
    assert sync.main([NAME, "--or-later"]) == 1
    assert "it has changed since it was registered" in capsys.readouterr().err
    Path(ARCHIVE).unlink()
    assert sync.main([NAME, "--or-later"]) == 1
    assert f"{ARCHIVE} is missing; get it with `dvc pull {ARCHIVE}`" in capsys.readouterr().err
    assert backend.versions(NAME) == []


def test_models_go_along_when_asked_and_are_recorded(backend):
    assert sync.main([NAME, "--models"]) == 0
    version = only(backend.versions(f"{TASK}_operator"))
    assert (version.collection.type, backend.files_of(version)) == ("model", {"operator.safetensors": b"weights"})
    assert record().models["operator"].artifact == f"local/ups-data/{TASK}_operator:v0"


def test_a_dataset_is_linked_into_a_registry_collection(backend, capsys):
    assert sync.main([NAME, "--set", "sync.registry=dataset"]) == 0
    linked = backend.versions(NAME, "wandb-registry-dataset", "local-org-entity")
    assert linked == backend.versions(NAME)
    assert f"linked as local-org-entity/wandb-registry-dataset/{NAME}:v0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "flags", "place"),
    [
        ({"WANDB_ENTITY": "team", "WANDB_PROJECT": "other"}, [], ("other", "team")),
        ({"WANDB_PROJECT": "other"}, ["--project", "flag", "--entity", "own"], ("flag", "own")),
        ({}, ["--set", "sync.project=knob", "--set", "sync.entity=e"], ("knob", "e")),
    ],
)
def test_entity_and_project_come_from_flags_then_the_environment_then_knobs(
    backend, monkeypatch, environment, flags, place
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sync.main([NAME, *flags]) == 0
    project, entity = place
    only(backend.versions(NAME, project, entity))
    assert record().dataset.artifact == f"{entity}/{project}/{NAME}:v0"


@pytest.mark.skipif(not (ROOT / registry.REGISTRY).is_file(), reason="the pipeline has not run in this clone")
def test_registry_archives_and_dvc_lock_agree():
    locked = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    recorded = {out["path"]: out["md5"] for stage in locked.values() for out in stage.get("outs", [])}
    for name, entry in registry.read_registry(ROOT / registry.REGISTRY).items():
        path = f"artifacts/{entry.archive.file}"
        assert recorded[path] == entry.archive.md5, name
        copies = registry.read_mirror(ROOT / registry.MIRROR, name)
        assert entry.wandb == (copies if copies and copies.dataset else None), name
        if (ROOT / path).exists():
            assert (ROOT / path).stat().st_size == entry.archive.size, name
