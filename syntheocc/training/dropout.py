"""Which samples are trained without their text or without their MPI, for guidance's null branches."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ConditionDropout:
    """Shares of the samples that lose a condition, drawn independently of each other for every sample of every step.

    A dropped text is the empty prompt, a dropped MPI is all free, as the pipeline's null branches have it. All views
    and frames of a sample lose it together.

    Args:
        text: share of samples without text.
        mpi: share of samples without MPI.

    Raises:
        ValueError: a share outside 0..1.
    """

    text: float = 0.1
    mpi: float = 0.1

    def __post_init__(self):
        for name in ("text", "mpi"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"dropout of {name} must lie in 0..1, got {getattr(self, name)}")

    def draw(self, generator: torch.Generator) -> tuple[bool, bool]:
        """(drop the text, drop the MPI) of one sample; takes two numbers whatever the shares are."""
        text, mpi = torch.rand(2, generator=generator).tolist()
        return text < self.text, mpi < self.mpi
