"""One frame under edit: insert, move, rotate, remove, repaint, undo, redo. Lengths are metres in ego, angles degrees.

Legend: N voxels, X Y Z voxels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.editing import checks
from syntheocc.occupancy.editing.assets import Asset, asset_label
from syntheocc.occupancy.editing.objects import Selector, box_name, numbers
from syntheocc.occupancy.editing.state import Placed, State, cut_asset, new_token, turned
from syntheocc.occupancy.editing.workbench import NOTHING, Workbench
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.transforms import rotation_z

if TYPE_CHECKING:
    from syntheocc.occupancy.editing.recipes import Recipe

__all__ = ["Editor"]

Point = Sequence[float]


# Arguments that a recipe need not say.
_USUAL: dict[str, dict[str, Any]] = {
    "insert": {"yaw_deg": 0.0, "velocity": [0.0, 0.0], "allow": []},
    "move": {"turn_deg": 0.0, "allow": []},
    "rotate": {"allow": []},
    "remove": {"allow": []},
    "repaint": {"from": []},
}


class Editor(Workbench):
    """A frame's grid and boxes, and the edits made to them.

    The grid and the boxes that are handed in are never changed. An edit that fails leaves everything as it was.

    Args:
        grid: the occupancy; any preset, class table and frame.
        boxes: the frame's boxes, None where it has none.
        token: the frame's token, from which new instances are named.

    Example:
        >>> from syntheocc.worlds.street import example_street
        >>> street = example_street()
        >>> editor = Editor(street.grid, street.boxes)
        >>> editor.insert("truck_pickup", at=(9.0, 0.0), name="stopped")
        'stopped'
        >>> editor.move("stopped", by=(0.5, 0.0))
        >>> editor.remove({"class": "car", "near": (-5.8, -3.0)})
        >>> len(editor.boxes) - len(street.boxes)
        0
        >>> editor.undo()
        True
    """

    def __init__(self, grid: OccupancyGrid, boxes: Boxes | None = None, token: str = ""):
        super().__init__(grid, boxes, token)
        self._done: list[tuple[State, dict[str, Any]]] = []  # the state before each edit, and the edit
        self._undone: list[tuple[State, dict[str, Any]]] = []  # the state after each edit taken back, and the edit
        self._nested = False

    @property
    def changed(self) -> Tensor:
        """Bool [X, Y, Z]: voxels that are not what they were: the edits' mask."""
        return self.grid.labels != self.original.labels

    @property
    def edits(self) -> list[dict[str, Any]]:
        """The edits made and not taken back, as a recipe lists them."""
        return [edit for _, edit in self._done]

    def recipe(self, name: str = "", description: str = "") -> "Recipe":
        """The edits made so far as a recipe; what was cut from other frames is packed into it."""
        from syntheocc.occupancy.editing.recipes import Recipe

        used = {edit.get("asset") for edit in self.edits}
        cuts = {key: asset for key, asset in self._cuts.items() if key in used}
        return Recipe(edits=tuple(self.edits), name=name, description=description, assets=cuts)

    def insert(
        self,
        asset: str | Asset,
        at: Point,
        *,
        yaw_deg: float = 0.0,
        z: float | None = None,
        name: str | None = None,
        class_name: str | None = None,
        size: Point | None = None,
        velocity: Point = (0.0, 0.0),
        allow: Sequence[str] = (),
    ) -> str:
        """Put an object on the ground.

        Args:
            asset: a name of the library (`asset_names`), "box", or what `cut` gave.
            at: x, y of its middle.
            yaw_deg: its heading, 0 along x, 90 to the left.
            z: height of its underside; left out, it stands on the ground that the grid has there (`ground`).
            name: how later edits call it; by default the asset's name with a number.
            class_name: another class than the asset's.
            size: length, width, height of a "box".
            velocity: m/s along x and y, for its box.
            allow: of "collision", "floating", "outside": what is no error.

        Returns:
            Its name.

        Raises:
            ValueError: an unknown asset or class; no room; no ground; the place is not in the grid.
        """
        made = self._asset(asset, class_name, size)
        name = self._free_name(name, made.name.replace("box of ", ""))
        place, speed = checks.point(at, "at"), checks.point(velocity, "velocity")
        numbers(yaw_deg, 1, "yaw_deg"), numbers(0.0 if z is None else z, 1, "z")
        arguments = {
            "asset": made.name if isinstance(asset, Asset) else asset,
            "at": list(place),
            "yaw_deg": yaw_deg,
            "z": z,
            "name": name,
            "class": class_name,
            "size": None if size is None else list(made.size),
            "velocity": list(speed),
            "allow": list(allow),
        }

        def act() -> None:
            label = asset_label(made, self.original.taxonomy, class_name)
            category = box_name(self.original.taxonomy, label, class_name or made.classes[0])
            if class_name is None:
                category = made.category
            pose = rotation_z(math.radians(yaw_deg))
            pose[:2, 3] = torch.tensor(place, dtype=torch.float64)
            one = Placed(name, made, label, category, pose, *NOTHING, speed, new_token(self.token, name))
            self._place(one, z, 0.0, allow)

        self._edit("insert", arguments, act)
        return name

    def move(
        self,
        object: Selector,
        *,
        to: Point | None = None,
        by: Point | None = None,
        yaw_deg: float | None = None,
        turn_deg: float = 0.0,
        z: float | None = None,
        allow: Sequence[str] = (),
    ) -> None:
        """Take an object elsewhere; the ground that it leaves is closed, and its height above the ground stays.

        Args:
            object: which one (`objects`).
            to: x, y of its new middle.
            by: metres along ego's x and y instead.
            yaw_deg: its new heading.
            turn_deg: a turn to the left instead.
            z: height of its underside; left out, as high above the ground as before.
            allow: see `insert`.

        Raises:
            ValueError: see `insert`; no such object, or one without voxels.
        """
        if to is not None and by is not None:
            raise ValueError("give `to` or `by`, not both")
        if to is by is yaw_deg is z is None and turn_deg == 0 and not self._nested:
            raise ValueError("say where to: `to`, `by`, `yaw_deg`, `turn_deg` or `z`")
        for name, value in (("yaw_deg", yaw_deg), ("turn_deg", turn_deg), ("z", z)):
            numbers(0.0 if value is None else value, 1, name)
        goal = None if to is None else checks.point(to, "to")
        way = None if by is None else checks.point(by, "by")
        arguments = {
            "object": object,
            "to": None if goal is None else list(goal),
            "by": None if way is None else list(way),
            "yaw_deg": yaw_deg,
            "turn_deg": turn_deg,
            "z": z,
            "allow": list(allow),
        }

        def act() -> None:
            found = self._find(object)
            if len(found) > 1 and (to is not None or yaw_deg is not None):
                raise ValueError(
                    f"{object} is a group of {len(found)}: move it with `by`, turn its members by turn_deg"
                )
            lifted = [self._lift(one) for one in found]
            for one, above in lifted:
                box = one.box
                angle = math.radians(turn_deg) if yaw_deg is None else math.radians(yaw_deg) - box.yaw
                pose = rotation_z(angle) @ one.box2ego
                x, y, height = box.center
                x, y = goal or (x, y) if way is None else (x + way[0], y + way[1])
                pose[:3, 3] = torch.tensor([x, y, height], dtype=torch.float64)
                self._place(replace(one, box2ego=pose, velocity=turned(one.velocity, angle)), z, above, allow)

        self._edit("move", arguments, act)

    def rotate(self, object: Selector, turn_deg: float, allow: Sequence[str] = ()) -> None:
        """Turn an object to the left about its own middle; see `move`."""
        arguments = {"object": object, "turn_deg": turn_deg, "allow": list(allow)}
        self._edit("rotate", arguments, lambda: self.move(object, turn_deg=turn_deg, allow=allow))

    def remove(self, object: Selector, allow: Sequence[str] = ()) -> None:
        """Take an object away: its voxels become free, the ground under it is closed, its box is gone.

        Args:
            object: which one.
            allow: "empty": a box without any voxel is no error.
        """

        def act() -> None:
            checks.known_allowances(allow)
            for one in self._find(object):
                if one.placed is not None:
                    self._drop(one.placed)
                else:
                    self._take(one, allow)

        self._edit("remove", {"object": object, "allow": list(allow)}, act)

    def repaint(
        self,
        to: str,
        object: Selector | None = None,
        *,
        region: dict[str, Any] | None = None,
        from_classes: Sequence[str] = (),
    ) -> None:
        """Give an object, or a region's voxels of some classes, another class; shape and place stay.

        Args:
            to: the new class (of a region also "free").
            object: which one; its box takes the class's name, and goes where the class is nothing that has boxes.
            region: a box (center, size, yaw_deg) instead.
            from_classes: the classes that change in a region.

        Raises:
            ValueError: nothing there that could be repainted.
        """
        if (object is None) == (region is None) or (region is not None and not from_classes):
            raise ValueError("repaint an `object`, or a `region` with the classes that change (`from`)")
        arguments = {"to": to, "object": object, "region": region, "from": list(from_classes)}
        label = self.original.taxonomy.label_of(to)

        def act() -> None:
            if region is not None:
                self._repaint_region(region, from_classes, label)
            else:
                assert object is not None
                for one in self._find(object):
                    self._repaint_object(one, label, to)

        self._edit("repaint", arguments, act)

    def cut(self, object: Selector, name: str) -> Asset:
        """An object of this frame as an asset, to be inserted here or into another frame.

        Args:
            object: which one; it stays where it is.
            name: of the asset.
        """
        found = self._find(object)
        if len(found) != 1:
            raise ValueError(f"{object} is a group of {len(found)}; cut one of them")
        one = found[0]
        if one.placed is not None:
            return replace(one.placed.asset, name=name)
        index = self._voxels(one)
        label = self.original.taxonomy.classes[
            int(self.grid.labels[tuple(index.T.to(self.grid.device))].mode().values)
        ]
        return cut_asset(self.grid, one.box, index, name, self._category(one) or label)

    def undo(self) -> bool:
        """Take the last edit back; False where there is none."""
        if not self._done:
            return False
        before, edit = self._done.pop()
        self._undone.append((self._state, edit))
        self._set(before)
        return True

    def redo(self) -> bool:
        """Make the edit again that was taken back last; False where there is none."""
        if not self._undone:
            return False
        after, edit = self._undone.pop()
        self._done.append((self._state, edit))
        self._set(after)
        return True

    def group(self, kind: str, arguments: dict[str, Any], act: Callable[[], Any]) -> None:
        """Several edits as one: one line of the recipe, taken back together, all or none of them made.

        Args:
            kind: the layout's name (`layouts`).
            arguments: as the recipe writes them.
            act: makes the edits.
        """
        self._edit(kind, arguments, act)

    def _edit(self, kind: str, arguments: dict[str, Any], act: Callable[[], Any]) -> None:
        if self._nested:
            act()
            return
        before, self._nested = self._state, True
        try:
            act()
        except BaseException:
            self._set(before)
            raise
        finally:
            self._nested = False
        # What says nothing is left out, so that recipes stay readable.
        usual = _USUAL.get(kind, {"allow": []})
        said = {key: value for key, value in arguments.items() if value is not None and usual.get(key, None) != value}
        self._done.append((before, {"edit": kind} | said))
        self._undone.clear()
