"""The sweeps of a scene put together: what stands still in one frame, every object's returns in its box's own frame.

The scene's frame is the global one shifted to the scene, where float32 is exact to a fraction of a millimetre. A
return belongs to an object, to the background, or, as a stray one, to neither (`OwnerRules`). All is kept once a
scene: 17 bytes a return, some 220 MB for the 400 sweeps of a nuScenes scene.
Legend: N returns, K objects, S sweeps, X Y Z voxels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.accumulation.visibility import RayPasses
from syntheocc.occupancy.accumulation.voting import majority
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.taxonomy import UNKNOWN
from syntheocc.occupancy.transforms import invert_rigid, transform_points

__all__ = ["BACKGROUND", "STRAY", "OwnerRules", "SceneCloud", "Sweep", "owners_of"]

BACKGROUND, STRAY = -1, -2


@dataclass(frozen=True, kw_only=True)
class OwnerRules:
    """Which returns belong to an object.

    Those in its box and `margin` around it, but for the ground below it: where classes are known, returns of `things`
    only; where not, returns more than `foot` above the box's floor (at most a fifth of its height).

    Stray are returns of `movers` in no box, and returns without class around a box that moves, as far as it comes
    during `stray_s`, and `stray_margin`: parts of things that move, which the box of that instant misses.

    Args:
        margin: metres around a box.
        foot: metres.
        things: bool [256], classes that boxes hold; None: whatever is in a box is the object's.
        movers: bool [256], classes that leave trails; None: nothing is stray.
        stray_margin: metres.
        stray_s: seconds that a sweep takes.
    """

    margin: float = 0.1
    foot: float = 0.15
    things: Tensor | None = None
    movers: Tensor | None = None
    stray_margin: float = 0.3
    stray_s: float = 0.05


@dataclass(frozen=True, eq=False)
class Sweep:
    """One sweep in the scene's frame.

    Args:
        time_us: its stamp.
        origin: float64 [3], where the lidar stood, metres.
        points: float32 [N, 3] metres.
        labels: uint8 [N], 255 no class known.
        owners: int32 [N]: an object's number, `BACKGROUND` or `STRAY`.
    """

    time_us: int
    origin: Tensor
    points: Tensor
    labels: Tensor
    owners: Tensor


@dataclass(frozen=True, eq=False)
class SceneCloud:
    """All sweeps of a scene, and the objects' returns.

    Args:
        sweeps: in time order.
        objects: K times float32 [N, 3], in the objects' own frames.
    """

    sweeps: Sequence[Sweep]
    objects: Sequence[Tensor]

    @classmethod
    def of(cls, sweeps: Iterable[Sweep], num_objects: int, poses: Sequence[Tensor]) -> "SceneCloud":
        """Put sweeps together.

        Args:
            sweeps: with owners.
            num_objects: K.
            poses: S times box2scene float64 [K, 4, 4], at each sweep.
        """
        kept: list[Sweep] = []
        parts: list[list[Tensor]] = [[] for _ in range(num_objects)]
        for sweep, box2scene in zip(sweeps, poses, strict=True):
            kept.append(sweep)
            for k in sweep.owners.unique().tolist():
                if k >= 0:
                    mine = sweep.points[sweep.owners == k].double()
                    parts[k].append(transform_points(invert_rigid(box2scene[k]), mine).float())
        empty = torch.zeros(0, 3)
        return cls(kept, [torch.cat(part) if part else empty for part in parts])

    def background(self, chosen: Iterable[int], own: int | None = None) -> tuple[Tensor, Tensor]:
        """What stands still, of chosen sweeps; with the stray returns of one of them, at whose time they are right.

        Returns:
            points float32 [N, 3] in the scene's frame, labels uint8 [N].
        """
        points, labels = [torch.zeros(0, 3)], [torch.zeros(0, dtype=torch.uint8)]
        for i in chosen:
            sweep = self.sweeps[i]
            mine = sweep.owners == BACKGROUND
            if i == own:
                mine |= sweep.owners == STRAY
            points.append(sweep.points[mine])
            labels.append(sweep.labels[mine])
        return torch.cat(points), torch.cat(labels)

    def passes(self, chosen: Iterable[int], scene2grid: Tensor, spec: GridSpec) -> RayPasses:
        """What the rays of chosen sweeps passed; stray returns and objects end rays as others do."""
        passes = RayPasses.none(spec)
        for i in chosen:
            sweep = self.sweeps[i]
            origin = transform_points(scene2grid, sweep.origin[None])[0]
            passes.add(origin, transform_points(scene2grid, sweep.points.double()))
        return passes

    def voxels(
        self,
        background: tuple[Tensor, Tensor],
        box2scene: Sequence[Tensor | None],
        classes: Sequence[int],
        scene2grid: Tensor,
        spec: GridSpec,
        free: int,
    ) -> tuple[Tensor, Tensor]:
        """Background and objects in one grid, by the majority of the returns in a voxel.

        Args:
            background: see `background`.
            box2scene: where each object stands now, [4, 4]; None for one that is not there.
            classes: K labels.
            scene2grid: [4, 4].
            spec: where the voxels lie.
            free: the label of voxels without returns.

        Returns:
            labels uint8 [X, Y, Z] and instances int32 [X, Y, Z]: 0 none, else the object's number + 1.
        """
        points, labels = [transform_points(scene2grid, background[0].double())], [background[1]]
        instances = [torch.zeros(len(background[1]), dtype=torch.long)]
        for k, (own, pose) in enumerate(zip(self.objects, box2scene, strict=True)):
            if pose is not None and len(own):
                points.append(transform_points(scene2grid @ pose, own.double()))
                labels.append(torch.full((len(own),), classes[k], dtype=torch.uint8))
                instances.append(torch.full((len(own),), k + 1))
        return majority(torch.cat(points), torch.cat(labels), torch.cat(instances), spec, free)


def owners_of(
    points: Tensor,
    labels: Tensor,
    box2scene: Tensor,
    sizes: Tensor,
    present: Tensor,
    rules: OwnerRules,
    speeds: Tensor | None = None,
) -> Tensor:
    """Whose every return is; the last box where several hold one.

    Args:
        points: [N, 3] metres, scene's frame.
        labels: uint8 [N], 255 no class known.
        box2scene: float64 [K, 4, 4].
        sizes: float64 [K, 3] metres.
        present: bool [K], objects that are there.
        rules: see `OwnerRules`.
        speeds: [K] m/s along their x; standing when left out.

    Returns:
        int32 [N]: an object's number, `BACKGROUND` or `STRAY`.
    """
    columns = np.ascontiguousarray(points.double().numpy().T)
    label = labels.numpy()
    nameless = label == UNKNOWN
    owner = np.full(len(points), BACKGROUND, dtype=np.int32)
    stray = np.zeros(len(points), dtype=bool)
    thing = np.ones(len(points), dtype=bool) if rules.things is None else rules.things.numpy()[label]
    inverse, half = invert_rigid(box2scene).numpy(), sizes.numpy() / 2
    centers = box2scene[:, :3, 3].numpy()
    for k in present.nonzero()[:, 0].tolist():
        pace = 0.0 if speeds is None else float(speeds[k])
        reach = half[k] + rules.margin
        wide = reach
        if rules.movers is not None and pace > 0.5:
            wide = half[k] + rules.stray_margin
            wide[0] += pace * rules.stray_s
        radius = np.linalg.norm(wide) + 1e-9
        # A box holds a tiny share of a sweep: cutting a slab out first spares the full transform of the rest.
        near = np.flatnonzero(np.abs(columns[0] - centers[k, 0]) <= radius)
        near = near[np.abs(columns[1, near] - centers[k, 1]) <= radius]
        local = inverse[k, :3, :3] @ columns[:, near] + inverse[k, :3, 3:]
        inside = (np.abs(local) <= reach[:, None] + 1e-9).all(0)
        mine = inside
        if rules.things is not None:
            raised = local[2] > -half[k, 2] + min(rules.foot, 0.4 * half[k, 2])
            mine = inside & np.where(nameless[near], raised, thing[near])
            if wide is not reach:
                stray[near[nameless[near] & raised & (np.abs(local) <= wide[:, None]).all(0)]] = True
        owner[near[mine]] = k
    if rules.movers is not None:
        stray |= rules.movers.numpy()[label] & ~nameless
        owner[stray & (owner == BACKGROUND)] = STRAY
    return torch.from_numpy(owner)
