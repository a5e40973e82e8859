"""Worker processes for solvers, with results in order and bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from ups_data.execution import cores

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(NamedTuple):
    """Something to submit work to, and how many pieces it does at once."""

    executor: Executor
    count: int


@contextmanager
def pool(tasks: int, device: str, preload: Sequence[str] = ()) -> Iterator[Workers]:
    """Workers for `tasks` pieces of work on a device type: processes on the CPU, one thread on a GPU.

    `preload` names modules that are imported once for all processes. The thread lets the caller write while
    the next piece is computed. Processes because the many small array operations of a solver hold the
    interpreter's lock: two threads are slower than one.
    """
    count = max(1, min(cores(), tasks)) if device == "cpu" else 1
    if count == 1:
        executor = ThreadPoolExecutor(1)
    else:
        # A fork server: forking this process, which may have threads, is not safe.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", *preload])
        executor = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)
    try:
        yield Workers(executor, count)
    finally:
        executor.shutdown(cancel_futures=True)


def in_order(workers: Workers, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """work(task) for each task, in order, computed ahead by one more than there are workers."""
    pending: deque[Future] = deque()
    for task in tasks:
        if len(pending) > workers.count:
            yield pending.popleft().result()
        pending.append(workers.executor.submit(work, task))
    while pending:
        yield pending.popleft().result()


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
