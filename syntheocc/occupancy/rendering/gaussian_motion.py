"""Gaussians that move with boxes: where they stand at the time of another frame.

For frame t, a Gaussian whose voxel's centre lies in a box as it stands at key time, and whose class is the box's,
moves with it (specs/occflownet_splattingocc.md 4.2 "Flow"). All else stays, and a voxel in several boxes goes with
the first. Splatting needs no more than that: nothing is resampled, so there are no holes.

Along rays the Gaussians stay on their lattice and the ray goes back with the box instead: one straight path for what
stands still, and one for each box that the ray comes near to. For cameras, `GaussianMoves.means` moves the means.

Legend: M rows of boxes (`BoxMotion`), B samples, X Y Z voxels, O pairs of a sample and a frame with boxes, R rays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.splat_rays import RayPaths
from syntheocc.occupancy.rendering.motion import box_stretches, rays_and_boxes, turned
from syntheocc.occupancy.rendering.rays import BoxMotion

__all__ = ["GaussianMoves"]


@dataclass(frozen=True, eq=False)
class GaussianMoves:
    """Which Gaussians move with which box.

    Args:
        motion: the boxes.
        owners: int16 [O, X, Y, Z]: 0 stays, else 1 + the box's number in its table.
        tables: int64 [M] the table of each box.
        numbers: int64 [M] its number in the table.
        bounds: int64 [M, 2, 3] first and last voxel that may be its own, inclusive.
    """

    motion: BoxMotion
    owners: Tensor
    tables: Tensor
    numbers: Tensor
    bounds: Tensor

    @classmethod
    def of(cls, motion: BoxMotion, classes: Tensor | None, spec: GridSpec) -> "GaussianMoves | None":
        """Finds the voxels of each box; None without boxes.

        Args:
            motion: boxes at key time and at other frames, key ego frame.
            classes: int64 [B, X, Y, Z] class of each voxel (`Gaussians.classes`); None moves all of a box.
            spec: where the voxels lie.

        Raises:
            ValueError: more boxes in one frame than int16 can number, or classes of another grid.
        """
        if not len(motion):
            return None
        if classes is not None and tuple(classes.shape[1:]) != spec.shape:
            raise ValueError(f"classes must be [B, X, Y, Z] = [B, {spec.shape}], got {list(classes.shape)}")
        device = motion.device
        keys = torch.stack([motion.samples, motion.frames], 1)
        pairs, tables = keys.unique(dim=0, return_inverse=True)
        # Number within the table, in the order of rows.
        order = tables.argsort(stable=True)
        count = torch.bincount(tables, minlength=len(pairs))
        numbers = torch.empty_like(tables)
        numbers[order] = torch.arange(len(tables), device=device) - (count.cumsum(0) - count)[tables[order]]
        if int(count.max()) >= 2**15 - 1:
            raise ValueError(f"{int(count.max())} boxes in one frame; at most {2**15 - 2} can be told apart")
        bounds = _cell_bounds(motion, spec)
        owners = _owners(motion, tables, numbers, bounds, len(pairs), classes, spec)
        return cls(motion, owners, tables, numbers, bounds)

    def paths(
        self,
        origins: Tensor,  # [R, 3]
        directions: Tensor,  # [R, 3]
        samples: Tensor,  # [R]
        frames: Tensor,  # [R]
        spec: GridSpec,
        margin: float,
    ) -> tuple[RayPaths, Tensor]:
        """The walks of rays: one through what stays, one through each box of the ray's frame that it comes near to.

        Args:
            origins: metres.
            directions: unit vectors.
            samples: int64.
            frames: int64, as in the boxes.
            spec: where the voxels lie.
            margin: metres from a ray at which a Gaussian can still be seen.

        Returns:
            the paths, and the rotations [S, 3, 3] that take a ray's frame to its path's.
        """
        boxes = self.motion.to(origins.device, origins.dtype)
        plain = RayPaths.straight(origins, directions, samples, spec)
        ray, box = rays_and_boxes(frames, samples, boxes)
        tables = plain.tables.clone()
        tables[ray] = self.tables[box]
        enter, leave = box_stretches(boxes.target2ego, boxes.padded_sizes / 2 + margin, origins, directions, ray, box)
        near = (leave >= enter).nonzero()[:, 0]
        ray, box = ray[near], box[near]
        back = boxes.target2source[box]
        rows = {
            "origins": turned(back[:, :3, :3], origins[ray]) + back[:, :3, 3],
            "directions": turned(back[:, :3, :3], directions[ray]),
            "rays": ray,
            "volumes": samples[ray],
            "bounds": self.bounds[box],
            "tables": self.tables[box],
            "owners": self.numbers[box] + 1,
        }
        columns = plain.columns() | {"tables": tables}
        order = torch.cat([columns["rays"], rows["rays"]]).argsort(stable=True)
        joined = {name: torch.cat([column, rows[name]])[order] for name, column in columns.items()}
        still = torch.eye(3, dtype=back.dtype, device=back.device).expand(len(plain), 3, 3)
        return RayPaths(**joined, num_rays=plain.num_rays), torch.cat([still, back[:, :3, :3]])[order]

    def means(self, means: Tensor, sample: int, frame: int) -> Tensor:
        """Means [X, Y, Z, 3] of one sample as they are at a frame."""
        rows = ((self.motion.samples == sample) & (self.motion.frames == frame)).nonzero()[:, 0].tolist()
        for row in rows:
            move = self.motion.source2target[row].to(means)
            mine = self.owners[self.tables[row]] == self.numbers[row] + 1
            means = torch.where(mine[..., None], means @ move[:3, :3].T + move[:3, 3], means)
        return means


def _cell_bounds(motion: BoxMotion, spec: GridSpec) -> Tensor:
    """First and last voxel [M, 2, 3] whose centre can lie in each padded box at key time; empty off the grid."""
    pose, half = motion.source2ego.double(), motion.padded_sizes.double() / 2
    reach = (pose[:, :3, :3].abs() @ half[:, :, None])[..., 0]
    lower, size = constant(spec.lower, pose), constant(spec.voxel_size, pose)
    first = ((pose[:, :3, 3] - reach - lower) / size - 0.5).ceil().long().clamp(min=0)
    last = ((pose[:, :3, 3] + reach - lower) / size - 0.5).floor().long()
    shape = constant(spec.shape, pose.device)
    return torch.stack([first, torch.minimum(last, shape - 1)], 1)


def _owners(
    motion: BoxMotion,
    tables: Tensor,
    numbers: Tensor,
    bounds: Tensor,
    pairs: int,
    classes: Tensor | None,
    spec: GridSpec,
) -> Tensor:
    """The tables, int16 [O, X, Y, Z]."""
    device, shape = motion.device, spec.shape
    cells = shape[0] * shape[1] * shape[2]
    sides = (bounds[:, 1] - bounds[:, 0] + 1).clamp(min=0)  # [M, 3]
    counts = sides.prod(1)
    row = torch.arange(len(motion), device=device).repeat_interleave(counts)
    local = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row]
    side = sides[row]
    index = (
        torch.stack([local // (side[:, 1] * side[:, 2]), local // side[:, 2] % side[:, 1], local % side[:, 2]], -1)
        + bounds[row, 0]
    )
    pose, half = motion.source2ego.double(), motion.padded_sizes.double() / 2
    center = constant(spec.lower, pose) + (index + 0.5) * constant(spec.voxel_size, pose)
    inside = (torch.einsum("pji,pj->pi", pose[row, :3, :3], center - pose[row, :3, 3]).abs() <= half[row]).all(1)
    cell = (index[:, 0] * shape[1] + index[:, 1]) * shape[2] + index[:, 2]
    if classes is not None:
        inside &= classes.reshape(-1)[motion.samples[row] * cells + cell] == motion.labels[row]
    row, cell = row[inside], cell[inside]
    nobody = 2**15 - 1
    owners = torch.full((pairs * cells,), nobody, dtype=torch.int32, device=device)
    owners.scatter_reduce_(0, tables[row] * cells + cell, (numbers[row] + 1).int(), "amin")
    return torch.where(owners == nobody, 0, owners).to(torch.int16).view(pairs, *shape)
