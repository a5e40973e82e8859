"""Particle files in a conversion: how one is looked at, what a store has room for, how samples are copied into it.

`look` and `copy` run in worker processes, here or on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ups_data.conversion.looks import Look, Opener, Piece, Row, Scan, rows_to_look_at, shared
from ups_data.statistics import Moments
from ups_data.stores import particles
from ups_data.stores.packed import Run, filling
from ups_data.stores.particles import FORMAT as FORMAT

AXES = "xyz"


def look(open_shard: Opener, path: Path, start: int, limit: int | None) -> Look:
    """Name the initial conditions of some trajectories of a file, and say what the file holds."""
    with open_shard(path) as shard:
        rows, common = [], shared(shard)
        for row in rows_to_look_at(shard, start, limit):
            found = shard.trajectory(row)
            sample = particles.Sample(
                **common,
                group=found.group,
                source_row=row,
                particles=found.particles,
                radius=found.radius,
                box=shard.box,
            )
            size = 8 * len(shard.times) * found.particles * shard.dimension
            rows.append(Row(sample, size, entries=len(found.indices)))
        names = [f"{what}_{axis}" for what in ("position", "velocity") for axis in AXES[: shard.dimension]]
        return Look.of(shard, rows, {"channels": names, "box": shard.box.tolist()})


def channels(scan: Scan) -> dict[str, list[str]]:
    """The channels whose moments are taken together, by the array they stand in."""
    names = scan.facts["channels"]
    return {"positions": names[: len(names) // 2], "velocities": names[len(names) // 2 :]}


def create(scan: Scan, chosen: Sequence[int], path: Path) -> None:
    """Make the store of the chosen samples, with room for them."""
    particles.create_particles(path, [scan.samples[i] for i in chosen], [scan.entries[i] for i in chosen])


def places(
    scan: Scan, chosen: Sequence[int], path: Path
) -> tuple[list[Mapping[str, Run]], list[tuple[int, Mapping[str, Run]]]]:
    """Where every chosen sample goes; particles have no topologies."""
    return particles.places(path, [scan.samples[i] for i in chosen], [scan.entries[i] for i in chosen]), []


def copy(
    open_shard: Opener, path: Path, pieces: Sequence[Piece], topologies: Sequence[Mapping[str, Run]]
) -> dict[str, object]:
    """Copy trajectories of a file with their graphs.

    Returns `moments` of every block, split -> array -> list, and the greatest `loss` of rounding.
    """
    found: dict[str, dict[str, list]] = {}
    with open_shard(path) as shard:
        for piece in pieces:
            moments = found.setdefault(piece.split, {"positions": [], "velocities": []})
            trajectory = shard.trajectory(piece.row)
            with filling(piece.runs) as append:
                append("graph_indptr", trajectory.indptr)
                append("graph_indices", trajectory.indices)
                for name, parts in moments.items():
                    for block in trajectory.blocks(name):
                        append(name, block)
                        parts.append(Moments.of(block).to_list())
        return {"moments": found, "loss": shard.loss}
