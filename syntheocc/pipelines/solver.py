"""UniPC as a table of numbers, so that the GPU never waits for the scheduler.

diffusers' UniPC launches about two hundred tiny kernels a step and waits for the device in between, which leaves an
H200 idle for 4 ms of a 69 ms step. But the sampler is linear: the latents after step i are a fixed combination of the
first noise and of the predictions so far, and it depends on the noise schedule alone. The scheduler itself tells the
combination, when it is run once on unit vectors.

T steps; B C h w latents.
"""

import copy
from functools import lru_cache
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor


def is_linear(scheduler: Any) -> bool:
    """Whether `scheduler` is one that `LinearSolver` reproduces: UniPC itself, without thresholding.

    After `set_timesteps` with a number of steps; custom noise levels are not reproduced.
    """
    if type(scheduler) is not UniPCMultistepScheduler or scheduler.config.thresholding:
        return False
    return torch.equal(_solver_table(_Key(scheduler, len(scheduler.timesteps)))[1], scheduler.sigmas)


def solver_table(scheduler: UniPCMultistepScheduler, num_steps: int) -> Tensor:
    """Weights `[T, T+1]` float64: row i gives the latents after step i from the first noise and T predictions.

    The scheduler's state is not touched. Tables are kept, by config and number of steps.
    """
    return _solver_table(_Key(scheduler, num_steps))[0]


class _Key:
    """A scheduler that equals another with the same config, noise levels and number of steps."""

    def __init__(self, scheduler: UniPCMultistepScheduler, num_steps: int):
        self.scheduler, self.num_steps = scheduler, num_steps
        self._value = (scheduler.to_json_string(), scheduler.alphas_cumprod.numpy(force=True).tobytes(), num_steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


@lru_cache(maxsize=8)
def _solver_table(key: _Key) -> tuple[Tensor, Tensor]:
    """The table, and the noise levels that it is for."""
    scheduler, num_steps = copy.deepcopy(key.scheduler), key.num_steps
    scheduler.set_timesteps(num_steps, device="cpu")
    # One "pixel" for each coefficient; UniPC wants at least [batch, channels, ...].
    basis = torch.eye(num_steps + 1, dtype=torch.float64).reshape(num_steps + 1, 1, 1, 1, num_steps + 1)
    state, rows = basis[0], []
    for i, t in enumerate(scheduler.timesteps):
        state = scheduler.step(basis[i + 1], t, state, return_dict=False)[0]
        rows.append(state.flatten())
    return torch.stack(rows), scheduler.sigmas


class LinearSolver:
    """Steps through `scheduler.timesteps` like `scheduler.step`, from a table and in float32.

    Args:
        scheduler: one for which `is_linear` holds, after `set_timesteps`.
        noise: `[B, C, h, w]`, the latents before the first step; later latents must be what `step` returned.
    """

    def __init__(self, scheduler: Any, noise: Tensor):
        num_steps = len(scheduler.timesteps)
        self._table = solver_table(scheduler, num_steps).to(noise.device, torch.float32)
        self._history = noise.new_empty(num_steps + 1, noise.numel())
        self._history[0] = noise.flatten()
        self._shape, self._steps_done = noise.shape, 0

    def step(self, prediction: Tensor) -> Tensor:
        """Latents `[B, C, h, w]` after the next step, from the networks' prediction `[B, C, h, w]`."""
        i = self._steps_done
        self._history[i + 1] = prediction.flatten()
        self._steps_done = i + 1
        latents = self._table[i, : i + 2] @ self._history[: i + 2].float()
        return latents.to(prediction.dtype).view(self._shape)
