"""Archives of version 1, which are read and no longer written: a JSON index, each block of one member."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import BinaryIO

from ups_data.archive.blocks import inflate
from ups_data.archive.format import (
    INDEX_LIMIT,
    MAGIC,
    Contents,
    Member,
    check_block,
    check_coding,
    check_ends,
    check_members,
    check_order,
)
from ups_data.errors import UpsDataError

END_MAGIC = b"UPKEND\r\n"
HEADER = struct.pack("<8sII", MAGIC, 1, 0)
NUMBERS = struct.Struct("<QQQ")  # index offset, packed size, size
FOOTER = struct.Struct("<QQQ32s8s")  # the same, SHA-256, end magic


def read_index(file: BinaryIO, name: str) -> Contents:
    """What an open archive of version 1 holds, checked; see `index.read_index`."""
    total = os.fstat(file.fileno()).st_size
    if total < len(HEADER) + FOOTER.size:
        raise UpsDataError(f"{name} is cut short: {total} bytes; fetch it again")
    file.seek(0)
    start = file.read(len(HEADER))
    file.seek(total - FOOTER.size)
    offset, packed_size, size, digest, end = FOOTER.unpack(file.read(FOOTER.size))
    if end != END_MAGIC or offset < len(HEADER) or offset + packed_size + FOOTER.size != total:
        raise UpsDataError(f"{name} is cut short or has bytes after its end; fetch it again")
    if size > INDEX_LIMIT or packed_size > INDEX_LIMIT:
        raise UpsDataError(f"{name}: its index claims {size} bytes, the limit is {INDEX_LIMIT}; refused")
    file.seek(offset)
    packed = file.read(packed_size)
    if hashlib.sha256(start + packed + NUMBERS.pack(offset, packed_size, size)).digest() != digest:
        raise UpsDataError(f"{name}: the checksum of its index is wrong; fetch it again")
    return _parse(inflate(packed, size, f"{name}: the index"), offset, name)


def _parse(text: bytes, end: int, name: str) -> Contents:
    """Members and blocks from the index; every number in it is bounded, and the blocks fill the file up to `end`."""
    try:
        tree = json.loads(text)
        codings = [check_coding(*row) for row in tree["codings"]]
        members, blocks = [], []
        for entry in tree["members"]:
            member = Member(**{key: entry[key] for key in ("path", "size", "sha256", "md5")})
            own = [check_block(codings, packed, size, coding, crc) for packed, size, crc, coding in entry["blocks"]]
            if sum(block.size for block in own) != member.size:
                raise ValueError(f"the blocks of {member.path!r} do not add up to its size")
            members.append(member)
            blocks += own
        check_members(members, name)
        check_order(members)
        contents = Contents(members, blocks, len(HEADER))
        check_ends(contents, end)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UpsDataError(f"{name}: its index contradicts itself ({error}); refused") from None
    return contents
