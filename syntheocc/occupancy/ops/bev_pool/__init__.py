"""Lift-splat pooling: every pixel's features, weighted by its depth distribution, summed into the voxels they fall in.

    out[m, c] = sum over n, d, h, w with voxels[n, d, h, w] == m of depth[n, d, h, w] * context[n, c, h, w]

The [N, D, C, h, w] tensor of lifted features (1.5 million points of 32 channels a frame at the published size) is
never made (specs/occflownet_splattingocc.md 2.2). Gradients go to `depth` and `context`.

Implementations of one signature: `reference` (a loop, the definition), `torch` (index-add over chunks of depth bins
with its own backward pass, any device) and `triton` (GPU; one launch each way). On a GPU both add with atomics: sums
differ in the last bits from run to run.

Legend: N images, D depth bins, C channels, h w pixels of the feature map, M voxels (of all samples).
"""

from torch import Tensor

from syntheocc.occupancy.ops.mpi_lookup import has_module

__all__ = ["BACKENDS", "bev_pool", "choose_backend"]

BACKENDS = ("reference", "torch", "triton")


def bev_pool(
    depth: Tensor,  # [N, D, h, w]
    context: Tensor,  # [N, C, h, w]
    voxels: Tensor,  # [N, D, h, w] int64
    num_voxels: int,
    backend: str | None = None,
) -> Tensor:
    """Pools lifted image features into voxels.

    Args:
        depth: weight of each depth bin of each pixel, usually a softmax.
        context: features of each pixel, of the same dtype.
        voxels: number of the voxel that a pixel at a depth lies in, 0 .. M - 1; negative: in none.
        num_voxels: M; the voxels of all samples are numbered through.
        backend: one of `BACKENDS`; None takes triton on a GPU where it is installed, else torch.

    Returns:
        [M, C] of the inputs' dtype; sums of half-precision inputs are made in float32.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is unknown or cannot run here.

    Example:
        >>> depth, context = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1), torch.tensor([4.0]).view(1, 1, 1, 1)
        >>> bev_pool(depth, context, torch.tensor([2, 0]).view(1, 2, 1, 1), 3)[:, 0].tolist()
        [3.0, 0.0, 1.0]
    """
    _check(depth, context, voxels, num_voxels)
    name = backend or choose_backend(depth)
    if name == "reference":
        from syntheocc.occupancy.ops.bev_pool.reference import bev_pool_reference as pool
    elif name == "torch":
        from syntheocc.occupancy.ops.bev_pool.vectorised import bev_pool_torch as pool
    elif name == "triton" and has_module("triton"):
        from syntheocc.occupancy.ops.bev_pool.triton import bev_pool_triton as pool
    else:
        raise ValueError(
            f"backend {name!r} cannot run here: choose from {', '.join(BACKENDS)}; triton comes with the GPU builds "
            "of torch"
        )
    return pool(depth, context, voxels, num_voxels)


def choose_backend(depth: Tensor) -> str:
    """The fastest installed implementation for these tensors."""
    return "triton" if depth.device.type == "cuda" and has_module("triton") else "torch"


def _check(depth: Tensor, context: Tensor, voxels: Tensor, num_voxels: int) -> None:
    if depth.ndim != 4 or context.ndim != 4 or not depth.is_floating_point() or depth.dtype != context.dtype:
        raise ValueError(
            "depth [N, D, h, w] and context [N, C, h, w] must be of one floating type, got "
            f"{depth.dtype} {tuple(depth.shape)} and {context.dtype} {tuple(context.shape)}"
        )
    if depth.shape[0] != context.shape[0] or depth.shape[2:] != context.shape[2:]:
        raise ValueError(
            f"depth {tuple(depth.shape)} and context {tuple(context.shape)} must have the same images and pixels"
        )
    if voxels.shape != depth.shape or voxels.is_floating_point():
        raise ValueError(f"voxels must be integer {tuple(depth.shape)}, got {voxels.dtype} {tuple(voxels.shape)}")
    if num_voxels < 1:
        raise ValueError(f"num_voxels must be at least 1, got {num_voxels}")
    if not depth.device == context.device == voxels.device:
        raise ValueError(
            f"depth, context and voxels must share one device, got {depth.device}, {context.device}, {voxels.device}"
        )
