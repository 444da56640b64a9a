"""Analytic solids: boxes, ellipsoids and tapered cylinders, each an affine image of a unit shape.

Unit shapes, in "shape" space: box |x|, |y|, |z| <= 1; ellipsoid |p| <= 1; cone |z| <= 1 and x^2 + y^2 <= r(z)^2 with
r(z) = 1 - taper * (z + 1) / 2 (taper 0 is a cylinder, 1 comes to a point at z = 1). Legend: P solids, N points.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["BOX", "CONE", "ELLIPSOID", "Primitives"]

BOX, ELLIPSOID, CONE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Primitives:
    """P solids in one frame.

    Args:
        kind: int64 [P], BOX, ELLIPSOID or CONE.
        shape2frame: float64 [P, 4, 4] affine (rotation, scale, translation) from shape space to the frame, metres.
        taper: float64 [P] in 0..1; only cones read it.
        label: uint8 [P] ids of WORLD_TAXONOMY.
        category: uint8 [P] indices into LIDARSEG_NAMES.
        instance: int64 [P]; 0 is no instance, else the actor's index + 1.
        material: int64 [P] indices into the scene's material table.

    Raises:
        ValueError: lengths differ.
    """

    kind: Tensor  # [P]
    shape2frame: Tensor  # [P, 4, 4]
    taper: Tensor  # [P]
    label: Tensor  # [P]
    category: Tensor  # [P]
    instance: Tensor  # [P]
    material: Tensor  # [P]

    def __post_init__(self):
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"primitives: every field needs one entry a solid, got {lengths}")

    def __len__(self) -> int:
        return len(self.kind)

    @classmethod
    def empty(cls) -> "Primitives":
        """No solids at all."""
        ids = torch.zeros(0, dtype=torch.int64)
        small = torch.zeros(0, dtype=torch.uint8)
        return cls(ids, torch.zeros(0, 4, 4, dtype=torch.float64), ids.double(), small, small, ids, ids)

    @staticmethod
    def cat(parts: Sequence["Primitives"]) -> "Primitives":
        """All solids of several sets, which must be in the same frame, in order."""
        parts = list(parts)
        if not parts:
            return Primitives.empty()
        return Primitives(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Primitives)))

    def _with(self, **changes: Tensor) -> "Primitives":
        return Primitives(*(changes.get(f.name, getattr(self, f.name)) for f in fields(self)))

    def select(self, index: Tensor) -> "Primitives":
        """The solids chosen by a bool mask [P] or by indices."""
        return Primitives(*(getattr(self, f.name)[index] for f in fields(self)))

    def transformed(self, frame2other: Tensor) -> "Primitives":
        """The same solids in another frame; frame2other is float64 [4, 4], or [P, 4, 4] with one a solid."""
        return self._with(shape2frame=frame2other.to(self.shape2frame) @ self.shape2frame)

    def with_instance(self, instance: int) -> "Primitives":
        """The same solids as parts of one instance (actor index + 1)."""
        return self._with(instance=torch.full_like(self.instance, instance))

    def to(self, device: torch.device | str) -> "Primitives":
        """A copy on a device."""
        return Primitives(*(getattr(self, f.name).to(device) for f in fields(self)))

    def contains(self, points: Tensor) -> Tensor:
        """Which points lie in which solid; surfaces belong to it.

        Args:
            points: [N, 3] metres in the frame.

        Returns:
            bool [N, P].
        """
        frame2shape = torch.linalg.inv(self.shape2frame)  # [P, 4, 4]
        points = points.to(self.shape2frame)
        local = torch.einsum("pij,nj->npi", frame2shape[:, :3, :3], points) + frame2shape[:, :3, 3]
        in_box = (local.abs() <= 1).all(-1)
        in_ellipsoid = (local**2).sum(-1) <= 1
        radius = 1 - self.taper * (local[..., 2] + 1) / 2
        in_cone = (local[..., 2].abs() <= 1) & ((local[..., :2] ** 2).sum(-1) <= radius**2)
        return torch.where(self.kind == BOX, in_box, torch.where(self.kind == ELLIPSOID, in_ellipsoid, in_cone))

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Tight axis-aligned bounds (lower, upper), each float64 [P, 3], metres in the frame."""
        axes, center = self.shape2frame[:, :3, :3], self.shape2frame[:, :3, 3]
        box = axes.abs().sum(-1)
        ellipsoid = axes.norm(dim=-1)
        # A cone is the hull of its two discs: radius 1 at z = -1, radius 1 - taper at z = 1.
        disc = axes[..., :2].norm(dim=-1)
        low_disc, high_disc = disc, disc * (1 - self.taper)[:, None]
        cone_upper = torch.maximum(low_disc - axes[..., 2], high_disc + axes[..., 2])
        cone_lower = torch.minimum(-low_disc - axes[..., 2], -high_disc + axes[..., 2])
        is_box, is_cone = (self.kind == BOX)[:, None], (self.kind == CONE)[:, None]
        upper = torch.where(is_cone, cone_upper, torch.where(is_box, box, ellipsoid))
        lower = torch.where(is_cone, cone_lower, -torch.where(is_box, box, ellipsoid))
        return center + lower, center + upper
