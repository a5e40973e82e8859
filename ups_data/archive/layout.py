"""Where the numbers stand in a file: regions of HDF5, Zarr, safetensors and .npy files.

A region is a hint to the packer, never a fact the archive relies on: whatever it says, the same bytes come back.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from ups_data.archive.format import AXES, DTYPES

BLOCK = 4 << 20  # bytes of a block: large against pcodec's chunk of 1 MB, small against memory
SMALLEST = 4096  # bytes; a shorter run of numbers is not worth a block of its own
HEADER_LIMIT = 100 << 20  # bytes of a safetensors header, as its own reader allows
SAFETENSORS = {"F16": "f2", "F32": "f4", "F64": "f8", "BF16": "u2", "I16": "i2", "I32": "i4", "I64": "i8"}
SAFETENSORS |= {"U16": "u2", "U32": "u4", "U64": "u8"}


@dataclass(frozen=True)
class Region:
    """`shape` numbers of `dtype` (C order, little-endian) from byte `offset`; regions of one `name` look alike."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    name: str

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * int(self.dtype[1])


@dataclass(frozen=True)
class Cut:
    """A block to be: bytes from `offset`, numbers of `dtype` and `shape` or, without a dtype, plain bytes."""

    offset: int
    size: int
    dtype: str = ""
    shape: tuple[int, ...] = ()
    name: str = ""

    @property
    def kind(self) -> tuple[str, str, int]:
        """Cuts of one kind are packed alike."""
        return self.name, self.dtype, len(self.shape)


def description(member: str, sources: Mapping[str, Path]) -> Path | None:
    """The nearest zarr.json above a member that is packed with it: others say nothing."""
    names = ((folder / "zarr.json").as_posix() for folder in PurePosixPath(member).parents)
    return next((sources[name] for name in names if name in sources), None)


def regions(path: Path, described: Path | None = None) -> list[Region]:
    """The runs of numbers in a file, in the order of their offsets, none overlapping; unknown files have none.

    `described`: the zarr.json of the array it may be a chunk of (`description`).
    """
    with open(path, "rb") as file:
        start = file.read(8)
    size = path.stat().st_size
    try:
        if start == b"\x89HDF\r\n\x1a\n":
            found = _hdf5(path)
        elif start[:6] == b"\x93NUMPY":
            found = _npy(path)
        elif path.suffix == ".safetensors":
            found = _safetensors(path)
        else:
            found = _zarr_chunk(path, described)
    except Exception:  # whatever it is that only looks like such a file: its bytes are packed as bytes
        found = []
    return _sound(found, size)


def cuts(found: list[Region], size: int) -> Iterator[Cut]:
    """Divide a file of `size` bytes into blocks: regions along their leading axes, what lies between as bytes."""
    offset = 0
    for region in found:
        yield from _byte_cuts(offset, region.offset)
        yield from _region_cuts(region)
        offset = region.offset + region.size
    yield from _byte_cuts(offset, size)


def _byte_cuts(start: int, end: int) -> Iterator[Cut]:
    for offset in range(start, end, BLOCK):
        yield Cut(offset, min(BLOCK, end - offset))


def _region_cuts(region: Region) -> Iterator[Cut]:
    shape = tuple(n for n in region.shape if n > 1) or (1,)
    shape = (math.prod(shape[: 1 - AXES]), *shape[1 - AXES :]) if len(shape) > AXES else shape
    item = int(region.dtype[1])
    axis = 0
    while math.prod(shape[axis + 1 :]) * item > BLOCK:
        axis += 1
    row = math.prod(shape[axis + 1 :]) * item
    pieces = -(-shape[axis] * row // (BLOCK // row * row))
    rows = -(-shape[axis] // pieces)  # even pieces: no sliver at the end
    offset = region.offset
    for _ in range(math.prod(shape[:axis])):
        for first in range(0, shape[axis], rows):
            count = min(rows, shape[axis] - first)
            yield Cut(offset, count * row, region.dtype, (count, *shape[axis + 1 :]), region.name)
            offset += count * row


def _sound(found: list[Region], size: int) -> list[Region]:
    """Sorted, inside the file, without overlap; small neighbours of one type are joined, small loners dropped."""
    sound: list[Region] = []
    plain = [r for r in found if r.dtype in DTYPES and all(type(n) is int and n > 0 for n in (r.offset + 1, *r.shape))]
    for region in sorted(plain, key=lambda r: r.offset):
        end = sound[-1].offset + sound[-1].size if sound else 0
        if region.offset < end or region.offset + region.size > size:
            continue
        last = sound[-1] if sound else None
        if last and last.dtype == region.dtype and end == region.offset and max(last.size, region.size) < BLOCK // 4:
            if last.name == region.name and last.shape[1:] == region.shape[1:]:
                shape: tuple[int, ...] = (last.shape[0] + region.shape[0], *last.shape[1:])
            else:
                shape = ((last.size + region.size) // int(last.dtype[1]),)
            sound[-1] = replace(last, shape=shape)
        else:
            sound.append(region)
    return [region for region in sound if region.size >= SMALLEST]


def _code(dtype: np.dtype) -> str:
    """`f4` and the like for little-endian numbers that pcodec packs, else an empty string."""
    code = dtype.str.lstrip("<")
    return code if code in DTYPES else ""


def _hdf5(path: Path) -> list[Region]:
    """Unfiltered datasets stand in the file as they are, in one piece or in whole chunks."""
    import h5py

    found = []

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if not isinstance(item, h5py.Dataset) or not (code := _code(item.dtype)) or not item.shape:
            return
        creation = item.id.get_create_plist()
        if creation.get_nfilters() or creation.get_external_count():
            return
        if item.chunks:
            for i in range(item.id.get_num_chunks()):
                chunk = item.id.get_chunk_info(i)
                found.append(Region(chunk.byte_offset, code, item.chunks, f"{path}:{name}"))
        elif (offset := item.id.get_offset()) is not None:
            found.append(Region(offset, code, item.shape, f"{path}:{name}"))

    with open(path, "rb") as plain, h5py.File(plain, "r") as file:  # no lock: who holds it open changes nothing
        file.visititems(visit)
    return found


def _npy(path: Path) -> list[Region]:
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        return [Region(file.tell(), _code(dtype), shape[::-1] if fortran else shape, str(path))]


def _safetensors(path: Path) -> list[Region]:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > HEADER_LIMIT:
            return []
        header = json.loads(file.read(length))
    found = []
    for name, tensor in header.items():
        if name != "__metadata__" and tensor["dtype"] in SAFETENSORS:
            offset = 8 + length + tensor["data_offsets"][0]
            found.append(Region(offset, SAFETENSORS[tensor["dtype"]], tuple(tensor["shape"]) or (1,), f"{path}:{name}"))
    return found


def _zarr_chunk(path: Path, described: Path | None) -> list[Region]:
    """A chunk or shard of the Zarr v3 array so described, if its only codec is `bytes` (little-endian)."""
    if described is None or path.name == "zarr.json":
        return []
    array, folder = json.loads(described.read_text(encoding="utf-8")), described.parent
    if array["node_type"] != "array":
        return []
    code = _code(np.dtype(array["data_type"]))
    chunk = tuple(array["chunk_grid"]["configuration"]["chunk_shape"])
    codecs, name = array["codecs"], folder.as_posix()
    if _plain(codecs):
        return [Region(0, code, chunk, name)]
    if len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed":
        return []
    shard = codecs[0]["configuration"]
    if not _plain(shard["codecs"]):
        return []
    inner = tuple(shard["chunk_shape"])
    count = math.prod(outer // own for outer, own in zip(chunk, inner, strict=True))
    checked = any(codec["name"] == "crc32c" for codec in shard["index_codecs"])
    with open(path, "rb") as file:
        if shard.get("index_location", "end") == "end":
            file.seek(-(16 * count + 4 * checked), os.SEEK_END)
        index = np.frombuffer(file.read(16 * count), "<u8").reshape(count, 2)
    length = math.prod(inner) * int(code[1])
    return [Region(int(at), code, inner, name) for at, size in index if size == length]


def _plain(codecs: list[dict]) -> bool:
    return (
        len(codecs) == 1
        and codecs[0]["name"] == "bytes"
        and codecs[0].get("configuration", {}).get("endian", "little") == "little"
    )
