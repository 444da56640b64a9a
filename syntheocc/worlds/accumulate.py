"""Labels as the real datasets made them: lidar sweeps put together over a scene, then counted in voxels.

1. Every key sweep is taken to the world by its ego pose. Returns from the own car are dropped.
2. Returns inside an annotated box belong to that object: they get its class and move with its box. As the boxes stand
   at the sweep's end and the returns do not, edges go wrong as in the real data: the road under a car becomes car, and
   what a moving car's box misses stays behind as a ghost trail.
3. At the key frame asked for, the rest and the objects' returns (each where its box stands then) fall into voxels,
   which take the class that most of their returns have.
   Rain and spray are "others", as raw category 0 is everywhere.
4. A voxel without returns is free where a lidar ray passed it, else unknown (255).

Legend: N returns, A actors, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.accumulation.visibility import lidar_mask
from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.grids import GridSpec, OccupancyGrid, Preset
from syntheocc.occupancy.taxonomy import UNKNOWN
from syntheocc.occupancy.transforms import invert_rigid, transform_points
from syntheocc.worlds.labels import grid_to_world, world_table
from syntheocc.worlds.taxonomy import LIDARSEG_NAMES, LIDARSEG_TO_WORLD, WORLD_TAXONOMY

__all__ = ["Accumulation"]

EGO = LIDARSEG_NAMES.index("vehicle.ego")
# Sweeps from farther away than this (metres) add nothing to a grid.
FAR_SWEEP = 90.0


@dataclass(frozen=True, eq=False)
class Accumulation:
    """The key sweeps of a scene, put together; see `Accumulation.of`.

    Args:
        scene: a `Scene`.
        origins: float64 [T, 3], where the lidar stood in the world.
        returns: T times float64 [N, 3], the sweeps in the world, without the own car.
        still: float64 [N, 3] returns in no box, world; still_labels uint8 [N].
        objects: for every actor its returns float64 [N, 3] in its own frame.
    """

    scene: Any
    origins: Tensor
    returns: Sequence[Tensor]
    still: Tensor
    still_labels: Tensor
    objects: Sequence[Tensor]

    @classmethod
    def of(cls, scene: Any, sweeps: Sequence[Any]) -> "Accumulation":
        """Put sweeps together.

        Args:
            scene: a `Scene`.
            sweeps: one `LidarSweep` a key frame, in order.

        Raises:
            ValueError: not one sweep a key frame.
        """
        if len(sweeps) != len(scene.key_times):
            raise ValueError(f"{len(scene.key_times)} key frames need as many sweeps, got {len(sweeps)}")
        table = torch.from_numpy(LIDARSEG_TO_WORLD)
        origins, returns, still, labels = [], [], [], []
        objects: list[list[Tensor]] = [[] for _ in scene.actors]
        for t, sweep in zip(scene.key_times, sweeps, strict=True):
            lidar2world = scene.ego.pose_at(t) @ scene.lidar2ego
            category = torch.as_tensor(sweep.category).cpu()
            kept = category != EGO
            points = torch.as_tensor(sweep.points).cpu()[kept, :3].double()
            world = transform_points(lidar2world, points)
            boxes: Boxes = scene.boxes_at(t, torch.eye(4, dtype=torch.float64))
            owner = _owners(boxes, world)
            for a in owner.unique().tolist():
                if a >= 0:
                    objects[a].append(transform_points(invert_rigid(boxes.box2ego[a]), world[owner == a]))
            origins.append(lidar2world[:3, 3])
            returns.append(world)
            still.append(world[owner < 0])
            labels.append(table[category[kept].int()][owner < 0])
        empty = torch.zeros(0, 3, dtype=torch.float64)
        return cls(
            scene, torch.stack(origins), returns, torch.cat(still), torch.cat(labels),
            [torch.cat(parts) if parts else empty for parts in objects],
        )  # fmt: skip

    def labels(self, index: int, preset: Preset, unseen: bool = True) -> tuple[OccupancyGrid, Tensor]:
        """The labels and instances at key frame `index`.

        Args:
            index: which key frame.
            preset: the grid and the class table.
            unseen: whether voxels that no ray met are unknown (255); else they are free, as in the sparse files.

        Returns:
            The grid, and instances int32 [X, Y, Z]: 0 none, else index of the actor + 1.
        """
        t = self.scene.key_times[index]
        grid2ego, grid2world = grid_to_world(self.scene, t, preset.spec)
        poses = torch.from_numpy(self.scene.actor_poses([t])[0])
        points, labels, instances = [self.still], [self.still_labels], [torch.zeros(len(self.still), dtype=torch.long)]
        for a, (own, actor) in enumerate(zip(self.objects, self.scene.actors, strict=True)):
            if len(own):
                label = int(LIDARSEG_TO_WORLD[LIDARSEG_NAMES.index(actor.category)])
                points.append(transform_points(poses[a], own))
                labels.append(torch.full((len(own),), label, dtype=torch.uint8))
                instances.append(torch.full((len(own),), a + 1))
        in_grid = transform_points(invert_rigid(grid2world), torch.cat(points))
        world, instance = _majority(in_grid, torch.cat(labels), torch.cat(instances), preset.spec)
        result = world_table(preset.taxonomy)[world.int()]
        if unseen:
            result[(world == WORLD_TAXONOMY.free) & ~self.observed(index, preset.spec)] = UNKNOWN
        return OccupancyGrid(result, preset.spec, preset.taxonomy, grid2ego), instance

    def observed(self, index: int, spec: GridSpec) -> Tensor:
        """Bool [X, Y, Z]: voxels that a ray of any sweep nearby passed or ended in (`masks.lidar_mask`)."""
        _, grid2world = grid_to_world(self.scene, self.scene.key_times[index], spec)
        world2grid = invert_rigid(grid2world)
        near = (self.origins - self.origins[index]).norm(dim=1) < FAR_SWEEP
        return lidar_mask(
            (
                (transform_points(world2grid, self.origins[j : j + 1])[0], transform_points(world2grid, returns))
                for j, returns in enumerate(self.returns)
                if near[j]
            ),
            spec,
        )


def _owners(boxes: Boxes, points: Tensor) -> Tensor:
    """Index of the box that holds each point, -1 none, the last one where several do; int64 [N]."""
    owner = torch.full((len(points),), -1)
    for a, inside in enumerate(boxes.contains(points)):
        owner[inside] = a
    return owner


def _majority(points: Tensor, labels: Tensor, instances: Tensor, spec: GridSpec) -> tuple[Tensor, Tensor]:
    """The commonest (label, instance) of the points in each voxel, the smaller one of equals.

    Returns:
        labels uint8 [X, Y, Z], free where no point fell, and instances int32 [X, Y, Z].
    """
    index, inside = spec.index_of(points)
    voxel = torch.from_numpy(np.ravel_multi_index(tuple(index[inside].numpy().T), spec.shape))
    kind = labels[inside].long() + 256 * instances[inside]
    pairs, counts = torch.unique(voxel * (1 << 24) + kind, return_counts=True)
    # Sorted by count, larger kinds first among equals: the last one written stays.
    order = torch.from_numpy(np.lexsort((-(pairs % (1 << 24)).numpy(), counts.numpy())))
    pairs = pairs[order]
    flat = np.full(int(np.prod(spec.shape)), WORLD_TAXONOMY.free, dtype=np.int64)
    flat[(pairs >> 24).numpy()] = (pairs % (1 << 24)).numpy()
    kinds = torch.from_numpy(flat).reshape(spec.shape)
    return (kinds % 256).to(torch.uint8), (kinds // 256).int()
