"""Converted splits to one published archive and its registry entry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ups_data import archive, console, files, registry
from ups_data.audit import check_numbers
from ups_data.execution import signals_noted
from ups_data.manifest import check_split, manifest_path, read_manifest, store_path
from ups_data.params import SPLITS, Package


def package_dataset(
    task: str, knobs: Package, data: Path, out: Path, entries: Path, workers: int | None = None
) -> tuple[Path, registry.Entry]:
    """Pack the splits and the manifest of `task` from `data` into out/<name>.upk (.tar.gz), write its entry.

    The same inputs give the same bytes. Raises UpsDataError where a split is missing, damaged, or of another
    conversion than the manifest says. Returns the archive and the entry.
    """
    manifest = read_manifest(data, task)
    stores = {s: store_path(data, task, s, manifest["kind"]).name for s in SPLITS if s in manifest["splits"]}
    for split, store in stores.items():
        check_split(manifest, data / store, split)
        check_numbers(data / store, manifest, split)
    names = [*stores.values(), manifest_path(data, task).name]
    sources = archive.collect(data, names)
    target = out / f"{knobs.name}.{knobs.suffix}"
    entry: registry.Entry | None = None
    with ExitStack() as held, files.atomic(registry.entry_path(entries, knobs.name)) as described:

        def describe(members: Sequence[archive.Member], packed: Path) -> None:
            nonlocal entry
            entry = _entry(task, knobs, manifest, stores, members, packed, target)
            registry.write_entry(described, knobs.name, entry)
            held.enter_context(signals_noted())  # from here on both appear or none

        with console.progress(f"package {knobs.name}", sum(p.stat().st_size for p in sources.values()), "B") as bar:
            archive.pack(sources, target, knobs.codec, workers, bar.advance, describe)
    return target, entry


def item(path: str, members: Sequence[archive.Member]) -> registry.Item:
    """The size and checksum of a file or folder among the members of an archive."""
    own = [m for m in members if m.path == path or m.path.startswith(path + "/")]
    if [m.path for m in own] == [path]:
        sha256 = own[0].sha256
    else:
        sha256 = registry.tree_digest({m.path.removeprefix(path + "/"): m.sha256 for m in own})
    return registry.Item(path=path, files=len(own), size=sum(m.size for m in own), sha256=sha256)


def _entry(
    task: str,
    knobs: Package,
    manifest: Mapping,
    stores: Mapping[str, str],
    members: Sequence[archive.Member],
    packed: Path,
    target: Path,
) -> registry.Entry:
    made = registry.Archive(
        file=target.name,
        codec=knobs.codec,
        size=packed.stat().st_size,
        sha256=files.checksum(packed),
        md5=files.checksum(packed, "md5"),
    )
    splits = {
        split: registry.SplitItem(samples=manifest["splits"][split]["samples"], **item(store, members).model_dump())
        for split, store in stores.items()
    }
    statistics = manifest["statistics"]["channels"]
    source = manifest["source"]["files"]
    return registry.Entry(
        kind=manifest["kind"],
        task=task,
        version=int(re.search(r"_v([0-9]+)$", knobs.name)[1]),
        description=knobs.description,
        archive=made,
        splits=splits,
        manifest=item(manifest_path("", task).name, members),
        resolution=manifest["resolution"],
        parameters={name: [float(v) for v in p["values"]] for name, p in manifest["parameters"].items()},
        channels=list(manifest["channels"]),
        normalisation={
            name: registry.Normalisation(mean=float(s["mean"]), std=float(s["std"])) for name, s in statistics.items()
        },
        protocol=manifest["protocol"],
        seed=manifest["seed"],
        source={"files": len(source), "size": sum(f["size"] for f in source)},
        wandb=None,
    )
