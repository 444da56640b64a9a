"""Rigid transforms: validation, inversion, quaternions.

A transform is a float64 4x4 matrix named ``a2b`` that takes column vectors from frame a to frame b.
"""

from typing import Any

import torch
from torch import Tensor


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
    if not torch.allclose(matrix[3], matrix.new_tensor([0, 0, 0, 1]), atol=1e-6):
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
    inverse[..., 3, :] = a2b.new_tensor([0, 0, 0, 1])
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
    quaternion = numbers(rotation_wxyz, "a rotation")
    norm = float(quaternion.norm())
    if tuple(quaternion.shape) != (4,) or not abs(norm - 1) < 1e-2:
        raise ValueError(
            f"a rotation must be a unit quaternion w, x, y, z; got {quaternion.tolist()} of norm {norm:.4g}"
        )
    w, x, y, z = (quaternion / norm).tolist()
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    shift = numbers(translation, "a translation")
    if tuple(shift.shape) != (3,) or not bool(torch.isfinite(shift).all()):
        raise ValueError(f"a translation must be three finite metres, got {shift.tolist()}")
    pose[:3, 3] = shift
    return pose


def quaternion_from_rotation(rotation: Tensor) -> Tensor:
    """The unit quaternion w, x, y, z (w >= 0) of a rotation matrix [3, 3], float64 [4]."""
    r = rotation.to(torch.float64)
    # Bar-Itzhack 2000: the quaternion is the eigenvector of K with the largest eigenvalue (stable everywhere).
    xx, xy, xz, yx, yy, yz, zx, zy, zz = r.flatten().tolist()
    k = torch.tensor(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ],
        dtype=torch.float64,
    )
    x, y, z, w = torch.linalg.eigh(k).eigenvectors[:, -1].tolist()
    quaternion = torch.tensor([w, x, y, z], dtype=torch.float64)
    return quaternion if w >= 0 else -quaternion


def rotation_z(yaw: float) -> Tensor:
    """The float64 [4, 4] turn by ``yaw`` radians about z (x towards y)."""
    pose = torch.eye(4, dtype=torch.float64)
    c, s = torch.tensor(yaw, dtype=torch.float64).cos(), torch.tensor(yaw, dtype=torch.float64).sin()
    pose[0, 0], pose[0, 1], pose[1, 0], pose[1, 1] = c, -s, s, c
    return pose
