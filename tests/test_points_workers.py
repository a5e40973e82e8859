"""Meshes and particles on several cores, on a Dask cluster, and after kills: always the same bytes."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.raw import SPLITS, convert_knobs, write_darcy, write_flow
from tests.test_convert_kills import check_kills, check_kills_beside_workers, digests
from tests.test_dask import kill_at_step, scheduler, worker  # noqa: F401 (a fixture)
from ups_data.conversion import journal, looks, particle_files
from ups_data.conversion.points import convert_points
from ups_data.errors import UpsDataError
from ups_data.execution import AHEAD, WorkersLost
from ups_data.params import ParticleSolver, Tracers
from ups_data.simulate import darcy_mesh, particles
from ups_data.sources import mesh_grid
from ups_data.sources.npz import write_npz
from ups_data.stores import packed

TRACERS = Tracers(particles=64, radius=0.2, seed=0)
RNG = np.random.default_rng(11)


def mesh_shards(root):
    """Three meshes of irregular triangles, four samples on each, and one of them once more with other samples."""
    for index in range(3):
        write_npz(root / f"{index}.npz", darcy_mesh.shard("square", 0.3, 4, (0, index)))
    again = darcy_mesh.shard("square", 0.3, 8, (0, 2))
    write_npz(root / "3.npz", {k: v[4:] if len(v) == 8 and v.ndim == 2 else v for k, v in again.items()})
    return "mesh", convert_knobs(root, "*.npz", source="npz")


def darcy_files(root):
    """Two official Darcy files on one grid: every coefficient field under two strengths of the source."""
    permeability = RNG.uniform(0.1, 1.0, (10, 8, 8))
    for beta in (0.1, 1.0):
        solution = beta * RNG.normal(size=(10, 8, 8))
        write_darcy(root / f"2D_DarcyFlow_beta{beta}_Train.hdf5", permeability, solution, beta)
    return "mesh", convert_knobs(root)


def flow_files(root):
    """Three official Navier-Stokes files of four flows each, to carry tracers."""
    for index in range(3):
        velocity = RNG.normal(scale=0.1, size=(4, 3, 8, 8, 2))
        write_flow(root / f"ns_incom_inhom_2d_512-{index}.h5", velocity, np.linspace(0, 1, 3), "NU: 0.01\n")
    return "particles", convert_knobs(root, "*.h5", tracers=TRACERS)


def particle_shards(root):
    """Ten trajectories, a file each."""
    particles.write(
        ParticleSolver(
            solver="particles", folder="", seed=0, samples=10, particles=16, frames=3, end_time=0.2, radius=0.2
        ),
        root,
    )
    return "particles", convert_knobs(root, "*.npz", source="npz")


CASES = [mesh_shards, darcy_files, flow_files, particle_shards]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Samples that straddle chunks and files, and files that are read in several parts."""
    monkeypatch.setattr(packed, "CHUNK_BYTES", 700)
    monkeypatch.setattr(packed, "SHARD_BYTES", 3500)
    monkeypatch.setattr(mesh_grid, "BLOCK_BYTES", 3000)


def backwards(work, tasks, *where):
    """Work done in another order than it was given out."""
    return ((number, work(*tasks[number])) for number in reversed(tasks))


@pytest.mark.parametrize("case", CASES)
def test_neither_workers_nor_the_order_of_completion_change_a_byte(tmp_path, monkeypatch, case):
    kind, knobs = case(tmp_path / "raw")
    for workers in (1, 2):
        convert_points("task", kind, knobs, SPLITS, tmp_path / f"workers{workers}", workers=workers)
    for module in (journal, looks):
        monkeypatch.setattr(module, "run_all", backwards)
    convert_points("task", kind, knobs, SPLITS, tmp_path / "backwards")
    one = digests(tmp_path / "workers1")
    assert len(one) > 40 and one == digests(tmp_path / "workers2") == digests(tmp_path / "backwards")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_dask_cluster_makes_the_same_bytes_also_when_it_loses_a_worker(
    tmp_path,
    scheduler,  # noqa: F811
    monkeypatch,
    case,
):
    monkeypatch.undo()  # workers are processes of their own: what is patched here is not patched there
    kind, knobs = case(tmp_path / "raw")
    convert_points("task", kind, knobs, SPLITS, tmp_path / "here", workers=1)
    with ExitStack() as stack:
        victim = stack.enter_context(worker(scheduler))
        convert_points("task", kind, knobs, SPLITS, tmp_path / "one", scheduler=scheduler)
        stack.enter_context(worker(scheduler))
        kill_at_step(3, victim, monkeypatch)
        convert_points("task", kind, knobs, SPLITS, tmp_path / "two", scheduler=scheduler)
        assert victim.wait(20) == -signal.SIGKILL
    assert digests(tmp_path / "here") == digests(tmp_path / "one") == digests(tmp_path / "two")


COPY = particle_files.copy


def logged_copy(*block):
    """Say that a block is begun; the first one to be told so dies."""
    with open(os.environ["BLOCK_LOG"], "a") as log:
        log.write("block\n")
    if "KILL_ONCE" in os.environ and not (killed := Path(os.environ["KILL_ONCE"])).exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return COPY(*block)


@pytest.fixture
def tracers(tmp_path, monkeypatch):
    """A conversion of twelve blocks, its outputs, and a log of the blocks that were begun."""
    kind, knobs = flow_files(tmp_path / "raw")
    convert_points("task", kind, knobs, SPLITS, tmp_path / "whole", workers=1)
    monkeypatch.setenv("BLOCK_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(particle_files, "copy", logged_copy)

    def work(workers=1):
        convert_points("task", kind, knobs, SPLITS, tmp_path / "out", workers=workers)

    return work, tmp_path / "out", digests(tmp_path / "whole"), tmp_path / "log"


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_a_conversion_survives_kills_at_any_moment_and_keeps_finished_blocks(tracers, kills):
    work, out, whole, log = tracers
    check_kills(work, out, whole, 12, kills, log)


@pytest.mark.slow
def test_so_it_does_with_worker_processes(tracers):
    check_kills_beside_workers(*tracers[:3])


def test_a_killed_worker_costs_the_blocks_in_hand_alone(tracers, tmp_path, monkeypatch):
    work, out, whole, log = tracers
    monkeypatch.setenv("KILL_ONCE", str(tmp_path / "killed"))
    with pytest.raises(WorkersLost, match="run the same command again to go on"):
        work(workers=2)
    assert digests(out) == {} and (out / ".task.partial/journal.jsonl").exists()
    work()
    assert digests(out) == whole
    assert len(log.read_text().split()) <= 12 + AHEAD * 2, "what two workers had been given was begun again at most"


def test_bad_numbers_found_by_a_worker_are_a_sentence_and_nothing_is_left(tmp_path):
    kind, knobs = particle_shards(tmp_path / "raw")
    path = sorted((tmp_path / "raw").glob("*.npz"))[4]
    arrays = dict(np.load(path))
    arrays["velocities"][2, 3, 1] = np.nan
    write_npz(path, arrays)
    with pytest.raises(UpsDataError, match=rf"{path.name}: velocities\[2, 3, 1\]: got nan, expected a finite number"):
        convert_points("task", kind, knobs, SPLITS, tmp_path / "out", workers=2)
    assert digests(tmp_path / "out") == {} and not (tmp_path / "out/.task.partial").exists()
