"""What a lidar tells about the images, as rays: labels of 2D supervision (and, from `boxes`, how boxes moved).

All coordinates are in the **key ego frame** (ego at the key frame's lidar time), whichever frame a ray was seen in;
a sample's rays stay in it when its grid is augmented (`RayLabels.transformed` takes them along where that is wanted).

Legend: R rays. Specification: specs/occflownet_splattingocc.md 1.4, 3.2, 3.6.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.rendering.boxes import BoxMotion, FrameBoxes
from syntheocc.occupancy.rendering.rows import Rows, similarity

__all__ = ["BoxMotion", "FrameBoxes", "RayLabels"]


@dataclass(eq=False)
class RayLabels(Rows):
    """Rays from cameras (or from the lidar) to lidar points, with what is there.

    Args:
        origins: [R, 3] metres, key ego frame.
        directions: [R, 3] unit vectors, key ego frame.
        distance: [R] metres from the origin to the point, along the ray.
        depth: [R] metres, z of the point in the camera that saw it.
        labels: int64 [R] class of the point, free excluded.
        weights: [R] of the loss, not negative.
        frames: int64 [R] index into `frame_offsets`.
        cameras: int64 [R] index of the view.
        pixels: [R, 2] u, v in the original image, integers are pixel centres.
        samples: int64 [R] index in the batch.
        frame_offsets: the key frames that rays are from, counted from the key frame itself, e.g. (-1, 0, 1).

    Raises:
        ValueError: shapes, types or devices that do not belong together.

    Example:
        >>> rays = RayLabels.empty((-1, 0, 1))
        >>> points = rays.origins + rays.directions * rays.distance[:, None]  # where the lidar points are
    """

    origins: Tensor
    directions: Tensor
    distance: Tensor
    depth: Tensor
    labels: Tensor
    weights: Tensor
    frames: Tensor
    cameras: Tensor
    pixels: Tensor
    samples: Tensor
    frame_offsets: tuple[int, ...]

    _SHAPES = {
        "origins": (3,),
        "directions": (3,),
        "distance": (),
        "depth": (),
        "labels": (),
        "weights": (),
        "frames": (),
        "cameras": (),
        "pixels": (2,),
        "samples": (),
    }
    _INTEGERS = ("labels", "frames", "cameras", "samples")

    def __post_init__(self):
        super().__post_init__()
        self.frame_offsets = tuple(int(offset) for offset in self.frame_offsets)
        if len(set(self.frame_offsets)) != len(self.frame_offsets):
            raise ValueError(f"RayLabels: a frame is there twice in frame_offsets {self.frame_offsets}")

    @classmethod
    def empty(
        cls,
        frame_offsets: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "RayLabels":
        """No rays at all: what a frame without lidar gives."""
        return cls._none(device, dtype, frame_offsets=frame_offsets)

    @property
    def points(self) -> Tensor:
        """The lidar points [R, 3] metres, where they were when they were seen, in the key ego frame."""
        return self.origins + self.directions * self.distance[:, None]

    @property
    def offsets(self) -> Tensor:
        """int64 [R]: the frame offset of each ray, e.g. -1."""
        return constant(self.frame_offsets, self.device)[self.frames]

    @property
    def is_key(self) -> Tensor:
        """Rays of the key frame itself, bool [R]."""
        return self.offsets == 0

    def transformed(self, matrix: Tensor) -> "RayLabels":
        """The rays after an augmentation of the grid: a turn, a mirroring, a scale about the frame's origin.

        Args:
            matrix: [4, 4] old to new coordinates (`GridTransform.matrix`): an orthogonal matrix times a scale.
                Lengths (distance, depth) are scaled with it.
        """
        linear, scale = similarity(matrix, self.origins)
        origins = self.origins @ linear.T + matrix[:3, 3].to(self.origins)
        directions = self.directions @ (linear.T / scale)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {
            "origins": origins,
            "directions": directions,
            "distance": self.distance * scale,
            "depth": self.depth * scale,
        }
        return RayLabels(**(values | changed))

    def check(self) -> None:
        """Look at the values (which waits for the device).

        Raises:
            ValueError: values that are not finite, directions that are not unit vectors, distances that are not
                positive, weights that are negative, or indices out of range.
        """
        for name in ("origins", "directions", "distance", "depth", "weights", "pixels"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise ValueError(f"RayLabels: {name} hold NaN or infinite values")
        off = (self.directions.norm(dim=-1) - 1).abs()
        if bool((off > 1e-4).any()):
            raise ValueError(f"RayLabels: directions are unit vectors, but one is {float(off.max()):.3g} off")
        if bool((self.distance <= 0).any()) or bool((self.weights < 0).any()):
            raise ValueError("RayLabels: distances are positive metres and weights are not negative")
        for name in ("labels", "cameras", "samples"):
            if bool((getattr(self, name) < 0).any()):
                raise ValueError(f"RayLabels: {name} are indices from 0")
        if bool(((self.frames < 0) | (self.frames >= len(self.frame_offsets))).any()):
            raise ValueError(f"RayLabels: frames are indices into {self.frame_offsets}")
