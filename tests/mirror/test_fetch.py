"""An archive down from W&B: the very bytes, or a sentence and nothing at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages import hydrate as hydrate_stage
from tests.mirror.names import ARCHIVE, NAME, TASK, WRONG_KEY, only
from ups_data.errors import UpsDataError
from ups_data.mirror.fetch import fetch_archive


def fetched(entry, folder="fresh"):
    return fetch_archive(entry, Path(folder))


def hydrated(*flags):
    return hydrate_stage.main([NAME, "--from", "wandb", "--root", "fresh/data", "--cache", "fresh/cache", *flags])


def left(folder="fresh"):
    return sorted(path.name for path in Path(folder).glob("*")) if Path(folder).exists() else []


def test_the_very_bytes_come_back(mirrored):
    path = fetched(mirrored)
    assert path.read_bytes() == Path(ARCHIVE).read_bytes()
    assert left() == [path.name]


def test_a_corrupt_download_is_refused_and_nothing_is_published(mirrored, backend):
    backend.faults.corrupt_gets = True
    with pytest.raises(UpsDataError, match=r"came with SHA-256 .* nothing was published"):
        fetched(mirrored)
    assert left() == []
    backend.faults.corrupt_gets = False
    assert fetched(mirrored).read_bytes() == Path(ARCHIVE).read_bytes()


def test_a_truncated_download_is_refused_and_nothing_is_published(mirrored, backend):
    backend.faults.truncate_gets = True
    with pytest.raises(UpsDataError, match=r"truncated; nothing was published"):
        fetched(mirrored)
    assert left() == []


def test_a_poisoned_cache_of_the_client_is_not_read(mirrored, tmp_path):
    md5, size = mirrored.archive.md5, mirrored.archive.size
    poisoned = tmp_path / "cache" / "artifacts" / "obj" / "md5" / md5[:2] / md5[2:]
    poisoned.parent.mkdir(parents=True, exist_ok=True)
    poisoned.write_bytes(b"x" * size)
    assert fetched(mirrored).read_bytes() == Path(ARCHIVE).read_bytes()
    assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "cache")


def changed(entry, **update):
    copies = entry.wandb.model_copy(update={"dataset": entry.wandb.dataset.model_copy(update=update)})
    return entry.model_copy(update={"wandb": copies})


def test_a_missing_version_is_a_sentence(mirrored):
    with pytest.raises(UpsDataError, match=rf"{NAME}:v9 is not to be had on W&B: .*not found"):
        fetched(changed(mirrored, artifact=f"local/ups-data/{NAME}:v9"))
    assert left() == []


def test_a_version_with_other_content_is_refused_before_a_byte_is_downloaded(mirrored, backend):
    with pytest.raises(UpsDataError, match=r"holds something else than the registry says .* nothing was downloaded"):
        fetched(changed(mirrored, digest="0" * 32))
    assert (left(), backend.downloaded) == ([], [])


def test_fetching_needs_a_key_that_is_right_and_a_copy_that_is_known(new_process, mirrored, monkeypatch):
    with pytest.raises(UpsDataError, match="knows no W&B artifact"):
        fetched(mirrored.model_copy(update={"wandb": None}))
    monkeypatch.setenv("WANDB_API_KEY", WRONG_KEY)
    new_process()
    with pytest.raises(UpsDataError, match="W&B refuses the key") as refused:
        fetched(mirrored)
    assert WRONG_KEY not in str(refused.value)
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(UpsDataError, match=r"there is no W&B key here .* take it from the DVC remote"):
        fetched(mirrored)
    assert left() == []


def test_a_disk_without_room_is_found_out_before_the_download(mirrored, backend, monkeypatch):
    monkeypatch.setattr("ups_data.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UpsDataError, match="free some room"):
        fetched(mirrored)
    assert backend.downloaded == []


def test_a_run_that_is_active_records_what_it_used(mirrored, backend, tmp_path):
    import wandb

    with wandb.init(
        project="ups-data", settings=wandb.Settings(silent=True, console="off", root_dir=str(tmp_path))
    ) as run:
        fetched(mirrored)
    assert [used.name for used in only(backend.versions(NAME)).used_by] == [run.id]


def test_hydrate_takes_the_archive_from_w_and_b_where_none_is_at_hand(mirrored, backend, capsys):
    Path(ARCHIVE).unlink()
    assert hydrated("--split", "test") == 0
    assert Path("fresh/data", f"{TASK}_test.h5").read_bytes() == Path("data/pdebench", f"{TASK}_test.h5").read_bytes()
    assert not Path("fresh/data", f"{TASK}_train.h5").exists()
    downloaded = list(backend.downloaded)
    assert hydrated() == 0
    assert backend.downloaded == downloaded
    assert Path("fresh/data", f"{TASK}_train.h5").exists()


def test_a_damaged_download_is_never_hydrated(mirrored, backend, capsys):
    Path(ARCHIVE).unlink()
    backend.faults.corrupt_gets = True
    assert hydrated() == 1
    assert "nothing was published" in capsys.readouterr().err
    assert not [path for path in Path("fresh/data").iterdir() if not path.name.startswith(".")]
