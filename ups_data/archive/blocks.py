"""One block: numbers or bytes, packed and unpacked."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

import numpy as np
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone

from ups_data.archive.format import Block, Coding, inflate
from ups_data.errors import UpsDataError

# pcodec: level 8 packs 1 % smaller at 0.7 of the speed, level 6 packs 2 % larger. Pages of 32768 numbers stay in a
# core's cache and each takes its own differences: on Burgers 10 % smaller and faster than the default of 262144.
LEVEL, PAGE = 7, 1 << 15
DEFLATE_LEVEL = 6
PROBE = 64 << 10  # bytes: enough to see that data does not deflate
HOPELESS = 0.99  # a probe that stays above this share of its size says: store it raw
RAW, DEFLATE = Coding("raw"), Coding("deflate")

Task = TypeVar("Task")
Result = TypeVar("Result")


def encode(data: bytes, coding: Coding, delta: int = 0) -> tuple[bytes, Block]:
    """Pack `data` with `coding`, or raw where that does not make it smaller.

    `delta`: the order of differences pcodec takes, 0 to let it choose (which costs it time).
    """
    if coding.method == "pcodec":
        packed = _pack_numbers(data, coding, delta)
    elif coding.method == "deflate":
        packed = _deflate(data)
    else:
        packed = data
    if len(packed) >= len(data):
        packed, coding = data, RAW
    return packed, Block(len(packed), len(data), zlib.crc32(packed), coding)


def decode(packed: bytes, block: Block, what: str) -> bytes | memoryview:
    """The bytes of a block; a wrong checksum or size is refused with a sentence naming `what`."""
    if len(packed) != block.packed or zlib.crc32(packed) != block.crc32:
        raise UpsDataError(f"{what}: a block's checksum is wrong; the archive is damaged, fetch it again")
    if block.coding.method == "raw":
        return packed
    if block.coding.method == "deflate":
        return inflate(packed, block.size, what)
    return _unpack_numbers(packed, block.coding, what)


def _deflate(data: bytes) -> bytes:
    if len(data) > PROBE:
        middle = (len(data) - PROBE) // 2
        if len(zlib.compress(data[middle : middle + PROBE], 1)) > HOPELESS * PROBE:
            return data
    return zlib.compress(data, DEFLATE_LEVEL)


def _pack_numbers(data: bytes, coding: Coding, delta: int) -> bytes:
    array = np.frombuffer(data, "<" + coding.dtype).reshape(coding.shape).transpose(coding.order)
    numbers = np.ascontiguousarray(array).reshape(-1)
    numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
    # Classic mode maps floats to integers bit by bit; the others look for decimal steps, which solvers do not make.
    differences = DeltaSpec.try_consecutive(delta) if delta else DeltaSpec.auto()
    pages = PagingSpec.equal_pages_up_to(PAGE)
    config = ChunkConfig(
        compression_level=LEVEL, mode_spec=ModeSpec.classic(), delta_spec=differences, paging_spec=pages
    )
    return standalone.simple_compress(numbers, config)


def _unpack_numbers(packed: bytes, coding: Coding, what: str) -> memoryview:
    numbers = np.empty(math.prod(coding.shape), "=" + coding.dtype)
    try:
        progress = standalone.simple_decompress_into(packed, numbers)
    except BaseException as error:  # a panic of pcodec on hostile bytes is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise UpsDataError(f"{what}: a block does not unpack ({error}); fetch it again") from None
    if not progress.finished or progress.n_processed != numbers.size:
        raise UpsDataError(f"{what}: a block does not have the size it claims; refused")
    shape = [coding.shape[axis] for axis in coding.order]
    array = numbers.reshape(shape).transpose(np.argsort(coding.order))
    array = np.ascontiguousarray(array.astype("<" + coding.dtype, copy=False))
    return memoryview(array.reshape(-1).view(np.uint8)).cast("B")


def in_order(
    pool: Executor, work: Callable[[Task], Result], tasks: Iterable[Task], ahead: int
) -> Iterator[tuple[Task, Result]]:
    """Run `work` over `tasks` in `pool`, at most `ahead` at a time, and give the results in the order of the tasks."""
    tasks = iter(tasks)
    waiting: list[tuple[Task, Future]] = [(task, pool.submit(work, task)) for task in islice(tasks, ahead)]
    try:
        while waiting:
            task, future = waiting.pop(0)
            result = future.result()
            waiting.extend((following, pool.submit(work, following)) for following in islice(tasks, 1))
            yield task, result
    finally:
        for _, future in waiting:
            future.cancel()
