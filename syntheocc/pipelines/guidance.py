"""Classifier-free guidance over two conditions, the text and the MPI.

B batch of one branch (samples frames views, views fastest); C h w latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: Branches in the order in which they are stacked, outermost in the batch: (uses the text, uses the MPI).
NULL, CONDITION, TEXT = (False, False), (False, True), (True, True)


@dataclass(frozen=True)
class Guidance:
    """Weights of the text and of the MPI, and which predictions they need.

    With e(text, condition) the network's prediction and "-" the empty prompt or the all-free MPI,

        eps = e(-, -) + mpi * (e(-, mpi) - e(-, -)) + text * (e(text, mpi) - e(-, mpi)),

    which is w_null * e(-, -) + w_condition * e(-, mpi) + w_text * e(text, mpi) with weights 1 - mpi, mpi - text and
    text. A branch whose weight is zero is never computed: `mpi=1` (the default) leaves two branches, `text=mpi=1` one.
    """

    text: float = 7.5
    mpi: float = 1.0

    @property
    def weights(self) -> dict[tuple[bool, bool], float]:
        """Non-zero weight of each branch, in stacking order. They sum to one."""
        weights = {NULL: 1.0 - self.mpi, CONDITION: self.mpi - self.text, TEXT: self.text}
        return {branch: weight for branch, weight in weights.items() if weight != 0.0}

    @property
    def branches(self) -> tuple[tuple[bool, bool], ...]:
        """Branches to compute, in stacking order."""
        return tuple(self.weights)

    @property
    def needs_negative_text(self) -> bool:
        """Whether any branch sees the negative prompt."""
        return any(not text for text, _ in self.branches)

    @property
    def needs_null_condition(self) -> bool:
        """Whether any branch sees the all-free MPI."""
        return any(not mpi for _, mpi in self.branches)

    def stack(self, positive: Tensor, negative: Tensor | None, axis: int) -> Tensor:
        """Inputs of all branches, `[branches*B, ...]`; axis 0 picks by the text, axis 1 by the MPI."""
        picked = [positive if branch[axis] else negative for branch in self.branches]
        if any(tensor is None for tensor in picked):
            raise ValueError(f"guidance with text={self.text} and mpi={self.mpi} needs the negative input, got None")
        return torch.cat([tensor for tensor in picked if tensor is not None])

    def combine(self, prediction: Tensor) -> Tensor:
        """Guided prediction `[B, C, h, w]` from the stacked ones `[branches*B, C, h, w]`.

        Sums differences of neighbouring branches, as the formula does: the plain weighted sum would subtract two large
        numbers, which costs digits in half precision.
        """
        predictions = prediction.chunk(len(self.branches))
        weights = list(self.weights.values())
        result = predictions[0]
        for i in range(1, len(predictions)):
            result = result + sum(weights[i:]) * (predictions[i] - predictions[i - 1])
        return result
