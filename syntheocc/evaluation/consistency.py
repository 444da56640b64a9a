"""Whether neighbouring views show the same thing where they overlap, by warping with the exact depth.

A pixel of one view is lifted with its exact depth, projected into a neighbouring view, kept where that view's own
depth says that nothing stands in front, and compared with the colour found there. Pinhole cameras only.

Legend: V views, K neighbours, P overlapping pixels, H W pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from syntheocc.occupancy.cameras import CameraRig

__all__ = ["Overlap", "overlaps", "warp_difference"]


class Overlap(NamedTuple):
    """Pixels of one view and where the same points lie in its neighbour."""

    view: Tensor  # int64 [P]
    row: Tensor  # int64 [P]
    column: Tensor  # int64 [P]
    other: Tensor  # int64 [P], the neighbour
    position: Tensor  # float32 [P, 2] (u, v) in the neighbour, pixels


def overlaps(depth: Tensor, rig: CameraRig, neighbors: Tensor | None = None, tolerance: float = 0.03) -> Overlap:
    """Find the pixels that two neighbouring views both see.

    Args:
        depth: [V, H, W] exact z-depth of every pixel's centre, metres, inf where there is nothing.
        rig: V pinhole cameras; images of another size than theirs are taken for the whole image scaled.
        neighbors: int64 [V, K] padded with -1; default `rig.neighbors()`.
        tolerance: how much nearer than the warped point the neighbour's own surface may be, as a share of the depth,
            and how much farther.

    Returns:
        The overlap in the device of `depth`.

    Raises:
        ValueError: cameras that are no plain pinholes, or another number of them.
    """
    if len(rig) != len(depth):
        raise ValueError(f"depth is of {len(depth)} views, but the rig has {len(rig)} cameras")
    height, width = depth.shape[-2:]
    rig = rig.resized(height, width)
    if not rig.arrays.is_plain:
        raise ValueError("views are warped between pinhole cameras without distortion; undistort the images first")
    device = depth.device
    matrices = torch.from_numpy(rig.arrays.intrinsics).to(device)
    cam2ego = torch.from_numpy(rig.arrays.cam2ego).to(device)
    table = (rig.neighbors() if neighbors is None else neighbors).tolist()
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], -1).double()
    parts = []
    for view, others in enumerate(table):
        rays = pixels @ torch.linalg.inv(matrices[view]).T
        seen = torch.isfinite(depth[view])
        points = torch.where(seen, depth[view], 0.0)[..., None] * rays  # [H, W, 3] camera frame
        for other in (o for o in others if o >= 0):
            between = torch.linalg.inv(cam2ego[other]) @ cam2ego[view]
            target = points @ between[:3, :3].T + between[:3, 3]
            z = target[..., 2]
            position = (target @ matrices[other].T)[..., :2] / z.clamp_min(1e-6)[..., None]
            u, v = position.unbind(-1)
            inside = seen & (z > 0.1) & (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
            here = inside.nonzero()
            position, z = position[inside], z[inside]
            near = position.round().long()
            surface = depth[other][near[:, 1], near[:, 0]]
            same = (surface - z).abs() <= tolerance * z
            here, position = here[same], position[same].float()
            pair = torch.tensor([view, other], device=device).expand(len(here), 2)
            parts.append((pair[:, 0], here[:, 0], here[:, 1], pair[:, 1], position))
    if not parts:
        empty = torch.zeros(0, dtype=torch.long, device=device)
        return Overlap(empty, empty, empty, empty, torch.zeros(0, 2, device=device))
    return Overlap(*(torch.cat(column) for column in zip(*parts, strict=True)))


def warp_difference(images: Tensor, overlap: Overlap, others: Tensor | None = None) -> tuple[float, float, int]:
    """Compare the two views of every overlapping pixel.

    Args:
        images: float [V, 3, H, W] in [0, 1].
        overlap: of these views.
        others: the images in which the neighbours are looked up; default `images`. Another frame's images give what
            views without anything to do with one another would score.

    Returns:
        The mean absolute difference of colour (0..1), the correlation of brightness (NaN where it is constant), and P.
        Both are NaN for an empty overlap.
    """
    others = images if others is None else others
    if len(overlap.view) == 0:
        return float("nan"), float("nan"), 0
    height, width = images.shape[-2:]
    ours = images[overlap.view, :, overlap.row, overlap.column]  # [P, 3]
    scale = torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)], device=images.device)
    theirs = torch.empty_like(ours)
    for view in range(len(images)):
        chosen = overlap.other == view
        grid = (overlap.position[chosen] * scale - 1).to(others.dtype)
        found = F.grid_sample(others[view : view + 1], grid[None, None], align_corners=True)
        theirs[chosen] = found[0, :, 0].T
    difference = float((ours - theirs).abs().mean())
    pair = torch.stack([ours.mean(1), theirs.mean(1)]).double()
    pair = pair - pair.mean(1, keepdim=True)
    power = pair.square().sum(1).prod().sqrt()
    correlation = float((pair[0] * pair[1]).sum() / power) if float(power) > 1e-9 else float("nan")
    return difference, correlation, len(ours)
