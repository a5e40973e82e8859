"""What an archive holds: members and blocks, and what is refused of them (docs/archive-format.md).

Everything read from an archive is taken for hostile until checked here: paths, sizes, codings.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ups_data.errors import UpsDataError

MAGIC = b"\x89UPK\r\n\x1a\n"  # like PNG's: a transfer that mends line ends or drops the high bit is seen at once
AXES = 16  # of a block of numbers, at most
BLOCK_LIMIT = 16 << 20  # bytes of a block once unpacked: what a reader must be ready to hold
INDEX_LIMIT = 256 << 20  # bytes of the index once unpacked: hundreds of TB in blocks of 4 MB stay below it
PATH_LIMIT = 1024
DTYPES = ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")  # little-endian numbers that pcodec packs
BYTES = ("raw", "deflate", "lzma")  # methods for bytes that are not known to be numbers
WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:")
HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "md5": re.compile(r"[0-9a-f]{32}")}


@dataclass(frozen=True)
class Coding:
    """How a block is packed: `raw`, `deflate` (zlib stream), `lzma` (raw LZMA2 stream) or `pcodec`.

    For pcodec the block is an array of `dtype` and `shape`; its axes are transposed by `order` and
    flattened in C order before packing.
    """

    method: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Block:
    """A run of bytes: sizes packed and unpacked; archives of version 1 have the CRC-32 of the packed bytes."""

    packed: int
    size: int
    coding: Coding
    crc32: int | None = None


@dataclass(frozen=True)
class Member:
    """A file in an archive. Checksums that are not stored are empty until its bytes are read and verified."""

    path: str
    size: int
    sha256: str = ""
    md5: str = ""


@dataclass(frozen=True)
class Seal:
    """The SHA-256 of the bytes of one member, or of several tiny ones that stand together."""

    members: range  # their numbers in the order of their bytes
    sha256: str


class Contents:
    """Members in the order of their bytes, and the blocks that give these bytes, one after another.

    `member_ends` and `block_ends` count bytes unpacked, `offsets` (one more than blocks) bytes of the file. Every
    member is under one of the `seals`: its own where none are given.
    """

    def __init__(
        self, members: Sequence[Member], blocks: Sequence[Block], offset: int, seals: Sequence[Seal] | None = None
    ):
        self.members, self.blocks = members, blocks
        self.seals = seals or [Seal(range(i, i + 1), member.sha256) for i, member in enumerate(members)]
        self.member_ends = list(accumulate(member.size for member in members))
        self.block_ends = list(accumulate(block.size for block in blocks))
        self.offsets = list(accumulate((block.packed for block in blocks), initial=offset))

    def bounds(self, seal: Seal) -> tuple[int, int]:
        """Where the bytes under a seal begin and end."""
        first = seal.members[0]
        return self.member_ends[first] - self.members[first].size, self.member_ends[seal.members[-1]]

    def span(self, seal: Seal) -> range:
        """The numbers of the blocks that hold the bytes under a seal."""
        start, end = self.bounds(seal)
        if start == end:
            return range(0)
        return range(bisect.bisect_right(self.block_ends, start), bisect.bisect_left(self.block_ends, end) + 1)


# --- what is refused -----------------------------------------------------------------------------


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
    # Sorted by folders, what stands under a path comes right after it: a path has no character that sorts before \0.
    for path, following in pairwise(sorted(seen, key=lambda path: path.replace("/", "\0"))):
        if following.startswith(f"{path}/"):
            raise UpsDataError(f"{archive}: {path!r} is both a file and a folder; refused")


def check_members(members: Sequence[Member], name: str) -> None:
    """Refuse members whose paths, sizes or checksums are not well formed."""
    check_paths((member.path for member in members), name)
    for member in members:
        if type(member.size) is not int or member.size < 0:
            raise ValueError(f"{member.path!r} has the size {member.size!r}")
        for algorithm, pattern in HEX.items():
            if not pattern.fullmatch(getattr(member, algorithm)):
                raise ValueError(f"{member.path!r} has no {algorithm}")


def check_order(members: Sequence[Member]) -> None:
    """Refuse members that are not sorted by path."""
    if sorted(m.path for m in members) != [m.path for m in members]:
        raise ValueError("its members are not sorted")


def check_coding(method: str, dtype: str = "", shape: Sequence[int] = (), order: Sequence[int] = ()) -> Coding:
    """The coding that an index describes; ValueError for what is none."""
    if method not in (*BYTES, "pcodec") or bool(dtype) != (method == "pcodec"):
        raise ValueError(f"unknown coding {method!r}")
    if method == "pcodec":
        if dtype not in DTYPES or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"unknown numbers {dtype!r} of shape {shape!r}")
        if not all(type(n) is int for n in order) or sorted(order) != list(range(len(shape))) or not shape:
            raise ValueError(f"order {order!r} does not match shape {shape!r}")
        if len(shape) > AXES or math.prod(shape) * int(dtype[1]) > BLOCK_LIMIT:
            raise ValueError(f"a block of shape {shape!r} has over {AXES} axes or is larger than {BLOCK_LIMIT} bytes")
    return Coding(method, dtype, tuple(shape), tuple(order))


def check_block(codings: Sequence[Coding], packed: int, size: int, coding: int, crc32: int | None = None) -> Block:
    """The block that an index describes; ValueError for what is none."""
    if not all(type(n) is int and n >= 0 for n in (packed, size, coding, crc32 or 0)):
        raise ValueError("a block's numbers are not whole numbers")
    if not 0 < packed <= size <= BLOCK_LIMIT or coding >= len(codings):
        raise ValueError(f"a block of {packed} bytes for {size}")
    chosen = codings[coding]
    if chosen.method == "raw" and packed != size:
        raise ValueError("a raw block changes size")
    if chosen.method == "pcodec" and math.prod(chosen.shape) * int(chosen.dtype[1]) != size:
        raise ValueError("a block's shape does not match its size")
    return Block(packed, size, chosen, crc32)


def check_ends(contents: Contents, end: int) -> None:
    """Refuse blocks that do not end at byte `end` of the file, or give other bytes than the members have."""
    if contents.offsets[-1] != end:
        raise ValueError(f"its blocks end at byte {contents.offsets[-1]}, not at {end}")
    sizes = sum(block.size for block in contents.blocks), sum(member.size for member in contents.members)
    if sizes[0] != sizes[1]:
        raise ValueError(f"its blocks have {sizes[0]} bytes, its members {sizes[1]}")
