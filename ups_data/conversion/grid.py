"""Raw grid files to HDF5 files: planned first, then copied block by block on all cores or on a Dask cluster.

The plan reads the first frame of every sample, groups samples that start alike, gives every group its split and
every sample its place. Blocks are then copied to their byte offsets in any order, with moments and a finite check on
the way. A journal of finished blocks lets a killed run go on; outputs appear when all of them are whole.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ups_data import files
from ups_data.conversion import blocks, journal
from ups_data.conversion.facts import special_facts
from ups_data.conversion.files import empty, make_once, note_done, raw_files, work_key, workplace
from ups_data.conversion.plan import Output, Plan, plan_grid, static_fields
from ups_data.manifest import build_manifest, manifest_path
from ups_data.params import SPLITS, Convert, Splits
from ups_data.splits import leaked_share
from ups_data.statistics import Moments, merge_all
from ups_data.stores.grid import AXES, create_grid, describe_grid, reset_grid

PER_SAMPLE = 64  # bytes of its group and place in a file, or of its group in a manifest
SLACK = 16 << 20  # bytes of axes, statistics, the journal


def convert_grid(
    task: str,
    knobs: Convert,
    splits: Splits,
    out: str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
) -> dict[str, object]:
    """Convert a task into `<out>/<task>_{train,val,test}.h5` and its manifest, which is returned.

    A split larger than `knobs.shard_gb` becomes a folder of that name with `<task>_<split>_000.h5`, .. in it. The
    bytes do not depend on `workers`, nor on the Dask cluster of `scheduler`. Raises UpsDataError for bad input, leaving
    old outputs untouched.
    """
    root, paths = raw_files(knobs)
    plan = plan_grid(
        task,
        root,
        paths,
        knobs.samples,
        splits,
        source=knobs.source,
        float64=knobs.float64,
        equations=knobs.equations,
        shard_gb=knobs.shard_gb,
        workers=workers,
        scheduler=scheduler,
    )
    out = Path(out)
    targets = {split: out / f"{task}_{split}.h5" for split in SPLITS}
    return _convert(plan, targets, manifest_path(out, task), workers, scheduler)


def convert_file(
    task: str,
    split: str,
    paths: Sequence[Path],
    samples: int | None,
    target: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
) -> dict[str, object]:
    """Convert all samples of some files into one file; the generic form without a params.yaml entry."""
    root = Path(os.path.commonpath([p.parent for p in paths]))
    plan = plan_grid(task, root, list(paths), samples, None, split, workers=workers, scheduler=scheduler)
    return _convert(plan, {split: target}, None, workers, scheduler)


def _convert(
    plan: Plan, targets: dict[str, Path], manifest_file: Path | None, workers: int | None, scheduler: str | None
) -> dict:
    """Copy, describe, publish; what a killed run has finished of these is not done again."""
    out = next(iter(targets.values())).parent
    with workplace(out.absolute(), plan.task) as folder:
        key = work_key(
            plan.paths,
            block=blocks.BLOCK,
            samples=[[s.file, s.row, s.group, s.split, s.place] for s in plan.samples],
            outputs=[output.path for output in plan.files],
            targets=[str(path) for path in targets.values()],
        )
        return make_once(folder, key, targets, manifest_file, lambda: _make(plan, folder, key, workers, scheduler))


def _make(plan: Plan, folder: Path, key: str, workers: int | None, scheduler: str | None) -> dict:
    """Make all outputs in the folder of work and note that they are whole; return the manifest."""
    moments, loss = _copy_all(plan, folder, key, workers, scheduler)
    manifest = _manifest(plan, moments, loss)
    for output in plan.files:
        _describe(plan, folder, output, manifest)
    note_done(folder, key, manifest, plan.outputs)
    return manifest


# --- the copy ------------------------------------------------------------------------------------


def _copy_all(
    plan: Plan, folder: Path, key: str, workers: int | None, scheduler: str | None
) -> tuple[dict[str, Moments], float]:
    """Copy what the journal lacks; merge the moments in the order of the blocks, whoever was first.

    Returns the moments of every split and the greatest loss of rounding.
    """
    log = folder / "journal.jsonl"
    size = len(plan.samples) * int(np.prod(plan.sample_shape)) * 4
    cut = list(blocks.blocks_of(plan, folder, _begin(plan, folder, key, log, size)))
    done = journal.run_parts(
        blocks.copy_block,
        cut,
        [size / len(cut)] * len(cut),
        log,
        f"convert {plan.task}",
        workers=workers,
        scheduler=scheduler,
    )
    parts = [result["moments"] for result in done]
    merged = {s: merge_all(Moments.from_list(part[s]) for part in parts if s in part) for s in plan.outputs}
    return merged, max(result["loss"] for result in done)


def _begin(plan: Plan, folder: Path, key: str, log: Path, size: int) -> dict[str, int]:
    """Byte offsets of the data in the outputs: those of a killed run of the very same plan, or empty ones made here."""
    head = journal.head_of(log)
    if head.get("key") == key and all((folder / output.path).exists() for output in plan.files):
        return head["offsets"]
    empty(folder)
    files.require_space(folder, size + _beside(plan), f"converting {plan.task}")
    offsets = {}
    for output in plan.files:
        path = folder / output.path
        path.parent.mkdir(exist_ok=True)
        offsets[output.path] = create_grid(path, (output.count, *plan.sample_shape), _head(folder, output))
    journal.start(log, {"key": key, "offsets": offsets})
    return offsets


def _beside(plan: Plan) -> int:
    """Bytes on disk beside the data: static fields, what is kept of each sample, a manifest of all in every file."""
    samples = len(plan.samples)
    static = 4 * samples * int(np.prod(plan.first.space)) * len(plan.first.static_channels)
    own = 8 * len(plan.first.parameters) + PER_SAMPLE * (1 + len(plan.files))
    return static + samples * own + SLACK


def _head(folder: Path, output: Output) -> Path:
    """Where the bytes before the data of an output are kept."""
    return folder / f"{output.name}.head"


# --- the description -----------------------------------------------------------------------------


def _manifest(plan: Plan, moments: dict[str, Moments], loss: float) -> dict:
    first, groups = plan.first, [s.group for s in plan.samples]
    counted = "train" if "train" in moments else next(iter(plan.outputs))
    statistics = moments[counted].to_manifest(first.channels)
    if first.static_channels:
        static = merge_all(Moments.of(fields) for fields in static_fields(plan, plan.of(counted)))
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
        groups={split: [s.group for s in plan.of(split)] for split in plan.outputs},
        shards={
            split: [{"name": output.name, "samples": output.count} for output in outputs]
            for split, outputs in plan.outputs.items()
            if len(outputs) > 1
        },
        statistics=statistics,
        fingerprint={split: moments[split].to_list() for split in plan.outputs},
        leaked_share=leaked_share(groups, [s.split for s in plan.samples]),
        files=[
            {"name": p.relative_to(plan.root).as_posix(), "size": p.stat().st_size, "samples": n}
            for p, n in zip(plan.paths, plan.counts, strict=True)
        ],
        **special_facts(plan, loss),
    )


def _describe(plan: Plan, folder: Path, output: Output, manifest: dict) -> None:
    path = folder / output.path
    reset_grid(path, _head(folder, output))  # a run that was killed in here has left its arrays behind
    samples = plan.of(output.split)[output.first : output.first + output.count]
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
        split=output.split,
        channels=plan.first.channels,
        parameter_names=list(plan.first.parameters),
        manifest=manifest,
        static=static_fields(plan, samples),
    )
