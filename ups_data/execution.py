"""Where work runs: this machine's cores, a CPU or a GPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ups_data.errors import UpsDataError

if TYPE_CHECKING:
    import torch


def cores() -> int:
    """Cores this process may use (a container or a batch job may grant fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(name: str = "auto") -> torch.device:
    """The torch device of that name; `auto` is $UPS_DEVICE if set, else CUDA when there, else the CPU."""
    import torch

    if name == "auto":
        name = os.environ.get("UPS_DEVICE", "") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UpsDataError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UpsDataError(f"device {name} was asked for, but this machine has no usable CUDA GPU; use cpu")
    return device
