"""Make the sample raw data of a task: a real solver writes the official file layout.

    python -m stages.simulate burgers1d --samples 16 --values 0.001 0.1 --out /tmp/burgers

The knobs are simulate.<task> of params.yaml. Files appear whole or not at all; a run that was stopped goes
on where it was. Files of other knobs that an earlier run wrote are removed, anybody else's are not touched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from stages.common import add_flags, repeated, run, stage_parser
from ups_data import console, files
from ups_data.params import Params, Solver, load_params, simulate_params

EXAMPLE = "python -m stages.simulate burgers1d --samples 16 --values 0.001 0.1 --out /tmp/burgers"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n")[0], EXAMPLE)
    parser.add_argument("task", help="a task of the section simulate of params.yaml, e.g. burgers1d")
    parser.add_argument("--samples", type=int, metavar="N", help="initial conditions (knob samples)")
    parser.add_argument("--values", type=float, nargs="+", metavar="V", help="parameter values, e.g. 0.001 0.1")
    parser.add_argument("--out", metavar="DIR", help="folder to write to (knob folder)")
    add_flags(parser, "device", device="auto, cpu, cuda or cuda:N")
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    overrides = list(args.set)
    if args.samples is not None:
        overrides.append(f"simulate.{args.task}.samples={args.samples}")
    if args.values is not None:
        # YAML reads 1.0e-05 as a number but 1e-05 as text.
        values = ", ".join(f"{value:.17e}" for value in args.values)
        overrides.append(f"simulate.{args.task}.values=[{values}]")
    params = load_params(args.params, overrides)
    knobs = simulate_params(params, args.task)
    folder = Path(args.out or knobs.folder)
    paths = _simulate(knobs, folder, args.device)
    size = sum(path.stat().st_size for path in paths)
    console.detail("\n".join(str(path) for path in paths))
    flags = repeated(params=args.params)
    following = " && ".join(f"python -m stages.convert {task}{flags}" for task in _readers(params, folder))
    return f"{folder}: {len(paths)} files, {files.amount(size)}" + (f"; next: {following}" if following else "")


def _readers(params: Params, folder: Path) -> list[str]:
    """The datasets whose raw files are looked for in the folder, or above it."""
    above = {task: Path(dataset.convert.root, dataset.convert.folder) for task, dataset in params.datasets.items()}
    return [task for task, top in above.items() if folder.resolve().is_relative_to(top.resolve())]


def _simulate(knobs: Solver, folder: Path, device: str) -> list[Path]:
    if knobs.solver in ("burgers", "advection"):
        from ups_data.simulate import lines

        return lines.write(knobs, folder, device)
    if knobs.solver == "navier_stokes":
        from ups_data.simulate import flow

        return flow.write(knobs, folder, device)
    from ups_data.simulate import sample_folder

    if knobs.solver == "darcy_mesh":
        from ups_data.simulate.darcy_mesh import write
    else:
        from ups_data.simulate.particles import write
    return sample_folder.write_whole(folder, knobs.model_dump(exclude={"folder"}), partial(write, knobs))


if __name__ == "__main__":
    sys.exit(main())
