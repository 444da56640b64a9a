"""Cameras and rigs: projection, back-projection, resizing, and which camera is whose neighbour.

Camera frames are OpenCV's (x right, y down, z forward); an integer pixel coordinate is a pixel's centre. All of this
is float64 on the CPU: a rig is a handful of small matrices, and their users move the rays they need to the device.
Legend: V views, H W pixels, h w cells of an MPI, S samples a cell.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.distortion import Distortion, distortion_for
from syntheocc.occupancy.transforms import invert_rigid, numbers, rigid_transform

# The order in which SyntheOcc arranges the six nuScenes cameras (clockwise seen from above): a ring of neighbours.
NUSCENES_CAMERAS = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
)
MODELS = ("pinhole", "fisheye", "unified")
PIXEL_ORIGINS = ("center", "corner")
# Frusta whose edges are at most this far apart count as adjacent (radians): the gap of a pillar, not of a camera.
_ADJACENT_GAP = math.radians(15.0)


class Camera:
    """One calibrated camera.

    Args:
        intrinsics: [3, 3] pixels; the last row is 0 0 1. For ``fisheye`` it maps (theta_d cos phi, theta_d sin phi),
            for ``unified`` the point on the unified plane.
        cam2ego: [4, 4] rigid transform from the camera to ego at the key frame's lidar time.
        height, width: of the full image, pixels.
        model: ``"pinhole"``, ``"fisheye"`` (equidistant; Kannala-Brandt) or ``"unified"`` (Mei and Rives 2007).
        distortion: None, a `BrownConrady` or `KannalaBrandt`, or a list of OpenCV coefficients for the model.
        xi: the unified model's mirror parameter, without unit; 0 is a pinhole.

    Raises:
        ValueError: a matrix with a wrong shape, NaN or no inverse, a pose that is not rigid, an image without pixels.

    Example:
        >>> camera = Camera([[100, 0, 50], [0, 100, 40], [0, 0, 1]], torch.eye(4), height=80, width=100)
        >>> camera.project(torch.tensor([[0.0, 0.0, 2.0]]))
        (tensor([[50., 40.]], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """

    def __init__(
        self,
        intrinsics: Any,
        cam2ego: Any,
        height: int,
        width: int,
        model: str = "pinhole",
        distortion: Any = None,
        xi: float = 0.0,
    ):
        matrix = numbers(intrinsics, "camera intrinsics")
        if tuple(matrix.shape) != (3, 3):
            raise ValueError(f"camera intrinsics must be a 3x3 matrix, got shape {tuple(matrix.shape)}")
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"camera intrinsics hold NaN or infinite values: {matrix.tolist()}")
        if matrix[2].tolist() != [0.0, 0.0, 1.0]:
            raise ValueError(f"the last row of camera intrinsics must be 0 0 1, got {matrix[2].tolist()}")
        if abs(float(torch.linalg.det(matrix[:2, :2]))) < 1e-12:
            raise ValueError(f"camera intrinsics are not invertible: {matrix.tolist()}; is a focal length zero?")
        if model not in MODELS:
            raise ValueError(f"camera model must be one of {', '.join(MODELS)}; got {model!r}")
        if not all(float(size).is_integer() and size > 0 for size in (height, width)):
            raise ValueError(f"an image needs whole pixels, got height {height} and width {width}")
        if not (math.isfinite(xi) and xi >= 0):
            raise ValueError(f"xi must be finite and not negative, got {xi}")
        if xi and model != "unified":
            raise ValueError(f"xi={xi} belongs to model 'unified', but the model is {model!r}")
        self.intrinsics: Tensor = matrix
        self.cam2ego: Tensor = rigid_transform(cam2ego, "cam2ego")
        self.height, self.width = int(height), int(width)
        self.model = model
        self.distortion: Distortion | None = distortion_for(model, distortion)
        self.xi = float(xi)

    def __repr__(self) -> str:
        return f"Camera({self.model}, {self.width}x{self.height}, f={float(self.intrinsics[0, 0]):.1f})"

    # Pickled as arrays: torch would send every small matrix from a reading process through a file of its own, and a
    # batch of a few dozen rigs would exhaust the files that a process may open.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "intrinsics": self.intrinsics.numpy(), "cam2ego": self.cam2ego.numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        matrices = {name: torch.from_numpy(state[name].copy()) for name in ("intrinsics", "cam2ego")}
        self.__dict__.update(state | matrices)

    @property
    def ego2cam(self) -> Tensor:
        """Inverse of ``cam2ego``, [4, 4]."""
        return invert_rigid(self.cam2ego)

    def project(self, points_cam: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and depths of points in the camera frame.

        Args:
            points_cam: [..., 3] metres.

        Returns:
            pixels float64 [..., 2] (u, v), NaN where the point has no image (behind a pinhole, beyond the
            lens's range; the image border is not checked), and depth [...]: z for a pinhole, the distance for
            the other models.
        """
        points = torch.as_tensor(points_cam, dtype=torch.float64)
        x, y, z = points.unbind(-1)
        distance = points.norm(dim=-1)
        if self.model == "fisheye":
            radius = torch.hypot(x, y)
            theta = torch.atan2(radius, z)
            theta_d = theta if self.distortion is None else self.distortion.distort(theta)
            # On the axis the direction is undefined and the limit of theta_d / radius is 1 / z.
            scale = torch.where(radius > 1e-12, theta_d / radius.clamp_min(1e-12), 1 / z)
            plane = torch.stack([x * scale, y * scale], -1)
        else:
            denominator = z + self.xi * distance
            # Behind the mirror's pole (xi > 1) two points share a pixel: keep those that the lens really sees.
            seen = (denominator > 0) & (z > -distance / self.xi if self.xi > 1 else denominator > 0)
            plane = torch.stack([x, y], -1) / torch.where(seen, denominator, torch.nan)[..., None]
            if self.distortion is not None:
                plane = self.distortion.distort(plane)
        pixels = plane @ self.intrinsics[:2, :2].T + self.intrinsics[:2, 2]
        return pixels, z if self.model == "pinhole" else distance

    def pixel_rays(self, pixels: Tensor) -> Tensor:
        """The ray of each pixel in the camera frame, scaled so that ``depth * ray`` is the point at that depth.

        Args:
            pixels: [..., 2] (u, v); need not be integers.

        Returns:
            float64 [..., 3]: z is 1 for a pinhole (depth is z), unit length for the other models (depth is distance);
            NaN where the lens has no ray.
        """
        pixels = torch.as_tensor(pixels, dtype=torch.float64)
        plane = (pixels - self.intrinsics[:2, 2]) @ torch.linalg.inv(self.intrinsics[:2, :2]).T
        if self.model == "fisheye":
            theta_d = plane.norm(dim=-1)
            theta = theta_d if self.distortion is None else self.distortion.undistort(theta_d)
            theta = torch.where(theta <= math.pi, theta, torch.nan)
            scale = torch.where(theta_d > 1e-12, theta.sin() / theta_d.clamp_min(1e-12), 1.0)
            return torch.stack([plane[..., 0] * scale, plane[..., 1] * scale, theta.cos()], -1)
        if self.distortion is not None:
            plane = self.distortion.undistort(plane)
        ray = torch.cat([plane, torch.ones_like(plane[..., :1])], -1)
        if self.model == "pinhole":
            return ray
        # Lift to the unit sphere (Mei and Rives 2007, eq. 5); a negative root means that the pixel sees nothing.
        radius2 = (plane * plane).sum(-1)
        root = 1 + (1 - self.xi**2) * radius2
        lift = (self.xi + torch.where(root >= 0, root, torch.nan).sqrt()) / (radius2 + 1)
        return torch.stack([plane[..., 0] * lift, plane[..., 1] * lift, lift - self.xi], -1)

    def resized(self, height: int, width: int) -> "Camera":
        """The camera of the image scaled to another size (each axis on its own)."""
        if height <= 0 or width <= 0:
            raise ValueError(f"an image needs whole pixels, got height {height} and width {width}")
        scale_x, scale_y = width / self.width, height / self.height
        matrix = self.intrinsics.clone()
        matrix[0] *= scale_x
        matrix[1] *= scale_y
        # Pixel centres are integers, so the image's left edge is at -0.5 before and after.
        matrix[0, 2] += 0.5 * (scale_x - 1)
        matrix[1, 2] += 0.5 * (scale_y - 1)
        return self._with(matrix, height, width)

    def cropped(self, top: int, left: int, height: int, width: int) -> "Camera":
        """The camera of a window of the image (pixels; the window may reach beyond the border)."""
        matrix = self.intrinsics.clone()
        matrix[0, 2] -= left
        matrix[1, 2] -= top
        return self._with(matrix, height, width)

    def moved(self, cam2ego: Any) -> "Camera":
        """The same camera at another pose."""
        return Camera(self.intrinsics, cam2ego, self.height, self.width, self.model, self.distortion, self.xi)

    def _with(self, intrinsics: Tensor, height: int, width: int) -> "Camera":
        return Camera(intrinsics, self.cam2ego, height, width, self.model, self.distortion, self.xi)

    def _half_angles(self) -> tuple[float, float]:
        """How far the image reaches left and right of the optical axis along its middle row, radians."""
        columns = torch.linspace(-0.5, self.width - 0.5, 129, dtype=torch.float64)
        row = self.intrinsics[1, 2].clamp(0, self.height - 1).expand_as(columns)
        ray = self.pixel_rays(torch.stack([columns, row], -1))
        angle = torch.atan2(ray[:, 0], ray[:, 2])
        angle = angle[torch.isfinite(angle)]
        return (0.0, 0.0) if angle.numel() == 0 else (float((-angle).max()), float(angle.max()))


class RigArrays(NamedTuple):
    """A rig's matrices stacked as numpy arrays, for code in which torch's dispatch would take longer than the work."""

    intrinsics: np.ndarray  # float64 [V, 3, 3]
    cam2ego: np.ndarray  # float64 [V, 4, 4]
    size: np.ndarray  # float64 [V, 2] width, height
    is_plain: bool  # every camera is a pinhole without distortion


class CameraRig(Mapping[str, Camera]):
    """An ordered set of named cameras; the order is the order of views everywhere.

    Args:
        cameras: name -> `Camera`.

    Raises:
        ValueError: no camera at all, or something else than a camera.
    """

    def __init__(self, cameras: Mapping[str, Camera]):
        if not isinstance(cameras, Mapping) or not all(isinstance(camera, Camera) for camera in cameras.values()):
            raise ValueError(f"a camera rig is made of a mapping name -> Camera, got {cameras!r}")
        if not cameras:
            raise ValueError("a camera rig needs at least one camera")
        self._cameras = dict(cameras)
        self._rays: dict[tuple, Tensor] = {}

    def __getitem__(self, name: str) -> Camera:
        if name not in self._cameras:
            raise KeyError(f"the rig has no camera {name!r}; it has {', '.join(self._cameras)}")
        return self._cameras[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cameras)

    def __len__(self) -> int:
        return len(self._cameras)

    def __repr__(self) -> str:
        return f"CameraRig({', '.join(self._cameras)})"

    @property
    def names(self) -> tuple[str, ...]:
        """Camera names in view order."""
        return tuple(self._cameras)

    @property
    def cam2ego(self) -> Tensor:
        """float64 [V, 4, 4]."""
        return torch.stack([camera.cam2ego for camera in self._cameras.values()])

    @cached_property
    def arrays(self) -> RigArrays:
        """The rig's matrices, stacked once; read only."""
        cameras = list(self._cameras.values())
        return RigArrays(
            intrinsics=np.stack([camera.intrinsics.numpy() for camera in cameras]),
            cam2ego=np.stack([camera.cam2ego.numpy() for camera in cameras]),
            size=np.array([[camera.width, camera.height] for camera in cameras], dtype=np.float64),
            is_plain=all(camera.model == "pinhole" and camera.distortion is None for camera in cameras),
        )

    def select(self, names: Iterable[str]) -> "CameraRig":
        """The rig of these cameras in this order; ValueError naming what is missing."""
        names = list(names)
        missing = [name for name in names if name not in self._cameras]
        if missing:
            raise ValueError(f"the rig has no camera {', '.join(missing)}; it has {', '.join(self._cameras)}")
        return CameraRig({name: self._cameras[name] for name in names})

    def resized(self, height: int, width: int) -> "CameraRig":
        """The rig with every image scaled to one size."""
        return CameraRig({name: camera.resized(height, width) for name, camera in self._cameras.items()})

    def cell_rays(self, h: int, w: int, pixel_origin: str = "center", samples_per_cell: int = 1) -> Tensor:
        """Rays through the cells of an h x w raster laid over each camera's full image.

        Args:
            h: rows of the raster, e.g. 56.
            w: columns of the raster, e.g. 100.
            pixel_origin: ``"center"`` samples cell (i, j) at pixel ((j+.5)*W/w-.5, (i+.5)*H/h-.5) of the full image,
                ``"corner"`` at (j*W/w, i*H/h), the convention of the released weights.
            samples_per_cell: a square number of samples spread evenly over the cell about that point.

        Returns:
            float64 [V, S, h, w, 3] in each camera's frame, scaled as `Camera.pixel_rays` does. Cached: read only.
        """
        if h <= 0 or w <= 0:
            raise ValueError(f"the raster of an MPI needs cells, got h={h}, w={w}")
        if pixel_origin not in PIXEL_ORIGINS:
            raise ValueError(f"pixel_origin must be one of {', '.join(PIXEL_ORIGINS)}; got {pixel_origin!r}")
        side = math.isqrt(samples_per_cell) if samples_per_cell > 0 else 0
        if side * side != samples_per_cell or side == 0:
            raise ValueError(f"samples_per_cell must be a square number (1, 4, 9, ...), got {samples_per_cell}")
        key = (h, w, pixel_origin, samples_per_cell)
        if key not in self._rays:
            anchor = 0.5 if pixel_origin == "center" else 0.0
            offset = (torch.arange(side, dtype=torch.float64) + 0.5) / side - 0.5 + anchor
            # [S, h, w] cell coordinates in units of cells
            rows = torch.arange(h, dtype=torch.float64)[None, :, None] + offset.repeat_interleave(side)[:, None, None]
            cols = torch.arange(w, dtype=torch.float64)[None, None, :] + offset.repeat(side)[:, None, None]
            rows, cols = torch.broadcast_tensors(rows, cols)
            shift = 0.5 if pixel_origin == "center" else 0.0
            self._rays[key] = torch.stack(
                [
                    camera.pixel_rays(
                        torch.stack([cols * (camera.width / w) - shift, rows * (camera.height / h) - shift], -1)
                    )
                    for camera in self._cameras.values()
                ]
            )
        return self._rays[key]

    def neighbors(self, num: int = 2) -> Tensor:
        """Which cameras look next to each camera: int64 [V, num], padded with -1.

        The nearest camera to the left comes first, then the nearest to the right, then the second ones, and so on. A
        camera is a neighbour when its frustum overlaps this one's or lies at most 15 degrees beside it, judged by the
        optical axes and the horizontal fields of view; cameras that look the same way (a stereo pair) are told apart
        by their position. For the six nuScenes cameras this is the ring i -> (i-1, i+1) of specs/syntheocc.md 2.2.
        """
        cameras = list(self._cameras.values())
        axes = [camera.cam2ego[:3, 2] for camera in cameras]
        reach = [camera._half_angles() for camera in cameras]
        table = torch.full((len(cameras), num), -1, dtype=torch.long)
        for i, axis in enumerate(axes):
            sides: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])
            for j, other in enumerate(axes):
                if i == j:
                    continue
                angle = math.acos(max(-1.0, min(1.0, float(axis @ other))))
                cross = float(axis[0] * other[1] - axis[1] * other[0])  # > 0: the other camera looks further left
                if abs(cross) < 1e-3 and angle < math.pi / 2:
                    offset = cameras[j].cam2ego[:3, 3] - cameras[i].cam2ego[:3, 3]
                    cross = -float(cameras[i].cam2ego[:3, 0] @ offset)
                left = cross > 0
                covered = (reach[i][0] + reach[j][1]) if left else (reach[i][1] + reach[j][0])
                if angle <= covered + _ADJACENT_GAP:
                    sides[0 if left else 1].append((angle, j))
            for side in sides:
                side.sort()
            order = [side[k][1] for k in range(len(cameras)) for side in sides if k < len(side)][:num]
            table[i, : len(order)] = torch.tensor(order, dtype=torch.long)
        return table
