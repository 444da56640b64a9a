"""How a preset is trained: what of it every model has."""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["TrainingRecipe"]


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """A schedule for AdamW; the defaults are those of SparseOcc 1.1 (specs/sparseocc.md 2.10)."""

    epochs: int = 24
    batch_size: int = 8
    """Samples a step, over all devices."""
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    schedule: Literal["step", "cosine"] = "step"
    """"step" multiplies the rate by `decay` after each of `milestones`; "cosine" falls to `decay` times it."""
    milestones: tuple[int, ...] = (22,)
    """Epochs."""
    decay: float = 0.2
    warmup_steps: int = 500
    warmup_ratio: float = 1 / 3
    """Share of the rate at which the linear warm-up begins."""
    max_grad_norm: float = 35.0
    backbone_rate: float = 0.1
    """Factor of the backbone's learning rate."""
    flip_images: bool = True
    flip_and_turn_grid: bool = True
    """Rotation by up to 22.5 degrees and mirroring of grid and projections."""

    def loop_settings(self) -> dict[str, Any]:
        """The recipe as fields of the engine's `LoopConfig`, but for what depends on the number of samples."""
        settings = {
            "global_batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "adam_weight_decay": self.weight_decay,
            "lr_scheduler": self.schedule,
            "lr_warmup_steps": self.warmup_steps,
            "lr_warmup_start": self.warmup_ratio,
            "max_grad_norm": self.max_grad_norm,
        }
        return settings | {"lr_end" if self.schedule == "cosine" else "lr_decay": self.decay}

    def milestone_steps(self, steps: int) -> tuple[int, ...]:
        """The milestones of a run of so many steps: at the same share of it as in the recipe's epochs, each once."""
        if self.schedule != "step":
            return ()
        return tuple(dict.fromkeys(max(1, round(steps * milestone / self.epochs)) for milestone in self.milestones))
