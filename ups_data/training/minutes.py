"""How long a training took, in reports/<task>/minutes.json beside its learning curve.

A measurement: other than everything else that a stage writes it differs from run to run. It is therefore no output
that DVC tracks, and nothing that DVC tracks is made from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ups_data import files
from ups_data.training import ranks


@contextmanager
def minutes(folder: Path, checkpoint: str, device: torch.device, state: Path) -> Iterator[None]:
    """Note the time the enclosed training of `checkpoint` takes, where it ends well.

    minutes.json has an entry a checkpoint: seconds, device (name, and how many where they are several), and whether
    it may have been `resumed` from what stands in the folder `state`: then it took longer than it says.
    """
    resumed, path = (state / "state.safetensors").is_file(), folder / "minutes.json"
    known = files.read_json(path) if path.is_file() else {}  # before the training, not after it: it may be broken
    started = time.monotonic()
    yield
    if ranks.rank():
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    several = f"{ranks.world()} x " if ranks.world() > 1 else ""
    entry = {"seconds": round(time.monotonic() - started, 1), "device": several + name, "resumed": resumed}
    files.write_json(path, known | {checkpoint: entry})
