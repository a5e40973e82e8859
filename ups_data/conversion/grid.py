"""Raw grid files to one HDF5 file a split: planned first, then copied block by block on all cores.

The plan reads the first frame of every sample, groups samples that start alike, gives every group its split and
every sample its place. Blocks are then copied to their byte offsets in any order, with moments and a finite check on
the way. A journal of finished blocks lets a killed run go on; outputs appear when all of them are whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ups_data import console, files
from ups_data.conversion.facts import special_facts
from ups_data.conversion.files import raw_files
from ups_data.conversion.plan import Plan, check_finite, plan_grid, read_exact, static_fields
from ups_data.errors import UpsDataError
from ups_data.execution import cores
from ups_data.manifest import build_manifest, content_key, manifest_path
from ups_data.params import SPLITS, Convert, Splits
from ups_data.sources.grids import open_raw
from ups_data.sources.raw import RawFile
from ups_data.splits import leaked_share
from ups_data.statistics import Moments, merge_all
from ups_data.stores.grid import AXES, create_grid, describe_grid, reset_grid

BLOCK = 16 << 20  # bytes a block: large against the cost of opening a file, small against 1 GiB of memory
PATIENCE = 50  # tenths of a second to wait for another conversion to end


@dataclass(frozen=True)
class Piece:
    """Frames [start, stop) of one sample, to be copied to byte `offset` of `target`."""

    row: int
    start: int
    stop: int
    split: str
    target: str
    offset: int


def convert_grid(
    task: str, knobs: Convert, splits: Splits, out: str | Path, *, workers: int | None = None
) -> dict[str, object]:
    """Convert a task into `<out>/<task>_{train,val,test}.h5` and its manifest, which is returned.

    The bytes do not depend on `workers`. Raises UpsDataError for bad input, leaving old outputs untouched.
    """
    root, paths = raw_files(knobs)
    plan = plan_grid(task, root, paths, knobs.samples, splits, source=knobs.source, float64=knobs.float64)
    out = Path(out)
    targets = {split: out / f"{task}_{split}.h5" for split in SPLITS}
    return _convert(plan, targets, manifest_path(out, task), workers)


def convert_file(
    task: str, split: str, paths: Sequence[Path], samples: int | None, target: Path, *, workers: int | None = None
) -> dict[str, object]:
    """Convert all samples of some files into one file; the generic form without a params.yaml entry."""
    root = Path(os.path.commonpath([p.parent for p in paths]))
    plan = plan_grid(task, root, list(paths), samples, None, split)
    return _convert(plan, {split: target}, None, workers)


# --- the copy ------------------------------------------------------------------------------------


def blocks_of(plan: Plan, folder: Path, offsets: dict[str, int]) -> Iterator[tuple[Path, list[Piece]]]:
    """Cut the work into blocks of one file and about BLOCK bytes: many small samples, or some frames of a large one."""
    frame = int(np.prod(plan.sample_shape[1:])) * 4
    size = frame * plan.first.frames
    step = max(1, min(plan.first.frames, BLOCK // frame))
    for index, path in enumerate(plan.paths):
        block: list[Piece] = []
        held = 0
        for sample in (s for s in plan.samples if s.file == index):
            for start in range(0, plan.first.frames, step):
                stop = min(start + step, plan.first.frames)
                place = offsets[sample.split] + sample.place * size + start * frame
                block.append(Piece(sample.row, start, stop, sample.split, str(folder / f"{sample.split}.h5"), place))
                held += (stop - start) * frame
                if held >= BLOCK:
                    yield path, block
                    block, held = [], 0
        if block:
            yield path, block


def copy_block(path: Path, block: Sequence[Piece]) -> dict[str, object]:
    """Copy the pieces of a block to their places; return `moments` of each split in it and the greatest `loss`.

    Runs in a worker process. Raises UpsDataError for unreadable or non-finite data.
    """
    found: dict[str, list[Moments]] = {}
    loss = 0.0
    with open_raw(path) as raw, ExitStack() as stack:
        source = os.open(path, os.O_RDONLY) if raw.bytes_at is not None else None
        if source is not None:
            stack.callback(os.close, source)
        targets: dict[str, int] = {}
        for piece in block:
            if piece.target not in targets:
                targets[piece.target] = os.open(piece.target, os.O_WRONLY)
                stack.callback(os.close, targets[piece.target])
            values, lost = _rounded(raw, piece) if source is None else (_bytes(raw, source, piece), 0.0)
            loss = max(loss, lost)
            moments = Moments.of(values)
            if not moments.is_finite():
                check_finite(raw, values, piece.row, piece.start)
            _write(targets[piece.target], np.ascontiguousarray(values), piece.offset)
            found.setdefault(piece.split, []).append(moments)
    return {"moments": {split: merge_all(parts).to_list() for split, parts in found.items()}, "loss": loss}


def _rounded(raw: RawFile, piece: Piece) -> tuple[np.ndarray, float]:
    """Frames as float32, and the greatest relative loss of a number (of the least normal one, if it is below that)."""
    exact = read_exact(raw, piece.row, piece.start, piece.stop)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite and NaN are for check_finite
        values = exact.astype(np.float32, copy=False)
        if values.dtype == exact.dtype:
            return values, 0.0
        lost = np.abs(exact - values) / np.maximum(np.abs(exact), np.finfo(np.float32).tiny)
    return values, float(lost.max())


def _bytes(raw: RawFile, source: int, piece: Piece) -> np.ndarray:
    """Frames read as they stand in the file: no library between disk and memory."""
    frame = int(np.prod(raw.space)) * 4
    values = np.empty((piece.stop - piece.start, *raw.space, 1), dtype="<f4")
    offset = raw.bytes_at + (piece.row * raw.frames + piece.start) * frame
    view, done = memoryview(values).cast("B"), 0
    while done < len(view):
        got = os.preadv(source, [view[done:]], offset + done)
        if not got:
            raise UpsDataError(f"{raw.path}: truncated: sample {piece.row} is cut short; fetch the file again")
        done += got
    return values


def _write(target: int, values: np.ndarray, offset: int) -> None:
    view, done = memoryview(values).cast("B"), 0
    while done < len(view):
        done += os.pwrite(target, view[done:], offset + done)


def _convert(plan: Plan, targets: dict[str, Path], manifest_file: Path | None, workers: int | None) -> dict:
    """Copy, describe, publish."""
    out = next(iter(targets.values())).parent
    out.mkdir(parents=True, exist_ok=True)
    folder = out / f".{plan.task}.partial"
    size = len(plan.samples) * int(np.prod(plan.sample_shape)) * 4
    with _alone(folder):
        try:
            journal, offsets = _open_journal(plan, folder, size)
            moments, loss = _copy_all(plan, folder, offsets, journal, workers or cores(), size)
            manifest = _manifest(plan, moments, loss)
            for split in plan.outputs:
                _describe(plan, folder / f"{split}.h5", split, manifest)
        except BrokenProcessPool:
            raise UpsDataError("a converting process was killed; run the same command again to go on") from None
        except (UpsDataError, OSError):
            files.remove(folder)
            raise
        for split in plan.outputs:
            files.publish(folder / f"{split}.h5", targets[split])
        for split in set(targets) - set(plan.outputs):
            files.remove(targets[split])  # an empty split must not leave an older one standing
        if manifest_file:
            files.write_json(manifest_file, manifest)
        files.remove(folder)
    return manifest


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second conversion of the same task out; the workers of one that was killed leave within a second."""
    lock = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for _ in range(PATIENCE):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            raise UpsDataError(f"{folder}: another conversion of this task is at work; wait for it or stop it")
        folder.mkdir(exist_ok=True)
        yield
    finally:
        os.close(lock)


def _open_journal(plan: Plan, folder: Path, size: int) -> tuple[Path, dict[str, int]]:
    """Go on with a partial conversion of the very same plan, or start an empty one.

    A journal is trusted only within one boot of the machine: after a power cut the pages it speaks of may be lost.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    stats = [path.stat() for path in plan.paths]
    key = content_key(
        block=BLOCK,
        boot=boot.read_text().strip() if boot.exists() else "",
        files=[[str(p.resolve()), s.st_size, s.st_mtime_ns] for p, s in zip(plan.paths, stats, strict=True)],
        samples=[[s.file, s.row, s.group, s.split, s.place] for s in plan.samples],
    )
    journal = folder / "journal.jsonl"
    if journal.exists():
        head = json.loads(journal.read_text().partition("\n")[0] or "{}")
        if head.get("key") == key and all((folder / f"{split}.h5").exists() for split in plan.outputs):
            return journal, head["offsets"]
    for child in folder.iterdir():
        files.remove(child)
    files.require_space(folder, size, f"converting {plan.task}")
    offsets = {
        split: create_grid(folder / f"{split}.h5", (len(plan.of(split)), *plan.sample_shape)) for split in plan.outputs
    }
    with files.atomic(journal) as temporary:
        temporary.write_text(json.dumps({"key": key, "offsets": offsets}) + "\n")
    return journal, offsets


def _copy_all(
    plan: Plan, folder: Path, offsets: dict[str, int], journal: Path, workers: int, size: int
) -> tuple[dict[str, Moments], float]:
    """Copy what the journal does not have; merge the moments in the order of the blocks, whoever was first.

    Returns the moments of every split and the greatest loss of rounding.
    """
    done: dict[int, dict] = {}
    for line in journal.read_text().splitlines()[1:]:
        try:
            index, result = json.loads(line)
        except json.JSONDecodeError:
            break  # the run was killed while it wrote this line
        done[index] = result
    blocks = list(blocks_of(plan, folder, offsets))
    if done:
        console.say(f"convert {plan.task}: going on with {len(blocks) - len(done)} of {len(blocks)} blocks")
    share = size / len(blocks)
    with console.progress(f"convert {plan.task}", size, "B") as bar, open(journal, "a") as log:
        bar.advance(share * len(done))
        log.write("\n" if done else "")
        for index, result in _run([i for i in range(len(blocks)) if i not in done], blocks, workers):
            done[index] = result
            log.write(json.dumps([index, result]) + "\n")
            log.flush()
            bar.advance(share)
    parts = [done[i]["moments"] for i in range(len(blocks))]
    merged = {s: merge_all(Moments.from_list(part[s]) for part in parts if s in part) for s in plan.outputs}
    return merged, max(result["loss"] for result in done.values())


def _run(todo: list[int], blocks: list, workers: int) -> Iterator[tuple[int, dict]]:
    """Run copy_block over blocks on `workers` processes; yields (index, its result) as they finish."""
    if workers == 1 or len(todo) < 2:
        for index in todo:
            yield index, copy_block(*blocks[index])
        return
    waiting = iter(todo)
    running: dict[Future, int] = {}
    leave_with_parent = partial(_leave_with, os.getpid())
    with ProcessPoolExecutor(min(workers, len(todo)), get_context("fork"), leave_with_parent) as pool:
        try:
            for index in waiting:
                running[pool.submit(copy_block, *blocks[index])] = index
                if len(running) == 2 * workers:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_with(parent: int) -> None:
    """End this worker when its parent is gone: a pool's processes outlive a parent that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finished(running: dict[Future, int]) -> Iterator[tuple[int, dict]]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        yield running.pop(future), future.result()


# --- the description -----------------------------------------------------------------------------


def _manifest(plan: Plan, moments: dict[str, Moments], loss: float) -> dict:
    first, groups = plan.first, [s.group for s in plan.samples]
    counted = "train" if "train" in moments else plan.outputs[0]
    statistics = moments[counted].to_manifest(first.channels)
    if first.static_channels:
        static = merge_all(Moments.of(fields) for fields in static_fields(plan, counted))
        statistics["channels"] |= static.to_manifest(first.static_channels)["channels"]
    values = np.array([s.parameters for s in plan.samples]).reshape(len(plan.samples), -1)
    names = {name: (raw, values[:, i]) for i, (name, raw) in enumerate(first.parameters.items())}
    return build_manifest(
        task=plan.task,
        kind="grid",
        channels=first.channels,
        static_channels=list(first.static_channels),
        parameters=names,
        shape={
            "resolution": list(first.space),
            "frames": first.frames,
            "time_step": float(first.time[1] - first.time[0]) if first.frames > 1 else None,
            "periodic": list(first.periodic),
        },
        splits=plan.splits,
        groups={split: [groups[i] for i in plan.of(split)] for split in plan.outputs},
        statistics=statistics,
        fingerprint={split: moments[split].to_list() for split in plan.outputs},
        leaked_share=leaked_share(groups, [s.split for s in plan.samples]),
        files=[
            {"name": p.relative_to(plan.root).as_posix(), "size": p.stat().st_size, "samples": n}
            for p, n in zip(plan.paths, plan.counts, strict=True)
        ],
        **special_facts(plan, loss),
    )


def _describe(plan: Plan, path: Path, split: str, manifest: dict) -> None:
    reset_grid(path)  # a run that was killed in here has left its arrays behind
    chosen = plan.of(split)
    samples = [plan.samples[i] for i in chosen]
    arrays = {
        "time": plan.first.time,
        **{axis: plan.first.coordinates[axis] for axis in AXES if axis in plan.first.coordinates},
        "parameters": np.array([s.parameters for s in samples]).reshape(len(samples), -1),
        "group": np.array([s.group for s in samples], dtype="S32"),
        "source_file": np.array([s.file for s in samples], dtype=np.int32),
        "source_row": np.array([s.row for s in samples], dtype=np.int64),
    }
    describe_grid(
        path,
        arrays=arrays,
        task=plan.task,
        split=split,
        channels=plan.first.channels,
        parameter_names=list(plan.first.parameters),
        manifest=manifest,
        static=static_fields(plan, split),
    )
