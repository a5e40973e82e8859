"""MkDocs hook: the pages that follow from the code, every knob and every command, and the list of dataset cards.

They are made when the site is built and stand in no file, so they cannot be out of date.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # MkDocs runs this file from wherever it is called

from stages.__main__ import docstrings, grouped, purpose  # noqa: E402
from ups_data.params import Params, load_params  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

SHARED = ("help", "params", "set", "level")  # flags that every command has: said once
KNOBS = """\
# Knobs

Everything that shapes an output stands in `params.yaml`; nothing has a hidden default. A section is named as the stage
that reads it. A wrong key or value is one sentence. Any knob can be overridden for one run with `--set`; `dvc repro`
runs again what depends on a changed one.

```
python -m stages.train burgers1d --set datasets.burgers1d.train.steps=2000
dvc params diff
```

The column *here* is the value in this repository's `params.yaml`, of the first entry that has the knob.

## simulate

The sample raw data: `simulate.<task>`, a section a task, by its `solver`.
"""
COMMANDS = """\
# Commands

`python -m stages` prints this list. Every command has `--help`, `-q` (say only what failed), `-v` (say more),
`--params FILE` (other knobs than `params.yaml`) and `--set KEY=VALUE` (one knob for this run, repeatable). A command
ends with what it made, how long it took and what comes next; after a mistake with one sentence and status 1.

On a terminal, long work shows a bar with its rate and the time left; elsewhere a line every ten seconds.
"""
TARGET = re.compile(r"^([a-z-]+):.*?## (.*)$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the dataset cards into the navigation, and pages that it does not name at the end of its last section."""
    docs = Path(config.docs_dir)
    sections = {title: pages for section in config.nav for title, pages in section.items()}
    sections["Datasets"] += [f"datasets/{card.name}" for card in sorted((docs / "datasets").glob("*.md"))]
    named = {page for pages in sections.values() for page in pages}
    config.nav[-1][list(sections)[-1]] += [page.name for page in sorted(docs.glob("*.md")) if page.name not in named]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, text in (("knobs.md", knobs_page()), ("commands.md", commands_page())):
        files.append(File.generated(config, name, content=text))
    return files


# --- knobs ---------------------------------------------------------------------------------------


def knobs_page() -> str:
    """Every knob of params.yaml with what it wants, an example from params.yaml, and what it does."""
    schema = Params.model_json_schema()
    params = load_params(ROOT / "params.yaml").model_dump()
    lines = [KNOBS]
    solvers = schema["properties"]["simulate"]["additionalProperties"]["discriminator"]["mapping"]
    for reference in dict.fromkeys(solvers.values()):
        names = [solver for solver in solvers if solvers[solver] == reference]
        here = next((value for value in params["simulate"].values() if value["solver"] in names), {})
        lines += _section(f"simulate, solver {' or '.join(names)}", _definition(schema, reference), schema, here)
    here = next(iter(params["datasets"].values()))
    dataset = _definition(schema, "Dataset")
    lines += _section(
        "datasets", dataset, schema, here, "One entry a dataset, `datasets.<task>`, with a section a stage."
    )
    for name, knob in dataset["properties"].items():
        if "$ref" in knob:
            values = [entry[name] for entry in params["datasets"].values()]
            lines += _section(f"datasets, {name}", _definition(schema, knob["$ref"]), schema, values[0])
    tracers = {"particles": 256, "radius": 0.08, "seed": 0}
    lines += _section("datasets, convert.tracers", _definition(schema, "Tracers"), schema, tracers)
    lines += _section("sync", _definition(schema, "Sync"), schema, params["sync"])
    return "\n".join(lines)


def _definition(schema: dict, reference: str) -> dict:
    return schema["$defs"][reference.rpartition("/")[2]]


def _section(title: str, definition: dict, schema: dict, here: dict, intro: str = "") -> Iterator[str]:
    """A heading, the section's docstring, and a table of its plain knobs."""
    yield f"\n## {title}\n" if not title.startswith("simulate, ") else f"\n### {title}\n"
    yield (intro or definition.get("description", "").replace("\n", " ")) + "\n"
    yield "| knob | wants | here | what it does |\n|---|---|---|---|"
    for name, knob in definition["properties"].items():
        if "$ref" not in knob:
            value = _cell(f"`{_plain(here[name])}`") if name in here else "-"
            yield f"| `{name}` | {_cell(wants(knob, schema))} | {value} | {_cell(knob.get('description', ''))} |"
    yield ""


def wants(knob: dict[str, Any], schema: dict) -> str:
    """What a knob takes, in words, from its JSON schema."""
    if "anyOf" in knob:
        return " or ".join(wants(option, schema) for option in knob["anyOf"])
    if "$ref" in knob:
        return f"a section: {', '.join(_definition(schema, knob['$ref'])['properties'])}"
    if "enum" in knob or "const" in knob:
        return ", ".join(f"`{value}`" for value in knob.get("enum", [knob.get("const")]))
    if knob.get("type") == "array":
        return f"a list, each {wants(knob['items'], schema)}"
    kinds = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "null": "`null`"}
    text = kinds.get(knob.get("type", ""), "text")
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    # A bound of millions only keeps slips out.
    text += "".join(f" {word} {knob[key]:g}" for key, word in bounds.items() if abs(knob.get(key, 1e9)) < 1e6)
    return text + (f" matching `{knob['pattern']}`" if "pattern" in knob else "")


def _plain(value: object) -> str:
    special = {None: "null", True: "true", False: "false"}
    return special[value] if isinstance(value, bool | None) else str(value).replace("'", "")


def _cell(text: str) -> str:
    return _prose(" ".join(text.split()).replace("|", "\\|"))


def _prose(text: str) -> str:
    """Markdown whose <words> are no HTML, but for those in code."""
    parts = text.split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


def _docstring(text: str) -> str:
    """A docstring as Markdown: indented lines are code already."""
    return "\n".join(line if line.startswith("    ") else _prose(line) for line in text.splitlines())


# --- commands ------------------------------------------------------------------------------------


class _Parsed(Exception):
    """No error: it carries the parser of a stage out, at the moment it would parse."""


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser that a stage builds."""

    def carry_out(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Parsed(parser)

    main = importlib.import_module(f"stages.{name}").main
    with patch.object(argparse.ArgumentParser, "parse_args", carry_out):
        try:
            main([])
        except _Parsed as parsed:
            return parsed.args[0]
    raise RuntimeError(f"stages.{name}.main did not parse its command line")


def commands_page() -> str:
    """Every command: its docstring and its options, in the order of the data's way; then the make targets."""
    known = docstrings()
    lines = [COMMANDS]
    for heading, names in grouped(list(known)).items():
        lines += [f"\n## {heading[:1].upper()}{heading[1:]}\n", "| command | what it does |\n|---|---|"]
        lines += [f"| [`{name}`](#{name}) | {_cell(purpose(known[name]))} |" for name in names]
        for name in names:
            lines += ["", f"### {name}", "", _docstring(known[name]), "", *_options(parser_of(name))]
    targets = TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8"))
    lines += ["\n## Make\n", "| target | what it does |\n|---|---|"]
    lines += [f"| `make {name}` | {_cell(text)} |" for name, text in targets]
    return "\n".join(lines) + "\n"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    actions = [action for action in parser._actions if action.dest not in SHARED]
    if actions:
        yield "| argument | what it is |\n|---|---|"
    for action in actions:
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        value = "" if action.nargs == 0 or not action.option_strings else f" {_value(action)}"
        yield f"| `{_cell(names + value)}` | {_cell(_help(action))} |"


def _value(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return name if not action.choices or action.metavar else "{" + ",".join(map(str, action.choices)) + "}"


def _help(action: argparse.Action) -> str:
    text = action.help or ""
    optional = not action.option_strings and action.nargs in ("?", "*")
    given = action.default not in (None, [], False) and action.option_strings and str(action.default) not in text
    return text + (" (optional)" if optional else "") + (f" (`{_plain(action.default)}`)" if given else "")
