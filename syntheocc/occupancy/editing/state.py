"""What an editor holds between two edits: a backdrop, the objects on it, and which of the frame's boxes still stand.

Inserted objects lie on the backdrop as layers and are never burnt into it, so that to move or remove one gives back
exactly what was there. Legend: N voxels, X Y Z voxels.
"""

import hashlib
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.editing.assets import SOLID, Asset
from syntheocc.occupancy.editing.regions import Box
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["Placed", "State", "cut_asset", "joined_boxes", "new_token", "turned"]


@dataclass(frozen=True, eq=False)
class Placed:
    """An object on the backdrop.

    Args:
        name: how edits call it.
        asset: its voxels.
        label: its class.
        category: name of its box, "" where it has none (a block of wall).
        box2ego: [4, 4].
        index: int64 [N, 3], the grid's voxels that it takes.
        labels: uint8 [N], their classes: `label`, but for what a repainted region left.
        velocity: m/s along ego x and y.
        token: instance token.
        origin: the frame's box that it was, None for a new object.
    """

    name: str
    asset: Asset
    label: int
    category: str
    box2ego: Tensor
    index: Tensor
    labels: Tensor
    velocity: tuple[float, float] = (0.0, 0.0)
    token: str = ""
    origin: int | None = None

    @property
    def box(self) -> Box:
        """Where it is."""
        return Box(self.box2ego, self.asset.size)

    @property
    def painted(self) -> bool:
        """Whether a region was repainted that holds part of it."""
        return bool((self.labels != self.label).any())

    def repainted(self, label: int, category: str) -> "Placed":
        """The same object of another class."""
        return replace(self, label=label, category=category, labels=torch.full_like(self.labels, label))


@dataclass(frozen=True, eq=False)
class State:
    """Everything between two edits.

    Args:
        base: uint8 [X, Y, Z] the labels without the placed objects.
        standing: indices of the frame's boxes that are where they were.
        renamed: box -> its new class name.
        placed: objects, later ones over earlier ones.
    """

    base: Tensor
    standing: tuple[int, ...]
    renamed: dict[int, str] = field(default_factory=dict)
    placed: tuple[Placed, ...] = ()

    def labels(self, without: tuple[Placed, ...] = ()) -> Tensor:
        """Uint8 [X, Y, Z], the objects on the backdrop; a new tensor."""
        labels = self.base.clone()
        for one in self.placed:
            if not any(one is other for other in without):
                labels[tuple(one.index.T.to(labels.device))] = one.labels.to(labels.device)
        return labels


def cut_asset(grid: OccupancyGrid, box: Box, index: Tensor, name: str, category: str) -> Asset:
    """An asset of a grid's voxels, which lands on the very same ones where it is placed at the same pose.

    Args:
        grid: whose voxels.
        box: the object's box.
        index: int64 [N, 3], at least one; their commonest class is the asset's.
        name: of the asset.
        category: name of its box.
    """
    low = index.amin(0)
    voxels = torch.zeros(tuple((index.amax(0) - low + 1).tolist()), dtype=torch.uint8)
    voxels[tuple((index - low).T)] = SOLID
    lower, size = torch.tensor([grid.spec.lower, grid.spec.voxel_size], dtype=torch.float64)
    corner = torch.eye(4, dtype=torch.float64)
    corner[:3, 3] = lower + low * size
    label = int(grid.labels[tuple(index.T.to(grid.device))].mode().values)
    return Asset(
        name,
        (grid.taxonomy.classes[label],),
        category,
        box.size,
        voxels.numpy(),
        grid.spec.voxel_size,
        invert_rigid(box.box2ego) @ grid.grid2ego @ corner,
        "cut from a frame",
    )


def joined_boxes(boxes: Boxes | None, state: State) -> Boxes | None:
    """The boxes of a state: the frame's in their order, moved ones where they were in it, then the new ones.

    None where the frame has none and nothing was placed.
    """
    shown = tuple(one for one in state.placed if one.category)
    if boxes is None and not shown:
        return None
    kept = Boxes(torch.zeros(0, 4, 4), torch.zeros(0, 3), ()) if boxes is None else boxes
    names = tuple(state.renamed.get(i, name) for i, name in enumerate(kept.names))
    placed = _boxes_of(shown)
    # What became something else is another instance: nuScenes' tables know one category for each.
    tokens = tuple(
        new_token(token or str(i), names[i]) if i in state.renamed else token
        for i, token in enumerate(kept.instance_tokens)
    )
    both = _joined(replace(kept, names=names, instance_tokens=tokens), _like_origins(placed, shown, kept))
    moved = {one.origin: len(kept) + i for i, one in enumerate(shown) if one.origin is not None}
    order = [moved.get(i, i) for i in range(len(kept)) if i in moved or i in state.standing]
    order += [len(kept) + i for i, one in enumerate(shown) if one.origin is None]
    return both.filter(order)


def _like_origins(placed: Boxes, shown: tuple[Placed, ...], boxes: Boxes) -> Boxes:
    """The same boxes; moved ones keep their attribute, and are another instance where their class is another."""
    tokens, attributes = list(placed.instance_tokens), list(placed.attributes)
    for k, one in enumerate(shown):
        if one.origin is None:
            continue
        if one.category == boxes.names[one.origin]:
            attributes[k] = boxes.attributes[one.origin]
        else:
            tokens[k] = new_token(boxes.instance_tokens[one.origin] or str(one.origin), one.category)
    return replace(placed, instance_tokens=tuple(tokens), attributes=tuple(attributes))


def _boxes_of(placed: tuple[Placed, ...]) -> Boxes:
    """The boxes of placed objects. No sweep saw them there: how many returns they would have is unknown."""
    return Boxes(
        torch.stack([one.box2ego for one in placed]) if placed else torch.zeros(0, 4, 4),
        torch.tensor([one.asset.size for one in placed], dtype=torch.float64),
        tuple(one.category for one in placed),
        torch.tensor([one.velocity for one in placed], dtype=torch.float64),
        instance_tokens=tuple(one.token for one in placed),
    )


def _joined(first: Boxes, second: Boxes) -> Boxes:
    """The boxes of both, one after the other."""
    columns: dict[str, Any] = {}
    for one in fields(Boxes):
        a, b = getattr(first, one.name), getattr(second, one.name)
        columns[one.name] = torch.cat([a, b]) if isinstance(a, Tensor) else a + b
    return Boxes(**columns)


def new_token(*parts: str) -> str:
    """An instance token as nuScenes has them, 32 hex digits; the same parts give the same."""
    return hashlib.md5(":".join(parts).encode(), usedforsecurity=False).hexdigest()


def turned(velocity: tuple[float, float], angle: float) -> tuple[float, float]:
    """A velocity after a turn about z by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * velocity[0] - sin * velocity[1], sin * velocity[0] + cos * velocity[1]
