"""Training runs on W&B when it is on: curves, metrics, pictures, the dataset as input, the model as output.

Training is complete without it: with W&B off the client is not even imported, and what W&B fails at is said and no
more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ups_data import console, files, registry
from ups_data.mirror.client import MirrorError, client, mode, place, run_settings, sentences
from ups_data.params import Params
from ups_data.training import ranks

if TYPE_CHECKING:
    import wandb

MINUTES = 5.0  # for what is still to be sent when the work is done: training must not wait for W&B

_active: list[Tracker] = []  # the tracker of the enclosing `tracked`, for the loop deep inside


class Tracker:
    """What a stage tells W&B; every method does nothing where it is off."""

    def __init__(self, run: wandb.Run | None, task: str):
        self.run, self.task = run, task
        self._logged = 0  # rows of the curve that were sent

    def curve(self, header: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
        """Send the rows of a learning curve that were not sent yet; the first column is the step."""

        def send(run: wandb.Run) -> None:
            for row in rows[self._logged :]:
                run.log(dict(zip(header, row, strict=True)), step=int(row[0]))
            self._logged = len(rows)

        self._tell(send)

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Final numbers, into the run's summary."""
        self._tell(lambda run: run.summary.update(dict(values)))

    def picture(self, name: str, path: Path) -> None:
        """An image file."""

        def send(run: wandb.Run) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))})

        self._tell(send)

    def model(self, name: str, path: Path) -> None:
        """The trained weights as the run's output: the artifact <task>_<name> of type model."""

        def send(run: wandb.Run) -> None:
            import wandb

            artifact = wandb.Artifact(f"{self.task}_{name}", "model", metadata={"task": self.task})
            # An offline run is uploaded later, when the next training may have replaced the file: keep a copy.
            policy = "mutable" if run.offline else "immutable"
            artifact.add_file(str(path), path.name, policy=policy, skip_cache=True)
            run.log_artifact(artifact, aliases=["latest"])

        self._tell(send)

    def dataset(self, artifact: str) -> None:
        """The dataset that was trained on, entity/project/name:vN, as the run's input."""
        self._tell(lambda run: None if run.offline else run.use_artifact(artifact))

    def finish(self, failed: bool) -> None:
        """End the run when all is sent."""
        self._tell(lambda run: run.finish(exit_code=int(failed)))

    def _tell(self, send: Callable[[wandb.Run], object]) -> None:
        if self.run is None:
            return
        try:
            with sentences("W&B was not told all of this training"):
                send(self.run)
        except MirrorError as error:
            console.say(str(error))


@contextmanager
def tracked(params: Params, task: str, job: str, data: Path = Path("data/pdebench")) -> Iterator[Tracker]:
    """Follow the enclosed work of a stage as the run of a job type (train, evaluate, ..); yields its Tracker.

    On where there is a W&B key or WANDB_MODE says offline. A W&B that is away makes it an offline run, which
    `make sync` uploads. The dataset in `data` is the run's input where it is
    the very one of the registry and mirrored.
    """
    config = params.datasets[task].model_dump(mode="json")
    tracker = Tracker(_start(params, task, job, config), task)
    if tracker.run is not None and (artifact := _input(params, task, data)):
        tracker.dataset(artifact)
    _active.append(tracker)
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        _active.remove(tracker)
        tracker.finish(failed)


def curve(header: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
    """Send the new rows of a learning curve to the enclosing `tracked`, if any."""
    if _active:
        _active[-1].curve(header, rows)


def _start(params: Params, task: str, job: str, config: Mapping[str, Any]) -> wandb.Run | None:
    """A run, offline where W&B does not answer; None where it is off, and on all ranks but the first."""
    if ranks.rank():
        return None
    about = {"job_type": job, "group": task, "name": f"{task} {job}", "config": dict(config)}
    for state in {"online": ("online", "offline"), "offline": ("offline",)}.get(mode(), ()):
        try:
            wandb = client()
        except MirrorError as error:
            console.say(str(error))
            return None
        try:
            with sentences(f"W&B does not follow this training {state}"):
                return wandb.init(**about, settings=run_settings(place(params.sync), params.sync, MINUTES, mode=state))
        except MirrorError as error:
            console.say(str(error))
    return None


def _input(params: Params, task: str, data: Path) -> str | None:
    """The W&B artifact of the dataset in `data`; None where it is another conversion or has no copy."""
    name = params.datasets[task].package.name
    entry_path, manifest = Path(registry.ENTRIES) / f"{name}.yaml", data / f"{task}_manifest.json"
    copies = registry.read_mirror(registry.MIRROR, name)
    if not (copies and copies.dataset and entry_path.is_file() and manifest.is_file()):
        return None
    entry = registry.read_registry(entry_path)[name]
    same = copies.dataset.md5 == entry.archive.md5 and files.checksum(manifest) == entry.manifest.sha256
    return copies.dataset.artifact if same else None
