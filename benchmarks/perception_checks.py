"""Do the GPU's operators compute on this machine what plain torch computes? Asked before figures rest on them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.ops import distance_attention, msmv_sampling

# Relative to the largest value. Wide: both sides round to bfloat16, plain torch also within its sums.
TOLERANCE = 0.1


def checked_operators(device: torch.device) -> dict[str, str]:
    """Compare outputs and gradients of each operator's default with plain torch, and do without those that differ.

    Returns:
        operator -> "triton", or "torch: ..." and why; nothing where there is no GPU.
    """
    if device.type != "cuda":
        return {}
    found = {}
    for name, (module, call) in {
        "distance_attention": (distance_attention, _attention(device)),
        "msmv_sampling": (msmv_sampling, _sampling(device)),
    }.items():
        try:
            worst = max(
                float((one.float() - other.float()).abs().max() / other.float().abs().max().clamp_min(1e-6))
                for one, other in zip(call(None), call("torch"), strict=True)
            )
            fault = None if worst < TOLERANCE else f"differs by {worst:.3f} of the largest value"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        found[name] = "triton" if fault is None else f"torch: {fault}"
        if fault is not None:
            module.choose_backend = lambda *_: "torch"  # type: ignore[attr-defined]
    return found


def _gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), inputs)]


def _attention(device: torch.device) -> Callable[[str | None], list[Tensor]]:
    def call(backend: str | None) -> list[Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        half: Any = {"generator": generator, "device": device, "dtype": torch.bfloat16}
        query, key, value = (torch.randn(2, 8, 1250, 16, **half).requires_grad_() for _ in range(3))
        falloff = torch.rand(2, 8, 1250, generator=generator, device=device).requires_grad_()
        centers = 80 * torch.rand(2, 1250, 2, generator=generator, device=device)
        out = distance_attention.distance_attention(query, key, value, falloff, centers, backend=backend)
        return _gradients(out, [query, key, value, falloff])

    return call


def _sampling(device: torch.device) -> Callable[[str | None], list[Tensor]]:
    def call(backend: str | None) -> list[Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        maps = [
            torch.randn(2, 4, 6, 32 // s, 88 // s, 128, generator=generator, device=device).bfloat16().requires_grad_()
            for s in (1, 2, 4, 8)
        ]
        places = torch.rand(2, 4, 500, 4, 2, 3, generator=generator, device=device)
        weights = torch.rand(2, 4, 500, 4, 2, 4, generator=generator, device=device).softmax(-1).requires_grad_()
        return _gradients(msmv_sampling.msmv_sampling(maps, places, weights, backend), [*maps, weights])

    return call
