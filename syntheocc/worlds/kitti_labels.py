"""SemanticKITTI's classes and masks of a scene: finer than the world's own table where the geometry tells more.

The world's classes map to KITTI's by `Taxonomy.mapping_to` (manmade is a building, a cone is unknown). Two of KITTI's
can be told from the solids: upright slim cylinders are poles where they are man-made and trunks where they grow.
Legend: P solids, N points, X Y Z voxels.
"""

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.accumulation.visibility import passed_voxels
from syntheocc.occupancy.data.semantic_kitti import RAW_OF_CLASS, SemanticKittiVoxels, voxelize_scan
from syntheocc.occupancy.grids import SEMANTIC_KITTI, GridSpec, OccupancyGrid
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.occupancy.taxonomy import SEMANTIC_KITTI_TAXONOMY
from syntheocc.occupancy.transforms import invert_rigid, transform_points
from syntheocc.worlds.labels import exact_labels, world_table
from syntheocc.worlds.primitives import CONE, Primitives
from syntheocc.worlds.scene import Scene
from syntheocc.worlds.taxonomy import WORLD_TAXONOMY
from syntheocc.worlds.velodyne import VelodyneScan
from syntheocc.worlds.voxelize import paint

__all__ = ["kitti_classes", "kitti_grid", "kitti_voxels", "point_labels", "seen_from"]

# Raw ids of what moves (SemanticKITTI tells a moving car from a parked one), by class name.
_MOVING = {"car": 252, "bicyclist": 253, "person": 254, "motorcyclist": 255, "truck": 258, "other_vehicle": 259}
_OTHER_OBJECT = 99
_POLE_RADIUS, _TRUNK_RADIUS = 0.2, 0.6  # metres
# The official voxels count a place as known when any of the next 70 scans (7 s) saw it.
HORIZON = 7.0


def kitti_classes(solids: Primitives) -> Tensor:
    """SemanticKITTI's class of each solid, uint8 [P]; 255 where it has no word for it."""
    classes = world_table(SEMANTIC_KITTI_TAXONOMY).to(solids.label.device)[solids.label.int()]
    axes = solids.shape2frame[:, :3, :3]
    upright = (solids.kind == CONE) & (axes[:, 2, 2].abs() > 0.9 * axes[:, :, 2].norm(dim=1)) & (solids.instance == 0)
    radius, tall = axes[:, :, :2].norm(dim=1).amax(1), 2 * axes[:, :, 2].norm(dim=1) > 1.0
    for name, finer, limit in (("manmade", "pole", _POLE_RADIUS), ("vegetation", "trunk", _TRUNK_RADIUS)):
        chosen = upright & tall & (solids.label == WORLD_TAXONOMY.id_of(name)) & (radius <= limit)
        classes = torch.where(chosen, SEMANTIC_KITTI_TAXONOMY.id_of(finer), classes.int()).to(torch.uint8)
    return classes


def kitti_grid(view: Scene, t: float) -> OccupancyGrid:
    """The exact labels of a scene whose lidar is a velodyne (`kitti_tree.kitti_view`); ego is the velodyne frame."""
    grid, _ = exact_labels(view, t, SEMANTIC_KITTI)
    velodyne2world = view.ego.pose_at(t) @ view.lidar2ego
    solids = view.primitives_at(t).transformed(invert_rigid(velodyne2world))
    classes = kitti_classes(solids)
    labels = grid.labels.clone()
    for finer, coarse in (("pole", "building"), ("trunk", "vegetation")):
        ids = [SEMANTIC_KITTI_TAXONOMY.id_of(name) for name in (finer, coarse)]
        where = paint(solids.select(classes == ids[0]), SEMANTIC_KITTI.spec) >= 0
        labels[where & (labels == ids[1])] = ids[0]
    return OccupancyGrid(labels, *SEMANTIC_KITTI, torch.eye(4, dtype=torch.float64))


def point_labels(view: Scene, t: float, scan: VelodyneScan) -> tuple[np.ndarray, np.ndarray]:
    """Raw SemanticKITTI ids uint16 [N] and instances uint16 [N] of a scan's points."""
    solids = view.primitives_at(t)
    table = np.full(256, _OTHER_OBJECT, np.uint16)
    table[: len(RAW_OF_CLASS)] = RAW_OF_CLASS
    raw_of_solid = table[kitti_classes(solids).numpy()]
    moves = np.array([False, *(actor.motion.moves for actor in view.actors)])[solids.instance.numpy()]
    for name, raw in _MOVING.items():
        raw_of_solid[moves & (raw_of_solid == table[SEMANTIC_KITTI_TAXONOMY.id_of(name)])] = raw
    raw_of_ground = table[world_table(SEMANTIC_KITTI_TAXONOMY).numpy()]
    on_ground = scan.solid < 0
    # The last entry stands for the ground, whose index is -1.
    raw = np.append(raw_of_solid, np.uint16(0))[scan.solid]
    instance = np.append(solids.instance.numpy(), 0)[scan.solid]
    return np.where(on_ground, raw_of_ground[scan.ground_label], raw).astype(np.uint16), instance.astype(np.uint16)


def kitti_voxels(view: Scene, t: float, scan: VelodyneScan, horizon: float = HORIZON) -> SemanticKittiVoxels:
    """Every voxel file of a frame: exact labels, the voxelised scan, and what was never seen.

    Args:
        view: a scene of `kitti_tree.kitti_view`.
        t: seconds.
        scan: the frame's own scan.
        horizon: seconds; a voxel is invalid when the velodyne sees it neither now nor from where it stands after half
            of that time nor after all of it.
    """
    grid = kitti_grid(view, t)
    occupied, spec = grid.labels != SEMANTIC_KITTI_TAXONOMY.free, grid.spec
    world2velodyne = invert_rigid(view.ego.pose_at(t) @ view.lidar2ego)
    hit = torch.from_numpy(voxelize_scan(scan.points))
    seen = seen_from(occupied, spec, torch.zeros(3, dtype=torch.float64)) | hit
    occluded = ~seen
    last = min(t + horizon, view.key_times[-1])
    for later in (t + (last - t) / 2, last) if last > t else ():
        eye = transform_points(world2velodyne, (view.ego.pose_at(later) @ view.lidar2ego)[None, :3, 3])[0]
        seen |= seen_from(occupied, spec, eye)
    return SemanticKittiVoxels(grid, hit, ~seen, occluded)


def seen_from(occupied: Tensor, spec: GridSpec, eye: Tensor) -> Tensor:
    """Voxels that can be seen from a point: those on the ways to the grid's faces, up to the first occupied one.

    A ray runs to the middle of every voxel of the six faces. The way to any other voxel leaves the grid within half a
    voxel of one of them, so no free voxel in sight is missed.

    Args:
        occupied: bool [X, Y, Z] on the CPU.
        spec: where the voxels lie.
        eye: float64 [3] metres in the grid's frame, may lie outside.

    Returns:
        bool [X, Y, Z].
    """
    face = torch.ones_like(occupied)
    face[1:-1, 1:-1, 1:-1] = False
    way = spec.centers()[face] - eye
    way = way[way.norm(dim=1) > 1e-6]
    distance, index, _ = cast_rays(occupied, eye, way, spec, distance="entry")
    inside = distance >= 0  # the others pass the grid by
    seen = torch.zeros_like(occupied)
    passed_voxels(seen, eye, eye + (distance / way.norm(dim=1))[inside, None] * way[inside], spec)
    # The last voxel of each way, occupied or at the grid's face: the way above ends on its near side.
    seen[tuple(index[inside].T)] = True
    return seen
