"""Packed arrays in a Zarr v3 group: rows of all samples one after another, with offsets beside them.

A sample is a run of rows, so any number of samples is a handful of arrays, and an array is a file for every
SHARD_BYTES of it. Inside a shard stand chunks of about CHUNK_BYTES, read alone. The numbers are stored plain: the
archive that travels packs them better than a codec here could, and a reader maps bytes to numbers with nothing but
the specification. There is no consolidated metadata: Zarr v3 does not specify it, and it would not save a file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import zarr
from zarr.errors import GroupNotFoundError

from ups_data.errors import UpsDataError
from ups_data.execution import signals_noted

SHARD_BYTES = 64 << 20  # few files, and none that a remote would not take
CHUNK_BYTES = 1 << 20  # read at once: a few trajectories; larger ones would be read for nothing
VERSION = 1
UNREADABLE = (KeyError, ValueError, OSError, RuntimeError, TypeError)  # what Zarr raises for what is damaged


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What is stored of every sample beside its numbers: its times, its parameters, where it came from."""

    times: np.ndarray  # float64 [T]
    parameters: Sequence[float]
    group: str  # id of the initial condition, 32 hex digits
    source_file: int
    source_row: int


def create_group(path: Path) -> None:
    """Make a new, empty Zarr v3 group in the folder `path`, which must not exist."""
    with signals_noted():  # an event loop of Zarr's that is stopped in between says so in tracebacks
        zarr.create_group(store=zarr.storage.LocalStore(path), zarr_format=3)


@dataclass(frozen=True)
class Array:
    """An array of a store as plain bytes at known offsets, so that any process can write any rows of it, in any order.

    `path`: its folder; `shape` [rows, ..]; `dtype`: little-endian, e.g. "<f4".
    """

    path: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk. Chunks are equal, so that the last one is filled too: padding would be stored as zeros."""
        return max(1, math.ceil(self.shape[0] / self._chunks))

    @property
    def file_rows(self) -> int:
        """Rows of a file: those of as many whole chunks as fit into SHARD_BYTES, or all rows."""
        return self.chunk_rows * max(1, min(self._chunks, SHARD_BYTES // max(1, self.chunk_rows * self.row_bytes)))

    @property
    def is_sharded(self) -> bool:
        """Whether a file is a Zarr shard, which has an index behind its chunks, and not the array's only chunk."""
        return self._chunks > 1

    @property
    def _chunks(self) -> int:
        return max(1, math.ceil(self.shape[0] * max(1, self.row_bytes) / CHUNK_BYTES))

    def file(self, index: int) -> Path:
        """The file that has rows index * file_rows and following."""
        return Path(self.path, "c", str(index), *["0"] * (len(self.shape) - 1))

    def files(self) -> Iterator[tuple[Path, int, bytes]]:
        """Path, bytes of the chunks, and the index behind them, of every file."""
        starts = range(0, self.shape[0] if self.row_bytes else 0, self.file_rows)
        for number, start in enumerate(starts):
            chunks = min(self.file_rows // self.chunk_rows, math.ceil((self.shape[0] - start) / self.chunk_rows))
            index = _shard_index(self, chunks) if self.is_sharded else b""
            yield self.file(number), chunks * self.chunk_rows * self.row_bytes, index

    def lies_plain(self) -> bool:
        """Whether every file is as `create` makes it, so that `read` gives what Zarr would."""
        for path, size, index in self.files():
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size != size + len(index):
                    return False
                if os.pread(file.fileno(), len(index), size) != index:
                    return False
        return True

    def read(self, first: int, stop: int) -> np.ndarray:
        """Rows first..stop, which must be there; raises OSError for a file that has become shorter."""
        rows = np.empty((stop - first, *self.shape[1:]), self.dtype)
        for path, offset, part in self._pieces(first, rows.reshape(-1).view(np.uint8).data):
            with open(path, "rb", buffering=0) as file:
                file.seek(offset)
                while len(part):
                    if not (taken := file.readinto(part)):
                        raise OSError(f"{path} ends too early")
                    part = part[taken:]
        return rows

    def write(self, first: int, rows: np.ndarray) -> None:
        """Put rows [n, ..] into their places from row `first` on; the array was created before."""
        data = np.ascontiguousarray(rows, dtype=self.dtype).reshape(-1).view(np.uint8).data
        for path, offset, part in self._pieces(first, data):
            with open(path, "r+b", buffering=0) as file:
                file.seek(offset)
                while len(part):
                    part = part[file.write(part) :]

    def _pieces(self, first: int, data: memoryview) -> Iterator[tuple[Path, int, memoryview]]:
        """The bytes of rows from `first` on, file by file: (file, where in it, which of the bytes)."""
        while len(data):
            index, within = divmod(first, self.file_rows)
            count = min(len(data) // self.row_bytes, self.file_rows - within)
            size = count * self.row_bytes
            yield self.file(index), within * self.row_bytes, data[:size]
            first, data = first + count, data[size:]


def create(array: Array) -> None:
    """Make the files of an array in their full length, with zeros where rows will be written."""
    path, cell = Path(array.path), tuple(max(1, n) for n in array.shape[1:])
    with signals_noted():
        zarr.create_array(
            zarr.storage.LocalStore(path.parent),
            name=path.name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(array.chunk_rows, *cell),
            shards=(array.file_rows, *cell) if array.is_sharded else None,
            compressors=None,
            filters=None,
            fill_value=0,
            zarr_format=3,
        )
    for file_path, size, index in array.files():
        file_path.parent.mkdir(parents=True, exist_ok=True)
        with open(file_path, "wb") as file:
            file.truncate(size)
            file.seek(size)
            file.write(index)


def _shard_index(array: Array, chunks: int) -> bytes:
    """Offset and length of every chunk, 2^64 - 1 twice for one beyond the array, and their CRC32C.

    As the codec `sharding_indexed` of the Zarr v3 specification wants it, with the index at the end.
    """
    entries = np.full((array.file_rows // array.chunk_rows, 2), 2**64 - 1, dtype="<u8")
    size = array.chunk_rows * array.row_bytes
    entries[:chunks, 0], entries[:chunks, 1] = size * np.arange(chunks, dtype=np.uint64), size
    index = entries.tobytes()
    return index + google_crc32c.value(index).to_bytes(4, "little")


class Run(NamedTuple):
    """Rows first..first + rows of an array: the place of one sample's part of it."""

    array: Array
    first: int
    rows: int


def runs_of(path: Path, **arrays: tuple[Sequence[int], tuple[int, ...], str]) -> list[dict[str, Run]]:
    """The runs of every sample, by name, in arrays of the store `path`: name=(offsets, shape of a row, dtype)."""
    whole = {name: Array(str(path / name), (at[-1], *row), dtype) for name, (at, row, dtype) in arrays.items()}
    count = len(next(iter(arrays.values()))[0]) - 1
    return [
        {name: Run(whole[name], at[i], at[i + 1] - at[i]) for name, (at, _, _) in arrays.items()} for i in range(count)
    ]


@contextmanager
def filling(runs: Mapping[str, Run]) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Yield `append(name, block)`, which puts a block's rows behind those before; every run must be full at the end."""
    done = dict.fromkeys(runs, 0)

    def append(name: str, block: np.ndarray) -> None:
        run = runs[name]
        rows = block.reshape(-1, *run.array.shape[1:])
        if done[name] + len(rows) <= run.rows:
            run.array.write(run.first + done[name], rows)
        done[name] += len(rows)

    yield append
    for name, run in runs.items():
        if done[name] != run.rows:
            raise UpsDataError(
                f"{run.array.path}: got {done[name]} rows of a sample, expected {run.rows}; "
                "the raw files changed while they were read: run the same command again"
            )


def write_array(path: Path, name: str, values: np.ndarray) -> None:
    """Write a whole array into the store `path`."""
    array = Array(str(path / name), values.shape, values.dtype.newbyteorder("<").str)
    create(array)
    array.write(0, values)


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write what every sample has, whatever its kind; there must be one or more."""
    count = len(samples)
    write_array(path, "times", np.array([s.times for s in samples], dtype="<f8"))
    write_array(path, "parameters", np.array([s.parameters for s in samples], dtype="<f8").reshape(count, -1))
    write_array(path, "group", pack_groups([s.group for s in samples]))
    write_array(path, "source_file", np.array([s.source_file for s in samples], dtype="<i4"))
    write_array(path, "source_row", np.array([s.source_row for s in samples], dtype="<i8"))


def offsets_of(counts: Sequence[int]) -> np.ndarray:
    """Where each run starts, and where the last one ends: int64 [len + 1]."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)


def pack_groups(ids: Sequence[str]) -> np.ndarray:
    """Group ids (32 hex digits) as their 16 bytes: uint8 [S, 16]; Zarr v3 specifies no byte strings."""
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype=np.uint8).reshape(len(ids), 16)


def describe(path: Path, *, format: str, task: str, split: str, manifest: Mapping) -> None:
    """Write the attributes that say what a complete group is; a group without them cannot be opened."""
    attributes = {
        "format": format,
        "version": VERSION,
        "task": task,
        "split": split,
        "channels": list(manifest["channels"]),
        "parameter_names": sorted(manifest["parameters"]),
        "manifest": json.loads(json.dumps(manifest, sort_keys=True)),
    }
    with signals_noted():
        zarr.open_group(store=zarr.storage.LocalStore(path), mode="r+", zarr_format=3).attrs.update(attributes)


def open_group(path: str | Path, format: str) -> zarr.Group:
    """Open a group for reading; a missing, damaged or foreign one is a sentence."""
    path = Path(path)
    if not path.exists():
        raise UpsDataError(f"{path} is missing; make it with `dvc repro` or fetch it with `dvc pull` or hydrate")
    try:
        group = zarr.open_group(store=zarr.storage.LocalStore(path, read_only=True), mode="r", zarr_format=3)
    except (GroupNotFoundError, FileNotFoundError, ValueError, KeyError, OSError, TypeError, AttributeError) as error:
        raise UpsDataError(f"{path} is not a readable Zarr v3 group ({error}); fetch or convert it again") from None
    got = group.attrs.get("format"), group.attrs.get("version")
    if got != (format, VERSION):
        raise UpsDataError(
            f"{path}: got format {got[0]!r} version {got[1]}, expected {format!r} version {VERSION}; convert again"
        )
    return group


def _plain(path: Path, array: zarr.Array) -> Array | None:
    """The array in the folder `path` as one to read without Zarr, if it lies there as `create` makes it.

    A read through Zarr takes a millisecond, however few rows it is of; one of the file itself a hundredth.
    """
    plain = Array(str(path), array.shape, array.dtype.newbyteorder("<").str)
    cell = tuple(max(1, n) for n in array.shape[1:])
    shards = (plain.file_rows, *cell) if plain.is_sharded else None
    if (array.chunks, array.shards) != ((plain.chunk_rows, *cell), shards) or array.compressors or array.filters:
        return None
    endian = getattr(array.serializer, "endian", None)
    if endian is not None and endian.value != "little":
        return None
    return plain if plain.lies_plain() else None


class PackedReader:
    """What the readers of meshes and particles share: description, small arrays, runs of rows.

    Raises UpsDataError for a store that is missing, damaged or of another format.
    """

    def __init__(self, path: str | Path, format: str):
        self.path = Path(path)
        self.root = open_group(path, format)
        self._arrays: dict[str, zarr.Array] = {}
        self._plain: dict[str, Array | None] = {}
        attributes = dict(self.root.attrs)
        self.task, self.split = attributes["task"], attributes["split"]
        self.channels: list[str] = attributes["channels"]
        self.parameter_names: list[str] = attributes["parameter_names"]
        self.manifest: dict = attributes["manifest"]
        self.times = self.all("times")
        self.parameters = self.of_samples("parameters", len(self.parameter_names))
        self.groups = [row.tobytes().hex() for row in self.of_samples("group", 16)]
        self.source_file, self.source_row = self.of_samples("source_file"), self.of_samples("source_row")

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
        array = self.array(name)
        try:
            if name not in self._plain:
                self._plain[name] = _plain(self.path / name, array)
            plain, (start, stop, _) = self._plain[name], slice(start, stop).indices(array.shape[0])
            return plain.read(start, stop) if plain and start < stop else array[start:stop]
        except UNREADABLE as error:
            raise self.damaged(name, f"cannot be read ({error})") from None

    def damaged(self, name: str, what: str) -> UpsDataError:
        """The sentence for an array that is not as it was written."""
        return UpsDataError(f"{self.path}/{name} {what}; fetch or convert it again")

    def of_samples(self, name: str, *columns: int) -> np.ndarray:
        """A whole array of one row a sample; raises UpsDataError for one of another shape."""
        values = self.all(name)
        if values.shape != (len(self), *columns):
            raise self.damaged(name, f"has the shape {values.shape}, expected {(len(self), *columns)}")
        return values

    def offsets(self, name: str, *arrays: str) -> np.ndarray:
        """Where every run of the arrays starts, and the last one ends: int64 [n + 1].

        Raises UpsDataError unless the runs are all of the arrays, one after another.
        """
        offsets = self.all(name)
        for of in arrays:
            rows = self.array(of).shape[0]
            if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != rows or (offsets[1:] < offsets[:-1]).any():
                raise self.damaged(name, f"has other places than those of the {rows} rows of {of}")
        return offsets

    def check_pointers(self, name: str, runs: np.ndarray) -> None:
        """Check that an array of row pointers, one more than rows in every run, is as long as these offsets say."""
        rows = self.array(name).shape[0]
        if not len(runs) or rows != runs[-1] + len(runs) - 1:
            raise self.damaged(name, f"has {rows} rows, other than its offsets say")

    def within(self, name: str, values: np.ndarray, below: int) -> np.ndarray:
        """Check that integers lie in 0..below."""
        if values.size and not (values.min() >= 0 and values.max() < below):
            raise self.damaged(name, f"has numbers from {values.min()} to {values.max()}, expected 0 to {below - 1}")
        return values

    def pointers(self, name: str, values: np.ndarray, entries: int) -> np.ndarray:
        """Check the row pointers of a CSR matrix of so many entries."""
        if values[0] != 0 or values[-1] != entries or (values[1:] < values[:-1]).any():
            raise self.damaged(name, f"has other pointers than those of {entries} entries")
        return values

    def array(self, name: str) -> zarr.Array:
        """The named Zarr array, opened once; one that is missing or damaged is a sentence."""
        if name not in self._arrays:
            try:
                array = self.root[name]
            except UNREADABLE as error:
                raise self.damaged(name, f"cannot be read ({error})") from None
            # Zarr reads a missing file as zeros.
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
