"""Gaussians on a voxel lattice, composited along rays: semantics, opacity, distance and the mass in front of a return.

Every voxel carries one isotropic Gaussian; along a ray with origin o and unit direction d it is met at

    t = (mean - o) . d        alpha = min(0.99, opacity * exp(-|mean - o - t d|^2 / (2 scale^2)))

and counts if alpha >= 1/255 and near <= t <= far (specs/occflownet_splattingocc.md 4.2 back-end 2, vector V16; the
constants are the rasterisers'). In the order of t, ``w_i = alpha_i prod_{j<i} (1 - alpha_j)``, and

    features = sum w f    weight_sum = sum w    depth = sum w t    front = sum w [t < front_limit]

Gradients go to opacity, features, scale and offsets; none to rays, and none through the order, the two tests or the
cap, as in the rasterisers.

A ray is walked along one `RayPaths` row, or along several: where objects move with a box, one row for what stands
still and one for each box, the ray taken back into the frame in which the box's voxels lie (a rigid motion keeps t).

Implementations of one signature: `reference` (every Gaussian against every ray: the definition), `torch` (candidates
from the lattice, any device, recomputed in the backward pass) and `triton` (GPU, float32). The kernels leave a ray
once less than 1e-5 of it is left. Legend: B samples, X Y Z voxels, C features, R rays, S paths, O tables of owners.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.splat_rays.responses import RayResponse, Response

__all__ = ["BACKENDS", "RayPaths", "SplattedRays", "choose_backend", "splat_rays"]

BACKENDS = ("reference", "torch", "triton")


@dataclass(frozen=True, eq=False)
class RayPaths:
    """Straight walks through the lattice, each of which adds to one ray.

    Args:
        origins: [S, 3] metres in the grid's frame (or in that of the moved box, see the module).
        directions: [S, 3] unit vectors in the same frame.
        rays: int64 [S] the ray that a path belongs to, ascending.
        volumes: int64 [S] the sample whose voxels it meets.
        bounds: int64 [S, 2, 3] first and last voxel that counts, inclusive; empty where first > last.
        tables: int64 [S] the table of owners that decides which voxels count, -1 for all of them.
        owners: int64 [S] the owner whose voxels count, see `tables`.
        num_rays: R; a ray may have no path.
    """

    origins: Tensor
    directions: Tensor
    rays: Tensor
    volumes: Tensor
    bounds: Tensor
    tables: Tensor
    owners: Tensor
    num_rays: int

    @classmethod
    def straight(cls, origins: Tensor, directions: Tensor, volumes: Tensor, spec: GridSpec) -> "RayPaths":
        """One path for each ray [R, 3], all voxels."""
        number, device = len(origins), origins.device
        whole = constant([[0, 0, 0], [n - 1 for n in spec.shape]], device)
        return cls(
            origins=origins,
            directions=directions,
            rays=torch.arange(number, device=device),
            volumes=volumes,
            bounds=whole.expand(number, 2, 3),
            tables=torch.full((number,), -1, device=device),
            owners=torch.zeros(number, dtype=torch.int64, device=device),
            num_rays=number,
        )

    def __len__(self) -> int:
        return len(self.rays)

    def columns(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "num_rays"}


class SplattedRays(NamedTuple):
    """What the rays see."""

    features: Tensor  # [R, C]
    weight_sum: Tensor  # [R]
    depth: Tensor  # [R] metres times weight, not divided by weight_sum
    front: Tensor  # [R], zeros without front_limits


def splat_rays(
    opacity: Tensor,  # [B, X, Y, Z]
    features: Tensor,  # [B, X, Y, Z, C]
    paths: RayPaths,
    spec: GridSpec,
    scale: float | Tensor = 0.2,  # [B, X, Y, Z]
    offsets: Tensor | None = None,  # [B, X, Y, Z, 3]
    front_limits: Tensor | None = None,  # [R]
    owners: Tensor | None = None,  # [O, X, Y, Z]
    near: float = 0.1,
    far: float = 60.0,
    backend: str | None = None,
    response: Response | None = None,
) -> SplattedRays:
    """Composites the lattice's Gaussians along rays.

    Args:
        opacity: in 0..1, float32 or float64.
        features: of the same type, e.g. class probabilities or logits.
        paths: the rays.
        spec: where the voxels lie; Gaussians sit at their centres.
        scale: standard deviation in metres, one for all or one each.
        offsets: of the means from the centres, metres.
        front_limits: metres along each ray; what is met before counts as `SplattedRays.front`.
        owners: int16 tables that `RayPaths.tables` chooses from; entry = owner of the voxel.
        near: metres along the ray; what is nearer is not seen.
        far: metres along the ray; what is farther is not seen.
        backend: one of `BACKENDS`; None takes triton on a GPU where it is installed (float32), else torch.
        response: how a Gaussian answers to a ray; None is the formula above, `EwaResponse` the rasterisers' (not in
            triton).

    Raises:
        ValueError: shapes, types or devices do not fit, a scale is not positive, or the backend is unknown or cannot
            run here.

    Example:
        >>> spec = GridSpec((0.0, -0.2, -0.2), 0.4, (4, 1, 1))
        >>> opacity = torch.tensor([0.0, 0.5, 0.0, 0.9]).view(1, 4, 1, 1)
        >>> ray = RayPaths.straight(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]]), torch.zeros(1).long(), spec)
        >>> splat_rays(opacity, torch.ones(1, 4, 1, 1, 1), ray, spec).depth.item()  # 0.5 * 0.6 + 0.5 * 0.9 * 1.4
        0.9300000071525574
    """
    _check(opacity, features, paths, spec, scale, offsets, front_limits, owners)
    if not 0 <= near < far < float("inf"):
        raise ValueError(f"rays are walked from near to far metres, both finite; got {near} to {far}")
    name = backend or choose_backend(opacity, response)
    if name == "reference":
        from syntheocc.occupancy.ops.splat_rays.reference import splat_rays_reference as run
    elif name == "torch":
        from syntheocc.occupancy.ops.splat_rays.vectorised import splat_rays_torch as run
    elif name == "triton" and has_module("triton") and opacity.dtype == torch.float32 and response is None:
        from syntheocc.occupancy.ops.splat_rays.triton import splat_rays_triton as run
    else:
        raise ValueError(
            f"backend {name!r} cannot run here: choose from {', '.join(BACKENDS)}; triton comes with the GPU builds "
            "of torch, takes float32 and knows the exact response along a ray only"
        )
    found = run(
        opacity, features, paths, spec, scale, offsets, front_limits, owners, near, far, response or RayResponse()
    )
    return SplattedRays(*found)


def choose_backend(opacity: Tensor, response: Response | None = None) -> str:
    """The fastest installed implementation for these voxels."""
    fits = opacity.device.type == "cuda" and opacity.dtype == torch.float32 and response is None
    return "triton" if fits and has_module("triton") else "torch"


def _check(
    opacity: Tensor,
    features: Tensor,
    paths: RayPaths,
    spec: GridSpec,
    scale: float | Tensor,
    offsets: Tensor | None,
    front_limits: Tensor | None,
    owners: Tensor | None,
) -> None:
    if (
        opacity.ndim != 4
        or tuple(opacity.shape[1:]) != spec.shape
        or opacity.dtype
        not in (
            torch.float32,
            torch.float64,
        )
    ):
        raise ValueError(
            f"opacity must be float32 or float64 [B, {', '.join(map(str, spec.shape))}] as the grid spec says, got "
            f"{opacity.dtype} {list(opacity.shape)}"
        )
    if features.ndim != 5 or features.shape[:4] != opacity.shape or features.shape[4] < 1:
        raise ValueError(f"features must be {[*opacity.shape, 'C']}, got {list(features.shape)}")
    each = {"scale": (scale, opacity.shape), "offsets": (offsets, (*opacity.shape, 3))}
    each |= {"front_limits": (front_limits, (paths.num_rays,)), "features": (features, features.shape)}
    each |= {name: (getattr(paths, name), (len(paths), 3)) for name in ("origins", "directions")}
    for name, (tensor, shape) in each.items():
        if not isinstance(tensor, Tensor):
            continue
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != opacity.dtype or tensor.device != opacity.device:
            raise ValueError(
                f"{name} must be {opacity.dtype} {list(shape)} on {opacity.device} as the opacity, got "
                f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
    if not isinstance(scale, Tensor) and not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive metres, got {scale}")
    shapes = {"rays": (), "volumes": (), "bounds": (2, 3), "tables": (), "owners": ()}
    for name, shape in shapes.items():
        tensor = getattr(paths, name)
        if tuple(tensor.shape) != (len(paths), *shape) or tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64 {[len(paths), *shape]}, got {tensor.dtype} {list(tensor.shape)}")
    if owners is not None and (tuple(owners.shape[1:]) != spec.shape or owners.dtype != torch.int16):
        raise ValueError(f"owners must be int16 [O, X, Y, Z] as the grid, got {owners.dtype} {list(owners.shape)}")
