"""Darcy flow on irregular triangle meshes: -div(k grad u) = f, u = 0 on the whole boundary, holes included.

P1 finite elements (scikit-fem) with permeability k and source f given at the nodes and linear in between: second
order in the edge length for smooth k. Half the samples have a smooth log-normal k, the others one of two values, as
PDEBench's; the source is 1 in most samples, a smooth random field in the rest.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import splu
from skfem import Basis, BilinearForm, ElementTriP1, MeshTri
from skfem.helpers import dot, grad

from ups_data import console
from ups_data.geometry import boundary_edges
from ups_data.params import DarcyMeshSolver
from ups_data.simulate.meshing import triangulate
from ups_data.sources.npz import write_npz
from ups_data.stores.mesh import Topology

TWO_VALUES = (0.1, 1.0)  # PDEBench's contrast
LOG_STD = 1.0  # of the smooth permeability: about 0.1 to 10
LENGTHS = (0.1, 0.3)  # correlation lengths of the random fields, domains being about 1 wide
WAVES = 128  # in a random field: enough to be Gaussian, cheap on a thousand nodes
VARIED_SOURCES = 0.25  # share of the samples whose source is random


def write(knobs: DarcyMeshSolver, folder: Path) -> list[Path]:
    """Write one shard a mesh, `darcy_{shape}_{i}.npz`, with `samples` solved problems each; return their paths."""
    jobs = [(shape, i) for shape in knobs.shapes for i in range(knobs.meshes_per_shape)]
    paths = []
    with console.progress("darcy meshes", len(jobs), "meshes") as bar:
        for shape, i in jobs:
            arrays = shard(shape, knobs.spacing, knobs.samples, (knobs.seed, i))
            paths.append(write_npz(Path(folder) / f"darcy_{shape}_{i}.npz", arrays))
            bar.advance()
    return paths


def shard(shape: str, spacing: float, samples: int, seed: tuple[int, int]) -> dict[str, np.ndarray]:
    """One mesh of that shape with `samples` problems on it; sample s is the same whatever their number.

    Returns the arrays of a mesh shard: the topology's, and float32 [S, N] fields.
    """
    stream = (*seed, zlib.crc32(shape.encode()))
    topology = Topology.of(*triangulate(shape, spacing, np.random.default_rng(stream)))
    draws = [_draw(topology.coords, s, np.random.default_rng((*stream, s + 1))) for s in range(samples)]
    # Rounded before they are solved for, so that the stored solution belongs to the stored coefficients.
    permeability, source = (np.array(field, dtype=np.float32) for field in zip(*draws, strict=True))
    solution = solve_darcy(topology.coords, topology.cells, permeability, source)
    fields = {"permeability": permeability, "source": source, "solution": solution.astype(np.float32)}
    return vars(topology) | fields


def solve_darcy(coords: np.ndarray, cells: np.ndarray, permeability: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Solve for every row of `permeability` and `source` [S, N], given at the nodes: float64 [S, N]."""
    mesh = MeshTri(np.ascontiguousarray(coords.T, dtype=np.float64), np.ascontiguousarray(cells.T, dtype=np.int64))
    basis = Basis(mesh, ElementTriP1())
    mass = BilinearForm(lambda u, v, _: u * v).assemble(basis)
    # k is linear on a triangle and the gradients are constant there: the element matrix for k is the one for k = 1
    # times k's mean over the three nodes, so scikit-fem assembles once and a sample only rescales.
    unit = BilinearForm(lambda u, v, _: dot(grad(u), grad(v))).coo_data(basis)
    inside = np.setdiff1d(np.arange(len(coords)), boundary_edges(cells))
    solution = np.zeros(permeability.shape)
    for u, k, f in zip(solution, permeability.astype(np.float64), source.astype(np.float64), strict=True):
        values = (unit.data.reshape(9, -1) * k[cells].mean(axis=1)).ravel()
        stiffness = csr_array((values, tuple(unit.indices)), shape=unit.shape)[inside][:, inside]
        u[inside] = splu(stiffness.tocsc(), permc_spec="MMD_AT_PLUS_A").solve((mass @ f)[inside])
    return solution


def _draw(coords: np.ndarray, sample: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Permeability and source of one sample at the nodes: [N] each."""
    field = random_field(coords, rng)
    permeability = np.where(field > 0, *TWO_VALUES[::-1]) if sample % 2 else np.exp(LOG_STD * field)
    source = 1.0 + random_field(coords, rng) if rng.random() < VARIED_SOURCES else np.ones(len(coords))
    return permeability, source


def random_field(coords: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth random function at the points [N, 2]: nearly Gaussian, mean 0, variance 1, correlation exp(-r^2/2l^2).

    A sum of random waves (Rahimi and Recht 2007), so it is defined everywhere and needs no mesh.
    """
    length = rng.uniform(*LENGTHS)
    waves = rng.normal(0.0, 1.0 / length, (2, WAVES))
    phases = rng.uniform(0.0, 2.0 * np.pi, WAVES)
    return np.sqrt(2.0 / WAVES) * np.cos(coords @ waves + phases).sum(axis=1)
