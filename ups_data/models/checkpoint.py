"""Weights on disk: safetensors with the model's configuration in the header; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ups_data.errors import UpsDataError
from ups_data.files import atomic


def save_model(path: str | Path, weights: dict[str, torch.Tensor], config: dict) -> None:
    """Write weights and configuration atomically; equal weights give equal bytes."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    header = {"config": json.dumps(config, sort_keys=True)}
    with atomic(path) as temporary:
        temporary.write_bytes(save(tensors, header))


def load_model(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Read weights (on the CPU) and configuration back.

    Raises UpsDataError when the file is missing, truncated or was not written by `save_model`.
    """
    if not Path(path).is_file():
        raise UpsDataError(f"{path} is missing; train it with `dvc repro` or fetch it with `dvc pull {path}`")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            return {name: file.get_tensor(name) for name in file.keys()}, config  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise UpsDataError(f"{path} is not a model of ours or is damaged ({error}); train or fetch it again") from None


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: str | Path) -> None:
    """Put the weights of a file into the model that its configuration makes; UpsDataError where they do not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UpsDataError(f"{path}: the weights do not fit the config ({reason}); train it again") from None


def weights_id(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights: what a latent cache is keyed by."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
