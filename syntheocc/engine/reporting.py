"""What a training loop tells: the loss curve, the progress bar, skipped steps and samples that cannot be read."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from syntheocc.engine.loading import BadSample
from syntheocc.engine.scalars import Pending
from syntheocc.engine.trackers import Trackers, note

if TYPE_CHECKING:
    from accelerate import Accelerator
    from tqdm import tqdm

# So many steps in a row without a finite loss or gradient end the run.
NON_FINITE_LIMIT = 5
# So many unreadable samples are named on the screen.
_SHOWN = 20


class Reporter:
    """Takes each step's scalars as they are made, and reads them a step later, when the device has them ready.

    Attributes:
        loss: of the last step that was read.
        skipped: steps that were skipped, because loss or gradient were not finite.
        bad_samples: token -> reason of what this process could not read.
        stop_agreed: whether some rank wanted to stop at a step that was read.
    """

    def __init__(self, accelerator: "Accelerator", trackers: Trackers, bar: "tqdm", output_dir: Path):
        self.trackers = trackers
        self.bar = bar
        self.loss: float | None = None
        self.skipped: list[int] = []
        self.bad_samples: dict[str, str] = {}
        self.stop_agreed = False
        self._rank, self._world = accelerator.process_index, accelerator.num_processes
        self._bad_file = output_dir / "bad_samples.jsonl"
        self._listed = _tokens_in(self._bad_file)  # an earlier start of the run has named them
        self._skipped_in_a_row = 0
        self._pending: Pending | None = None

    def take(self, pending: Pending) -> None:
        """Take a step's scalars, and report those of the step before."""
        self.flush()
        self._pending = pending
        self.bar.update()

    def flush(self) -> None:
        """Report the step that was taken last.

        Raises:
            ValueError: too many steps in a row were skipped.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        values = pending.read()
        stop, finite, own_loss = values.pop("stop"), values.pop("finite"), values.pop("own_loss")
        self.stop_agreed = self.stop_agreed or stop > 0
        self.loss = values["loss"]
        self.trackers.log(pending.step, values | {"lr": pending.learning_rate})
        self.bar.set_postfix(loss=f"{self.loss:.4g}", lr=f"{pending.learning_rate:.3g}", refresh=False)
        if finite:
            self._skipped_in_a_row = 0
        else:
            self._skip(pending, own_loss, values["grad_norm"])

    def list_bad(self, bad: list[BadSample]) -> None:
        """Name samples that could not be read: once on the screen, and in `bad_samples.jsonl`."""
        for sample in bad:
            if sample.token in self.bad_samples:
                continue
            self.bad_samples[sample.token] = sample.reason
            if len(self.bad_samples) <= _SHOWN:
                note(f"sample {sample.token} cannot be read, the next one takes its place: {sample.reason}")
            elif len(self.bad_samples) == _SHOWN + 1:
                note(f"more samples cannot be read; all are listed in {self._bad_file}")
            if sample.token in self._listed:
                continue
            self._bad_file.parent.mkdir(parents=True, exist_ok=True)
            # One write in append mode a line, so that ranks do not cut one another's lines.
            with open(self._bad_file, "ab", buffering=0) as file:
                file.write(json.dumps({"token": sample.token, "reason": sample.reason}).encode() + b"\n")

    def validation(self, step: int, result: dict[str, float | np.ndarray]) -> None:
        """Log what a validation returned."""
        pictures = {name: value for name, value in result.items() if isinstance(value, np.ndarray)}
        scalars = {name: float(value) for name, value in result.items() if name not in pictures}
        self.trackers.log_validation(step, scalars, pictures)

    def _skip(self, pending: Pending, own_loss: float, norm: float) -> None:
        self.skipped.append(pending.step)
        self._skipped_in_a_row += 1
        if self._rank == 0 or not math.isfinite(own_loss):
            where = f" on rank {self._rank}" if self._world > 1 else ""
            note(
                f"step {pending.step} is skipped: loss {own_loss}, gradient norm {norm}{where}; samples: "
                f"{', '.join(pending.tokens) or 'the batch does not name them'}"
            )
        if self._skipped_in_a_row >= NON_FINITE_LIMIT:
            raise ValueError(
                f"loss or gradient were not finite in {NON_FINITE_LIMIT} steps in a row, up to step {pending.step}; "
                "lower learning_rate, or look at the samples named above"
            )


def _tokens_in(path: Path) -> set[str]:
    """The tokens of a list of bad samples; lines that a full disk or a killed job cut short are passed over."""
    tokens = set()
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            tokens.add(str(json.loads(line)["token"]))
        except (ValueError, KeyError, TypeError):
            continue
    return tokens
