"""Labels as the real datasets made them: lidar sweeps put together over a scene, then counted in voxels.

1. Every key sweep is taken to the world by its ego pose. Returns from the own car are dropped.
2. Returns inside an annotated box belong to that object: they get its class and move with its box. As the boxes stand
   at the sweep's end and the returns do not, edges go wrong as in the real data: the road under a car becomes car, and
   what a moving car's box misses stays behind as a ghost trail.
3. At the key frame asked for, the rest and the objects' returns (each where its box stands then) fall into voxels,
   which take the class that most of their returns have.
   Rain and spray are "others", as raw category 0 is everywhere.
4. A voxel without returns is free where a lidar ray passed it, else unknown (255).

The points, votes and rays are those of `syntheocc occupancy build` (`occupancy.accumulation`), without the rules by
which it does better.

Legend: N returns, A actors, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.accumulation.cloud import OwnerRules, SceneCloud, Sweep, owners_of
from syntheocc.occupancy.accumulation.visibility import lidar_mask
from syntheocc.occupancy.grids import GridSpec, OccupancyGrid, Preset
from syntheocc.occupancy.taxonomy import UNKNOWN
from syntheocc.occupancy.transforms import invert_rigid, transform_points
from syntheocc.worlds.labels import grid_to_world, world_table
from syntheocc.worlds.taxonomy import LIDARSEG_NAMES, LIDARSEG_TO_WORLD, WORLD_TAXONOMY

__all__ = ["Accumulation"]

EGO = LIDARSEG_NAMES.index("vehicle.ego")
# Sweeps from farther away than this (metres) add nothing to a grid.
FAR_SWEEP = 90.0
# Whatever is in a box is the object's, and no farther.
_BOXES_ALONE = OwnerRules(margin=0.0)


@dataclass(frozen=True, eq=False)
class Accumulation:
    """The key sweeps of a scene, put together; see `Accumulation.of`.

    Args:
        scene: a `Scene`.
        cloud: its sweeps without the own car, world frame; the objects are its actors.
    """

    scene: Any
    cloud: SceneCloud

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
        poses = torch.from_numpy(scene.actor_poses(list(scene.key_times)))  # [T, A, 4, 4]
        sizes = torch.tensor([actor.size for actor in scene.actors], dtype=torch.float64).reshape(-1, 3)
        placed = []
        for t, sweep, box2world in zip(scene.key_times, sweeps, poses, strict=True):
            lidar2world = scene.ego.pose_at(t) @ scene.lidar2ego
            category = torch.as_tensor(sweep.category).cpu()
            kept = category != EGO
            points = torch.as_tensor(sweep.points).cpu()[kept, :3].double()
            world, labels = transform_points(lidar2world, points).float(), table[category[kept].int()]
            everyone = torch.ones(len(sizes), dtype=torch.bool)
            owners = owners_of(world, labels, box2world, sizes, everyone, _BOXES_ALONE)
            placed.append(Sweep(round(t * 1e6), lidar2world[:3, 3], world, labels, owners))
        return cls(scene, SceneCloud.of(placed, len(sizes), list(poses)))

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
        poses = list(torch.from_numpy(self.scene.actor_poses([t])[0]))
        classes = [int(LIDARSEG_TO_WORLD[LIDARSEG_NAMES.index(actor.category)]) for actor in self.scene.actors]
        still = self.cloud.background(range(len(self.cloud.sweeps)))
        world, instance = self.cloud.voxels(
            still, poses, classes, invert_rigid(grid2world), preset.spec, WORLD_TAXONOMY.free
        )
        result = world_table(preset.taxonomy)[world.int()]
        if unseen:
            result[(world == WORLD_TAXONOMY.free) & ~self.observed(index, preset.spec)] = UNKNOWN
        return OccupancyGrid(result, preset.spec, preset.taxonomy, grid2ego), instance

    def observed(self, index: int, spec: GridSpec) -> Tensor:
        """Bool [X, Y, Z]: voxels that a ray of any sweep nearby passed or ended in (`visibility.lidar_mask`)."""
        _, grid2world = grid_to_world(self.scene, self.scene.key_times[index], spec)
        world2grid = invert_rigid(grid2world)
        here = self.cloud.sweeps[index].origin
        return lidar_mask(
            (
                (
                    transform_points(world2grid, sweep.origin[None])[0],
                    transform_points(world2grid, sweep.points.double()),
                )
                for sweep in self.cloud.sweeps
                if (sweep.origin - here).norm() < FAR_SWEEP
            ),
            spec,
        )
