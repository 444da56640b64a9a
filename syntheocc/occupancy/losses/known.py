"""Which entries a loss may learn from."""

from torch import Tensor


def known_entries(values: Tensor, labels: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """The rows of `values` [N, ...] and `labels` [N] whose label is not `ignore_index`; all of them with None.

    Choosing rows waits for the device. Who calls several losses chooses once and gives them None.
    """
    if ignore_index is None:
        return values, labels
    known = labels != ignore_index
    return values[known], labels[known]
