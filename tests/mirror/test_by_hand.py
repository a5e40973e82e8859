"""Any files as an artifact: name, type, paths, metadata; now or later."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages import sync
from tests.mirror.names import ARCHIVE, NAME, TASK, only


def test_any_files_become_an_artifact(backend):
    flags = ["--type", "notes", "--path", "reports", "--path", "params.yaml", "--metadata", '{"samples": 8}']
    assert sync.main(["--name", "tiny", *flags, "--alias", "first"]) == 0
    version = only(backend.versions("tiny"))
    assert set(backend.files_of(version)) == {f"reports/{TASK}/metrics.json", "params.yaml"}
    assert (version.collection.type, version.meta()) == ("notes", {"samples": 8})
    assert set(version.collection.aliases) == {"latest", "first"}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--name", "x", "--path", "params.yaml", "--metadata", "{"], "is not JSON"),
        (["--name", "x", "--path", "params.yaml", "--metadata", "[1]"], "expected an object"),
        (["--name", "x", "--path", "params.yaml", "--metadata", '{"a": Infinity}'], "x cannot be an artifact"),
        (["--name", "a/b", "--path", "params.yaml"], "Invalid name: 'a/b'"),
        (["--name", "x", "--path", "nowhere"], "nowhere does not exist"),
        (["--name", "x"], "name what to upload with --path"),
        (["--name", "x", "params.yaml"], "give files and folders with --path"),
        (["--path", "params.yaml"], "--path needs --name"),
        (["--name", "x", "--path", "params.yaml", "--type", "wandb-x"], "reserved"),
        (["burgers"], f"docs/registry has no dataset 'burgers'; it has {NAME}"),
    ],
)
def test_a_wrong_wish_is_a_sentence(backend, capsys, flags, sentence):
    assert sync.main(flags) == 1
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    assert backend.uploaded == []


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--name", "a b"], "--name: got 'a b', expected letters, digits"),
        (["--name", "a/b"], "--name: got 'a/b'"),  # it would wait where nobody looks
        (["--name", "../../params"], "--name: got '../../params'"),  # it would lead out of the folder
        (["--name", "x", "--alias", "a/b"], "--alias: got 'a/b'"),
        (["--name", "x", "--metadata", '{"a": NaN}'], "x cannot be an artifact"),
    ],
)
def test_what_wandb_would_refuse_never_waits(project, monkeypatch, capsys, flags, sentence):
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = sorted(Path().rglob("*"))
    assert sync.main([*flags, "--path", "params.yaml"]) == 1
    assert sentence in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


def test_an_artifact_keeps_its_type(backend, capsys):
    assert sync.main(["--name", "tiny", "--path", "params.yaml"]) == 0
    assert sync.main(["--name", "tiny", "--path", ARCHIVE, "--type", "model"]) == 1
    assert "already exists with type 'dataset'" in capsys.readouterr().err


def test_files_asked_for_offline_are_uploaded_later_unless_they_changed(backend, monkeypatch, capsys):
    Path("a.txt").write_text("a")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert sync.main(["--name", "tiny", "--path", "a.txt", "--metadata", '{"n": 1}']) == 0
    assert "`make sync` uploads it, keep its files until then" in capsys.readouterr().out
    monkeypatch.delenv("WANDB_MODE")
    Path("a.txt").write_text("b")
    assert sync.main([]) == 1
    assert "a.txt has MD5" in capsys.readouterr().err
    Path("a.txt").write_text("a")
    assert sync.main([]) == 0
    version = only(backend.versions("tiny"))
    assert (version.meta(), backend.files_of(version)) == ({"n": 1}, {"a.txt": b"a"})
    assert sync.main([]) == 0
    assert "every dataset is mirrored" in capsys.readouterr().out
