"""The leaderboard: who scored what under which protocol, with an interval that says how sure that is.

A task's rows stand in reports/leaderboard/<task>.csv, all tasks' in reports/leaderboard.csv and, as tables to read, in
reports/leaderboard.md. The tables tell the minutes of training too: a measurement, different on every run, which
therefore stands outside of what DVC tracks, in reports/<task>/minutes.json.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from ups_data import files
from ups_data.errors import UpsDataError
from ups_data.parameters import lacking, values_of

COLUMNS = (
    "task", "given", "every_point", "every_frame", "subset", "model", "nrmse", "low", "high", "trajectories",
    "parameters", "steps",
)  # fmt: skip
MODELS = {
    "operator": "latent operator",
    "baseline": "plain network",
    "persistence": "nothing changes",
    "mean": "mean of train",
    "roundtrip": "encode, decode (floor)",
}
TRAINED = {"operator": "operator", "baseline": "baseline", "roundtrip": "autoencoder"}  # row -> checkpoint
RESAMPLES = 2000  # the interval's ends then vary by a few per cent of its width from seed to seed
ALL = "all"
FOLDER = "leaderboard"  # a folder of its own: the stage that merges depends on it, whatever the datasets are
VALUES = 16  # distinct values of a parameter up to which it makes subsets


def interval(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float] | None:
    """95 % interval of the mean of `values` [S] by the percentile bootstrap; None for a single group.

    What is drawn again are the groups (initial conditions) with all their samples: samples of one group, the same
    state under several parameters, are no independent evidence.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return None
    sums, counts = np.bincount(member, values), np.bincount(member)
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    low, high = np.percentile(drawn @ sums / (drawn @ counts), [2.5, 97.5])
    return float(low), float(high)


def subsets(parameters: np.ndarray, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, bool [S]) of all samples, and of those under each value of a parameter that has few: parameters [S, P].

    A parameter with one value makes a subset where some samples, of another equation, do not have it.
    """
    yield ALL, np.ones(len(parameters), dtype=bool)
    for name, column in zip(names, parameters.T, strict=True):
        values = values_of(column)
        if len(values) + bool(lacking(column)) > 1 and len(values) <= VALUES:
            yield from ((f"{name}={value:g}", column == value) for value in values)


def rows(
    scores: Mapping[str, np.ndarray],
    groups: Sequence[str],
    parts: Iterable[tuple[str, np.ndarray]],
    sizes: Mapping[str, tuple[int, int]],
    protocol: Mapping[str, object],
) -> list[list]:
    """Rows of COLUMNS of one protocol.

    `scores`: relative errors [S, T, C] of every predictor; `parts`: see `subsets`; `sizes`: weights and training
    steps of the trained ones; `protocol`: task, given, every_point, every_frame.
    """
    table = []
    for subset, chosen in parts:
        own = [group for group, take in zip(groups, chosen, strict=True) if take]
        for model in MODELS:
            if model not in scores:
                continue
            values = scores[model][chosen].mean(axis=(1, 2))
            low, high = interval(values, own) or ("", "")
            size = sizes.get(model, ("", ""))
            table.append([*protocol.values(), subset, model, float(values.mean()), low, high, len(values), *size])
    return table


def merge(reports: str | Path) -> list[dict[str, str]]:
    """The rows of all tasks in `reports`, task after task; raises UpsDataError where there is none."""
    found = []
    for path in sorted(Path(reports, FOLDER).glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if tuple(table.fieldnames or ()) != COLUMNS:
                raise UpsDataError(f"{path}: got other columns than {', '.join(COLUMNS)}; run `dvc repro evaluate`")
            rows = list(table)
        for number, row in enumerate(rows, 2):
            if not _is_score(row):
                raise UpsDataError(f"{path}, line {number}: nrmse is {row['nrmse']!r}, expected a number; run evaluate")
        found += rows
    if not found:
        raise UpsDataError(f"no {reports}/{FOLDER}/*.csv; write them with `python -m stages.evaluate TASK`")
    return found


def _is_score(row: dict[str, str]) -> bool:
    try:
        return math.isfinite(float(row["nrmse"]))
    except (TypeError, ValueError):
        return False


def read_minutes(reports: str | Path, task: str) -> dict[str, dict]:
    """What is known of the training times of a task, by checkpoint: see training/minutes.py."""
    path = Path(reports) / task / "minutes.json"
    return files.read_json(path) if path.is_file() else {}


# --- as tables to read ---------------------------------------------------------------------------


def markdown(table: Sequence[Mapping[str, str]], minutes: Mapping[str, Mapping[str, dict]]) -> str:
    """The rows of `merge` as Markdown, a section a task; `minutes`: task -> `read_minutes`."""
    parts = [HEAD]
    for task, own in groupby(table, key=lambda row: row["task"]):
        own = list(own)
        parts += [f"## {task}\n", _ranking([row for row in own if row["subset"] == ALL], minutes.get(task, {}))]
        if any(row["subset"] != ALL for row in own):
            parts += [_by_subset([row for row in own if row["subset"] != ALL])]
    return "\n".join(parts)


HEAD = """# Leaderboard

nRMSE on the test split, PDEBench's definition: RMSE over space / RMS of the target over space, mean over trajectories,
steps and channels. In brackets the 95 % interval (bootstrap over initial conditions). *Given*: frames known before the
rollout. *Every*: which points and frames of the stored data the errors are taken at. Minutes are those of one training
on the device named, measured anew by every training; *over*: the training went on from a saved state.
"""


def _ranking(own: Sequence[Mapping[str, str]], minutes: Mapping[str, dict]) -> str:
    """All protocols of a task, within each the best first; the floor, which is no forecast, stands last."""
    lines = [_line(("given", "every", "model", "nRMSE [95 %]", "trajectories", "parameters", "steps", "minutes"))]
    lines.append("|---|---|---|---|--:|--:|--:|--:|")
    for _, rows in groupby(own, key=_protocol):
        for row in sorted(rows, key=lambda row: (row["model"] == "roundtrip", float(row["nrmse"]))):
            cost = minutes.get(TRAINED.get(row["model"], ""))
            spent = _minutes(cost) if cost else ""
            size = f"{int(row['parameters']):,}" if row["parameters"] else ""
            facts = (_score(row, interval=True), row["trajectories"], size, row["steps"], spent)
            lines.append(_line((row["given"], _every(row), MODELS[row["model"]], *facts)))
    return "\n".join(lines) + "\n"


def _minutes(cost: Mapping[str, object]) -> str:
    least = "over " if cost["resumed"] else ""
    return f"{least}{cost['seconds'] / 60:.1f} ({cost['device']})"


def _by_subset(own: Sequence[Mapping[str, str]]) -> str:
    """The same by parameter: a line a value and protocol, a column a model."""
    models = [model for model in MODELS if any(row["model"] == model for row in own)]
    lines = [_line(("given", "every", "of", *(MODELS[model] for model in models)))]
    lines.append("|---|---|---|" + "--:|" * len(models))
    for (_, subset), rows in groupby(own, key=lambda row: (_protocol(row), row["subset"])):
        found = {row["model"]: row for row in rows}
        first = next(iter(found.values()))
        scores = [_score(found[model]) if model in found else "" for model in models]
        lines.append(_line((first["given"], _every(first), subset.replace("=", " "), *scores)))
    return "\n".join(lines) + "\n"


def _protocol(row: Mapping[str, str]) -> tuple[str, ...]:
    return row["given"], row["every_point"], row["every_frame"]


def _every(row: Mapping[str, str]) -> str:
    ordinals = {"1": "", "2": "2nd ", "3": "3rd "}
    point, frame = (ordinals.get(row[name], f"{row[name]}th ") for name in ("every_point", "every_frame"))
    return f"{point}point, {frame}frame" if row["given"] != "0" else f"{point}point"


def _score(row: Mapping[str, str], interval: bool = False) -> str:
    mean = f"{float(row['nrmse']):.3g}"
    return f"{mean} [{float(row['low']):.3g}, {float(row['high']):.3g}]" if interval and row["low"] else mean


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
