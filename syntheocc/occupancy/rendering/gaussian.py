"""Gaussian splatting of occupancy: a Gaussian a voxel, seen along rays or through cameras.

    gaussians = gaussians_from_volume(raw, logits, spec, settings)
    seen = splat(gaussians, SplatRays.from_labels(labels), settings, front_limits=labels.distance - 0.8)

The corrected design of specs/occflownet_splattingocc.md 4.2: means at the voxels' centres (or within 0.2 m of them),
isotropic scales of 0.2 m (or learned, 0.08 to 0.32 m), full intrinsics, no opacity that is masked away, and volumes
un-flipped where the network saw a mirrored grid. What was published is in `rendering.gaussian_legacy`.

Back-ends of one signature:

* ``torch_sparse``: rays alone, any device, exact along the ray (`ops.splat_rays`); with ``response="ewa"`` what a
  rasteriser paints at those pixels;
* ``triton``: the first of these on a GPU;
* ``torch_reference``: every Gaussian against every ray, or against every pixel of every view; for tests;
* ``gsplat``: that package's rasteriser (GPU, optional), at the nearest pixel.

Legend: B samples, X Y Z voxels, C classes without free, R rays, V views.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.splat_rays import RayPaths, choose_backend, splat_rays
from syntheocc.occupancy.ops.splat_rays.responses import RayResponse, Response
from syntheocc.occupancy.rendering.compositing import RenderedRays
from syntheocc.occupancy.rendering.gaussian_motion import GaussianMoves
from syntheocc.occupancy.rendering.splat_views import SplatRays

__all__ = [
    "BACKENDS",
    "Gaussians",
    "SplatSettings",
    "decide",
    "gaussians_from_volume",
    "mirrored_axes",
    "splat",
    "unflip",
]

BACKENDS = ("torch_reference", "torch_sparse", "triton", "gsplat")


@dataclass(frozen=True, kw_only=True)
class SplatSettings:
    """How a volume becomes Gaussians and Gaussians become pixels.

    Raises:
        ValueError: a setting out of range.
    """

    scale: float = 0.20
    """Standard deviation in metres, where it is not learned; 0.4 m voxels then let 16 % through between four (V15)."""
    scale_range: tuple[float, float] = (0.08, 0.32)
    """Metres; of learned scales, whose raw value is 0 at `scale`."""
    max_offset: float = 0.2
    """Metres an axis that a learned mean may leave its voxel's centre by."""
    feature: Literal["prob", "logit"] = "prob"
    """What is composited: class probabilities, or logits as published."""
    response: Literal["ray", "ewa"] = "ray"
    """Exactly along the ray, or as rasterisers flatten Gaussians (needs views)."""
    near: float = 0.1
    """Metres; what is nearer is not seen."""
    far: float = 60.0
    depth: Literal["normalised", "sum"] = "normalised"
    """`RenderedRays.depth`: the mean distance of what is seen, or its weighted sum."""
    hard_mask: float | None = None
    """Opacities not above this are removed and get no gradient, as published (0.1); None keeps all."""

    def __post_init__(self):
        object.__setattr__(self, "scale_range", tuple(self.scale_range))
        low, high = self.scale_range
        if not 0 < low < self.scale < high:
            raise ValueError(
                f"scale must lie within scale_range, 0 < {low} < scale < {high} metres; got {self.scale}. Widen the "
                "range for other sizes"
            )
        if not self.max_offset > 0:
            raise ValueError(f"max_offset must be positive metres, got {self.max_offset}")
        if not 0 < self.near < self.far:
            raise ValueError(f"0 < near < far metres, got {self.near} and {self.far}")
        for name, allowed in (
            ("feature", ("prob", "logit")),
            ("response", ("ray", "ewa")),
            ("depth", ("normalised", "sum")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if self.hard_mask is not None and not 0 <= self.hard_mask < 1:
            raise ValueError(f"hard_mask is an opacity, 0 <= hard_mask < 1, or None; got {self.hard_mask}")


@dataclass(frozen=True, eq=False)
class Gaussians:
    """One isotropic Gaussian a voxel, in the key ego frame.

    Args:
        opacity: [B, X, Y, Z] in 0..1.
        features: [B, X, Y, Z, C] what is composited.
        scale: metres, one for all or [B, X, Y, Z].
        spec: where the voxels lie.
        offsets: [B, X, Y, Z, 3] metres from the voxels' centres, or None.
        classes: int64 [B, X, Y, Z] the voxels' own classes, which decide whether they move with a box; or None.
    """

    opacity: Tensor
    features: Tensor
    scale: float | Tensor
    spec: GridSpec
    offsets: Tensor | None = None
    classes: Tensor | None = None

    @property
    def means(self) -> Tensor:
        """[B, X, Y, Z, 3] metres."""
        centers = self.spec.centers(self.opacity.device).to(self.opacity.dtype)
        return (centers if self.offsets is None else centers + self.offsets).expand(*self.opacity.shape, 3)


def gaussians_from_volume(
    raw: Tensor,  # [B, X, Y, Z]
    logits: Tensor,  # [B, X, Y, Z, C]
    spec: GridSpec,
    settings: SplatSettings | None = None,
    raw_scale: Tensor | None = None,  # [B, X, Y, Z]
    raw_offset: Tensor | None = None,  # [B, X, Y, Z, 3]
    grid_transforms: Tensor | None = None,  # [B, 4, 4]
) -> Gaussians:
    """What a network's heads say as Gaussians; computed in float32 (float64 where the inputs are).

    Args:
        raw: logits of the opacity; a first bias of -2 makes a new model's opacity 0.12.
        logits: of the classes without free.
        spec: where the voxels lie.
        settings: `SplatSettings()` if None.
        raw_scale: learned scales: a sigmoid within `scale_range`; 0 is `settings.scale`.
        raw_offset: learned means: ``max_offset * tanh``; a head that begins at 0 begins at the centres.
        grid_transforms: mirrorings of the grid that the network worked in (``GridTransform.matrix()``): the tensors
            are flipped back, and learned offsets with them, so that cameras and rays stay as they are. Leave it out
            where the rays were mirrored instead (`RayLabels.transformed`).

    Raises:
        ValueError: shapes that do not fit, or a grid transform that is more than a mirroring.
    """
    settings = settings or SplatSettings()
    if raw.ndim != 4 or tuple(raw.shape[1:]) != spec.shape or logits.ndim != 5 or logits.shape[:4] != raw.shape:
        raise ValueError(
            f"a volume is raw [B, X, Y, Z] and logits [B, X, Y, Z, C] with X, Y, Z = {spec.shape}, got "
            f"{list(raw.shape)} and {list(logits.shape)}"
        )
    dtype = torch.float64 if raw.dtype == torch.float64 else torch.float32
    with torch.autocast(raw.device.type, enabled=False):
        raw, logits = raw.to(dtype), logits.to(dtype)
        scale: float | Tensor = settings.scale
        if raw_scale is not None:
            low, high = settings.scale_range
            middle = torch.logit(torch.tensor((settings.scale - low) / (high - low), dtype=torch.float64)).item()
            scale = low + (high - low) * torch.sigmoid(raw_scale.to(dtype) + middle)
        offsets = None if raw_offset is None else settings.max_offset * torch.tanh(raw_offset.to(dtype))
        if grid_transforms is not None:
            flips = mirrored_axes(grid_transforms, len(raw))
            raw, logits = unflip(raw, flips), unflip(logits, flips)
            scale = unflip(scale, flips) if isinstance(scale, Tensor) else scale
            if offsets is not None:
                signs = torch.where(flips, -1.0, 1.0).to(offsets)
                offsets = (
                    unflip(offsets, flips) * torch.cat([signs, torch.ones_like(signs[:, :1])], 1)[:, None, None, None]
                )
        opacity = raw.sigmoid()
        if settings.hard_mask is not None:
            opacity = torch.where(opacity > settings.hard_mask, opacity, 0.0)
        features = logits.softmax(-1) if settings.feature == "prob" else logits
        return Gaussians(opacity, features, scale, spec, offsets, logits.detach().argmax(-1))


def unflip(
    volume: Tensor,  # [B, X, Y, Z, ...]
    flips: Tensor,  # [B, 2]
) -> Tensor:
    """The volume of the grid before it was mirrored along x, y where `flips` (bool) says so."""
    for axis in range(2):
        chosen = flips[:, axis].view(-1, *[1] * (volume.ndim - 1))
        volume = torch.where(chosen, volume.flip(axis + 1), volume)
    return volume


def decide(
    opacity: Tensor,  # [...]
    logits: Tensor,  # [..., C]
    threshold: float,
    free: int,
) -> Tensor:
    """Labels uint8 [...]: the best class where opacity > threshold, else `free`."""
    return torch.where(opacity > threshold, logits.argmax(-1), free).to(torch.uint8)


def splat(
    gaussians: Gaussians,
    rays: SplatRays,
    settings: SplatSettings | None = None,
    moves: GaussianMoves | None = None,
    front_limits: Tensor | None = None,  # [R]
    backend: str | None = None,
) -> RenderedRays:
    """What rays see of Gaussians.

    Args:
        gaussians: of a batch.
        rays: where to look; `SplatRays.samples` chooses the sample.
        settings: `SplatSettings()` if None.
        moves: Gaussians that stand elsewhere at the rays' times (`GaussianMoves.of`).
        front_limits: metres along each ray; for `RenderedRays.front`, the free-space loss.
        backend: one of `BACKENDS`; None takes triton where it can, else torch_sparse.

    Returns:
        weight_sum A, semantics P = sum of w times features, depth in metres along the ray (see `SplatSettings.depth`),
        front (None from gsplat, which does not say what is in front of what).

    Raises:
        ValueError: shapes that do not fit, views that are missing, or a back-end that is unknown or cannot run here.
    """
    settings = settings or SplatSettings()
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if int(rays.samples.max() if len(rays) else 0) >= len(gaussians.opacity):
        raise ValueError(
            f"rays of sample {int(rays.samples.max())}, but {len(gaussians.opacity)} samples of Gaussians"
        )
    by_views = backend == "gsplat" or settings.response == "ewa"
    if by_views and rays.views is None:
        raise ValueError(
            f"backend {backend!r} with response {settings.response!r} paints pixels and needs SplatRays.views; "
            "response='ray' does without"
        )
    if moves is not None and rays.frames is None:
        raise ValueError("Gaussians move between frames: give SplatRays.frames, the frame of each ray")
    # Poses and footprints are no work for half precision.
    with torch.autocast(rays.origins.device.type, enabled=False):
        if backend == "gsplat" or (backend == "torch_reference" and by_views):
            from syntheocc.occupancy.rendering.splat_images import splat_nearest_pixels

            out = splat_nearest_pixels(gaussians, rays, settings, moves, front_limits, backend)
        else:
            out = _along_rays(gaussians, rays, settings, moves, front_limits, backend)
    if settings.depth == "normalised":
        out.depth = out.depth / out.weight_sum.clamp_min(1e-10)
    return out


def _along_rays(
    gaussians: Gaussians,
    rays: SplatRays,
    settings: SplatSettings,
    moves: GaussianMoves | None,
    front_limits: Tensor | None,
    backend: str | None,
) -> RenderedRays:
    spec, dtype = gaussians.spec, gaussians.opacity.dtype
    origins, directions = rays.origins.to(dtype), rays.directions.to(dtype)
    turns = None
    if moves is None or rays.frames is None:
        paths = RayPaths.straight(origins, directions, rays.samples, spec)
    else:
        widest = float(gaussians.scale.detach().max()) if isinstance(gaussians.scale, Tensor) else gaussians.scale
        answer: Response = RayResponse()
        if settings.response == "ewa" and rays.views is not None:
            answer = rays.views.response(dtype, settings.near, settings.far)
        margin = answer.reach(widest, settings.far)
        if gaussians.offsets is not None:
            margin += float(gaussians.offsets.detach().norm(dim=-1).max())
        paths, turns = moves.paths(origins, directions, rays.samples, rays.frames, spec, margin)
    response, near, far = None, settings.near, settings.far
    if settings.response == "ewa":
        response = rays.ewa_response(paths, turns, settings.near, settings.far)
        # The rasteriser's near and far are of the camera's z, not of the way along the ray.
        near, far = 0.0, far * float((1 + response.slopes.square().sum(-1)).sqrt().max()) if len(rays) else far
    name = {"torch_sparse": "torch", "torch_reference": "reference", "triton": "triton"}.get(backend or "")
    found = splat_rays(
        gaussians.opacity, gaussians.features.to(dtype), paths, spec, gaussians.scale, gaussians.offsets,
        None if front_limits is None else front_limits.to(dtype), None if moves is None else moves.owners,
        near, far, name or choose_backend(gaussians.opacity, response), response,
    )  # fmt: skip
    return RenderedRays(
        weight_sum=found.weight_sum,
        depth=found.depth,
        semantics=found.features,
        front=None if front_limits is None else found.front,
    )


def mirrored_axes(grid_transforms: Tensor, samples: int) -> Tensor:
    """Which of x, y each sample's grid was mirrored along, bool [B, 2]; ValueError if it was turned or scaled."""
    linear = grid_transforms[..., :3, :3]
    if tuple(linear.shape) != (samples, 3, 3):
        raise ValueError(f"grid_transforms must be [{samples}, 4, 4], got {list(grid_transforms.shape)}")
    signs = torch.diagonal(linear, dim1=-2, dim2=-1)
    plain = torch.diag_embed(torch.sign(signs))
    if not torch.allclose(linear, plain, atol=1e-5) or not bool((signs[:, 2] > 0).all()):
        raise ValueError(
            "a volume can be flipped back along x and y, not turned or scaled: transform the rays instead "
            f"(RayLabels.transformed); got {linear.tolist()}"
        )
    return signs[:, :2] < 0
