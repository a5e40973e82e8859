"""How fast Burgers trajectories are made: solving alone, and solving and writing the official file layout.

    python -m bench.simulate_burgers --samples 10000 --device cuda

Prints one line of JSON. Needs torch, numpy and h5py only.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from ups_data.execution import cores, pick_device
from ups_data.simulate import lines, workers


def main(argv: list[str] | None = None) -> int:
    """Solve every trajectory twice: once dropping the frames, once writing them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000, help="trajectories (10000, an official file)")
    parser.add_argument("--nu", type=float, default=0.001, help="Nu; the viscosity is Nu/pi (0.001)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", default=None, metavar="DIR", help="where the file is written, then deleted")
    args = parser.parse_args(argv)
    line = lines.Line("burgers", args.nu, 0, args.samples, 1024, 201, "float32")
    device = pick_device(args.device)
    with tempfile.TemporaryDirectory(dir=args.out) as folder, lines.pool(line, str(device)) as team:
        _solve(line._replace(samples=2, frames=2), team, str(device))  # start workers, device and libraries
        solving = _solve(line, team, str(device))
        path = Path(folder) / lines.file_name("burgers", args.nu)
        started = time.perf_counter()
        lines.write_file(path, line, team, str(device))
        writing = time.perf_counter() - started
        size = path.stat().st_size
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {cores()} cores",
        "samples": args.samples,
        "Nu": args.nu,
        "solve_seconds": round(solving, 2),
        "solve_and_write_seconds": round(writing, 2),
        "trajectories_per_second": round(args.samples / writing, 1),
        "file_gigabytes": round(size / 1e9, 3),
        "peak_host_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }
    print(json.dumps(result))
    return 0


def _solve(line: lines.Line, team: workers.Workers, device: str) -> float:
    """Seconds to solve all rows, frames dropped."""
    started = time.perf_counter()
    for frames in lines.solve(line, team, device):
        del frames
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
