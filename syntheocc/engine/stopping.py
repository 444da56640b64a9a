"""Ctrl-C and SIGTERM as a wish that a loop grants between two steps, instead of an exception anywhere."""

import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 3


class StopSignals:
    """Inside the block, SIGINT and SIGTERM only set `received`; afterwards they do what they did before.

    torchrun passes a Ctrl-C on that the process already had, so the second SIGINT means nothing new; the third one
    raises KeyboardInterrupt at once. Outside of the main thread, where Python cannot catch signals, nothing changes.

    Example:
        >>> with StopSignals() as signals:
        ...     while not signals.received:
        ...         step()
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupts = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._take) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        # Nothing is printed here: the signal may have come in the middle of a print.
        self.received = self.received or signal.Signals(number).name
        self._interrupts += number == signal.SIGINT
        if self._interrupts >= _PATIENCE:
            raise KeyboardInterrupt


def leave_signals_to_the_parent(worker: int = 0) -> None:
    """For the processes that read samples: Ctrl-C and the first SIGTERM are the training process's business.

    A scheduler sends SIGTERM to all processes of a job; readers that died of it would take the training process
    along before its checkpoint is saved. A second SIGTERM ends a reader that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
