"""The W&B client made quiet and bounded: whether it is on, where it sends, its errors as sentences without secrets."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from ups_data import console
from ups_data.errors import UpsDataError
from ups_data.params import Sync

if TYPE_CHECKING:
    import wandb

HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # the public service, by its older and its newer name
QUERY_RETRIES = 2  # of a question to the service; the client's default asks for hours
QUERY_WAIT = 2.0  # longest pause between them (s)
UPLOAD_WAIT = 30.0  # longest pause between two tries of an upload (s)
TIMEOUT = 30  # of one question with its retries (s)
LEAST_SECRET = 8  # characters: shorter values would blank out ordinary words

Mode = Literal["online", "offline", "keyless", "disabled"]
WHY_OFF = {
    "offline": "WANDB_MODE says offline",
    "keyless": "there is no W&B key here (WANDB_API_KEY or `wandb login`)",
    "disabled": "WANDB_MODE says disabled",
}


class MirrorError(UpsDataError):
    """W&B is away, refuses, or gave up; what is on this machine is untouched."""


@dataclass(frozen=True)
class Place:
    """Where artifacts go; `entity` None is the default of the key."""

    entity: str | None
    project: str


def mode() -> Mode:
    """Whether W&B is on: WANDB_MODE where it says offline or disabled, else whether there is a key.

    Looks at the environment and ~/.netrc without importing the client.
    """
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked == "disabled":
        return "disabled"
    if asked in ("offline", "dryrun"):
        return "offline"
    return "online" if _secrets() or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") else "keyless"


def place(knobs: Sync, entity: str | None = None, project: str | None = None) -> Place:
    """Entity and project: as given, else WANDB_ENTITY and WANDB_PROJECT, else the knobs."""
    return Place(
        entity or os.environ.get("WANDB_ENTITY") or knobs.entity,
        project or os.environ.get("WANDB_PROJECT") or knobs.project,
    )


def connect(where: Place | None = None) -> wandb.Api:
    """The client's questions, asked with the key of this machine; MirrorError where W&B is away or refuses it."""
    wandb = client()
    overrides = {"entity": where.entity, "project": where.project} if where and where.entity else None
    with sentences("W&B cannot be asked"):
        return wandb.Api(overrides, timeout=TIMEOUT)


def client() -> Any:
    """The module wandb, quiet unless a person watches, with bounded retries; MirrorError where it is not installed."""
    try:
        import wandb
    except ImportError:
        raise MirrorError(
            "there is a W&B key here but the package wandb is not installed; "
            "`pip install wandb==0.31.0`, or switch it off with WANDB_MODE=disabled"
        ) from None
    with sentences("the W&B client does not start"):
        wandb.setup(
            wandb.Settings(
                silent=not watched(),
                quiet=True,
                x_graphql_retry_max=QUERY_RETRIES,
                x_graphql_retry_wait_min_seconds=0.5,
                x_graphql_retry_wait_max_seconds=QUERY_WAIT,
            )
        )
    return wandb


def watched() -> bool:
    """Whether a person sees the client's own progress display."""
    return sys.stderr.isatty() and not console.is_quiet()


def run_settings(where: Place, knobs: Sync, minutes: float, **more: Any) -> wandb.Settings:
    """Settings of a run: it tries a bounded number of times, ends within `minutes` of its last word, and sends
    nothing of this machine (paths, host, packages).
    """
    import wandb

    return wandb.Settings(
        entity=where.entity,
        project=where.project,
        silent=not watched(),
        quiet=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_save_requirements=False,
        init_timeout=TIMEOUT,
        finish_timeout=60.0 * minutes,
        finish_timeout_raises=True,
        x_graphql_retry_max=QUERY_RETRIES,
        x_graphql_retry_wait_min_seconds=0.5,
        x_graphql_retry_wait_max_seconds=QUERY_WAIT,
        x_file_transfer_retry_max=knobs.retries,
        x_file_transfer_retry_wait_min_seconds=0.5,
        x_file_transfer_retry_wait_max_seconds=UPLOAD_WAIT,
        x_file_stream_retry_max=knobs.retries,
        x_file_stream_retry_wait_max_seconds=UPLOAD_WAIT,
        **more,
    )


@contextmanager
def sentences(what: str) -> Iterator[None]:
    """Turn whatever the client raises into a MirrorError that begins with `what` and holds no secret.

    The client documents no set of exceptions: its own, ValueError, RuntimeError and those of HTTP have been seen.
    """
    try:
        yield
    except (UpsDataError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise MirrorError(f"{what}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = without_secrets(" ".join(str(error).split())) or type(error).__name__
    lowered = text.lower()
    if any(sign in lowered for sign in ("not logged in", "api key", "unauthorized", "http 401", "credentials")) and (
        "giving up" not in lowered and "did not respond" not in lowered
    ):
        return f"W&B refuses the key of this machine ({text}); set WANDB_API_KEY or run `wandb login`"
    return f"{text}; nothing is lost: try again when W&B answers (`make sync`)"


def without_secrets(text: str) -> str:
    """`text` with every key this machine knows blanked out."""
    for secret in _secrets():
        if len(secret) >= LEAST_SECRET:
            text = text.replace(secret, "***")
    return text


def _secrets() -> list[str]:
    """The W&B keys of this machine: of the environment, then of ~/.netrc (where `wandb login` puts it)."""
    hosts = HOSTS
    if base := os.environ.get("WANDB_BASE_URL"):
        hosts = (urlsplit(base).netloc,)
    found = [os.environ.get("WANDB_API_KEY", "").strip()]
    try:
        known = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser()).hosts
        found += [known[host][2] for host in hosts if host in known]
    except (OSError, RuntimeError, netrc.NetrcParseError):
        pass  # no such file, or one that nobody can read: no key in it
    return [secret for secret in found if secret]
