"""Which voxels a ray can meet: the layers across its main axis, and in each a square window around the ray.

A ray is written in cells (voxel centres are integers). Its main axis a is the one along which it crosses most layers.
In the layer at a = i it passes (p_b, p_c); a mean within `reach` metres of the ray lies no further from there, along
b, than ``reach sqrt(1 + (d_b / d_a)^2)``, and an offset of at most m metres an axis adds ``m (1 + |d_b / d_a|)``. The
window is thus a few voxels wide whatever the direction: 5 for a scale of 0.2 m, where a cube of steps would look at
125 and meet most voxels five times. Legend: S paths, N pairs of a path and a voxel.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.splat_rays import RayPaths

# Float32 puts a ray in a grid of a thousand cells to 1e-4 of a cell.
SLACK = 1e-3


@dataclass(frozen=True, eq=False)
class Walk:
    """Paths as they cross the lattice; a is the main axis, b and c the two others. All [S]."""

    first: Tensor  # int64, first layer of the walk's range (not in the order of travel)
    count: Tensor  # int64, layers
    start_b: Tensor  # p_b at layer 0, cells
    slope_b: Tensor  # cells a layer
    half_b: Tensor  # half the window, cells
    start_c: Tensor
    slope_c: Tensor
    half_c: Tensor
    lateral_b: Tensor  # unit direction along b, metres
    lateral_c: Tensor
    axes: Tensor  # int64 [S, 3]: a, b, c


def window_size(spec: GridSpec, reach: float, max_offset: float) -> int:
    """Voxels of a window's side that hold every mean within reach of a ray of any direction."""
    sides = []
    for a, size_a in enumerate(spec.voxel_size):
        for b, size_b in enumerate(spec.voxel_size):
            ratio = size_b / size_a  # of the direction's components, at most
            if a != b:
                half = (reach * math.sqrt(1 + ratio**2) + max_offset * (1 + ratio)) / size_b + SLACK
                sides.append(math.floor(2 * half) + 1)
    return max(sides)


def cross_lattice(paths: RayPaths, spec: GridSpec, reach: float, max_offset: float, near: float, far: float) -> Walk:
    """The layers that each path crosses between `near` and `far` metres, cut to its bounds."""
    size = constant(spec.voxel_size, paths.origins)
    origin = (paths.origins - constant(spec.lower, paths.origins)) / size - 0.5  # cells
    direction = paths.directions / size  # cells a metre
    a = direction.abs().argmax(1)
    axes = (a[:, None] + torch.arange(3, device=a.device)) % 3
    origin, direction = origin.gather(1, axes), direction.gather(1, axes)
    metric, edges = paths.directions.gather(1, axes), size[axes]
    lower, upper = paths.bounds.gather(2, axes[:, None].expand(-1, 2, -1)).to(origin.dtype).unbind(1)

    forward = direction[:, :1]
    slope = direction[:, 1:] / forward
    start = origin[:, 1:] - origin[:, :1] * slope
    ratio = (metric[:, 1:] / metric[:, :1]).abs()
    half = (reach * (1 + ratio.square()).sqrt() + max_offset * (1 + ratio)) / edges[:, 1:] + SLACK

    # A mean's foot on the ray is at most (reach + offset) / d_a metres from where the ray crosses its layer; twice
    # the reach, because a rasteriser takes the distance at the mean's own z instead.
    margin = (2 * reach + max_offset) / edges[:, 0] + SLACK
    ends = torch.stack([origin[:, 0] + near * direction[:, 0], origin[:, 0] + far * direction[:, 0]])
    begin, end = ends.amin(0) - margin, ends.amax(0) + margin
    for side in range(2):
        # Layers in which the window touches the bounds: lower - half <= start + i slope <= upper + half.
        at_lower = (lower[:, 1 + side] - half[:, side] - start[:, side]) / slope[:, side]
        at_upper = (upper[:, 1 + side] + half[:, side] - start[:, side]) / slope[:, side]
        # Along a layer (slope 0) these are infinite, of one sign where it misses; on the edge, 0 / 0, all count.
        begin = torch.maximum(begin, torch.minimum(at_lower, at_upper).nan_to_num(-torch.inf, torch.inf, -torch.inf))
        end = torch.minimum(end, torch.maximum(at_lower, at_upper).nan_to_num(torch.inf, torch.inf, -torch.inf))
    wide = 2.0**24
    first = torch.maximum(begin.clamp(-wide, wide).ceil(), lower[:, 0])
    last = torch.minimum(end.clamp(-wide, wide).floor(), upper[:, 0])
    return Walk(
        first.long(), (last - first + 1).clamp(min=0).long(),
        start[:, 0], slope[:, 0], half[:, 0], start[:, 1], slope[:, 1], half[:, 1],
        metric[:, 1], metric[:, 2], axes,
    )  # fmt: skip
