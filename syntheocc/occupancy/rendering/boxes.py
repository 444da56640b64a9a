"""Boxes of rays' frames, and how they move between them; all in the key ego frame. Legend: M boxes.

Specification: specs/occflownet_splattingocc.md 3.4, 3.6.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from syntheocc.occupancy.rendering.rows import Rows, similarity

__all__ = ["BOX_FACTOR", "BOX_MARGIN", "BoxMotion", "FrameBoxes"]

# What boxes grow by before points are looked for in them (OccFlowNet's `wlh_factor`, and half a voxel on each side).
BOX_FACTOR = 1.15
BOX_MARGIN = 0.4


@dataclass(eq=False)
class _Boxes(Rows):
    @classmethod
    def empty(cls, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """No boxes."""
        return cls._none(device, dtype)


@dataclass(eq=False)
class BoxMotion(_Boxes):
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

    @property
    def padded_sizes(self) -> Tensor:
        """Sizes [M, 3] in metres as points are looked for in them: 1.15 times plus 0.4 m."""
        return self.sizes * BOX_FACTOR + BOX_MARGIN

    @property
    def source2target(self) -> Tensor:
        """[M, 4, 4]: takes a point on the object at key time to where it is in the other frame; key ego frame."""
        return _product(self.target2ego, _inverse(self.source2ego))

    @property
    def target2source(self) -> Tensor:
        """[M, 4, 4]: the inverse of `source2target`; what backward warping of samples needs."""
        return _product(self.source2ego, _inverse(self.target2ego))

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
class FrameBoxes(_Boxes):
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
    linear, scale = similarity(matrix, like)
    mirror = torch.ones(3, device=like.device, dtype=like.dtype)
    mirror[1] = torch.sign(torch.linalg.det(matrix[:3, :3].double())).to(like)

    def move(pose: Tensor) -> Tensor:
        moved = pose.clone()
        moved[:, :3, :3] = (linear / scale) @ pose[:, :3, :3] * mirror
        moved[:, :3, 3] = pose[:, :3, 3] @ linear.T + matrix[:3, 3].to(pose)
        return moved

    return move, scale


def _inverse(pose: Tensor) -> Tensor:
    """Inverse of rigid poses [M, 4, 4] without a solver: these are matrices of ours, orthonormal to rounding."""
    inverse = pose.clone()
    inverse[:, :3, :3] = pose[:, :3, :3].transpose(-1, -2)
    inverse[:, :3, 3:] = -_product(inverse[:, :3, :3], pose[:, :3, 3:])
    return inverse


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Matrices times matrices in float64: autocast would make bfloat16 of the metres, and TF32 centimetres."""
    return (one.double() @ other.double()).to(one.dtype)
