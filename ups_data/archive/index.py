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
    Seal,
    check_block,
    check_coding,
    check_ends,
    check_paths,
)
from ups_data.errors import UpsDataError

VERSION = 3
HEADER = struct.pack("<8sI", MAGIC, VERSION)
# Bytes of the digests (not in version 2), packed size of the index, its size, how it is packed, checksum.
FOOTERS = {2: struct.Struct("<IIB8s"), 3: struct.Struct("<IIIB8s")}
SHA256, MD5 = 32, 16  # bytes
NOTHING = {"sha256": hashlib.sha256().hexdigest(), "md5": hashlib.md5().hexdigest()}  # of a member without bytes


# --- writing -------------------------------------------------------------------------------------


def index_and_footer(members: Sequence[Member], seals: Sequence[Seal], blocks: Sequence[Block]) -> bytes:
    """The bytes after the last block; members in the order of their bytes."""
    table: dict[Coding, int] = {Coding(method): number for number, method in enumerate(BYTES)}
    numbers = [table.setdefault(block.coding, len(table)) for block in blocks]
    own = [[c.dtype, c.shape, c.order] for c in list(table)[len(BYTES) :]]
    paths = "\n".join(member.path for member in members).encode()
    codings = json.dumps(own, separators=(",", ":")).encode() if own else b""
    plain = b"".join(
        [
            _column([len(members), len(seals), len(blocks), len(paths), len(codings)]),
            _column([member.size for member in members]),
            _column([len(seal.members) - 1 for seal in seals]),
            _column([block.packed for block in blocks]),
            _column([block.size for block in blocks]),
            _column(numbers),
            paths,
            codings,
        ]
    )
    alone = [members[seal.members[0]].md5 for seal in seals if len(seal.members) == 1]
    digests = bytes.fromhex("".join([*(seal.sha256 for seal in seals), *alone]))
    packed, block = encode_bytes(plain, patient=True)
    return digests + bytes(packed) + footer(digests, packed, len(plain), block.coding.method)


def footer(digests: bytes, packed: bytes, size: int, method: str) -> bytes:
    """The end of the file, after the packed index."""
    numbers = FOOTERS[VERSION].pack(len(digests), len(packed), size, BYTES.index(method), b"")[:-8]
    return numbers + _checksum(HEADER, digests, packed, numbers)


def _checksum(*parts: bytes) -> bytes:
    """Eight bytes of the SHA-256 over all that is not a block: enough against accidents; a forger computes any."""
    return hashlib.sha256(b"".join(parts)).digest()[:8]


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
    version = int.from_bytes(start[len(MAGIC) :], "little")
    if version == 1:
        return version1.read_index(file, name)
    if version not in FOOTERS:
        raise UpsDataError(
            f"{name} has archive format version {version}, this program reads versions 1 to {VERSION}; "
            "use a newer ups-data"
        )
    if total < len(HEADER) + FOOTERS[version].size:
        raise UpsDataError(f"{name} is cut short: {total} bytes; fetch it again")
    file.seek(total - FOOTERS[version].size)
    end = file.read(FOOTERS[version].size)
    *numbers, checksum = FOOTERS[version].unpack(end)
    digests_size, packed_size, size, method = numbers if version > 2 else [0, *numbers]
    offset = total - len(end) - packed_size - digests_size
    if offset < len(HEADER) or packed_size > size or max(packed_size, digests_size) > INDEX_LIMIT or method > 2:
        raise UpsDataError(f"{name} is cut short or has bytes after its end; fetch it again")
    file.seek(offset)
    digests, packed = file.read(digests_size), file.read(packed_size)
    if _checksum(start, digests, packed, end[:-8]) != checksum:
        raise UpsDataError(f"{name} is damaged, cut short or has bytes after its end; fetch it again")
    if size > INDEX_LIMIT:
        raise UpsDataError(f"{name}: its index claims {size} bytes, the limit is {INDEX_LIMIT}; refused")
    plain = unpack_bytes(packed, BYTES[method], size, f"{name}: the index")
    return _parse(version, plain, digests, offset, name)


def _parse(version: int, plain: bytes, digests: bytes, end: int, name: str) -> Contents:
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
        counts = column(5 if version > 2 else 4)
        if max(counts) > len(plain):  # each member and each block has a byte at least: no column is a bomb
            raise ValueError(f"it lists more than its {len(plain)} bytes can hold")
        files, blocks, paths_size, codings_size = counts[0], *counts[-3:]
        if blocks > end:  # each has a byte at least
            raise ValueError(f"it lists {blocks} blocks in {end} bytes")
        sizes, together = column(files), [n + 1 for n in column(counts[1])] if version > 2 else [1] * files
        rows = zip(column(blocks), column(blocks), column(blocks), strict=True)
        text = bytes(take(paths_size)).decode()
        paths = text.split("\n") if files else []
        own = json.loads(bytes(take(codings_size))) if codings_size else []
        if version == 2:
            each = np.frombuffer(take((SHA256 + MD5) * files), np.uint8).reshape(files, -1)
            digests = each[:, :SHA256].tobytes() + each[:, SHA256:].tobytes()
        if len(paths) != files or (text and not files) or len(rest):
            raise ValueError("it has more bytes than it lists")
        check_paths(paths, name)
        members, seals = _sealed(paths, sizes, together, digests)
        codings = [*(Coding(method) for method in BYTES), *(check_coding("pcodec", *row) for row in own)]
        contents = Contents(members, [check_block(codings, *row) for row in rows], len(HEADER), seals)
        check_ends(contents, end)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UpsDataError(f"{name}: its index contradicts itself ({error}); refused") from None
    return contents


def _sealed(
    paths: Sequence[str], sizes: Sequence[int], together: Sequence[int], digests: bytes
) -> tuple[list[Member], list[Seal]]:
    """Members and seals; `digests`: the SHA-256 of each seal, then the MD5 of each member that is alone under one."""
    alone = together.count(1)
    if sum(together) != len(paths) or len(digests) != SHA256 * len(together) + MD5 * alone:
        raise ValueError(f"its seals are for {sum(together)} members and have {len(digests)} bytes")
    text = digests.hex()
    split = 2 * SHA256 * len(together)
    sha256s = (text[i : i + 2 * SHA256] for i in range(0, split, 2 * SHA256))
    md5s = (text[i : i + 2 * MD5] for i in range(split, len(text), 2 * MD5))
    members, seals = [], []
    for count in together:
        first, sha256 = len(members), next(sha256s)
        seals.append(Seal(range(first, first + count), sha256))
        if count == 1:
            members.append(Member(paths[first], sizes[first], sha256, next(md5s)))
        else:
            known = ({} if sizes[n] else NOTHING for n in seals[-1].members)
            members += [Member(paths[n], sizes[n], **more) for n, more in zip(seals[-1].members, known, strict=True)]
    return members, seals
