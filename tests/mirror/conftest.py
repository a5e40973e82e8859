"""A project with a packaged dataset, and a W&B server of its own, for the real client."""

from __future__ import annotations

import os
import shutil

import pytest

from stages import registry as registry_stage
from stages import sync
from tests.archive_cases import converted
from tests.mirror.names import NAME, ROOT, TASK
from tests.wandb_backend import KEY, Backend
from ups_data import registry
from ups_data.mirror import client
from ups_data.packaging import package_dataset
from ups_data.params import load_params


@pytest.fixture(scope="session")
def packaged(tmp_path_factory):
    """A project with one packaged dataset, its metrics and a model."""
    folder = tmp_path_factory.mktemp("packaged")
    converted(folder / "data/pdebench", TASK)
    params = load_params(ROOT / "params.yaml").datasets[TASK].package
    package_dataset(TASK, params, folder / "data/pdebench", folder / "artifacts", folder / registry.ENTRIES)
    for path, text in {
        f"reports/{TASK}/metrics.json": '{"nrmse": 0.25}',
        f"models/{TASK}/operator.safetensors": "weights",
    }.items():
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(text)
    shutil.copy(ROOT / "params.yaml", folder)
    return folder


@pytest.fixture
def project(packaged, tmp_path, monkeypatch):
    """A copy of it as the working folder, with a home of its own, W&B away and no key."""
    shutil.copytree(packaged, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    places = {"HOME": "home", "WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config", "WANDB_DATA_DIR": "data"}
    for name, place in places.items():
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(client, "UPLOAD_WAIT", 0.5)
    monkeypatch.setattr(client, "QUERY_RETRIES", 1)
    return tmp_path / "project"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The port is the session's: the client's own process remembers it."""
    running = Backend(tmp_path_factory.mktemp("blobs")).start()
    yield running
    running.stop()


@pytest.fixture
def backend(server, project, tmp_path, monkeypatch):
    """An empty server, and the key that it takes; in the end no file may hold that key."""
    (tmp_path / "blobs").mkdir()
    server.reset(tmp_path / "blobs")
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    assert server.unknown == set()
    for path in tmp_path.rglob("*"):
        assert path.name == ".netrc" or not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.fixture
def new_process():
    """Have the client forget the key and the settings it has seen: now, when called, and afterwards."""
    import wandb

    wandb.teardown()
    yield wandb.teardown
    wandb.teardown()


@pytest.fixture
def mirrored(backend):
    """The registry's entry of a dataset that is on the server."""
    assert sync.main([NAME]) == registry_stage.main([]) == 0
    return registry.read_registry()[NAME]
