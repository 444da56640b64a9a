"""AdamW as the settings ask for it, and learning rates as functions of the step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from syntheocc.engine.loop_config import LoopConfig


def learning_rate_factor(
    name: str,
    warmup_steps: int,
    max_steps: int,
    num_cycles: int = 1,
    power: float = 1.0,
    *,
    warmup_start: float = 0.0,
    end: float = 0.0,
    milestones: Sequence[int] = (),
    decay: float = 0.1,
) -> Callable[[int], float]:
    """The function step -> factor of the learning rate (step 0 is the first), with diffusers' names and formulas.

    All but "constant" rise linearly over `warmup_steps`, from `warmup_start`, then: "constant_with_warmup" stays at 1;
    "linear", "cosine" (half a wave) and "polynomial" fall to `end` at `max_steps` ("polynomial" as
    (1 - progress)^power; diffusers' ends at 1e-7 / learning rate); "cosine_with_restarts" falls to 0 `num_cycles`
    times; "step" is multiplied by `decay` at each of `milestones`.

    Raises:
        ValueError: no such schedule, or "step" without milestones.

    Example:
        >>> factor = learning_rate_factor("linear", warmup_steps=2, max_steps=6)
        >>> [factor(step) for step in range(7)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    after_warmup: dict[str, Callable[[float], float]] = {
        "constant": lambda progress: 1.0,
        "constant_with_warmup": lambda progress: 1.0,
        "linear": lambda progress: 1.0 - (1.0 - end) * progress,
        "cosine": lambda progress: end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress)),
        "cosine_with_restarts": lambda progress: (
            0.5 * (1.0 + math.cos(math.pi * ((num_cycles * progress) % 1.0))) if progress < 1.0 else 0.0
        ),
        "polynomial": lambda progress: end + (1.0 - end) * (1.0 - progress) ** power,
    }
    if name not in after_warmup and name != "step":
        raise ValueError(f"{name!r} is no schedule of the learning rate; known are {', '.join(after_warmup)}, step")
    if name == "step" and not milestones:
        raise ValueError("lr_scheduler=step needs lr_milestones, the steps after which the learning rate drops")
    warmup_steps = 0 if name == "constant" else warmup_steps

    def factor(step: int) -> float:
        if step < warmup_steps:
            return warmup_start + (1.0 - warmup_start) * step / warmup_steps
        if name == "step":
            return decay ** sum(step >= milestone for milestone in milestones)
        return after_warmup[name](min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps)))

    return factor


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of what is trained.

    Raises:
        ValueError: nothing is, or a trained parameter is not float32 (its updates would be rounded away).
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("no parameter of the module requires a gradient; nothing would be trained")
    for name, parameter in trained.items():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {parameter.dtype}; trained parameters are float32 (use mixed_precision for speed), only "
                "frozen ones may be smaller"
            )
    return trained


def make_optimizer(
    config: LoopConfig,
    trained: Mapping[str, nn.Parameter],
    parameter_groups: Sequence[Mapping[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """AdamW over the trained parameters: the fused one (all parameters in a few launches), or 8-bit states.

    Raises:
        ValueError: bitsandbytes is not there, or the groups are not exactly the trained parameters.
    """
    groups = [dict(group) for group in parameter_groups or [{"params": list(trained.values())}]]
    for group in groups:
        group["params"] = list(group["params"])
    grouped = [parameter for group in groups for parameter in group["params"]]
    if len(grouped) != len(trained) or set(grouped) != set(trained.values()):
        raise ValueError(
            f"the parameter groups hold {len(grouped)} parameters ({len(set(grouped))} different ones); they must "
            f"hold each of the {len(trained)} trained ones once"
        )
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if not config.use_8bit_adam:
        return torch.optim.AdamW(groups, fused=True, **settings)
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(
            f"use_8bit_adam needs the package bitsandbytes ({error}): pip install bitsandbytes, or leave the flag out"
        ) from error
    return bitsandbytes.optim.AdamW8bit(groups, **settings)
