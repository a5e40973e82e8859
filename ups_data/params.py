"""The schema of params.yaml: every knob, its type and its bounds.

A wrong key or value is one sentence with the key, what it got and what it wants. A knob that shapes an output
stands in params.yaml, so that DVC sees it change; three of `convert` may be left out: equations, shard_gb, tracers.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from ups_data import knobs
from ups_data.errors import UpsDataError

Positive = Annotated[int, Field(ge=1, le=10**9)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
WHICH = "Share of the training windows that begin at the first frame; the others begin at any (meshes have one frame)"
Initial = Annotated[Fraction, Field(description=WHICH)]


def _different(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("the same number twice")
    return values


OneOrMore = Annotated[
    list[Positive],
    Field(min_length=1),
    AfterValidator(_different),
    BeforeValidator(lambda value: [value] if isinstance(value, int) else value),
]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Knobs(BaseModel):
    """A section of params.yaml: unknown keys and silent type conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


# --- the sample raw data -------------------------------------------------------------------------


class RawData(Knobs):
    """What every solver is told, whatever it solves."""

    folder: str = Field(description="Where the raw files go")
    seed: Count = Field(
        description="Seed of what is drawn at random: states, forces, flows, meshes, coefficients, starting points"
    )


class LineSolver(RawData):
    """Burgers or advection on a periodic line; every parameter value starts from the same `samples` states."""

    solver: Literal["burgers", "advection"] = Field(description="Which equation is solved")
    seed: Count = Field(
        description="Seed of the initial conditions; tasks with one seed start from the same states, as PDEBench's do"
    )
    samples: Positive = Field(description="Initial conditions, the same under every value")
    values: list[PositiveFloat] = Field(
        min_length=1, description="Nu of Burgers (the viscosity is Nu/pi), beta of advection (the speed); a file each"
    )
    resolution: Annotated[int, Field(ge=16)] = Field(description="Points of the line")
    frames: Annotated[int, Field(ge=2)] = Field(description="Stored frames, 0.01 apart in time")
    dtype: Literal["float32", "float64"] = Field(description="Of the solver and of its files")


class FlowSolver(RawData):
    """Incompressible Navier-Stokes on a periodic square; `files` files of four trajectories each."""

    solver: Literal["navier_stokes"] = Field(description="Which equation is solved")
    files: Positive = Field(description="Files of four trajectories each")
    resolution: Annotated[int, Field(ge=16)] = Field(description="Points a side of the square")
    frames: Annotated[int, Field(ge=2)] = Field(description="Stored frames")
    viscosity: PositiveFloat = Field(description="Kinematic viscosity")
    end_time: PositiveFloat = Field(description="Time of the last frame")
    dtype: Literal["float32", "float64"] = Field(description="Of the solver and of its files")


class DarcyMeshSolver(RawData):
    """Darcy flow by P1 finite elements on irregular triangle meshes; one shard a mesh, `samples` fields each."""

    solver: Literal["darcy_mesh"] = Field(description="Which equation is solved")
    shapes: list[Literal["square", "disk", "l_shape", "annulus", "channel"]] = Field(
        min_length=1, description="Domains that are meshed"
    )
    meshes_per_shape: Positive = Field(description="Irregular meshes of each domain; a file each")
    samples: Positive = Field(description="Coefficient fields on each mesh")
    spacing: Annotated[float, Field(gt=0.005, lt=0.5)] = Field(
        description="Target length of an edge, the domain being about 1 wide"
    )


class ParticleSolver(RawData):
    """Tracers carried by an incompressible flow of drifting Rossby waves; one shard a trajectory."""

    solver: Literal["particles"] = Field(description="Which equation is solved")
    samples: Positive = Field(description="Trajectories; a file each")
    particles: Annotated[int, Field(ge=8)] = Field(description="Tracers of a trajectory")
    frames: Annotated[int, Field(ge=2)] = Field(description="Stored frames")
    end_time: PositiveFloat = Field(description="Time of the last frame")
    radius: Annotated[float, Field(gt=0, lt=0.5)] = Field(description="Of the neighbour graph, in units of the box")


Solver = Annotated[LineSolver | FlowSolver | DarcyMeshSolver | ParticleSolver, Field(discriminator="solver")]


# --- the datasets --------------------------------------------------------------------------------


class Tracers(Knobs):
    """Particles made from the stored frames of a flow: how many a trajectory, their neighbourhood, their seed."""

    particles: Annotated[int, Field(ge=8)] = Field(description="Tracers of a trajectory")
    radius: PositiveFloat = Field(description="Of the neighbour graph, in the flow's unit of length")
    seed: Count = Field(description="Seed of the starting points")


class Convert(Knobs):
    """Where the raw files are, how they are read and how much of them to take."""

    source: Literal["pdebench", "the_well", "npz"] = Field(description="Whose layout the raw files have")
    root: str = Field(
        description="Folder above the raw files: data/raw for the sample, data/raw/pdebench for official files"
    )
    folder: str = Field(description="Folder of the files under the root")
    pattern: str = Field(description="Which files of the folder, a glob")
    limit: Positive | None = Field(description="At most this many files; null: all")
    samples: Positive | None = Field(description="At most this many samples of each file; null: all")
    float64: Literal["round", "refuse"] = Field(
        description="Files of float64 numbers: round them to float32 and report the loss, or refuse them"
    )
    equations: Literal["one", "several"] = Field(
        default="one",
        description="Of grids: the files of a dataset have the same parameters, or they are of several equations: a "
        "sample is then NaN in the parameters that its equation does not have",
    )
    shard_gb: PositiveFloat | None = Field(
        default=None,
        description="Of grids: a split of more GB becomes a folder of files of at most so many; null: always one file",
    )
    tracers: Tracers | None = Field(
        default=None,
        description="Particles from a flow on a grid (kind particles, source pdebench), and for nothing else",
    )


OPTIONAL = frozenset(name for name, knob in Convert.model_fields.items() if not knob.is_required())


class Splits(Knobs):
    """Shares of the initial conditions; they add up to 1."""

    protocol: Literal["grouped", "hashed", "pdebench"] = Field(
        description="grouped: by initial condition, so that nothing leaks, in exact shares; hashed: likewise, each by "
        "its hash alone, so that tasks agree which share only some, in shares that are met on average; pdebench: the "
        "official loaders' rows"
    )
    seed: Count = Field(
        description="Decides which initial condition falls where; tasks that share theirs share the split"
    )
    train: Fraction = Field(description="Share of the initial conditions")
    val: Fraction = Field(description="Share of the initial conditions")
    test: Fraction = Field(description="Share of the initial conditions")

    @model_validator(mode="after")
    def _add_up(self) -> Splits:
        total = self.train + self.val + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"train + val + test must be 1, got {total:g}")
        return self


class View(Knobs):
    """What the models see of the data: every n-th point and every n-th frame (PDEBench: 4 and 5 in 1D)."""

    space_stride: Positive = Field(description="Every n-th point; 1 is the full resolution")
    time_stride: Positive = Field(description="Every n-th frame; 1 is all of them")


class Optimiser(Knobs):
    """How long and how fast a model trains."""

    steps: Positive = Field(description="Optimiser steps")
    batch: Positive = Field(
        description="Items of a step: frames of the autoencoder, starting points of operator and baseline"
    )
    learning_rate: PositiveFloat = Field(description="Peak learning rate, after the warm-up and before the cosine")
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = Field(description="Seed of the weights and of the batches")


class Autoencoder(Optimiser):
    """Fields to `latent_len` tokens of `latent_dim` numbers and back."""

    latent_len: Positive = Field(description="Tokens of a frame; a square number in 2D and on meshes")
    latent_dim: Positive = Field(description="Numbers of a token")
    width: Positive = Field(description="Channels of the networks")
    depth: Positive = Field(description="Blocks of the decoder's network")
    encoder_depth: Count = Field(description="Blocks of the encoder's network; 0: one linear convolution")


class Latents(Knobs):
    """The cache: number format, frames encoded at once, bytes a shard."""

    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        description="Number format of the cache; float32 doubles it"
    )
    batch: Positive = Field(description="Frames encoded at once, on a CPU by each core (there 8 MB at most)")
    shard_mb: Positive = Field(description="Megabytes of a shard at most")


class Train(Optimiser):
    """The latent operator: its size, the frames it sees and predicts a call, the calls it is unrolled for.

    `strides`: the time steps it learns, in frames of the view; they take turns in training.
    """

    width: Positive = Field(description="Numbers of a token inside the operator")
    depth: Positive = Field(description="Transformer blocks")
    heads: Positive = Field(description="Attention heads; they divide the width")
    history: Positive = Field(description="Frames the operator sees")
    bundle: Positive = Field(description="Frames it predicts in a call")
    unroll: list[Positive] = Field(
        min_length=1, description="Calls a training step is unrolled for, in stages of equal length"
    )
    strides: list[Positive] = Field(
        min_length=1, description="Time steps it learns, in frames of the view; they take turns in training"
    )
    optimiser: Literal["adamw", "muon"] = Field(
        description="Of the matrices in the blocks: AdamW, or Muon, which makes the singular values of an update equal"
    )
    weight_decay: NotNegative = Field(
        description="Of the same matrices: a step takes this times the learning rate of them away"
    )
    initial: Initial
    noise: NotNegative = Field(
        description="Spread of the noise on the frames given in training, in spreads of a latent; 0: none"
    )
    augment: list[Literal["shift", "reflection"]] = Field(
        description="Symmetries that make new trajectories: shift, along periodic axes; reflection, u(x) -> -u(-x)"
    )


class Baseline(Optimiser):
    """A plain network in physical space; `bundle` frames a call on grids, `unroll` calls in training."""

    width: Positive = Field(description="Channels of the network")
    depth: Positive = Field(description="Blocks of the network")
    bundle: Positive = Field(description="Frames it predicts in a call, on grids")
    unroll: Positive = Field(description="Calls a training step is unrolled for")
    initial: Initial


class Evaluate(Knobs):
    """The protocols, and how many trajectories are drawn.

    The first number of `given` and of `points` make metrics.json, all of them the leaderboard.
    """

    given: OneOrMore = Field(description="Frames given before the rollout starts, one number or several; PDEBench: 10")
    stride: Positive = Field(description="Frames of the view from one frame of the rollout to the next (grids)")
    points: OneOrMore = Field(description="Errors are taken at every n-th point of the view (grids), likewise")
    pictures: Positive = Field(description="Trajectories that are drawn")


class Package(Knobs):
    """The published dataset: `<task>_<flavour>_v<N>` and how it is packed."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+_v[0-9]+$")] = Field(
        description="Name of the published dataset, <task>_<flavour>_v<N>"
    )
    codec: Literal["pcodec", "gzip"] = Field(
        description="How it is packed: as numbers (pcodec), or as a .tar.gz that any tar reads"
    )
    suffix: Literal["upk", "tar.gz"] = Field(description="Of the archive's name: what the codec writes")
    description: str = Field(description="One line of what it is")

    @model_validator(mode="after")
    def _suit(self) -> Package:
        if self.suffix != (wanted := {"pcodec": "upk", "gzip": "tar.gz"}[self.codec]):
            raise ValueError(f"the codec {self.codec} writes the suffix {wanted}, got {self.suffix}")
        return self


class Dataset(Knobs):
    """One dataset: a section a stage."""

    kind: Literal["grid", "mesh", "particles"] = Field(description="What a sample lives on")
    store: Literal["h5", "zarr"] = Field(
        description="Suffix of the converted splits: h5 for grids, zarr for the others"
    )
    convert: Convert = Field(description="Raw files in, splits out")
    splits: Splits = Field(description="Who goes where")
    view: View = Field(description="What the models see")
    autoencoder: Autoencoder = Field(description="Stage autoencoder")
    latents: Latents = Field(description="Stage latents")
    train: Train = Field(description="Stage train")
    baseline: Baseline = Field(description="Stage baseline")
    evaluate: Evaluate = Field(description="Stage evaluate")
    package: Package = Field(description="Stage package")

    @model_validator(mode="after")
    def _readable(self) -> Dataset:
        known = {"grid": ("pdebench", "the_well")}.get(self.kind, ("pdebench", "npz"))
        if self.convert.source not in known:
            raise ValueError(f"convert.source of the kind {self.kind} is one of {', '.join(known)}")
        if self.convert.equations == "several" and self.kind != "grid":
            raise ValueError(f"convert.equations of the kind {self.kind} is one: several are for the kind grid")
        if (self.convert.tracers is None) == (self.kind == "particles" and self.convert.source == "pdebench"):
            raise ValueError("convert.tracers goes with the kind particles and the source pdebench, and with no other")
        return self

    @model_validator(mode="after")
    def _measurable(self) -> Dataset:
        of_grids = {
            "evaluate.stride": (self.evaluate.stride, 1),
            "evaluate.points": (self.evaluate.points, [1]),
            "view.space_stride": (self.view.space_stride, 1),
        }
        for name, (value, expected) in of_grids.items():
            if self.kind != "grid" and value != expected:
                raise ValueError(f"{name} of the kind {self.kind} is {expected}, got {value}: it is of grids")
        return self

    @model_validator(mode="after")
    def _stored(self) -> Dataset:
        if self.store != (wanted := "h5" if self.kind == "grid" else "zarr"):
            raise ValueError(f"store of the kind {self.kind} is {wanted}, got {self.store}")
        return self


class Sync(Knobs):
    """The Weights & Biases mirror: where it is, what goes there beside the datasets, how long to try."""

    entity: str | None = Field(description="Whose project; null: the default of the key. WANDB_ENTITY comes before it")
    project: Annotated[str, Field(min_length=1)] = Field(
        description="Where datasets and runs go. WANDB_PROJECT comes before it"
    )
    registry: str | None = Field(
        description="Link the datasets into collections of this W&B Registry, e.g. dataset; null: nowhere"
    )
    models: bool = Field(description="Mirror the task's trained models too")
    retries: Positive = Field(description="Of one upload")
    minutes: Positive = Field(description="For all uploads of one artifact")


class Params(Knobs):
    """The whole of params.yaml."""

    simulate: dict[str, Solver]
    datasets: dict[str, Dataset]
    sync: Sync
    _file: str = PrivateAttr("params.yaml")  # that it was read from

    @field_validator("simulate", "datasets", mode="before")
    @classmethod
    def _name_files(cls, section: object) -> object:
        # No pattern of the keys: pydantic would not say in words what is expected of them.
        for name in section if isinstance(section, dict) else ():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"got the name {name!r}, expected text of letters, digits, _ and -: it names files")
        return section

    @field_validator("simulate")
    @classmethod
    def _write_apart(cls, simulate: dict[str, Solver]) -> dict[str, Solver]:
        _differ("folder", {task: os.path.normpath(solver.folder) for task, solver in simulate.items()})
        return simulate

    @field_validator("datasets")
    @classmethod
    def _stand_apart(cls, datasets: dict[str, Dataset]) -> dict[str, Dataset]:
        _differ("package.name", {task: dataset.package.name for task, dataset in datasets.items()})
        return datasets


def _differ(knob: str, values: Mapping[str, str]) -> None:
    owners: dict[str, str] = {}
    for task, value in values.items():
        if (owner := owners.setdefault(value, task)) != task:
            raise ValueError(f"{owner} and {task} have the same {knob}, {value}; give one of them another")


# --- reading -------------------------------------------------------------------------------------


def load_params(path: str | Path = "params.yaml", overrides: Sequence[str] = ()) -> Params:
    """Read and check params.yaml; `overrides` are KEY=VALUE with dotted keys and YAML values.

    Raises UpsDataError naming the key, what it got and what it wants.
    """
    tree = knobs.read_tree(path, overrides, OPTIONAL)
    try:
        params = Params.model_validate(tree)
    except ValidationError as error:
        raise UpsDataError(knobs.sentence(path, error.errors(), tree, OPTIONAL)) from None
    params._file = str(path)
    return params


def dataset_params(params: Params, task: str) -> Dataset:
    """The section of one task; an unknown task is a sentence with the known ones."""
    return _named(params, "datasets", task)


def simulate_params(params: Params, task: str) -> Solver:
    """The solver section of one task; an unknown task is a sentence with the known ones."""
    return _named(params, "simulate", task)


def _named(params: Params, name: str, task: str):
    section = getattr(params, name)
    if task not in section:
        raise UpsDataError(
            f"{params._file} has no {name}.{task}{knobs.suggest(task, section)}; known: {', '.join(section)}"
        )
    return section[task]
