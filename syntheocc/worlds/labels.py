"""Exact occupancy labels of a scene: no sensor, no accumulation, no holes.

The voxel rule, in order of priority:

1. **Objects** (the ten detection classes): a voxel whose centre lies in one of their solids; for a solid thinner than
   a voxel, any of a few points spread over the voxel (`voxelize.samples_for`), so that poles and mirrors survive.
2. **The rest that stands** (buildings, vegetation, others): the same test.
3. **Ground**: of each column of voxels the one that the surface passes through at the column's middle, with the class
   of the ground there. Below it nothing is labelled: it is free, as it is in the real datasets' files.

Where several solids of the same priority hold a voxel, the last one in `Scene.primitives_at` counts.

4. **Insides**: what stands is labelled `SHELL` voxels deep. Deeper voxels are free, as no sensor could ever see them
   and the real files hold none; two voxels stop every ray, also one that is sampled a plane at a time.
Legend: P solids, X Y Z voxels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec, OccupancyGrid, Preset
from syntheocc.occupancy.taxonomy import Taxonomy
from syntheocc.occupancy.transforms import invert_rigid
from syntheocc.worlds.primitives import Primitives
from syntheocc.worlds.taxonomy import WORLD_TAXONOMY
from syntheocc.worlds.voxelize import paint

__all__ = ["exact_grid", "exact_grids", "exact_labels", "ground_levels", "grid_to_world", "world_table"]

SHELL = 2
GROUND_CLASSES = ("driveable_surface", "other_flat", "sidewalk", "terrain")


def exact_grid(scene: Any, t: float, preset: Preset, device: torch.device | str | None = None) -> OccupancyGrid:
    """The labels of a scene at a time; see `exact_labels`."""
    return exact_labels(scene, t, preset, device)[0]


def exact_grids(
    scene: Any, times: Sequence[float], preset: Preset, device: torch.device | str | None = None
) -> list[OccupancyGrid]:
    """`exact_grid` at several times: the solids cross to the device once, and all poses are found together."""
    device = torch.device(device or "cpu")
    moving, owner = scene.moving_parts
    static, moving, owner = scene.static.to(device), moving.to(device), owner.to(device)
    poses = torch.from_numpy(scene.actor_poses(list(times))).to(device)  # [T, A, 4, 4]
    grids = []
    for t, pose in zip(times, poses, strict=True):
        solids = Primitives.cat([static, moving.transformed(pose[owner])])
        grids.append(_labels_of(scene, solids, t, preset, SHELL)[0])
    return grids


def exact_labels(
    scene: Any, t: float, preset: Preset, device: torch.device | str | None = None, shell: int | None = SHELL
) -> tuple[OccupancyGrid, Tensor]:
    """The labels and instances of a scene at a time.

    Args:
        scene: a `Scene`.
        t: seconds; everything stands where it is at that time, the ego car included (its own body is no label).
        preset: the grid ("ego" or "lidar" frame) and the class table of the labels.
        device: where the grid is made; the CPU when left out.
        shell: how many voxels deep buildings and the like are; None fills them.

    Returns:
        The grid (`grid2ego` is the scene's lidar2ego for grids in the lidar frame), and instances int32 [X, Y, Z]: 0
        none, else index of the actor + 1.

    Raises:
        ValueError: a grid in another frame, a time outside the scene.
    """
    return _labels_of(scene, scene.primitives_at(t).to(device or "cpu"), t, preset, shell)


def _labels_of(
    scene: Any, solids: Primitives, t: float, preset: Preset, shell: int | None
) -> tuple[OccupancyGrid, Tensor]:
    """`exact_labels` of solids that stand where they are at time t, world frame, on their device."""
    grid2ego, grid2world = grid_to_world(scene, t, preset.spec)
    solids = solids.transformed(invert_rigid(grid2world).to(solids.shape2frame))
    solids = solids.select(_priority(solids.label).argsort(stable=True))
    table, spec, free = world_table(preset.taxonomy).to(solids.label.device), preset.spec, preset.taxonomy.free
    # Entry 0 of each list is for voxels without a solid. Ten million voxels: small types, and few passes over them.
    owner = paint(solids, spec).add_(1).flatten()
    nothing = solids.label.new_zeros(1)
    labels = torch.cat([nothing + free, table[solids.label.int()]]).index_select(0, owner).reshape(spec.shape)
    instances = torch.cat([nothing, solids.instance]).int().index_select(0, owner).reshape(spec.shape)
    held = (owner > 0).reshape(spec.shape)
    level, ground = ground_levels(scene.ground, grid2world, spec, labels.device)
    level = level.clamp(-1, spec.shape[2]).to(torch.int16)[..., None]
    height = torch.arange(spec.shape[2], dtype=torch.int16, device=labels.device)
    below, bare = height < level, (height == level) & ~held
    if shell is not None:
        # Told before the ground is laid: under a house there is no ground to see.
        below |= (held & (instances == 0)) & _eroded((held & (instances == 0)) | below, shell)
    column, depth = bare.flatten(0, 1).nonzero().unbind(1)
    labels.flatten(0, 1)[column, depth] = table[ground.flatten()[column].int()]
    labels[below] = free
    instances[below] = 0
    return OccupancyGrid(labels, spec, preset.taxonomy, grid2ego), instances


def grid_to_world(scene: Any, t: float, spec: GridSpec) -> tuple[Tensor, Tensor]:
    """`grid2ego` and `grid2world` [4, 4] of a grid at a time; ValueError for a grid that hangs on no car."""
    if spec.frame not in ("ego", "lidar"):
        raise ValueError(f"a street's labels lie in the ego or the lidar frame, not in {spec.frame!r}")
    grid2ego = scene.lidar2ego if spec.frame == "lidar" else torch.eye(4, dtype=torch.float64)
    return grid2ego, scene.ego.pose_at(t) @ grid2ego


def world_table(taxonomy: Taxonomy) -> Tensor:
    """Lookup uint8 [256] from the world's labels to a table's (what the table has no word for becomes 255)."""
    return torch.from_numpy(WORLD_TAXONOMY.mapping_to(taxonomy))


def ground_levels(
    ground: Any, grid2world: Tensor, spec: GridSpec, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Where the ground passes through each column of a grid.

    Args:
        ground: a `Ground`.
        grid2world: [4, 4]; may be tilted, the columns then are too.
        spec: the grid.
        device: of the results.

    Returns:
        level int64 [X, Y], the index of the voxel at the column's middle (may lie outside the grid), and the ground's
        class uint8 [X, Y].
    """
    pose = grid2world.to(device)
    axes = [
        low + (torch.arange(n, dtype=torch.float64, device=device) + 0.5) * size
        for low, n, size in zip(spec.lower[:2], spec.shape[:2], spec.voxel_size[:2], strict=True)
    ]
    column = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    flat = column @ pose[:3, :2].T + pose[:3, 3]
    up = pose[:3, 2]
    z = torch.zeros(column.shape[:2], dtype=torch.float64, device=device)
    # The slope times the tilt is below 0.01, by which the error shrinks each time.
    for _ in range(4):
        point = flat + z[..., None] * up
        z = z - (point[..., 2] - ground.height(point[..., :2])) / up[2]
    point = flat + z[..., None] * up
    level = ((z - spec.lower[2]) / spec.voxel_size[2]).floor().long()
    return level, ground.label_at(point[..., :2])


def _eroded(held: Tensor, steps: int) -> Tensor:
    """Voxels whose neighbours, up to `steps` away along every axis, are all held; beyond the grid all is held."""
    for axis in range(3):
        for _ in range(steps):
            near = held.clone()
            last = held.shape[axis] - 1
            near.narrow(axis, 0, last).logical_and_(held.narrow(axis, 1, last))
            near.narrow(axis, 1, last).logical_and_(held.narrow(axis, 0, last))
            held = near
    return held


def _priority(label: Tensor) -> Tensor:
    """0 ground, 1 what stands, 2 objects; int64 [P]."""
    table = torch.ones(256, dtype=torch.long)
    table[[WORLD_TAXONOMY.id_of(name) for name in GROUND_CLASSES]] = 0
    table[list(WORLD_TAXONOMY.foreground)] = 2
    return table.to(label.device)[label.int()]
