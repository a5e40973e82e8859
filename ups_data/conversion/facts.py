"""What a manifest says of some grid datasets and not of others: roles, copies left out, losses, residuals."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ups_data import console
from ups_data.conversion.plan import Plan

RESIDUAL = "RMS of div(permeability grad solution) + source over the inner points, relative to the source"


def special_facts(plan: Plan, loss: float) -> dict[str, object]:
    """The facts of this plan, by key; what a person should know of them is said.

    `loss` is the greatest relative loss of a float64 number that became float32.
    """
    facts: dict[str, object] = {}
    if plan.first.roles:
        facts |= {"roles": dict(plan.first.roles), "grouped_by": plan.first.grouped_by}
    if plan.first.axis_names:
        facts["axis_names"] = list(plan.first.axis_names)
    facts |= twin_facts(plan.root, plan.twins)
    facts |= float64_facts(plan.task, plan.root, plan.rounded, len(plan.paths), loss)
    values: list[list[float]] = [[] for _ in plan.paths]
    for sample in plan.samples:
        values[sample.file] += [] if sample.residual is None else [sample.residual]
    if any(values):
        facts["residual"] = residual_facts([_name(plan.root, p) for p in plan.paths], values)
    return facts


def twin_facts(root: Path, twins: list[tuple[Path, Path]]) -> dict[str, object]:
    """The files left out because they are copies, and of which."""
    found = [{"name": _name(root, left_out), "same_as": _name(root, kept)} for left_out, kept in twins]
    return {"twins": found} if found else {}


def float64_facts(task: str, root: Path, rounded: list[Path], files: int, loss: float) -> dict[str, object]:
    """Which of so many files were rounded, and the greatest relative loss of a number; said."""
    if not rounded:
        return {}
    console.say(
        f"{task}: {len(rounded)} of {files} files are float64, rounded to float32 with a greatest relative loss of "
        f"{loss:.1e}"
    )
    return {"float64": {"files": [_name(root, path) for path in rounded], "greatest_relative_loss": loss}}


def residual_facts(names: list[str], values: list[list[float]]) -> dict[str, object]:
    """How far the solutions of each file are from solving their equation, where it can be told; said, file by file."""
    files = []
    for name, found in ((name, found) for name, found in zip(names, values, strict=True) if found):
        files.append({"name": name, "median": float(np.median(found)), "maximum": max(found)})
        console.say(
            f"{name}: relative residual of the published solutions: median {files[-1]['median']:.2g}, "
            f"greatest {files[-1]['maximum']:.2g}"
        )
    return {"definition": RESIDUAL, "files": files}


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
