"""Training the judge: class-balanced cross-entropy on real renders, disturbed as generated views may be.

A network that has only seen clean renders would punish a generated view for its blur. So light, colour, sharpness and
noise are drawn anew for every image. The same judge reads real, reconstructed and generated views.

Legend: N images, H W pixels, C classes.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["class_weights", "disturbed", "train_judge"]


def class_weights(counts: Tensor, power: float = 0.5, limit: float = 8.0) -> Tensor:
    """Weights of the classes in the loss: rarer ones count more, by the root of their share.

    Args:
        counts: [C] pixels of each class.
        power: 0 weighs all pixels alike, 1 all classes alike.
        limit: greatest weight of a class beside that of a class of mean share.

    Returns:
        float32 [C], 1 for a class that holds 1/C of the pixels; `limit` for one that does not occur.

    Example:
        >>> class_weights(torch.tensor([100, 25, 0]), limit=5.0)   # shares 0.8, 0.2, 0: (1/3 / share) ** 0.5
        tensor([0.6455, 1.2910, 5.0000])
    """
    share = counts.double() / counts.sum()
    return (1 / len(counts) / share.clamp_min(1e-12)).pow(power).clamp_max(limit).float()


def disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images with other light, colours, sharpness and noise, each its own.

    Args:
        images: uint8 [N, 3, H, W].
        generator: on the device of the images.

    Returns:
        float32 [N, 3, H, W] in [0, 1].
    """
    count, _, height, width = images.shape

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        values = torch.rand(count, channels, 1, 1, generator=generator, device=images.device)
        return low + (high - low) * values

    x = images.float() / 255
    # Blur as a decoder blurs: details below one and a half to three pixels are lost, on half of the images.
    factor = 1.5 + 1.5 * float(torch.rand((), generator=generator, device=images.device))
    small = F.interpolate(x, size=(round(height / factor), round(width / factor)), mode="area")
    soft = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    x = torch.lerp(x, soft, (draw(-1, 1)).clamp_min(0))
    x = x.clamp_min(1e-4) ** torch.exp(draw(-0.35, 0.35))
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * draw(0.6, 1.4)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * draw(0.75, 1.25)
    x = x * draw(0.8, 1.25) * draw(0.93, 1.07, channels=3)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return (x + noise * draw(-0.04, 0.04).clamp_min(0)).clamp(0, 1)


def train_judge(
    judge: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    seconds: float | None = None,
    max_steps: int | None = None,
    batch_size: int = 96,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: Callable[[float], float] | None = None,
    autocast: torch.dtype | None = None,
    log: Callable[[str], None] | None = None,
) -> int:
    """Train in place for a time or a number of steps, whichever ends first; the learning rate falls to zero by then.

    Args:
        judge: a `Judge`, or one wrapped for several processes.
        images: uint8 [N, 3, H, W] on the device of the judge, or on the CPU (a batch is then copied).
        labels: uint8 [N, H, W] class ids; 255 counts nowhere.
        seconds: length of the training; None for no limit.
        max_steps: number of steps; None for no limit.
        batch_size: images a step.
        learning_rate: of AdamW at its highest, after the first 5 %.
        seed: of order and disturbance.
        progress: from this process' own share of the training done to the one that all processes use.
        autocast: to compute in, e.g. torch.bfloat16; None computes in the dtype of the weights.
        log: is told a line ten times.

    Returns:
        The number of steps.

    Raises:
        ValueError: neither a time nor a number of steps, or images and labels that do not fit together.
    """
    if seconds is None and max_steps is None:
        raise ValueError("give the length of the training: seconds or max_steps")
    if len(images) != len(labels) or images.shape[-2:] != labels.shape[-2:] or not len(images):
        raise ValueError(f"images {tuple(images.shape)} and labels {tuple(labels.shape)} do not fit together")
    parameters = list(judge.parameters())
    device = parameters[0].device
    classes = (judge.module if hasattr(judge, "module") else judge).taxonomy.num_classes  # type: ignore[union-attr]
    # The shares of a few hundred images will do; all of them are billions of pixels.
    some = labels[:: max(1, len(labels) // 512)]
    counts = torch.bincount(some.flatten().int(), minlength=256)[:classes]
    weights = class_weights(counts).to(device)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=1e-2)
    random = torch.Generator(device).manual_seed(seed)
    picker = torch.Generator().manual_seed(seed)
    judge.train()
    started, step, told = time.monotonic(), 0, 0.0
    while True:
        shares = [(time.monotonic() - started) / seconds] if seconds else []
        shares += [step / max_steps] if max_steps else []
        share = max(shares) if progress is None else progress(max(shares))
        if share >= 1:
            break
        rate = learning_rate * min(share / 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = max(rate, learning_rate * 1e-3)
        pick = torch.randint(len(images), (batch_size,), generator=picker).to(images.device)
        batch, truth = images[pick].to(device), labels[pick].to(device).long()
        batch = disturbed(batch, random)
        if float(torch.rand((), generator=picker)) < 0.5:
            batch, truth = batch.flip(-1), truth.flip(-1)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            logits = judge(batch)
        loss = F.cross_entropy(logits.float(), truth, weights, ignore_index=UNKNOWN)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if log is not None and share >= told:
            log(f"judge step {step}: loss {float(loss.detach()):.3f}, {100 * share:.0f} % of its training")
            told += 0.1
    judge.eval()
    return step
