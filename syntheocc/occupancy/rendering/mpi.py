"""3D semantic multiplane images: what each camera cell meets at each depth of an occupancy grid.

Plane ``d`` of a view holds, for every cell, the class of the voxel that the cell's ray reaches at the plane's depth
(specs/syntheocc.md 1; z-depth for pinholes, distance along the ray for fisheye and unified cameras). It is a lookup,
not a ray casting: what lies behind a wall is in the planes too, and the encoder sees it.

Legend: B frames, V views, S samples of a cell, D planes or groups of planes, h w cells, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.ops.mpi_lookup import LookupPlanes, mpi_lookup
from syntheocc.occupancy.taxonomy import Taxonomy


@dataclass(frozen=True)
class PlaneSpec:
    """Equally spaced planes, optionally gathered into groups.

    Args:
        num_planes: number of planes; plane ``i`` lies at depth ``near + i * step``.
        near: depth of plane 0, metres.
        step: distance between planes, metres.
        groups: None, or the number of layers that the planes are gathered into: plane ``i`` belongs to layer
            ``floor(i / (num_planes / groups))``, and a layer shows its nearest non-empty plane. 96 is the published
            one.

    Raises:
        ValueError: no planes, a depth that is not positive, more groups than planes, or a number of either that is not
            whole.

    Example:
        >>> PlaneSpec().depths()[[0, -1]]
        tensor([ 0.2000, 51.2000], dtype=torch.float64)
        >>> PlaneSpec(groups=96).num_layers
        96
    """

    num_planes: int = 256
    near: float = 0.2
    step: float = 0.2
    groups: int | None = None

    def __post_init__(self):
        for name in ("num_planes", "groups"):
            count = getattr(self, name)
            if count is not None and not isinstance(count, int | np.integer):
                raise ValueError(f"{name} must be a whole number, got {count!r}")
        if not 1 <= self.num_planes <= 32767:
            raise ValueError(f"num_planes must lie in 1..32767 (plane indices are int16), got {self.num_planes}")
        if not (0 < self.near < float("inf") and 0 < self.step < float("inf")):
            raise ValueError(f"near and step must be positive metres, got near={self.near}, step={self.step}")
        if self.groups is not None and not 1 <= self.groups <= self.num_planes:
            raise ValueError(f"groups must lie in 1..num_planes={self.num_planes}, got {self.groups}")

    @property
    def num_layers(self) -> int:
        """Number of layers in the MPI: ``groups``, or every plane on its own."""
        return self.num_planes if self.groups is None else self.groups

    def depths(self, device: torch.device | str | None = None) -> Tensor:
        """Depths of the planes, float64 [num_planes] metres, near to far."""
        return self.near + self.step * torch.arange(self.num_planes, dtype=torch.float64, device=device)


@dataclass
class SemanticMPI:
    """A rendered semantic multiplane image.

    Args:
        labels: uint8 [..., V, D, h, w], class ids of ``taxonomy``, planes (or groups) near to far.
        nearest: uint8 [..., V, h, w], the class of the nearest non-empty plane; the free id where there is none.
        nearest_plane: int16 [..., V, h, w], index of that plane in ``planes`` (of the plane, also when planes are
            grouped, so that ``planes.depths()[nearest_plane]`` is its depth); 0 where ``nearest`` is free.
        taxonomy: what the ids mean.
        planes: where the planes lie.
        pixel_origin: ``"center"`` or ``"corner"``, see `CameraRig.cell_rays`.
        names: camera names in view order.

    Raises:
        ValueError: shapes that do not fit together.
    """

    labels: Tensor
    nearest: Tensor
    nearest_plane: Tensor
    taxonomy: Taxonomy
    planes: PlaneSpec
    pixel_origin: str
    names: tuple[str, ...]

    def __post_init__(self):
        shape = tuple(self.labels.shape)
        cells = (*shape[:-3], *shape[-2:])
        if len(shape) not in (4, 5) or shape[-3] != self.planes.num_layers or shape[-4] != len(self.names):
            raise ValueError(
                f"MPI labels must be [V, D, h, w] or [B, V, D, h, w] with V={len(self.names)} cameras and "
                f"D={self.planes.num_layers} planes, got {shape}"
            )
        if tuple(self.nearest.shape) != cells or tuple(self.nearest_plane.shape) != cells:
            raise ValueError(
                f"nearest and nearest_plane must be {cells} to fit labels {shape}, got {tuple(self.nearest.shape)} "
                f"and {tuple(self.nearest_plane.shape)}"
            )

    @property
    def is_batched(self) -> bool:
        """Whether there is a leading dimension B."""
        return self.labels.ndim == 5

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.labels.device

    def __len__(self) -> int:
        if not self.is_batched:
            raise TypeError("this SemanticMPI is a single frame without a length; SemanticMPI.stack makes a batch")
        return self.labels.shape[0]

    def __getitem__(self, index: int) -> "SemanticMPI":
        """One frame of a batch."""
        if not self.is_batched:
            raise TypeError("this SemanticMPI is a single frame; only batched ones can be indexed")
        return self._with(self.labels[index], self.nearest[index], self.nearest_plane[index])

    def to(self, device: torch.device | str) -> "SemanticMPI":
        """The same MPI on another device."""
        return self._with(self.labels.to(device), self.nearest.to(device), self.nearest_plane.to(device))

    def scalar(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The released encoder's input [..., V, D+1, h, w]: ids as numbers, planes near to far, then the nearest."""
        return torch.cat([self.labels, self.nearest.unsqueeze(-3)], dim=-3).to(dtype)

    def palette_image(self) -> Tensor:
        """The nearest classes in the taxonomy's colours, uint8 RGB [..., V, h, w, 3]."""
        colors = torch.from_numpy(self.taxonomy.colors()).to(self.device)
        return colors[self.nearest.int()]

    def free_like(self) -> "SemanticMPI":
        """An MPI of empty space with this one's shape: the null condition of classifier-free guidance."""
        free = self.taxonomy.free
        return self._with(
            torch.full_like(self.labels, free),
            torch.full_like(self.nearest, free),
            torch.zeros_like(self.nearest_plane),
        )

    @staticmethod
    def stack(frames: Sequence["SemanticMPI"]) -> "SemanticMPI":
        """A batch of single frames; ValueError unless they share rig names, planes, taxonomy, convention and size."""
        if not frames:
            raise ValueError("cannot stack an empty list of MPIs")
        first = frames[0]
        for frame in frames:
            if frame.is_batched:
                raise ValueError("only single-frame MPIs can be stacked; one of these is a batch already")
            for field in ("taxonomy", "planes", "pixel_origin", "names"):
                mine, other = getattr(first, field), getattr(frame, field)
                if mine != other:
                    raise ValueError(f"cannot stack MPIs that differ in {field}: {mine} and {other}")
            if frame.labels.shape != first.labels.shape:
                raise ValueError(
                    f"cannot stack MPIs of shapes {tuple(first.labels.shape)} and {tuple(frame.labels.shape)}"
                )
        return first._with(
            torch.stack([frame.labels for frame in frames]),
            torch.stack([frame.nearest for frame in frames]),
            torch.stack([frame.nearest_plane for frame in frames]),
        )

    def _with(self, labels: Tensor, nearest: Tensor, nearest_plane: Tensor) -> "SemanticMPI":
        return replace(self, labels=labels, nearest=nearest, nearest_plane=nearest_plane)


def render_mpi(
    grid: OccupancyGrid | Sequence[OccupancyGrid],
    rig: CameraRig | Sequence[CameraRig],
    h: int,
    w: int,
    planes: PlaneSpec = PlaneSpec(),  # noqa: B008 (frozen)
    pixel_origin: str = "center",
    samples_per_cell: int = 1,
    taxonomy: Taxonomy | None = None,
    backend: str | None = None,
) -> SemanticMPI:
    """Renders the semantic multiplane image of a grid for every camera of a rig.

    Runs on the grid's device (`syntheocc.occupancy.ops.mpi_lookup`: a Triton kernel on a GPU, numba on a CPU where it
    is installed, plain torch otherwise) in float64.

    Args:
        grid: one grid, or a list of them for a batch.
        rig: one rig, or a list; a single grid or rig goes with every entry of the other's list.
        h: rows of the MPI, e.g. 56 for images of 448 rows.
        w: columns of the MPI, e.g. 100. Each camera's full image is laid over the h x w cells.
        planes: depths of the planes.
        pixel_origin: ``"center"`` samples the middle of a cell, ``"corner"`` its corner like the released weights.
        samples_per_cell: a square number. With more than one, a plane on which the sample at the cell's own point
            misses every foreground class takes the foreground class of the nearest of these samples (ties in raster
            order), so that thin objects are not lost between the samples; elsewhere nothing changes.
        taxonomy: maps the labels to this table on the way; None keeps the grid's.
        backend: for tests and benchmarks, see `mpi_lookup`.

    Returns:
        A `SemanticMPI`; with a leading B when ``grid`` or ``rig`` is a list.

    Raises:
        ValueError: sizes that are not positive, lists of different lengths, rigs of different cameras, grids on
            different devices or of different taxonomies, or a class that ``taxonomy`` lacks.

    Example:
        >>> mpi = render_mpi(grid, rig, 56, 100)  # doctest: +SKIP
        >>> mpi.labels.shape, mpi.nearest.shape  # doctest: +SKIP
        (torch.Size([6, 256, 56, 100]), torch.Size([6, 56, 100]))
    """
    batched = not (isinstance(grid, OccupancyGrid) and isinstance(rig, CameraRig))
    grids, rigs = _paired(grid, rig)
    if int(h) != h or int(w) != w or h <= 0 or w <= 0:
        raise ValueError(f"the MPI needs a positive whole number of cells, got h={h}, w={w}")
    names = rigs[0].names
    for other in rigs:
        if other.names != names:
            raise ValueError(f"all rigs of a batch need the same cameras in the same order: {names} and {other.names}")
    device = grids[0].device
    target = taxonomy or grids[0].taxonomy
    for one in grids:
        if one.device != device:
            raise ValueError(f"all grids of a batch must be on one device, got {device} and {one.device}")
        if taxonomy is None and one.taxonomy != target:
            raise ValueError(
                f"the grids of a batch use taxonomies {target.name!r} and {one.taxonomy.name!r}: "
                "pass taxonomy= to map them"
            )
    lookup_planes = LookupPlanes(planes.near, planes.step, planes.num_planes, planes.num_layers)
    foreground = _foreground_table(target, device) if samples_per_cell > 1 else None
    cells = (int(h), int(w), pixel_origin, samples_per_cell)

    def look_up(members: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        chosen = [grids[i] for i in members]
        origins, directions = _grid_rays(chosen, [rigs[i] for i in members], cells, device)
        labels = chosen[0].labels[None] if len(chosen) == 1 else torch.stack([one.labels for one in chosen])
        table = _mapping_table(chosen[0].taxonomy, target, device)
        return mpi_lookup(labels, origins, directions, lookup_planes, target.free, table, foreground, backend=backend)

    if len({(one.spec.shape, one.taxonomy) for one in grids}) == 1:
        layers, nearest, nearest_plane = look_up(list(range(len(grids))))
    else:
        # Grids of several shapes or tables cannot share a tensor, hence not a launch either.
        parts = [look_up([i]) for i in range(len(grids))]
        layers, nearest, nearest_plane = (torch.cat(part) for part in zip(*parts, strict=True))
    if not batched:
        layers, nearest, nearest_plane = layers[0], nearest[0], nearest_plane[0]
    return SemanticMPI(layers, nearest, nearest_plane, target, planes, pixel_origin, names)


def _paired(
    grid: OccupancyGrid | Sequence[OccupancyGrid], rig: CameraRig | Sequence[CameraRig]
) -> tuple[list[OccupancyGrid], list[CameraRig]]:
    """Both arguments as lists of one length."""
    grids = list(grid) if isinstance(grid, Sequence) else [grid]
    rigs = list(rig) if isinstance(rig, Sequence) else [rig]
    for name, values, kind in (("grid", grids, OccupancyGrid), ("rig", rigs, CameraRig)):
        wrong = [type(value).__name__ for value in values if not isinstance(value, kind)]
        if wrong or not values:
            raise ValueError(f"{name} must be a {kind.__name__} or a non-empty list of them, got {wrong or 'nothing'}")
    if isinstance(grid, OccupancyGrid):
        grids = grids * len(rigs)
    elif isinstance(rig, CameraRig):
        rigs = rigs * len(grids)
    if len(grids) != len(rigs):
        raise ValueError(f"got {len(grids)} grids but {len(rigs)} rigs; give as many, or one of either")
    return grids, rigs


def _grid_rays(
    grids: list[OccupancyGrid], rigs: list[CameraRig], cells: tuple[int, int, str, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rays in voxel units: origins float64 [B, V, 3] and directions (per metre of depth) [B, V, S, h, w, 3]."""
    # numpy for the few small matrices: torch's threads and dispatch would take longer than the lookup itself on a GPU.
    sizes = np.array([one.spec.voxel_size for one in grids])[:, None]
    lowers = np.array([one.spec.lower for one in grids])[:, None]
    ego2grid = np.linalg.inv(np.stack([one.grid2ego.numpy() for one in grids]))[:, None]
    cam2grid = ego2grid @ np.stack([rig.arrays.cam2ego for rig in rigs])
    rotation = cam2grid[..., :3, :3] / sizes[..., None]
    origins = (cam2grid[..., :3, 3] - lowers) / sizes
    if all(rig.arrays.is_plain for rig in rigs):
        # Only 3x4 numbers a camera cross to the device; the rays of a nuScenes frame would be 0.8 MB.
        h, w, pixel_origin, _ = cells
        cell2voxel = rotation @ _cell2cam(rigs, h, w, pixel_origin)
        packed = torch.from_numpy(np.concatenate([cell2voxel, origins[..., None]], axis=-1))
        # A copy that does not wait for the device: rendering must not hold up a training step.
        along_u, along_v, start, centers = packed.to(device, non_blocking=True).unbind(-1)
        along_u, along_v, start = (column[:, :, None, None, None] for column in (along_u, along_v, start))
        raster = _raster(cells, device)  # [S, h, w, 3]
        # Element-wise, for a batch of float64 matrix products with three columns is slow on a GPU.
        directions = torch.addcmul(start, along_u, raster[..., :1]).addcmul_(along_v, raster[..., 1:2])
        return centers, directions
    rays = torch.stack([_ordered_rays(rig, *cells) for rig in rigs]).to(device)
    directions = rays.flatten(2, 4) @ torch.from_numpy(rotation).to(device).transpose(-1, -2)
    return torch.from_numpy(origins).to(device), directions.unflatten(2, rays.shape[2:5])


def _cell2cam(rigs: list[CameraRig], h: int, w: int, pixel_origin: str) -> np.ndarray:
    """Takes (column, row, 1) of the raster to the ray with z = 1 of plain pinholes: float64 [B, V, 3, 3]."""
    matrices = np.stack([rig.arrays.intrinsics for rig in rigs])
    scale = np.array([w, h]) / np.stack([rig.arrays.size for rig in rigs])
    matrices[..., :2, :] *= scale[..., None]
    if pixel_origin == "center":
        # Cell centres are integers of the raster, as pixel centres are of the image.
        matrices[..., :2, 2] += 0.5 * (scale - 1)
    return np.linalg.inv(matrices)


@lru_cache(maxsize=8)
def _raster(cells: tuple[int, int, str, int], device: torch.device) -> Tensor:
    """Raster coordinates (column, row, 1) of the samples, float64 [S, h, w, 3]: the rays of a unit camera."""
    h, w = cells[:2]
    unit = CameraRig({"unit": Camera(torch.eye(3), torch.eye(4), height=h, width=w)})
    return _ordered_rays(unit, *cells)[0].to(device)


def _ordered_rays(rig: CameraRig, h: int, w: int, pixel_origin: str, samples_per_cell: int) -> Tensor:
    """`CameraRig.cell_rays` with the cell's own sample first and the others by their distance from it."""
    own = rig.cell_rays(h, w, pixel_origin, 1)
    if samples_per_cell == 1:
        return own
    around = rig.cell_rays(h, w, pixel_origin, samples_per_cell)
    side = round(samples_per_cell**0.5)
    # Twice the offset from the middle, so that it is a whole number.
    offsets = [(2 * (i // side) - side + 1, 2 * (i % side) - side + 1) for i in range(samples_per_cell)]
    order = sorted(
        (i for i in range(samples_per_cell) if offsets[i] != (0, 0)), key=lambda i: _square_norm(offsets[i])
    )
    return torch.cat([own, around[:, order]], dim=1)


def _square_norm(offset: tuple[int, int]) -> int:
    return offset[0] ** 2 + offset[1] ** 2


@lru_cache(maxsize=32)
def _mapping_table(source: Taxonomy, target: Taxonomy, device: torch.device) -> Tensor | None:
    if source == target:
        return None
    return torch.from_numpy(source.mapping_to(target)).to(device)


@lru_cache(maxsize=32)
def _foreground_table(taxonomy: Taxonomy, device: torch.device) -> Tensor:
    table = torch.zeros(256, dtype=torch.bool)
    table[list(taxonomy.foreground)] = True
    return table.to(device)
