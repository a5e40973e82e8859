"""Knobs as text: the tree of a YAML file, KEY=VALUE that overrides it, and the sentence for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ups_data.errors import UpsDataError


def read_tree(path: str | Path, overrides: Sequence[str] = (), optional: Collection[str] = ()) -> dict:
    """The sections of a YAML file, with the `overrides` KEY=VALUE in their places (dotted keys, YAML values).

    Raises UpsDataError for a file that is missing or no YAML, and for a key that is not there, unless its last part
    is one of the `optional` ones.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UpsDataError(f"{path} is missing; run from the project's folder or name the file with --params") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UpsDataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UpsDataError(f"{path}: expected the sections simulate and datasets, got {type(tree).__name__}")
    for override in overrides:
        _override(tree, override, optional)
    return tree


def _override(tree: dict, text: str, optional: Collection[str]) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UpsDataError(f"--set {text!r}: expected KEY=VALUE, e.g. datasets.burgers1d.train.steps=100")
    *path, last = key.split(".")
    node = tree
    for depth, part in enumerate(path):
        if not isinstance(node, dict) or part not in node:
            known = node if isinstance(node, dict) else {}
            raise UpsDataError(f"--set {'.'.join(path[: depth + 1])}: no such section{suggest(part, known)}")
        node = node[part]
    if not isinstance(node, dict) or (last not in node and last not in optional):
        known = node if isinstance(node, dict) else {}
        raise UpsDataError(f"--set {key}: no such knob{suggest(last, known)}")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UpsDataError(f"--set {key}: {value!r} is not a YAML value") from None


def suggest(name: str, known: Iterable[str]) -> str:
    """The known name that is like a wrong one, as part of a sentence; nothing where none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def sentence(path: str | Path, problems: Sequence[Mapping[str, Any]], tree: dict) -> str:
    """The first of pydantic's problems, in the user's words: FILE: KEY: got .., expected .."""
    first = problems[0]
    # A discriminated union puts its tag into the location; a path through the tree does not have it.
    location, node = [], tree
    for part in first["loc"]:
        if isinstance(node, dict) and part not in node and part != first["loc"][-1]:
            continue
        location.append(str(part))
        node = node[part] if isinstance(node, dict | list) and _has(node, part) else None
    key = ".".join(location) or "the file"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{path}: {key}: unknown key; take it out or correct its name{more}"
    if first["type"] == "missing":
        return f"{path}: {key}: missing; add it{more}"
    message = first["msg"].removeprefix("Value error, ")
    got = first["input"] if not isinstance(first["input"], dict) else "these values"
    return f"{path}: {key}: got {got!r}: {message[:1].lower()}{message[1:]}{more}"


def _has(node: object, part: str | int) -> bool:
    return part in node if isinstance(node, dict) else isinstance(part, int) and part < len(node)
