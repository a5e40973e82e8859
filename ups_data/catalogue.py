"""The official PDEBench files: what exists, what of it is meant, what of it is a data source here.

`data/catalogue/<family>.dvc` list every official file; plain DVC commands do not look into that folder, because
`data/catalogue.dvc` makes it an output. `data/official/<family>.dvc` list those that were downloaded: they are
data sources of this project like any other. docs/catalogue.md says why there are two.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from ups_data import files
from ups_data.errors import UpsDataError
from ups_data.knobs import suggest
from ups_data.params import Dataset

CATALOGUE = Path("data/catalogue")
OFFICIAL = Path("data/official")
ROOT = Path("data/raw/pdebench")  # the download root: official paths are relative to it
UP = PurePosixPath("../../raw/pdebench")  # the same, as the .dvc files of both folders see it
BASE_URL = "https://darus.uni-stuttgart.de/api/access/datafile"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Entry:
    """An official file; `size` in bytes is None where the archive's listing does not have the file."""

    family: str
    path: str
    md5: str
    size: int | None
    url: str
    archive_only: bool  # the official URL list does not have it, the archive does

    @property
    def file_id(self) -> str:
        """The archive's number of the file, the end of its URL."""
        return self.url.rpartition("/")[2]

    def url_under(self, base: str) -> str:
        """The file's URL at another server: BASE/<file id>."""
        return f"{base.rstrip('/')}/{self.file_id}"


@dataclass(frozen=True)
class Family:
    """A group of files of one equation: its description and where it comes from."""

    name: str
    desc: str
    meta: dict[str, str]
    entries: tuple[Entry, ...]


# --- the files of the catalogue ------------------------------------------------------------------


def read_catalogue(repository: Path = Path()) -> list[Family]:
    """Every family of data/catalogue, sorted by name."""
    found = sorted((repository / CATALOGUE).rglob("*.dvc"))
    if not found:
        raise UpsDataError(f"{repository / CATALOGUE} holds no catalogue; run this in a clone of the project")
    return [read_family(path, repository / CATALOGUE) for path in found]


def read_family(path: Path, folder: Path) -> Family:
    """One .dvc file of data/catalogue or data/official."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        entries = tuple(_entry(name, out) for out in tree["outs"])
        return Family(name, tree["desc"], tree["meta"], entries)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UpsDataError(f"{path} is not a list of official files ({reason}); `git checkout {path}`") from None


def _entry(family: str, out: dict) -> Entry:
    path = PurePosixPath(out["path"]).relative_to(UP)
    if not re.fullmatch("[0-9a-f]{32}", out["md5"]) or ".." in path.parts:
        raise ValueError(f"{out['path']}: MD5 {out['md5']!r}")
    listed = out["meta"].get("listed", "official")
    return Entry(family, path.as_posix(), out["md5"], out.get("size"), out["meta"]["url"], listed == "archive")


def render(family: Family) -> str:
    """A family as a .dvc file. Strings are quoted: YAML reads an MD5 such as 12e4 as a number."""
    quote = json.dumps
    lines = [f"desc: {quote(family.desc)}", "meta:"]
    lines += [f"  {key}: {quote(value)}" for key, value in family.meta.items()]
    lines += ["outs:"]
    for entry in family.entries:
        lines += [f"- md5: {quote(entry.md5)}"]
        lines += [f"  size: {entry.size}"] if entry.size is not None else []
        lines += ["  hash: md5", f"  path: {UP / entry.path}", "  meta:", f"    url: {entry.url}"]
        lines += ["    listed: archive"] if entry.archive_only else []
    return "\n".join(lines) + "\n"


def keep(chosen: Collection[Entry], repository: Path = Path()) -> list[Path]:
    """Make the chosen files data sources of this project: data/official lists them beside those it had.

    Returns the .dvc files that changed, relative to the repository.
    """
    changed = []
    for family in read_catalogue(repository):
        wanted = {entry.path for entry in chosen if entry.family == family.name}
        if not wanted:
            continue
        path = OFFICIAL / f"{family.name}.dvc"
        if (repository / path).exists():
            wanted |= {entry.path for entry in read_family(repository / path, repository / OFFICIAL).entries}
        entries = tuple(entry for entry in family.entries if entry.path in wanted)
        text = render(Family(family.name, family.desc, family.meta, entries))
        if not (repository / path).exists() or (repository / path).read_text(encoding="utf-8") != text:
            files.write_text(repository / path, text)
            changed.append(path)
    return changed


# --- choosing ------------------------------------------------------------------------------------


def all_entries(families: Iterable[Family]) -> list[Entry]:
    """The files of all families, in order."""
    return [entry for family in families for entry in family.entries]


def twins(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Files with one body (equal MD5), by MD5; the first of each list stands for the others."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.md5, []).append(entry)
    return {md5: group for md5, group in groups.items() if len(group) > 1}


def select(entries: Sequence[Entry], words: Sequence[str], datasets: Mapping[str, Dataset]) -> list[Entry]:
    """The files that the words name: a task of params.yaml, a family, a folder or file, or a glob.

    A task means the files its conversion reads (its folder, pattern and limit). Raises UpsDataError for a word
    that names nothing.
    """
    chosen: set[str] = set()
    for word in words:
        found = _task_files(entries, word, datasets[word]) if word in datasets else _named(entries, word)
        if not found:
            known = [*datasets, *dict.fromkeys(entry.family for entry in entries)]
            raise UpsDataError(
                f"{word!r} names no official file{suggest(word, known)}; `python -m stages.catalogue` lists them"
            )
        chosen |= {entry.path for entry in found}
    return [entry for entry in entries if entry.path in chosen]


def _named(entries: Sequence[Entry], word: str) -> list[Entry]:
    """A family, a path or folder below the download root (or below data/raw/pdebench), or a glob of either."""
    word = word.removeprefix(f"{ROOT.as_posix()}/").strip("/")
    return [
        entry
        for entry in entries
        if entry.family == word
        or f"{entry.path}/".startswith(f"{word}/")
        or fnmatch.fnmatchcase(entry.path, word)
        or fnmatch.fnmatchcase(PurePosixPath(entry.path).name, word)
    ]


def _task_files(entries: Sequence[Entry], task: str, dataset: Dataset) -> list[Entry]:
    knobs = dataset.convert
    pattern = (PurePosixPath(knobs.folder) / knobs.pattern).as_posix()
    found = [entry for entry in entries if PurePosixPath(entry.path).match(pattern)][: knobs.limit]
    if not found:
        raise UpsDataError(
            f"the task {task} reads {pattern}, which no official file matches; name a family instead "
            "(`python -m stages.catalogue` lists them)"
        )
    return found
