"""Dataset cards, docs/datasets/<task>.md: what the manifest knows, and a short part written by hand.

A hand-written part is docs/cards/<family>.md: a head of `title` and `folder` between lines of `---`, a paragraph, then
sections. The sections Sample and Official say where data come from; a card shows the one that is true of its files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath

import yaml

from ups_data import files
from ups_data.errors import UpsDataError
from ups_data.params import SPLITS, Dataset, Params
from ups_data.registry import Entry

CARDS = Path("docs/datasets")
FAMILIES = Path("docs/cards")
ORIGINS = ("Sample", "Official")
MOMENTS = ("mean", "std", "minimum", "maximum")
SHOWN_FILES = 12  # raw files listed by name; of more the first and the last are

PAPER = """```bibtex
@inproceedings{takamoto2022pdebench,
  title     = {{PDEBench}: An Extensive Benchmark for Scientific Machine Learning},
  author    = {Takamoto, Makoto and Praditia, Timothy and Leiteritz, Raphael and MacKinlay, Dan and
               Alesiani, Francesco and Pfl\\"uger, Dirk and Niepert, Mathias},
  booktitle = {NeurIPS Datasets and Benchmarks},
  year      = {2022}
}
```"""
LICENCES = {
    "Official": (
        "The data are PDEBench's, [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/): name the paper and the "
        "archive, [doi:10.18419/darus-2986](https://doi.org/10.18419/darus-2986)."
    ),
    "Sample": (
        "Made by this repository's own solvers, under its licence (Apache-2.0). Work that uses PDEBench's problems "
        "names its paper; the archive of the published files is [doi:10.18419/darus-2986](https://doi.org/10.18419/darus-2986)."
    ),
    None: "As the source of the raw files says: they are neither PDEBench's published files nor our sample.",
}


@dataclass(frozen=True)
class Part:
    """The hand-written part of a card: title, the raw folder it speaks of, its first paragraph, its sections."""

    title: str
    folder: str
    lead: str
    sections: dict[str, str]


# --- the hand-written part -----------------------------------------------------------------------


def read_part(path: str | Path) -> Part:
    """Read docs/cards/<family>.md; a part without a head or a paragraph is a sentence."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        _, head, body = text.split("---\n", 2)
        facts = yaml.safe_load(head)
        title, folder = str(facts["title"]), str(facts["folder"])
    except (ValueError, KeyError, TypeError, yaml.YAMLError):
        raise UpsDataError(
            f"{path}: expected a head of title and folder between two lines of ---; see {FAMILIES}"
        ) from None
    lead, *sections = body.split("\n## ")
    pairs = (section.partition("\n") for section in sections)
    return Part(title, folder, lead.strip(), {name.strip(): text.strip() for name, _, text in pairs})


def part_of(task: str, folder: str, families: str | Path = FAMILIES) -> Part:
    """The part whose folder the raw files stand in, the longest match; a plain one where there is none."""
    parts = (read_part(path) for path in sorted(Path(families).glob("*.md")))
    where = PurePosixPath(folder)
    found = [part for part in parts if where.is_relative_to(part.folder)]
    plain = Part(task, folder, f"No hand-written part yet: write one into `{FAMILIES}/`.", {})
    return max(found, key=lambda part: len(PurePosixPath(part.folder).parts), default=plain)


def origin_of(manifest: Mapping, knobs: Dataset, params: Params, published: Mapping[str, int | None]) -> str | None:
    """Official where every raw file has name and size of a published one, Sample where our solver wrote the folder.

    None: from elsewhere. `published`: path -> bytes of PDEBench's files.
    """
    raw = manifest["source"]["files"]
    if all(published.get(file["name"]) == file["size"] for file in raw):
        return "Official"
    made = {PurePosixPath(solver.folder) for solver in params.simulate.values()}
    # Files of several equations stand in folders of their own, below the one that the knobs name.
    parents = {PurePosixPath(knobs.convert.root, file["name"]).parent for file in raw}
    return "Sample" if PurePosixPath(knobs.convert.root, knobs.convert.folder) in made or parents <= made else None


# --- the card ------------------------------------------------------------------------------------


def card(part: Part, manifest: Mapping, origin: str | None, name: str, entry: Entry | None) -> str:
    """The Markdown of a card. `entry`: the registry's, None before the dataset is packed."""
    told = {title: text for title, text in part.sections.items() if title not in ORIGINS}
    notes = told.pop("Good to know", "")
    sections = {
        **told,
        "Where it comes from": part.sections.get(origin or "", "Raw files from elsewhere, listed below."),
        "Good to know": notes,
        "Parameters": _parameters(manifest),
        "Channels": _channels(manifest),
        "Splits": _splits(manifest, entry),
        "Raw files": _raw_files(manifest),
        "Get it": get_it(name, entry) if entry else "",
        "Licence and citation": f"{LICENCES[origin]}\n\n{PAPER}" if origin else LICENCES[None],
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"# {part.title}\n\n{part.lead}\n\n{_facts(manifest, name, entry)}\n\n{body}\n"


def facts(manifest: Mapping, name: str, entry: Entry | None) -> dict[str, str]:
    """What a reader asks first, in words: dataset, kind, resolution, frames, samples, parameters, size."""
    samples = sum(split["samples"] for split in manifest["splits"].values())
    starts = sum(len(split["groups"]) for split in manifest["splits"].values())
    told = {
        "Dataset": f"`{name}`",
        "Kind": {"grid": "fields on a regular grid", "mesh": "fields on triangle meshes", "particles": "particles"}[
            manifest["kind"]
        ],
        "Resolution": resolution(manifest["resolution"]),
        "Frames": _frames(manifest),
        "Channels": ", ".join(f"`{channel}`" for channel in manifest["channels"]),
        "Samples": f"{samples:,} from {starts:,} initial conditions",
    }
    if entry:
        unpacked = sum(item.size for item in entry.items())
        told["Size"] = f"{files.amount(unpacked)}, packed {files.amount(entry.archive.size)}"
    return told


def resolution(value: object) -> str:
    """Points a side of a grid, or the counts of a mesh or of particles, in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_range(count)} {what}" for what, count in value.items())
    return " × ".join(str(points) for points in value) + " points"


def shared_starts(manifest: Mapping) -> int:
    """How many initial conditions stand in two splits, counted in the manifest's own lists."""
    lists = [set(split["groups"]) for split in manifest["splits"].values()]
    return sum(len(one & other) for one, other in combinations(lists, 2))


def get_it(name: str, entry: Entry) -> str:
    """The ways to the data: a clone with DVC, hydrate, any machine with DVC, Python."""
    path = f"artifacts/{entry.archive.file}"
    return f"""In a clone, one split of it, checked and unpacked:

```
python -m stages.hydrate {name} --split test --root data/pdebench
```

The archive alone, in a clone or from anywhere (`URL` is this repository):

```
dvc pull {path}
dvc get URL {path}
```

In Python:

```python
from ups_data import open_dataset

data = open_dataset("{name}", split="test")  # fetched, checked and unpacked where it is not here
data.torch()  # a torch dataset
data.xarray()  # named dimensions and coordinates
```"""


def write_card(folder: str | Path, task: str, text: str) -> Path:
    """Write <folder>/<task>.md atomically; equal cards are equal bytes."""
    path = Path(folder) / f"{task}.md"
    files.write_text(path, text)
    return path


# --- its tables ----------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[object]], right: int) -> str:
    """A Markdown table; columns from number `right` on are numbers, set to the right."""
    rule = ["---:" if column >= right else "---" for column in range(len(header))]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _facts(manifest: Mapping, name: str, entry: Entry | None) -> str:
    first, *rest = facts(manifest, name, entry).items()
    return table(first, rest, 2)


def _range(count: object) -> str:
    return f"{count[0]} to {count[-1]}" if isinstance(count, Sequence) else f"{count}"


def _frames(manifest: Mapping) -> str:
    frames, step = manifest["frames"], manifest.get("time_step")
    if frames == 1:
        return "1 (static)"
    return f"{frames}, {step:.4g} apart" if step else f"{frames}"


def _parameters(manifest: Mapping) -> str:
    rows = []
    for name, facts in sorted(manifest["parameters"].items()):
        values = facts["values"]
        many = f"{values[0]:g} to {values[-1]:g} ({len(values)} values)"
        told = ", ".join(f"{v:g}" for v in values) if len(values) < 13 else many
        none = f"; {facts['missing']:,} samples have none" if "missing" in facts else ""
        rows.append((f"`{name}`", f"`{facts['raw_name']}`", told + none))
    return table(("parameter", "in the raw files", "values"), rows, 3) if rows else ""


def _channels(manifest: Mapping) -> str:
    roles = {name: role for role, names in manifest.get("roles", {}).items() for name in names}
    still, other = manifest.get("static_channels", ()), ("state", "static")
    rows = [
        (f"`{name}`", roles.get(name, other[name in still]), *(f"{fact[key]:.4g}" for key in MOMENTS))
        for name, fact in sorted(manifest["statistics"]["channels"].items())
    ]
    return "Statistics of the train split.\n\n" + table(
        ("channel", "role", "mean", "std", "minimum", "maximum"), rows, 2
    )


def _splits(manifest: Mapping, entry: Entry | None) -> str:
    header = ["split", "samples", "initial conditions"] + ["bytes", "SHA-256 starts"] * (entry is not None)
    rows = []
    for name in (name for name in SPLITS if name in manifest["splits"]):
        split = manifest["splits"][name]
        row = [name, f"{split['samples']:,}", f"{len(split['groups']):,}"]
        rows.append(row + ([f"{entry.splits[name].size:,}", f"`{entry.splits[name].sha256[:12]}`"] if entry else []))
    shared, leaked = shared_starts(manifest), manifest.get("leaked_share")
    made = {
        "grouped": f"Made by initial condition, seed {manifest['seed']}",
        "hashed": f"Made by initial condition, each by its own hash, seed {manifest['seed']}",
        "pdebench": "PDEBench's own: the rows of its loaders",
    }.get(manifest["protocol"], "As the files came")
    proof = (
        f"{made}. **{shared or 'No'} initial condition{'s' * (shared > 1)} stand{'s' * (shared < 2)} in two splits**"
    )
    share = f"; {leaked:.1%} of the test samples start from one of train." if leaked else "."
    return table(header, rows, 1) + f"\n\n{proof}{share}"


def _raw_files(manifest: Mapping) -> str:
    raw = manifest["source"]["files"]
    total = files.amount(sum(file["size"] for file in raw))
    shown = raw if len(raw) <= SHOWN_FILES else [raw[0], raw[-1]]
    rows = [(f"`{file['name']}`", f"{file['samples']:,}", f"{file['size']:,}") for file in shown]
    said = f"{len(raw)} file{'s' * (len(raw) > 1)}, {total}" + (
        ", the first and the last shown" * (len(shown) < len(raw))
    )
    return f"{said}. Content key `{manifest['key'][:16]}`.\n\n{table(('file', 'samples', 'bytes'), rows, 1)}"
