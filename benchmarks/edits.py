"""Counterfactuals of mode `evaluate`: one edit of the grid at one seed, in frames where there is room or an object.

Every edit is a recipe of `syntheocc.occupancy.editing`, applied as any user's would be; the recipes are kept with the
results. Legend: V views, H W pixels, h w cells.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from drawing import Drawer
from held_out import Frame
from processes import Clock
from torch import Tensor

from syntheocc.evaluation.counterfactual import changed_pixels, effect_of
from syntheocc.evaluation.judge import Judge
from syntheocc.occupancy.editing import Recipe, upright_box
from syntheocc.occupancy.editing.ground import ground_columns
from syntheocc.occupancy.editing.objects import solid_table
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY as TABLE

CAR_SIZE = (4.5, 1.9, 1.6)
# What a vehicle is repainted to; all have the size of some real one of that class.
REPAINT = {
    "car": "truck",
    "truck": "bus",
    "bus": "truck",
    "trailer": "truck",
    "construction_vehicle": "truck",
}
# Share of an image's pixels that an edit must touch to be asked about: 400 of 224 x 400.
LEAST = 400 / (224 * 400)


class Edit(NamedTuple):
    """One edit of a frame: its recipe, the edited grid, the class that comes or goes, and what shows it.

    other: the class that a repaint puts in its place; target, rest: bool [V, H, W], see `changed_pixels`.
    """

    kind: str
    recipe: Recipe
    grid: OccupancyGrid
    label: int
    other: int | None
    target: Tensor
    rest: Tensor


def free_spots(frame: Frame, count: int = 24) -> Iterator[Recipe]:
    """Recipes that put a block of a car's size on free road 7 to 16 m from the car, in a drawn order."""
    grid, road = frame.grid, TABLE.id_of("driveable_surface")
    random = torch.Generator().manual_seed(frame.number)
    for _ in range(count):
        distance, angle, turn = torch.rand(3, generator=random).tolist()
        distance, angle = 7 + 9 * distance, 2 * math.pi * angle
        yaw = (0.2 * turn - 0.1) + (math.pi if turn > 0.5 else 0.0)
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        ground = ground_columns(grid, upright_box((x, y, 0.0), (CAR_SIZE[0], CAR_SIZE[1], 3.0), yaw))
        columns = round(CAR_SIZE[0] * CAR_SIZE[1] / 0.04)
        on_road = ground.known & (ground.label == road)
        if int(ground.known.sum()) < 0.9 * columns or int(on_road.sum()) < 0.7 * columns:
            continue
        # More room than the block itself takes: what touches another object is hard to tell from it.
        middle = float(ground.top[ground.known].median()) + CAR_SIZE[2] / 2
        around = upright_box((x, y, middle), (5.1, 2.5, CAR_SIZE[2]), yaw).voxels(grid)
        if not bool(solid_table(TABLE)[grid.labels[tuple(around.T)].cpu().int()].any()):
            edit = {"edit": "insert", "asset": "box", "class": "car", "size": list(CAR_SIZE), "name": "inserted"}
            yield Recipe((edit | {"at": [x, y], "yaw_deg": math.degrees(yaw)},), name=f"insert in {frame.number}")


def largest_vehicle(frame: Frame) -> tuple[int, str] | None:
    """Number of the box and class of the vehicle that covers most pixels, if there is one of some size."""
    seen, scene = frame.photographs, frame.scene
    vehicles = torch.zeros(256, dtype=torch.bool, device=seen.truth.device)
    vehicles[[TABLE.id_of(name) for name in REPAINT]] = True
    counts = torch.bincount(
        torch.where(vehicles[seen.truth.int()] & seen.covered, seen.instances, 0).flatten(),
        minlength=len(scene.actors) + 1,
    )
    counts[0] = 0
    actor = int(counts.argmax())
    if float(counts[actor]) < 2 * LEAST * seen.truth[0].numel():
        return None
    name = scene.boxes_at(frame.t, scene.ego.pose_at(frame.t)).names[actor - 1]
    return (actor - 1, name) if name in REPAINT else None


def recipes_for(frame: Frame) -> Iterator[tuple[str, Recipe, str, str | None]]:
    """(kind, recipe, class that comes or goes, class of a repaint): edits to try, several places for "insert"."""
    for recipe in free_spots(frame):
        yield "insert", recipe, "car", None
    found = largest_vehicle(frame)
    if found is not None:
        number, name = found
        edit = {"edit": "remove", "object": f"#{number}"}
        yield "remove", Recipe((edit,), name=f"remove in {frame.number}"), name, None
        edit = {"edit": "repaint", "object": f"#{number}", "to": REPAINT[name]}
        yield "repaint", Recipe((edit,), name=f"repaint in {frame.number}"), name, REPAINT[name]


def planned_edits(frame: Frame, cells: tuple[int, int], nearest: Tensor) -> Iterator[Edit]:
    """The edits that a frame allows and that a view shows enough of, at most one of each kind."""
    size = frame.photographs.images.shape[-2:]
    boxes = frame.scene.boxes_at(frame.t, frame.scene.ego.pose_at(frame.t))
    done = set()
    for kind, recipe, name, other in recipes_for(frame):
        if kind in done:
            continue
        try:
            grid = recipe.edit(frame.grid, boxes).grid
        except ValueError:  # no room after all; thinner than the voxels, or outside the grid
            continue
        label = TABLE.id_of(name)
        edited = Frame(frame.scene, frame.number, frame.t, grid, frame.photographs).mpi(cells)
        target, rest = changed_pixels(nearest, edited.nearest, size, label)
        # One view must show enough of it: two slivers at the borders of two views are no object to recognise.
        enough = float(target.flatten(1).sum(1).max()) >= LEAST * target[0].numel()
        if enough and bool(rest.any()):
            done.add(kind)
            yield Edit(kind, recipe, grid, label, None if other is None else TABLE.id_of(other), target, rest)


def counterfactuals(
    frames: list[Frame],
    shown: list[dict],
    drawer: Drawer,
    judge: Judge,
    cells: tuple[int, int],
    records: Any,
    clock: Clock,
) -> dict[str, list[Tensor]]:
    """Measure the edits of some frames into `records.edits`; returns rows of pictures of each kind's first ones.

    Rows: condition and view without the edit, condition and view with it; the view in which most pixels change.
    """
    pictures: dict[str, list[list[Tensor]]] = {}
    waiting: list[tuple[int, Edit]] = []

    def flush() -> None:
        if not waiting:
            return
        batch = [frames[i] for i, _ in waiting]
        mpis = [
            Frame(frame.scene, frame.number, frame.t, edit.grid, frame.photographs).mpi(cells)
            for frame, (_, edit) in zip(batch, waiting, strict=True)
        ]
        rigs, captions = [frame.rig for frame in batch], [frame.scene.caption for frame in batch]
        drawn = drawer.draw(mpis, rigs, captions, [frame.number for frame in batch])
        owners = sorted({i for i, _ in waiting})
        others = drawer.draw(
            [shown[i]["mpi"] for i in owners],
            [frames[i].rig for i in owners],
            [frames[i].scene.caption for i in owners],
            [frames[i].number + 500_000 for i in owners],
        )
        for (i, edit), mpi, after in zip(waiting, mpis, drawn, strict=True):
            kind, label, target = edit.kind, edit.label, edit.target
            before, elsewhere = shown[i]["generated"], others[owners.index(i)]
            seen = judge.predict(before), judge.predict(after)
            images = before.float() / 255, after.float() / 255, elsewhere.float() / 255
            effect = effect_of(images, seen, target, edit.rest, label, edit.other)
            real = float((judge.predict(shown[i]["real"])[target] == label).float().mean())
            entry = {"scene": frames[i].number, "kind": kind, "label": TABLE.classes[label], **effect._asdict()}
            entry["label_real"] = real if kind != "insert" else math.nan
            entry["recipe"] = edit.recipe.to_json()
            records.edits.append(entry)
            rows = pictures.setdefault(kind, [])
            if len(rows) < 6:
                view = int(target.flatten(1).sum(1).argmax())
                colors = [one.palette_image().movedim(-1, 1)[view] for one in (shown[i]["mpi"], mpi)]
                rows.append([colors[0], before[view], colors[1], after[view]])
        waiting.clear()

    for i, frame in enumerate(frames):
        if clock.left() < 0:
            break
        waiting += [(i, edit) for edit in planned_edits(frame, cells, shown[i]["mpi"].nearest)]
        if len(waiting) >= drawer.batch:
            flush()
    flush()
    # One row a quantity, one column an edit.
    return {kind: [torch.stack(row) for row in zip(*columns, strict=True)] for kind, columns in pictures.items()}
