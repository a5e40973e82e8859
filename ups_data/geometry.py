"""Connectivity of meshes and particles: edges, the cotangent Laplacian, neighbour graphs.

Sparse things are CSR triples of plain arrays: `indptr` [N+1] and `indices` (and `data`), rows sorted.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree


def edges_of_cells(cells: np.ndarray) -> np.ndarray:
    """Every undirected edge of triangles `cells` [M, 3] once: int32 [E, 2], smaller node first, rows sorted."""
    pairs = np.sort(np.concatenate([cells[:, [0, 1]], cells[:, [1, 2]], cells[:, [2, 0]]]), axis=1)
    return np.unique(pairs, axis=0).astype(np.int32)


def boundary_edges(cells: np.ndarray) -> np.ndarray:
    """The edges that belong to one triangle alone: int32 [B, 2], smaller node first, rows sorted."""
    pairs = np.sort(np.concatenate([cells[:, [0, 1]], cells[:, [1, 2]], cells[:, [2, 0]]]), axis=1)
    edges, counts = np.unique(pairs, axis=0, return_counts=True)
    return edges[counts == 1].astype(np.int32)


def cell_areas(coords: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Area of every triangle, float64 [M]; in the plane negative where its nodes run clockwise."""
    corners = coords[cells].astype(np.float64)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    if coords.shape[1] == 2:
        return 0.5 * (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    return 0.5 * np.linalg.norm(np.cross(first, second), axis=1)


def cell_angles(coords: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The three inner angles of every triangle in radians, float64 [M, 3], in the order of its nodes."""
    corners = coords[cells].astype(np.float64)
    along = np.roll(corners, -1, axis=1) - corners
    back = np.roll(corners, 1, axis=1) - corners
    area2 = 2.0 * np.abs(cell_areas(coords, cells))[:, None]
    return np.arctan2(area2, np.einsum("mij,mij->mi", along, back))


def cotangent_laplacian(coords: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cotangent Laplacian of a triangle mesh as CSR: data float64, indices int32, indptr int32.

    It is the stiffness matrix of P1 finite elements: L_ij = -(cot a + cot b)/2 with a, b the angles opposite
    the edge ij, and rows that sum to 0 (Pinkall and Polthier 1993). Symmetric, positive semi-definite.
    `coords` [N, 2 or 3], `cells` [M, 3] without triangles of no area.
    """
    corners = coords[cells].astype(np.float64)
    along = np.roll(corners, -1, axis=1) - corners
    back = np.roll(corners, 1, axis=1) - corners
    area2 = 2.0 * np.abs(cell_areas(coords, cells))[:, None]
    cotangents = np.einsum("mij,mij->mi", along, back) / area2
    opposite = np.sort(np.stack([cells[:, [1, 2]], cells[:, [2, 0]], cells[:, [0, 1]]], axis=1), axis=2).reshape(-1, 2)
    nodes = len(coords)
    upper = sparse.coo_array(
        (-0.5 * cotangents.ravel(), (opposite[:, 0], opposite[:, 1])), shape=(nodes, nodes)
    ).tocsr()
    off_diagonal = upper + upper.T  # the same sums above and below: symmetric to the bit
    laplacian = (off_diagonal - sparse.diags_array(off_diagonal.sum(axis=1))).tocsr()
    laplacian.sort_indices()
    return laplacian.data, laplacian.indices.astype(np.int32), laplacian.indptr.astype(np.int32)


def neighbour_graph(
    positions: np.ndarray, radius: float, box: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of distinct particles at most `radius` apart, both ways, as CSR: indptr int32 [P+1], indices int32.

    `positions` [P, D]; `box` [D] holds the period of every axis, 0 where it is not periodic (None: no axis is),
    and distances are those to the nearest image, which wants radius <= half a period.
    """
    points = np.array(positions, dtype=np.float64)
    if box is not None:
        period = np.asarray(box, dtype=np.float64)
        wraps = period > 0
        points[:, wraps] %= period[wraps]
        points[:, wraps] = np.where(points[:, wraps] >= period[wraps], 0.0, points[:, wraps])
        box = period
    pairs = cKDTree(points, boxsize=box).query_pairs(radius, output_type="ndarray")
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    indptr = np.zeros(len(points) + 1, dtype=np.int32)
    np.cumsum(np.bincount(both[:, 0], minlength=len(points)), out=indptr[1:])
    return indptr, both[:, 1].astype(np.int32)


def edges_of_graph(indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The entries of a CSR graph as pairs (row, column) in their order: int32 [E, 2]."""
    rows = np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))
    return np.stack([rows, indices.astype(np.int32)], axis=1)


def boundary_distance(coords: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Distance of every node to the nearest boundary edge, float64 [N]: 0 on the boundary.

    A closed surface has no boundary: every node is then as far away as the mesh is wide.
    """
    nodes = coords.astype(np.float64)
    edges = boundary_edges(cells)
    if not len(edges):
        return np.full(len(nodes), np.ptp(nodes, axis=0).max())
    start, along = nodes[edges[:, 0]], nodes[edges[:, 1]] - nodes[edges[:, 0]]
    length2 = np.einsum("ed,ed->e", along, along)
    distance = np.empty(len(nodes))
    for first in range(0, len(nodes), 1024):  # a block of nodes against all edges: bounded memory
        apart = nodes[first : first + 1024, None] - start
        share = np.clip(np.einsum("ned,ed->ne", apart, along) / length2, 0.0, 1.0)
        distance[first : first + 1024] = np.linalg.norm(apart - share[..., None] * along, axis=2).min(axis=1)
    distance[np.unique(edges)] = 0.0
    return distance
