"""Losses of rendered rays: semantics, depth, opacity and where along a ray the mass lies.

Means are over the rays that count. A ray counts unless its label is `ignore_index` or its mask is False; values at
rays that do not count may be anything, NaN too. Without any ray a loss is 0 and still depends on its input.
Half-precision inputs are computed in float32. Nothing here waits for the device.

``weights`` multiply a ray's term and do not enter the divisor, as OccFlowNet's class weights (3.3: mean(w * loss));
`weighted=True` divides by their sum instead, as torch's own cross entropy with class weights does.

Legend: R rays, S samples of a ray, C classes, B X Y Z voxels.
Specification: specs/occflownet_splattingocc.md 3.3, 4.0, 4.2, vectors V1, V20, V21.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "binary_entropy",
    "conditional_semantic_loss",
    "depth_loss",
    "distortion_loss",
    "free_space_loss",
    "hit_loss",
    "mass_before",
    "semantic_loss",
    "silog_loss",
    "total_variation",
]

HIT_EPSILON = 1e-4
FREE_MARGIN = 0.8


def semantic_loss(
    logits: Tensor,  # [R, C]
    labels: Tensor,  # [R]
    weights: Tensor | None = None,  # [R]
    ignore_index: int = 255,
    weighted: bool = False,
) -> Tensor:
    """Cross entropy of composited logits: the mean of weight * CE over labelled rays.

    Args:
        logits: rendered logits; a ray through nothing has zeros.
        labels: class ids, or `ignore_index`.
        weights: of each ray, e.g. ``log_frequency_weights(OCC3D_COUNTS)[labels]``.
        ignore_index: label of rays that do not count.
        weighted: divide by the sum of the weights.
    """
    loss = functional.cross_entropy(_full(logits), labels.long(), ignore_index=ignore_index, reduction="none")
    return _mean(loss, weights, labels != ignore_index, weighted)


def conditional_semantic_loss(
    semantics: Tensor,  # [R, C]
    weight_sum: Tensor,  # [R]
    labels: Tensor,  # [R]
    weights: Tensor | None = None,  # [R]
    ignore_index: int = 255,
    weighted: bool = False,
) -> Tensor:
    """``-ln((P_label + 1e-4) / (A + C * 1e-4))``: the class of what a ray meets, whatever share of it that stops.

    Args:
        semantics: composited class probabilities P (each splat's or sample's sum to 1).
        weight_sum: A, the sum of the compositing weights.
        labels: class ids, or `ignore_index`.
        weights: of each ray.
        ignore_index: label of rays that do not count.
        weighted: divide by the sum of the weights.
    """
    semantics, weight_sum = _full(semantics), _full(weight_sum)
    known = labels != ignore_index
    chosen = semantics.gather(1, torch.where(known, labels, 0).long()[:, None])[:, 0]
    every = weight_sum + semantics.shape[1] * HIT_EPSILON
    loss = torch.where(known, every, 1.0).log() - torch.where(known, chosen + HIT_EPSILON, 1.0).log()
    return _mean(loss, weights, known, weighted)


def depth_loss(
    depth: Tensor,  # [R]
    target: Tensor,  # [R]
    weights: Tensor | None = None,  # [R]
    kind: Literal["mse", "l1", "huber", "silog"] = "mse",
    mask: Tensor | None = None,  # [R]
    delta: float = 1.0,
) -> Tensor:
    """Distance of rendered from measured depth.

    Compare like with like: the renderer's depth is a length along the ray, `RayLabels.distance`, not the camera's z
    (up to 1.25 times apart in the corner of a front camera, V8).

    Args:
        depth: metres, rendered.
        target: metres, measured.
        weights: of each ray.
        kind: "mse" (metres squared), "l1", "huber" with `delta` (metres), or "silog" (`silog_loss`).
        mask: rays that count.
        delta: where Huber's loss turns from a parabola into a line, metres.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "silog":
        return silog_loss(depth, target, weights, mask)
    if kind not in ("mse", "l1", "huber"):
        raise ValueError(f"kind must be 'mse', 'l1', 'huber' or 'silog', got {kind!r}")
    depth, target = _full(depth), _full(target)
    if mask is not None:
        depth, target = torch.where(mask, depth, 0.0), torch.where(mask, target, 0.0)
    if kind == "mse":
        loss = (depth - target).square()
    elif kind == "l1":
        loss = (depth - target).abs()
    else:
        loss = functional.huber_loss(depth, target, reduction="none", delta=delta)
    return _mean(loss, weights, mask)


def silog_loss(
    depth: Tensor,  # [R]
    target: Tensor,  # [R]
    weights: Tensor | None = None,  # [R]
    mask: Tensor | None = None,  # [R]
    variance: float = 0.85,
    epsilon: float = 1e-3,
) -> Tensor:
    """Scale-invariant logarithmic error ``sqrt(mean(d^2) - variance * mean(d)^2)`` of d = ln(depth) - ln(target).

    Both means are weighted means (they divide by the sum of the weights). Depths below `epsilon` metres count as
    that, without a gradient; so does a perfect set of rays, where the square root has none.
    """
    depth, target = _full(depth), _full(target)
    if mask is not None:
        depth, target = torch.where(mask, depth, 1.0), torch.where(mask, target, 1.0)
    difference = depth.clamp_min(epsilon).log() - target.clamp_min(epsilon).log()
    square = _mean(difference.square(), weights, mask, weighted=True)
    mean = _mean(difference, weights, mask, weighted=True)
    loss = (square - variance * mean.square()).clamp_min(1e-12).sqrt()
    return loss * (depth.numel() > 0 if mask is None else mask.any())


def binary_entropy(
    probability: Tensor,  # [...]
    epsilon: float = 1e-6,
) -> Tensor:
    """Mean of ``-(p ln p + (1 - p) ln(1 - p))``: opacities or transmittances that have not made up their mind."""
    p = _full(probability).clamp(epsilon, 1 - epsilon)
    return _mean(-(p * p.log() + (1 - p) * torch.log1p(-p)))


def distortion_loss(
    sample_weights: Tensor,  # [R, S]
    midpoints: Tensor,  # [R, S]
    intervals: Tensor | float,  # [R, S]
) -> Tensor:
    """Distortion of Barron et al. (CVPR 2022): how far apart the mass of a ray lies; the mean over rays.

    ``sum_ij w_i w_j |m_i - m_j| + sum_i w_i^2 d_i / 3`` in one pass over the samples.

    Args:
        sample_weights: compositing weights.
        midpoints: of each sample's interval, ascending along the ray, in any unit of length.
        intervals: their lengths in the same unit, one number or one a sample.
    """
    weights, midpoints = _full(sample_weights), _full(midpoints)
    lengths = _full(intervals) if isinstance(intervals, Tensor) else intervals
    # Mass and moment of the samples before each one.
    mass = weights.cumsum(-1) - weights
    moment = (weights * midpoints).cumsum(-1) - weights * midpoints
    between = 2 * (weights * (midpoints * mass - moment)).sum(-1)
    within = (weights.square() * lengths).sum(-1) / 3
    return _mean(between + within)


def hit_loss(
    weight_sum: Tensor,  # [R]
    weights: Tensor | None = None,  # [R]
    mask: Tensor | None = None,  # [R]
) -> Tensor:
    """``-ln(A + 1e-4)``: a ray with a lidar return was stopped by something, so its weights must sum to 1."""
    total = _full(weight_sum)
    if mask is not None:
        total = torch.where(mask, total, 1.0)
    return _mean(-(total.clamp_min(0) + HIT_EPSILON).log(), weights, mask)


def mass_before(
    sample_weights: Tensor,  # [R, S]
    distances: Tensor,  # [R, S]
    limits: Tensor,  # [R]
) -> Tensor:
    """Compositing weight nearer than `limits` metres, [R]: what stands in front of a lidar return."""
    return (_full(sample_weights) * (distances < limits[:, None])).sum(-1)


def free_space_loss(
    front: Tensor,  # [R]
    weights: Tensor | None = None,  # [R]
    mask: Tensor | None = None,  # [R]
) -> Tensor:
    """Mean of the mass in front of the returns (`mass_before`, or what renderers give for `front_limits`).

    The published margin is `FREE_MARGIN` = 0.8 m: ``limits = distance - 0.8``.
    """
    front = _full(front)
    return _mean(front if mask is None else torch.where(mask, front, 0.0), weights, mask)


def total_variation(
    volume: Tensor,  # [B, X, Y, Z] or [B, X, Y, Z, C]
) -> Tensor:
    """Mean absolute difference between neighbouring voxels, summed over the three axes."""
    volume = _full(volume)
    return torch.stack([_mean(volume.diff(dim=axis).abs()) for axis in (1, 2, 3)]).sum()


def _full(values: Tensor) -> Tensor:
    """In float32 at least: logarithms and long sums are not for half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _mean(loss: Tensor, weights: Tensor | None = None, mask: Tensor | None = None, weighted: bool = False) -> Tensor:
    """Mean over the entries that count, 0 and attached without any."""
    shares = torch.ones_like(loss) if weights is None else weights.to(loss)
    counted = torch.ones_like(loss)
    if mask is not None:
        loss = torch.where(mask, loss, 0.0)
        shares, counted = torch.where(mask, shares, 0.0), mask.to(loss)
    total = (shares if weighted else counted).sum()
    return (loss * shares).sum() / torch.where(total > 0, total, 1.0)
