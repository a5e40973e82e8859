"""Convert raw simulations into split, described training data.

A task of params.yaml becomes data/pdebench/<task>_{train,val,test}.h5 (grids) or .zarr (meshes, particles) and
<task>_manifest.json; with --pattern and no task, any grid files become one file.

    python -m stages.convert burgers1d
    python -m stages.convert burgers1d --root data/raw --out data/pdebench --limit 5 --samples 200
    python -m stages.convert --pattern 'data/raw/1D/Burgers/Train/*.hdf5' --out data/pdebench/mydata_train.h5
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import FLAGS, count, repeated, run, stage_parser
from ups_data.errors import UpsDataError
from ups_data.params import SPLITS, dataset_params, load_params


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and convert; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.convert burgers1d --samples 64 --out /tmp/few")
    parser.add_argument("task", nargs="?", help="a dataset of params.yaml; leave it out to convert --pattern as it is")
    parser.add_argument("--root", metavar="DIR", help="folder of the raw files (knob convert.root)")
    parser.add_argument("--pattern", metavar="GLOB", help="which files of the folder (knob convert.pattern)")
    parser.add_argument("--out", default=FLAGS["data"][0], metavar="PATH", help="folder, or file <name>_<split>.h5")
    parser.add_argument("--limit", type=count, metavar="N", help="take at most N files")
    parser.add_argument("--samples", type=count, metavar="N", help="take at most N samples of each file")
    parser.add_argument("--workers", type=count, metavar="N", help="processes (all cores); the bytes do not change")
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="a Dask cluster to convert on, e.g. tcp://host:8786 ($DASK_SCHEDULER_ADDRESS); see docs/clusters.md",
    )
    return run(convert, parser, argv)


def convert(args: argparse.Namespace) -> str:
    """Convert what the command line asks for; returns the last line to print."""
    if not args.out:
        raise UpsDataError("--out is empty; name a folder, or a file <name>_<split>.h5")
    return _task(args) if args.task else _pattern(args)


def _task(args: argparse.Namespace) -> str:
    knobs = dataset_params(load_params(args.params, args.set), args.task)
    given = {name: getattr(args, name) for name in ("root", "pattern", "limit", "samples")}
    source = knobs.convert.model_copy(update={name: value for name, value in given.items() if value is not None})
    if knobs.kind == "grid":
        from ups_data.conversion.grid import convert_grid

        manifest = convert_grid(
            args.task, source, knobs.splits, args.out, workers=args.workers, scheduler=args.scheduler
        )
    else:
        from ups_data.conversion.points import convert_points

        manifest = convert_points(
            args.task, knobs.kind, source, knobs.splits, args.out, workers=args.workers, scheduler=args.scheduler
        )
    counts = ", ".join(f"{split} {facts['samples']}" for split, facts in manifest["splits"].items())
    flags = repeated(params=args.params, data=args.out)
    following = "autoencoder" if _learnable(manifest) else "package"
    return f"{args.task}: {counts} samples in {args.out}; next: python -m stages.{following} {args.task}{flags}"


def _learnable(manifest: dict) -> bool:
    """Whether there are models for such data: not for meshes in time, solutions without inputs, uneven times."""
    if roles := manifest.get("roles"):
        return manifest["frames"] == 1 and all(roles.values())
    return manifest["time_step"] is not None


def _pattern(args: argparse.Namespace) -> str:
    if not args.pattern:
        raise UpsDataError("name a task of params.yaml, or give --pattern and --out FILE.h5; see --help")
    target = Path(args.out)
    if target.suffix != ".h5":
        raise UpsDataError(f"--out {args.out}: expected a file <name>_<split>.h5, e.g. data/pdebench/mydata_train.h5")
    task, _, split = target.stem.rpartition("_")
    if split not in SPLITS or not task:
        task, split = target.stem, "train"
    if args.set:
        raise UpsDataError("--set changes knobs of a task; with --pattern alone there are none: leave it out")
    from ups_data import files
    from ups_data.conversion.files import find_files
    from ups_data.conversion.grid import convert_file

    paths = find_files(Path(args.root or ""), args.pattern, args.limit)
    files.check_file(target, paths)
    manifest = convert_file(task, split, paths, args.samples, target, workers=args.workers, scheduler=args.scheduler)
    made = f"{manifest['splits'][split]['samples']} samples of {len(paths)} files, all in one split"
    return f"{target}: {made}; next: python -m stages.inspect {shlex.quote(str(target))}"


if __name__ == "__main__":
    sys.exit(main())
