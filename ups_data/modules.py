"""Which modules a stage uses, read off its import statements: what its results can depend on.

dvc.yaml makes every stage depend on its list, `reports/code/<stage>.txt`, so that a change to the code re-runs
exactly the stages that use it.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from ups_data import files
from ups_data.errors import UpsDataError

LISTS = "reports/code"
PACKAGES = ("stages", "ups_data")
# What every stage uses: how a stage fails, what it prints, how it writes files, where it runs, what it tells W&B, and
# the schema of the knobs (their values are dependencies of their own). A change here re-runs nothing. It hardly shapes
# an output, but `execution` says how a GPU rounds and adds: who changes that has to train again with `dvc repro -f`.
INFRASTRUCTURE = frozenset(
    {
        "stages/common.py",
        "ups_data/__init__.py",
        "ups_data/console.py",
        "ups_data/errors.py",
        "ups_data/execution.py",
        "ups_data/files.py",
        "ups_data/params.py",
        "ups_data/training/minutes.py",
        "ups_data/training/ranks.py",
        "ups_data/training/tracking.py",
    }
)


def imports(path: str, root: Path = Path()) -> set[str]:
    """The project's own files that a module imports, wherever in it; data files beside a module come with it."""
    try:
        tree = ast.parse((root / path).read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UpsDataError(f"{path} is no Python that can be read: {error}") from None
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.partition(".")[0] in PACKAGES:
                found |= _files_of(Path(*name.split(".")), root)
    return found


def _files_of(name: Path, root: Path) -> set[str]:
    """The file of a module, or what a package runs when it is imported and the data files in it."""
    if (root / name).is_dir():
        inside = (p for p in (root / name).iterdir() if p.is_file())
        return {p.relative_to(root).as_posix() for p in inside if p.suffix != ".py" or p.name == "__init__.py"}
    module = name.with_suffix(".py")
    return {module.as_posix()} if (root / module).is_file() else set()


def used_by(path: str, graph: dict[str, set[str]]) -> set[str]:
    """A file of `graph` and all it uses, directly or not, without INFRASTRUCTURE."""
    seen: set[str] = set()
    todo = {path}
    while todo:
        seen |= todo
        todo = {other for one in todo for other in graph.get(one, ())} - seen - INFRASTRUCTURE
    return seen


def module_graph(root: Path = Path()) -> dict[str, set[str]]:
    """What every module of the project imports."""
    paths = [p.relative_to(root).as_posix() for package in PACKAGES for p in (root / package).rglob("*.py")]
    return {path: imports(path, root) for path in sorted(paths)}


def write_lists(stages: list[str], root: Path = Path()) -> Path:
    """Write the list of every stage, the SHA-256 and path of each file it uses, a line each; returns their folder."""
    graph = module_graph(root)
    folder = root / LISTS
    for stage in stages:
        lines = []
        for path in sorted(used_by(f"stages/{stage}.py", graph)):
            lines.append(f"{hashlib.sha256((root / path).read_bytes()).hexdigest()}  {path}\n")
        files.write_text(folder / f"{stage}.txt", "".join(lines))
    return folder
