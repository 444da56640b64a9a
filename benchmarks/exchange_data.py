"""Frames of exchange_rate.py: photographed, generated from the same occupancy, generated from an edited or a new one.

Workers make scenes: photographs, labels and conditions. Every rank draws what belongs to its own scenes; then all
ranks hold all frames as rows of one pool, in blocks: photographs, first and second drawing of each, drawings of the
edited occupancy, drawings of scenes that were never photographed. All pictures, generated or not, have the
generator's size before they are scaled to the network's input.

Legend: F frames of a scene, N rows, V views, D planes, h w network input, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from drawing import Drawer
from occupancy_frames import windowed
from perception_data import EXACT, Drives
from processes import of_all_ranks
from torch import Tensor

from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.accumulation.visibility import camera_mask
from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.editing import Editor
from syntheocc.occupancy.grids import SYNTHEOCC, OccupancyGrid, Preset
from syntheocc.occupancy.metrics import THING_CLASSES, panoptic_instances, ray_origins
from syntheocc.occupancy.perception.dataset import SPARSEOCC_CAMERAS
from syntheocc.occupancy.rendering.mpi import PlaneSpec, SemanticMPI, render_mpi
from syntheocc.occupancy.transforms import invert_rigid

# What the third arm puts into the occupancy: classes of which a street holds little, by objects of the library.
RARE = {
    "bicycle": ("bicycle", "bicycle_parked"),
    "motorcycle": ("motorcycle", "motorcycle_parked"),
    "pedestrian": ("pedestrian", "pedestrian_standing", "construction_worker"),
    "traffic_cone": ("traffic_cone",),
    "barrier": ("barrier", "barrier_boards"),
    "construction_vehicle": ("wheel_loader", "roller"),
    "trailer": ("trailer_small",),
}
INSERTED = 5  # objects a frame
_TRIES = 12
# Blocks of rows with labels of their own.
LABELLED = ("real", "edited", "new")
# Shares of the training scenes, in tenths.
TENTHS = (1, 3, 10)
# Numbers of scenes that are never photographed.
NEW = 1_000_000


@dataclass(frozen=True)
class FrameOrder:
    """What is to be made of each scene of a split."""

    split: str
    seed: int
    key_frames: tuple[int, ...]
    """Which of the scene's 20."""
    image_size: tuple[int, int]
    """Width and height of all pictures, generated ones too."""
    window: tuple[int, int]
    """Height and width of the network's input."""
    preset: Preset
    device: str
    conditions: bool = False
    """Also MPIs, for drawing."""
    scored: bool = False
    """Also masks and ray origins."""
    edited: bool = False
    """Also labels and MPIs with objects of rare classes put in, where `share` holds the scene at a tenth."""


def share(number: int, tenths: int) -> bool:
    """Whether a scene is among the first tenths of the training scenes, which are spread over all ranks."""
    return (number + 3 * (number // 10)) % 10 < tenths


def make_frames(order: FrameOrder, number: int) -> dict[str, Any]:
    """Scene `number` of an order, tensors on the CPU.

    Returns:
        images uint8 [F, V, h, w, 3]; global2img float64 [F, V, 4, 4]; grid2global float64 [F, 4, 4]; semantics and
        instances uint8 [F, X, Y, Z]; number; with `conditions` caption and mpi, uint8 [F, V, D, cells], nearest and
        plane; with `edited` the same as edited_...; with `scored` camera_mask and origins.
    """
    from syntheocc.worlds.camera_images import Shot, render_shots
    from syntheocc.worlds.labels import exact_grids, exact_labels
    from syntheocc.worlds.lidar import camera_time
    from syntheocc.worlds.scene import make_scene
    from syntheocc.worlds.splits import scene_seed
    from syntheocc.worlds.timeline import key_frame

    device = torch.device(order.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches on the current device
    scene = make_scene(scene_seed(order.seed, order.split, number), split=order.split, image_size=order.image_size)
    times = [scene.key_times[i] for i in order.key_frames]
    names = scene.rig.names
    views = [names.index(name) for name in SPARSEOCC_CAMERAS]
    shots = []
    for t in times:
        for camera in scene.rig.values():
            moment = camera_time(t, camera)
            shots.append(Shot(camera, scene.ego.pose_at(moment), moment))
    lead = (len(times), len(names))
    images = torch.stack([view.image for view in render_shots(scene, shots, device)]).permute(0, 3, 1, 2)
    pixels, window = windowed(images, order.window)
    lens = torch.eye(4, dtype=torch.float64).repeat(len(shots), 1, 1)
    lens[:, :3, :3] = torch.stack([shot.camera.intrinsics for shot in shots])
    cam2global = torch.stack([shot.ego2global @ shot.camera.cam2ego for shot in shots])
    pairs = [exact_labels(scene, t, order.preset, device) for t in times]
    frames = [key_frame(scene, i) for i in order.key_frames]
    made: dict[str, Any] = {
        "number": number,
        "caption": scene.caption,
        "images": pixels.unflatten(0, lead)[:, views].permute(0, 1, 3, 4, 2).cpu().contiguous(),
        "global2img": (window.matrix() @ lens @ invert_rigid(cam2global)).unflatten(0, lead)[:, views],
        "grid2global": torch.stack([scene.ego.pose_at(t) for t in times]),
        "semantics": torch.stack([grid.labels for grid, _ in pairs]).cpu(),
        "instances": torch.stack([bytes_of(instances) for _, instances in pairs]).cpu(),
    }
    rigs = [frame.cameras for frame in frames]
    if order.conditions:
        grids = exact_grids(scene, times, SYNTHEOCC, device)
        made |= conditions_of(grids, rigs, order.image_size, "")
        if order.edited and share(number, 1):
            fine = [grid.to("cpu") for grid in grids]
            changed = [
                with_rare(fine[i], pairs[i][0].to("cpu"), frames[i].boxes, 100 * number + i) for i in range(len(times))
            ]
            made |= conditions_of([one[0].to(device) for one in changed], rigs, order.image_size, "edited_")
            made["edited_semantics"] = torch.stack([one[1].labels for one in changed])
            made["edited_instances"] = torch.stack([one[2] for one in changed])
            made["edited_objects"] = sum(one[3] for one in changed)
    if order.scored:
        made["camera_mask"] = torch.stack(
            [
                camera_mask(labels != order.preset.taxonomy.free, order.preset.spec, rig.select(SPARSEOCC_CAMERAS))
                for labels, rig in zip(made["semantics"], rigs, strict=True)
            ]
        )
        drive = [key_frame(scene, i) for i in range(len(scene.key_times))]
        made["origins"] = [ray_origins(drive, reference=i) for i in order.key_frames]
    return made


def conditions_of(
    grids: Sequence[OccupancyGrid], rigs: Sequence[CameraRig], image_size: tuple[int, int], prefix: str
) -> dict[str, Tensor]:
    """MPIs of frames for 8 x 8 pixels a cell, on the CPU."""
    width, height = image_size
    mpis = [render_mpi(g, r, height // 8, width // 8, planes=PlaneSpec()) for g, r in zip(grids, rigs, strict=True)]
    return {
        f"{prefix}mpi": torch.stack([mpi.labels for mpi in mpis]).cpu(),
        f"{prefix}nearest": torch.stack([mpi.nearest for mpi in mpis]).cpu(),
        f"{prefix}plane": torch.stack([mpi.nearest_plane for mpi in mpis]).cpu(),
    }


def with_rare(
    fine: OccupancyGrid, coarse: OccupancyGrid, boxes: Any, seed: int
) -> tuple[OccupancyGrid, OccupancyGrid, Tensor, int]:
    """Put objects of rare classes near the car into both grids of a frame, by the same edits.

    Args:
        fine: what the condition is rendered from.
        coarse: what is learnt from.
        boxes: the frame's.
        seed: of classes and places.

    Returns:
        both grids, instances uint8 [X, Y, Z] of the coarse one, and how many objects found room.
    """
    random = torch.Generator().manual_seed(seed)
    editors = (Editor(fine, boxes), Editor(coarse, boxes))
    placed = 0
    for _ in range(INSERTED):
        kinds = list(RARE.values())
        assets = kinds[int(torch.randint(len(kinds), (), generator=random))]
        asset = assets[int(torch.randint(len(assets), (), generator=random))]
        for _ in range(_TRIES):
            x, y, turn = torch.rand(3, generator=random).tolist()
            at, yaw = (40 * x - 16, 24 * y - 12), 360 * turn
            if max(abs(at[0]) / 2, abs(at[1])) < 3:  # not in the car
                continue
            try:
                editors[0].insert(asset, at, yaw_deg=yaw)
            except ValueError:  # no room, no ground
                continue
            try:
                # What has room in the fine grid may touch something in the coarse one.
                editors[1].insert(asset, at, yaw_deg=yaw, allow=("collision", "floating"))
            except ValueError:
                editors[0].undo()
                continue
            placed += 1
            break
    grid = editors[1].grid
    things = torch.tensor([grid.taxonomy.id_of(name) for name in THING_CLASSES if name in grid.taxonomy.classes])
    instances = panoptic_instances(grid, editors[1].boxes) if editors[1].boxes is not None else None
    if instances is None:
        instances = torch.zeros(grid.spec.shape, dtype=torch.int32)
    return editors[0].grid, grid, bytes_of(instances * torch.isin(grid.labels, things)), placed


def bytes_of(instances: Tensor) -> Tensor:
    """Object ids numbered anew as bytes, 0 none; what does not fit is no object."""
    found, dense = torch.unique(instances, return_inverse=True)
    dense = dense + int(found[0] != 0)
    return dense.masked_fill(dense > 255, 0).to(torch.uint8)


def drawn(
    one: dict[str, Any], drawer: Drawer, rig: CameraRig, seed: int, window: tuple[int, int], prefix: str
) -> Tensor:
    """The views of a scene's conditions, as the network reads them: uint8 [F, V, h, w, 3] on the drawer's device."""
    labels, nearest, plane = (one[f"{prefix}{name}"] for name in ("mpi", "nearest", "plane"))
    taxonomy, names = SYNTHEOCC.taxonomy, tuple(rig.names)
    mpis = [
        SemanticMPI(labels[i], nearest[i], plane[i], taxonomy, PlaneSpec(), "center", names)
        for i in range(len(labels))
    ]
    seeds = [1000 * one["number"] + 10 * i + seed for i in range(len(mpis))]
    views = drawer.draw(mpis, [rig] * len(mpis), [one["caption"]] * len(mpis), seeds)
    pixels, _ = windowed(views.flatten(0, 1), window)
    order = [rig.names.index(name) for name in SPARSEOCC_CAMERAS]
    return pixels.unflatten(0, views.shape[:2])[:, order].permute(0, 1, 3, 4, 2).contiguous()


class Shared:
    """Rows of a tensor by the rows of a larger pool: several pictures have one label."""

    def __init__(self, values: Tensor, row_of: Tensor):
        self.values, self.row_of = values, row_of

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.values[self.row_of[rows]]

    @property
    def device(self) -> torch.device:
        """Of the values."""
        return self.values.device


@dataclass(eq=False)
class Pool:
    """All rows, and which block and scene each is of.

    drives: the rows, one key frame each; block -> int64 rows; tenth: int64 [N], 1, 3 or 10: the smallest share of the
    training scenes that the row belongs to.
    """

    drives: Drives
    blocks: dict[str, Tensor]
    tenth: Tensor

    def rows(self, block: str, tenths: int) -> Tensor:
        """The rows of a block whose scenes are among so many tenths."""
        rows = self.blocks[block]
        return rows[self.tenth[rows] <= tenths]


def pool_of_all(parts: dict[str, list[dict[str, Any]]], ranks: Ranks, device: torch.device) -> Pool:
    """The frames of all ranks on each of them.

    Args:
        parts: block -> scenes of this rank with images, geometry and number, perhaps none; "real" first, of which
            every rank has one. Blocks of `LABELLED` have labels of their own, others those of the same scenes in
            "real".
        ranks: the processes.
        device: where everything goes.
    """
    template = parts["real"][0]
    frames = len(template["images"])

    def everyones(scenes: list[dict[str, Any]], column: str) -> Tensor:
        none = template[column][:0].to(device)
        return ragged(torch.cat([none, *(one[column].to(device) for one in scenes)]), ranks)

    columns: dict[str, list[Tensor]] = {"images": [], "global2img": [], "grid2global": []}
    labels: dict[str, list[Tensor]] = {"semantics": [], "instances": []}
    blocks: dict[str, Tensor] = {}
    tenths: list[int] = []
    label_rows: list[int] = []
    first, label_first = 0, 0
    base: dict[int, int] = {}
    for name, scenes in parts.items():
        for column, values in columns.items():
            values.append(everyones(scenes, column))
        numbers = [number for part in ranks.gather([one["number"] for one in scenes]) for number in part]
        rows, own = len(numbers) * frames, name in LABELLED
        if own:
            for column, values in labels.items():
                values.append(everyones(scenes, column))
        for i, number in enumerate(numbers):
            start = label_first + i * frames if own else base[number]
            base.setdefault(number, start)
            label_rows += range(start, start + frames)
            tenths += [next(k for k in TENTHS if number >= NEW or share(number, k))] * frames
        blocks[name] = torch.arange(first, first + rows)
        first, label_first = first + rows, label_first + (rows if own else 0)
    row_of = torch.tensor(label_rows, device=device)
    joined = {column: torch.cat(values) for column, values in columns.items()}
    semantics, instances = (Shared(torch.cat(labels[name]), row_of) for name in ("semantics", "instances"))
    drives = Drives(**joined, length=1, labels={EXACT: (semantics, instances)})  # type: ignore[dict-item]
    return Pool(drives, blocks, torch.tensor(tenths))


def ragged(rows: Tensor, ranks: Ranks) -> Tensor:
    """The rows of all ranks in rank order, however many each has."""
    counts = ranks.gather(len(rows))
    most = max(counts)
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    joined = of_all_ranks(padded, ranks)
    return torch.cat([joined[i * most : i * most + count] for i, count in enumerate(counts)])
