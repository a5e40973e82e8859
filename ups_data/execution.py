"""Where work runs: this machine's cores, a Dask cluster, a CPU or a GPU."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from ups_data import console
from ups_data.errors import UpsDataError

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    import torch

SCHEDULER = "DASK_SCHEDULER_ADDRESS"  # the variable that Dask's own commands know
ANSWER = 10  # seconds that a scheduler has to answer
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GLANCE = 0.2  # seconds after which a wait for workers looks whether a signal has come
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
AHEAD = 2  # tasks given out for each core: one in work, one waiting for it
Submit = Callable[..., "Future"]
Finished = Callable[[Collection["Future"]], "set[Future]"]  # those that are done, at least one
Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """Cores this process may use (a container or a batch job may grant fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    work: Callable, tasks: Mapping[int, tuple], workers: int | None = None, scheduler: str | None = None
) -> Iterator[tuple[int, object]]:
    """Call `work(*arguments)` for every task (its number -> arguments); yield (number, result) in the order of finish.

    On a Dask cluster where `scheduler` or $DASK_SCHEDULER_ADDRESS names one, else on `workers` processes (all cores).
    A task may run twice after its worker was killed. Raises what `work` raises, WorkersLost when workers were killed.
    """
    address = scheduler or os.environ.get(SCHEDULER)
    if address and tasks:
        return _on_cluster(work, tasks, address)
    workers = min(workers or cores(), len(tasks))
    if workers < 2:
        return ((number, work(*arguments)) for number, arguments in tasks.items())
    return _on_cores(work, tasks, workers)


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


class WorkersLost(UpsDataError):
    """Worker processes were killed: what they had finished counts, the rest can be done by a second run."""


def _on_cores(work: Callable, tasks: Mapping[int, tuple], workers: int) -> Iterator[tuple[int, object]]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    running: dict[Future, int] = {}
    with pool_of(ProcessPoolExecutor(workers, get_context("fork"), start_worker)) as (submit, finished):

        def results() -> Iterator[tuple[int, object]]:
            for future in finished(running):
                yield running.pop(future), future.result()

        for number, arguments in tasks.items():
            running[submit(work, *arguments)] = number
            if len(running) == AHEAD * workers:
                yield from results()
        while running:
            yield from results()


@contextmanager
def pool_of(executor: Executor) -> Iterator[tuple[Submit, Finished]]:
    """Yield how to give work to an executor and how to wait for some of it: at such a moment alone a signal is taken.

    Its processes begin with `start_worker`. Raises WorkersLost when some were killed; leaves none behind.
    """
    from concurrent.futures import FIRST_COMPLETED, wait
    from concurrent.futures.process import BrokenProcessPool

    def submit(work: Callable, *arguments: object) -> Future:
        with _signals_held():  # workers are started in here
            return executor.submit(work, *arguments)

    def finished(futures: Collection[Future]) -> set[Future]:
        let_in()
        while not (done := wait(futures, GLANCE, FIRST_COMPLETED).done):
            let_in()
        return done

    with signals_noted() as let_in:
        try:
            yield submit, finished
        except BrokenProcessPool:
            let_in()
            raise WorkersLost("a worker process was killed; run the same command again to go on") from None
        finally:
            executor.shutdown(cancel_futures=True)  # once, to its end: a second call or none can leave workers behind


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let no signal in; a process that is started in here holds them too, SIGTERM until `start_worker` lets it in.

    A terminal sends Ctrl-C to all of its processes, a batch system its warning: they are for the parent to take, as a
    worker that ends in the middle can hold a lock.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signals_noted() -> Iterator[Callable[[], None]]:
    """Yield a function that has a signal that came taken by its handler: what is not asked is not interrupted.

    One that came between any two steps of a pool of processes could leave it locked for ever, and one between two
    files that belong together only one of them published. It is taken at the end, if not before.
    """
    came: list[int] = []
    before: dict[int, Callable] = {}

    def let_in() -> None:
        if came:
            number = came.pop(0)
            before[number](number, None)  # raises KeyboardInterrupt, or whatever else the program wants

    try:
        if threading.current_thread() is threading.main_thread():  # elsewhere none arrives
            for number in SIGNALS:
                if callable(handler := signal.getsignal(number)):
                    before[number] = handler
                    signal.signal(number, lambda number, frame: came.append(number))
        yield let_in
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        let_in()


def start_worker() -> None:
    """Have this worker take SIGTERM, by which a pool that lost one ends the others, and end when its parent is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    parent, above = parent_process(), os.getppid()  # `above` may be a fork server, which ends with it
    while os.getppid() == above and parent.is_alive():  # forked workers hold each other's pipes open
        time.sleep(0.2)
    os._exit(1)


def _on_cluster(work: Callable, tasks: Mapping[int, tuple], address: str) -> Iterator[tuple[int, object]]:
    """Dask gives the tasks of a worker that is lost to the others; workers may come and go while this runs."""
    from dask.distributed import Client, KilledWorker, as_completed
    from distributed.comm import resolve_address

    try:
        resolve_address(address)  # first: a Client of a wrong one cannot be closed, and says so when Python ends
        client = Client(address, timeout=ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:  # a timeout is an OSError
        reason = (str(error).splitlines() or ["no answer"])[0]
        raise UpsDataError(
            f"no Dask scheduler answers at {address} ({reason}); start it (`dask scheduler`), correct the address, "
            f"or unset ${SCHEDULER} to work on this machine"
        ) from None
    with client:
        threads = sum(client.nthreads().values())
        console.say(f"on the Dask cluster {address}: {threads or 'waiting for'} threads")
        waiting = iter(tasks.items())
        numbers: dict[str, int] = {}

        def submit(count: int) -> list:
            futures = []
            for number, arguments in islice(waiting, count):
                futures.append(client.submit(work, *arguments, pure=False))
                numbers[futures[-1].key] = number
            return futures

        finished = as_completed(submit(AHEAD * max(threads, 8)), loop=client.loop)
        for future in finished:
            try:
                result = future.result()
            except KilledWorker as error:
                raise WorkersLost(f"{address}: {error}; run the same command again to go on") from None
            except ModuleNotFoundError as error:
                raise UpsDataError(
                    f"the workers of {address} have no module {error.name}; start them in the folder and the "
                    "environment of this project"
                ) from None
            yield numbers.pop(future.key), result
            for future in submit(1):
                finished.add(future)


def pick_device(name: str = "auto") -> torch.device:
    """The torch device of that name; `auto` is $UPS_DEVICE if set, else CUDA when there, else the CPU."""
    import torch

    if name == "auto":
        name = os.environ.get("UPS_DEVICE", "") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):  # torch knows more kinds, nothing here is made for them
        raise UpsDataError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UpsDataError(f"device {name} was asked for, but this machine has no usable CUDA GPU; use cpu")
    if device.type == "cuda":
        _in_fixed_order()
        _in_full_precision()
    else:
        _keep_memory()
    return device


def _keep_memory() -> None:
    """Have the C library keep memory that is given back: every layer of a network takes and returns some megabytes.

    Else glibc returns it to the system, which clears the pages that it hands out anew: encoding took a third longer.
    """
    import ctypes

    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    set_option(MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
    set_option(TRIM_THRESHOLD, 512 << 20)


def _in_full_precision() -> None:
    """Have a GPU multiply float32 numbers as such; PyTorch lets it round them to ten bits in convolutions.

    The last numbers of a token stand for a ten-thousandth of a smooth field: rounded like that, the round trip of
    Burgers' equation at Nu = 0.01 is forty times worse. Where fewer bits are enough the models say so (autocast).
    """
    import warnings

    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores for float32 matrix multiplication available")


def _in_fixed_order() -> None:
    """Have a GPU add in one order: a training that is run again, or goes on elsewhere, ends in the same bytes.

    Else sums over neighbours are added as they arrive, and the kernels that a compiler makes are chosen by a race.
    """
    import warnings

    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # one of the two that cuBLAS calls deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    # The tokens of a short axis are one tile of attention, whose sums have one order without being asked.
    warnings.filterwarnings("ignore", message=".*Attention defaults to a non-deterministic algorithm")
