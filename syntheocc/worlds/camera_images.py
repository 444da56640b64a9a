"""What a scene's cameras see: photographs with exact depth, classes and instances.

One renderer for CPU and GPU. The visibility operator says what every pixel's ray meets; the rest is torch on lists of
pixels. Images come from the analytic solids, so that depth and class at a pixel's centre are exact up to float32.

Example:
    >>> from syntheocc.worlds.scene import make_scene
    >>> scene = make_scene(0)
    >>> view = render_view(scene, scene.rig["CAM_FRONT"], scene.ego.pose_at(0.0), 0.0)
    >>> view.image.shape, view.depth.dtype
    (torch.Size([224, 400, 3]), torch.float32)

Legend: N images, H W pixels, M pixels of a kind, P solids.
"""

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera
from syntheocc.worlds.geometry import poses_at, scene_geometry
from syntheocc.worlds.lighting import lighting_of, sky_color
from syntheocc.worlds.ops.visibility import GROUND, NOTHING, choose_backend, visible
from syntheocc.worlds.ops.visibility.tables import ground_table, solid_table
from syntheocc.worlds.photography import develop
from syntheocc.worlds.scene import Scene
from syntheocc.worlds.shading import Surroundings, shade, surface_of_ground, surface_of_solids
from syntheocc.worlds.shadows import light_maps
from syntheocc.worlds.textures import atlas
from syntheocc.worlds.views import camera_rays, world_tiles

# Pixels shaded at a time on a CPU: intermediates stay in its caches, and below torch's grain of 32,768 numbers an
# operator runs in the calling thread (waking others for so little costs more, on a busy machine very much more).
_CPU_CHUNK = 10_000
# The sun map covers this much of the world before the camera; the overhead map as much, at a coarser step (metres).
_SPAN, _AHEAD = 96.0, 34.0
_OVERHEAD_STEP = 0.4


class View(NamedTuple):
    """What one camera sees, on the device that rendered it.

    image uint8 [H, W, 3]; depth float32 [H, W]: z for a pinhole, the distance for other lenses, metres, inf in the sky
    (and where a fisheye has no ray: there the image is black); labels uint8 [H, W] of WORLD_TAXONOMY (free in the
    sky); instances int32 [H, W], actor index + 1 or 0.
    """

    image: Tensor
    depth: Tensor
    labels: Tensor
    instances: Tensor


@dataclass(frozen=True)
class Shot:
    """One image to take: which camera (`cam2ego` as mounted), the ego pose and the instant."""

    camera: Camera
    ego2global: Tensor
    t: float


def render_view(
    scene: Scene,
    camera: Camera,
    ego2global: Tensor,
    t: float,
    size: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> View:
    """Renders one image.

    Args:
        scene: what is there.
        camera: intrinsics, lens and mounting (cam2ego to the ego frame at t).
        ego2global: float64 [4, 4] at the camera's own time.
        t: seconds; everything stands where it is then.
        size: (height, width); None takes the camera's.
        device: where to render.

    Returns:
        A `View`.
    """
    if size is not None and tuple(size) != (camera.height, camera.width):
        camera = camera.resized(*size)
    return render_shots(scene, [Shot(camera, ego2global, t)], device)[0]


def render_shots(
    scene: Scene,
    shots: list[Shot],
    device: torch.device | str = "cpu",
    backend: str | None = None,
    sharp: bool = False,
) -> list[View]:
    """Renders images of one size, on a GPU all at once.

    Args:
        scene: what is there.
        shots: N images to take; their cameras must have one height and width.
        device: where to render.
        backend: of the visibility operator; None takes the fastest.
        sharp: no blur, noise or rain streaks.

    Raises:
        ValueError: cameras of different sizes.
    """
    sizes = {(shot.camera.height, shot.camera.width) for shot in shots}
    if len(sizes) != 1:
        raise ValueError(f"one call renders images of one size (height, width), got {sorted(sizes)}")
    device = torch.device(device)
    if device.type == "cpu" and len(shots) > 1:
        # One image after another keeps the memory small; its threads share the work inside.
        return [render_shots(scene, [shot], device, backend, sharp)[0] for shot in shots]
    geometry = scene_geometry(scene, device)
    light = lighting_of(scene)
    ego2world = torch.stack([shot.ego2global.double().cpu() for shot in shots])
    cam2world = ego2world @ torch.stack([shot.camera.cam2ego for shot in shots])
    poses = poses_at(scene, np.array([shot.t for shot in shots]), ego2world).to(device)
    posed = geometry.posed(poses)
    eyes = cam2world[:, :3, 3].to(device)
    lenses = [camera_rays(shot.camera, device) for shot in shots]
    tiles = world_tiles(lenses, cam2world)
    solids = solid_table(geometry.solids.kind, geometry.solids.taper, *posed, eyes)
    distance, row = visible(tiles, solids, ground_table(geometry.ground, eyes), backend=backend)

    flat = torch.nn.functional.normalize(
        cam2world[:, :3, 2] * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), dim=-1
    )
    middles = (cam2world[:, :3, 3] + _AHEAD * flat).to(device)
    texels = 768 if shots[0].camera.height > 500 else 384
    sun = light_maps(geometry, posed, eyes, middles, -scene.sun_direction, texels, _SPAN, backend)
    down = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    overhead = light_maps(geometry, posed, eyes, middles, down, int(_SPAN / _OVERHEAD_STEP), _SPAN, backend)
    pixel_angle = torch.tensor([lens.pixel_angle for lens in lenses], device=device)
    around = Surroundings(
        geometry, solids, light, sun, overhead, atlas(device), eyes, ego2world.to(device), pixel_angle
    )
    if device.type == "cpu" and (backend or choose_backend(device)) == "numba":
        from syntheocc.worlds.ops.shading.numba import colors_numba as colors
    else:
        colors = _colors
    radiance, labels, instances = colors(around, tiles.field, distance, row)
    seeds = [_seed(scene, shot) for shot in shots]
    pictures = develop(radiance, light, seeds, sharp)
    depth = distance * torch.stack([lens.depth_scale for lens in lenses])
    depth = torch.where(torch.isfinite(distance), depth, torch.inf)
    return [View(*parts) for parts in zip(pictures, depth, labels, instances, strict=True)]


def _seed(scene: Scene, shot: Shot) -> int:
    """Of what is random in one photograph: the scene, the instant and where the camera is mounted."""
    return zlib.crc32(f"{scene.seed} {shot.t:.6f} {shot.camera.cam2ego[:3].flatten().tolist()}".encode())


def _colors(around: Surroundings, field: Tensor, distance: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Radiance float32 [N, H, W, 3], labels uint8 and instances int32 [N, H, W]."""
    images, height, width, _ = field.shape
    rays, distance, row = field.reshape(-1, 3), distance.reshape(-1), row.reshape(-1)
    radiance = torch.zeros_like(rays)
    labels = torch.zeros(len(rays), dtype=torch.uint8, device=rays.device)
    instances = torch.zeros(len(rays), dtype=torch.int32, device=rays.device)
    chunk = _CPU_CHUNK if rays.device.type == "cpu" else len(rays)
    size = height * width
    for start in range(0, len(rays), chunk):
        part = row[start : start + chunk]
        solid, ground, sky = (at.nonzero()[:, 0] + start for at in (part >= 0, part == GROUND, part == NOTHING))
        if len(solid):
            radiance[solid], labels[solid], instances[solid] = _solid_colors(
                around, solid // size, row[solid], rays[solid], distance[solid]
            )
        if len(ground):
            radiance[ground], labels[ground] = _ground_colors(around, ground // size, rays[ground], distance[ground])
        if len(sky):
            radiance[sky] = _sky_colors(around, rays[sky])
    shape = (images, height, width)
    return radiance.reshape(*shape, 3), labels.reshape(shape), instances.reshape(shape)


def _solid_colors(
    around: Surroundings, image: Tensor, row: Tensor, direction: Tensor, away: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Radiance, labels and instances of M pixels that see a row of their image's `SolidTable`."""
    normal, uv, material, primitive = surface_of_solids(around, image, row.long(), direction * away[:, None])
    radiance = shade(around, image, direction, away, normal, uv, material, on_ground=False)
    return radiance, around.geometry.labels[primitive], around.geometry.instances[primitive]


def _ground_colors(around: Surroundings, image: Tensor, direction: Tensor, away: Tensor) -> tuple[Tensor, Tensor]:
    """Radiance and labels of M pixels that see the ground."""
    normal, uv, material, label = surface_of_ground(around, image, direction * away[:, None])
    return shade(around, image, direction, away, normal, uv, material, on_ground=True), label


def _sky_colors(around: Surroundings, direction: Tensor) -> Tensor:
    """Radiance of M pixels that see nothing; one without a ray (outside a fisheye's circle) stays black."""
    color = sky_color(around.light, direction, around.atlas, detailed=True)
    return torch.where(direction[:, :1].isnan(), 0.0, color)
