"""Mesh files in a conversion: how one is looked at, what a store has room for, how samples are copied into it.

`look` and `copy` run in worker processes, here or on another machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ups_data.conversion.looks import Look, Opener, Piece, Row, Scan, rows_to_look_at, shared
from ups_data.statistics import Moments
from ups_data.stores import mesh
from ups_data.stores.mesh import FORMAT as FORMAT
from ups_data.stores.packed import Run, filling


def look(open_shard: Opener, path: Path, start: int, limit: int | None) -> Look:
    """Name the initial conditions of some samples of a mesh file, and say what the file holds."""
    with open_shard(path) as shard:
        chosen = rows_to_look_at(shard, start, limit)
        groups, residuals = shard.groups(chosen), shard.residuals(chosen) or [None] * len(chosen)
        common = shared(shard)
        size = 4 * len(shard.times) * len(shard.coords) * len(shard.channels)
        rows = [
            Row(mesh.Sample(**common, group=group, source_row=row, topology=0), size, residual=residual)
            for row, group, residual in zip(chosen, groups, residuals, strict=True)
        ]
        facts = {
            "dimensions": shard.coords.shape[1],
            "channels": shard.channels,
            "roles": shard.roles,
            "grouped_by": shard.grouped_by,
        }
        topology = ("", {}) if start else (_digest(shard.topology), shard.topology.sizes)
        return Look.of(shard, rows, facts, topology=topology)


def _digest(topology: mesh.Topology) -> str:
    """Of nodes and cells: edges and Laplacian follow from them."""
    digest = hashlib.sha256(repr((topology.coords.shape, topology.cells.shape)).encode())
    digest.update(np.ascontiguousarray(topology.coords))
    digest.update(np.ascontiguousarray(topology.cells))
    return digest.hexdigest()


def channels(scan: Scan) -> dict[str, list[str]]:
    """The channels whose moments are taken together, by the array they stand in."""
    return {"fields": scan.facts["channels"]}


def create(scan: Scan, chosen: Sequence[int], path: Path) -> None:
    """Make the store of the chosen samples, with room for them and the topologies they use."""
    samples, used, shape = _described(scan, chosen)
    mesh.create_mesh(path, [scan.topologies[k][0] for k in used], samples, **shape)


def places(
    scan: Scan, chosen: Sequence[int], path: Path
) -> tuple[list[Mapping[str, Run]], list[tuple[int, Mapping[str, Run]]]]:
    """Where every chosen sample goes; and which file has a topology that goes where."""
    samples, used, shape = _described(scan, chosen)
    topologies, fields = mesh.places(path, [scan.topologies[k][0] for k in used], samples, **shape)
    return fields, [(scan.topologies[k][1], runs) for k, runs in zip(used, topologies, strict=True)]


def _described(scan: Scan, chosen: Sequence[int]) -> tuple[list[mesh.Sample], list[int], dict[str, int]]:
    """The samples with topologies as their store counts them, which these are, dimension and number of channels."""
    samples = [scan.samples[i] for i in chosen]
    used = sorted({s.topology for s in samples})
    place = {topology: at for at, topology in enumerate(used)}
    shape = {"dimension": scan.facts["dimensions"], "channels": len(scan.facts["channels"])}
    return [replace(s, topology=place[s.topology]) for s in samples], used, shape


def copy(
    open_shard: Opener, path: Path, pieces: Sequence[Piece], topologies: Sequence[Mapping[str, Run]]
) -> dict[str, object]:
    """Copy samples, ascending, and the topology of a file.

    Returns `moments` of every block, split -> array -> list, and the greatest `loss` of rounding.
    """
    found: dict[str, dict[str, list]] = {}
    with open_shard(path) as shard:
        for runs in topologies:
            with filling(runs) as append:
                for name in runs:
                    append(name, getattr(shard.topology, name))
        blocks = shard.blocks([piece.row for piece in pieces], shard.channels, len(shard.times))
        for piece in pieces:
            moments = found.setdefault(piece.split, {"fields": []})["fields"]
            with filling(piece.runs) as append:
                frames = 0
                while frames < len(shard.times):
                    block = next(blocks)
                    append("fields", block)
                    moments.append(Moments.of(block).to_list())
                    frames += len(block)
        return {"moments": found, "loss": shard.loss}
