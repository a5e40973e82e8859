"""The documentation says what the code does: its commands parse, its messages exist, its knobs are described."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scripts.docs_reference import TARGET, commands_page, knobs_page, parser_of, wants
from stages.__main__ import docstrings
from ups_data.params import Params

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [path for folder in ("ups_data", "stages") for path in sorted((ROOT / folder).rglob("*.py"))]
COMMAND = re.compile(r"python -m stages\.(\w+)((?: +(?!\\?$)(?:'[^'\n]*'|[^\s`|;#&(){}\[\]<>,]+))*)")
NO_ARGUMENTS_ASKED = ("--help",)


@cache
def pages() -> dict[str, str]:
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}


# --- messages ------------------------------------------------------------------------------------


def text_of(node: ast.AST) -> str | None:
    """A string of the source, its placeholders as `…`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def messages() -> list[str]:
    """Every string of the sources, without the backticks around commands."""
    nodes = (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return [text.replace("`", "") for node in nodes if (text := text_of(node))]


def reads(message: str, parts: list[str]) -> bool:
    """Whether the parts stand in the message, one after another."""
    if not all(part in message for part in parts):
        return False
    return re.search(".*?".join(map(re.escape, parts)), message) is not None


def test_every_message_of_the_troubleshooting_page_is_said_by_the_code():
    page, said = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), messages()
    headings = re.findall(r"^#### `(.*)`$", page, re.MULTILINE)
    assert len(headings) > 40
    unsaid = [heading for heading in headings if not any(reads(message, heading.split("…")) for message in said)]
    assert unsaid == []


# --- knobs ---------------------------------------------------------------------------------------


def test_every_knob_is_described():
    schema = Params.model_json_schema()
    bare = [
        f"{section}.{name}"
        for section, definition in schema["$defs"].items()
        for name, knob in definition["properties"].items()
        if not knob.get("description")
    ]
    assert bare == [], f"give these a Field(description=..) in ups_data/params.py: {', '.join(bare)}"


def test_every_knob_stands_on_its_page_with_what_it_wants():
    page = knobs_page()
    for definition in Params.model_json_schema()["$defs"].values():
        for name, knob in definition["properties"].items():
            assert f"| `{name}` | " in page or "$ref" in knob
    assert "| `learning_rate` | number above 0 | `0.004` |" in page
    assert "| `limit` | whole number from 1 or `null` | `null` |" in page


def test_bounds_become_words():
    assert wants({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {}) == "number above 0 to 1"
    assert wants({"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]}, {}) == "`a`, `b` or `null`"
    assert (
        wants({"type": "array", "items": {"type": "integer", "minimum": 1}}, {}) == "a list, each whole number from 1"
    )


# --- commands ------------------------------------------------------------------------------------


def test_every_command_and_every_flag_stands_on_the_page_of_commands():
    page = commands_page()
    for name in docstrings():
        section = page.partition(f"### {name}\n")[2].partition("\n### ")[0]
        assert section, name
        for action in parser_of(name)._actions:
            if action.dest not in ("help", "params", "set", "level"):
                assert (action.option_strings or [str(action.metavar or action.dest)])[0] in section


def commands() -> list[tuple[str, str, str]]:
    """(page, stage, arguments) of every command that the pages and the docstrings of the stages show."""
    texts = pages() | {f"stages.{name}": text for name, text in docstrings().items()}
    found = {
        (page, name, arguments.strip()) for page, text in texts.items() for name, arguments in COMMAND.findall(text)
    }
    return sorted(found)


@pytest.mark.parametrize(("page", "name", "arguments"), commands())
def test_every_command_that_is_shown_exists_and_parses(page, name, arguments, capsys):
    assert name in docstrings(), f"{page}: there is no stages.{name}"
    given = [word for word in shlex.split(arguments) if word != ".."]
    if given and given[-1] not in NO_ARGUMENTS_ASKED:
        try:
            parser_of(name).parse_args(given)
        except SystemExit:
            pytest.fail(f"{page}: python -m stages.{name} {arguments}: {capsys.readouterr().err.splitlines()[-1]}")


def test_every_make_target_that_is_shown_exists():
    targets = {name for name, _ in TARGET.findall((ROOT / "Makefile").read_text())}
    shown = {
        (page, target)
        for page, text in pages().items()
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)
    }
    assert {(page, target) for page, target in shown if target not in targets} == set()


@pytest.mark.parametrize("page", sorted(pages()))
def test_python_on_the_pages_is_python(page):
    for block in re.findall(r"^```python\n(.*?)^```", pages()[page], re.MULTILINE | re.DOTALL):
        ast.parse(block)


# --- the site ------------------------------------------------------------------------------------


class Loaded(HTMLParser):
    """What a page makes a browser load: scripts, styles, images, frames."""

    def __init__(self):
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        wanted = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}.get(tag)
        values = dict(attrs)
        if wanted and values.get(wanted) and values.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(values[wanted])


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    for page in tmp_path.rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert [a for a in loaded.addresses if a.startswith(("http:", "https:", "//"))] == []
    for style in tmp_path.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) == []
    assert (tmp_path / "knobs" / "index.html").is_file() and (tmp_path / "commands" / "index.html").is_file()
