"""A real S3 server as DVC remote: read-only and wrong keys, a server that dies in mid-transfer, a corrupted object."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import dvc_project
from tests.archive_cases import tree
from tests.dvc_project import ARCHIVE, ARTIFACT, NAME, dvc, git, stage
from tests.s3_server import KEYS, Relay, S3Server, credentials, serving
from ups_data import registry
from ups_data.files import write_text

BLOBS, BLOB_SIZE = 12, 1 << 20  # 12 MB in all: enough requests for a server to die in the middle


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def published(server, tmp_path_factory) -> Path:
    """A project pushed to a bucket; the writer's keys are in .dvc/config.local."""
    server.files().mkdir("published")
    project = dvc_project.create(tmp_path_factory.mktemp("published"), "s3://published/data")
    assert dvc(project, "remote", "modify", "store", "endpointurl", server.url).returncode == 0
    git(project, "commit", "-qam", "Endpoint")
    for option, value in zip(("access_key_id", "secret_access_key"), KEYS["rw"], strict=True):
        assert dvc(project, "remote", "modify", "--local", "store", option, value).returncode == 0
    pushed = dvc(project, "push")
    assert pushed.returncode == 0, pushed.stderr
    return project


@pytest.fixture
def clone(published, tmp_path) -> Path:
    """A fresh clone: it has no data and no keys."""
    git(tmp_path, "clone", "-q", str(published), "clone")
    return tmp_path / "clone"


def data_of(folder: Path) -> dict[str, bytes]:
    return {path: data for path, data in tree(folder / "data" / "pdebench").items() if not path.startswith(".")}


def archive_object(project: Path) -> str:
    md5 = registry.read_registry(project / registry.REGISTRY)[NAME].archive.md5
    return f"published/data/files/md5/{md5[:2]}/{md5[2:]}"


def secrets_in(folder: Path) -> list[str]:
    """The files of a project that hold a secret key, config.local apart."""
    secrets = [secret.encode() for _, secret in KEYS.values()]
    found = [path for path, data in tree(folder).items() if any(secret in data for secret in secrets)]
    return [path for path in found if path != ".dvc/config.local"]


def test_read_only_keys_hydrate_the_very_bytes_and_keys_stay_out_of_git(published, clone):
    done = stage(clone, "hydrate", NAME, **credentials("ro"))
    assert done.returncode == 0, done.stderr
    assert data_of(clone) == data_of(published)
    assert git(published, "status", "--porcelain") == ""
    assert secrets_in(published) == secrets_in(clone) == []


@pytest.mark.slow
def test_read_only_keys_pull_and_cannot_push(server, published, clone):
    pulled = dvc(clone, "pull", ARCHIVE, **credentials("ro"))
    assert pulled.returncode == 0, pulled.stderr
    assert (clone / ARCHIVE).read_bytes() == (published / ARCHIVE).read_bytes()
    write_text(clone / "mine.txt", "a file the server does not have")
    assert dvc(clone, "add", "mine.txt").returncode == 0
    before = server.objects("published")
    refused = dvc(clone, "push", "mine.txt.dvc", **credentials("ro"))
    assert refused.returncode != 0
    assert "failed to push" in refused.stderr
    assert server.objects("published") == before


@pytest.mark.slow
def test_wrong_keys_are_sentences_and_leave_nothing(clone):
    refused = stage(clone, "hydrate", NAME, **credentials("wrong"))
    assert refused.returncode == 1
    assert f"stages.hydrate: DVC could not fetch {ARCHIVE}" in refused.stderr
    assert "orbidden" in refused.stderr  # the reason, as docs/remotes.md lists it, not only that a file failed
    assert "Traceback" not in refused.stderr
    assert data_of(clone) == {}
    refused = stage(clone, "release", ARTIFACT, "v1.0.0", **credentials("wrong"))
    assert refused.returncode == 1
    assert "the remote store cannot be read" in refused.stderr
    assert git(clone, "tag") == ""


@pytest.mark.slow
def test_a_corrupted_object_is_refused_until_it_is_replaced(server, published, clone):
    place, files = archive_object(published), server.files()
    data = files.cat_file(place)
    files.pipe(place, data[:-1] + bytes([data[-1] ^ 1]))
    refused = dvc(clone, "pull", ARCHIVE, **credentials("ro"))
    assert refused.returncode != 0
    assert not (clone / ARCHIVE).exists()
    refused = stage(clone, "hydrate", NAME, **credentials("ro"))
    assert refused.returncode == 1
    assert "the remote's copy is damaged" in refused.stderr
    assert data_of(clone) == {}
    assert not any(path.startswith(".dvc/cache/files") for path in tree(clone))
    told = stage(clone, "release", ARTIFACT, "v1.0.0", **credentials("ro"))
    assert f"delete s3://{place} and run `dvc push {ARCHIVE}`" in told.stderr
    files.rm(place)
    assert dvc(published, "push", ARCHIVE).returncode == 0
    done = stage(clone, "hydrate", NAME, **credentials("ro"))
    assert done.returncode == 0, done.stderr
    assert data_of(clone) == data_of(published)


@pytest.mark.slow
def test_push_and_pull_go_on_after_the_server_died_in_mid_transfer(server, tmp_path):
    server.files().mkdir("interrupted")
    origin = project_of_blobs(tmp_path / "origin", server)
    broken, _ = transfer(origin, server, "push", dying=True)
    assert broken.returncode != 0
    assert "failed to push" in broken.stderr
    there = [size for size in server.objects("interrupted").values() if size == BLOB_SIZE]
    assert 0 < len(there) < BLOBS
    whole, rest = transfer(origin, server, "push")
    assert whole.returncode == 0, whole.stderr
    assert rest < BLOBS * BLOB_SIZE
    assert sum(server.objects("interrupted").values()) > BLOBS * BLOB_SIZE

    other = tmp_path / "other"
    shutil.copytree(origin, other, ignore=shutil.ignore_patterns("cache", "tmp", "blobs"))
    broken, _ = transfer(other, server, "pull", dying=True)
    assert broken.returncode != 0
    assert "failed to pull" in broken.stderr
    whole, rest = transfer(other, server, "pull")
    assert whole.returncode == 0, whole.stderr
    assert rest < BLOBS * BLOB_SIZE
    assert tree(other / "blobs") == tree(origin / "blobs")


def project_of_blobs(folder: Path, server: S3Server) -> Path:
    folder.mkdir()
    git(folder, "init", "-q")
    assert dvc(folder, "init", "-q").returncode == 0
    assert dvc(folder, "remote", "add", "-d", "store", "s3://interrupted/data").returncode == 0
    assert dvc(folder, "remote", "modify", "store", "verify", "true").returncode == 0
    rng = np.random.default_rng(0)
    (folder / "blobs").mkdir()
    for index in range(BLOBS):
        (folder / "blobs" / f"{index:02}").write_bytes(rng.bytes(BLOB_SIZE))
    assert dvc(folder, "add", "blobs").returncode == 0
    return folder


def transfer(folder: Path, server: S3Server, verb: str, dying: bool = False):
    """Push or pull with four jobs through a relay; with `dying` the server is killed after a third and started again.

    Returns what DVC did and how many bytes passed.
    """
    limit = BLOBS * BLOB_SIZE / 3 if dying else float("inf")
    relay = Relay(server.ports["s3"], limit, server.kill)
    try:
        assert dvc(folder, "remote", "modify", "--local", "store", "endpointurl", relay.url).returncode == 0
        done = dvc(folder, verb, "--jobs", "4", **credentials("rw"))
    finally:
        relay.close()
        if dying:
            server.start()
    return done, relay.passed
