"""One block: numbers or bytes, packed and unpacked."""

from __future__ import annotations

import lzma
import zlib

import numpy as np

from ups_data.archive import numbers
from ups_data.archive.format import Block, Coding
from ups_data.errors import UpsDataError

DEFLATE_LEVEL = 9  # numbers go another way: what is left is little, and level 6 makes it larger than `tar -czf` does
LZMA_PRESET = 6  # as small as 9 on blocks of 4 MB
NOISY = 0.4  # what deflate brings to more than this share may be smaller if it leaves short repetitions alone
PROBE = 64 << 10  # bytes: enough to see that data does not deflate
# Numbers of which parts come again are tried as bytes too, unless a look at some places says that it cannot help.
PLACES, NEEDLE = 256, 8  # at most so many; what 8 bytes of numbers that vary find again has recurred
WINDOW = 32 << 10  # bytes: as far as deflate looks back
MARGIN = 1.1  # it leaves less than what does not recur, as some bytes are more frequent than others
REPETITIVE = 1 / 8  # numbers that pack to less than this share have 8 equal bytes often, and need a trial
PROBES = 4  # spread over such a block: a single one may meet its only constant rows
MONOTONOUS = 1 / 64  # what packs to less goes through lzma at full speed, and deflate cannot go below 1 / 1032
RAW, DEFLATE, LZMA = Coding("raw"), Coding("deflate"), Coding("lzma")

Data = bytes | np.ndarray  # of bytes
Packed = tuple[Data, Block]


# --- packing -------------------------------------------------------------------------------------


def encode_bytes(data: Data, patient: bool) -> Packed:
    """Pack by deflate, or by lzma where that is smaller and `patient` (it is 10 times slower); raw where neither is."""
    if len(data) > PROBE and _probe(data) >= PROBE and _deflated(data) >= len(data):
        return _smallest(data)
    candidates = [(_deflate(data, DEFLATE_LEVEL), DEFLATE)]
    if len(candidates[0][0]) > NOISY * len(data):
        candidates.append((_deflate(data, DEFLATE_LEVEL, zlib.Z_FILTERED), DEFLATE))
    if patient or len(candidates[0][0]) < MONOTONOUS * len(data):
        candidates.append((lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(len(data))), LZMA))
    return _smallest(data, *candidates)


def encode(data: Data, coding: Coding) -> list[Packed]:
    """Pack numbers as one block; as bytes where they recur, raw where nothing makes them smaller."""
    return _unless_repetitive([_smallest(data, (numbers.pack(data, coding), coding))], data)


def encode_by_order(data: Data, coding: Coding, level: int = numbers.LEVEL) -> list[Packed]:
    """The same in several blocks, each with the order of differences that suits it."""
    packed, offset = [], 0
    for piece, size, own in numbers.pack_by_order(data, coding, level):
        packed.append(_smallest(data[offset : offset + size], (piece, own)))
        offset += size
    return _unless_repetitive(packed, data)


def _unless_repetitive(packed: list[Packed], data: Data) -> list[Packed]:
    size = sum(block.packed for _, block in packed)
    if _may_deflate_below(size / len(data), data):
        other = encode_bytes(data, patient=False)
        return [other] if other[1].packed < size else packed
    return packed


def _may_deflate_below(share: float, data: Data) -> bool:
    """Whether so much recurs that deflate may leave less than this share: a cheap look at all, then a dearer one."""
    if share < MONOTONOUS:
        return True
    places = min(PLACES, 8 + int(2 / max(1 - share, 1e-3)))
    found = _recurrences(data, places)
    if not found or 1 - found / places > MARGIN * share:
        return False
    return share > REPETITIVE or _recurring(data) < MARGIN * share


def _recurrences(data: Data, places: int) -> int:
    """At how many of so many places the next NEEDLE bytes come again within deflate's window."""
    view, found = memoryview(data), 0
    for place in range(places):
        start = (len(data) - NEEDLE) * place // places // NEEDLE * NEEDLE  # where a number begins
        window = bytes(view[start : start + WINDOW])
        found += window.find(window[:NEEDLE], 1) > 0
    return found


def _probe(data: Data) -> int:
    """The size to which PROBE bytes from the middle of `data` deflate, quickly tried."""
    middle = (len(data) - PROBE) // 2
    return _deflated(data[middle : middle + PROBE])


def _recurring(data: Data) -> float:
    """The share to which deflate brings the second halves of some probes, having seen the first ones."""
    half = min(len(data), PROBE) // 2
    starts = [(len(data) - 2 * half) * (2 * i + 1) // (2 * PROBES) for i in range(PROBES)]
    sizes = (_deflated(data[start : start + 2 * half]) - _deflated(data[start : start + half]) for start in starts)
    return sum(sizes) / (PROBES * half)


def _deflated(data: Data) -> int:
    return len(_deflate(data, 1))


def _deflate(data: Data, level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """A zlib stream; with as much memory as gzip takes, so that its blocks are as long."""
    stream = zlib.compressobj(level, memLevel=9, strategy=strategy)
    return stream.compress(data) + stream.flush()


def _smallest(data: Data, *candidates: tuple[Data, Coding]) -> Packed:
    packed, coding = min([(data, RAW), *candidates], key=lambda candidate: len(candidate[0]))
    return packed, Block(len(packed), len(data), coding)


def _filters(size: int) -> list[dict]:
    """LZMA2 with a dictionary as large as the block."""
    return [{"id": lzma.FILTER_LZMA2, "preset": LZMA_PRESET, "dict_size": max(4096, size)}]


# --- unpacking -----------------------------------------------------------------------------------


def decode(packed: bytes, block: Block, out: np.ndarray, what: str) -> None:
    """Restore a block into `out`, `block.size` bytes; a wrong checksum or size is refused with a sentence."""
    if len(packed) != block.packed or (block.crc32 is not None and zlib.crc32(packed) != block.crc32):
        raise UpsDataError(f"{what}: a block's checksum is wrong; the archive is damaged, fetch it again")
    if block.coding.method == "pcodec":
        numbers.unpack(packed, block.coding, out, what)
    else:
        out[:] = np.frombuffer(unpack_bytes(packed, block.coding.method, block.size, what), np.uint8)


def unpack_bytes(packed: bytes, method: str, size: int, what: str) -> bytes:
    """Unpack to exactly `size` bytes; never holds more than that."""
    if method == "deflate":
        return inflate(packed, size, what)
    if method == "lzma":
        return _unpack(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(size)), packed, size, what)
    if len(packed) != size:
        raise _wrong_size(size, what)
    return packed


def inflate(packed: bytes, size: int, what: str) -> bytes:
    """Unpack a zlib stream of exactly `size` bytes; never holds more than that."""
    return _unpack(zlib.decompressobj(), packed, size, what)


def _unpack(stream: zlib._Decompress | lzma.LZMADecompressor, packed: bytes, size: int, what: str) -> bytes:
    try:
        data = stream.decompress(packed, size + 1)
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise UpsDataError(f"{what} does not unpack ({error}); fetch it again") from None
    if len(data) != size or not stream.eof or stream.unused_data:
        raise _wrong_size(size, what)
    return data


def _wrong_size(size: int, what: str) -> UpsDataError:
    return UpsDataError(f"{what} does not have the size it claims ({size} bytes); refused")
