"""Roll out the samples of a raw file with the trained models of a task, into an HDF5 file.

The file may be in any layout that `stages.convert` reads: a grid in PDEBench's or The Well's HDF5, an .npz shard of a
mesh or of particles. It needs the given frames alone (a mesh of a static problem: its inputs); where it has what is
predicted, the error is told. The layout of what is written stands in ups_data/evaluation/predict.py.

    python -m stages.predict data/raw/1D/Burgers/Train/1D_Burgers_Sols_Nu0.01.hdf5 --task burgers1d --out r.h5
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import add_flags, count, run, stage_parser
from ups_data.errors import UpsDataError
from ups_data.params import dataset_params, load_params


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and predict; returns the exit status."""
    example = (
        "python -m stages.predict data/raw/1D/Burgers/Train/1D_Burgers_Sols_Nu0.01.hdf5 --task burgers1d --out r.h5"
    )
    parser = stage_parser(__doc__.split("\n\n", 1)[0], example)
    add = parser.add_argument
    add("file", type=Path, help="a raw file")
    add("--task", required=True, help="the dataset of params.yaml whose models are used")
    add("--out", type=Path, required=True, metavar="FILE", help="the HDF5 file to write; one that is there is replaced")
    add("--steps", type=count, metavar="N", help="frames to predict (those the file has after the given ones)")
    add("--given", type=count, metavar="K", help="frames known before the rollout (knob evaluate.given, the first)")
    add("--samples", type=count, metavar="N", help="at most this many samples of the file (all)")
    add_flags(parser, "models", "device")
    return run(roll_out, parser, argv)


def roll_out(args: argparse.Namespace) -> str:
    """Write the rollout; returns the last line to print."""
    knobs = dataset_params(load_params(args.params, args.set), args.task)
    from ups_data.evaluation.predict import load_request, predict
    from ups_data.execution import pick_device

    request = load_request(
        args.task,
        Path(args.models),
        pick_device(args.device),
        given=args.given or knobs.evaluate.given[0],
        stride=knobs.evaluate.stride,
        steps=args.steps,
        samples=args.samples,
        strides=knobs.train.strides,
    )
    if request.operator.static and (args.given or args.steps):
        flag = f"--given {args.given}" if args.given else f"--steps {args.steps}"
        raise UpsDataError(f"{flag}: {args.task} is a static problem, without frames in time; leave the flag out")
    made = predict(args.file, args.out, request)
    truth = "" if made["nrmse"] is None else f", nRMSE {made['nrmse']:.3g} where the file has the truth"
    return (
        f"{args.out}: {made['samples']} samples x {made['steps']} frames of {args.file.name}{truth}; "
        "its layout: python -m pydoc ups_data.evaluation.predict"
    )


if __name__ == "__main__":
    sys.exit(main())
