"""One change to the occupancy at one seed: is the object there, is it gone, did the rest stay?

Edits work on boxes in the ego frame and touch the voxels whose centres lie in the box, nothing else. What an edit did
to a view is judged where the condition changed; what it did elsewhere is held against the difference that another seed
makes. Legend: X Y Z voxels, V views, H W pixels, h w cells.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["Box", "Effect", "changed_pixels", "effect_of", "insert_box", "remove_box", "repaint_box"]

# Classes that are the ground, by name: what is left where an object is taken away.
_GROUND = ("driveable_surface", "other_flat", "sidewalk", "terrain")


@dataclass(frozen=True, eq=False)
class Box:
    """An oriented box.

    Args:
        box2ego: float64 [4, 4]; origin in the middle, x along the length, z up.
        size: length, width, height, metres.
    """

    box2ego: Tensor
    size: tuple[float, float, float]

    def grown(self, margin: float) -> "Box":
        """The box with `margin` metres more on every side."""
        return Box(self.box2ego, tuple(edge + 2 * margin for edge in self.size))  # type: ignore[arg-type]

    def voxels(self, grid: OccupancyGrid) -> Tensor:
        """Indices int64 [N, 3] of the voxels whose centres lie in the box, on the grid's device, sorted."""
        spec = grid.spec
        box2grid = torch.linalg.inv(grid.grid2ego) @ self.box2ego
        half = torch.tensor(self.size, dtype=torch.float64) / 2
        reach = box2grid[:3, :3].abs() @ half  # half the extent along the grid's axes
        lower, edge = torch.tensor(spec.lower, dtype=torch.float64), torch.tensor(spec.voxel_size, dtype=torch.float64)
        first = ((box2grid[:3, 3] - reach - lower) / edge).floor().long().clamp_min(0)
        last = torch.minimum(((box2grid[:3, 3] + reach - lower) / edge).ceil().long(), torch.tensor(spec.shape))
        if bool((last <= first).any()):
            return torch.zeros(0, 3, dtype=torch.long, device=grid.device)
        axes = [torch.arange(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        centers = lower + (index + 0.5) * edge
        local = (centers - box2grid[:3, 3]) @ box2grid[:3, :3]  # the inverse of a rotation is its transpose
        return index[(local.abs() <= half).all(1)].to(grid.device)


def insert_box(grid: OccupancyGrid, box: Box, label: int) -> OccupancyGrid:
    """Fill a box with a class.

    Args:
        grid: is not changed.
        box: where; what is in it is overwritten.
        label: class id of the grid's taxonomy.

    Returns:
        A new grid.

    Raises:
        ValueError: no voxel lies in the box.
    """
    index = box.voxels(grid)
    if not len(index):
        raise ValueError(f"no voxel's centre lies in the box of {box.size} m: it is outside the grid or too thin")
    labels = grid.labels.clone()
    labels[tuple(index.T)] = label
    return OccupancyGrid(labels, grid.spec, grid.taxonomy, grid.grid2ego)


def remove_box(grid: OccupancyGrid, box: Box, margin: float = 0.2) -> OccupancyGrid:
    """Take the objects out of a box and close the ground under them.

    Args:
        grid: is not changed.
        box: foreground voxels in it, `margin` metres around included, become free.
        margin: metres.

    Returns:
        A new grid. Columns in which a removed voxel stood and no ground voxel is left take the commonest ground class
        of the metre around the box, at its median height.

    Raises:
        ValueError: no foreground voxel lies in the box.
    """
    index = _objects(grid, box.grown(margin))
    labels = grid.labels.clone()
    labels[tuple(index.T)] = grid.taxonomy.free
    ground = torch.zeros(256, dtype=torch.bool, device=grid.device)
    ground[[i for i, name in enumerate(grid.taxonomy.classes) if name in _GROUND]] = True
    around = Box(box.box2ego, (box.size[0] + 2, box.size[1] + 2, box.size[2] + 2)).voxels(grid)
    around = around[ground[labels[tuple(around.T)].int()]]
    if len(around):
        common = labels[tuple(around.T)].mode().values
        level = around[:, 2].median()
        columns = index[:, :2].unique(dim=0)
        bare = ~ground[labels[columns[:, 0], columns[:, 1]].int()].any(-1)
        columns = columns[bare]
        labels[columns[:, 0], columns[:, 1], level] = common
    return OccupancyGrid(labels, grid.spec, grid.taxonomy, grid.grid2ego)


def repaint_box(grid: OccupancyGrid, box: Box, label: int, margin: float = 0.2) -> OccupancyGrid:
    """Give the objects in a box another class, shape and place kept.

    Args:
        grid: is not changed.
        box: foreground voxels in it, `margin` metres around included, become `label`.
        label: class id of the grid's taxonomy.
        margin: metres.

    Raises:
        ValueError: no foreground voxel lies in the box.
    """
    index = _objects(grid, box.grown(margin))
    labels = grid.labels.clone()
    labels[tuple(index.T)] = label
    return OccupancyGrid(labels, grid.spec, grid.taxonomy, grid.grid2ego)


def _objects(grid: OccupancyGrid, box: Box) -> Tensor:
    """Indices int64 [N, 3] of the foreground voxels in a box; ValueError when there is none."""
    index = box.voxels(grid)
    foreground = torch.zeros(256, dtype=torch.bool, device=grid.device)
    foreground[list(grid.taxonomy.foreground)] = True
    index = index[foreground[grid.labels[tuple(index.T)].int()]]
    if not len(index):
        raise ValueError(f"no voxel of an object lies in the box of {box.size} m: there is nothing to edit")
    return index


def changed_pixels(before: Tensor, after: Tensor, size: tuple[int, int], label: int) -> tuple[Tensor, Tensor]:
    """Where an edit shows, from the nearest classes of the two conditions.

    Args:
        before: uint8 [V, h, w] nearest class without the edit.
        after: uint8 [V, h, w] with it.
        size: H, W of the images.
        label: the class that comes or goes.

    Returns:
        target bool [V, H, W]: pixels of cells that are `label` in one condition and something else in the other; and
        rest bool [V, H, W]: pixels further than two cells from every cell that differs at all.
    """
    differs = before != after
    target = differs & ((before == label) | (after == label))
    spread = F.max_pool2d(differs.float()[:, None], 5, stride=1, padding=2)

    def enlarge(cells: Tensor) -> Tensor:
        return F.interpolate(cells.float(), size=size, mode="nearest")[:, 0] > 0.5

    return enlarge(target[:, None]), ~enlarge(spread)


class Effect(NamedTuple):
    """What an edit did.

    label_before, label_after: share of the target's pixels in which the judge sees the class, without and with the
    edit; other_after: share in which it sees the other class of a repaint (NaN without one).
    rest_changed: mean absolute difference (0..1) of the images outside; seed_changed: the same between two seeds.
    rest_labels: share of the pixels outside in which the judge sees the same class as before.
    pixels: size of the target.
    """

    label_before: float
    label_after: float
    other_after: float
    rest_changed: float
    seed_changed: float
    rest_labels: float
    pixels: int


def effect_of(
    images: tuple[Tensor, Tensor, Tensor],
    seen: tuple[Tensor, Tensor],
    target: Tensor,
    rest: Tensor,
    label: int,
    other: int | None = None,
) -> Effect:
    """Measure an edit at one seed.

    Args:
        images: three float [V, 3, H, W] in [0, 1]: without the edit, with it, and without it at another seed.
        seen: uint8 [V, H, W] what the judge sees without and with the edit.
        target: bool [V, H, W], see `changed_pixels`.
        rest: bool [V, H, W].
        label: the class that comes or goes.
        other: the class that a repaint puts in its place.

    Raises:
        ValueError: an empty target or nothing outside it; labels of 255.
    """
    if UNKNOWN in (label, other):
        raise ValueError(f"{UNKNOWN} means unknown and is no class to look for")
    if not bool(target.any()) or not bool(rest.any()):
        raise ValueError("the edit changes nothing, or everything, that the cameras see; choose another box")
    before, after, elsewhere = images

    def share(prediction: Tensor, which: int) -> float:
        return float((prediction[target] == which).float().mean())

    def difference(a: Tensor, b: Tensor) -> float:
        return float(((a - b).abs().mean(1)[rest]).mean())

    return Effect(
        label_before=share(seen[0], label),
        label_after=share(seen[1], label),
        other_after=float("nan") if other is None else share(seen[1], other),
        rest_changed=difference(before, after),
        seed_changed=difference(before, elsewhere),
        rest_labels=float((seen[0] == seen[1])[rest].float().mean()),
        pixels=int(target.sum()),
    )
