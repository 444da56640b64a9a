"""The editing library's assets, made from the world's own models: `python -m syntheocc.worlds.asset_library`.

Writes `occupancy/editing/library.npz` (uint8 voxels of 5 cm with the thickness of the part that holds each) and
`library.json` (what they are). Only families of the train split are used, so that an edit shows no asset that is held
out. Legend: A B C voxels.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from syntheocc.engine.files import atomic_write_json, atomic_write_npz
from syntheocc.occupancy import editing
from syntheocc.occupancy.grids import GridSpec
from syntheocc.worlds import people, props
from syntheocc.worlds.families import random_for
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.vehicles import Model, vehicle
from syntheocc.worlds.voxelize import paint

__all__ = ["LIBRARY", "bake", "voxels_of"]

VOXEL_SIZE = 0.05


class _Entry(NamedTuple):
    description: str
    classes: tuple[str, ...]
    category: str
    make: Callable[[np.random.Generator, Palette], Model]


def _vehicle(description: str, name: str, family: int) -> _Entry:
    return _Entry(description, (name,), name, lambda random, paint: vehicle(name, family, random, paint))


def _person(description: str, family: int, **how: bool) -> _Entry:
    make = lambda random, paint: people.pedestrian(family, random, paint, **how)  # noqa: E731
    return _Entry(description, ("pedestrian",), "pedestrian", make)


def _cycle(description: str, name: str, family: int, rider: bool) -> _Entry:
    return _Entry(description, (name,), name, lambda random, paint: people.cycle(name, family, random, paint, rider))


def _prop(description: str, classes: tuple[str, ...], category: str, make: Callable, family: int) -> _Entry:
    return _Entry(description, classes, category, lambda random, paint: make(family, random, paint))


# SyntheOcc's table has no "others": what lies about is manmade there.
_REST = ("others", "manmade")
_DEBRIS, _CART = "movable_object.debris", "movable_object.pushable_pullable"

LIBRARY: dict[str, _Entry] = {
    "car": _vehicle("a saloon", "car", 3),
    "car_hatchback": _vehicle("a hatchback", "car", 6),
    "car_estate": _vehicle("an estate car", "car", 8),
    "car_suv": _vehicle("an SUV", "car", 0),
    "car_van": _vehicle("a van", "car", 2),
    "truck": _vehicle("a box truck", "truck", 0),
    "truck_tipper": _vehicle("a tipper", "truck", 4),
    "truck_pickup": _vehicle("a pickup", "truck", 1),
    "truck_tanker": _vehicle("a tanker", "truck", 11),
    "bus": _vehicle("a city bus", "bus", 1),
    "bus_bendy": _vehicle("a bus that bends", "bus", 0),
    "trailer": _vehicle("a semitrailer with a container", "trailer", 7),
    "trailer_flat": _vehicle("a flat bed with a load", "trailer", 1),
    "trailer_small": _vehicle("a small box trailer", "trailer", 3),
    "construction_vehicle": _vehicle("an excavator", "construction_vehicle", 3),
    "wheel_loader": _vehicle("a wheel loader", "construction_vehicle", 1),
    "roller": _vehicle("a roller", "construction_vehicle", 0),
    "pedestrian": _person("somebody walking", 0),
    "pedestrian_standing": _person("somebody standing", 1, walking=False),
    "construction_worker": _person("a construction worker", 2, walking=False, worker=True),
    "bicycle": _cycle("a bicycle with its rider", "bicycle", 0, True),
    "bicycle_parked": _cycle("a bicycle", "bicycle", 1, False),
    "motorcycle": _cycle("a motorcycle with its rider", "motorcycle", 0, True),
    "motorcycle_parked": _cycle("a motorcycle", "motorcycle", 1, False),
    "traffic_cone": _prop("a traffic cone", ("traffic_cone",), "traffic_cone", props.cone, 2),
    "barrier": _prop("a concrete barrier", ("barrier",), "barrier", props.barrier, 1),
    "barrier_boards": _prop("a barrier of boards", ("barrier",), "barrier", props.barrier, 0),
    "lost_cargo": _prop("boxes and bags on the road", _REST, _DEBRIS, props.debris, 0),
    "lost_cargo_small": _prop("a bag or two", _REST, _DEBRIS, props.debris, 1),
    "wheeled_bin": _prop("a wheeled bin", _REST, _CART, props.bin_or_cart, 1),
    "shopping_cart": _prop("a shopping cart", _REST, _CART, props.bin_or_cart, 0),
}


def voxels_of(model: Model) -> np.ndarray:
    """A model as uint8 [A, B, C] thicknesses (centimetres) in voxels of 5 cm, its box's centre in the middle."""
    shape = tuple(math.ceil(edge / VOXEL_SIZE - 1e-3) for edge in model.size)
    lower = tuple(-n * VOXEL_SIZE / 2 for n in shape)
    solids = model.primitives
    # `paint` keeps the last solid that holds a voxel: the thinnest one, which decides how closely a grid looks there.
    thickness = 2 * solids.shape2frame[:, :3, :3].norm(dim=1).amin(1)
    order = thickness.argsort(stable=True, descending=True)
    owner = paint(solids.select(order), GridSpec(lower, VOXEL_SIZE, shape), backend="torch")  # type: ignore[arg-type]
    code = (100 * thickness[order]).round().clamp(1, 255)
    return torch.cat([code.new_zeros(1), code])[(owner + 1).long()].to(torch.uint8).numpy()


def bake(name: str) -> tuple[np.ndarray, dict]:
    """The voxels of one asset of `LIBRARY`, and what `library.json` says of it."""
    entry = LIBRARY[name]
    random = random_for(0, "library", name)
    model = entry.make(random, Palette(random_for(0, "library paint"), "train"))
    facts = {
        "description": entry.description,
        "classes": list(entry.classes),
        "category": entry.category,
        "size": [round(edge, 3) for edge in model.size],
    }
    return voxels_of(model), facts


def main() -> None:
    """Bake all assets."""
    folder = Path(editing.__file__).parent
    baked = {name: bake(name) for name in LIBRARY}
    atomic_write_npz(folder / "library.npz", **{name: voxels for name, (voxels, _) in baked.items()})
    atomic_write_json(folder / "library.json", {name: facts for name, (_, facts) in baked.items()})
    for name, (voxels, facts) in baked.items():
        print(f"{name:22} {voxels.shape} {facts['size']} {(voxels > 0).mean():.2f}")


if __name__ == "__main__":
    main()
