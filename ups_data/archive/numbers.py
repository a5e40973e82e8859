"""Blocks of numbers by pcodec: pages that follow the samples, and for each page the order of differences it wants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise
from operator import mul

import numpy as np
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone

from ups_data.archive.format import Coding
from ups_data.errors import UpsDataError

# pcodec: level 8 packs 4 % smaller on Burgers, 1 % on Navier-Stokes, and takes up to 1.4 times as long; level 5 packs
# 6 % larger on Burgers and is no faster, and 0.8 % larger on Navier-Stokes, which has more noise, and saves a tenth.
LEVEL, QUICK = 6, 5
# Numbers packed with statistics and differences of their own: half as many are 1 % smaller on Burgers, larger elsewhere
# and slower everywhere.
PAGE = 1 << 16
ORDERS = 6  # differences of order 0 to 5 are compared; higher ones add up the rounding errors
PARTS = 64  # of a block, which are gone through one by one
RUNS, RUN = 8, 256  # numbers of a page on which they are compared: 3 % of it


def pack(data: bytes | np.ndarray, coding: Coding) -> bytes:
    """All numbers of a block as one pcodec file; pcodec chooses the differences, which is half of its work."""
    numbers = _in_order(data, coding)
    return _compress(numbers, DeltaSpec.auto(), page_sizes([coding.shape[axis] for axis in coding.order]))


def pack_by_order(data: bytes | np.ndarray, coding: Coding, level: int = LEVEL) -> Iterator[tuple[bytes, int, Coding]]:
    """The block as pieces: packed bytes, unpacked size, coding. Each takes differences of the order best for it.

    Numbers that stay in their order are divided between pages, others are one piece.
    """
    numbers = _in_order(data, coding)
    sizes = page_sizes([coding.shape[axis] for axis in coding.order])
    costs = difference_costs(numbers, sizes)
    if list(coding.order) != sorted(coding.order):
        yield _compress(numbers, _differences(int(costs.sum(1).argmin())), sizes, level), len(data), coding
        return
    orders, starts = costs.argmin(0), np.cumsum([0, *sizes])
    changes = [0, *(np.flatnonzero(np.diff(orders)) + 1), len(sizes)]
    for first, last in pairwise(changes):
        piece = numbers[starts[first] : starts[last]]
        packed = _compress(piece, _differences(int(orders[first])), sizes[first:last], level)
        yield packed, piece.nbytes, Coding("pcodec", coding.dtype, (piece.size,), (0,))


def page_sizes(shape: list[int]) -> list[int]:
    """Numbers of each page of an array: even parts of a row of its leading axis, or several whole rows."""
    rows, length = (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))
    if length > PAGE // 2:
        parts = -(-length // PAGE)
        size = -(-length // parts)
        return [*[size] * (parts - 1), length - size * (parts - 1)] * rows
    together = PAGE // length
    rest = rows % together
    return [together * length] * (rows // together) + ([rest * length] if rest else [])


def difference_costs(numbers: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Mean bits of the differences of samples of each page, [order, page]: what is left to store after prediction.

    Differences are those of pcodec: of the integers that order the numbers, modulo their width.
    """
    run = min(RUN, min(sizes))
    starts = np.cumsum([0, *sizes[:-1]])
    steps = (np.array(sizes) - run) // RUNS
    places = starts[:, None, None] + steps[:, None, None] * np.arange(RUNS)[:, None] + np.arange(run)
    values = _ordered_integers(numbers[places])
    costs = np.empty((ORDERS, len(sizes)))
    for order in range(ORDERS):
        # The exponent of a float32 is the number of bits of the integer it was made of, plus 126 (0 where that is 0).
        exponents = (values.astype(np.float32).view(np.int32) >> 23) & 255
        costs[order] = np.maximum(exponents, 126).mean((1, 2)) if exponents.size else np.inf
        values = np.diff(values, axis=2)
    return costs


def unpack(packed: bytes, coding: Coding, out: np.ndarray, what: str) -> None:
    """Restore a block into `out`, its bytes; what is no such block is refused with a sentence naming `what`."""
    little = np.dtype("<" + coding.dtype)
    target = out.view(little)
    direct = list(coding.order) == sorted(coding.order) and target.flags.aligned and little.isnative
    numbers = target if direct else np.empty(math.prod(coding.shape), little.newbyteorder("="))
    try:
        progress = standalone.simple_decompress_into(packed, numbers)
    except BaseException as error:  # a panic of pcodec on hostile bytes is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise UpsDataError(f"{what}: a block does not unpack ({error}); fetch it again") from None
    if not progress.finished or progress.n_processed != numbers.size:
        raise UpsDataError(f"{what}: a block does not have the size it claims; refused")
    if not direct:
        _put(numbers, target.reshape(coding.shape).transpose(coding.order))


def _put(numbers: np.ndarray, places: np.ndarray) -> None:
    """Copy flat numbers to their places; channel by channel is 4 times as fast as all at once."""
    numbers = numbers.reshape(places.shape)
    leading = [size for size, parts in zip(places.shape, accumulate(places.shape, mul), strict=True) if parts <= PARTS]
    for part in np.ndindex(*leading):
        places[part] = numbers[part]


def _in_order(data: bytes | np.ndarray, coding: Coding) -> np.ndarray:
    """The numbers of a block in the order they are packed in, native, flat."""
    array = np.frombuffer(data, "<" + coding.dtype).reshape(coding.shape).transpose(coding.order)
    numbers = np.require(array, requirements=["C", "A"]).reshape(-1)  # pcodec takes no others
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


def _ordered_integers(numbers: np.ndarray) -> np.ndarray:
    """Signed integers of the same width; those of floats are in the order of the floats."""
    integers = numbers.view(f"i{numbers.itemsize}")
    if numbers.dtype.kind != "f":
        return integers
    sign = integers >> (8 * numbers.itemsize - 1)
    return integers ^ (sign & np.iinfo(integers.dtype).max)


def _differences(order: int) -> DeltaSpec:
    return DeltaSpec.try_consecutive(order) if order else DeltaSpec.no_op()


def _compress(numbers: np.ndarray, differences: DeltaSpec, sizes: list[int], level: int = LEVEL) -> bytes:
    # Classic mode maps floats to integers bit by bit; the others look for decimal steps, which solvers do not make.
    pages = PagingSpec.exact_page_sizes(sizes)
    config = ChunkConfig(level, ModeSpec.classic(), differences, pages)
    return standalone.simple_compress(numbers, config)
