"""Knobs as text: the tree of a YAML file, KEY=VALUE that overrides it, and the sentence for a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ups_data.errors import UpsDataError

# DVC reads params.yaml as YAML 1.2, PyYAML as YAML 1.1, where 1e-3 is a string, yes and off are booleans, 010 is octal
# and 1:30 is 90. A stage must see what DVC tracks, so these types go by the rules of 1.2 (and DVC's underscores).
_TYPES = {
    "tag:yaml.org,2002:bool": ("tTfF", r"true|True|TRUE|false|False|FALSE"),
    "tag:yaml.org,2002:int": (
        "+-0123456789",
        r"[-+]?(0b_*[01][01_]*|0o_*[0-7][0-7_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|[0-9][0-9_]*)",
    ),
    "tag:yaml.org,2002:float": (
        "+-.0123456789",
        r"[-+]?(([0-9][0-9_]*\.[0-9_]*|\._*[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(inf|Inf|INF))"
        r"|\.(nan|NaN|NAN)",
    ),
}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # in C ten times as fast
    """PyYAML's safe loader with the booleans and numbers of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TYPES]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    digits = loader.construct_scalar(node).replace("_", "")
    return int(digits, 10 if digits.lstrip("+-").isdigit() else 0)  # base 0 knows 0b, 0o and 0x, but refuses 010


for _tag, (_first, _pattern) in _TYPES.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def read_tree(path: str | Path, overrides: Sequence[str] = (), optional: Collection[str] = ()) -> dict:
    """The sections of a YAML file, with the `overrides` KEY=VALUE in their places (dotted keys, YAML values).

    Raises UpsDataError for a file that is missing or no YAML, and for a key that is not there, unless its last part
    is one of the `optional` ones.
    """
    try:
        tree = _parse(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UpsDataError(f"{path} is missing; run from the project's folder or name the file with --params") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise UpsDataError(f"{path}, line {mark.line + 1}, column {mark.column + 1}: {_problem(error)}") from None
    except (yaml.YAMLError, ValueError) as error:  # no UTF-8, a control character, 2024-13-13
        raise UpsDataError(f"{path} is not valid YAML: {_problem(error)}") from None
    if not isinstance(tree, dict):
        raise UpsDataError(f"{path}: expected the sections simulate and datasets, got {type(tree).__name__}")
    for override in overrides:
        _override(tree, override, optional)
    return tree


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _refuse_repeats(root, (), set())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _refuse_repeats(node: yaml.Node, path: tuple[str, ...], seen: set[yaml.Node]) -> None:
    """Refuse a key given twice in one section, as DVC does: PyYAML would take the last one silently."""
    if isinstance(node, yaml.ScalarNode) or node in seen:  # seen: under another alias
        return
    seen.add(node)
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _refuse_repeats(item, (*path, str(number)), seen)
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        inner = (*path, str(key.value))
        if first := lines.get((key.tag, inner[-1])):
            problem = f"the key {'.'.join(inner)} is given twice, first in line {first}; take one of them out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        if isinstance(key, yaml.ScalarNode):  # what else is no key: that is found when the mapping is made
            lines[key.tag, inner[-1]] = key.start_mark.line + 1
        _refuse_repeats(value, inner, seen)


def _problem(error: Exception) -> str:
    """What PyYAML says, without the places, which are lines of their own."""
    if isinstance(error, yaml.MarkedYAMLError):
        return ", ".join(filter(None, [error.context, error.problem]))
    return str(error).partition("\n")[0]


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
        node[last] = _parse(value)
    except (yaml.YAMLError, ValueError) as error:
        raise UpsDataError(f"--set {key}: {value!r} is not a YAML value: {_problem(error)}") from None


def suggest(name: str, known: Iterable[str]) -> str:
    """The known name that is like a wrong one, as part of a sentence; nothing where none is."""
    close = difflib.get_close_matches(name, map(str, known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def sentence(path: str | Path, problems: Sequence[Mapping[str, Any]], tree: dict, optional: Collection[str]) -> str:
    """The first of pydantic's problems, in the user's words: FILE: KEY: got .., expected ..

    An unknown key comes before all others: the missing one is most often the same knob, misspelt. What it may mean is
    a key of its section, given or missing, or one of the `optional` knobs.
    """
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    *parents, last = first["loc"] or [""]
    # A discriminated union puts its tag into the location; a path through the tree does not have it.
    location, node = [], tree
    for part in parents:
        if not isinstance(node, dict) or part in node:
            location.append(str(part))
            node = node[part] if isinstance(node, dict | list) and _has(node, part) else None
    key = ".".join([*location, str(last)]) or "the file"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if unknown:
        beside = [problem for problem in problems if problem["loc"][:-1] == first["loc"][:-1]]
        wrong = {problem["loc"][-1] for problem in beside if problem in unknown}
        known = {*node, *optional, *(problem["loc"][-1] for problem in beside)} - wrong
        return f"{path}: {key}: unknown key{suggest(str(last), known)}; take it out or correct its name{more}"
    if first["type"] == "missing":
        return f"{path}: {key}: missing; add it{more}"
    message = first["msg"].removeprefix("Value error, ")
    got = f"got {first['input']!r}: "
    if isinstance(first["input"], dict):  # the message itself says which of the section's values are wrong
        got = "got a section: " if first["type"].endswith("_type") else ""
    return f"{path}: {key}: {got}{message[:1].lower()}{message[1:]}{more}"


def _has(node: object, part: str | int) -> bool:
    return part in node if isinstance(node, dict) else isinstance(part, int) and part < len(node)
