"""The labels of one key frame from a scene's cloud: votes, classes, fillings, free and unknown, masks.

The rules in order, each of which `BuildRules` can switch off or tune (docs/build.md has them with their reasons):

1. Choose sweeps around the key frame (`choose_sweeps`).
2. Background and objects, each where its box stands now, are counted in voxels; most of a voxel's returns decide.
3. Voxels of returns without class take the nearest class; none nearby: "others" (255 in a table without it).
4. Fill: ground, objects, surfaces (`filling`).
5. A voxel that nothing is in is free where a ray passed, else unknown.
6. `mask_lidar`: what is not unknown. `mask_camera`: what of that a camera sees (`visibility.camera_mask`).

Legend: K objects, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.accumulation.cloud import SceneCloud
from syntheocc.occupancy.accumulation.filling import close_surfaces, fill_ground, fill_object
from syntheocc.occupancy.accumulation.visibility import camera_mask
from syntheocc.occupancy.accumulation.voting import majority, nearest_class
from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import GridSpec, OccupancyGrid
from syntheocc.occupancy.taxonomy import UNKNOWN, Taxonomy
from syntheocc.occupancy.transforms import invert_rigid, transform_points

__all__ = ["BuildRules", "FrameLabels", "Placed", "build_labels", "choose_sweeps", "class_sets"]

GROUND = ("driveable_surface", "other_flat", "sidewalk", "terrain")
# What has a mirror plane along its length, so that one side tells the other, and an inside: bodies of metal sheet.
# Riders, limbs and open frames have neither.
BODIES = ("car", "truck", "trailer", "bus")


@dataclass(frozen=True, kw_only=True)
class BuildRules:
    """How labels are made.

    Args:
        sweeps: how many sweeps go into a key frame, its own included; 0 takes all within `sweep_distance`.
        sweep_distance: sweeps from farther away than this add nothing, metres.
        class_radius: how far returns without class look for one, metres.
        ground_reach: half the widest gap in the ground that is filled, metres; 0 fills none.
        close: half the widest hole in a surface that is closed, metres; 0 closes none.
        fill_objects: whether `BODIES` are filled inside.
        mirror_objects: whether returns on one side of `BODIES` also count on their other side.
        min_points: returns over the scene that an object needs; one with fewer is left out.
    """

    sweeps: int = 20
    sweep_distance: float = 90.0
    class_radius: float = 1.0
    ground_reach: float = 4.0
    close: float = 0.4
    fill_objects: bool = True
    mirror_objects: bool = True
    min_points: int = 1


@dataclass(frozen=True, eq=False)
class Placed:
    """An object at the key frame: its number in the cloud, class name, box2scene [4, 4] and size [3] metres."""

    number: int
    name: str
    box2scene: Tensor
    size: Tensor


@dataclass(frozen=True, eq=False)
class FrameLabels:
    """The labels of a key frame.

    Args:
        grid: the classes; 255 where nothing is known.
        mask_lidar: bool [X, Y, Z], the voxels that are known.
        mask_camera: bool [X, Y, Z], those that a camera sees; None without cameras.
        instances: int32 [X, Y, Z]: 0 none, else number of the object + 1.
    """

    grid: OccupancyGrid
    mask_lidar: Tensor
    mask_camera: Tensor | None
    instances: Tensor

    def published(self) -> OccupancyGrid:
        """The grid as the published files have it: what no ray met is free there."""
        labels = torch.where(self.mask_lidar, self.grid.labels, self.grid.taxonomy.free)
        return OccupancyGrid(labels.to(torch.uint8), self.grid.spec, self.grid.taxonomy, self.grid.grid2ego)


def choose_sweeps(origins: Tensor, times_us: np.ndarray, own: int, rules: BuildRules, keys: np.ndarray) -> list[int]:
    """The sweeps that go into a key frame.

    Its own always. Key sweeps before others, since their returns have classes. Where there are more than wanted, those
    that lie evenly along the way that the car drove (a second of standing counts as half a metre): a sweep a hand's
    breadth further shows little that is new.

    Args:
        origins: float64 [S, 3], where the lidar stood.
        times_us: int64 [S], rising.
        own: index of the key frame's own sweep.
        rules: `sweeps` and `sweep_distance`.
        keys: bool [S], key sweeps.

    Returns:
        Indices in rising order.
    """
    near = (origins - origins[own]).norm(dim=1).numpy() <= rules.sweep_distance
    if rules.sweeps <= 0 or near.sum() <= rules.sweeps:
        return np.flatnonzero(near).tolist()
    moved = np.linalg.norm(np.diff(origins.numpy(), axis=0), axis=1) + 0.5e-6 * np.diff(times_us)
    way = np.append(0.0, np.cumsum(moved))
    chosen = {own}
    for group in (near & keys, near & ~keys):
        members = np.flatnonzero(group)
        members = members[members != own]
        missing = rules.sweeps - len(chosen)
        if missing >= len(members):
            chosen |= set(members.tolist())
        elif missing > 0:
            goals = np.linspace(way[members[0]], way[members[-1]], missing)
            chosen |= set(members[_distinct(way[members], goals)].tolist())
    return sorted(chosen)


def _distinct(values: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Indices of rising values near rising goals, each used once; as many as there are goals (at most the values)."""
    nearest = np.abs(values[None] - goals[:, None]).argmin(1)
    last = len(values) - 1
    for i in range(1, len(nearest)):
        nearest[i] = max(nearest[i], nearest[i - 1] + 1)
    for i in range(len(nearest) - 1, -1, -1):
        nearest[i] = min(nearest[i], last - (len(nearest) - 1 - i))
    return nearest


def class_sets(taxonomy: Taxonomy) -> tuple[Tensor, Tensor]:
    """Which labels are ground, and which are surfaces that may be continued; two bool [256]."""
    ground = torch.zeros(256, dtype=torch.bool)
    ground[[taxonomy.id_of(name) for name in GROUND if name in taxonomy.classes]] = True
    closable = torch.zeros(256, dtype=torch.bool)
    closable[[i for i, _ in enumerate(taxonomy.classes) if i != taxonomy.free and not ground[i]]] = True
    return ground, closable


def build_labels(
    cloud: SceneCloud,
    chosen: Sequence[int],
    own: int | None,
    objects: Sequence[Placed],
    grid2scene: Tensor,
    spec: GridSpec,
    taxonomy: Taxonomy,
    grid2ego: Tensor | None = None,
    cameras: CameraRig | None = None,
    rules: BuildRules = BuildRules(),  # noqa: B008 (frozen)
    surface: tuple[Tensor, Tensor] | None = None,
) -> FrameLabels:
    """The labels of one key frame.

    Args:
        cloud: the scene; its labels are of `taxonomy`.
        chosen: which sweeps go in.
        own: the key frame's own one; None where it could not be read.
        objects: what stands where.
        grid2scene: [4, 4].
        spec: where the voxels lie.
        taxonomy: what the labels mean.
        grid2ego: [4, 4] for grids that are not in ego.
        cameras: for `mask_camera`.
        rules: how.
        surface: points [N, 3] in the grid's frame and their labels uint8 [N] (255: unknown), a reconstructed surface
            that says what is occupied in place of the returns and the fillings; those without class take the class of
            the nearest returns. Without any sweep nothing is unknown: what is not occupied is free.
    """
    scene2grid = invert_rigid(grid2scene)
    points, kinds = cloud.background(chosen, own)
    in_grid = transform_points(scene2grid, points.double())
    labels, instances = _voxels(cloud, in_grid, kinds, objects, scene2grid, spec, taxonomy, rules)
    passes = cloud.passes(chosen, scene2grid, spec)
    if surface is not None:
        labels, instances = _on_surface(labels, instances, surface, spec, taxonomy, rules)
    else:
        ground, closable = class_sets(taxonomy)
        # Objects' returns are theirs already: what has no class belongs to the background.
        background = torch.ones(256, dtype=torch.bool)
        background[list(taxonomy.foreground)] = False
        labels = nearest_class(labels, spec, taxonomy.free, rules.class_radius, background)
        if rules.ground_reach > 0:
            fill_ground(labels, in_grid, passes, spec, taxonomy.free, ground, rules.ground_reach)
        if rules.close > 0:
            steps = max(1, round(rules.close / max(spec.voxel_size)))
            close_surfaces(labels, instances, passes, taxonomy.free, closable, steps)
    if "others" in taxonomy.classes:
        labels[labels == UNKNOWN] = taxonomy.id_of("others")
    empty = labels == taxonomy.free
    known = ~empty | (passes.through > 0) if len(chosen) else torch.ones_like(empty)
    labels[~known] = UNKNOWN
    grid = OccupancyGrid(labels, spec, taxonomy, grid2ego)
    seen = None
    if cameras is not None:
        # Free voxels that no lidar ray passed are not known, whoever looks at them.
        seen = camera_mask(~empty, spec, cameras, grid.grid2ego, known)
    return FrameLabels(grid, known, seen, instances)


def _on_surface(
    labels: Tensor,
    instances: Tensor,
    surface: tuple[Tensor, Tensor],
    spec: GridSpec,
    taxonomy: Taxonomy,
    rules: BuildRules,
) -> tuple[Tensor, Tensor]:
    """Labels and instances of the voxels that a surface passes through, their classes from it or from the returns."""
    nothing = torch.zeros(len(surface[1]), dtype=torch.long)
    found, _ = majority(surface[0], surface[1], nothing, spec, taxonomy.free)
    held = found != taxonomy.free
    asked = torch.where(held & (labels == taxonomy.free), UNKNOWN, labels)
    asked = nearest_class(asked, spec, taxonomy.free, rules.class_radius)
    found = torch.where(found == UNKNOWN, asked, found).to(torch.uint8)
    return found, torch.where(held, instances, 0)


def _voxels(
    cloud: SceneCloud,
    in_grid: Tensor,
    kinds: Tensor,
    objects: Sequence[Placed],
    scene2grid: Tensor,
    spec: GridSpec,
    taxonomy: Taxonomy,
    rules: BuildRules,
) -> tuple[Tensor, Tensor]:
    """Votes of background and objects, and the objects' insides."""
    points, labels = [in_grid], [kinds]
    instances = [torch.zeros(len(kinds), dtype=torch.long)]
    bodies: list[tuple[Placed, Tensor]] = []
    for placed in objects:
        own = cloud.objects[placed.number]
        if len(own) < max(rules.min_points, 1):
            continue
        if rules.mirror_objects and placed.name in BODIES:
            own = torch.cat([own, own * own.new_tensor([1.0, -1.0, 1.0])])
        points.append(transform_points(scene2grid @ placed.box2scene, own.double()))
        labels.append(torch.full((len(own),), taxonomy.id_of(placed.name), dtype=torch.uint8))
        instances.append(torch.full((len(own),), placed.number + 1))
        if placed.name in BODIES:
            bodies.append((placed, own))
    found, owner = majority(torch.cat(points), torch.cat(labels), torch.cat(instances), spec, taxonomy.free)
    for placed, own in bodies if rules.fill_objects else ():
        _fill(found, owner, placed, own, scene2grid, spec, taxonomy)
    return found, owner


def _fill(
    labels: Tensor,
    instances: Tensor,
    placed: Placed,
    points: Tensor,
    scene2grid: Tensor,
    spec: GridSpec,
    taxonomy: Taxonomy,
) -> None:
    """Fill the empty voxels whose centres lie in an object's filled cells, in place."""
    cell = min(spec.voxel_size)
    filled, corner = fill_object(points, placed.size, cell)
    box2grid = scene2grid @ placed.box2scene
    lower, size = (torch.tensor(v, dtype=torch.float64) for v in (spec.lower, spec.voxel_size))
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    corners = (transform_points(box2grid, signs * corner.abs()) - lower) / size
    first = corners.amin(0).floor().long().clamp_min(0)
    last = torch.minimum(corners.amax(0).floor().long(), torch.tensor(spec.shape) - 1)
    if bool((last < first).any()):
        return
    axes = [torch.arange(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]
    index = torch.cartesian_prod(*axes)
    local = transform_points(invert_rigid(box2grid), lower + (index + 0.5) * size)
    at = ((local - corner) / cell).floor().long()
    inside = ((at >= 0) & (at < torch.tensor(filled.shape))).all(1)
    index, at = index[inside], at[inside]
    index = index[filled[tuple(at.T)]]
    index = index[labels[tuple(index.T)] == taxonomy.free]
    labels[tuple(index.T)] = taxonomy.id_of(placed.name)
    instances[tuple(index.T)] = placed.number + 1
