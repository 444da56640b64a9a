"""Where a run reports: always a JSON line a step, and TensorBoard or Weights & Biases when asked and installed."""

import importlib
import json
import math
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from syntheocc.engine.files import atomic_write_bytes, atomic_write_text
from syntheocc.engine.loop_config import LoopConfig

_NAMES = ("tensorboard", "wandb")


def note(message: str) -> None:
    """A line for the person who watches: on stderr, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


class Tracker:
    """Takes scalars and pictures of a step. Subclasses say where they go."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the scalars of a step (steps count from 1: steps done)."""
        raise NotImplementedError

    def log_pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Take pictures, uint8 `[H, W, 3]`."""

    def close(self) -> None:
        """Flush and close."""


class JsonLines(Tracker):
    """One JSON document a line: {"step": 1, "loss": 0.5, ...}, written at once. NaN and infinities become null.

    Args:
        path: appended to; a half line that a killed job left behind goes.
        step: of the checkpoint that the job resumes from: later lines go, they will be written again. 0 for a new job.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        if path.is_file():
            kept = [line for line in path.read_bytes().splitlines() if _step_of(line) <= step]
            atomic_write_bytes(path, b"".join(line + b"\n" for line in kept))
        self._file: Any = None

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append a line."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)
        line: dict[str, Any] = {"step": step}
        line |= {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        self._file.write(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a :class:`JsonLines` file; a half line at the end is left out.

    Example:
        >>> curve = [line["loss"] for line in read_log(Path("out/log.jsonl"))]
    """
    return [json.loads(line) for line in Path(path).read_bytes().splitlines() if _step_of(line) < math.inf]


class TensorBoard(Tracker):
    """Event files under `folder`; events after `step` of an earlier start are hidden."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add scalars."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def log_pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Add pictures."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandB(Tracker):
    """A Weights & Biases run; the run's id is kept in `folder`, so that a resumed job continues it.

    The step is a metric of its own, because wandb drops what is logged for an earlier step of its own counter.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]):
        import wandb

        self._wandb = wandb
        id_file = folder / "wandb_run_id.txt"
        if not id_file.is_file():
            atomic_write_text(id_file, secrets.token_hex(8))
        self._run = wandb.init(
            project=project, dir=str(folder), id=id_file.read_text().strip(), resume="allow", config=dict(config)
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars."""
        self._run.log({"step": step, **scalars})

    def log_pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Log pictures."""
        self._run.log({"step": step} | {name: self._wandb.Image(picture) for name, picture in pictures.items()})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackers(Tracker):
    """Several trackers as one; what validations return also goes to a file of its own."""

    def __init__(self, trackers: list[Tracker], validation: JsonLines | None = None):
        self.trackers = trackers
        self._validation = validation

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Pass on."""
        for tracker in self.trackers:
            tracker.log(step, scalars)

    def log_validation(self, step: int, scalars: Mapping[str, float], pictures: Mapping[str, np.ndarray]) -> None:
        """Scalars to `validation.jsonl` and the trackers, pictures to the trackers."""
        if self._validation is not None and scalars:
            self._validation.log(step, scalars)
        for tracker in self.trackers:
            if not isinstance(tracker, JsonLines):
                tracker.log(step, scalars)
                tracker.log_pictures(step, pictures)

    def close(self) -> None:
        """Close all."""
        if self._validation is not None:
            self._validation.close()
        for tracker in self.trackers:
            tracker.close()


def tracker_names(report_to: str) -> list[str]:
    """The trackers that `report_to` asks for: names with commas, "all" (those installed) or "none".

    WANDB_DISABLED=true leaves wandb out.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
    """
    asked = [name.strip().lower() for name in report_to.split(",") if name.strip()]
    unknown = [name for name in asked if name not in (*_NAMES, "all", "none")]
    if unknown:
        raise ValueError(f"report_to={report_to}: {unknown[0]!r} is no tracker; known are {', '.join(_NAMES)}, all")
    names = [name for name in _NAMES if name in asked or ("all" in asked and not _import_error(name))]
    if "wandb" in names and os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        note("WANDB_DISABLED is set: nothing is reported to wandb")
        names.remove("wandb")
    for name in names:
        if error := _import_error(name):
            raise ValueError(
                f"report_to={report_to}: {name} cannot be imported ({error}); pip install {name}, or report_to=none "
                "(the loss curve is always in log.jsonl)"
            )
    return names


def make_trackers(config: LoopConfig, settings: Mapping[str, Any], step: int) -> Trackers:
    """All trackers of a job on its main process.

    Args:
        config: says where (`output_dir`, `logging_dir`) and to whom (`report_to`).
        settings: of the run, as plain values, for trackers that show them.
        step: steps done before this start.
    """
    output_dir, logs = config.output_dir, config.output_dir / config.logging_dir
    trackers: list[Tracker] = [JsonLines(output_dir / "log.jsonl", step)]
    for name in tracker_names(config.report_to):
        logs.mkdir(parents=True, exist_ok=True)
        if name == "tensorboard":
            trackers.append(TensorBoard(logs / config.tracker_project_name, step))
        else:
            trackers.append(WandB(logs, config.tracker_project_name, settings))
    return Trackers(trackers, validation=JsonLines(output_dir / "validation.jsonl", step))


def _import_error(name: str) -> str:
    """Why a tracker's package cannot be imported; empty when it can."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        return str(error)
    return ""


def _step_of(line: bytes) -> float:
    """A log line's step; infinity for half a line."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
