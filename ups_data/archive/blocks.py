"""One block: numbers or bytes, packed and unpacked."""

from __future__ import annotations

import zlib

import numpy as np

from ups_data.archive import numbers
from ups_data.archive.format import Block, Coding, inflate
from ups_data.errors import UpsDataError

DEFLATE_LEVEL = 9  # numbers go another way: what is left is little, and level 6 makes it larger than `tar -czf` does
PROBE = 64 << 10  # bytes: enough to see that data does not deflate
HOPELESS = 0.99  # a probe that stays above this share of its size says: store it raw
# Numbers that pack to less than this share, and whose probe deflates to less than it, repeat themselves: deflate is
# tried too. Where 1000 numbers recur it is 4 times smaller.
REPETITIVE = 1 / 8
RAW, DEFLATE = Coding("raw"), Coding("deflate")

Data = bytes | np.ndarray  # of bytes
Packed = tuple[Data, Block]


def encode(data: Data, coding: Coding) -> Packed:
    """Pack `data` with `coding`, or raw where that does not make it smaller."""
    if coding.method == "pcodec":
        packed = numbers.pack(data, coding)
        if len(packed) < REPETITIVE * len(data) and _probe(data) < REPETITIVE:
            return min(_smaller(packed, data, coding), encode(data, DEFLATE), key=lambda pair: pair[1].packed)
        return _smaller(packed, data, coding)
    return _smaller(_deflate(data) if coding.method == "deflate" else data, data, coding)


def encode_by_order(data: Data, coding: Coding) -> list[Packed]:
    """Pack the numbers in `data` as several blocks, each with the order of differences that suits it."""
    packed, offset = [], 0
    for piece, size, own in numbers.pack_by_order(data, coding):
        packed.append(_smaller(piece, data[offset : offset + size], own))
        offset += size
    return packed


def _probe(data: Data) -> float:
    """The share of its size to which the middle of `data` deflates, quickly tried."""
    middle = max(0, (len(data) - PROBE) // 2)
    probe = data[middle : middle + PROBE]
    return len(zlib.compress(probe, 1)) / len(probe)


def _smaller(packed: Data, data: Data, coding: Coding) -> Packed:
    if len(packed) >= len(data):
        packed, coding = data, RAW
    return packed, Block(len(packed), len(data), zlib.crc32(packed), coding)


def decode(packed: bytes, block: Block, out: np.ndarray, what: str) -> None:
    """Restore a block into `out`, `block.size` bytes; a wrong checksum or size is refused with a sentence."""
    if len(packed) != block.packed or zlib.crc32(packed) != block.crc32:
        raise UpsDataError(f"{what}: a block's checksum is wrong; the archive is damaged, fetch it again")
    if block.coding.method == "pcodec":
        numbers.unpack(packed, block.coding, out, what)
    else:
        plain = packed if block.coding.method == "raw" else inflate(packed, block.size, what)
        out[:] = np.frombuffer(plain, np.uint8)


def _deflate(data: Data) -> Data:
    if len(data) > PROBE and _probe(data) > HOPELESS:
        return data
    return zlib.compress(data, DEFLATE_LEVEL)
