"""Multi-scale, multi-view sampling: image features at points, each point in one view and in all levels of a pyramid.

    out[b, q, g, t, p] = sum_l weights[b, t, q, g, p, l] * bilinear(features[l][b, t, view, :, :, group g], x, y)

with view = round(locations[..., 2] * (V - 1)), x = u * (W_l - 1) and y = v * (H_l - 1): the centres of a map's outer
pixels are its border (``align_corners``), and pixels beyond it count as zeros, so a point fades out over one pixel
(specs/sparseocc.md 2.3). Gradients go to features, u, v and weights, none to the view.

The dimensions stay apart from the network's feature pyramid to the mixing that follows, instead of being flattened to
the [N, ...] of the published operator: no copies are needed in between, and frames and groups cannot be mixed up (2.4,
"known bug"). The published shapes are those with T = G = 1.

Implementations of one signature: `reference` (indexing, the definition), `vectorised` (torch's grid_sample, any
device) and `triton` (GPU). The backward pass of the last adds with atomics: its feature gradients differ in the last
bits from run to run, forward passes do not.

Legend: B samples, T frames, V views, L levels, Q queries, G groups, C channels of a group, P points.
"""

from collections.abc import Sequence

from torch import Tensor

from syntheocc.occupancy.ops.mpi_lookup import has_module

__all__ = ["BACKENDS", "choose_backend", "msmv_sampling"]

BACKENDS = ("reference", "torch", "triton")
# Pyramids with more levels than the kernel has arguments go to torch.
MAX_LEVELS = 5


def msmv_sampling(
    features: Sequence[Tensor],  # L x [B, T, V, H_l, W_l, G * C]
    locations: Tensor,  # [B, T, Q, G, P, 3]
    weights: Tensor,  # [B, T, Q, G, P, L]
    backend: str | None = None,
) -> Tensor:
    """Samples a feature pyramid at points.

    Args:
        features: the levels of the pyramid, channels last (the permuted view of a channels-last convolution's output
            is not copied); float32, float16 or bfloat16.
        locations: (u, v, view), u and v in units of the image's width and height, view as index / (V - 1). Points
            outside the image, and NaN or infinite ones, sample zeros there.
        weights: the weight of each level; may be expanded, e.g. over T.
        backend: one of `BACKENDS`; None takes triton on a GPU where it is installed, else torch.

    Returns:
        [B, Q, G, T, P, C], contiguous, of the features' dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is unknown or cannot run here.

    Example:
        >>> maps = [torch.arange(24.0).view(1, 1, 2, 3, 4, 1)]
        >>> at = torch.tensor([0.5, 0.5, 0.0]).view(1, 1, 1, 1, 1, 3)
        >>> msmv_sampling(maps, at, torch.ones(1, 1, 1, 1, 1, 1)).item()
        5.5
    """
    features = list(features)
    _check(features, locations, weights)
    name = backend or choose_backend(features)
    if name == "reference":
        from syntheocc.occupancy.ops.msmv_sampling.reference import msmv_sampling_reference as sample
    elif name == "torch":
        from syntheocc.occupancy.ops.msmv_sampling.vectorised import msmv_sampling_torch as sample
    elif name == "triton" and has_module("triton") and len(features) <= MAX_LEVELS:
        from syntheocc.occupancy.ops.msmv_sampling.triton import msmv_sampling_triton as sample
    else:
        raise ValueError(
            f"backend {name!r} cannot run here: choose from {', '.join(BACKENDS)}; triton comes with the GPU builds "
            f"of torch and takes at most {MAX_LEVELS} levels"
        )
    return sample(features, locations, weights)


def choose_backend(features: Sequence[Tensor]) -> str:
    """The fastest installed implementation for these features."""
    on_gpu = features[0].device.type == "cuda" and has_module("triton") and len(features) <= MAX_LEVELS
    return "triton" if on_gpu else "torch"


def _check(features: list[Tensor], locations: Tensor, weights: Tensor) -> None:
    if not features:
        raise ValueError("features: a pyramid needs at least one level")
    first = features[0]
    if first.ndim != 6 or not first.is_floating_point():
        raise ValueError(f"features must be float [B, T, V, H, W, G*C], got {first.dtype} {tuple(first.shape)}")
    for level in features:
        same = level.shape[:3] == first.shape[:3] and level.shape[-1] == first.shape[-1]
        if level.ndim != 6 or not same or level.dtype != first.dtype or not level.numel():
            raise ValueError(
                "the levels of a pyramid differ in height and width only and none is empty, got "
                f"{[(str(f.dtype), *f.shape) for f in features]}"
            )
    batch, frames, channels = first.shape[0], first.shape[1], first.shape[-1]
    if locations.ndim != 6 or locations.shape[:2] != (batch, frames) or locations.shape[-1] != 3:
        raise ValueError(
            f"locations must be [B, T, Q, G, P, 3] with B, T = {batch}, {frames}; got {tuple(locations.shape)}"
        )
    expected = (*locations.shape[:-1], len(features))
    if tuple(weights.shape) != expected:
        raise ValueError(f"weights must be [B, T, Q, G, P, L] = {expected}, got {tuple(weights.shape)}")
    groups = locations.shape[3]
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels cannot be split into {groups} groups")
    if not first.device == locations.device == weights.device:
        raise ValueError(
            f"features, locations and weights must share one device, got {first.device}, {locations.device}, "
            f"{weights.device}"
        )
