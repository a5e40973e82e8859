"""The Markdown that belongs in a pull request: knobs, data, metrics and plots against a base revision."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ups_data import files, registry
from ups_data.dvc_files import command
from ups_data.dvc_repository import dvc_repository
from ups_data.errors import UpsDataError

NONE = "–"


def report(base: str, repository: Path = Path(), link: str = "") -> str:
    """The report of the workspace against the commit where it left `base`; equal inputs give equal text.

    `link` is put before the paths of pictures: the address of this commit's files on a forge, without it they
    are relative to the repository. Needs git history and no data. Raises UpsDataError for an unknown revision.
    """
    commit = _fork_point(base, repository)
    with dvc_repository(repository) as repo:
        knobs = repo.params.diff(a_rev=commit).get("diff", {})
        metrics = repo.metrics.diff(a_rev=commit, all=True).get("diff", {})
        outs = [out for out in repo.index.outs if out.plot]
        plots = sorted((Path(out.fs_path).relative_to(repo.root_dir).as_posix(), out.plot) for out in outs)
    changed, same = _metrics(metrics)
    parts = [
        f"# What changes against `{base}` ({commit[:7]})",
        "## Parameters",
        _parameters(knobs),
        "## Data",
        *_data(_registry_at(commit, repository), _registry_now(repository)),
        "## Metrics",
        _table(["file", "metric", "before", "now", "change"], changed) if changed else "No metric changes.",
        _folded("Metrics that do not change", _table(["file", "metric", "value"], same)) if same else "",
        "## Plots",
        *_plots(plots, commit, repository, link),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _fork_point(base: str, repository: Path) -> str:
    """The commit the workspace's branch left `base` at, so that later changes of `base` are not shown as undone."""
    found = command(["git", "rev-parse", "-q", "--verify", f"{base}^{{commit}}"], repository)
    if found.returncode:
        raise UpsDataError(
            f"git knows no revision {base!r} here; `git fetch origin {base}` may get it, or give BASE=.."
        )
    left = command(["git", "merge-base", base, "HEAD"], repository)
    return (left if left.returncode == 0 else found).stdout.strip()


def _at(commit: str, path: str, repository: Path) -> bytes | None:
    """A file's bytes in a commit; none if it is not there."""
    shown = subprocess.run(["git", "show", f"{commit}:{path}"], cwd=repository, capture_output=True, check=False)
    return shown.stdout if shown.returncode == 0 else None


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>" if text else ""


# --- knobs and metrics ---------------------------------------------------------------------------

Differences = Mapping[str, Mapping[str, Mapping[str, object]]]  # file -> key -> old, new, diff: as DVC gives them


def _parameters(differences: Differences) -> str:
    rows = [
        [f"`{path}`", f"`{key}`", _value(change["old"]), _value(change["new"])]
        for path, keys in sorted(differences.items())
        for key, change in sorted(keys.items())
    ]
    return _table(["file", "knob", "before", "now"], rows) if rows else "No knob changes."


def _metrics(differences: Differences) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the metrics that change, with the change in percent, and of those that do not."""
    changed, same = [], []
    for path, keys in sorted(differences.items()):
        for key, change in sorted(keys.items()):
            old, new = change["old"], change["new"]
            if old == new:
                same.append([f"`{path}`", key, _value(new)])
            else:
                relative = f"{change['diff'] / abs(old):+.1%}" if "diff" in change and old else NONE
                changed.append([f"`{path}`", key, _value(old), _value(new), relative])
    return changed, same


def _value(value: object) -> str:
    """A number with six digits, anything else as it is; a dash where there is none."""
    if value is None:
        return NONE
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")


# --- data ----------------------------------------------------------------------------------------

Entries = Mapping[str, registry.Entry]


def _registry_now(repository: Path) -> Entries:
    path = repository / registry.REGISTRY
    return registry.read_registry(path) if path.exists() else {}


def _registry_at(commit: str, repository: Path) -> Entries:
    text = _at(commit, registry.REGISTRY, repository)
    return registry.parse_registry(text.decode(), f"{commit[:7]}:{registry.REGISTRY}") if text else {}


def _data(before: Entries, now: Entries) -> Iterator[str]:
    """Tables: what each dataset holds, and the statistics of its train split, those that do not change folded."""
    if not before and not now:
        yield f"No dataset is published: {registry.REGISTRY} is not there."
        return
    names = sorted({*before, *now})
    header = ["dataset", "kind", "resolution", "train", "val", "test", "archive", "change"]
    yield _table(header, [_dataset_row(name, before.get(name), now.get(name)) for name in names])
    rows = [row for name in names if name in now for row in _statistics_rows(name, before.get(name), now[name])]
    header = ["dataset", "channel", "mean before", "mean now", "std before", "std now"]
    same = [row for row in rows if row[2::2] == row[3::2]]
    if changed := [row for row in rows if row not in same]:
        yield "Statistics of the train split:"
        yield _table(header, changed)
    yield _folded("Statistics that do not change", _table(header, same)) if same else ""


def _dataset_row(name: str, before: registry.Entry | None, now: registry.Entry | None) -> list[str]:
    shown = now or before
    splits = [_split(shown, split) for split in ("train", "val", "test")]
    row = [f"`{name}`", shown.kind, _resolution(shown.resolution), *splits, files.amount(shown.archive.size)]
    return [*row, _change(before, now)]


def _split(entry: registry.Entry, split: str) -> str:
    item = entry.splits.get(split)
    return f"{item.samples} samples, {files.amount(item.size)}" if item else NONE


def _change(before: registry.Entry | None, now: registry.Entry | None) -> str:
    if before is None or now is None:
        return "new" if before is None else "removed"
    was = [
        f"{split} {old}"
        for split in ("train", "val", "test")
        if (old := _split(before, split)) != _split(now, split) and old != NONE
    ]
    if before.parameters != now.parameters:
        was.append("; ".join(f"{key} {_numbers(values)}" for key, values in sorted(before.parameters.items())))
    if was:
        return f"was {', '.join(was)}"
    if before.archive.sha256 == now.archive.sha256:
        return "none"
    same = [before.splits[split].sha256 for split in before.splits] == [
        now.splits[split].sha256 for split in now.splits
    ]
    return "packed differently, same data" if same else "other values"


def _statistics_rows(name: str, before: registry.Entry | None, now: registry.Entry) -> Iterator[list[str]]:
    for channel, moments in sorted(now.normalisation.items()):
        old = before.normalisation.get(channel) if before else None
        mean, std = (f"{old.mean:.6g}", f"{old.std:.6g}") if old else (NONE, NONE)
        yield [f"`{name}`", channel, mean, f"{moments.mean:.6g}", std, f"{moments.std:.6g}"]


def _resolution(value: object) -> str:
    """Points a side of a grid, or counts of a mesh or of particles: [64, 64] -> 64 x 64."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_numbers(v) if isinstance(v, list) else v}" for key, v in sorted(value.items()))
    return " x ".join(str(side) for side in value) if isinstance(value, list) else str(value)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


# --- plots ---------------------------------------------------------------------------------------


def _plots(declared: Sequence[tuple[str, Mapping | bool]], commit: str, repository: Path, link: str) -> Iterator[str]:
    """A table of the curves' ends, and the pictures that are new or differ; `declared`: path, properties."""
    rows, pictures, unchanged = [], [], 0
    for path, properties in declared:
        now, before = _on_disk(repository / path), _at(commit, path, repository)
        if now is None:
            continue
        if now == before:
            unchanged += 1
        elif path.endswith(".csv"):
            rows += [_curve_row(path, y, now, before) for y in _columns(properties)]
        else:
            state = "differs" if before else "new"
            target = f"{link.rstrip('/')}/{path}" if link else path
            pictures.append(f"`{path}` ({state})\n\n![{path}]({target})")
    if rows:
        yield _table(["curve", "y", "last before", "last now", "lowest before", "lowest now"], rows)
        yield f"The curves side by side: `dvc plots diff {commit[:7]} --open`."
    yield from pictures
    if unchanged or not (rows or pictures):
        yield f"{unchanged} plots do not change."


def _on_disk(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _columns(properties: Mapping | bool) -> list[str]:
    y = properties.get("y", []) if isinstance(properties, Mapping) else []
    return [y] if isinstance(y, str) else [column for column in y if isinstance(column, str)]


def _curve_row(path: str, y: str, now: bytes, before: bytes | None) -> list[str]:
    last, lowest = _ends(now, y)
    last_before, lowest_before = _ends(before, y) if before else (NONE, NONE)
    return [f"`{path}`", y, last_before, last, lowest_before, lowest]


def _ends(table: bytes, column: str) -> tuple[str, str]:
    """Last and lowest value of a column; blank cells are left out."""
    cells = [row.get(column) for row in csv.DictReader(io.StringIO(table.decode("utf-8")))]
    values = [float(cell) for cell in cells if cell]
    return (f"{values[-1]:.4g}", f"{min(values):.4g}") if values else (NONE, NONE)
