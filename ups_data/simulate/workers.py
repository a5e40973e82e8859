"""Worker processes for solvers, with results in order and bounded memory."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from ups_data.execution import Finished, Submit, cores, pool_of, start_worker

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(NamedTuple):
    """How to submit work and to wait for it (see `pool_of`), and how many pieces are done at once."""

    submit: Submit
    finished: Finished
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
        executor = ProcessPoolExecutor(count, context, start_worker)
    with pool_of(executor) as (submit, finished):
        yield Workers(submit, finished, count)


def in_order(workers: Workers, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """work(task) for each task, in order, computed ahead by one more than there are workers."""
    pending: deque[Future] = deque()

    def first() -> Result:
        return workers.finished([pending.popleft()]).pop().result()

    for task in tasks:
        if len(pending) > workers.count:
            yield first()
        pending.append(workers.submit(work, task))
    while pending:
        yield first()
