"""How the models that are taught by rendering are trained: schedule, augmentation, and which rays."""

from dataclasses import dataclass
from typing import Any, Literal

from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.recipes import TrainingRecipe

__all__ = ["RenderRecipe"]


@dataclass(frozen=True, kw_only=True)
class RenderRecipe(TrainingRecipe):
    """The defaults are OccFlowNet's and RenderOcc's (specs/occflownet_splattingocc.md 1.5, 5.1)."""

    rays: RayConfig
    """Which lidar points teach."""
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 1e-4
    schedule: Literal["step", "cosine", "constant_with_warmup"] = "constant_with_warmup"  # type: ignore[assignment]
    milestones: tuple[int, ...] = ()
    warmup_steps: int = 200
    warmup_ratio: float = 1e-3
    max_grad_norm: float = 5.0
    backbone_rate: float = 1.0
    image_scales: tuple[float, float] = (0.82 / 0.88, 0.99 / 0.88)
    """Range of the training scale in units of the test scale."""
    max_rotation_deg: float = 5.4
    """Largest turn of an image."""

    def loop_settings(self) -> dict[str, Any]:
        """As every recipe's; a constant rate has nothing that decays."""
        settings = super().loop_settings()
        if self.schedule == "constant_with_warmup":
            del settings["lr_decay"]
        return settings
