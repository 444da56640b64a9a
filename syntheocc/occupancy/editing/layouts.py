"""Whole situations in one edit: a lane of cones, somebody crossing, lost cargo, road works. Metres in ego, degrees.

Each function takes an `Editor` and adds objects called `name.1`, `name.2`, ...; the name alone selects them all. They
stand on the grid's own ground, and nothing is placed where there is no room: the error says what is in the way.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from syntheocc.occupancy.editing.assets import Asset
from syntheocc.occupancy.editing.checks import point
from syntheocc.occupancy.editing.editor import Editor

__all__ = ["LAYOUTS", "cone_lane", "crossing_pedestrian", "lost_cargo", "roadworks"]

Layout = TypeVar("Layout", bound=Callable[..., None])
#: Name -> layout.
LAYOUTS: dict[str, Callable[..., None]] = {}


def _layout(function: Layout) -> Layout:
    """Make what a function inserts one edit, recorded with the function's arguments, and list it in `LAYOUTS`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def made(editor: Editor, **arguments: Any) -> None:
        bound = signature.bind(editor, **arguments)
        bound.apply_defaults()
        said = {"class" if key == "class_name" else key: _plain(value) for key, value in bound.arguments.items()}
        del said["editor"]
        editor.group(function.__name__, said, lambda: function(editor, **arguments))

    LAYOUTS[function.__name__] = made
    return cast(Layout, made)


def _plain(value: Any) -> Any:
    """An argument as a recipe writes it."""
    if isinstance(value, Asset):
        return value.name
    return list(value) if isinstance(value, (list, tuple)) else value


@_layout
def cone_lane(
    editor: Editor,
    *,
    start: Sequence[float],
    end: Sequence[float],
    spacing: float = 2.5,
    asset: str | Asset = "traffic_cone",
    name: str = "cones",
    allow: Sequence[str] = (),
) -> None:
    """A straight row of cones.

    Args:
        editor: the frame.
        start: x, y of the first cone.
        end: x, y of the last one.
        spacing: metres between neighbours, at most; all gaps are equal.
        asset: what stands there.
        name: of the group.
        allow: see `Editor.insert`.
    """
    (x0, y0), (x1, y1) = point(start, "start"), point(end, "end")
    if not spacing > 0:
        raise ValueError(f"spacing must be positive metres, got {spacing}")
    length = math.hypot(x1 - x0, y1 - y0)
    count = max(1, math.ceil(length / spacing - 1e-9))
    heading = math.degrees(math.atan2(y1 - y0, x1 - x0)) if length else 0.0

    for i in range(count + 1 if length else 1):
        share = i / count
        at = (x0 + share * (x1 - x0), y0 + share * (y1 - y0))
        editor.insert(asset, at, yaw_deg=heading, name=f"{name}.{i + 1}", allow=allow)


@_layout
def crossing_pedestrian(
    editor: Editor,
    *,
    ahead: float = 10.0,
    side: str = "right",
    progress: float = 0.5,
    width: float = 7.0,
    speed: float = 1.4,
    asset: str | Asset = "pedestrian",
    name: str = "crossing",
    allow: Sequence[str] = (),
) -> None:
    """Somebody who crosses the ego car's way.

    Args:
        editor: the frame.
        ahead: metres before the car's origin (its rear axle); negative: behind it.
        side: "left" or "right", where he comes from.
        progress: share of the way that he has walked, 0..1; at 0.5 he is before the car.
        width: length of that way, metres, half on each side of the car's axis.
        speed: m/s, for his box.
        asset: who.
        name: what later edits call him.
        allow: see `Editor.insert`.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side is 'left' or 'right', got {side!r}")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is a share of the way, 0..1, got {progress}")
    sign = 1.0 if side == "left" else -1.0
    at = (ahead, sign * width * (0.5 - progress) + 0.0)

    editor.insert(asset, at, yaw_deg=-90.0 * sign, name=name, velocity=(0.0, -sign * speed), allow=allow)


@_layout
def lost_cargo(
    editor: Editor,
    *,
    at: Sequence[float],
    pieces: int = 3,
    spread: float = 2.5,
    seed: int = 0,
    asset: str | Asset = "lost_cargo",
    class_name: str | None = None,
    name: str = "cargo",
    allow: Sequence[str] = (),
) -> None:
    """Boxes and bags that fell off a truck.

    Args:
        editor: the frame.
        at: x, y of their middle.
        pieces: how many.
        spread: metres around `at` within which they lie.
        seed: of their places and headings.
        asset: what lies there.
        class_name: their class; by default "others", or "manmade" in tables without it.
        name: of the group.
        allow: see `Editor.insert`.

    Raises:
        ValueError: no room for a piece in 50 places.
    """
    x, y = point(at, "at")
    if pieces < 1 or not spread >= 0:
        raise ValueError(f"pieces must be at least 1 and spread not negative, got {pieces} and {spread}")

    random = np.random.default_rng(seed)
    for i in range(pieces):
        reason = None
        for _ in range(50):
            radius, angle, yaw = spread * math.sqrt(random.random()), *random.uniform(0, 360, 2)
            place = (x + radius * math.cos(math.radians(angle)), y + radius * math.sin(math.radians(angle)))
            try:
                editor.insert(
                    asset, place, yaw_deg=float(yaw), name=f"{name}.{i + 1}", class_name=class_name, allow=allow
                )
                break
            except ValueError as error:
                reason = error
        else:
            raise ValueError(f"no room for piece {i + 1} of {pieces} within {spread:g} m: {reason}")


@_layout
def roadworks(
    editor: Editor,
    *,
    at: Sequence[float],
    yaw_deg: float = 0.0,
    length: float = 12.0,
    width: float = 4.0,
    asset: str | Asset = "construction_vehicle",
    name: str = "roadworks",
    allow: Sequence[str] = (),
) -> None:
    """A closed piece of a lane: cones along both sides, a barrier at either end, a machine and a worker within.

    Args:
        editor: the frame.
        at: x, y of its middle.
        yaw_deg: its heading.
        length: along the heading, metres: the machine's and 6 m more.
        width: across, metres: the machine's and 1.2 m more.
        asset: the machine.
        name: of the group.
        allow: see `Editor.insert`.
    """
    x, y = point(at, "at")
    cos, sin = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
    count = max(2, math.ceil(length / 3))
    places: list[tuple[float, float, str | Asset, float]] = [
        (-length / 2 + length * (i + 0.5) / count, side * width / 2, "traffic_cone", 0.0)
        for side in (-1, 1)
        for i in range(count)
    ]
    places += [(end * length / 2, 0.0, "barrier_boards", 0.0) for end in (-1, 1)]
    places += [(0.5, 0.0, asset, 0.0), (-length / 2 + 1.0, 0.0, "construction_worker", 90.0)]

    for i, (along, across, what, turn) in enumerate(places):
        at = (x + along * cos - across * sin, y + along * sin + across * cos)
        editor.insert(what, at, yaw_deg=yaw_deg + turn, name=f"{name}.{i + 1}", allow=allow)
