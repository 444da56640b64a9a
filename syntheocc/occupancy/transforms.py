"""Rigid transforms: validation, inversion, quaternions.

A transform is a float64 4x4 matrix named ``a2b`` that takes column vectors from frame a to frame b.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant


def numbers(values: Any, name: str) -> Tensor:
    """A float64 tensor on the CPU of anything that holds numbers; ValueError that calls it ``name`` otherwise."""
    try:
        return torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a matrix or a list of numbers, got {values!r}") from error


def rigid_transform(matrix: Any, name: str) -> Tensor:
    """A checked float64 [4, 4] rigid transform on the CPU.

    Args:
        matrix: anything ``torch.as_tensor`` takes, [4, 4].
        name: what the error messages call it, e.g. ``"cam2ego of CAM_FRONT"``.

    Raises:
        ValueError: no numbers, wrong shape, NaN, a last row other than 0 0 0 1, or a rotation part that is none.
    """
    matrix = numbers(matrix, name)
    if tuple(matrix.shape) != (4, 4):
        raise ValueError(f"{name} must be a 4x4 matrix, got shape {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name} holds NaN or infinite values: {matrix.tolist()}")
    if not torch.allclose(matrix[3], constant([0, 0, 0, 1], matrix), atol=1e-6):
        raise ValueError(f"{name} must end in the row 0 0 0 1 (column-vector convention), got {matrix[3].tolist()}")
    rotation = matrix[:3, :3]
    # Published poses are rounded to float32; 1e-3 lets them through and still catches a scale or a shear.
    off = float((rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max())
    if off > 1e-3 or float(torch.linalg.det(rotation)) < 0:
        raise ValueError(
            f"{name} is not a rigid transform: its rotation part is off orthonormal by {off:.3g} "
            f"(determinant {float(torch.linalg.det(rotation)):.3g}); it is not invertible as a pose"
        )
    return matrix


def invert_rigid(a2b: Tensor) -> Tensor:
    """Inverse of rigid transforms [..., 4, 4]: ``b2a``."""
    # Not by transposing: published rotations are rounded, and 1e-3 off orthonormal is 5 cm at 50 m.
    inverse = torch.linalg.inv(a2b)
    inverse[..., 3, :] = constant([0, 0, 0, 1], a2b)
    return inverse


def transform_points(a2b: Tensor, points: Tensor) -> Tensor:
    """Takes points [..., N, 3] from frame a to frame b with transforms [..., 4, 4]."""
    return points @ a2b[..., :3, :3].transpose(-1, -2) + a2b[..., None, :3, 3]


def pose_from_quaternion(translation: Any, rotation_wxyz: Any) -> Tensor:
    """The float64 [4, 4] transform of a translation (metres) and a quaternion in the order w, x, y, z.

    Raises:
        ValueError: the quaternion's norm is not 1 to within 1e-2 (normalised before use), a value is not finite, or
            either has a wrong shape.
    """
    quaternion, shift = numbers(rotation_wxyz, "a rotation"), numbers(translation, "a translation")
    if tuple(quaternion.shape) != (4,):
        raise ValueError(f"a rotation must be a unit quaternion w, x, y, z; got {quaternion.tolist()}")
    if tuple(shift.shape) != (3,):
        raise ValueError(f"a translation must be three finite metres, got {shift.tolist()}")
    return torch.from_numpy(poses_from_quaternions(shift.numpy()[None], quaternion.numpy()[None])[0])


def poses_from_quaternions(
    translations: np.ndarray, rotations_wxyz: np.ndarray, names: Sequence[str] | None = None
) -> np.ndarray:
    """`pose_from_quaternion` of many at once, in numpy.

    Args:
        translations: float64 [N, 3] metres.
        rotations_wxyz: float64 [N, 4], w first.
        names: what the error calls each of them.

    Returns:
        float64 [N, 4, 4].

    Raises:
        ValueError: as for a single one, naming the first that is wrong.
    """
    norms = np.linalg.norm(rotations_wxyz, axis=1)
    # `not <` also catches NaN.
    wrong = np.flatnonzero(~(np.abs(norms - 1) < 1e-2) | ~np.isfinite(translations).all(1))
    if wrong.size:
        i = int(wrong[0])
        about = f"{names[i]}: " if names else ""
        if abs(norms[i] - 1) < 1e-2:
            raise ValueError(f"{about}a translation must be three finite metres, got {translations[i].tolist()}")
        raise ValueError(
            f"{about}a rotation must be a unit quaternion w, x, y, z; got {rotations_wxyz[i].tolist()} of norm "
            f"{norms[i]:.4g}"
        )
    w, x, y, z = (rotations_wxyz / norms[:, None]).T
    poses = np.zeros((len(norms), 4, 4))
    poses[:, 0, 0], poses[:, 0, 1], poses[:, 0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)
    poses[:, 1, 0], poses[:, 1, 1], poses[:, 1, 2] = 2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)
    poses[:, 2, 0], poses[:, 2, 1], poses[:, 2, 2] = 2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)
    poses[:, :3, 3] = translations
    poses[:, 3, 3] = 1
    return poses


def quaternion_from_rotation(rotation: Tensor) -> Tensor:
    """The unit quaternion w, x, y, z (w >= 0) of a rotation matrix [3, 3], float64 [4]."""
    return torch.from_numpy(quaternions_from_rotations(rotation.to(torch.float64).cpu().numpy()[None])[0])


def quaternions_from_rotations(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions w, x, y, z (w >= 0) of rotation matrices float64 [N, 3, 3], float64 [N, 4]."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = rotations.reshape(-1, 9).T
    # Bar-Itzhack 2000: the quaternion is the eigenvector of K with the largest eigenvalue (stable everywhere).
    k = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    ).transpose(2, 0, 1)
    quaternions = np.linalg.eigh(k).eigenvectors[:, [3, 0, 1, 2], 3]
    return np.where(quaternions[:, :1] >= 0, quaternions, -quaternions)


def rotation_z(yaw: float) -> Tensor:
    """The float64 [4, 4] turn by ``yaw`` radians about z (x towards y)."""
    pose = torch.eye(4, dtype=torch.float64)
    c, s = torch.tensor(yaw, dtype=torch.float64).cos(), torch.tensor(yaw, dtype=torch.float64).sin()
    pose[0, 0], pose[0, 1], pose[1, 0], pose[1, 1] = c, -s, s, c
    return pose


def slab_crossings(start: Tensor, way: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Where lines come into and leave the ranges low..high of each axis (slab method).

    A line is in the box from the largest of the first to the smallest of the second, or never where that is before.

    Args:
        start: [..., 3] where t is 0.
        way: [..., 3]; a point of a line is ``start + t way``.
        low: [..., 3] or [3].
        high: the same.

    Returns:
        t of both, [..., 3].
    """
    # A line along a face stays between the planes or never is: so short a step reaches either in no time.
    way = torch.where(way.abs() < 1e-12, 1e-12, way)
    one, other = (low - start) / way, (high - start) / way
    return torch.minimum(one, other), torch.maximum(one, other)
