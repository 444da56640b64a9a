"""OccFlowNet's own occupancy flow: voxels moved one by one, with the holes that this leaves; for parity.

`rendering.motion` is what to use: it has no holes, blends nothing and needs no files (specs/occflownet_splattingocc.md
3.4 to 3.6, vector V9). The rows here are also what the published flow files hold (`occupancy.data.flow_files`).

Legend: N rows, one a voxel and frame; K motions, M boxes, X Y Z voxels, C classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.rendering.rays import BoxMotion

__all__ = ["FlowRows", "flow_rows", "scatter_voxels"]


@dataclass(eq=False)
class FlowRows:
    """Voxels of one sample that move, and where to; indices are [x, y, z].

    Args:
        source: int64 [N, 3] voxel at key time.
        target: int64 [N, 3] voxel that its centre moves into, clamped to the grid.
        corner: int64 [N, 3] lowest of the eight voxels around the moved centre, clamped to the grid.
        labels: int64 [N] class of the box.
        frames: int64 [N] index into the rays' `frame_offsets`.
        motions: int64 [N] row of `source2target`.
        source2target: float32 [K, 4, 4] the boxes' motions in the key ego frame, metres.
    """

    source: Tensor
    target: Tensor
    corner: Tensor
    labels: Tensor
    frames: Tensor
    motions: Tensor
    source2target: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> "FlowRows":
        """Some of the rows; all motions stay."""
        rows: dict[str, Any] = {name: value[index] for name, value in vars(self).items() if name != "source2target"}
        return FlowRows(**rows, source2target=self.source2target)

    def to(self, device: torch.device | str) -> "FlowRows":
        """On another device."""
        rows: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items()}
        return FlowRows(**rows)

    def flipped(self, spec: GridSpec, x: bool, y: bool) -> "FlowRows":
        """The rows in a grid mirrored along x, along y or both.

        Mirroring goes about the frame's origin, which must be the middle of the grid along that axis, as Occ3D's is.

        Raises:
            ValueError: it is not.
        """
        rows: dict[str, Any] = dict(vars(self))
        mirror = torch.ones(4, dtype=self.source2target.dtype, device=self.source2target.device)
        for axis, flip in ((0, x), (1, y)):
            if not flip:
                continue
            if abs(spec.lower[axis] + spec.upper[axis]) > 1e-6:
                raise ValueError(f"only a grid around the origin can be mirrored about it, got {spec}")
            mirror[axis] = -1
            last = spec.shape[axis] - 1
            # The lowest of eight neighbours becomes the highest, so the new lowest is one further.
            for name, top in (("source", last), ("target", last), ("corner", last - 1)):
                moved = rows[name].clone()
                moved[:, axis] = (top - moved[:, axis]).clamp_min(0)
                rows[name] = moved
        rows["source2target"] = mirror[:, None] * self.source2target * mirror
        return FlowRows(**rows)


def flow_rows(
    motion: BoxMotion,
    spec: GridSpec,
) -> FlowRows:
    """The rows of one sample's boxes, in the order of the boxes.

    Boxes whose centre lies outside the grid at key time have no rows. A voxel belongs to a box if its centre lies in
    the padded box (`BoxMotion.padded_sizes`); it may belong to several.

    Args:
        motion: boxes of one sample.
        spec: the volume's grid.

    Raises:
        ValueError: boxes of several samples.
    """
    motion = motion.to(dtype=torch.float64)
    if len(motion) and bool((motion.samples != motion.samples[0]).any()):
        raise ValueError(f"flow rows are of one sample, got boxes of {motion.samples.unique().tolist()}; of_sample()")
    lower, size = constant(spec.lower, motion.sizes), constant(spec.voxel_size, motion.sizes)
    top = constant(spec.shape, motion.device) - 1
    transform, half = motion.source2target, motion.padded_sizes / 2
    center = motion.source2ego[:, :3, 3]
    inside_grid = spec.index_of(center)[1]
    # Only voxels in the box's bounds along the axes are looked at.
    reach = (motion.source2ego[:, :3, :3].abs() @ half[..., None])[..., 0]
    first = ((center - reach - lower) / size - 0.5).ceil().long().clamp_min(0)
    last = torch.minimum(((center + reach - lower) / size - 0.5).floor().long(), top)
    parts: list[tuple[Tensor, ...]] = []
    for m, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if not inside_grid[m]:
            continue
        axes = [torch.arange(one, other + 1, device=motion.device) for one, other in zip(low, high, strict=True)]
        cells = torch.cartesian_prod(*axes).view(-1, 3)
        centers, pose = lower + (cells + 0.5) * size, motion.source2ego[m]
        held = (((centers - pose[:3, 3]) @ pose[:3, :3]).abs() <= half[m]).all(1)
        at = (centers[held] @ transform[m, :3, :3].T + transform[m, :3, 3] - lower) / size
        target, corner = (
            torch.minimum(cell.floor().long().clamp_min(0), top) for cell in (at, at + 1e-5 / size - 0.5)
        )
        one = torch.ones_like(target[:, 0])
        parts.append((cells[held], target, corner, one * motion.labels[m], one * motion.frames[m], one * m))
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=motion.device)
        cells = none[:, None].expand(0, 3)
        return FlowRows(cells, cells, cells, none, none, none, transform.float())
    source, target, corner, labels, frames, motions = (torch.cat(column) for column in zip(*parts, strict=True))
    return FlowRows(source, target, corner, labels, frames, motions, transform.float())


def scatter_voxels(
    density: Tensor,  # [X, Y, Z]
    semantics: Tensor,  # [X, Y, Z, C]
    rows: FlowRows,
) -> tuple[Tensor, Tensor]:
    """A volume as it would be in another frame, by the published rule.

    Rows count where the volume's most likely class is the box's. Their source voxels become 0; each target voxel then
    becomes the mean of all that land there, whatever it held.

    Args:
        density: as renderers take it.
        semantics: logits.
        rows: those of one frame, indices within the volumes.

    Returns:
        density and semantics of the frame; gradients go from a target to the voxels that it came from.
    """
    spread = density.new_tensor([density.shape[1] * density.shape[2], density.shape[2], 1]).long()
    source, target = (rows.source * spread).sum(1), (rows.target * spread).sum(1)
    flat_density, flat_semantics = density.flatten(), semantics.flatten(0, 2)
    kept = flat_semantics[source].argmax(1) == rows.labels
    source, target = source[kept], target[kept]
    places, where, count = target.unique(return_inverse=True, return_counts=True)
    moved = []
    for flat in (flat_density[:, None], flat_semantics):
        mean = flat.new_zeros(len(places), flat.shape[1]).index_add(0, where, flat[source]) / count[:, None]
        moved.append(flat.index_fill(0, source, 0).index_copy(0, places, mean))
    return moved[0].view(density.shape), moved[1].view(semantics.shape)
