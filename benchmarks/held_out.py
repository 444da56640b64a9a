"""Frames of the street world with all that an evaluation asks: photographs, exact labels and depth, grid, rig, MPI.

Scenes come from `syntheocc.worlds.cache.iterate_scenes`; everything else happens on the device.
Legend: V views, H W pixels, h w cells.
"""

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import SYNTHEOCC, OccupancyGrid
from syntheocc.occupancy.rendering.mpi import PlaneSpec, SemanticMPI, render_mpi
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY
from syntheocc.occupancy.transforms import invert_rigid
from syntheocc.worlds.camera_images import Shot, render_shots
from syntheocc.worlds.labels import exact_grid, world_table
from syntheocc.worlds.lidar import camera_time

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Photographs:
    """What V cameras see at an instant.

    images uint8 [V, 3, H, W]; depth float32 [V, H, W] metres, inf in the sky; truth uint8 [V, H, W], SyntheOcc's ids,
    0 the sky, 255 what its table has no word for; covered bool [V, H, W], where the surface lies in the grid;
    instances int32 [V, H, W]; rig: the cameras in ego at the instant, where they were when they fired.
    """

    images: Tensor
    depth: Tensor
    truth: Tensor
    covered: Tensor
    instances: Tensor
    rig: CameraRig


@dataclass(frozen=True, eq=False)
class Frame:
    """One instant of one scene."""

    scene: Any
    number: int
    t: float
    grid: OccupancyGrid
    photographs: Photographs

    @property
    def rig(self) -> CameraRig:
        """The cameras in ego at the instant."""
        return self.photographs.rig

    def mpi(self, cells: tuple[int, int], samples_per_cell: int = 1, rig: CameraRig | None = None) -> SemanticMPI:
        """The condition [V, D, h, w], seen by another rig if one is given."""
        return render_mpi(self.grid, rig or self.rig, *cells, planes=PlaneSpec(), samples_per_cell=samples_per_cell)


def photograph(
    scene: Any, times: Sequence[float], device: torch.device, motions: Sequence[Tensor] | None = None
) -> list[Photographs]:
    """All cameras of a scene's rig around each of some instants, each when the lidar passes it.

    Args:
        scene: the scene.
        times: seconds.
        device: where to render.
        motions: for each instant a moved ego -> ego at that instant [4, 4]: the whole car stands elsewhere.
    """
    cameras = dict(scene.rig)
    shots, rigs = [], []
    for i, t in enumerate(times):
        ego2world = scene.ego.pose_at(t)
        world2ego = invert_rigid(ego2world)
        shift = torch.eye(4, dtype=torch.float64) if motions is None else ego2world @ motions[i] @ world2ego
        moments = [camera_time(t, camera) for camera in cameras.values()]
        poses = [shift @ pose for pose in torch.from_numpy(scene.ego.poses_at(moments))]
        shots += [Shot(*shot) for shot in zip(cameras.values(), poses, moments, strict=True)]
        placed = zip(cameras.items(), poses, strict=True)
        rigs.append(CameraRig({n: camera.moved(world2ego @ pose @ camera.cam2ego) for (n, camera), pose in placed}))
    views = render_shots(scene, shots, device)
    table = world_table(SYNTHEOCC_TAXONOMY).to(device)
    result = []
    for i, rig in enumerate(rigs):
        seen = views[i * len(cameras) : (i + 1) * len(cameras)]
        depth = torch.stack([view.depth for view in seen])
        result.append(
            Photographs(
                images=torch.stack([view.image for view in seen]).movedim(-1, 1).contiguous(),
                depth=depth,
                truth=torch.stack([table[view.labels.int()] for view in seen]),
                covered=in_grid(depth, rig, scene.lidar2ego),
                instances=torch.stack([view.instances for view in seen]),
                rig=rig,
            )
        )
    return result


def in_grid(depth: Tensor, rig: CameraRig, grid2ego: Tensor, farthest: float = 51.2) -> Tensor:
    """Which pixels show a point of SyntheOcc's grid: bool [V, H, W] of depth [V, H, W] metres."""
    height, width = depth.shape[-2:]
    arrays = rig.resized(height, width).arrays
    cam2grid = torch.linalg.inv(grid2ego) @ torch.from_numpy(arrays.cam2ego)
    pixel2ray = torch.linalg.inv(torch.from_numpy(arrays.intrinsics))
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=depth.device),
        torch.arange(width, dtype=torch.float64, device=depth.device),
        indexing="ij",
    )
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], -1)
    turned = (cam2grid[:, :3, :3] @ pixel2ray).to(depth.device)
    seen = torch.isfinite(depth) & (depth <= farthest)
    reach = torch.where(seen, depth, 0.0).double()[..., None]
    points = reach * torch.einsum("vij,hwj->vhwi", turned, pixels)
    points = points + cam2grid[:, :3, 3].to(depth.device)[:, None, None]
    lower = torch.tensor(SYNTHEOCC.spec.lower, dtype=torch.float64, device=depth.device)
    upper = torch.tensor(SYNTHEOCC.spec.upper, dtype=torch.float64, device=depth.device)
    return seen & ((points >= lower) & (points < upper)).all(-1)


def ahead(items: Iterator[Item], limit: int = 200) -> Iterator[Item]:
    """The same items, taken by a thread that starts now, while the caller does something else."""
    ready: queue.Queue = queue.Queue(limit)
    end = object()

    def take() -> None:
        try:
            for item in items:
                ready.put(item)
            ready.put(end)
        except BaseException as error:  # noqa: BLE001 (raised again in the caller)
            ready.put(error)

    threading.Thread(target=take, daemon=True).start()
    while (item := ready.get()) is not end:
        if isinstance(item, BaseException):
            raise item
        yield item


def frames(scenes: Iterable[tuple[int, Any]], device: torch.device) -> Iterator[Frame]:
    """One frame of every (number, scene), at an instant drawn from its number."""
    for number, scene in scenes:
        share = float(torch.rand((), generator=torch.Generator().manual_seed(1000 + number)))
        t = scene.key_times[0] + share * (scene.key_times[-1] - scene.key_times[0])
        grid = exact_grid(scene, t, SYNTHEOCC, device)
        yield Frame(scene, number, t, grid, photograph(scene, [t], device)[0])
