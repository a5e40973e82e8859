"""List the modules that every stage uses, so that a change to the code re-runs the stages that use it and no others.

Writes reports/code/<stage>.txt, which the stages in dvc.yaml depend on.

    python -m stages.code
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import yaml

from stages.common import run, stage_parser
from ups_data.modules import write_lists


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit status."""
    return run(_work, stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.code"), argv)


def _work(args: argparse.Namespace) -> str:
    with open("dvc.yaml", encoding="utf-8") as file:
        stages = [name for name in yaml.safe_load(file)["stages"] if name != "code"]
    folder = write_lists(stages)
    return f"{folder}: the modules of {len(stages)} stages; next: dvc repro"


if __name__ == "__main__":
    sys.exit(main())
