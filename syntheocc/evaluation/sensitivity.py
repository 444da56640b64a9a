"""Doses of change: the rig moved or turned while the world stays, or the condition of another scene.

A condition rendered through a moved rig is the world's occupancy shifted the other way; the world can be photographed
through the moved rig too, so a changed condition has labels of its own.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig

__all__ = ["DOSES", "Dose", "motion_of", "moved_rig"]


@dataclass(frozen=True)
class Dose:
    """One change of the condition.

    Args:
        kind: "shift" moves the rig over the ground, "turn" turns it about the vertical axis, "swap" takes the
            condition of another scene.
        amount: metres, or degrees; 0 for a swap.
    """

    kind: Literal["shift", "turn", "swap"]
    amount: float = 0.0

    @property
    def name(self) -> str:
        """E.g. "shift 0.5 m"."""
        return {"shift": f"shift {self.amount:g} m", "turn": f"turn {self.amount:g} deg", "swap": "other scene"}[
            self.kind
        ]


DOSES = (
    *(Dose("shift", metres) for metres in (0.5, 1.0, 2.0, 4.0)),
    *(Dose("turn", degrees) for degrees in (2.0, 5.0, 10.0)),
    Dose("swap"),
)


def motion_of(dose: Dose, generator: torch.Generator | None = None) -> Tensor:
    """The pose of the moved rig in the old ego frame.

    Args:
        dose: a shift or a turn.
        generator: draws the direction of a shift over the ground, and which way a turn goes.

    Returns:
        float64 [4, 4] moved ego -> ego.

    Raises:
        ValueError: a swap is no motion.
    """
    if dose.kind == "swap":
        raise ValueError("another scene's condition is no motion of the rig")
    angle = 2 * math.pi * float(torch.rand((), generator=generator))
    motion = torch.eye(4, dtype=torch.float64)
    if dose.kind == "shift":
        motion[:2, 3] = dose.amount * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    else:
        yaw = math.copysign(math.radians(dose.amount), math.pi - angle)
        cos, sin = math.cos(yaw), math.sin(yaw)
        motion[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    return motion


def moved_rig(rig: CameraRig, motion: Tensor) -> CameraRig:
    """The rig after the ego has moved by `motion` [4, 4], its cameras in the old ego frame."""
    return CameraRig({name: camera.moved(motion @ camera.cam2ego) for name, camera in rig.items()})
