"""Threads for numba kernels."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch


def run_in_threads(kernel: Callable[..., None], count: int, *arguments) -> None:
    """Calls ``kernel(first, last, *arguments)`` on pieces of ``range(count)`` in `torch.get_num_threads` threads.

    For ``nogil`` kernels. numba's own ``parallel=True`` will not do: its OpenMP layer kills a process that forks after
    first use, which is what a DataLoader does; and inside a DataLoader worker torch's count is 1, as it should be.
    """
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        kernel(0, count, *arguments)
        return
    # Pieces differ much in work (rays leave the grid early or late), so threads take turns on many small ones.
    bounds = np.linspace(0, count, min(count, 8 * threads) + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        pieces = [
            pool.submit(kernel, first, last, *arguments) for first, last in zip(bounds[:-1], bounds[1:], strict=True)
        ]
        for piece in pieces:
            piece.result()
