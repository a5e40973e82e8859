"""A small gallery: a dataset of every kind, converted, with rollouts and scores as an evaluation writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests import small_data
from tests.raw import convert_knobs, write_flow
from ups_data import cards, files
from ups_data.conversion.grid import convert_grid
from ups_data.evaluation.forecast import Forecast, Forecasts
from ups_data.evaluation.record import write_rollouts
from ups_data.gallery.exhibit import exhibit
from ups_data.gallery.looks import open_split
from ups_data.gallery.page import page
from ups_data.manifest import read_manifest

TASKS = {"advection1d": "grid", "navier_stokes2d": "grid", "darcy2d_mesh": "mesh", "particles_advect": "particles"}
FOLDERS = {
    "advection1d": "1D/Advection",
    "navier_stokes2d": "2D/NS_incom",
    "darcy2d_mesh": "mesh/darcy2d",
    "particles_advect": "particles/advect",
}
STEPS = 5  # of the made-up rollouts


def write_data(root: Path) -> None:
    """Convert the small data of every kind into `root`, and write their cards."""
    for write in small_data.WRITERS.values():
        write(root)
    rng = np.random.default_rng(0)
    for number in range(3):
        velocity = rng.normal(size=(4, 6, 8, 8, 2)).astype(np.float32)
        write_flow(root / "raw/flow" / f"ns_incom_inhom_2d_8-{number}.h5", velocity, np.linspace(0, 1, 6), "NU: 0.01")
    convert_grid("navier_stokes2d", convert_knobs(root / "raw/flow", "*.h5"), small_data.SPLIT, root, workers=1)
    for task, folder in FOLDERS.items():
        text = cards.card(cards.part_of(task, folder), read_manifest(root, task), "Sample", f"{task}_subset_v1", None)
        cards.write_card(root / "cards", task, text)


def forecasts(root: Path, task: str, samples: list[int]) -> tuple[Forecasts, list[Forecast]]:
    """The truth of some test samples, and an operator that is off by a tenth."""
    kind = TASKS[task]
    reader, kept = open_split(root, task, "test", kind), []
    for s in samples:
        known, geometry = {}, {}
        if kind == "grid":
            truth, geometry = np.asarray(reader.data[s, -STEPS:]), dict(reader.coordinates)
            times = reader.time[-STEPS:]
        elif kind == "mesh":
            fields = reader.fields(s)
            truth, geometry, times = fields[..., 2:], vars(reader.topology(int(reader.topology_of[s]))), np.zeros(1)
            known = {"permeability": fields[..., 0]}
        else:
            went = reader.trajectory("velocities", s)[-STEPS:] * 0.1
            truth, times = np.concatenate([went, went], axis=-1), reader.times[s, -STEPS:]
            known, geometry = {"start": reader.trajectory("positions", s)[:1]}, {"box": reader.box[s]}
        kept.append(Forecast([s], truth[None], {"operator": 1.1 * truth[None]}, geometry, known))
    channels = {"mesh": ["solution"], "particles": ["dx", "dy", "vx", "vy"]}.get(kind, reader.channels)
    spread, names = np.ones(len(channels)), reader.parameter_names
    return Forecasts(channels, spread, times, reader.parameters, names, reader.groups, iter(())), kept


def write_reports(root: Path) -> None:
    """Rollouts, errors and scores of every task, and the manifests of its latent cache."""
    for task, kind in TASKS.items():
        folder = root / "reports" / task
        folder.mkdir(parents=True)
        few = [0, 1] if kind != "particles" else [0]
        write_rollouts(folder / "rollouts.npz", kind, *forecasts(root, task, few), np.full(len(few), 0.1))
        given = 0 if kind == "mesh" else 10
        models = [
            name for name in ("operator", "baseline", "persistence", "roundtrip") if given or name != "persistence"
        ]
        header = [
            "task",
            "given",
            "every_point",
            "every_frame",
            "subset",
            "model",
            "nrmse",
            "low",
            "high",
            "trajectories",
        ]
        rows = [[task, given, 4, 5, "all", model, 0.1 * (k + 1), 0.09, 0.5, 2] for k, model in enumerate(models)]
        rows += [[task, given, 4, 5, "viscosity=1", "operator", 9.0, 9.0, 9.0, 1]]
        files.write_csv(folder.parent / "leaderboard" / f"{folder.name}.csv", header, rows)
        steps = 1 if kind == "mesh" else STEPS
        curve = [[step, 0.1 * step, *(0.1 + 0.1 * step for _ in models)] for step in range(steps)]
        files.write_csv(folder / "error_per_step.csv", ["step", "time", *models], curve)
        files.write_csv(
            folder / "spectrum.csv", ["wavenumber", "truth", "operator"], [[k, 2.0**-k, 0.1] for k in range(5)]
        )
        for split in ("train", "val", "test"):
            cache = {
                "bytes": 250,
                "data_bytes": 1000,
                "token_grid": [8],
                "latent_dim": 4,
                "dtype": "float16",
                "key": "ab" * 32,
            }
            cache["reconstruction"] = {"state": {"u": 0.01}}
            files.write_json(root / "cache" / f"{task}_{split}" / "manifest.json", cache)


def part(root: Path, task: str, reports: str = "reports") -> dict:
    """The exhibit of a task."""
    return exhibit(task, root, root / "cache", root / reports, root / "cards" / f"{task}.md")


def write_page(root: Path) -> Path:
    """The page of all tasks; returns its path."""
    files.write_text(root / "index.html", page([part(root, task) for task in TASKS]))
    return root / "index.html"
