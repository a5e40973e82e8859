"""Packed arrays in a Zarr v3 group: rows of all samples one after another, with offsets beside them.

A sample is a run of rows, so any number of samples is a handful of arrays, and an array is a file for every
SHARD_BYTES of it. Inside a shard stand chunks of about CHUNK_BYTES, read alone. The numbers are stored plain: the
archive that travels packs them better than a codec here could, and a reader maps bytes to numbers with nothing but
the specification. There is no consolidated metadata: Zarr v3 does not specify it, and it would not save a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.errors import GroupNotFoundError

from ups_data.errors import UpsDataError

SHARD_BYTES = 64 << 20  # few files, and a writer that holds one shard of each array stays far below 1 GiB
CHUNK_BYTES = 1 << 20  # read at once: a few trajectories; larger ones would be read for nothing
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What is stored of every sample beside its numbers: its times, its parameters, where it came from."""

    times: np.ndarray  # float64 [T]
    parameters: Sequence[float]
    group: str  # id of the initial condition, 32 hex digits
    source_file: int
    source_row: int


def create_group(path: Path) -> zarr.Group:
    """A new, empty Zarr v3 group in the folder `path`, which must not exist."""
    return zarr.create_group(store=zarr.storage.LocalStore(path), zarr_format=3)


class Packer:
    """Appends blocks of rows to a new array of known length, a whole shard at a time.

    `shape` [rows, ..]; at most one shard is held in memory. `close` checks that every row was given.
    """

    def __init__(self, group: zarr.Group, name: str, shape: Sequence[int], dtype: str):
        rows, row_bytes = shape[0], max(1, math.prod(shape[1:]) * np.dtype(dtype).itemsize)
        # Equal chunks, so that the last one is filled too: padding would be stored as zeros.
        chunks = max(1, math.ceil(rows * row_bytes / CHUNK_BYTES))
        chunk_rows = max(1, math.ceil(rows / chunks))
        self.shard_rows = chunk_rows * max(1, min(chunks, SHARD_BYTES // (chunk_rows * row_bytes)))
        self.array = group.create_array(
            name,
            shape=tuple(shape),
            dtype=dtype,
            chunks=(chunk_rows, *(max(1, n) for n in shape[1:])),
            shards=(self.shard_rows, *(max(1, n) for n in shape[1:])) if chunks > 1 else None,
            compressors=None,
            filters=None,
            fill_value=0,
            config={"write_empty_chunks": True},  # zeros are data: a file that is missing must not read as zeros
        )
        self.buffer = np.empty((min(self.shard_rows, rows), *shape[1:]), dtype=dtype)
        self.written = self.held = 0

    def append(self, block: np.ndarray) -> None:
        """Add rows, in order."""
        taken = 0
        while taken < len(block):
            room = min(self.shard_rows - self.held, len(block) - taken)
            self.buffer[self.held : self.held + room] = block[taken : taken + room]
            self.held, taken = self.held + room, taken + room
            if self.held == self.shard_rows:
                self._flush()

    def _flush(self) -> None:
        self.array[self.written : self.written + self.held] = self.buffer[: self.held]
        self.written, self.held = self.written + self.held, 0

    def close(self) -> None:
        """Write what is still held; the array is complete afterwards."""
        if self.held:
            self._flush()
        if self.written != self.array.shape[0]:
            raise UpsDataError(
                f"{self.array.name}: got {self.written} rows, expected {self.array.shape[0]}; "
                "the raw files changed while they were read: run the same command again"
            )


@contextmanager
def packers(group: zarr.Group, arrays: Mapping[str, tuple[Sequence[int], str]]) -> Iterator[dict[str, Packer]]:
    """New arrays, name -> (shape, dtype), to be filled side by side; every one is checked to be full at the end."""
    made = {name: Packer(group, name, shape, dtype) for name, (shape, dtype) in arrays.items()}
    yield made
    for packer in made.values():
        packer.close()


def write_array(group: zarr.Group, name: str, values: np.ndarray) -> None:
    """Write a whole array that fits in memory."""
    packer = Packer(group, name, values.shape, values.dtype.newbyteorder("<").str)
    packer.append(values)
    packer.close()


def write_runs(group: zarr.Group, name: str, shape: Sequence[int], dtype: str, runs: Iterable[np.ndarray]) -> None:
    """Write an array of that shape from runs of rows, taken one at a time."""
    packer = Packer(group, name, shape, dtype)
    for run in runs:
        packer.append(run.reshape(-1, *shape[1:]))
    packer.close()


def write_samples(group: zarr.Group, samples: Sequence[Sample]) -> None:
    """Write what every sample has, whatever its kind; there must be one or more."""
    count = len(samples)
    write_array(group, "times", np.array([s.times for s in samples], dtype="<f8"))
    write_array(group, "parameters", np.array([s.parameters for s in samples], dtype="<f8").reshape(count, -1))
    write_array(group, "group", pack_groups([s.group for s in samples]))
    write_array(group, "source_file", np.array([s.source_file for s in samples], dtype="<i4"))
    write_array(group, "source_row", np.array([s.source_row for s in samples], dtype="<i8"))


def offsets_of(counts: Sequence[int]) -> np.ndarray:
    """Where each run starts, and where the last one ends: int64 [len + 1]."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)


def pack_groups(ids: Sequence[str]) -> np.ndarray:
    """Group ids (32 hex digits) as their 16 bytes: uint8 [S, 16]; Zarr v3 specifies no byte strings."""
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype=np.uint8).reshape(len(ids), 16)


def describe(path: Path, *, format: str, task: str, split: str, manifest: Mapping) -> None:
    """Write the attributes that say what a complete group is; a group without them cannot be opened."""
    group = zarr.open_group(store=zarr.storage.LocalStore(path), mode="r+", zarr_format=3)
    group.attrs.update(
        {
            "format": format,
            "version": VERSION,
            "task": task,
            "split": split,
            "channels": list(manifest["channels"]),
            "parameter_names": sorted(manifest["parameters"]),
            "manifest": json.loads(json.dumps(manifest, sort_keys=True)),
        }
    )


def open_group(path: str | Path, format: str) -> zarr.Group:
    """Open a group for reading; a missing, damaged or foreign one is a sentence."""
    path = Path(path)
    if not path.exists():
        raise UpsDataError(f"{path} is missing; make it with `dvc repro` or fetch it with `dvc pull` or hydrate")
    try:
        group = zarr.open_group(store=zarr.storage.LocalStore(path, read_only=True), mode="r", zarr_format=3)
    except (GroupNotFoundError, FileNotFoundError, ValueError, KeyError, OSError) as error:
        raise UpsDataError(f"{path} is not a readable Zarr v3 group ({error}); fetch or convert it again") from None
    got = group.attrs.get("format"), group.attrs.get("version")
    if got != (format, VERSION):
        raise UpsDataError(
            f"{path}: got format {got[0]!r} version {got[1]}, expected {format!r} version {VERSION}; convert again"
        )
    return group


class PackedReader:
    """What the readers of meshes and particles share: description, small arrays, runs of rows.

    Raises UpsDataError for a store that is missing, damaged or of another format.
    """

    def __init__(self, path: str | Path, format: str):
        self.path = Path(path)
        self.root = open_group(path, format)
        self._arrays: dict[str, zarr.Array] = {}
        attributes = dict(self.root.attrs)
        self.task, self.split = attributes["task"], attributes["split"]
        self.channels: list[str] = attributes["channels"]
        self.parameter_names: list[str] = attributes["parameter_names"]
        self.manifest: dict = attributes["manifest"]
        self.times, self.parameters = self.all("times"), self.all("parameters")
        self.groups = [row.tobytes().hex() for row in self.all("group")]
        self.source_file, self.source_row = self.all("source_file"), self.all("source_row")

    def __len__(self) -> int:
        return len(self.times)

    @property
    def frames(self) -> int:
        """Frames of every trajectory."""
        return self.times.shape[1]

    def all(self, name: str) -> np.ndarray:
        """A whole array."""
        return self.rows(name, 0, None)

    def rows(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """Rows start..stop of an array; one that is missing or damaged is a sentence."""
        try:
            return self.array(name)[start:stop]
        except (KeyError, ValueError, OSError, RuntimeError) as error:
            raise UpsDataError(f"{self.path}/{name} cannot be read ({error}); fetch or convert it again") from None

    def array(self, name: str) -> zarr.Array:
        """The named Zarr array, opened once; Zarr reads a missing file as zeros, so its files are looked for here."""
        if name not in self._arrays:
            array = self.root[name]
            files = math.ceil(array.shape[0] / (array.shards or array.chunks)[0]) if array.size else 0
            for index in range(files):
                file = self.path.joinpath(name, "c", str(index), *["0"] * (array.ndim - 1))
                if not file.is_file():
                    raise UpsDataError(f"{file} is missing; fetch or convert {self.path} again")
            self._arrays[name] = array
        return self._arrays[name]

    def bounds(self, sample: int, start: int, stop: int | None) -> tuple[int, int]:
        """Check a sample and its frames start..stop; raises UpsDataError when they are not there."""
        stop = self.frames if stop is None else stop
        if not (0 <= sample < len(self) and 0 <= start < stop <= self.frames):
            raise UpsDataError(
                f"{self.path}: got sample {sample}, frames {start}..{stop}; "
                f"expected a sample below {len(self)} and frames within 0..{self.frames}"
            )
        return start, stop
