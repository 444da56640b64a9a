"""The fast path: the same numbers within half-precision rounding, sooner. Opt-in, by `pipe.enable_fast_path()`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class FastPathMixin:
    """`enable_fast_path`, `disable_fast_path` and the context in which the networks run."""

    _fast_path = False

    def enable_fast_path(self, compile: bool = False) -> None:
        """Run faster on a GPU."""
        self._fast_path = True

    def disable_fast_path(self) -> None:
        """Back to the plain path."""
        self._fast_path = False

    @contextmanager
    def fast_path_context(self) -> Iterator[None]:
        """Backends while the networks run."""
        with ExitStack() as stack:
            if self._fast_path:
                order = [
                    SDPBackend.CUDNN_ATTENTION,
                    SDPBackend.FLASH_ATTENTION,
                    SDPBackend.EFFICIENT_ATTENTION,
                    SDPBackend.MATH,
                ]
                stack.enter_context(sdpa_kernel(order, set_priority=True))
                stack.enter_context(torch.backends.cudnn.flags(benchmark=True))
            yield
