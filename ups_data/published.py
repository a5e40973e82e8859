"""A published dataset by its name: fetched when it is not here, then as torch datasets or as xarray."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ups_data import files, registry
from ups_data.errors import UpsDataError
from ups_data.hydrate import Places, Source, find_version, hydrate
from ups_data.manifest import check_split, read_manifest

if TYPE_CHECKING:
    import xarray
    from torch.utils.data import Dataset


@dataclass(frozen=True)
class Published:
    """One split of a published dataset on this machine: where it is, what it is, and two ways to read it."""

    name: str
    split: str
    kind: str  # grid, mesh or particles
    path: Path
    manifest: dict = field(repr=False)

    def torch(self, window: int | None = None, **options: object) -> Dataset:
        """A torch dataset of trajectories, or of every window of `window` frames.

        `options` are those of GridDataset (space_stride, time_stride) or ParticleZarrDataset (graph), whose docstrings
        say what an item is.
        """
        from ups_data import datasets

        classes = {"grid": "GridDataset", "mesh": "MeshZarrDataset", "particles": "ParticleZarrDataset"}
        return getattr(datasets, classes[self.kind])(self.path, window=window, **options)

    def xarray(self) -> xarray.Dataset | xarray.DataTree:
        """Named dimensions and coordinates; numbers are read when they are asked for (`ups_data.labelled`).

        A grid is a Dataset over sample, time, x.., channel; particles one over sample, time, particle, axis; meshes,
        which differ in their nodes, a DataTree with a Dataset each over sample, time, node, channel.
        """
        from ups_data.labelled import label

        return label(self.path, self.kind)


def open_dataset(
    name: str,
    split: str = "train",
    *,
    version: str | None = None,
    root: str | Path | None = None,
    repository: str | Path | None = None,
    source: Source = "dvc",
    remote: str | None = None,
) -> Published:
    """Open a split of a published dataset, hydrating it first where it is not here.

    `version` is that of a git tag (v1.0.0), the workspace's registry without it; `root` where the data are or go
    (data/pdebench of the repository); `repository` the clone (the folder above this one that has a registry, or that of
    this library); `source` (dvc, wandb) and `remote` whom to ask. Raises UpsDataError for an unknown name, split or
    version, for an archive that cannot be had, and where `root` holds another conversion of the same task: opening
    replaces nothing.
    """
    clone = Path(repository) if repository else _repository()
    entry, _ = find_version(name, version, clone)
    if split not in entry.splits:
        raise UpsDataError(f"{name} has no split {split!r}; it has {', '.join(entry.splits)}")
    folder = Path(root) if root else clone / "data/pdebench"
    path = folder / entry.splits[split].path
    if not _is_here(folder, name, entry, split):
        places = Places(folder, clone / "artifacts/cache", clone / "artifacts", clone)
        hydrate(name, (split,), places, version, remote, source)
    manifest = read_manifest(folder, entry.task)
    check_split(manifest, path, split)
    return Published(name, split, entry.kind, path, manifest)


def _repository() -> Path:
    """The clone that the working directory is in, or else the one this library is in."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).parents[1]):
        if (folder / registry.REGISTRY).is_file():
            return folder
    raise UpsDataError(
        f"no folder above {Path.cwd()} has {registry.REGISTRY}; go into a clone of the project or name it: "
        "open_dataset(.., repository='..')"
    )


def _is_here(folder: Path, name: str, entry: registry.Entry, split: str) -> bool:
    """Whether the published split stands in the folder: its manifest byte by byte, the split by its size.

    Its bytes were compared with their checksum when it was hydrated; `python -m stages.hydrate` compares them again.
    """
    manifest = folder / entry.manifest.path
    if manifest.is_file() and files.checksum(manifest) != entry.manifest.sha256:
        raise UpsDataError(
            f"{manifest} is not the published one: {folder} holds another conversion of {entry.task}; give another "
            f"root, or replace it with `python -m stages.hydrate {name} --root {folder}`"
        )
    return manifest.is_file() and _size(folder / entry.splits[split].path) == entry.splits[split].size


def _size(path: Path) -> int | None:
    if path.is_dir():
        return sum(inside.stat().st_size for inside in path.rglob("*") if inside.is_file())
    return path.stat().st_size if path.is_file() else None
