"""Reading and writing .npz shards: zip files of plain arrays, streamed row by row, never unpickled.

What stands in a shard of meshes or of particles is the business of `mesh_npz` and `particles_npz`.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from ups_data.errors import UpsDataError
from ups_data.files import atomic
from ups_data.sources.raw import rounded

PASSED_AT_ONCE = 1 << 20  # bytes read at once on the way to a row
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError, SyntaxError)


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write a shard atomically; equal arrays in equal order are equal bytes (NumPy stamps members with 1980)."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return Path(path)


class Rows:
    """One array of a shard as rows of its last `axes` axes, read one after another."""

    def __init__(self, shard: NpzFile, name: str, axes: int):
        shape = shard.shapes[name]
        self.shard, self.dtype, self.row_shape = shard, shard.dtypes[name], shape[len(shape) - axes :]
        self.row, self._whole = 0, None
        self.row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        if shard.by_column[name]:  # its rows are strewn over the member: nothing to stream
            self._whole = shard.read(name).reshape(-1, *self.row_shape)
        else:
            self._name, self._member = name, shard.open(name)

    def take(self, start: int, count: int) -> np.ndarray:
        """Rows start..start + count; reading forwards streams, and rows passed over are not kept in memory."""
        if self._whole is not None:
            return self._whole[start : start + count]
        try:
            self._go_to(start)
            data = self._member.read(count * self.row_bytes)
        except BROKEN as error:
            raise self.shard.broken(error) from None
        self.row = start + count
        return np.frombuffer(data, dtype=self.dtype).reshape(count, *self.row_shape)

    def _go_to(self, row: int) -> None:
        """Read up to a row. Not by seek(): in Python 3.13.0 it loses its place when two members are read in turns."""
        if row < self.row:
            self._member, self.row = self.shard.open(self._name), 0
        left = (row - self.row) * self.row_bytes
        while left:
            passed = len(self._member.read(min(left, PASSED_AT_ONCE)))
            if not passed:
                raise EOFError(f"{self._name} ends early")
            left -= passed


class NpzFile(AbstractContextManager):
    """An open shard: the shapes and types of its arrays, and their values on demand.

    Raises UpsDataError for a file that is missing, no zip, truncated, or holds pickled objects.
    """

    not_parameters: tuple[str, ...] = ()  # scalars that are something else
    unread: Sequence[str] = ()  # arrays that are left behind
    loss = 0.0  # greatest relative loss of a number that was rounded to float32

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self.by_column: dict[str, bool] = {}
        try:
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise UpsDataError(f"{self.path} is missing; make or fetch it again") from None
        except (PermissionError, IsADirectoryError) as error:
            raise UpsDataError(f"{self.path} cannot be read: {error.strerror}; expected an .npz file") from None
        except BROKEN as error:
            raise self.broken(error) from None
        for member in self._zip.namelist():
            with self.open(member.removesuffix(".npy")):
                pass

    def open(self, name: str) -> zipfile.ZipExtFile:
        """The member of that name, positioned at its first number; its header is noted and checked."""
        try:
            member = self._zip.open(f"{name}.npy")
            version = np.lib.format.read_magic(member)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise ValueError(f"its {name} is in version {version} of the .npy format")
            shape, by_column, dtype = read_header(member)
        except (*BROKEN, KeyError) as error:
            raise self.broken(error) from None
        held, announced = self._zip.getinfo(f"{name}.npy").file_size - member.tell(), math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise UpsDataError(
                f"{self.path}: {name} holds pickled Python objects, which are never loaded; save plain numbers instead"
            )
        if held != announced:
            raise self.broken(f"{name} announces {announced} bytes of numbers and holds {held}")
        self.shapes[name], self.dtypes[name], self.by_column[name] = shape, dtype, by_column and len(shape) > 1
        return member

    def broken(self, reason: object) -> UpsDataError:
        """The sentence for a file that cannot be read."""
        return UpsDataError(f"{self.path} is not a whole .npz file ({reason}); make or fetch it again")

    def read(self, name: str) -> np.ndarray:
        """A whole array."""
        shape, dtype = self.shapes[name], self.dtypes[name]
        with self.open(name) as member:
            try:
                data = member.read()
            except BROKEN as error:
                raise self.broken(error) from None
        return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if self.by_column[name] else "C")

    def __exit__(self, *exception: object) -> None:
        self._zip.close()

    # --- checks that both kinds need --------------------------------------------------------------

    def wrong(self, name: str, got: object, expected: str) -> UpsDataError:
        """The sentence for an array that is not as it should be."""
        return UpsDataError(f"{self.path}: {name}: got {got}, expected {expected}")

    def require(self, names: Sequence[str], kind: str) -> None:
        """Check that the arrays are there."""
        missing = [name for name in names if name not in self.shapes]
        if missing:
            there = ", ".join(self.shapes) or "none"
            raise UpsDataError(f"{self.path}: a {kind} shard needs the key {missing[0]!r}; it has {there}")

    def numbers(self, name: str) -> np.ndarray:
        """A whole array of finite numbers, as float64."""
        if self.dtypes[name].kind not in "fiu":
            raise self.wrong(name, self.dtypes[name], "numbers")
        return self.finite(name, self.read(name).astype(np.float64))

    def check_ascending(self) -> None:
        """Check that every one of the `times` is later than the one before."""
        if (late := np.flatnonzero(np.diff(self.times) <= 0)).size:
            before, after = self.times[late[0] : late[0] + 2]
            raise self.wrong("times", f"{after:g} after {before:g}", "ascending times")

    def single(self, values: np.ndarray) -> np.ndarray:
        """Numbers as float32, not checked; what is lost is noted."""
        values, loss = rounded(values)
        self.loss = max(self.loss, loss)
        return values

    def has_float64(self, names: Iterable[str]) -> bool:
        """Whether some of these arrays have more digits than float32."""
        return any(self.dtypes[name].itemsize > 4 for name in names)

    def integers(self, name: str, below: int) -> np.ndarray:
        """A whole array of integers within 0..below, as int32."""
        if self.dtypes[name].kind not in "iu":
            raise self.wrong(name, self.dtypes[name], "integers")
        values = self.read(name)
        if values.size and (values.min() < 0 or values.max() >= below):
            raise self.wrong(name, f"a number outside 0..{below - 1}", "numbers of existing nodes")
        return values.astype(np.int32)

    def finite(self, name: str, values: np.ndarray, *, before: tuple[int, ...] = (), first: int = 0) -> np.ndarray:
        """Check that there is no NaN and no Inf; the values are rows `first`.. of the array at the indices `before`."""
        if not np.isfinite(values).all():
            at = np.argwhere(~np.isfinite(values))[0]
            place = [*before, *(int(i) + (first if axis == 0 else 0) for axis, i in enumerate(at))]
            raise UpsDataError(
                f"{self.path}: {name}{place or ''}: got {values[tuple(at)]}, expected a finite number; "
                "repair the file or leave it out with the knob `pattern`"
            )
        return values

    def parameters(self) -> dict[str, tuple[str, float]]:
        """The physical parameters, scalars that mean nothing else: name -> (raw name, which is the same, value)."""
        names = [n for n, shape in self.shapes.items() if shape == () and n not in self.not_parameters]
        return {name: (name, float(self.numbers(name))) for name in sorted(names)}

    def csr(self, prefix: str, nodes: int) -> tuple[np.ndarray, np.ndarray]:
        """Row pointers and columns of a square CSR matrix, consistent: indptr int32 [nodes + 1], indices int32.

        Monotone from 0 to the number of entries; the columns of every row in ascending order, none twice.
        """
        names = f"{prefix}indptr", f"{prefix}indices"
        entries = self.shapes[names[1]]
        if self.shapes[names[0]] != (nodes + 1,):
            raise self.wrong(names[0], f"shape {self.shapes[names[0]]}", f"({nodes + 1},): one more than nodes")
        if len(entries) != 1:
            raise self.wrong(names[1], f"shape {entries}", "one axis")
        indptr, indices = self.integers(names[0], entries[0] + 1), self.integers(names[1], nodes)
        if indptr[0] != 0 or indptr[-1] != len(indices) or np.any(np.diff(indptr) < 0):
            raise self.wrong(names[0], f"{indptr[0]}..{indptr[-1]}", f"a climb from 0 to {len(indices)}, the entries")
        rows = np.repeat(np.arange(nodes, dtype=np.int64), np.diff(indptr))
        if np.any(np.diff(rows * nodes + indices) <= 0):
            raise self.wrong(names[1], "columns out of order or twice", "ascending columns in every row")
        return indptr, indices
