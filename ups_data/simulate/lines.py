"""Burgers and advection files in PDEBench's one-array layout, written in chunks of rows.

Each file holds `tensor` [N, T, X], `x-coordinate` [X], `t-coordinate` [T + 1] (one more than there are
frames, as in the official files) and the parameter as a root attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np

from ups_data import console, files
from ups_data.execution import pick_device
from ups_data.simulate import advection, initial_conditions, sample_folder, workers

if TYPE_CHECKING:
    import torch

    from ups_data.params import LineSolver

TIME_STEP = 0.01  # between frames, as in the official files
CHUNK = {"cpu": 64 << 20, "cuda": 2 << 30}  # bytes of a chunk's frames: caches here, launches there
WRITE_BLOCK = 64  # rows copied from the GPU and written at once
PREFIX = {"burgers": "1D_Burgers_Sols_Nu", "advection": "1D_Advection_Sols_beta"}
ATTRIBUTE = {"burgers": "Nu", "advection": "beta"}


class Line(NamedTuple):
    """What determines a file: one equation under one parameter value."""

    solver: str  # burgers or advection
    value: float  # Nu of Burgers, beta of advection
    seed: int
    samples: int
    resolution: int
    frames: int
    dtype: str

    @property
    def bytes_per_row(self) -> int:
        """Size of one trajectory."""
        return self.frames * self.resolution * np.dtype(self.dtype).itemsize


def write(knobs: LineSolver, folder: Path, device: str = "auto") -> list[Path]:
    """Write one file a parameter value into `folder`; files that are there already stay. Returns all paths."""
    shared = knobs.model_dump(exclude={"folder", "values"})
    lines = {file_name(knobs.solver, value): Line(**shared, value=value) for value in knobs.values}
    where = device_of(knobs.solver, device)
    size = next(iter(lines.values())).bytes_per_row * knobs.samples
    unfinished = sample_folder.claim(folder, {name: line._asdict() for name, line in lines.items()}, size)
    total = len(unfinished) * knobs.samples
    with console.progress(f"simulate {knobs.solver}", total, "trajectories") as bar:
        with pool(next(iter(lines.values())), where) as team:
            for name in unfinished:
                write_file(folder / name, lines[name], team, where, bar.advance)
                sample_folder.finish(folder, name)
    return [folder / name for name in lines]


def file_name(solver: str, value: float) -> str:
    """The official name, e.g. 1D_Burgers_Sols_Nu0.001.hdf5."""
    return f"{PREFIX[solver]}{float(value)!r}.hdf5"


def device_of(solver: str, name: str) -> str:
    """The device a solver of lines runs on: advection is a formula and needs no GPU."""
    return "cpu" if solver == "advection" else str(pick_device(name))


def pool(line: Line, device: str) -> AbstractContextManager[workers.Workers]:
    """Workers for files like `line`: as many as one file has chunks."""
    return workers.pool(len(_chunks(line, device)), device, [f"ups_data.simulate.{line.solver}"])


def write_file(
    path: Path, line: Line, team: workers.Workers, device: str, advance: Callable[[int], object] | None = None
) -> None:
    """Solve and write one file; it appears whole or not at all. `advance` is told the rows as they are written."""
    times = TIME_STEP * np.arange(line.frames + 1)
    with files.atomic(path) as temporary, h5py.File(temporary, "w") as file:
        tensor = file.create_dataset("tensor", (line.samples, line.frames, line.resolution), line.dtype)
        file["x-coordinate"] = initial_conditions.cell_centres(line.resolution).astype(line.dtype)
        file["t-coordinate"] = times.astype(line.dtype)
        file.attrs[ATTRIBUTE[line.solver]] = line.value
        row = 0
        for frames in solve(line, team, device):
            for block in (frames[i : i + WRITE_BLOCK] for i in range(0, len(frames), WRITE_BLOCK)):
                tensor[row : row + len(block)] = block if isinstance(block, np.ndarray) else block.cpu().numpy()
                row += len(block)
            if advance:
                advance(len(frames))


def solve(line: Line, team: workers.Workers, device: str) -> Iterator[np.ndarray | torch.Tensor]:
    """The frames [rows, T, X] of a file's chunks of rows, in order.

    Arrays from the CPU, tensors from a GPU. A row's numbers depend on `line` and the row alone, so they are
    the same for any number of rows and workers.
    """
    return workers.in_order(team, partial(_solve_rows, line, device), _chunks(line, device))


def _solve_rows(line: Line, device: str, rows: range) -> np.ndarray | torch.Tensor:
    functions = initial_conditions.draw(line.seed, rows)
    x = initial_conditions.cell_centres(line.resolution)
    times = TIME_STEP * np.arange(line.frames)
    if line.solver == "advection":
        return advection.solve(functions, line.value, x, times, line.dtype)
    import torch

    from ups_data.simulate import burgers

    torch.set_num_threads(1)  # of this worker: the chunks are what runs in parallel
    initial = initial_conditions.evaluate(functions, x).astype(line.dtype)
    frames = burgers.solve(initial, line.value, times, device)
    return frames.numpy() if device == "cpu" else frames


def _chunks(line: Line, device: str) -> list[range]:
    """The rows in equal runs whose frames fit the chunk size of the device."""
    most = max(1, CHUNK[device.partition(":")[0]] // line.bytes_per_row)
    count = -(-line.samples // most)
    edges = [line.samples * i // count for i in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]
