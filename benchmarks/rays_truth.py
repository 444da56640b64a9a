"""The truth of benchmarks/rays.py: label rays cast into the exact occupancy, and through boxes that move it.

Figures of the specification's acceptance tests 5 and 6 (specs/occflownet_splattingocc.md 7): how far a lidar point is
from the voxel that its ray hits first, how often that voxel has the point's class, and, of points on things that moved
by more than a metre, how far off the first hit is with the boxes moved and with the key frame's occupancy as it
stands.
"""

from typing import Any

import torch
from measuring import Bench
from torch import Tensor

from syntheocc.occupancy.data.lidarseg import NOISE_AND_EGO, LidarPoints, lidarseg_table
from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.perception.history import key_shot
from syntheocc.occupancy.perception.ray_config import FLOW_CLASSES, RayConfig
from syntheocc.occupancy.perception.ray_frames import RayFrame, ray_frame
from syntheocc.occupancy.perception.ray_labels import RaySample, build_rays
from syntheocc.occupancy.rendering.motion import warp_points
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.worlds.labels import exact_grid
from syntheocc.worlds.lidar import LidarModel, scan
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.timeline import key_frame

SPEC, FREE = OCC3D_NUSCENES.spec, OCC3D_NUSCENES.taxonomy.free


def truth(bench: Bench) -> None:
    """Every scene, and all of them together."""
    found: dict[str, list[tuple[Tensor, ...]]] = {"camera": [], "lidar": []}
    moved: dict[str, list[tuple[Tensor, Tensor]]] = {"moved by boxes": [], "as it stands": []}
    for seed in range(1 if bench.args.smoke else bench.args.scenes):
        scene = make_scene(seed, split="val", image_size=None, key_frames=3)
        frames = [frame_of(scene, index, 100 if bench.args.smoke else 1084) for index in range(3)]
        labels = exact_grid(scene, scene.key_times[1], OCC3D_NUSCENES).labels
        for origin, rows in found.items():
            rows.append(against_voxels(labels, build(frames, ray_origin=origin).rays))
            report(bench, f"scene {seed}, rays from the {origin}", rows[-1])
        for name, part in through_boxes(labels, build(frames)).items():
            moved[name].append(part)
    for origin, rows in found.items():
        report(
            bench, f"all scenes, rays from the {origin}", tuple(torch.cat(part) for part in zip(*rows, strict=True))
        )
    for name, parts in moved.items():
        error, same = (torch.cat(values) for values in zip(*parts, strict=True))
        if len(error):
            bench.row(
                "motion", f"occupancy {name}", rays=len(error), median_m=float(error.median()), same_class=share(same)
            )


def build(frames: list[RayFrame], **options: Any) -> RaySample:
    return build_rays(frames, RayConfig(frame_offsets=(-1, 0, 1), **options), SPEC)


def frame_of(scene: Any, index: int, azimuths: int) -> RayFrame:
    """A key frame of the world that never was a file."""
    frame, sweep = key_frame(scene, index), scan(scene, scene.key_times[index], LidarModel(azimuths=azimuths))
    classes = torch.from_numpy(lidarseg_table(drop_raw_ids=NOISE_AND_EGO))[sweep.category.long()]
    points = LidarPoints(sweep.points[:, :3].contiguous(), classes)
    assert frame.ego2global is not None
    return ray_frame(frame, lambda _: points, list(key_shot(frame).cameras.values()), frame.ego2global)


def against_voxels(labels: Tensor, rays: RayLabels) -> tuple[Tensor, ...]:
    """Of the key frame's rays: metres from point to voxel hit, error of the depth, same class, on the ground; [R]."""
    rays = rays.select(rays.is_key)
    reach, index, _ = cast_rays(labels != FREE, rays.origins, rays.directions, SPEC, distance="entry")
    lower = torch.tensor(SPEC.lower) + torch.tensor(SPEC.voxel_size) * index
    upper = lower + torch.tensor(SPEC.voxel_size)
    off = torch.maximum(lower - rays.points, rays.points - upper).clamp_min(0).norm(dim=-1)
    same = labels[index.unbind(-1)].long() == rays.labels
    return off, (reach - rays.distance).abs(), same, (rays.labels >= 11) & (rays.labels <= 14)


def report(bench: Bench, what: str, values: tuple[Tensor, ...]) -> None:
    off, error, same, ground = values
    figures = {"median_m": off, "not_ground_m": off[~ground], "ground_m": off[ground], "depth_m": error[~ground]}
    medians = {name: float(metres.median()) for name, metres in figures.items()}
    bench.row("truth", what, rays=len(off), **medians, same_class=share(same), share_of_ground=share(ground))


def through_boxes(labels: Tensor, sample: RaySample) -> dict[str, tuple[Tensor, Tensor]]:
    """Error of the first hit in metres and whether its class is right, of up to 400 rays to what moved; [R]."""
    rays, motion = sample.rays, sample.motion
    assert motion is not None
    rays = rays.select(~rays.is_key & torch.isin(rays.labels, torch.tensor(FLOW_CLASSES)))
    far = (motion.source2ego - motion.target2ego)[:, :3, 3].norm(dim=-1) > 1.0
    _, on_mover, _ = warp_points(rays.points, rays.frames, rays.samples, motion.select(far))
    chosen = on_mover.nonzero()[:, 0]
    rays = rays.select(chosen[:: len(chosen) // 400 + 1])
    nothing = motion.select(torch.zeros(len(motion), dtype=torch.bool))
    return {
        "moved by boxes": first_hits(labels, rays, motion),
        "as it stands": first_hits(labels, rays, nothing),
    }


def first_hits(labels: Tensor, rays: RayLabels, motion: BoxMotion) -> tuple[Tensor, Tensor]:
    """Steps of 5 cm along every ray, each looked up where its object was at key time."""
    steps = torch.arange(0.5, 40.0, 0.05)
    points = (rays.origins[:, None] + rays.directions[:, None] * steps[:, None]).flatten(0, 1)
    frames, samples = (values.repeat_interleave(len(steps)) for values in (rays.frames, rays.samples))
    at, there, left = warp_points(points, frames, samples, motion)
    index, inside = SPEC.index_of(at)
    classes = torch.where(inside & ~(left & ~there), labels[index.unbind(-1)], FREE).long().view(len(rays), -1)
    first = (classes != FREE).int().argmax(1) if len(rays) else torch.zeros(0, dtype=torch.int64)
    return (steps[first] - rays.distance).abs(), classes.gather(1, first[:, None])[:, 0] == rays.labels


def share(values: Tensor) -> float:
    return float(values.float().mean())
