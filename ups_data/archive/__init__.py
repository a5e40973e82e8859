"""Packed datasets: archives that restore the very same bytes (docs/archive-format.md).

Reading needs numpy and pcodec alone: `python -m ups_data.archive extract FILE DIR`.
"""

from ups_data.archive.format import Member
from ups_data.archive.reader import extract, members
from ups_data.archive.writer import collect, pack

__all__ = ["Member", "collect", "extract", "members", "pack"]
