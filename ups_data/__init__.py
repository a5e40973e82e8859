"""ups-data: raw physics simulations in, verified training artifacts out.

from ups_data import open_dataset

data = open_dataset("burgers1d_subset_v1", split="test")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ups_data.published import open_dataset

__version__ = "0.1.0"
__all__ = ["__version__", "open_dataset"]


def __getattr__(name: str) -> object:  # imported when asked for: `import ups_data` costs nothing
    if name != "open_dataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ups_data.published import open_dataset

    return open_dataset
