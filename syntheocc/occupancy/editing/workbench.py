"""The hand work behind an `Editor`: find an object, take it off the backdrop, put it down, paint it.

Legend: N voxels, X Y Z voxels.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.editing import checks
from syntheocc.occupancy.editing.assets import Asset, box_asset, library_asset
from syntheocc.occupancy.editing.ground import close_ground, ground_columns, up_axis
from syntheocc.occupancy.editing.objects import (
    Selector,
    box_name,
    box_of,
    connected_object,
    numbers,
    own_voxels,
    parse_selector,
)
from syntheocc.occupancy.editing.regions import Box
from syntheocc.occupancy.editing.state import Placed, State, cut_asset, joined_boxes, new_token
from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["NOTHING", "Found", "Workbench"]


class Found(NamedTuple):
    """An object that a selector found: a placed one, a box of the frame, or bare voxels."""

    box: Box
    placed: Placed | None = None
    origin: int | None = None
    own: Tensor | None = None  # int64 [N, 3], its voxels


class Workbench:
    """A frame and its state; what the public edits are made of.

    Args:
        grid: the occupancy.
        boxes: the frame's boxes, None where it has none.
        token: the frame's token, from which new instances are named.
    """

    def __init__(self, grid: OccupancyGrid, boxes: Boxes | None = None, token: str = ""):
        self.original = grid
        self.original_boxes = boxes
        self.token = token
        self._state = State(grid.labels, tuple(range(0 if boxes is None else len(boxes))))
        self._grid: OccupancyGrid | None = grid
        self._cuts: dict[str, Asset] = {}

    @property
    def grid(self) -> OccupancyGrid:
        """The grid as it is now."""
        if self._grid is None:
            self._grid = self._with(self._state.labels())
        return self._grid

    @property
    def boxes(self) -> Boxes | None:
        """The boxes as they are now; None where the frame has none and nothing was inserted."""
        return joined_boxes(self.original_boxes, self._state)

    @property
    def inserted(self) -> tuple[str, ...]:
        """Names of the objects that were inserted or moved."""
        return tuple(one.name for one in self._state.placed)

    def voxels_of_inserted(self) -> dict[str, Tensor]:
        """Name -> int64 [N, 3], the voxels that each inserted or moved object shows in the grid."""
        owner = torch.full(self.original.spec.shape, -1, dtype=torch.int32)
        for i, one in enumerate(self._state.placed):
            owner[tuple(one.index.T)] = i
        return {one.name: one.index[owner[tuple(one.index.T)] == i] for i, one in enumerate(self._state.placed)}

    def _set(self, state: State) -> None:
        self._state, self._grid = state, None

    def _with(self, labels: Tensor) -> OccupancyGrid:
        return self.original._replace(labels, self.original.taxonomy)

    def _asset(self, asset: str | Asset, class_name: str | None, size: Sequence[float] | None) -> Asset:
        if isinstance(asset, Asset):
            if self._cuts.setdefault(asset.name, asset) is not asset:
                raise ValueError(f"another asset is called {asset.name!r} here; cut it under another name")
            return asset
        if asset != "box":
            if size is not None:
                raise ValueError(f"size is for asset 'box'; {asset!r} has its own")
            return self._cuts.get(asset) or library_asset(asset)
        if class_name is None or size is None:
            raise ValueError("asset 'box' needs class and size (length, width, height)")
        length, width, height = numbers(size, 3, "size")
        return box_asset(class_name, (length, width, height))

    def _free_name(self, name: str | None, asset: str) -> str:
        taken = set(self.inserted)
        if name is None:
            numbered = (asset if i == 1 else f"{asset}_{i}" for i in range(1, len(taken) + 2))
            return next(one for one in numbered if one not in taken)
        if not name or name in taken or any(character in name for character in "#@"):
            raise ValueError(f"the name {name!r} is taken, empty, or has one of # and @; give another")
        return name

    def _find(self, selector: Selector) -> list[Found]:
        """The objects of a selector, at least one."""
        wanted = parse_selector(selector)
        state, boxes = self._state, self.original_boxes
        if isinstance(wanted, str):
            placed = [one for one in state.placed if one.name == wanted or one.name.startswith(f"{wanted}.")]
            placed = placed or [one for one in state.placed if one.token == wanted]
            if placed:
                return [Found(one.box, placed=one) for one in placed]
            standing = () if boxes is None else state.standing
            for i in standing:
                assert boxes is not None
                if wanted in (f"#{i}", boxes.instance_tokens[i]):
                    return [self._standing(i)]
            count = 0 if boxes is None else len(boxes)
            raise ValueError(
                f"no object {wanted!r}: inserted are {', '.join(self.inserted) or 'none'}; the frame has {count} boxes"
                + (f" (#0 to #{count - 1})" if count else "")
            )
        if "size" in wanted:
            box = box_of(wanted)
            index = own_voxels(self._with(state.base), box, None)
            inside = [Found(one.box, placed=one) for one in state.placed if _holds(box, one.box)]
            bare = [Found(box, own=index)] if len(index) else []
            if not inside and not bare:
                raise ValueError(f"no voxel of an object lies in the box at {box.center} of {box.size} m")
            return inside + bare
        name, near, within = wanted["class"], wanted["near"], wanted["within"]
        label = self.original.taxonomy.label_of(name)
        options = [Found(one.box, placed=one) for one in state.placed if one.label == label]
        if boxes is None:
            try:
                box, index = connected_object(self._with(state.base), name, near, within)
                options.append(Found(box, own=index))
            except ValueError:
                if not options:
                    raise
        else:
            options += [self._standing(i) for i in state.standing if self._box_label(i) == label]
        gaps = [math.dist(one.box.center[:2], near) for one in options]
        # A piece of voxels is near by its nearest voxel.
        gaps = [gap if one.own is None else min(gap, within) for one, gap in zip(options, gaps, strict=True)]
        if not gaps or min(gaps) > within:
            nearest = f"; the nearest is {min(gaps):.1f} m away" if gaps else ""
            raise ValueError(f"no {name} within {within:g} m of ({near[0]:g}, {near[1]:g}){nearest}")
        return [options[gaps.index(min(gaps))]]

    def _standing(self, i: int) -> Found:
        assert self.original_boxes is not None
        length, width, height = self.original_boxes.sizes[i].tolist()
        return Found(Box(self.original_boxes.box2ego[i], (length, width, height)), origin=i)

    def _box_label(self, i: int) -> int | None:
        assert self.original_boxes is not None
        name = self._state.renamed.get(i, self.original_boxes.names[i])
        try:
            return self.original.taxonomy.label_of(name)
        except ValueError:
            return None

    def _category(self, one: Found) -> str:
        if one.origin is None:
            return ""
        assert self.original_boxes is not None
        return self._state.renamed.get(one.origin, self.original_boxes.names[one.origin])

    def _voxels(self, one: Found, allow: Sequence[str] = ()) -> Tensor:
        """The backdrop's voxels of an object that was not placed, int64 [N, 3]."""
        if one.own is not None:
            return one.own
        assert one.origin is not None and self.original_boxes is not None
        others = self.original_boxes.filter([i for i in self._state.standing if i != one.origin])
        index = own_voxels(self._with(self._state.base), one.box, self._box_label(one.origin), others)
        if not len(index) and "empty" not in allow:
            raise ValueError(
                f"box #{one.origin} ({self._category(one)}) holds no voxel of an object in this grid: nothing to "
                "edit (allow=['empty'] removes the box alone)"
            )
        return index

    def _take(self, one: Found, allow: Sequence[str] = ()) -> None:
        """Take an object off the backdrop and close the ground under it."""
        index = self._voxels(one, allow)
        axis, _ = up_axis(self.original)
        labels = self._state.base.cpu().clone()
        labels[tuple(index.T)] = self.original.taxonomy.free
        footprint = ground_columns(self._with(labels), one.box.column(self.original)).column
        columns = index.clone()
        columns[:, axis] = 0
        close_ground(labels, self.original, torch.cat([columns, footprint]))
        standing = self._state.standing
        if one.origin is not None:
            standing = tuple(i for i in standing if i != one.origin)
        elif self.original_boxes is not None:
            standing = tuple(i for i in standing if not _holds(one.box, self._standing(i).box))
        self._set(replace(self._state, base=labels.to(self.original.device), standing=standing))

    def _drop(self, placed: Placed) -> None:
        self._set(replace(self._state, placed=tuple(one for one in self._state.placed if one is not placed)))

    def _lift(self, one: Found) -> tuple[Placed, float]:
        """Take an object up; also how high its underside was above the ground."""
        if one.placed is not None:
            placed = one.placed
            if placed.painted:
                raise ValueError(f"{placed.name} was partly repainted with a region: move it first, then repaint")
            self._drop(placed)
        else:
            index, boxes = self._voxels(one), self.original_boxes
            label = int(self._state.base[tuple(index.T.to(self.original.device))].mode().values)
            named = self.original.taxonomy.classes[label]
            name = f"#{one.origin}" if one.origin is not None else self._free_name(None, f"{named}_moved")
            category = self._category(one) or box_name(self.original.taxonomy, label, named)
            asset = cut_asset(self._with(self._state.base), one.box, index, name, category)
            velocity, token = (0.0, 0.0), new_token(self.token, name)
            if one.origin is not None:
                assert boxes is not None
                vx, vy = boxes.velocities[one.origin].tolist()
                velocity, token = (vx, vy), boxes.instance_tokens[one.origin]
            placed = Placed(name, asset, label, asset.category, one.box.box2ego, *NOTHING, velocity, token, one.origin)
            self._take(one)
        floor = checks.floor_under(self._with(self._state.base), placed.box)
        return placed, 0.0 if floor is None else placed.box.center[2] - placed.box.size[2] / 2 - floor

    def _place(self, one: Placed, z: float | None, above: float, allow: Sequence[str]) -> None:
        """Put an object down, `above` metres over the ground or at height z, and check that it may stand there."""
        checks.known_allowances(allow)
        base = self._with(self._state.base)
        floor = checks.floor_under(base, one.box)
        what = f"{one.name} ({one.asset.name}) at ({one.box2ego[0, 3]:g}, {one.box2ego[1, 3]:g})"
        checks.in_grid(base, one.box, what, allow)
        if z is None:
            if floor is None:
                raise ValueError(f"{what}: the grid has no ground there to stand on; give z and allow=['floating']")
            bottom = floor + above
        else:
            bottom = float(z)
            checks.grounded(base, bottom, floor, what, allow)
        pose = one.box2ego.clone()
        pose[2, 3] = bottom + one.asset.size[2] / 2
        index = one.asset.place(self.original, pose)
        if not len(index):
            raise ValueError(
                f"{what}: no voxel of the grid lies in it; it is outside the grid, or thinner than a voxel"
            )
        done = replace(one, box2ego=pose, index=index, labels=torch.full((len(index),), one.label, dtype=torch.uint8))
        if "collision" not in allow:
            checks.no_collision(self.grid, self.boxes, done.box, index, what)
        self._set(replace(self._state, placed=(*self._state.placed, done)))

    def _repaint_object(self, one: Found, label: int, name: str) -> None:
        category = box_name(self.original.taxonomy, label, name)
        if one.placed is not None:
            painted = one.placed.repainted(label, category)
            placed = tuple(painted if other is one.placed else other for other in self._state.placed)
            self._set(replace(self._state, placed=placed))
            return
        index = self._voxels(one)
        base = self._state.base.clone()
        base[tuple(index.T.to(base.device))] = label
        renamed, standing = self._state.renamed, self._state.standing
        if one.origin is not None and category:
            renamed = renamed | {one.origin: category}
        elif one.origin is not None:  # a house is no object any more
            standing = tuple(i for i in standing if i != one.origin)
        self._set(replace(self._state, base=base, renamed=renamed, standing=standing))

    def _repaint_region(self, region: dict[str, Any], from_classes: Sequence[str], label: int) -> None:
        wanted = parse_selector(region)
        if isinstance(wanted, str) or "size" not in wanted:
            raise ValueError(f"a region is center, size and yaw_deg, got {region!r}")
        table = torch.zeros(256, dtype=torch.bool)
        table[[self.original.taxonomy.label_of(name) for name in from_classes]] = True
        index = box_of(wanted).voxels(self.original).cpu()
        base = self._state.base.clone()
        chosen = index[table[base[tuple(index.T.to(base.device))].cpu().int()]]
        base[tuple(chosen.T.to(base.device))] = label
        inside = torch.zeros(self.original.spec.shape, dtype=torch.bool)
        inside[tuple(index.T)] = True
        placed = tuple(
            replace(one, labels=torch.where(inside[tuple(one.index.T)] & table[one.labels.int()], label, one.labels))
            for one in self._state.placed
        )
        before = self.grid.labels
        self._set(replace(self._state, base=base, placed=placed))
        if torch.equal(before, self.grid.labels):
            raise ValueError(f"nothing of {', '.join(from_classes)} lies in the region {region}")


# A placed object before it is put down.
NOTHING = (torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, dtype=torch.uint8))


def _holds(outer: Box, inner: Box) -> bool:
    """Whether the middle of one box lies in another."""
    local = (inner.box2ego[:3, 3] - outer.box2ego[:3, 3]) @ outer.box2ego[:3, :3]
    return bool((local.abs() <= torch.tensor(outer.size, dtype=torch.float64) / 2).all())
