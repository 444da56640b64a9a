"""Holes between what sweeps hit, filled where no ray says otherwise.

* **Ground** (`fill_ground`). Scan lines leave stripes. Columns within gaps of at most twice `reach` between columns
  whose ground was hit (a morphological closing of the map of such columns, which never grows outward) get ground at
  the height between them, smoothed, and of the nearest column's class. Not where a ray went lower than that: it would
  have passed through the ground. A ray that passes through the same voxel but above the surface is no objection;
  those rays graze the ground for metres before they meet it.
* **Bodies** of cars, trucks, trailers and buses (`fill_object`). In the box's own frame, what lies between two
  returns along its length belongs to the body, and then what lies between two such cells along its width.
* **Everything else** (`close_surfaces`). Morphological closing with a cube, of voxels that no ray passed only; a
  filled voxel takes the class that most of its neighbours have.

Legend: N returns, X Y Z voxels.
"""

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.accumulation.visibility import RayPasses
from syntheocc.occupancy.grids import GridSpec

__all__ = ["close_surfaces", "fill_ground", "fill_object"]

# How much lower than the ground a ray may seem to come: range noise and the roughness of the ground, metres.
_FLOOR_TOLERANCE = 0.1


def fill_ground(
    labels: Tensor, points: Tensor, passes: RayPasses, spec: GridSpec, free: int, ground: Tensor, reach: float
) -> None:
    """Lay ground into the gaps between columns where it was hit, in place.

    Args:
        labels: uint8 [X, Y, Z], written.
        points: float [N, 3] metres in the grid's frame, the background's returns.
        passes: the rays.
        spec: where the voxels lie.
        free: the label of voxels that may be filled.
        ground: bool [256], which classes are ground.
        reach: half the widest gap that is closed, metres.
    """
    from scipy import ndimage

    index, inside = spec.index_of(points)
    index, z = index[inside], points[inside][:, 2].double()
    on_ground = ground[labels[tuple(index.T)].int()]
    index, z = index[on_ground], z[on_ground]
    width, depth, _ = spec.shape
    column = index[:, 0] * depth + index[:, 1]
    count = torch.bincount(column, minlength=width * depth).reshape(width, depth).numpy()
    total = torch.bincount(column, z - spec.lower[2], minlength=width * depth).reshape(width, depth).numpy()
    seen = count > 0
    if not seen.any():
        return
    steps = [max(1, round(reach / size)) for size in spec.voxel_size[:2]]
    closed = _closing(seen, steps)
    # Normalised convolution (Knutsson and Westin 1993): the mean of what was seen around, weighted by nearness.
    sigma = [step / 2 for step in steps]
    weight = ndimage.gaussian_filter(seen.astype(np.float64), sigma, mode="constant")
    height = np.where(seen, total / np.maximum(count, 1), 0.0)
    smooth = ndimage.gaussian_filter(height, sigma, mode="constant") / np.maximum(weight, 1e-12)
    floor = passes.floor.numpy() - spec.lower[2]
    gap = closed & ~seen & (weight > 1e-9) & (smooth <= floor + _FLOOR_TOLERANCE)
    level = np.floor(smooth / spec.voxel_size[2]).astype(int)
    gap &= (level >= 0) & (level < spec.shape[2])
    x, y = np.nonzero(gap)
    if not len(x):
        return
    # The class of the nearest column whose ground was hit: of its lowest ground voxel.
    is_ground = ground[labels.int()].numpy()
    lowest = is_ground.argmax(2)
    _, nearest = ndimage.distance_transform_edt(~is_ground.any(2), return_indices=True)
    nx, ny = nearest[0][x, y], nearest[1][x, y]
    classes = labels.numpy()[nx, ny, lowest[nx, ny]]
    empty = labels.numpy()[x, y, level[x, y]] == free
    labels.numpy()[x[empty], y[empty], level[x, y][empty]] = classes[empty]


def fill_object(points: Tensor, size: Tensor, cell: float) -> tuple[Tensor, Tensor]:
    """The cells of an object, its inside included.

    Args:
        points: [N, 3] metres in the object's own frame.
        size: [3] metres, its box.
        cell: edge of a cell, metres.

    Returns:
        bool [x, y, z] cells that are filled, and float64 [3], the lower corner of the first one, metres.
    """
    half = size.double() / 2
    counts = torch.ceil(2 * half / cell).long().clamp_min(1) + 2
    lower = -counts * cell / 2
    index = ((points.double() - lower) / cell).floor().long()
    index = index[((index >= 0) & (index < counts)).all(1)]
    hit = np.zeros(counts.tolist(), dtype=bool)
    hit[tuple(index.numpy().T)] = True
    return torch.from_numpy(_between(_between(hit, 0), 1)), lower


def _between(hit: np.ndarray, axis: int) -> np.ndarray:
    """Cells with a hit on both sides along an axis, hits included."""
    before = np.logical_or.accumulate(hit, axis)
    return before & np.flip(np.logical_or.accumulate(np.flip(hit, axis), axis), axis)


def close_surfaces(
    labels: Tensor, instances: Tensor, passes: RayPasses, free: int, closable: Tensor, steps: int
) -> Tensor:
    """Close holes of at most twice `steps` voxels that no ray passed, in place.

    Args:
        labels: uint8 [X, Y, Z], written.
        instances: int32 [X, Y, Z]; filled voxels are no object's, and objects do not take part.
        passes: the rays.
        free: the label of voxels that may be filled.
        closable: bool [256], the classes that are continued.
        steps: half the edge of the cube.

    Returns:
        bool [X, Y, Z], what was filled.
    """
    solid = closable[labels.int()] & (instances == 0)
    filled = _spread(solid, steps, grow=True)
    filled = _spread(filled, steps, grow=False)
    filled &= ~solid & (labels == free) & (passes.through == 0)
    where = filled.nonzero()
    if not len(where):
        return filled
    shape = torch.tensor(labels.shape)
    votes = torch.zeros(len(where), 256, dtype=torch.int16)
    rows = torch.arange(len(where))
    span = torch.arange(-steps, steps + 1)
    for offset in torch.cartesian_prod(span, span, span):
        index = where + offset
        inside = ((index >= 0) & (index < shape)).all(1)
        found = labels[tuple(index.clamp_min(0).minimum(shape - 1).T)].long()
        says = inside & closable[found]
        votes[rows[says], found[says]] += 1
    most, winner = votes.max(1)
    labels[filled] = torch.where(most > 0, winner, free).to(torch.uint8)
    return filled & (labels != free)


def _spread(mask: Tensor, steps: int, grow: bool) -> Tensor:
    """Dilation or erosion of bool [X, Y, Z] with a cube; beyond the border is nothing, and it does not erode."""
    for axis in range(3):
        for _ in range(steps):
            near, last = mask.clone(), mask.shape[axis] - 1
            for there, here in ((1, 0), (0, 1)):
                target, source = near.narrow(axis, here, last), mask.narrow(axis, there, last)
                (target.logical_or_ if grow else target.logical_and_)(source)
            mask = near
    return mask


def _closing(seen: np.ndarray, steps: list[int]) -> np.ndarray:
    """Morphological closing of a map [X, Y] with an ellipse; beyond the border it goes on as at the border."""
    from scipy import ndimage

    x, y = np.ogrid[-steps[0] : steps[0] + 1, -steps[1] : steps[1] + 1]
    ellipse = (x / (steps[0] + 0.5)) ** 2 + (y / (steps[1] + 0.5)) ** 2 <= 1
    wide = np.pad(seen, [(step, step) for step in steps])
    # By distance where the ellipse is a circle: as many operations whatever its size.
    if steps[0] == steps[1]:
        radius = steps[0] + 0.5
        grown = ndimage.distance_transform_edt(~wide) <= radius
        grown = np.pad(grown[tuple(slice(s, -s) for s in steps)], [(s, s) for s in steps], mode="edge")
        closed = ndimage.distance_transform_edt(grown) > radius
    else:
        closed = ndimage.binary_closing(wide, ellipse)
    return seen | closed[steps[0] : -steps[0], steps[1] : -steps[1]]
