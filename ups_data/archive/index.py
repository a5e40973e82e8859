"""The index of a `.upk` file: the members and the blocks, small and checked (docs/archive-format.md)."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from ups_data.archive import version1
from ups_data.archive.blocks import encode_bytes, unpack_bytes
from ups_data.archive.format import (
    BYTES,
    INDEX_LIMIT,
    MAGIC,
    Block,
    Coding,
    Contents,
    Member,
    check_block,
    check_coding,
    check_ends,
    check_members,
)
from ups_data.errors import UpsDataError

VERSION = 2
HEADER = struct.pack("<8sI", MAGIC, VERSION)
FOOTER = struct.Struct("<IIB8s")  # packed size of the index, size, method, checksum
DIGESTS = 32 + 16  # bytes: SHA-256 and MD5


# --- writing -------------------------------------------------------------------------------------


def index_and_footer(members: Sequence[Member], blocks: Sequence[Block]) -> bytes:
    """The bytes after the last block; members in the order of their bytes."""
    table: dict[Coding, int] = {Coding(method): number for number, method in enumerate(BYTES)}
    numbers = [table.setdefault(block.coding, len(table)) for block in blocks]
    own = [[c.dtype, c.shape, c.order] for c in list(table)[len(BYTES) :]]
    paths = "\n".join(member.path for member in members).encode()
    codings = json.dumps(own, separators=(",", ":")).encode() if own else b""
    plain = b"".join(
        [
            _column([len(members), len(blocks), len(paths), len(codings)]),
            _column([member.size for member in members]),
            _column([block.packed for block in blocks]),
            _column([block.size for block in blocks]),
            _column(numbers),
            paths,
            codings,
            *(bytes.fromhex(member.sha256 + member.md5) for member in members),
        ]
    )
    packed, block = encode_bytes(plain, patient=True)
    return bytes(packed) + footer(packed, len(plain), block.coding.method)


def footer(packed: bytes, size: int, method: str) -> bytes:
    """The end of the file, after the packed index."""
    numbers = (len(packed), size, BYTES.index(method))
    return FOOTER.pack(*numbers, _checksum(packed, numbers))


def _checksum(packed: bytes, numbers: tuple[int, int, int]) -> bytes:
    """Eight bytes of the SHA-256 over all that is not a block: enough against accidents; a forger computes any."""
    return hashlib.sha256(HEADER + packed + struct.pack("<IIB", *numbers)).digest()[:8]


def _column(values: Sequence[int]) -> bytes:
    """Whole numbers: a byte that says how many bytes each has; all their lowest bytes, then all the next ones."""
    width = (max(values, default=0).bit_length() + 7) // 8
    planes = np.array(values, "<u8").view(np.uint8).reshape(-1, 8).T[:width]
    return bytes([width]) + planes.tobytes()


# --- reading -------------------------------------------------------------------------------------


def read_index(file: BinaryIO, name: str) -> Contents:
    """What an open archive of any version holds, checked against itself and against the file's size.

    Raises UpsDataError for what is not an archive, has an unknown version, is cut short, has bytes to
    spare, or contradicts itself. No block is read.
    """
    total = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(len(HEADER))
    if start[: len(MAGIC)] != MAGIC:
        raise UpsDataError(f"{name} is not a .upk archive (its first bytes are {start[:8]!r})")
    if total < len(HEADER) + FOOTER.size:
        raise UpsDataError(f"{name} is cut short: {total} bytes; fetch it again")
    version = int.from_bytes(start[len(MAGIC) :], "little")
    if version == 1:
        return version1.read_index(file, name)
    if version != VERSION:
        raise UpsDataError(
            f"{name} has archive format version {version}, this program reads versions 1 and {VERSION}; "
            "use a newer ups-data"
        )
    file.seek(total - FOOTER.size)
    *numbers, checksum = FOOTER.unpack(file.read(FOOTER.size))
    packed_size, size, method = numbers
    offset = total - FOOTER.size - packed_size
    if offset < len(HEADER) or packed_size > min(size, INDEX_LIMIT) or method >= len(BYTES):
        raise UpsDataError(f"{name} is cut short or has bytes after its end; fetch it again")
    file.seek(offset)
    packed = file.read(packed_size)
    if _checksum(packed, (packed_size, size, method)) != checksum:
        raise UpsDataError(f"{name} is damaged, cut short or has bytes after its end; fetch it again")
    if size > INDEX_LIMIT:
        raise UpsDataError(f"{name}: its index claims {size} bytes, the limit is {INDEX_LIMIT}; refused")
    return _parse(unpack_bytes(packed, BYTES[method], size, f"{name}: the index"), offset, name)


def _parse(plain: bytes, end: int, name: str) -> Contents:
    """Members and blocks from the index; every number in it is bounded, and the blocks fill the file up to `end`."""
    rest = memoryview(plain)

    def take(size: int) -> memoryview:
        nonlocal rest
        if size > len(rest):
            raise ValueError("it is too short for what it lists")
        taken, rest = rest[:size], rest[size:]
        return taken

    def column(count: int) -> list[int]:
        width = take(1)[0]
        if width > 8:
            raise ValueError(f"a number of {width} bytes")
        wide = np.zeros((8, count), np.uint8)
        wide[:width] = np.frombuffer(take(width * count), np.uint8).reshape(width, count)
        return wide.T.copy().view("<u8").reshape(-1).tolist()

    try:
        counts = column(4)
        if max(counts) > len(plain):  # each member and each block has a byte at least: no column is a bomb
            raise ValueError(f"it lists more than its {len(plain)} bytes can hold")
        files, blocks, paths_size, codings_size = counts
        sizes, rows = column(files), zip(column(blocks), column(blocks), column(blocks), strict=True)
        text = bytes(take(paths_size)).decode()
        paths = text.split("\n") if files else []
        own = json.loads(bytes(take(codings_size))) if codings_size else []
        digests = [bytes(take(DIGESTS)).hex() for _ in range(files)]
        if len(paths) != files or (text and not files) or len(rest):
            raise ValueError("it has more bytes than it lists")
        members = [Member(p, n, d[:64], d[64:]) for p, n, d in zip(paths, sizes, digests, strict=True)]
        codings = [*(Coding(method) for method in BYTES), *(check_coding("pcodec", *row) for row in own)]
        contents = Contents(members, [check_block(codings, *row) for row in rows], len(HEADER))
        check_members(members, name)
        check_ends(contents, end)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UpsDataError(f"{name}: its index contradicts itself ({error}); refused") from None
    return contents
