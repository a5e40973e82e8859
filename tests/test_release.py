"""A tag promises data: it is made once git is clean, dvc.lock matches and the remote holds the archive."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages import package as package_stage
from stages import release as release_stage
from tests import dvc_project
from tests.dvc_project import ARCHIVE, ARTIFACT, dvc, git, produce, stage
from ups_data import registry
from ups_data.dvc_files import cache_object
from ups_data.errors import UpsDataError
from ups_data.files import write_text
from ups_data.release import release, stale_stages

TAG = f"{ARTIFACT}@v1.0.0"


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> Path:
    """A project whose data is on its remote."""
    project = dvc_project.create(tmp_path_factory.mktemp("pushed"))
    assert dvc(project, "push").returncode == 0
    return project


@pytest.fixture
def project(pushed, tmp_path, monkeypatch) -> Path:
    """A copy of it, with its remote, and the working folder."""
    shutil.copytree(pushed.parent, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy" / "origin")
    return tmp_path / "copy" / "origin"


def archive_on_the_remote(project: Path) -> Path:
    return cache_object(project.parent / "store", registry.read_registry()["waves_subset_v1"].archive.md5)


def tags(project: Path) -> list[str]:
    return git(project, "tag").split()


def test_a_release_is_a_tag_that_other_repositories_get_the_very_bytes_by(project, tmp_path):
    said = release(ARTIFACT, "v1.0.0")
    assert f"git push origin {TAG}" in said
    assert tags(project) == [TAG]
    assert registry.read_registry()["waves_subset_v1"].archive.sha256 in git(project, "cat-file", "-p", TAG)
    produce(project, samples=6, steps=10)  # the head goes on, the tag stays
    git(project, "commit", "-qam", "More data")
    wanted = (project.parent / "store").joinpath(archive_at(project, TAG)).read_bytes()
    import dvc.api

    where = {"path": ARCHIVE, "repo": str(project), "rev": TAG}
    with dvc.api.open(**where, mode="rb") as file:
        assert file.read() == wanted
    assert Path(dvc.api.get_url(**where)).read_bytes() == wanted
    assert (project / ARCHIVE).read_bytes() != wanted
    got = dvc_project.dvc(tmp_path, "get", str(project), ARCHIVE, "--rev", TAG, "--out", "got.upk")
    assert got.returncode == 0, got.stderr
    assert (tmp_path / "got.upk").read_bytes() == wanted


def archive_at(project: Path, tag: str) -> str:
    text = git(project, "show", f"{tag}:{registry.REGISTRY}")
    md5 = registry.parse_registry(text, tag)["waves_subset_v1"].archive.md5
    return f"files/md5/{md5[:2]}/{md5[2:]}"


@pytest.mark.slow
def test_a_release_is_a_dvc_artifact_and_can_be_imported(project, tmp_path):
    release(ARTIFACT, "v1.0.0")
    wanted = (project / ARCHIVE).read_bytes()
    got = dvc(tmp_path, "artifacts", "get", str(project), ARTIFACT, "--rev", "v1.0.0", "--out", "artifact.upk")
    assert got.returncode == 0, got.stderr
    assert (tmp_path / "artifact.upk").read_bytes() == wanted
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    assert dvc(other, "init", "-q").returncode == 0
    imported = dvc(other, "import", str(project), ARCHIVE, "--rev", TAG)
    assert imported.returncode == 0, imported.stderr
    assert (other / "waves_subset_v1.upk").read_bytes() == wanted
    assert f"rev: {TAG}" in (other / "waves_subset_v1.upk.dvc").read_text()


def test_a_clone_without_data_is_released_as_well(project, tmp_path, monkeypatch):
    """What is absent is what dvc.lock records: the remote decides whether it can be had."""
    git(tmp_path, "clone", "-q", str(project), str(project.parent / "clone"))
    clone = project.parent / "clone"
    git(clone, "config", "user.name", "Test")
    git(clone, "config", "user.email", "test@example.org")
    assert stale_stages(clone) == []
    release(ARTIFACT, "v1.0.0", clone)
    assert tags(clone) == [TAG]
    assert not (clone / "data").exists()


def change_code(project: Path) -> None:
    write_text(project / "code.py", "def train(): return 1\n")
    git(project, "commit", "-qam", "Other code")


def change_knob(project: Path) -> None:
    write_text(project / "params.yaml", dvc_project.PARAMS.format(samples=4, steps=10))
    git(project, "commit", "-qam", "More samples")


def change_registry(project: Path) -> None:
    path = project / registry.REGISTRY
    md5 = registry.read_registry(path)["waves_subset_v1"].archive.md5
    write_text(path, path.read_text().replace(md5, "f" * 32))
    git(project, "commit", "-qam", "Another registry")


def drop_entry(project: Path) -> None:
    path = project / registry.REGISTRY
    write_text(path, path.read_text().replace("waves_subset_v1.upk", "other_subset_v1.upk"))
    git(project, "commit", "-qam", "Another entry")


def remove_from_remote(project: Path) -> None:
    archive_on_the_remote(project).unlink()


def truncate_on_remote(project: Path) -> None:
    damage(archive_on_the_remote(project), lambda data: data[:-1])


def corrupt_on_remote(project: Path) -> None:
    damage(archive_on_the_remote(project), lambda data: data[:-1] + bytes([data[-1] ^ 1]))


def damage(path: Path, change) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(change(data))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: write_text(p / "notes.txt", "mine"), r"not committed: notes.txt; run `git add` and `git commit`"),
        (change_code, r"dvc.lock does not match for train@waves; run `dvc repro`"),
        (change_knob, r"dvc.lock does not match for convert@waves; run `dvc repro`"),
        (change_registry, r"says MD5 ffff.* for artifacts/waves_subset_v1.upk, dvc.lock says .*; run `dvc repro`"),
        (drop_entry, r"has no entry for artifacts/waves_subset_v1.upk; run `dvc repro`"),
        (remove_from_remote, r"remote store has no artifacts/.*; run `dvc push artifacts/waves_subset_v1.upk`"),
        (
            truncate_on_remote,
            r"has a damaged artifacts/.* \([0-9]+ bytes, expected [0-9]+ bytes\); delete .*store.*`dvc push",
        ),
        (corrupt_on_remote, r"has a damaged artifacts/.* \(MD5 .*, expected .*\); delete .*store.* and run `dvc push"),
    ],
    ids=["uncommitted", "code", "knob", "registry", "no entry", "not pushed", "truncated", "corrupt"],
)
def test_each_unmet_condition_is_a_sentence_with_the_command_that_mends_it(project, spoil, message):
    spoil(project)
    with pytest.raises(UpsDataError, match=message):
        release(ARTIFACT, "v1.0.0")
    assert tags(project) == []


@pytest.mark.slow
def test_the_command_that_mends_a_damaged_remote_does_mend_it(project, capsys):
    corrupt_on_remote(project)
    with pytest.raises(UpsDataError, match="damaged"):
        release(ARTIFACT, "v1.0.0")
    archive_on_the_remote(project).unlink()
    assert dvc(project, "push", ARCHIVE).returncode == 0
    assert release_stage.main([ARTIFACT, "v1.0.0"]) == 0
    assert release_stage.main([ARTIFACT, "v1.0.0"]) == 1
    assert f"{TAG} exists already, at commit" in capsys.readouterr().err


def test_wrong_names_and_versions_are_sentences(project, capsys):
    for arguments, message in (
        (["wave", "v1.0.0"], "declares no artifact 'wave'; it has waves-subset"),
        ([ARTIFACT, "1.0"], "got version '1.0', expected vMAJOR.MINOR.PATCH such as v1.0.0"),
        ([ARTIFACT], "make release NAME=burgers1d-subset VERSION=v1.0.0"),
        ([ARTIFACT, "v1.0.0", "--remote", "nowhere"], "DVC cannot do this in"),
    ):
        assert release_stage.main(arguments) == 1
        assert message in capsys.readouterr().err
    assert tags(project) == []


def test_a_git_that_does_not_know_who_tags_is_a_sentence(project, tmp_path):
    git(project, "config", "--remove-section", "user")
    nobody = dict.fromkeys(dvc_project.PERSON, "") | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = stage(project, "release", ARTIFACT, "v1.0.0", GIT_CONFIG_GLOBAL="/dev/null", **nobody)
    assert done.returncode == 1
    assert f"could not tag {TAG}: Git user name and email must be configured" in done.stderr
    assert "Traceback" not in done.stderr and tags(project) == []


def test_check_tells_a_stale_lock_from_absent_data(project):
    shutil.rmtree(project / "data")
    shutil.rmtree(project / "artifacts")
    shutil.rmtree(project / ".dvc" / "cache")
    done = stage(project, "release", "--check")
    assert done.returncode == 0, done.stderr
    assert "dvc.lock matches" in done.stdout
    write_text(project / "code.py", "changed = True\n")
    done = stage(project, "release", "--check")
    assert done.returncode == 1
    assert "dvc.lock does not match for train@waves; run `dvc repro`" in done.stderr


def test_a_folder_that_lacks_files_of_the_lock_counts_as_absent(project):
    gallery = project / "data" / "gallery"
    stage = "  show:\n    cmd: mkdir -p data/gallery; cp code.py params.yaml data/gallery\n    outs: [data/gallery]\n"
    stage += "  page:\n    cmd: echo > page.txt\n    deps: [data/gallery, library]\n    outs: [page.txt]\n"
    for name in ("a.py", "b.py"):
        write_text(project / "library" / name, name)
    pipeline = project / "dvc.yaml"
    write_text(pipeline, pipeline.read_text().replace("artifacts:\n", stage + "artifacts:\n", 1))
    assert dvc(project, "repro", "page").returncode == 0
    assert stale_stages(project) == []
    for name in ("code.py", "params.yaml"):
        (gallery / name).unlink()
        assert stale_stages(project) == []
    (project / "library" / "b.py").unlink()  # code is never absent
    assert stale_stages(project) == ["page"]
    write_text(project / "library" / "b.py", "b.py")
    for name in ("code.py", "params.yaml"):
        write_text(gallery / name, "changed")
    assert stale_stages(project) == ["page", "show"]


def test_another_codec_than_the_knobs_never_becomes_the_registrys_entry(project, capsys):
    knobs = ["--params", str(dvc_project.ROOT / "params.yaml")]
    assert package_stage.main(["burgers1d", "--codec", "gzip", *knobs]) == 1
    assert "--codec gzip is not the knob package.codec (pcodec)" in capsys.readouterr().err
    assert git(project, "status", "--porcelain") == ""


def test_every_dataset_of_the_pipeline_is_declared_as_an_artifact():
    import yaml

    from ups_data.params import load_params

    declared = yaml.safe_load((dvc_project.ROOT / "dvc.yaml").read_text()).get("artifacts", {})
    params = load_params(dvc_project.ROOT / "params.yaml")
    wanted = {d.package.name.rpartition("_v")[0].replace("_", "-"): task for task, d in params.datasets.items()}
    assert sorted(declared) == sorted(wanted)
    for name, task in wanted.items():
        package = f"datasets.{task}.package"
        assert declared[name]["path"] == f"artifacts/${{{package}.name}}.${{{package}.suffix}}"
        assert declared[name]["type"] == "dataset"
