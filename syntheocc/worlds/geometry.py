"""A scene's solids on a device, posed for many instants at once.

Static solids are in the world frame already; an actor's and the ego car's are kept in their own frames and posed when
an instant is asked for. Legend: N instants, P solids, A actors.
"""

import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from syntheocc.worlds.ground import Ground
from syntheocc.worlds.materials import material_table
from syntheocc.worlds.primitives import Primitives
from syntheocc.worlds.scene import Scene
from syntheocc.worlds.taxonomy import WORLD_TAXONOMY

_CACHE: "weakref.WeakKeyDictionary[Scene, dict[torch.device, SceneGeometry]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class SceneGeometry:
    """What stays the same over a scene.

    Args:
        solids: P solids: static ones (world frame), then the actors' and the ego car's in their own frames.
        num_static: how many are static.
        owner: int64 [P - num_static]: whose pose each other one takes; A is the ego car.
        frame2shape: float64 [P, 4, 4], the inverse of the solids' shape2frame.
        half: float32 [P, 3] metres from the middle to the surface along each shape axis.
        labels, instances, materials: of each solid, and behind them (index P) of nothing at all.
        table: float32 [M, 13], `material_table`.
        ground: with its rasters on the device.
    """

    solids: Primitives
    num_static: int
    owner: Tensor
    frame2shape: Tensor
    half: Tensor
    labels: Tensor
    instances: Tensor
    materials: Tensor
    table: Tensor
    ground: Ground

    def posed(self, poses: Tensor) -> tuple[Tensor, Tensor]:
        """shape2world and world2shape, float64 [N, P, 4, 4]; poses float64 [N, A + 1, 4, 4] of actors and ego."""
        images, split = len(poses), self.num_static
        moved = poses[:, self.owner]
        shape2frame = self.solids.shape2frame
        inverse = torch.linalg.inv(poses)[:, self.owner]
        shape2world = _product(moved, shape2frame[None, split:])
        world2shape = _product(self.frame2shape[None, split:], inverse)
        still = (shape2frame[:split].expand(images, -1, -1, -1), self.frame2shape[:split].expand(images, -1, -1, -1))
        return torch.cat([still[0], shape2world], 1), torch.cat([still[1], world2shape], 1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    # Batched 4 x 4 products in float64 are several times faster this way than through a BLAS call each.
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def scene_geometry(scene: Scene, device: torch.device | str = "cpu") -> SceneGeometry:
    """The scene's solids on a device; kept as long as the scene is."""
    device = torch.device(device)
    made = _CACHE.setdefault(scene, {})
    if device not in made:
        made[device] = _build(scene, device)
    return made[device]


def poses_at(scene: Scene, times: np.ndarray, ego2global: Tensor) -> Tensor:
    """float64 [N, A + 1, 4, 4]: the actors' poses at times [N], and the given ego2global [N, 4, 4] behind them."""
    actors = torch.from_numpy(np.ascontiguousarray(scene.actor_poses(np.asarray(times, dtype=np.float64))))
    return torch.cat([actors, ego2global[:, None].cpu()], 1)


def all_solids(scene: Scene) -> tuple[Primitives, int, Tensor]:
    """Static, actors' and ego's solids in that order; the number of static ones; the owners of the others.

    Cavities (label "free", wholly inside another solid) are left out: no ray meets them.
    """
    static = scene.static.select(scene.static.label != WORLD_TAXONOMY.free)
    parts = [actor.primitives.with_instance(i + 1) for i, actor in enumerate(scene.actors)]
    counts = torch.tensor([len(part) for part in parts] + [len(scene.ego_body)])
    owner = torch.arange(len(parts) + 1).repeat_interleave(counts)
    return Primitives.cat([static, *parts, scene.ego_body]), len(static), owner


def _build(scene: Scene, device: torch.device) -> SceneGeometry:
    solids, num_static, owner = all_solids(scene)
    ground = scene.ground
    return SceneGeometry(
        solids=solids.to(device),
        num_static=num_static,
        owner=owner.to(device),
        frame2shape=torch.linalg.inv(solids.shape2frame).to(device),
        half=solids.shape2frame[:, :3, :3].norm(dim=1).float().to(device),
        labels=torch.cat([solids.label, solids.label.new_zeros(1)]).to(device),
        instances=torch.cat([solids.instance, solids.instance.new_zeros(1)]).int().to(device),
        materials=torch.cat([solids.material, solids.material.new_zeros(1)]).to(device),
        table=material_table(scene.materials).to(device),
        ground=Ground(
            ground.labels.to(device),
            ground.materials.to(device),
            ground.origin,
            ground.base,
            ground.ramp.to(device),
            ground.waves.to(device),
            ground.resolution,
        ),
    )
