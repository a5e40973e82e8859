"""A dataset's part of the gallery, data/gallery/<task>.json: all that the page says and shows of it."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from markdown_it import MarkdownIt

from ups_data import files
from ups_data.audit import Audit, audit
from ups_data.choice import evenly
from ups_data.errors import UpsDataError
from ups_data.gallery import charts, players
from ups_data.gallery.looks import look, open_split
from ups_data.manifest import read_manifest
from ups_data.parameters import lacking, values_of
from ups_data.params import SPLITS

VALUES, SAMPLES = 2_000_000, 256  # counted at most for a histogram, evenly over the train split
BINS = 48
FEW = 16  # values of a parameter that are told apart
SQUARES = 1200  # initial conditions drawn one by one
LATENT_FACTS = {"bytes", "data_bytes", "token_grid", "latent_dim", "dtype", "key", "reconstruction"}  # that are shown
MODELS = ("operator", "baseline", "persistence", "mean", "roundtrip")
PROSE_ENDS = "Good to know"  # the last section of a card that is written by hand


def exhibit(task: str, data: Path, cache: Path, reports: Path, card: Path) -> dict:
    """Collect what the gallery shows of a task; what was not made yet is None.

    Raises UpsDataError where the converted data or the card are missing or damaged.
    """
    manifest = read_manifest(data, task)
    player, cover = look(data, task, manifest)
    return {
        "task": task,
        "kind": manifest["kind"],
        "samples": sum(split["samples"] for split in manifest["splits"].values()),
        "starts": sum(len(split["groups"]) for split in manifest["splits"].values()),
        "key": manifest["key"],
        "card": read_card(card),
        "cover": cover,
        "player": player,
        "histograms": histograms(data, task, manifest),
        "parameters": parameters(data, task, manifest),
        "splits": split_proof(manifest, audit(data, task)),
        "latents": latents(cache, task),
        "scores": scores(reports / task),
        "rollouts": rollouts(reports / task, manifest["kind"]),
    }


# --- the card ------------------------------------------------------------------------------------


def read_card(path: Path) -> dict:
    """A card of ups_data/cards.py as HTML: title, lead, facts, the prose, how to get it, the rest."""
    if not path.is_file():
        raise UpsDataError(f"{path} is missing; write it with `python -m stages.cards {path.stem}`")
    head, *sections = path.read_text(encoding="utf-8").split("\n## ")
    title, lead, facts = (part.strip() for part in head.removeprefix("# ").split("\n\n", 2))
    named = dict(section.split("\n", 1) for section in sections)
    names = list(named)
    written = names[: names.index(PROSE_ENDS) + 1] if PROSE_ENDS in names else []
    rest = [name for name in names if name not in written and name != "Get it"]
    return {
        "title": title,
        "lead": render(lead),
        "facts": render(facts),
        "prose": [{"title": name, "text": render(named[name])} for name in written],
        "ways": render(named.get("Get it", "")),
        "rest": [{"title": name, "text": render(named[name])} for name in rest],
    }


def render(markdown: str) -> str:
    """Markdown with tables as HTML; HTML in it is shown, not obeyed."""
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)


# --- distributions -------------------------------------------------------------------------------


def histograms(data: Path, task: str, manifest: dict) -> list[dict]:
    """A histogram of every channel over an even share of the train split, within the statistics' range."""
    found, drawn = manifest["statistics"]["channels"], []
    channels = [*manifest["channels"], *manifest.get("static_channels", ())]
    edges = {name: _edges(found[name]["minimum"], found[name]["maximum"]) for name in channels}
    counts = {name: np.zeros(BINS, dtype=np.int64) for name in channels}
    for values in _samples(open_split(data, task, "train", manifest["kind"]), manifest["kind"]):
        for name, part in zip(channels, values, strict=False):
            counts[name] += np.histogram(part, edges[name])[0]
    for name in channels:
        fact = found[name]
        log = bool(edges[name][0] > 0 and edges[name][-1] > players.DECADES * edges[name][0])
        drawn.append(
            {
                "name": name,
                "picture": charts.histogram(counts[name], edges[name], name, log),
                "facts": f"mean {fact['mean']:.3g}, std {fact['std']:.3g}",
            }
        )
    return drawn


def _edges(low: float, high: float) -> np.ndarray:
    if low > 0 and high > players.DECADES * low:
        return np.geomspace(low, high, BINS + 1)
    return np.linspace(low, high if high > low else low + 1.0, BINS + 1)


def _samples(reader: object, kind: str) -> Iterator[list[np.ndarray]]:
    """The values of each channel, static ones last, of evenly chosen samples: one sample at a time."""
    size = np.prod(reader.shape[1:-1]) if kind == "grid" else int(reader.sample_offsets[-1]) / len(reader)
    for sample in evenly(len(reader), max(1, int(min(SAMPLES, VALUES / size)))):
        if kind == "particles":
            fields = np.concatenate([reader.trajectory(name, sample) for name in ("positions", "velocities")], axis=-1)
            yield list(np.moveaxis(fields, -1, 0))
        elif kind == "mesh":
            yield list(np.moveaxis(reader.fields(sample), -1, 0))
        else:
            step = max(1, int(size // VALUES))
            yield [*np.moveaxis(reader.data[sample, ::step], -1, 0), *np.moveaxis(reader.static[sample], -1, 0)]


def parameters(data: Path, task: str, manifest: dict) -> list[dict]:
    """How many samples of each split have each value of each parameter, or a histogram where the values are many."""
    readers = {split: open_split(data, task, split, manifest["kind"]) for split in manifest["splits"]}
    names = next(iter(readers.values())).parameter_names
    drawn = []
    for column, name in enumerate(names):
        own = {split: reader.parameters[:, column] for split, reader in readers.items()}
        every = np.concatenate(list(own.values()))
        distinct, missing = values_of(every), lacking(every)
        if len(distinct) <= FEW:
            by = {f"{v:g}": {split: int((values == v).sum()) for split, values in own.items()} for v in distinct}
            picture = charts.counted(by, name)
        else:
            edges = _edges(float(distinct[0]), float(distinct[-1]))
            log = bool(edges[0] > 0 and edges[-1] > players.DECADES * edges[0])
            picture = charts.histogram(np.histogram(every[~np.isnan(every)], edges)[0], edges, name, log)
        facts = f"{len(distinct)} value{'s' * (len(distinct) > 1)}"
        facts += f", {missing} samples have none" if missing else ""
        drawn.append({"name": name, "picture": picture, "facts": facts})
    return drawn


# --- splits, latents -----------------------------------------------------------------------------


def split_proof(manifest: dict, found: Audit) -> dict:
    """What the audit of the stored data found, and a square for every initial condition, in the order of their ids."""
    home = dict(zip(found.groups, found.names, strict=True))
    order = sorted(home)[:: max(1, -(-len(home) // SQUARES))]
    files = found.leaked_by_files()
    return {
        "protocol": manifest["protocol"],
        "seed": manifest["seed"],
        "squares": [home[group] for group in order],
        "thinned": len(order) < len(home),
        "distinct": found.distinct,
        "rehashed": len(found.groups),
        "leaked": found.leaked,
        "by_rows": found.leaked_by_rows(),
        "by_files": files,
        "problems": found.problems,
        "splits": [
            {"name": split, "samples": count, "starts": sum(name == split for name in home.values())}
            for split, count in ((name, Counter(found.names)[name]) for name in SPLITS)
            if count
        ],
    }


def latents(cache: Path, task: str) -> dict | None:
    """Size, shape and round-trip error of the latent cache; None where a split has none."""
    found = {split: cache / f"{task}_{split}" / "manifest.json" for split in SPLITS}
    if not all(path.is_file() for path in found.values()):
        return None
    read = {split: files.read_json(path) for split, path in found.items()}
    test = read["test"]
    for split, facts in read.items():
        if missing := LATENT_FACTS - facts.keys():
            raise UpsDataError(
                f"{found[split]} has no {min(missing)}: it describes no latents; run `python -m stages.latents {task}`"
            )
    size, whole = (sum(facts[key] for facts in read.values()) for key in ("bytes", "data_bytes"))
    return {
        "bytes": size,
        "data_bytes": whole,
        "ratio": size / whole,
        "tokens": " × ".join(str(n) for n in test["token_grid"]),
        "latent_dim": test["latent_dim"],
        "dtype": test["dtype"],
        "key": test["key"],
        "errors": [
            {"name": name, "error": error}
            for role in sorted(test["reconstruction"])
            for name, error in sorted(test["reconstruction"][role].items())
        ],
    }


# --- the operator --------------------------------------------------------------------------------


def scores(folder: Path) -> dict | None:
    """The leaderboard's rows over the whole test split, and the charts; None before the first evaluation."""
    board = folder.parent / "leaderboard" / f"{folder.name}.csv"
    if not board.is_file():
        return None
    rows = [row for row in _table(board) if row["subset"] == "all"]
    protocols: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        protocols.setdefault((row["given"], row["every_point"], row["every_frame"]), []).append(row)
    boards = [_board(key, rows) for key, rows in protocols.items()]
    steps = _table(folder / "error_per_step.csv")
    drawn = {"boards": boards, "picture": _dots(boards[0]), "curves": None, "spectrum": None}
    if len(steps) > 1:
        lines = {name: [float(row[name]) for row in steps] for name in MODELS if name in steps[0]}
        drawn["curves"] = charts.curves(lines, [float(row["time"]) for row in steps], "time", "nRMSE")
    if (folder / "spectrum.csv").is_file() and (waves := _table(folder / "spectrum.csv")):
        shown = ("truth", "operator", "baseline", "roundtrip")
        lines = {name: [float(row[name]) for row in waves] for name in shown if name in waves[0]}
        x = [float(row["wavenumber"]) for row in waves]
        drawn["spectrum"] = charts.curves(lines, x, "wavenumber", "spectrum", log_x=True)
    return drawn


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise UpsDataError(f"{path} is missing; write it with `python -m stages.evaluate {path.parent.name}`") from None


def _board(key: tuple[str, ...], rows: list[Mapping[str, str]]) -> dict:
    """The models of one protocol, in the usual order."""
    given, point, frame = key
    taken = [f"{given} frames given" if given not in ("0", "1") else "1 frame given" if given == "1" else "static"]
    taken += [f"every {_nth(point)} point"] * (point != "1") + [f"every {_nth(frame)} frame"] * (frame != "1")
    models = {row["model"]: {name: float(row[name]) for name in ("nrmse", "low", "high")} for row in rows}
    return {
        "protocol": ", ".join(taken),
        "trajectories": rows[0]["trajectories"],
        "models": {name: models[name] for name in MODELS if name in models},
    }


def _nth(number: str) -> str:
    return {"2": "2nd", "3": "3rd"}.get(number, f"{number}th")


def _dots(board: dict) -> str:
    rows = {name: (row["nrmse"], row["low"], row["high"]) for name, row in board["models"].items()}
    return charts.dots(rows, f"nRMSE, {board['protocol']}")


def rollouts(folder: Path, kind: str) -> dict | None:
    """A player of the operator's rollouts beside the truth; None before the first evaluation."""
    path = folder / "rollouts.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        labels, rows, what = players.rollout_rows(kind, arrays)
    except (ValueError, KeyError, EOFError, BadZipFile):
        raise UpsDataError(f"{path} is damaged; run `python -m stages.evaluate {folder.name}` again") from None
    return players.player(what, labels, rows, start=len(labels) // 2 if what == "Time" else 0)
