"""What this project mirrors: a published dataset, a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ups_data import files, registry
from ups_data.dvc_files import command
from ups_data.errors import UpsDataError
from ups_data.mirror.upload import Request
from ups_data.params import Params

CARDS = "docs/datasets"  # <task>.md, the dataset's card
MODELS = ("autoencoder", "operator", "baseline")


def dataset_request(name: str, entry: registry.Entry, params: Params, artifacts: Path, reports: Path) -> Request:
    """The archive of a published dataset with what the registry and the task's metrics say of it.

    Raises UpsDataError where the archive is not on this machine.
    """
    packed = entry.archive
    path = artifacts / packed.file
    if not path.is_file():
        raise UpsDataError(f"{path} is missing; get it with `dvc pull {path}` or make it with `dvc repro`")
    splits = {split: {"samples": s.samples, "size": s.size, "sha256": s.sha256} for split, s in entry.splits.items()}
    knobs = params.datasets.get(entry.task)
    return Request(
        name=name,
        type="dataset",
        files={packed.file: path},
        md5={packed.file: packed.md5},
        description=_card(entry),
        metadata={
            **entry.model_dump(
                mode="json", include={"kind", "task", "version", "resolution", "parameters", "channels"}
            ),
            **entry.model_dump(mode="json", include={"normalisation", "protocol", "seed", "source"}),
            "samples": sum(split.samples for split in entry.splits.values()),
            "splits": splits,
            "size": packed.size,
            "unpacked_size": sum(item.size for item in entry.items()),
            "codec": packed.codec,
            "sha256": packed.sha256,
            "dvc_md5": packed.md5,
            "git_revision": _revision(),
        },
        aliases=("latest", f"dataset-v{entry.version}", *_tagged_versions(name)),
        config=knobs.model_dump(mode="json") if knobs else {},
        summary=_metrics(reports / entry.task),
        link=f"wandb-registry-{params.sync.registry}/{name}" if params.sync.registry else None,
    )


def model_requests(task: str, params: Params, models: Path, reports: Path) -> dict[str, Request]:
    """The trained models of a task that are on this machine, by name."""
    found = {name: models / task / f"{name}.safetensors" for name in MODELS}
    return {
        name: model_request(task, name, path, params, _metrics(reports / task))
        for name, path in found.items()
        if path.is_file()
    }


def model_request(task: str, name: str, path: Path, params: Params, metrics: dict[str, Any]) -> Request:
    """One trained model: its weights, its knobs, what it scored."""
    knobs = params.datasets[task]
    return Request(
        name=f"{task}_{name}",
        type="model",
        files={path.name: path},
        description=f"{name} of {task}",
        metadata={"task": task, "kind": knobs.kind, "size": path.stat().st_size, "git_revision": _revision()},
        aliases=("latest",),
        config=knobs.model_dump(mode="json"),
        summary=metrics,
    )


def _card(entry: registry.Entry) -> str:
    """The dataset's card, or the one line of the registry where there is none."""
    card = Path(CARDS) / f"{entry.task}.md"
    return card.read_text(encoding="utf-8") if card.is_file() else entry.description


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    return files.read_json(path) if path.is_file() else {}


def _revision() -> str | None:
    """The commit of the working tree, `-dirty` where tracked files differ from it; None outside git."""
    described = command(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"], Path())
    return described.stdout.strip() or None


def _tagged_versions(name: str) -> list[str]:
    """The versions that git tags on this commit give the dataset: burgers1d-subset@v1.0.0 -> v1.0.0."""
    stems = registry.tag_stems(name)
    tags = command(["git", "tag", "--points-at", "HEAD"], Path()).stdout.split()
    return sorted({version for stem, _, version in (tag.rpartition("@") for tag in tags) if stem in stems})
