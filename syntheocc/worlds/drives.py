"""Drives through the procedural world for perception models: rendered and labelled, never written to a disk.

Example:
    >>> scene = make_scene(scene_seed(0, "train", 0), image_size=(352, 198))  # doctest: +SKIP
    >>> frames = CachedFrames(drive_of(scene, device="cuda"), sampling, OCC3D_NUSCENES.spec)  # doctest: +SKIP

Legend: N key frames, V views.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from syntheocc.occupancy.cameras import Camera
from syntheocc.occupancy.data.lidarseg import NOISE_AND_EGO, lidarseg_table
from syntheocc.occupancy.grids import OCC3D_NUSCENES, Preset
from syntheocc.occupancy.perception.cached import FrameStore
from syntheocc.occupancy.perception.dataset import SPARSEOCC_CAMERAS
from syntheocc.occupancy.perception.ray_frames import RayFrame, placed_boxes
from syntheocc.occupancy.perception.ray_store import StoredLidar
from syntheocc.occupancy.transforms import transform_points
from syntheocc.worlds.labels import exact_labels
from syntheocc.worlds.timeline import sample_token

__all__ = ["drive_of", "drives_of"]

# Key frames rendered in one go: more take gigabytes on a GPU.
AT_ONCE = 8


def drive_of(
    scene: Any,
    preset: Preset = OCC3D_NUSCENES,
    labels: Literal["exact", "accumulated"] = "exact",
    device: torch.device | str = "cpu",
    cameras: Sequence[str] = SPARSEOCC_CAMERAS,
    lidar: bool = False,
) -> FrameStore:
    """All key frames of a scene, images of the size that its rig has.

    Args:
        scene: a `Scene`; `make_scene(..., image_size=(352, 198))` suits a network that sees the lower 128 rows.
        preset: the grid, in ego, and the class table.
        labels: from the geometry, or accumulated from lidar sweeps with the gaps and trails of the real data.
        device: where images are rendered and everything large is kept.
        cameras: the views, in order.
        lidar: also the key frames' lidar points with classes, and their boxes, for rays (`RayConfig`).

    Returns:
        A store with semantics and instances (0: no object).

    Raises:
        ValueError: a grid that is not in ego, or a camera that the scene lacks.
    """
    from syntheocc.worlds.camera_images import Shot, render_shots
    from syntheocc.worlds.lidar import camera_time, scan

    if preset.spec.frame != "ego":
        raise ValueError(f"a drive's grids lie in ego, not in the {preset.spec.frame} frame")
    rig = scene.rig.select(cameras)
    times = list(scene.key_times)
    images, cam2global = [], []
    for first in range(0, len(times), AT_ONCE):
        shots = []
        for t in times[first : first + AT_ONCE]:
            for camera in rig.values():
                moment = camera_time(t, camera)  # every camera fires when the lidar's beam passes it
                shots.append(Shot(camera, scene.ego.pose_at(moment), moment))
        images += [view.image for view in render_shots(scene, shots, device)]
        cam2global += [shot.ego2global @ shot.camera.cam2ego for shot in shots]
    sweeps = [scan(scene, t, device=device) for t in times] if lidar or labels == "accumulated" else []
    pairs = _labels(scene, preset, labels, device, sweeps)
    intrinsics = torch.stack([camera.intrinsics for camera in rig.values()])
    return FrameStore(
        images=torch.stack(images).unflatten(0, (len(times), -1)),
        intrinsics=intrinsics.expand(len(times), -1, -1, -1).clone(),
        cam2global=torch.stack(cam2global).unflatten(0, (len(times), -1)),
        grid2global=torch.stack([scene.ego.pose_at(t) for t in times]),
        previous=torch.arange(len(times)).sub(1).clamp_min(0),
        tokens=[sample_token(scene, index) for index in range(len(times))],
        semantics=torch.stack([semantics.to(device) for semantics, _ in pairs]),
        instances=torch.stack([instances.to(device, torch.int16) for _, instances in pairs]),
        lidar=_lidar(scene, preset, sweeps, list(rig.values()), device) if lidar else None,
    )


def drives_of(scenes: Iterable[Any], seconds: float | None = None, **options: Any) -> FrameStore:
    """The drives of several scenes in one store.

    Args:
        scenes: `Scene`s, as other processes make them ahead of their use, for example.
        seconds: stop after so long, one scene at least; None takes all.
        options: of `drive_of`.

    Raises:
        ValueError: no scene.
    """
    began, drives = time.perf_counter(), []
    for scene in scenes:
        drives.append(drive_of(scene, **options))
        if seconds is not None and time.perf_counter() - began > seconds:
            break
    return FrameStore.cat(drives)


def _lidar(
    scene: Any, preset: Preset, sweeps: Sequence[Any], cameras: Sequence[Camera], device: torch.device | str
) -> StoredLidar:
    """The sweeps' points as readers of the written tree give them: in ego, noise and the car itself without label."""
    sizes = {(camera.height, camera.width) for camera in cameras}
    if len(sizes) != 1:
        raise ValueError(f"a store holds pictures of one size, got {sorted(sizes)}")
    table = torch.from_numpy(lidarseg_table(drop_raw_ids=NOISE_AND_EGO, taxonomy=preset.taxonomy))
    frames = []
    for t, sweep in zip(scene.key_times, sweeps, strict=True):
        pose = scene.ego.pose_at(t)
        points = transform_points(scene.lidar2ego.float(), sweep.points[:, :3])
        boxes = scene.boxes_at(t, pose)
        boxes = replace(boxes, num_lidar_points=boxes.contains(points).sum(1))
        none = torch.zeros(len(cameras), 4, 4, dtype=torch.float64)  # the store has the cameras itself
        labels = table[sweep.category.long()]
        origin = scene.lidar2ego[:3, 3]
        placed = placed_boxes(boxes, pose, preset.taxonomy)
        frames.append(RayFrame(points, labels, pose, origin, none[:, :3, :3], none, none[:, 0, :2], placed))
    return StoredLidar.of(frames, sizes.pop(), device)


def _labels(
    scene: Any, preset: Preset, kind: str, device: torch.device | str, sweeps: Sequence[Any]
) -> list[tuple[torch.Tensor, Any]]:
    """Semantics and instances of every key frame."""
    if kind == "exact":
        found = [exact_labels(scene, t, preset, device) for t in scene.key_times]
    elif kind == "accumulated":
        from syntheocc.worlds.accumulate import Accumulation

        accumulation = Accumulation.of(scene, sweeps)
        found = [accumulation.labels(i, preset, unseen=False) for i in range(len(scene.key_times))]
    else:
        raise ValueError(f"labels are 'exact' or 'accumulated', not {kind!r}")
    return [(grid.labels, torch.as_tensor(instances)) for grid, instances in found]
