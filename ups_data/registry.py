"""The published datasets: docs/registry/<name>.yaml, one entry a file, merged into docs/dataset_registry.yaml.

An entry says what an archive holds and how to know it again: sizes, checksums, splits, normalisation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ups_data import files
from ups_data.errors import UpsDataError

REGISTRY = "docs/dataset_registry.yaml"
ENTRIES = "docs/registry"
MIRROR = "docs/mirror"
HEADING = "# The published datasets. Written by `python -m stages.registry` from docs/registry/: edit nothing here.\n"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Size = Annotated[int, Field(ge=0)]
# A file or folder beside its siblings: no separator, nothing hidden, so that it cannot lead out of a folder.
Plain = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


class Part(BaseModel):
    """A section of an entry: unknown keys and silent type conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Archive(Part):
    """The packed file under artifacts/."""

    file: Plain
    codec: Literal["pcodec", "gzip"]
    size: Size
    sha256: Sha256
    md5: Md5


class Item(Part):
    """A file or folder in the archive; `sha256` of a folder is that of its listing (`tree_digest`)."""

    path: Plain
    files: Size
    size: Size
    sha256: Sha256


class SplitItem(Item):
    """A split: its file or folder, and how many samples it holds."""

    samples: Size


class Normalisation(Part):
    """Moments of one channel over the train split."""

    mean: float
    std: float


class Copy(Part):
    """An artifact on Weights & Biases: its name with version, W&B's digest of it, the MD5 of its one file."""

    artifact: Annotated[str, Field(pattern=r"^[^/:\s]+/[^/:\s]+/[^/:\s]+:v[0-9]+$")]
    digest: str
    md5: Md5


class Mirror(Part):
    """Where a dataset and the models trained on it are mirrored; null: nowhere."""

    dataset: Copy | None
    models: dict[str, Copy]


class Entry(Part):
    """One published dataset."""

    kind: Literal["grid", "mesh", "particles"]
    task: str
    version: Annotated[int, Field(ge=0)]
    description: str
    archive: Archive
    splits: dict[Literal["train", "val", "test"], SplitItem]
    manifest: Item
    resolution: Any  # points a side of a grid; counts of meshes and particles
    parameters: dict[str, list[float]]
    channels: list[str]
    normalisation: dict[str, Normalisation]
    protocol: str | None
    seed: int | None
    source: dict[str, int]
    wandb: Mirror | None

    def items(self, splits: tuple[str, ...] = ()) -> list[Item]:
        """What to restore for these splits (all when none is named): the splits and the manifest."""
        return [item for name, item in self.splits.items() if not splits or name in splits] + [self.manifest]


_ENTRIES = TypeAdapter(dict[str, Entry])


def tree_digest(sha256: Mapping[str, str]) -> str:
    """SHA-256 of a folder: of its sorted lines `<sha256>  <path in the folder>`, as sha256sum prints them."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(sha256.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def parse_registry(text: str, where: str) -> dict[str, Entry]:
    """Check the text of a registry; an error names the entry and the key."""
    try:
        tree = yaml.safe_load(text) or {}
        return _ENTRIES.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]") or "the file"
        got = "" if first["type"] == "missing" else f"got {first['input']!r}: "
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise UpsDataError(f"{where}: {key}: {got}{message}; package that dataset again") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-13, thousands of digits
        raise UpsDataError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def read_registry(path: str | Path = REGISTRY) -> dict[str, Entry]:
    """Name -> entry."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UpsDataError(
            f"{path} is missing; run this in the project's folder, or make it with `dvc repro`"
        ) from None
    except UnicodeDecodeError as error:
        raise UpsDataError(f"{path} is no UTF-8 text ({error}); package that dataset again") from None
    return parse_registry(text, str(path))


def find(entries: Mapping[str, Entry], name: str, where: str = REGISTRY) -> Entry:
    """The entry of that name; an unknown one is a sentence with the known ones."""
    if name not in entries:
        raise UpsDataError(f"{where} has no dataset {name!r}; it has {', '.join(sorted(entries)) or 'none'}")
    return entries[name]


def entry_path(folder: str | Path, name: str) -> Path:
    """Where one dataset's entry stands."""
    return Path(folder) / f"{name}.yaml"


def write_entry(path: str | Path, name: str, entry: Entry) -> None:
    """Write one dataset's entry, with a fixed key order."""
    Path(path).write_text(_to_yaml({name: entry}), encoding="utf-8")


def read_mirror(folder: str | Path, name: str) -> Mirror | None:
    """Where a dataset is mirrored, as <folder>/<name>.yaml records it."""
    path = Path(folder) / f"{name}.yaml"
    try:
        return Mirror.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UpsDataError(f"{path} is not a record of the mirror ({reason}); delete it and run `make sync`") from None


def holds(mirror: Mirror | None, entry: Entry) -> bool:
    """Whether the mirror has the very archive of the entry."""
    return bool(mirror and mirror.dataset and mirror.dataset.md5 == entry.archive.md5)


def tag_stems(name: str) -> tuple[str, str]:
    """How git tags call a dataset: burgers1d_subset_v1 is burgers1d-subset-v1 or burgers1d-subset."""
    dashed = name.replace("_", "-")
    return dashed, re.sub(r"-v[0-9]+$", "", dashed)


def write_mirror(folder: str | Path, name: str, mirror: Mirror) -> None:
    """Write <folder>/<name>.yaml, atomically and with a fixed key order."""
    text = yaml.safe_dump(mirror.model_dump(mode="json"), sort_keys=True, default_flow_style=False)
    files.write_text(Path(folder) / f"{name}.yaml", text)


def merge(
    folder: str | Path = ENTRIES, registry: str | Path = REGISTRY, mirror: str | Path = MIRROR
) -> dict[str, Entry]:
    """Write the registry anew from the entries in `folder`; equal entries give equal bytes.

    A copy on W&B is taken over from `mirror` where it holds the very archive of the entry.
    """
    entries: dict[str, Entry] = {}
    for path in sorted(Path(folder).glob("*.yaml")):
        one = read_registry(path)
        if list(one) != [path.stem]:
            raise UpsDataError(f"{path}: expected the one entry {path.stem!r}, got {list(one)}; package it again")
        entry, copies = one[path.stem], read_mirror(mirror, path.stem)
        if holds(copies, entry):
            entry = entry.model_copy(update={"wandb": copies})
        entries[path.stem] = entry
    if not entries:
        raise UpsDataError(f"{folder} holds no entries; run `python -m stages.package TASK` first")
    files.write_text(registry, HEADING + _to_yaml(entries))
    return entries


def _to_yaml(entries: Mapping[str, Entry]) -> str:
    tree = {name: entry.model_dump(mode="json") for name, entry in sorted(entries.items())}
    return yaml.safe_dump(tree, sort_keys=True, allow_unicode=True, width=120, default_flow_style=None)
