"""Raw mesh and particle shards to one Zarr store a split.

A first look at every shard checks it and names every sample's initial condition; then the splits are decided, and each
split is written by streaming its samples out of the shards. All outputs are made in a folder beside the final ones
and appear when all of them are whole; a killed run leaves that folder, and the next one takes over the splits that are
finished in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ups_data import console, files
from ups_data.conversion.facts import residual_facts, twin_facts
from ups_data.conversion.files import done_before, empty, note_done, publish_all, raw_files, work_key, workplace
from ups_data.conversion.shards import Scan, Written, scan_meshes, scan_particles, write_meshes, write_particles
from ups_data.errors import UpsDataError
from ups_data.manifest import build_manifest, manifest_path
from ups_data.params import SPLITS, Convert, Splits
from ups_data.sources.mesh_grid import GridMesh
from ups_data.sources.mesh_npz import MeshShard
from ups_data.sources.particles_flow import FlowTracers
from ups_data.sources.particles_npz import ParticleShard
from ups_data.splits import assign_splits, leaked_share
from ups_data.statistics import Moments
from ups_data.stores import mesh, particles

KINDS = {
    "mesh": (scan_meshes, write_meshes, mesh.describe),
    "particles": (scan_particles, write_particles, particles.describe),
}
KEY = "key"  # in the folder of work: of what the splits in it are
SLACK = 64 << 20  # bytes on disk beside the fields: topologies, graphs, metadata


def convert_points(task: str, kind: str, knobs: Convert, splits: Splits, out: str | Path) -> dict[str, object]:
    """Convert a task into `<out>/<task>_{train,val,test}.zarr` and its manifest, which is returned.

    `kind`: mesh or particles. Raises UpsDataError for bad input, leaving old outputs untouched.
    """
    if splits.protocol == "pdebench":
        raise UpsDataError(
            f"splits.protocol of {task}: got 'pdebench', expected 'grouped' or 'hashed': PDEBench has no {kind} data, "
            "so there is no official split of it"
        )
    scan_shards, write_shards, describe = KINDS[kind]
    root, paths = raw_files(knobs)
    scan = scan_shards(paths, knobs.samples, _opener(kind, knobs))
    groups = [sample.group for sample in scan.samples]
    assigned = assign_splits(groups, splits)
    names = [assigned[group] for group in groups]
    chosen = {split: [i for i, name in enumerate(names) if name == split] for split in SPLITS if split in names}
    out = Path(out)
    targets = {split: out / f"{task}_{split}.zarr" for split in SPLITS}
    with workplace(out.absolute(), task) as folder:
        key = work_key(
            scan.paths,
            kind=kind,
            tracers=knobs.tracers.model_dump() if knobs.tracers else None,
            samples=[[s.source_file, s.source_row, s.group, name] for s, name in zip(scan.samples, names, strict=True)],
        )
        manifest = done_before(folder, key, targets)
        if manifest is None:
            try:
                written = _write_all(folder, key, task, scan, chosen, write_shards)
                manifest = _manifest(task, kind, scan, root, splits, names, written)
                for split in chosen:
                    describe(folder / split, task, split, manifest)
                note_done(folder, key, manifest, chosen)
            except (UpsDataError, OSError):
                files.remove(folder)
                raise
        publish_all(folder, manifest, targets, manifest_path(out, task))
    return manifest


def _write_all(
    folder: Path, key: str, task: str, scan: Scan, chosen: dict[str, list[int]], write_shards: Callable
) -> dict[str, Written]:
    """Write the store of every split that a killed run of the same key has not finished; return all moments."""
    total = sum(scan.sizes)
    if not (folder / KEY).exists() or (folder / KEY).read_text() != key:
        empty(folder)
        files.require_space(folder, total + SLACK, f"converting {task}")
        files.write_text(folder / KEY, key)
    written: dict[str, Written] = {}
    with console.progress(f"convert {task}", total, "B") as bar:
        for split, rows in chosen.items():
            moments = folder / f"{split}.json"
            if moments.exists():
                console.say(f"convert {task}: {split} is finished")
                bar.advance(sum(scan.sizes[row] for row in rows))
                for stray in (folder / split).rglob("*.partial"):
                    stray.unlink()  # of a run that was killed while it described the store
            else:
                files.remove(folder / split)
                found = write_shards(scan, rows, folder / split, bar)
                files.write_json(moments, [[names, of_these.to_list()] for names, of_these in found])
            written[split] = [(names, Moments.from_list(values)) for names, values in files.read_json(moments)]
    return written


def _opener(kind: str, knobs: Convert) -> Callable[[Path], object]:
    """What opens a file of this kind and source as shards."""
    if kind == "mesh":
        return MeshShard if knobs.source == "npz" else GridMesh
    return ParticleShard if knobs.source == "npz" else partial(FlowTracers, tracers=knobs.tracers)


def _manifest(
    task: str,
    kind: str,
    scan: Scan,
    root: Path,
    splits: Splits,
    names: list[str],
    written: dict[str, Written],
) -> dict[str, object]:
    groups = [sample.group for sample in scan.samples]
    values = np.array([sample.parameters for sample in scan.samples]).reshape(len(groups), -1)
    described = [m.to_manifest(channels) for channels, m in written.get("train", next(iter(written.values())))]
    steps = np.diff(scan.times)
    return build_manifest(
        task=task,
        kind=kind,
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
            if kind == "particles"
            else [False] * scan.facts["dimensions"],
        },
        splits=splits,
        groups={split: [g for g, name in zip(groups, names, strict=True) if name == split] for split in written},
        statistics={
            "count": described[0]["count"],
            "channels": {name: facts for part in described for name, facts in part["channels"].items()},
        },
        fingerprint={split: [m.to_list() for _, m in parts] for split, parts in written.items()},
        leaked_share=leaked_share(groups, names),
        files=[
            {"name": path.relative_to(root).as_posix(), "size": path.stat().st_size, "samples": count}
            for path, count in zip(scan.paths, scan.counts, strict=True)
        ],
        **_special_facts(scan, root),
    )


def _special_facts(scan: Scan, root: Path) -> dict[str, object]:
    """What the manifest says of some datasets and not of others."""
    facts = {key: scan.facts[key] for key in ("roles", "grouped_by") if key in scan.facts}
    if any(scan.residuals):
        facts["residual"] = residual_facts([p.relative_to(root).as_posix() for p in scan.paths], scan.residuals)
    return facts | twin_facts(root, scan.twins)


def _resolution(scan: Scan) -> dict[str, object]:
    """Meshes: how many, and the least and most nodes; particles: how many, or the least and most."""
    if scan.topologies:
        nodes = [sizes["node"] for sizes, _ in scan.topologies]
        return {"topologies": len(nodes), "nodes": [min(nodes), max(nodes)]}
    counts = sorted({sample.particles for sample in scan.samples})
    return {"particles": counts[0] if len(counts) == 1 else [counts[0], counts[-1]]}
