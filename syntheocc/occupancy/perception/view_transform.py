"""From image features to a volume: the geometry of lift-splat-shoot (Philion and Fidler 2020) as BEVDepth uses it.

Every pixel of a feature map stands for a ray of points, one a depth bin. The inverse of a camera's projection takes
them to the grid's frame; what the image or the grid was augmented by is part of that projection, and so is the pose of
an older image, which is how frames are aligned in time (specs/occflownet_splattingocc.md 2.2).

Defaults are corrected where the published system errs: a point's voxel is the floor of its place (`legacy` truncates
towards zero, and points up to a voxel below the grid leak into its first layer), and a feature stands for the centre
of its cell (`legacy` spreads the features from the first to the last pixel). Everything lives in the grid's frame,
ego at the lidar's time.

Legend: B samples, T frames, V views, D depth bins, C channels, H W network input, h w feature map, X Y Z voxels.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.bev_pool import bev_pool
from syntheocc.occupancy.perception.batch import OccupancyBatch

__all__ = [
    "CAMERA_NUMBERS",
    "DepthBins",
    "LiftCameras",
    "feature_pixels",
    "image_to_grid",
    "lift_points",
    "lift_splat",
    "voxel_numbers",
]

# Length of `LiftCameras.vectors`: focal lengths and principal point, image and grid transform, camera pose.
CAMERA_NUMBERS = 27


@dataclass(frozen=True)
class DepthBins:
    """Equally wide depth bins; bin k reaches from ``near + k * step`` to the next, and is lifted at its near end.

    Raises:
        ValueError: no bin, a negative depth or a width that is not positive.
    """

    near: float = 1.0
    far: float = 45.0
    step: float = 0.5

    def __post_init__(self):
        if not 0 <= self.near < self.far or not self.step > 0:
            raise ValueError(f"depth bins go from near to far in positive steps (metres), got {self}")

    @property
    def number(self) -> int:
        """D."""
        return int((self.far - self.near) / self.step + 1e-6)

    def depths(self, device: torch.device | str | None = None) -> Tensor:
        """Camera z of the bins [D], metres, float32."""
        return self.near + self.step * torch.arange(self.number, device=device, dtype=torch.float32)

    def index(self, depth: Tensor) -> Tensor:
        """The bin of camera depths in metres, int64; -1 outside [near, far)."""
        # The quotient first, as published: 1.5 m is bin 1 although 0.5 is no multiple of every step's float.
        index = ((depth - (self.near - self.step)) / self.step).floor().long() - 1
        return torch.where((index >= 0) & (index < self.number), index, -1)


@dataclass
class LiftCameras:
    """The cameras of a batch, apart from its images.

    Args:
        ego2img: [B, T, V, 4, 4] from the (augmented) grid's frame to (u*z, v*z, z, 1) of the network's input, the
            current frame first; zeros where there is no camera.
        intrinsics: [B, T, V, 3, 3] of the original images.
        image_transforms: [B, T, V, 4, 4] from the original image to the network's input (`ImageTransform.matrix`).
        grid_transforms: [B, 4, 4] from the grid's frame to the augmented one (`GridTransform.matrix`).

    Raises:
        ValueError: shapes that do not belong together.
    """

    ego2img: Tensor
    intrinsics: Tensor
    image_transforms: Tensor
    grid_transforms: Tensor

    def __post_init__(self):
        if self.ego2img.ndim != 5 or self.ego2img.shape[-2:] != (4, 4):
            raise ValueError(f"ego2img must be [B, T, V, 4, 4], got {tuple(self.ego2img.shape)}")
        lead = self.ego2img.shape[:3]
        wanted = {
            "intrinsics": (*lead, 3, 3),
            "image_transforms": (*lead, 4, 4),
            "grid_transforms": (lead[0], 4, 4),
        }
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {tuple(getattr(self, name).shape)}")

    @classmethod
    def of_batch(cls, batch: OccupancyBatch) -> "LiftCameras":
        """The cameras of a batch of the dataset.

        Raises:
            ValueError: a batch without calibration.
        """
        values = {f.name: getattr(batch, f.name) for f in fields(cls)}
        if lacking := [name for name, value in values.items() if value is None]:
            raise ValueError(f"samples {', '.join(batch.tokens)} come without {', '.join(lacking)}")
        return cls(**values)

    def to(self, device: torch.device | str) -> "LiftCameras":
        """On another device."""
        return LiftCameras(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def exists(self) -> Tensor:
        """Which cameras there are: bool [B, T, V]."""
        return (self.ego2img != 0).flatten(3).any(-1)

    def vectors(self) -> Tensor:
        """What the depth network knows of each current camera: float32 [B, V, 27].

        Focal lengths and principal point (pixels of the original image), image transform (2 x 3), the grid
        transform's upper left 2 x 2 and its z, and the first three rows of cam2ego; zeros without a camera.
        """
        exists = self.exists[:, 0]
        eye = torch.eye(4, dtype=torch.float64, device=self.ego2img.device)
        k = eye.repeat(*self.intrinsics.shape[:1], self.intrinsics.shape[2], 1, 1)
        k[..., :3, :3] = self.intrinsics[:, 0].double()
        a, b = self.image_transforms[:, 0].double(), self.grid_transforms[:, None].double()
        whole = torch.where(exists[..., None, None], a @ k, eye)
        ego2cam = torch.linalg.solve(whole, self.ego2img[:, 0].double() @ b)
        cam2ego = torch.linalg.inv(torch.where(exists[..., None, None], ego2cam, eye))
        pieces = [
            torch.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], -1),
            a[..., :2, :3].flatten(-2),
            b[..., :2, :2].flatten(-2).expand(*exists.shape, 4),
            b[..., 2, 2:3].expand(*exists.shape, 1),
            cam2ego[..., :3, :].flatten(-2),
        ]
        return torch.where(exists[..., None], torch.cat(pieces, -1), 0.0).float()


def feature_pixels(
    size: tuple[int, int],
    image_size: tuple[int, int],
    device: torch.device | str | None = None,
    legacy: bool = False,
) -> Tensor:
    """The input pixel that each cell of a feature map stands for: float32 [h, w, 2] (u, v).

    Args:
        size: h and w.
        image_size: H and W.
        device: of the result.
        legacy: as published, from pixel 0 to the last one in equal steps, instead of the cells' centres.
    """

    def places(number: int, pixels: int) -> Tensor:
        if legacy:
            return torch.linspace(0, pixels - 1, number, device=device)
        return (torch.arange(number, device=device, dtype=torch.float32) + 0.5) * (pixels / number) - 0.5

    v, u = torch.meshgrid(places(size[0], image_size[0]), places(size[1], image_size[1]), indexing="ij")
    return torch.stack([u, v], -1)


def image_to_grid(ego2img: Tensor) -> Tensor:
    """The inverses of projections [..., 4, 4]: float32, NaN without a camera."""
    exists = (ego2img != 0).flatten(-2).any(-1)[..., None, None]
    # In float64 up to here: the matrices hold focal lengths of 1000 beside metres.
    eye = torch.eye(4, dtype=torch.float64, device=ego2img.device)
    inverse = torch.linalg.inv(torch.where(exists, ego2img.double(), eye))
    return torch.where(exists, inverse, torch.nan).float()


def lift_points(
    img2grid: Tensor,  # [..., 4, 4]
    pixels: Tensor,  # [h, w, 2]
    depths: Tensor,  # [D]
) -> Tensor:
    """Where pixels at depths lie in the grid's frame: float32 [..., D, h, w, 3] metres, NaN without a camera.

    Args:
        img2grid: of `image_to_grid`.
        pixels: u, v of the network's input.
        depths: metres along the optical axis.
    """
    # Products written out: autocast would turn a matrix product's metres into bfloat16.
    columns = img2grid[..., None, None, :3, :3].unbind(-1)
    rays = pixels[..., :1] * columns[0] + pixels[..., 1:] * columns[1] + columns[2]  # [..., h, w, 3]
    origin = img2grid[..., None, None, None, :3, 3]
    return depths[:, None, None, None] * rays[..., None, :, :, :] + origin


def voxel_numbers(points: Tensor, spec: GridSpec, legacy: bool = False) -> Tensor:
    """The voxel of each point [..., 3] as a flat number (z fastest), int64 [...]; -1 outside and for NaN.

    Args:
        points: metres in the grid's frame.
        spec: the grid.
        legacy: truncate towards zero, as published, instead of rounding down.
    """
    cell = (points - constant(spec.lower, points)) / constant(spec.voxel_size, points)
    cell = torch.where(torch.isfinite(cell), cell, -2.0)
    index = (cell.trunc() if legacy else cell.floor()).long()
    inside = ((index >= 0) & (index < constant(spec.shape, points.device))).all(-1)
    x, y, z = index.unbind(-1)
    return torch.where(inside, (x * spec.shape[1] + y) * spec.shape[2] + z, -1)


def lift_splat(
    depth: Tensor,  # [B, V, D, h, w]
    context: Tensor,  # [B, V, C, h, w]
    img2grid: Tensor,  # [B, V, 4, 4]
    bins: DepthBins,
    spec: GridSpec,
    image_size: tuple[int, int],
    legacy: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Lifts image features along their depth distributions and sums them up in voxels.

    Args:
        depth: probability of each bin.
        context: features.
        img2grid: `image_to_grid` of these images.
        bins: what the D bins mean.
        spec: the grid.
        image_size: H and W of the network's input.
        legacy: the published rounding and pixels; see the module.
        backend: of `bev_pool`.

    Returns:
        [B, C, X, Y, Z], in memory channels last.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if depth.ndim != 5 or context.ndim != 5 or depth.shape[2] != bins.number:
        raise ValueError(
            f"depth must be [B, V, {bins.number}, h, w] and context [B, V, C, h, w], got {tuple(depth.shape)} and "
            f"{tuple(context.shape)}"
        )
    pixels = feature_pixels((depth.shape[-2], depth.shape[-1]), image_size, depth.device, legacy)
    points = lift_points(img2grid, pixels, bins.depths(depth.device))
    batch, size = len(depth), spec.shape[0] * spec.shape[1] * spec.shape[2]
    voxels = voxel_numbers(points, spec, legacy)  # [B, V, D, h, w]
    first = torch.arange(batch, device=depth.device).view(-1, 1, 1, 1, 1) * size
    voxels = torch.where(voxels >= 0, voxels + first, -1)
    pooled = bev_pool(depth.flatten(0, 1), context.flatten(0, 1), voxels.flatten(0, 1), batch * size, backend)
    return pooled.view(batch, *spec.shape, -1).permute(0, 4, 1, 2, 3)
