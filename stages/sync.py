"""Mirror published datasets on Weights & Biases and record where they are in docs/mirror/.

Without names: everything that waits, that is datasets no record leads to, uploads asked for and runs logged while
W&B was off. With --name: any files as an artifact of any type. Without a key, or with WANDB_MODE=offline, nothing is
sent and the stage succeeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import run, stage_parser
from ups_data import console, registry
from ups_data.errors import UpsDataError
from ups_data.params import Params, load_params

AD_HOC = """python -m stages.sync --name tiny --type dataset --path params.yaml --metadata '{"samples": 8}'"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit status."""
    parser = stage_parser(__doc__, f"python -m stages.sync burgers1d_subset_v1\n  {AD_HOC}")
    parser.add_argument("names", nargs="*", metavar="NAME", help="published datasets (default: all that waits)")
    parser.add_argument("--entity", help="W&B entity (WANDB_ENTITY, knob sync.entity)")
    parser.add_argument("--project", help="W&B project (WANDB_PROJECT, knob sync.project)")
    parser.add_argument("--models", action="store_true", help="the task's trained models too (knob sync.models)")
    parser.add_argument("--or-later", action="store_true", help="succeed where W&B is away or refuses: say so and wait")
    parser.add_argument("--entries", default=registry.ENTRIES, metavar="DIR", help=f"entries ({registry.ENTRIES})")
    hand = parser.add_argument_group("any files")
    hand.add_argument("--name", metavar="ARTIFACT", help="name of the artifact: letters, digits, dots, dashes, _")
    hand.add_argument("--type", default="dataset", help="its type, e.g. dataset, model (dataset)")
    hand.add_argument("--path", action="append", default=[], metavar="PATH", help="a file or folder (repeatable)")
    hand.add_argument("--metadata", default="{}", metavar="JSON", help="an object, e.g. '{\"samples\": 8}'")
    hand.add_argument("--description", default="", metavar="TEXT", help="what it is")
    hand.add_argument("--alias", action="append", default=[], help="beside latest (repeatable)")
    hand.add_argument("--link", metavar="COLLECTION", help="also link it, e.g. wandb-registry-dataset/tiny")
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    params = load_params(args.params, args.set)
    if args.models:
        params = params.model_copy(update={"sync": params.sync.model_copy(update={"models": True})})
    if args.name:
        if args.names:
            raise UpsDataError(f"got {args.names[0]!r} beside --name {args.name}; give files and folders with --path")
        return _by_hand(args, params)
    if args.path:
        raise UpsDataError("--path needs --name: the name of the artifact to make")
    return _datasets(args, params)


def _datasets(args: argparse.Namespace, params: Params) -> str:
    from ups_data.mirror.client import mode, place
    from ups_data.mirror.sync import Folders, sync_dataset, sync_waiting, unmirrored

    folders, where = Folders(), place(params.sync, args.entity, args.project)
    if args.names:
        wanted = {name: _entry(args.entries, name) for name in args.names}
    else:
        known = {path.stem: _entry(args.entries, path.stem) for path in sorted(Path(args.entries).glob("*.yaml"))}
        wanted = unmirrored(known, folders.records)
    for name, entry in wanted.items():
        console.say(sync_dataset(name, entry, params, where, folders, args.or_later))
    if not args.names and mode() == "online":
        for said in sync_waiting(params.sync):
            console.say(said)
    if not wanted and not args.names:
        return "every dataset is mirrored"
    return f"{', '.join(wanted)}: see {folders.records}; next: python -m stages.registry"


def _entry(folder: str, name: str) -> registry.Entry:
    path = Path(folder) / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in Path(folder).glob("*.yaml"))) or "none"
        raise UpsDataError(f"{folder} has no dataset {name!r}; it has {known}; package it first")
    return registry.find(registry.read_registry(path), name, str(path))


def _by_hand(args: argparse.Namespace, params: Params) -> str:
    from ups_data.mirror.client import place
    from ups_data.mirror.sync import sync_files
    from ups_data.mirror.upload import Request, files_under

    try:
        metadata = json.loads(args.metadata)
    except json.JSONDecodeError as error:
        raise UpsDataError(f"--metadata {args.metadata!r} is not JSON ({error}); e.g. '{{\"samples\": 8}}'") from None
    if not isinstance(metadata, dict):
        raise UpsDataError(f"--metadata: expected an object, got {args.metadata}")
    request = Request(
        name=args.name,
        type=args.type,
        files=files_under([Path(path) for path in args.path]),
        description=args.description,
        metadata=metadata,
        aliases=("latest", *args.alias),
        link=args.link,
    )
    return sync_files(request, place(params.sync, args.entity, args.project), params.sync)


if __name__ == "__main__":
    sys.exit(main())
