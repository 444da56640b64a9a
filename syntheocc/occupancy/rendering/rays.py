"""What a lidar tells about the images, as rays: labels of 2D supervision, and how boxes moved between their frames.

All coordinates are in the **key ego frame** (ego at the key frame's lidar time), whichever frame a ray was seen in;
after an augmentation of the grid they are in the augmented one (`RayLabels.transformed`).

Legend: R rays, M boxes. Specification: specs/occflownet_splattingocc.md 1.4, 3.2, 3.6.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

__all__ = ["BOX_FACTOR", "BOX_MARGIN", "BoxMotion", "FrameBoxes", "RayLabels"]

# What boxes grow by before points are looked for in them (OccFlowNet's `wlh_factor`, and half a voxel on each side).
BOX_FACTOR = 1.15
BOX_MARGIN = 0.4


@dataclass(eq=False)
class _Rows:
    """Tensors with one row for each of something, on one device; shapes are checked, values by `check`."""

    # Field -> shape of one row. Those in _INTEGERS are int64, all others of one floating type.
    _SHAPES: ClassVar[dict[str, tuple[int, ...]]] = {}
    _INTEGERS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        name = type(self).__name__
        first = getattr(self, next(iter(self._SHAPES)))
        number, device, dtype = first.shape[:1], first.device, first.dtype
        if not dtype.is_floating_point:
            raise ValueError(f"{name}: coordinates must be of a floating type, got {dtype}")
        for field_name, shape in self._SHAPES.items():
            value = getattr(self, field_name)
            wanted = torch.int64 if field_name in self._INTEGERS else dtype
            if tuple(value.shape) != (*number, *shape) or value.dtype != wanted or value.device != device:
                raise ValueError(
                    f"{name}: {field_name} must be {wanted} {[*number, *shape]} on {device}, got {value.dtype} "
                    f"{list(value.shape)} on {value.device}"
                )

    def __len__(self) -> int:
        return len(getattr(self, next(iter(self._SHAPES))))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return getattr(self, next(iter(self._SHAPES))).device

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: change(v) if isinstance(v, Tensor) else v for k, v in values.items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """On another device, and with coordinates of another floating type; integers stay int64."""

        def move(tensor: Tensor) -> Tensor:
            kind = dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype
            return tensor.to(device=device or tensor.device, dtype=kind, non_blocking=True)

        return self.map(move)

    def pin_memory(self) -> Self:
        """In page-locked memory."""
        return self.map(lambda tensor: tensor.pin_memory())

    def select(self, index: Tensor) -> Self:
        """The rows of a bool mask or of int64 indices, on the same device."""
        if index.ndim != 1 or index.dtype not in (torch.bool, torch.int64):
            raise ValueError(f"rows are chosen by a bool mask or int64 indices, got {index.dtype} {list(index.shape)}")
        if index.dtype == torch.bool:
            if len(index) != len(self):
                raise ValueError(f"a mask of {len(index)} for {len(self)} rows")
            index = index.nonzero()[:, 0]
        return self.map(lambda tensor: tensor.index_select(0, index))

    def of_sample(self, sample: int) -> Self:
        """The rows of one sample of the batch."""
        return self.select(self._samples() == sample)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All rows of several, as they are.

        Raises:
            ValueError: no parts, parts on several devices, or with different settings (`frame_offsets`).
        """
        if not parts:
            raise ValueError(f"no {cls.__name__} to put together")
        values: dict[str, Any] = {}
        for f in fields(cls):
            column = [getattr(part, f.name) for part in parts]
            if f.name not in cls._SHAPES:
                if any(value != column[0] for value in column):
                    raise ValueError(f"{cls.__name__} with different {f.name} do not go together: {column}")
                values[f.name] = column[0]
                continue
            if any(value.device != column[0].device for value in column):
                raise ValueError(f"{cls.__name__} on several devices: {sorted({str(v.device) for v in column})}")
            values[f.name] = torch.cat(column)
        return cls(**values)

    @classmethod
    def collate(cls, parts: Sequence[Self]) -> Self:
        """A batch: part b holds one sample and gets b as sample index."""
        return cls.cat([part._numbered(index) for index, part in enumerate(parts)])

    def _numbered(self, sample: int) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**(values | {"samples": torch.full_like(self._samples(), sample)}))

    def _samples(self) -> Tensor:
        return self.samples  # type: ignore[attr-defined]


@dataclass(eq=False)
class RayLabels(_Rows):
    """Rays from cameras (or from the lidar) to lidar points, with what is there.

    Args:
        origins: [R, 3] metres, key ego frame.
        directions: [R, 3] unit vectors, key ego frame.
        distance: [R] metres from the origin to the point, along the ray.
        depth: [R] metres, z of the point in the camera that saw it.
        labels: int64 [R] class of the point, free excluded.
        weights: [R] of the loss or the sampling (`RayBuilder` says which), not negative.
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
        values: dict[str, Any] = {
            name: torch.zeros(0, *shape, dtype=torch.int64 if name in cls._INTEGERS else dtype, device=device)
            for name, shape in cls._SHAPES.items()
        }
        return cls(**values, frame_offsets=frame_offsets)

    @property
    def points(self) -> Tensor:
        """The lidar points [R, 3] metres, where they were when they were seen, in the key ego frame."""
        return self.origins + self.directions * self.distance[:, None]

    @property
    def offsets(self) -> Tensor:
        """int64 [R]: the frame offset of each ray, e.g. -1."""
        return torch.tensor(self.frame_offsets, dtype=torch.int64, device=self.device)[self.frames]

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
        linear, scale = _similarity(matrix, self.origins)
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


@dataclass(eq=False)
class BoxMotion(_Rows):
    """Where objects known at key time stand at the time of another frame, both in the key ego frame.

    Between the two an object moved by `source2target`; the car's own motion is taken out. Each box has one row for
    every other frame in which it was found again (the same instance token); box frame: origin at the centre, x along
    the length, z up.

    Args:
        source2ego: [M, 4, 4] the box's pose at the key time.
        target2ego: [M, 4, 4] its pose at the other frame's time.
        sizes: [M, 3] length, width, height in metres, at the key time, not padded.
        labels: int64 [M] class.
        frames: int64 [M] index into the rays' `frame_offsets`.
        samples: int64 [M] index in the batch.

    Raises:
        ValueError: shapes, types or devices that do not belong together.
    """

    source2ego: Tensor
    target2ego: Tensor
    sizes: Tensor
    labels: Tensor
    frames: Tensor
    samples: Tensor

    _SHAPES = {
        "source2ego": (4, 4),
        "target2ego": (4, 4),
        "sizes": (3,),
        "labels": (),
        "frames": (),
        "samples": (),
    }
    _INTEGERS = ("labels", "frames", "samples")

    @classmethod
    def empty(cls, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> "BoxMotion":
        """No boxes."""
        values: dict[str, Any] = {
            name: torch.zeros(0, *shape, dtype=torch.int64 if name in cls._INTEGERS else dtype, device=device)
            for name, shape in cls._SHAPES.items()
        }
        return cls(**values)

    @property
    def padded_sizes(self) -> Tensor:
        """Sizes [M, 3] in metres as points are looked for in them: 1.15 times plus 0.4 m."""
        return self.sizes * BOX_FACTOR + BOX_MARGIN

    @property
    def source2target(self) -> Tensor:
        """[M, 4, 4]: takes a point on the object at key time to where it is in the other frame; key ego frame."""
        return self.target2ego @ _inverse(self.source2ego)

    @property
    def target2source(self) -> Tensor:
        """[M, 4, 4]: the inverse of `source2target`; what backward warping of samples needs."""
        return self.source2ego @ _inverse(self.target2ego)

    def transformed(self, matrix: Tensor) -> "BoxMotion":
        """The boxes after an augmentation of the grid (see `RayLabels.transformed`).

        In a mirrored world a box's own y axis is turned round, so that its pose stays a rotation; the box is the same.
        """
        move, scale = _box_change(matrix, self.sizes)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {
            "source2ego": move(self.source2ego),
            "target2ego": move(self.target2ego),
            "sizes": self.sizes * scale,
        }
        return BoxMotion(**(values | changed))

    def check(self) -> None:
        """Look at the values (which waits for the device).

        Raises:
            ValueError: poses that are not rigid or sizes that are not positive.
        """
        for name in ("source2ego", "target2ego"):
            _check_boxes(getattr(self, name), self.sizes, f"BoxMotion: {name}")


@dataclass(eq=False)
class FrameBoxes(_Rows):
    """Boxes at the time of one frame each, in the key ego frame: those that have no counterpart in another frame.

    Args:
        box2ego: [M, 4, 4].
        sizes: [M, 3] length, width, height in metres.
        labels: int64 [M] class.
        frames: int64 [M] index into the rays' `frame_offsets`: the frame that has the box, or that lacks it.
        samples: int64 [M] index in the batch.

    Raises:
        ValueError: shapes, types or devices that do not belong together.
    """

    box2ego: Tensor
    sizes: Tensor
    labels: Tensor
    frames: Tensor
    samples: Tensor

    _SHAPES = {"box2ego": (4, 4), "sizes": (3,), "labels": (), "frames": (), "samples": ()}
    _INTEGERS = ("labels", "frames", "samples")

    def transformed(self, matrix: Tensor) -> "FrameBoxes":
        """The boxes after an augmentation of the grid (see `BoxMotion.transformed`)."""
        move, scale = _box_change(matrix, self.sizes)
        return FrameBoxes(move(self.box2ego), self.sizes * scale, self.labels, self.frames, self.samples)

    def check(self) -> None:
        """Look at the values; ValueError for poses that are not rigid or sizes that are not positive."""
        _check_boxes(self.box2ego, self.sizes, "FrameBoxes: box2ego")


def _check_boxes(poses: Tensor, sizes: Tensor, what: str) -> None:
    rotation = poses[:, :3, :3]
    off = (rotation @ rotation.transpose(-1, -2) - torch.eye(3, device=poses.device)).abs()
    if not bool((off < 1e-3).all()) or not bool(torch.isfinite(poses).all()):
        raise ValueError(f"{what} holds a pose that is not rigid")
    if not bool((sizes > 0).all()):
        raise ValueError(f"{what}: sizes are positive metres")


def _box_change(matrix: Tensor, like: Tensor) -> tuple[Callable[[Tensor], Tensor], float]:
    """What an augmentation makes of box poses, and its scale."""
    linear, scale = _similarity(matrix, like)
    mirror = torch.ones(3, device=like.device, dtype=like.dtype)
    mirror[1] = torch.sign(torch.linalg.det(matrix[:3, :3].double())).to(like)

    def move(pose: Tensor) -> Tensor:
        moved = pose.clone()
        moved[:, :3, :3] = (linear / scale) @ pose[:, :3, :3] * mirror
        moved[:, :3, 3] = pose[:, :3, 3] @ linear.T + matrix[:3, 3].to(pose)
        return moved

    return move, scale


def _similarity(matrix: Tensor, like: Tensor) -> tuple[Tensor, float]:
    """The linear part [3, 3] of a similarity and its scale."""
    if tuple(matrix.shape) != (4, 4):
        raise ValueError(f"an augmentation is a 4x4 matrix, got {list(matrix.shape)}")
    linear = matrix[:3, :3].double().cpu()
    scale = float(linear.norm(dim=0)[0])
    if not scale > 0 or float((linear.T @ linear / scale**2 - torch.eye(3, dtype=torch.float64)).abs().max()) > 1e-6:
        raise ValueError(f"an augmentation turns, mirrors and scales all axes alike, got {matrix.tolist()}")
    return linear.to(like), scale


def _inverse(pose: Tensor) -> Tensor:
    """Inverse of rigid poses [M, 4, 4] without a solver: these are matrices of ours, orthonormal to rounding."""
    inverse = pose.clone()
    inverse[:, :3, :3] = pose[:, :3, :3].transpose(-1, -2)
    inverse[:, :3, 3] = -(inverse[:, :3, :3] @ pose[:, :3, 3:])[..., 0]
    return inverse
