"""Where Gaussians are looked at from: rays, and the cameras and pixels behind them where an image is painted.

**Pixels here are the rasterisers':** pixel i spans [i, i + 1) and its centre is i + 0.5, half a pixel off OpenCV's
(and this package's) convention. `SplatViews.from_cameras` adds the half; nothing else does.

Legend: V views, R rays, S paths. Specification: specs/occflownet_splattingocc.md 4.2 "Cameras".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera
from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.ops.splat_rays import RayPaths
from syntheocc.occupancy.ops.splat_rays.responses import EwaResponse
from syntheocc.occupancy.rendering.rays import RayLabels
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["SplatRays", "SplatViews"]


@dataclass(frozen=True, eq=False)
class SplatViews:
    """Pinhole cameras.

    Args:
        ego2cam: [V, 4, 4] key ego frame to camera (OpenCV axes), at the time of the view.
        intrinsics: [V, 3, 3] pixels, with the principal point, in the rasterisers' convention (see the module).
        height, width: of the image that is painted.
        samples: int64 [V] index in the batch.
        frames: int64 [V] the frame that the view is of, as in `BoxMotion`.

    Raises:
        ValueError: shapes that do not fit.
    """

    ego2cam: Tensor
    intrinsics: Tensor
    height: int
    width: int
    samples: Tensor
    frames: Tensor

    def __post_init__(self):
        number = len(self.ego2cam)
        shapes = {"ego2cam": (4, 4), "intrinsics": (3, 3), "samples": (), "frames": ()}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != (number, *shape):
                raise ValueError(
                    f"SplatViews: {name} must be {[number, *shape]}, got {list(getattr(self, name).shape)}"
                )
        if self.height < 1 or self.width < 1:
            raise ValueError(f"an image needs pixels, got height {self.height} and width {self.width}")

    @classmethod
    def from_matrices(
        cls,
        cam2ego: Tensor,  # [V, 4, 4]
        intrinsics: Tensor,  # [V, 3, 3]
        size: tuple[int, int],
        render_scale: float = 1.0,
        samples: Tensor | None = None,
        frames: Tensor | None = None,
    ) -> "SplatViews":
        """Views of cameras in this package's convention (an integer is a pixel's centre).

        Args:
            cam2ego: camera at the view's time to key ego.
            intrinsics: of the full image, pixels.
            size: height and width of the full image.
            render_scale: the painted image is so many times the full one: K' = diag(r, r, 1) K, all of the picture.
            samples: int64 [V], zeros if None.
            frames: int64 [V], zeros if None.
        """
        if not render_scale > 0:
            raise ValueError(f"render_scale must be positive, got {render_scale}")
        height, width = (max(1, round(edge * render_scale)) for edge in size)
        matrix = intrinsics.clone()
        matrix[:, :2, 2] += 0.5
        matrix[:, :2] *= render_scale
        none = torch.zeros(len(cam2ego), dtype=torch.int64, device=cam2ego.device)
        return cls(
            invert_rigid(cam2ego), matrix, height, width,
            none if samples is None else samples, none if frames is None else frames,
        )  # fmt: skip

    @classmethod
    def from_cameras(cls, cameras: Sequence[Camera], render_scale: float = 1.0) -> "SplatViews":
        """Views of pinhole cameras of one size, all of sample 0 and frame 0, float64.

        Raises:
            ValueError: no cameras, cameras of several sizes, or one that is no plain pinhole.
        """
        sizes = {(camera.height, camera.width) for camera in cameras}
        if len(sizes) != 1:
            raise ValueError(f"views are cameras of one image size, got {sorted(sizes)}")
        if any(camera.model != "pinhole" or camera.distortion is not None for camera in cameras):
            raise ValueError("splatting paints undistorted pinhole images; other cameras: rays with response='ray'")
        poses, matrices = (torch.stack([getattr(c, n) for c in cameras]) for n in ("cam2ego", "intrinsics"))
        return cls.from_matrices(poses, matrices, sizes.pop(), render_scale)

    def __len__(self) -> int:
        return len(self.ego2cam)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SplatViews":
        """On another device and with matrices of another type."""
        return replace(
            self,
            ego2cam=self.ego2cam.to(device=device, dtype=dtype),
            intrinsics=self.intrinsics.to(device=device, dtype=dtype),
            samples=self.samples.to(device=device),
            frames=self.frames.to(device=device),
        )

    def rays(self, view: Tensor, pixels: Tensor) -> "SplatRays":
        """Rays through pixels [R, 2] (u, v; rasterisers' convention) of views int64 [R]."""
        matrix, ego2cam = self.intrinsics[view], self.ego2cam[view]
        slopes = (pixels.to(matrix) - matrix[:, :2, 2]) / matrix[:, [0, 1], [0, 1]]
        in_camera = torch.cat([slopes, torch.ones_like(slopes[:, :1])], 1)
        cam2ego = ego2cam[:, :3, :3].transpose(1, 2)
        directions = (cam2ego @ in_camera[:, :, None])[..., 0]
        return SplatRays(
            origins=-(cam2ego @ ego2cam[:, :3, 3:])[..., 0],
            directions=directions / directions.norm(dim=1, keepdim=True),
            samples=self.samples[view],
            frames=self.frames[view],
            views=self,
            view=view,
            pixels=pixels,
        )

    def response(self, dtype: torch.dtype, near: float, far: float) -> EwaResponse:
        """How Gaussians answer at the principal point of each view; near and far in metres of z."""
        matrix = self.intrinsics.to(dtype)
        focal, centre = matrix[:, [0, 1], [0, 1]], matrix[:, :2, 2]
        image = constant([self.width, self.height], matrix)
        beyond = 0.3 * 0.5 * image / focal
        limits = torch.stack([-centre / focal - beyond, (image - centre) / focal + beyond], 1)
        axes = self.ego2cam[:, :3, :3].to(dtype)
        return EwaResponse(axes, focal, torch.zeros_like(focal), limits, near=near, far=far)

    def all_rays(self) -> "SplatRays":
        """A ray through the centre of every pixel of every view, view by view and row by row: R = V height width."""
        device, dtype = self.ego2cam.device, self.ego2cam.dtype
        rows, columns = (torch.arange(n, device=device, dtype=dtype) + 0.5 for n in (self.height, self.width))
        v, u = torch.meshgrid(rows, columns, indexing="ij")
        pixels = torch.stack([u, v], -1).reshape(-1, 2).repeat(len(self), 1)
        return self.rays(torch.arange(len(self), device=device).repeat_interleave(self.height * self.width), pixels)


@dataclass(frozen=True, eq=False)
class SplatRays:
    """Rays, with the views they are pixels of where there are any.

    Args:
        origins: [R, 3] metres, key ego frame.
        directions: [R, 3] unit vectors.
        samples: int64 [R] index in the batch.
        frames: int64 [R] as in `BoxMotion`; needed where Gaussians move.
        views: the cameras, or None.
        view: int64 [R] which of them.
        pixels: [R, 2] u, v in the painted image, rasterisers' convention.
    """

    origins: Tensor
    directions: Tensor
    samples: Tensor
    frames: Tensor | None = None
    views: SplatViews | None = None
    view: Tensor | None = None
    pixels: Tensor | None = None

    @classmethod
    def from_labels(
        cls, labels: RayLabels, views: SplatViews | None = None, render_scale: float = 1.0, snap: bool = False
    ) -> "SplatRays":
        """The rays of labels: as they are, or through their pixels in views.

        Args:
            labels: 2D labels.
            views: ordered sample, frame, camera: view ``(sample T + frame) V + camera``, T frames and V cameras.
            render_scale: of the views.
            snap: to the centre of the pixel that a label falls into, ``floor(u r)``: what an image holds for it.
        """
        if views is None:
            return cls(labels.origins, labels.directions, labels.samples, labels.frames)
        frames = len(labels.frame_offsets)
        samples = int(views.samples.max()) + 1
        if len(views) % (samples * frames):
            raise ValueError(f"{len(views)} views are not the cameras of {samples} samples and {frames} frames each")
        cameras = len(views) // (samples * frames)
        view = (labels.samples * frames + labels.frames) * cameras + labels.cameras
        pixels = (labels.pixels + 0.5) * render_scale
        return views.rays(view, pixels.floor() + 0.5 if snap else pixels)

    def __len__(self) -> int:
        return len(self.origins)

    def ewa_response(self, paths: RayPaths, turns: Tensor | None, near: float, far: float) -> EwaResponse:
        """How Gaussians answer at these pixels.

        Args:
            paths: of these rays.
            turns: [S, 3, 3] from the rays' frame to the paths', or None where all are the same.
            near: metres of z.
            far: metres of z.
        """
        views, dtype = self.views, paths.origins.dtype
        if views is None or self.view is None or self.pixels is None:
            raise ValueError("rays without views paint no pixels")
        view = self.view[paths.rays]
        response = views.response(dtype, near, far)
        axes, focal = response.axes[view], response.focal[view]
        if turns is not None:
            axes = axes @ turns.transpose(1, 2)
        slopes = (self.pixels.to(dtype)[paths.rays] - views.intrinsics.to(dtype)[view, :2, 2]) / focal
        return replace(response, axes=axes, focal=focal, slopes=slopes, limits=response.limits[view])
