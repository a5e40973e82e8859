"""The layout of a `.upk` file: header, blocks, index, footer (docs/archive-format.md).

Everything read from an archive is taken for hostile until checked here: paths, sizes, codings.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from ups_data.errors import UpsDataError

MAGIC = b"\x89UPK\r\n\x1a\n"  # like PNG's: a transfer that mends line ends or drops the high bit is seen at once
END_MAGIC = b"UPKEND\r\n"
VERSION = 1
HEADER = struct.Struct("<8sII")  # magic, version, zero
FOOTER = struct.Struct("<QQQ32s8s")  # index offset, packed size, size, SHA-256, end magic
BLOCK_LIMIT = 16 << 20  # bytes of a block once unpacked: what a reader must be ready to hold
INDEX_LIMIT = 256 << 20  # bytes of the index once unpacked: 15 TB of 4 MB blocks stay far below it
PATH_LIMIT = 1024
DTYPES = ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")  # little-endian numbers that pcodec packs
WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:")
HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "md5": re.compile(r"[0-9a-f]{32}")}


@dataclass(frozen=True)
class Coding:
    """How a block is packed: `raw`, `deflate` (zlib stream) or `pcodec`.

    For pcodec the block is an array of `dtype` and `shape`; its axes are transposed by `order` and
    flattened in C order before packing.
    """

    method: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Block:
    """A run of a member's bytes: sizes packed and unpacked, and the CRC-32 of the packed bytes."""

    packed: int
    size: int
    crc32: int
    coding: Coding


@dataclass(frozen=True)
class Member:
    """A file in an archive; `offset` is where its first block stands."""

    path: str
    size: int
    sha256: str
    md5: str
    blocks: tuple[Block, ...] = ()
    offset: int = 0


def check_paths(paths: Iterable[str], archive: str) -> None:
    """Refuse a list of member paths unless each is relative, plain, and names a file of its own."""
    seen: set[str] = set()
    for path in paths:
        parts = path.split("/") if isinstance(path, str) else []
        plain = (
            parts
            and all(part not in ("", ".", "..") for part in parts)
            and "\\" not in path
            and not WINDOWS_DRIVE.match(path)
            and path.isprintable()
            and len(path.encode()) <= PATH_LIMIT
        )
        if not plain:
            raise UpsDataError(f"{archive}: the member path {path!r} is not a plain relative path; refused")
        if path in seen:
            raise UpsDataError(f"{archive}: the member {path!r} stands in it twice; refused")
        seen.add(path)
    for path in seen:
        for depth in range(1, path.count("/") + 1):
            if (parent := "/".join(path.split("/")[:depth])) in seen:
                raise UpsDataError(f"{archive}: {parent!r} is both a file and a folder; refused")


# --- writing -------------------------------------------------------------------------------------


def header() -> bytes:
    """The first 16 bytes."""
    return HEADER.pack(MAGIC, VERSION, 0)


def index_and_footer(members: Sequence[Member], offset: int) -> bytes:
    """The bytes after the last block, which ends at `offset`."""
    codings: dict[Coding, int] = {}
    entries = []
    for member in members:
        rows = [[b.packed, b.size, b.crc32, codings.setdefault(b.coding, len(codings))] for b in member.blocks]
        entries.append(
            {"path": member.path, "size": member.size, "sha256": member.sha256, "md5": member.md5, "blocks": rows}
        )
    table = [[c.method, c.dtype, list(c.shape), list(c.order)] if c.dtype else [c.method] for c in codings]
    text = json.dumps(
        {"codings": table, "members": entries}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    packed = zlib.compress(text, 9)
    return packed + _footer(packed, offset, len(text))


def _footer(packed: bytes, offset: int, size: int) -> bytes:
    numbers = (offset, len(packed), size)
    return FOOTER.pack(*numbers, _index_digest(packed, numbers), END_MAGIC)


def _index_digest(packed: bytes, numbers: tuple[int, int, int]) -> bytes:
    """SHA-256 over header, packed index and the three numbers of the footer: all that is not a block."""
    return hashlib.sha256(header() + packed + struct.pack("<QQQ", *numbers)).digest()


# --- reading -------------------------------------------------------------------------------------


def read_index(file: BinaryIO, name: str) -> list[Member]:
    """The members of an open archive, checked against each other and against the file's size.

    Raises UpsDataError for what is not an archive, has an unknown version, is cut short, has bytes to
    spare, or contradicts itself. No block is read.
    """
    total = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(HEADER.size)
    if len(start) < HEADER.size or start[:8] != MAGIC:
        raise UpsDataError(f"{name} is not a .upk archive (its first bytes are {start[:8]!r})")
    version = HEADER.unpack(start)[1]
    if version != VERSION:
        raise UpsDataError(
            f"{name} has archive format version {version}, this program reads version {VERSION}; use a newer ups-data"
        )
    if total < HEADER.size + FOOTER.size:
        raise UpsDataError(f"{name} is cut short: {total} bytes; fetch it again")
    file.seek(total - FOOTER.size)
    offset, packed_size, size, digest, end = FOOTER.unpack(file.read(FOOTER.size))
    if end != END_MAGIC or offset < HEADER.size or offset + packed_size + FOOTER.size != total:
        raise UpsDataError(f"{name} is cut short or has bytes after its end; fetch it again")
    if size > INDEX_LIMIT or packed_size > INDEX_LIMIT:
        raise UpsDataError(f"{name}: its index claims {size} bytes, the limit is {INDEX_LIMIT}; refused")
    file.seek(offset)
    packed = file.read(packed_size)
    if start != header() or _index_digest(packed, (offset, packed_size, size)) != digest:
        raise UpsDataError(f"{name}: the checksum of its index is wrong; fetch it again")
    return _parse_index(inflate(packed, size, f"{name}: the index"), offset, name)


def inflate(packed: bytes, size: int, what: str) -> bytes:
    """Unpack a zlib stream of exactly `size` bytes; never holds more than that."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed, size + 1)
    except zlib.error as error:
        raise UpsDataError(f"{what} does not unpack ({error}); fetch it again") from None
    if len(data) != size or not stream.eof or stream.unused_data:
        raise UpsDataError(f"{what} does not have the size it claims ({size} bytes); refused")
    return data


def _parse_index(text: bytes, end: int, name: str) -> list[Member]:
    """Members from the index; every number in it is bounded, and the blocks fill the file up to `end`."""
    try:
        tree = json.loads(text)
        codings = [_coding(*row) for row in tree["codings"]]
        members, offset = [], HEADER.size
        for entry in tree["members"]:
            blocks = tuple(_block(codings, *row) for row in entry["blocks"])
            fields = {key: entry[key] for key in ("path", "size", "sha256", "md5")}
            members.append(Member(**fields, blocks=blocks, offset=offset))
            offset += sum(block.packed for block in blocks)
        check_members(members, name)
        for member in members:
            if sum(block.size for block in member.blocks) != member.size:
                raise ValueError(f"the blocks of {member.path!r} do not add up to its size")
        if offset != end:
            raise ValueError(f"its blocks end at byte {offset}, not at {end}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UpsDataError(f"{name}: its index contradicts itself ({error}); refused") from None
    return members


def check_members(members: Sequence[Member], name: str) -> None:
    """Refuse members whose paths, sizes or checksums are not well formed, or that are not in order."""
    check_paths((member.path for member in members), name)
    for member in members:
        if type(member.size) is not int or member.size < 0:
            raise ValueError(f"{member.path!r} has the size {member.size!r}")
        for algorithm, pattern in HEX.items():
            if not pattern.fullmatch(getattr(member, algorithm)):
                raise ValueError(f"{member.path!r} has no {algorithm}")
    if sorted(m.path for m in members) != [m.path for m in members]:
        raise ValueError("its members are not sorted")


def _coding(method: str, dtype: str = "", shape: Sequence[int] = (), order: Sequence[int] = ()) -> Coding:
    if method not in ("raw", "deflate", "pcodec") or bool(dtype) != (method == "pcodec"):
        raise ValueError(f"unknown coding {method!r}")
    if method == "pcodec":
        if dtype not in DTYPES or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"unknown numbers {dtype!r} of shape {shape!r}")
        if not all(type(n) is int for n in order) or sorted(order) != list(range(len(shape))) or not shape:
            raise ValueError(f"order {order!r} does not match shape {shape!r}")
        if len(shape) > 16 or math.prod(shape) * int(dtype[1]) > BLOCK_LIMIT:
            raise ValueError(f"a block of shape {shape!r} is larger than {BLOCK_LIMIT} bytes")
    return Coding(method, dtype, tuple(shape), tuple(order))


def _block(codings: Sequence[Coding], packed: int, size: int, crc32: int, coding: int) -> Block:
    if not all(type(n) is int and n >= 0 for n in (packed, size, crc32, coding)):
        raise ValueError("a block's numbers are not whole numbers")
    if not 0 < packed <= size <= BLOCK_LIMIT or coding >= len(codings):
        raise ValueError(f"a block of {packed} bytes for {size}")
    chosen = codings[coding]
    if chosen.method == "raw" and packed != size:
        raise ValueError("a raw block changes size")
    if chosen.method == "pcodec" and math.prod(chosen.shape) * int(chosen.dtype[1]) != size:
        raise ValueError("a block's shape does not match its size")
    return Block(packed, size, crc32, chosen)
