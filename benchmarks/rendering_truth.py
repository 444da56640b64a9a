"""What renderers make of the true occupancy: exact grids of street scenes, seen along the rays of their lidar.

    python benchmarks/rendering_truth.py --output DIR     a table of three scenes, some minutes on a CPU
    python benchmarks/rendering_truth.py --smoke          one scene, few rays

Opacity is 1 where a voxel is occupied and 0 elsewhere; nothing is learnt. What is off here is off in every model that
the renderer teaches. "Solid" rays end on what stands up; the others end on the road, where a grazing ray errs by up to
a voxel's length along the ray (specs/occflownet_splattingocc.md 7.5). Distances in metres, medians.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import reporting
import torch
from torch import Tensor

from syntheocc.occupancy import OCC3D_NUSCENES
from syntheocc.occupancy.data.lidarseg import NOISE_AND_EGO, lidarseg_table
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_frames import RayFrame
from syntheocc.occupancy.perception.ray_labels import build_rays
from syntheocc.occupancy.rendering.compositing import RenderedRays
from syntheocc.occupancy.rendering.flow import render_labels
from syntheocc.occupancy.rendering.gaussian import Gaussians, splat
from syntheocc.occupancy.rendering.rays import RayLabels
from syntheocc.occupancy.rendering.splat_views import SplatRays
from syntheocc.occupancy.rendering.volume import RenderSettings
from syntheocc.occupancy.transforms import transform_points
from syntheocc.worlds.labels import exact_grid
from syntheocc.worlds.lidar import LidarModel, camera_time, scan
from syntheocc.worlds.scene import make_scene

SPEC, TAXONOMY = OCC3D_NUSCENES
GROUND = torch.tensor([11, 12, 13, 14])
HALF_VOXEL = 0.2


class Street(NamedTuple):
    """A key frame."""

    occupied: Tensor  # [1, X, Y, Z] 0 or 1
    features: Tensor  # [1, X, Y, Z, C + 3] classes, and the voxels' centres: their composite is the voxel hit
    rays: RayLabels


def streets(number: int, azimuths: int, step: int) -> Iterator[Street]:
    """Key frames of the procedural world with every step-th of their label rays."""
    table = torch.from_numpy(lidarseg_table(drop_raw_ids=NOISE_AND_EGO))
    for seed in range(number):
        scene = make_scene(seed, key_frames=2)
        t = scene.key_times[0]
        sweep, cameras = scan(scene, t, LidarModel(azimuths=azimuths)), list(scene.rig.values())
        frame = RayFrame(
            points=transform_points(scene.lidar2ego.float(), sweep.points[:, :3]),
            labels=table[sweep.category.long()],
            frame2global=scene.ego.pose_at(t),
            lidar_origin=scene.lidar2ego[:3, 3],
            intrinsics=torch.stack([camera.intrinsics for camera in cameras]),
            cam2global=torch.stack([scene.ego.pose_at(camera_time(t, c)) @ c.cam2ego for c in cameras]),
            sizes=torch.tensor([[c.height, c.width] for c in cameras], dtype=torch.float64),
            boxes=None,
        )
        rays = build_rays([frame], RayConfig(frame_offsets=(0,), dynamics="none"), SPEC).rays
        labels = exact_grid(scene, t, OCC3D_NUSCENES).labels.long()
        classes = torch.nn.functional.one_hot(labels, 256)[..., : TAXONOMY.free].float()
        features = torch.cat([classes, SPEC.centers().float()], -1)
        yield Street(
            (labels < TAXONOMY.free).float()[None], features[None], rays.select(torch.arange(0, len(rays), step))
        )


def renderers() -> dict[str, Callable[[Street], RenderedRays]]:
    """What is compared."""

    def volume(settings: RenderSettings) -> Callable[[Street], RenderedRays]:
        return lambda street: render_labels(
            street.occupied, street.features, street.rays, SPEC, settings, "none", free_margin=0.8
        )

    def splats(scale: float, opacity: float) -> Callable[[Street], RenderedRays]:
        return lambda street: splat(
            Gaussians(opacity * street.occupied, street.features, scale, SPEC), SplatRays.from_labels(street.rays),
            front_limits=street.rays.distance - 0.8,
        )  # fmt: skip

    made = {
        "volume, voxel by voxel": volume(RenderSettings(sampling="exact")),
        "volume, importance": volume(RenderSettings()),
        "volume, importance, published lookup": volume(RenderSettings(legacy=True)),
    }
    for scale, opacity in ((0.1, 1.0), (0.15, 1.0), (0.2, 1.0), (0.27, 1.0), (0.2, 0.5)):
        made[f"splats of {scale} m, opacity {opacity}"] = splats(scale, opacity)
    return made


def score(seen: RenderedRays, rays: RayLabels) -> dict[str, Tensor]:
    """Per ray: what is found, how far off it is, and whether its class is right."""
    weight = seen.weight_sum.clamp_min(1e-6)
    center = seen.semantics[:, TAXONOMY.free :] / weight[:, None]
    assert seen.front is not None
    return {
        "found": seen.weight_sum > 0.5,
        "solid": ~torch.isin(rays.labels, GROUND),
        "voxel": ((rays.points - center).abs() - HALF_VOXEL).clamp(min=0).norm(dim=1),
        "depth": (seen.depth - rays.distance).abs(),
        "right": seen.semantics[:, : TAXONOMY.free].argmax(1) == rays.labels,
        "front": seen.front,
    }


def asked_for(description: str) -> tuple[argparse.Namespace, list[Street]]:
    """The command line of a benchmark of true occupancy, and its streets."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder for the JSON file")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    number, azimuths, step = (1, 90, 4) if args.smoke else (args.scenes, 360, 4)
    return args, list(streets(number, azimuths, step))


def main() -> None:
    args, made = asked_for(__doc__)
    found = []
    for name, render in renderers().items():
        parts = [score(render(street), street.rays) for street in made]
        ray = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        solid, ground = ray["found"] & ray["solid"], ray["found"] & ~ray["solid"]
        row = {
            "what": name,
            "rays": len(ray["found"]),
            "stopped": float(ray["found"].float().mean()),
            "voxel_distance_solid": float(ray["voxel"][solid].median()),
            "voxel_distance_ground": float(ray["voxel"][ground].median()),
            "depth_error_solid": float(ray["depth"][solid].median()),
            "depth_error_ground": float(ray["depth"][ground].median()),
            "class_agreement": float(ray["right"][ray["found"]].float().mean()),
            "mass_in_front": float(ray["front"].mean()),
        }
        found.append(row)
        print(reporting.line_of(row), flush=True)
    reporting.keep_rows(args.output, "rendering-truth.json", found)


if __name__ == "__main__":
    main()
