"""W&B off, away, refusing or failing: sentences, no secrets, nothing lost, and a pipeline that goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import registry as registry_stage
from stages import sync
from tests.mirror.names import ARCHIVE, NAME, ROOT, WRONG_KEY, only, record
from tests.wandb_backend import KEY
from ups_data import registry
from ups_data.mirror import client


@pytest.mark.parametrize(
    "environment", [{}, {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, {"WANDB_MODE": "disabled"}]
)
def test_without_w_and_b_the_stage_succeeds_says_so_and_leaves_a_record(project, monkeypatch, capsys, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sync.main([NAME]) == 0
    assert "not mirrored yet, `make sync` uploads it" in capsys.readouterr().out
    assert record() == registry.Mirror(dataset=None, models={})
    assert registry_stage.main([]) == 0
    assert registry.read_registry()[NAME].wandb is None


def test_without_w_and_b_its_client_is_not_imported(project):
    code = f"import sys; from stages import sync; sys.exit(sync.main([{NAME!r}]) or 'wandb' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_what_waited_is_uploaded_when_there_is_a_key(backend, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    assert sync.main([NAME]) == 0
    assert backend.versions(NAME) == []
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert sync.main([]) == 0
    assert record().dataset.artifact == f"local/ups-data/{NAME}:v0"


def test_an_offline_stage_keeps_the_record_of_the_same_archive(mirrored, monkeypatch, capsys):
    before = Path(registry.MIRROR, f"{NAME}.yaml").read_bytes()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert sync.main([NAME]) == 0
    assert f"still local/ups-data/{NAME}:v0" in capsys.readouterr().out
    assert Path(registry.MIRROR, f"{NAME}.yaml").read_bytes() == before


@pytest.mark.slow
def test_a_service_that_is_away_fails_with_a_sentence_and_never_blocks_the_pipeline(backend, capsys):
    backend.faults.down = True
    assert sync.main([NAME]) == 1
    said = capsys.readouterr().err
    assert "W&B cannot be asked" in said and "Traceback" not in said
    assert sync.main([NAME, "--or-later"]) == 0
    assert "not mirrored yet" in capsys.readouterr().out
    assert record().dataset is None
    backend.faults.down = False
    assert sync.main([]) == 0
    assert record().dataset


def test_a_wrong_key_is_a_sentence_without_the_key(new_process, backend, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", WRONG_KEY)
    assert sync.main([NAME]) == 1
    said = capsys.readouterr()
    assert "W&B refuses the key of this machine" in said.err
    assert WRONG_KEY not in said.err + said.out


def test_a_malformed_key_is_a_sentence(new_process, backend, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "shortkey")
    assert sync.main([NAME]) == 1
    assert "W&B refuses the key" in (said := capsys.readouterr().err)
    assert "shortkey" not in said


def test_the_key_of_netrc_is_found_and_never_said(new_process, backend, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY")
    assert client.mode() == "keyless"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text(
        f"machine {backend.url.removeprefix('http://')} login user password {KEY}"
    )
    assert client.mode() == "online"
    assert client.without_secrets(f"refused {KEY}!") == "refused ***!"
    assert sync.main([NAME]) == 0
    only(backend.versions(NAME))


@pytest.mark.slow
def test_an_upload_survives_a_hiccup(backend):
    backend.faults.failing_puts = 1
    assert sync.main([NAME]) == 0
    only(backend.versions(NAME))


@pytest.mark.slow
def test_an_upload_that_fails_for_good_ends_with_a_sentence_and_no_record(backend, capsys):
    backend.faults.failing_puts = 1000
    assert sync.main([NAME, "--set", "sync.retries=1"]) == 1
    assert f"the upload of {NAME} failed" in capsys.readouterr().err
    assert record() is None
    assert backend.versions(NAME) == []
    backend.faults.failing_puts = 0
    assert sync.main([NAME]) == 0
    only(backend.versions(NAME))


def test_nothing_of_an_upload_is_left_on_disk(backend, tmp_path):
    size = Path(ARCHIVE).stat().st_size
    before = set(tmp_path.rglob("*"))
    assert sync.main([NAME]) == 0
    new = [p for p in set(tmp_path.rglob("*")) - before if p.is_file() and not p.is_relative_to(tmp_path / "blobs")]
    assert max(p.stat().st_size for p in new) < size
    assert not Path("wandb").exists()
