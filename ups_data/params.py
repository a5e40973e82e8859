"""The schema of params.yaml: every knob, its type and its bounds.

A wrong key or value is one sentence with the key, what it got and what it wants. There are no hidden
defaults: a knob that shapes an output stands in params.yaml, so that DVC sees it change.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ups_data.errors import UpsDataError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Knobs(BaseModel):
    """A section of params.yaml: unknown keys and silent type conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# --- the sample raw data -------------------------------------------------------------------------


class LineSolver(Knobs):
    """Burgers or advection on a periodic line; every parameter value starts from the same `samples` states."""

    solver: Literal["burgers", "advection"]
    folder: str
    seed: Count
    samples: Positive
    values: list[PositiveFloat] = Field(min_length=1)  # Nu of Burgers, beta of advection
    resolution: Annotated[int, Field(ge=16)]
    frames: Annotated[int, Field(ge=2)]
    dtype: Literal["float32", "float64"]


class FlowSolver(Knobs):
    """Incompressible Navier-Stokes on a periodic square; `files` files of four trajectories each."""

    solver: Literal["navier_stokes"]
    folder: str
    seed: Count
    files: Positive
    resolution: Annotated[int, Field(ge=16)]
    frames: Annotated[int, Field(ge=2)]
    viscosity: PositiveFloat
    end_time: PositiveFloat
    dtype: Literal["float32", "float64"]


class DarcyMeshSolver(Knobs):
    """Darcy flow by P1 finite elements on irregular triangle meshes; one shard a mesh, `samples` fields each."""

    solver: Literal["darcy_mesh"]
    folder: str
    seed: Count
    shapes: list[Literal["square", "disk", "l_shape", "annulus", "channel"]] = Field(min_length=1)
    meshes_per_shape: Positive
    samples: Positive
    spacing: Annotated[float, Field(gt=0.005, lt=0.5)]  # target edge length, the domain being about 1 wide


class ParticleSolver(Knobs):
    """Tracers carried by an incompressible flow of drifting Rossby waves; one shard a trajectory."""

    solver: Literal["particles"]
    folder: str
    seed: Count
    samples: Positive
    particles: Annotated[int, Field(ge=8)]
    frames: Annotated[int, Field(ge=2)]
    end_time: PositiveFloat
    radius: Annotated[float, Field(gt=0, lt=0.5)]  # of the neighbour graph, in units of the box


Solver = Annotated[LineSolver | FlowSolver | DarcyMeshSolver | ParticleSolver, Field(discriminator="solver")]


# --- the datasets --------------------------------------------------------------------------------


class Tracers(Knobs):
    """Particles made from the stored frames of a flow: how many a trajectory, their neighbourhood, their seed."""

    particles: Annotated[int, Field(ge=8)]
    radius: PositiveFloat  # of the neighbour graph, in the flow's unit of length
    seed: Count


class Convert(Knobs):
    """Where the raw files are, how they are read and how much of them to take."""

    source: Literal["pdebench", "the_well", "npz"]
    root: str
    folder: str
    pattern: str
    limit: Positive | None  # at most this many files
    samples: Positive | None  # at most this many samples of each file
    float64: Literal["round", "refuse"]  # what to do with files of float64 numbers; the loss of rounding is reported
    tracers: Tracers | None = None  # of particles from a flow on a grid (source pdebench), and of nothing else


class Splits(Knobs):
    """Shares of the initial conditions; they add up to 1."""

    protocol: Literal["grouped", "pdebench"]
    seed: Count
    train: Fraction
    val: Fraction
    test: Fraction

    @model_validator(mode="after")
    def _add_up(self) -> Splits:
        total = self.train + self.val + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"train + val + test must be 1, got {total:g}")
        return self


class View(Knobs):
    """What the models see of the data: every n-th point and every n-th frame (PDEBench: 4 and 5 in 1D)."""

    space_stride: Positive
    time_stride: Positive


class Optimiser(Knobs):
    """How long and how fast a model trains."""

    steps: Positive
    batch: Positive
    learning_rate: PositiveFloat
    seed: Count


class Autoencoder(Optimiser):
    """Fields to `latent_len` tokens of `latent_dim` numbers and back."""

    latent_len: Positive
    latent_dim: Positive
    width: Positive
    depth: Positive


class Latents(Knobs):
    """The cache: number format, frames encoded at once, bytes a shard."""

    dtype: Literal["float16", "bfloat16", "float32"]
    batch: Positive
    shard_mb: Positive


class Train(Optimiser):
    """The latent operator: its size, the frames it sees and predicts a call, the calls it is unrolled for.

    `strides`: the time steps it learns, in frames of the view; they take turns in training.
    """

    width: Positive
    depth: Positive
    heads: Positive
    history: Positive
    bundle: Positive
    unroll: list[Positive] = Field(min_length=1)
    strides: list[Positive] = Field(min_length=1)


class Baseline(Optimiser):
    """A plain network in physical space; `bundle` frames a call on grids, `unroll` calls in training."""

    width: Positive
    depth: Positive
    bundle: Positive
    unroll: Positive


class Evaluate(Knobs):
    """The protocol: frames given before the rollout starts, trajectories drawn."""

    given: Positive
    pictures: Positive


class Package(Knobs):
    """The published dataset: `<task>_<flavour>_v<N>` and how it is packed."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+_v[0-9]+$")]
    codec: Literal["pcodec", "gzip"]
    suffix: Literal["upk", "tar.gz"]  # of the archive's name: what the codec writes
    description: str

    @model_validator(mode="after")
    def _suit(self) -> Package:
        if self.suffix != (wanted := {"pcodec": "upk", "gzip": "tar.gz"}[self.codec]):
            raise ValueError(f"the codec {self.codec} writes the suffix {wanted}, got {self.suffix}")
        return self


class Dataset(Knobs):
    """One dataset: a section a stage."""

    kind: Literal["grid", "mesh", "particles"]
    store: Literal["h5", "zarr"]  # the suffix of the converted splits: h5 for grids, zarr for the others
    convert: Convert
    splits: Splits
    view: View
    autoencoder: Autoencoder
    latents: Latents
    train: Train
    baseline: Baseline
    evaluate: Evaluate
    package: Package

    @model_validator(mode="after")
    def _readable(self) -> Dataset:
        known = {"grid": ("pdebench", "the_well")}.get(self.kind, ("pdebench", "npz"))
        if self.convert.source not in known:
            raise ValueError(f"convert.source of the kind {self.kind} is one of {', '.join(known)}")
        if (self.convert.tracers is None) == (self.kind == "particles" and self.convert.source == "pdebench"):
            raise ValueError("convert.tracers goes with the kind particles and the source pdebench, and with no other")
        return self

    @model_validator(mode="after")
    def _stored(self) -> Dataset:
        if self.store != (wanted := "h5" if self.kind == "grid" else "zarr"):
            raise ValueError(f"store of the kind {self.kind} is {wanted}, got {self.store}")
        return self


class Sync(Knobs):
    """The Weights & Biases mirror: where it is, what goes there beside the datasets, how long to try."""

    entity: str | None  # null: the default of the key; WANDB_ENTITY comes before it
    project: Annotated[str, Field(min_length=1)]  # WANDB_PROJECT comes before it
    registry: str | None  # link the datasets into collections of this W&B Registry, e.g. dataset
    models: bool  # the task's trained models too
    retries: Positive  # of one upload; the client takes 0 as no bound
    minutes: Positive  # for all uploads of one artifact


class Params(Knobs):
    """The whole of params.yaml."""

    simulate: dict[str, Solver]
    datasets: dict[str, Dataset]
    sync: Sync


# --- reading -------------------------------------------------------------------------------------


def load_params(path: str | Path = "params.yaml", overrides: Sequence[str] = ()) -> Params:
    """Read and check params.yaml; `overrides` are KEY=VALUE with dotted keys and YAML values.

    Raises UpsDataError naming the key, what it got and what it wants.
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
        _override(tree, override)
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise UpsDataError(_sentence(path, error, tree)) from None


def dataset_params(params: Params, task: str) -> Dataset:
    """The section of one task; an unknown task is a sentence with the known ones."""
    return _named(params.datasets, task, "datasets")


def simulate_params(params: Params, task: str) -> Solver:
    """The solver section of one task; an unknown task is a sentence with the known ones."""
    return _named(params.simulate, task, "simulate")


def _named(section: dict, task: str, name: str):
    if task not in section:
        raise UpsDataError(f"params.yaml has no {name}.{task}{_suggest(task, section)}; known: {', '.join(section)}")
    return section[task]


def _override(tree: dict, text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UpsDataError(f"--set {text!r}: expected KEY=VALUE, e.g. datasets.burgers1d.train.steps=100")
    *path, last = key.split(".")
    node = tree
    for depth, part in enumerate(path):
        if not isinstance(node, dict) or part not in node:
            known = node if isinstance(node, dict) else {}
            raise UpsDataError(f"--set {'.'.join(path[: depth + 1])}: no such section{_suggest(part, known)}")
        node = node[part]
    if not isinstance(node, dict) or last not in node:
        known = node if isinstance(node, dict) else {}
        raise UpsDataError(f"--set {key}: no such knob{_suggest(last, known)}")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UpsDataError(f"--set {key}: {value!r} is not a YAML value") from None


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _sentence(path: str | Path, error: ValidationError, tree: dict) -> str:
    """The first problem, in the user's words: FILE: KEY: got .., expected .."""
    problems = error.errors()
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
        parent = tree
        for part in location[:-1]:
            parent = parent[part]
        return f"{path}: {key}: unknown key; take it out or correct its name{more}"
    if first["type"] == "missing":
        return f"{path}: {key}: missing; add it{more}"
    message = first["msg"].removeprefix("Value error, ")
    got = first["input"] if not isinstance(first["input"], dict) else "these values"
    return f"{path}: {key}: got {got!r}: {message[:1].lower()}{message[1:]}{more}"


def _has(node: object, part: str | int) -> bool:
    return part in node if isinstance(node, dict) else isinstance(part, int) and part < len(node)
