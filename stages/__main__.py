"""List the commands in the order of the data's way: `python -m stages`; with a name: what that one does."""

from __future__ import annotations

import ast
import difflib
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ups_data import console

# A command that stands nowhere here is listed under "more": a new stage needs no entry.
GROUPS = {
    "raw data": ("catalogue", "download", "simulate", "inspect"),
    "training data": ("convert", "audit"),
    "models": ("autoencoder", "latents", "train", "baseline", "evaluate", "leaderboard", "predict"),
    "publishing": ("package", "cards", "sync", "registry", "exhibit", "gallery", "release", "report"),
    "getting it back, checking": ("hydrate", "verify", "code"),
}
NO_COMMANDS = ("__init__", "__main__", "common")


def docstrings() -> dict[str, str]:
    """Name -> docstring of every stage, read from the sources: nothing is imported."""
    paths = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem not in NO_COMMANDS)
    return {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in paths}


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Heading -> the commands under it, in the order of the data's way."""
    found = {heading: [name for name in wanted if name in names] for heading, wanted in GROUPS.items()}
    known = {name for wanted in GROUPS.values() for name in wanted}
    found["more"] = [name for name in names if name not in known]
    return {heading: under for heading, under in found.items() if under}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list, or the docstring of the named command; an unknown name is a sentence and status 1."""
    wanted = [name.removeprefix("stages.") for name in (sys.argv[1:] if argv is None else argv)]
    known = docstrings()
    if not wanted or wanted[0] in ("-h", "--help"):
        console.say(_listing(known))
        return 0
    if wanted[0] in known:
        console.say(f"{known[wanted[0]]}\n\nAll options: python -m stages.{wanted[0]} --help")
        return 0
    close = difflib.get_close_matches(wanted[0], known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    print(f"python -m stages: no command {wanted[0]!r}; {hint}", file=sys.stderr)
    return 1


def _listing(known: dict[str, str]) -> str:
    indent, columns = max(map(len, known)) + 4, shutil.get_terminal_size().columns
    lines = ["python -m stages.<command>; every one has --help", ""]
    for heading, names in grouped(list(known)).items():
        lines.append(heading)
        for name in names:
            start = f"  {name}".ljust(indent)
            lines.append(
                textwrap.fill(purpose(known[name]), columns, initial_indent=start, subsequent_indent=" " * indent)
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def purpose(docstring: str) -> str:
    """The first sentence of a docstring, in one line."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.split(". ")[0].removesuffix(".")


if __name__ == "__main__":
    sys.exit(main())
