"""Two processes under torchrun do what one does: the same caches to the byte, the same training to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ups_data.execution import pick_device
from ups_data.files import checksum, read_json
from ups_data.models.autoencoder import save_autoencoder
from ups_data.models.checkpoint import load_model
from ups_data.training import loop, ranks

from .small_data import TASKS, WRITERS, trained
from .test_training_loop import Killed, regression
from .two_ranks import work

MODELS = ("autoencoder", "operator", "baseline")
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
# How far a curve, and weights, may be from those of one process: on GPUs blocks are trained in bfloat16 (three digits).
CLOSE = {"cpu": (1e-3, {"rtol": 1e-3, "atol": 1e-5}), "cuda": (2e-2, {"rtol": 5e-2, "atol": 5e-3})}


def two_ranks(*arguments) -> subprocess.CompletedProcess:
    """`tests.two_ranks` in two processes."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.two_ranks"]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=TWO_GPUS)])
def device(request):
    """Where the ranks are."""
    return request.param


@pytest.fixture(scope="module")
def places(device, tmp_path_factory):
    """The outputs of one process and of two."""
    root = tmp_path_factory.mktemp("ranks")
    for kind in ("grid", "mesh"):
        WRITERS[kind](root)
        model, curve = trained(root, kind, steps=5)
        save_autoencoder(root / "models" / TASKS[kind] / "autoencoder.safetensors", model, curve[-1][0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each rank has: how many add up a sum tells in its last digits
    work(root, root / "one", pick_device(device))
    torch.set_num_threads(threads)
    done = two_ranks(root, root / "two", device)
    assert done.returncode == 0, done.stderr
    return root / "one", root / "two"


@pytest.mark.slow
def test_two_ranks_write_the_cache_of_one_to_the_byte(places):
    one, two = ({p.relative_to(place): checksum(p) for p in place.rglob("cache/*/*")} for place in places)
    assert len(one) == 12
    assert two == one


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_batch_shared_by_two_ranks_trains_the_same_weights(places, device, model):
    (one, _), (two, _) = (load_model(place / f"{model}.safetensors") for place in places)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], **CLOSE[device][1], msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.slow
def test_two_ranks_report_the_curve_of_one(places, device):
    one, two = (read_json(place / "curves.json") for place in places)
    for model in MODELS:
        assert len(one[model]) == len(two[model])
        for row, other in zip(one[model], two[model], strict=True):
            assert other == pytest.approx(row, rel=CLOSE[device][0])


@pytest.mark.slow
def test_ranks_of_which_one_does_not_see_the_state_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    with pytest.raises(Killed):
        regression(tmp_path / "0", die_at=7)
    done = two_ranks("apart", tmp_path, "cpu")
    assert done.returncode and "line: not every process sees the state" in done.stderr
    (tmp_path / "1").symlink_to("0")
    assert two_ranks("apart", tmp_path, "cpu").returncode == 0


def test_one_process_is_rank_0_of_1():
    assert (ranks.rank(), ranks.world()) == (0, 1)
    assert ranks.share(6) == slice(0, 6)
    assert ranks.decided(False) is False and ranks.agree(3)
