"""Counterfactuals of mode `evaluate`: one edit of the grid at one seed, in frames where there is room or an object.

Legend: V views, H W pixels, h w cells.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from drawing import Drawer
from held_out import Frame
from processes import Clock
from torch import Tensor

from syntheocc.evaluation.counterfactual import (
    Box,
    changed_pixels,
    effect_of,
    insert_box,
    remove_box,
    repaint_box,
)
from syntheocc.evaluation.judge import Judge
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


def free_spots(frame: Frame, count: int = 24) -> Iterator[Box]:
    """Boxes of a car's size that stand on free road 7 to 16 m from the car, in a drawn order."""
    grid = frame.grid
    random = torch.Generator().manual_seed(frame.number)
    road, ground = TABLE.id_of("driveable_surface"), _ground_table(grid.device)
    to_ego = grid.grid2ego.to(grid.device)
    middle = torch.tensor(grid.spec.lower, dtype=torch.float64, device=grid.device)
    edge = torch.tensor(grid.spec.voxel_size, dtype=torch.float64, device=grid.device)
    for _ in range(count):
        distance, angle, turn = torch.rand(3, generator=random).tolist()
        distance, angle = 7 + 9 * distance, 2 * math.pi * angle
        pose = torch.eye(4, dtype=torch.float64)
        yaw = (0.2 * turn - 0.1) + (math.pi if turn > 0.5 else 0.0)
        cos, sin = math.cos(yaw), math.sin(yaw)
        pose[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
        pose[:2, 3] = distance * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        footprint = Box(pose, (CAR_SIZE[0], CAR_SIZE[1], 3.0)).voxels(grid)
        labels = grid.labels[tuple(footprint.T)]
        below = footprint[ground[labels.int()]]
        columns = round(CAR_SIZE[0] * CAR_SIZE[1] / 0.04)
        if len(below) < 0.9 * columns or float((labels == road).sum()) < 0.7 * columns:
            continue
        points = middle + (below + 0.5) * edge
        heights = (points @ to_ego[:3, :3].T + to_ego[:3, 3])[:, 2]
        floor = float(heights.median()) + 0.1
        pose[2, 3] = floor + CAR_SIZE[2] / 2
        box = Box(pose, CAR_SIZE)
        above = grid.labels[tuple(Box(pose, (5.1, 2.5, CAR_SIZE[2])).voxels(grid).T)]
        if not bool(((above != TABLE.free) & ~ground[above.int()]).any()):
            yield box


def _ground_table(device: torch.device) -> Tensor:
    table = torch.zeros(256, dtype=torch.bool, device=device)
    table[[TABLE.id_of(name) for name in ("driveable_surface", "other_flat", "sidewalk", "terrain")]] = True
    return table


def largest_vehicle(frame: Frame) -> tuple[Box, int] | None:
    """The box and class of the vehicle that covers most pixels, if there is one of some size."""
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
    boxes = scene.boxes_at(frame.t, scene.ego.pose_at(frame.t))
    if boxes.names[actor - 1] not in REPAINT:
        return None
    length, width, height = boxes.sizes[actor - 1].tolist()
    return Box(boxes.box2ego[actor - 1], (length, width, height)), TABLE.id_of(boxes.names[actor - 1])


def planned_edits(
    frame: Frame, cells: tuple[int, int], nearest: Tensor
) -> Iterator[tuple[str, OccupancyGrid, int, int | None, Tensor, Tensor]]:
    """(kind, edited grid, class that comes or goes, class of a repaint, target, rest) of the edits a frame allows."""
    size = frame.photographs.images.shape[-2:]

    def visible(grid: OccupancyGrid, label: int) -> tuple[Tensor, Tensor] | None:
        edited = Frame(frame.scene, frame.number, frame.t, grid, frame.photographs).mpi(cells)
        target, rest = changed_pixels(nearest, edited.nearest, size, label)
        # One view must show enough of it: two slivers at the borders of two views are no object to recognise.
        enough = float(target.flatten(1).sum(1).max()) >= LEAST * target[0].numel()
        return (target, rest) if enough and bool(rest.any()) else None

    car = TABLE.id_of("car")
    for box in free_spots(frame):
        grid = insert_box(frame.grid, box, car)
        regions = visible(grid, car)
        if regions is not None:
            yield "insert", grid, car, None, *regions
            break
    found = largest_vehicle(frame)
    if found is None:
        return
    box, label = found
    other = TABLE.id_of(REPAINT[TABLE.classes[label]])
    try:
        edits = {"remove": remove_box(frame.grid, box), "repaint": repaint_box(frame.grid, box, other)}
    except ValueError:  # thinner than the voxels, or outside the grid
        return
    for kind, grid in edits.items():
        regions = visible(grid, label)
        if regions is not None:
            yield kind, grid, label, other if kind == "repaint" else None, *regions


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
    waiting: list[tuple] = []

    def flush() -> None:
        if not waiting:
            return
        batch = [frames[item[0]] for item in waiting]
        mpis = [
            Frame(frame.scene, frame.number, frame.t, item[2], frame.photographs).mpi(cells)
            for frame, item in zip(batch, waiting, strict=True)
        ]
        rigs, captions = [frame.rig for frame in batch], [frame.scene.caption for frame in batch]
        drawn = drawer.draw(mpis, rigs, captions, [frame.number for frame in batch])
        owners = sorted({item[0] for item in waiting})
        others = drawer.draw(
            [shown[i]["mpi"] for i in owners],
            [frames[i].rig for i in owners],
            [frames[i].scene.caption for i in owners],
            [frames[i].number + 500_000 for i in owners],
        )
        for item, mpi, after in zip(waiting, mpis, drawn, strict=True):
            i, kind, _, label, other, target, rest = item
            before, elsewhere = shown[i]["generated"], others[owners.index(i)]
            seen = judge.predict(before), judge.predict(after)
            images = before.float() / 255, after.float() / 255, elsewhere.float() / 255
            effect = effect_of(images, seen, target, rest, label, other)
            real = float((judge.predict(shown[i]["real"])[target] == label).float().mean())
            entry = {"scene": frames[i].number, "kind": kind, "label": TABLE.classes[label], **effect._asdict()}
            entry["label_real"] = real if kind != "insert" else math.nan
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
        for kind, grid, label, other, target, rest in planned_edits(frame, cells, shown[i]["mpi"].nearest):
            waiting.append((i, kind, grid, label, other, target, rest))
        if len(waiting) >= drawer.batch:
            flush()
    flush()
    # One row a quantity, one column an edit.
    return {kind: [torch.stack(row) for row in zip(*columns, strict=True)] for kind, columns in pictures.items()}
