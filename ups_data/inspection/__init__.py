"""A first look at a file: what it holds, the ranges of its numbers, what is odd about it, and a picture.

`inspect` tells the kind by content, not by name, and reads a sample of the numbers, or with `full` all of them; either
way memory stays bounded.
"""

from __future__ import annotations

from pathlib import Path

from ups_data.errors import UpsDataError
from ups_data.inspection.look import Look

# What h5py, Zarr, NumPy and JSON raise, in many places, for a file whose bytes were changed.
DAMAGE = (ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
HDF5, ZIP, GZIP, UPK = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x1f\x8b", b"\x89UPK\r\n\x1a\n"


def inspect(path: str | Path, full: bool = False) -> Look:
    """Look at a raw or converted file, a Zarr store, an archive, a latent cache or a model.

    Raises UpsDataError for what cannot be read: missing, damaged, or of no kind that is known here.
    """
    path = Path(path)
    if not path.exists():
        raise UpsDataError(f"{path} is missing; name a file, a .zarr folder or the folder of a latent cache")
    try:
        return _folder(path, full) if path.is_dir() else _file(path, full)
    except PermissionError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UpsDataError(f"{path} is damaged or of a strange make ({reason}); fetch it again") from None


def _file(path: Path, full: bool) -> Look:
    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(HDF5):
        from ups_data.inspection.grids import look_at_hdf5

        return look_at_hdf5(path, full)
    if start.startswith(ZIP):
        from ups_data.inspection.points import look_at_npz

        return look_at_npz(path, full)
    if start.startswith((GZIP, UPK)):
        from ups_data.inspection.artifacts import look_at_archive

        return look_at_archive(path, full)
    if _is_safetensors(path, start):
        from ups_data.inspection.artifacts import look_at_model

        return look_at_model(path)
    raise UpsDataError(f"{path} is neither HDF5 nor .npz, .upk, .tar.gz or safetensors{_guess(start)}")


def _folder(path: Path, full: bool) -> Look:
    if (path / "zarr.json").is_file():
        from ups_data.inspection.points import look_at_zarr

        return look_at_zarr(path, full)
    if (path / "manifest.json").is_file():
        from ups_data.inspection.artifacts import look_at_cache

        return look_at_cache(path, full)
    if any(path.glob("*.h5")):
        from ups_data.inspection.grids import look_at_grid

        return look_at_grid(path, full)
    raise UpsDataError(
        f"{path} is a folder, but neither a Zarr v3 store (zarr.json), a latent cache (manifest.json) nor a split of "
        "several .h5 files; name a file in it"
    )


def _is_safetensors(path: Path, start: bytes) -> bool:
    """A header's length in 8 bytes, then a JSON object."""
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 8 + length <= path.stat().st_size


def _guess(start: bytes) -> str:
    if not start:
        return ": it is empty"
    if start.lstrip().startswith(b"<"):
        return ": it looks like a web page; fetch the file itself"
    if start.lstrip()[:1] in (b"{", b"["):
        return ": it looks like JSON text"
    return f"; it starts with the bytes {start[:8].hex(' ')}"
