"""Raw mesh and particle files to one Zarr store a split, on all cores or on a Dask cluster.

A first look at every file checks it and names every sample's initial condition; then the splits are decided, stores are
made with room for everything, and samples are copied into their places in any order. A journal of finished blocks lets
a killed run go on; outputs appear when all of them are whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ups_data import console, files
from ups_data.conversion import journal, mesh_files, particle_files
from ups_data.conversion.facts import float64_facts, residual_facts, twin_facts
from ups_data.conversion.files import check_precision, empty, make_once, note_done, raw_files, work_key, workplace
from ups_data.conversion.looks import Opener, Piece, Scan, scan_files
from ups_data.errors import UpsDataError
from ups_data.manifest import build_manifest, manifest_path
from ups_data.params import SPLITS, Convert, Splits
from ups_data.sources.mesh_grid import GridMesh
from ups_data.sources.mesh_npz import MeshShard
from ups_data.sources.particles_flow import FlowTracers
from ups_data.sources.particles_npz import ParticleShard
from ups_data.sources.raw import left_out
from ups_data.splits import assign_splits, leaked_share
from ups_data.statistics import Moments, merge_all
from ups_data.stores import packed

KINDS = {"mesh": mesh_files, "particles": particle_files}
SLACK = 64 << 20  # bytes on disk beside the fields: topologies, graphs, metadata
Written = list[tuple[list[str], Moments]]  # moments of the channels of those names


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first sample is copied."""

    task: str
    kind: str
    root: Path
    opener: Opener
    scan: Scan
    splits: Splits
    names: list[str]  # the split of every sample

    @property
    def chosen(self) -> dict[str, list[int]]:
        """The samples of every split that has some."""
        members: dict[str, list[int]] = {split: [] for split in SPLITS}
        for i, name in enumerate(self.names):
            members[name].append(i)
        return {split: rows for split, rows in members.items() if rows}


def convert_points(
    task: str,
    kind: str,
    knobs: Convert,
    splits: Splits,
    out: str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
) -> dict[str, object]:
    """Convert a task into `<out>/<task>_{train,val,test}.zarr` and its manifest, which is returned.

    `kind`: mesh or particles. The bytes do not depend on `workers`, nor on the Dask cluster of `scheduler`. Raises
    UpsDataError for bad input, leaving old outputs untouched.
    """
    if splits.protocol == "pdebench":
        raise UpsDataError(
            f"splits.protocol of {task}: got 'pdebench', expected 'grouped' or 'hashed': PDEBench has no {kind} data, "
            "so there is no official split of it"
        )
    root, paths = raw_files(knobs)
    opener = _opener(kind, knobs)
    scan = scan_files(paths, knobs.samples, KINDS[kind].look, opener, workers=workers, scheduler=scheduler)
    if scan.unread:
        console.say(f"{task}: {left_out(list(scan.unread))}")
    for path in scan.rounded:
        check_precision(path, knobs.float64)
    assigned = assign_splits([sample.group for sample in scan.samples], splits)
    plan = Plan(task, kind, root, opener, scan, splits, [assigned[sample.group] for sample in scan.samples])
    out = Path(out)
    targets = {split: out / f"{task}_{split}.zarr" for split in SPLITS}
    with workplace(out.absolute(), task) as folder:
        key = work_key(
            scan.paths,
            kind=kind,
            tracers=knobs.tracers.model_dump() if knobs.tracers else None,
            samples=[
                [s.source_file, s.source_row, s.group, name] for s, name in zip(scan.samples, plan.names, strict=True)
            ],
            together=scan.together,
            noted=["moments", "loss"],  # what the journal holds of a part
        )
        return make_once(
            folder, key, targets, manifest_path(out, task), lambda: _make(plan, folder, key, workers, scheduler)
        )


def _make(plan: Plan, folder: Path, key: str, workers: int | None, scheduler: str | None) -> dict[str, object]:
    """Make all stores in the folder of work and note that they are whole; return the manifest."""
    log = folder / "journal.jsonl"
    if journal.head_of(log) != {"key": key}:
        empty(folder)
        files.require_space(folder, sum(plan.scan.sizes) + SLACK, f"converting {plan.task}")
        for split, rows in plan.chosen.items():
            KINDS[plan.kind].create(plan.scan, rows, folder / split)
        journal.start(log, {"key": key})
    manifest = _manifest(plan, *_copy_all(plan, folder, log, workers, scheduler))
    for split in plan.chosen:
        for stray in (folder / split).rglob("*.partial"):
            stray.unlink()  # of a run that was killed while it described the store
        format = KINDS[plan.kind].FORMAT
        packed.describe(folder / split, format=format, task=plan.task, split=split, manifest=manifest)
    note_done(folder, key, manifest, plan.chosen)
    return manifest


def _copy_all(
    plan: Plan, folder: Path, log: Path, workers: int | None, scheduler: str | None
) -> tuple[dict[str, Written], float]:
    """Copy what the journal lacks; merge the moments in the order of the samples, whoever was first.

    Returns the moments of every split and the greatest loss of rounding.
    """
    scan, of_kind = plan.scan, KINDS[plan.kind]
    found = journal.run_parts(
        of_kind.copy,
        _blocks(plan, folder),
        [sum(scan.sizes[i] for i in members) for _, members in scan.blocks()],
        log,
        f"convert {plan.task}",
        workers=workers,
        scheduler=scheduler,
    )
    written: dict[str, Written] = {}
    for split in plan.chosen:
        parts = [result["moments"][split] for result in found if split in result["moments"]]
        written[split] = [
            (channels, merge_all(Moments.from_list(values) for part in parts for values in part[array]))
            for array, channels in of_kind.channels(scan).items()
        ]
    return written, max(result["loss"] for result in found)


def _blocks(plan: Plan, folder: Path) -> list[tuple]:
    """What every copy is told: opener, raw file, its pieces, and the places of its topology if it is the one copied."""
    scan = plan.scan
    pieces: dict[int, Piece] = {}
    topologies: dict[int, list] = {}
    for split, rows in plan.chosen.items():
        samples, shared = KINDS[plan.kind].places(scan, rows, folder / split)
        pieces |= {i: Piece(scan.samples[i].source_row, split, runs) for i, runs in zip(rows, samples, strict=True)}
        for file, runs in shared:
            topologies.setdefault(file, []).append(runs)
    return [
        (plan.opener, scan.paths[file].absolute(), [pieces[i] for i in members], topologies.pop(file, []))
        for file, members in scan.blocks()
    ]


def _opener(kind: str, knobs: Convert) -> Opener:
    """What opens a file of this kind and source as shards."""
    if kind == "mesh":
        return MeshShard if knobs.source == "npz" else GridMesh
    return ParticleShard if knobs.source == "npz" else partial(FlowTracers, tracers=knobs.tracers)


def _manifest(plan: Plan, written: dict[str, Written], loss: float) -> dict[str, object]:
    scan = plan.scan
    groups = [sample.group for sample in scan.samples]
    values = np.array([sample.parameters for sample in scan.samples]).reshape(len(groups), -1)
    described = [m.to_manifest(channels) for channels, m in written.get("train", next(iter(written.values())))]
    steps = np.diff(scan.times)
    return build_manifest(
        task=plan.task,
        kind=plan.kind,
        channels=scan.facts["channels"],
        parameters={
            name: (raw, values[:, i])
            for i, (name, raw) in enumerate(zip(scan.facts["parameters"], scan.raw_names, strict=True))
        },
        shape={
            "resolution": _resolution(scan),
            "frames": len(scan.times),
            "time_step": float(steps[0]) if len(steps) and np.allclose(steps, steps[0]) else None,
            "periodic": [period > 0 for period in scan.facts["box"]]
            if plan.kind == "particles"
            else [False] * scan.facts["dimensions"],
        },
        splits=plan.splits,
        groups={split: [groups[i] for i in rows] for split, rows in plan.chosen.items()},
        statistics={
            "count": described[0]["count"],
            "channels": {name: facts for part in described for name, facts in part["channels"].items()},
        },
        fingerprint={split: [m.to_list() for _, m in parts] for split, parts in written.items()},
        leaked_share=leaked_share(groups, plan.names),
        files=[
            {"name": path.relative_to(plan.root).as_posix(), "size": path.stat().st_size, "samples": count}
            for path, count in zip(scan.paths, scan.counts, strict=True)
        ],
        **_special_facts(plan, loss),
    )


def _special_facts(plan: Plan, loss: float) -> dict[str, object]:
    """What the manifest says of some datasets and not of others."""
    scan, root = plan.scan, plan.root
    facts = {key: scan.facts[key] for key in ("roles", "grouped_by") if key in scan.facts}
    if any(scan.residuals):
        facts["residual"] = residual_facts([p.relative_to(root).as_posix() for p in scan.paths], scan.residuals)
    facts |= float64_facts(plan.task, root, scan.rounded, len(scan.paths), loss)
    return facts | twin_facts(root, scan.twins)


def _resolution(scan: Scan) -> dict[str, object]:
    """Meshes: how many, and the least and most nodes; particles: how many, or the least and most."""
    if scan.topologies:
        nodes = [sizes["node"] for sizes, _ in scan.topologies]
        return {"topologies": len(nodes), "nodes": [min(nodes), max(nodes)]}
    counts = sorted({sample.particles for sample in scan.samples})
    return {"particles": counts[0] if len(counts) == 1 else [counts[0], counts[-1]]}
