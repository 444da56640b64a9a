"""What an edit means by "an object": how it is named, where it stands, and which voxels are its own.

| selector | object |
|---|---|
| `"stopped_car"` | what an earlier edit inserted under that name (or group) |
| `"#12"` | box 12 of the frame |
| `"6b89da9b..."` | the frame's box of that instance token |
| `{"class": "car", "near": [12, 0]}`, `"car@12,0"` | the nearest of a class, centre at most `within` (5 m) away |
| `{"center": [x, y, z], "size": [l, w, h], "yaw_deg": 0}` | what stands in this box |

Where a frame has no boxes, "the nearest one of a class" is a connected piece of that class's voxels, and its box is
fitted around them.

**Own voxels** of a box: objects' voxels whose centres lie in it, and those of the box's class up to one voxel around
it (labels of thin parts stand out that far). Of what lies in another object's box too, only voxels of the box's class
whose centres lie in it.
Legend: N voxels, B boxes.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import DETECTION_CLASSES, Boxes
from syntheocc.occupancy.editing.ground import ground_table, voxel_centers
from syntheocc.occupancy.editing.regions import Box, upright_box
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.taxonomy import UNKNOWN, Taxonomy

__all__ = [
    "Selector",
    "box_name",
    "box_of",
    "connected_object",
    "movable_table",
    "numbers",
    "own_voxels",
    "parse_selector",
]

Selector = str | Mapping[str, Any]
WITHIN = 5.0
# How far from the point asked for a connected piece is followed, metres: a bendy bus, and half of it.
_CROP = 30.0


def movable_table(taxonomy: Taxonomy) -> Tensor:
    """Bool [256]: labels of things that can be taken away: the table's foreground, and "others"."""
    table = torch.zeros(256, dtype=torch.bool)
    table[list(taxonomy.foreground)] = True
    if "others" in taxonomy.classes:
        table[taxonomy.id_of("others")] = True
    return table


def box_name(taxonomy: Taxonomy, label: int, name: str) -> str:
    """The name of the box of an object that was given a class; "" where the class is nothing that has boxes.

    Args:
        taxonomy: the grid's.
        label: the class.
        name: the word that it was called by.

    Raises:
        ValueError: the class is free space.
    """
    if label == taxonomy.free:
        raise ValueError(f"an object cannot be {name!r}: that is no object; remove it instead")
    if name in DETECTION_CLASSES:
        return name
    if taxonomy.classes[label] == "others":
        return "movable_object.debris"  # nuScenes' word for what is none of its objects and lies on the road
    return taxonomy.classes[label] if bool(movable_table(taxonomy)[label]) else ""


def parse_selector(selector: Selector) -> Selector:
    """The dict of a text such as `car@12,-3`, checked; other texts as they are.

    Raises:
        ValueError: a dict of other keys, or values that are no numbers.
    """
    if isinstance(selector, str):
        name, at, place = selector.partition("@")
        if not at:
            if not selector:
                raise ValueError("an object's name is empty")
            return selector
        selector = {"class": name, "near": place.split(",")}
    if not isinstance(selector, Mapping):
        raise ValueError(f"an object is a name, #number, class@x,y or a dict, got {selector!r}")
    keys = set(selector)
    if {"class", "near"} <= keys <= {"class", "near", "within"}:
        within = numbers(selector.get("within", WITHIN), 1, "within")[0]
        return {"class": str(selector["class"]), "near": numbers(selector["near"], 2, "near"), "within": within}
    if {"center", "size"} <= keys <= {"center", "size", "yaw_deg"}:
        yaw = numbers(selector.get("yaw_deg", 0.0), 1, "yaw_deg")[0]
        center, size = numbers(selector["center"], 3, "center"), numbers(selector["size"], 3, "size")
        return {"center": center, "size": size, "yaw_deg": yaw}
    raise ValueError(
        f"an object is told by class and near (and within), or by center and size (and yaw_deg); got {sorted(keys)}"
    )


def box_of(selector: Mapping[str, Any]) -> Box:
    """The box of a selector with center and size."""
    return upright_box(tuple(selector["center"]), tuple(selector["size"]), math.radians(selector["yaw_deg"]))


def own_voxels(grid: OccupancyGrid, box: Box, label: int | None, others: Boxes | None = None) -> Tensor:
    """The voxels of the object in a box (see above).

    Args:
        grid: the grid.
        box: the object's.
        label: its class; None where its box's name is no class of the table.
        others: the frame's other boxes.

    Returns:
        int64 [N, 3] on the CPU, sorted; may be empty.
    """
    margin = max(grid.spec.voxel_size)
    index = box.grown(margin).voxels(grid).cpu()
    labels = grid.labels[tuple(index.T.to(grid.device))].cpu()
    movable = movable_table(grid.taxonomy)[labels.int()]
    index, labels = index[movable], labels[movable]
    if not len(index):
        return index
    centers = voxel_centers(grid, index)
    local = (centers - box.box2ego[:3, 3]) @ box.box2ego[:3, :3]
    inside = (local.abs() <= torch.tensor(box.size, dtype=torch.float64) / 2 + 1e-9).all(1)
    same = torch.zeros_like(inside) if label is None else labels == label
    taken = torch.zeros_like(inside)
    if others is not None and len(others):
        taken = others.contains(centers).any(0)
    return index[(inside & (same | ~taken)) | (same & ~taken)]


def connected_object(
    grid: OccupancyGrid, class_name: str, near: tuple[float, float], within: float
) -> tuple[Box, Tensor]:
    """The connected piece of a class nearest to a point, and a box around it.

    Args:
        grid: the grid.
        class_name: a class of its table.
        near: x, y, metres in ego.
        within: metres that the piece's nearest voxel may be away.

    Returns:
        The box (its heading is the piece's longer side, forward or backward), and the voxels int64 [N, 3].

    Raises:
        ValueError: no voxel of the class is that near, or the class is no object.
    """
    from scipy import ndimage

    label = grid.taxonomy.label_of(class_name)
    if bool(ground_table(grid.taxonomy)[label]) or label == grid.taxonomy.free:
        raise ValueError(f"{class_name} is no object; repaint or select it with a box (center, size)")
    crop = upright_box((*near, 0.0), (2 * _CROP, 2 * _CROP, 1.0)).column(grid).voxels(grid).cpu()
    labels = grid.labels[tuple(crop.T.to(grid.device))].cpu()
    crop = crop[labels == label]
    if len(crop):
        low = crop.amin(0)
        dense = np.zeros(tuple((crop.amax(0) - low + 1).tolist()), dtype=bool)
        dense[tuple((crop - low).T.numpy())] = True
        pieces, _ = ndimage.label(dense, np.ones((3, 3, 3)))
        piece = torch.from_numpy(pieces[tuple((crop - low).T.numpy())])
        centers = voxel_centers(grid, crop)
        distance = (centers[:, :2] - torch.tensor(near, dtype=torch.float64)).norm(dim=1)
        nearest = int(distance.argmin())
        if float(distance[nearest]) <= within:
            chosen = piece == piece[nearest]
            return _fitted_box(centers[chosen], max(grid.spec.voxel_size)), crop[chosen]
    raise ValueError(f"no voxel of {class_name} lies within {within:g} m of ({near[0]:g}, {near[1]:g})")


def _fitted_box(centers: Tensor, edge: float) -> Box:
    """The upright box around voxel centres [N, 3], one voxel's edge larger, with the smallest footprint."""
    best: tuple[float, float, Tensor, Tensor] | None = None
    for yaw in np.deg2rad(np.arange(0, 90, 2)):
        turn = torch.tensor([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        flat = centers[:, :2] @ turn.T
        low, high = flat.amin(0) - edge / 2, flat.amax(0) + edge / 2
        area = float((high - low).prod())
        if best is None or area < best[0] - 1e-6:
            best = (area, float(yaw), low, high)
    assert best is not None
    _, yaw, low, high = best
    length, width = (high - low).tolist()
    x, y = ((low + high) / 2).tolist()
    middle = (math.cos(yaw) * x - math.sin(yaw) * y, math.sin(yaw) * x + math.cos(yaw) * y)
    if width > length:
        length, width, yaw = width, length, yaw + math.pi / 2
    bottom, top = float(centers[:, 2].min()) - edge / 2, float(centers[:, 2].max()) + edge / 2
    return upright_box((*middle, (bottom + top) / 2), (length, width, top - bottom), yaw)


def solid_table(taxonomy: Taxonomy) -> Tensor:
    """Bool [256]: labels that nothing can be put into: all but free, unknown and the ground."""
    table = torch.zeros(256, dtype=torch.bool)
    table[: taxonomy.num_classes] = True
    table[taxonomy.free] = table[UNKNOWN] = False
    return table & ~ground_table(taxonomy)


def numbers(value: Any, count: int, name: str) -> tuple[float, ...]:
    """`count` finite numbers (one alone need be no list); ValueError with the name otherwise."""
    values = [value] if count == 1 else value
    try:
        found = tuple(float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {count} number{'s' * (count > 1)}, got {value!r}") from error
    if len(found) != count or not all(map(math.isfinite, found)):
        raise ValueError(f"{name} is {count} finite number{'s' * (count > 1)}, got {value!r}")
    return found
