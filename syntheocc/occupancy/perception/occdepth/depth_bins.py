"""What the bins of a depth distribution mean, in the loss and in the lifting alike (specs/occdepth.md 2.3, 2.4).

Uniform bins are as wide as each other; linear ones grow with the distance (LID, CaDDN, Reading et al., CVPR 2021). The
published network learns uniform bins and lifts them as linear ones: told 10 m, it lights voxels at 3.3 m.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.perception.view_transform import DepthBins

__all__ = ["LinearBins", "edge_places", "expected_depth", "linear_places", "loss_bins"]


@dataclass(frozen=True)
class LinearBins:
    """As many bins as `uniform` has over the same range, each wider than the one before by the first one's width.

    Bin k reaches from ``near + w k (k + 1) / 2`` to the next, ``w = 2 (far - near) / (D (D + 1))``.
    """

    uniform: DepthBins

    @property
    def number(self) -> int:
        """D."""
        return self.uniform.number

    def index(self, depth: Tensor) -> Tensor:
        """The bin of camera depths in metres, int64; -1 outside [near, far)."""
        place = linear_places(depth.double(), self.uniform)
        index = torch.where(torch.isfinite(place), place, -1.0).floor().long()
        return torch.where((index >= 0) & (index < self.number), index, -1)


def linear_places(depth: Tensor, bins: DepthBins) -> Tensor:
    """``-1/2 + 1/2 sqrt(1 + 8 (z - near) / w)``: bin k of `LinearBins` is [k, k + 1); NaN well before `near`."""
    width = 2 * (bins.far - bins.near) / (bins.number * (bins.number + 1))
    return -0.5 + 0.5 * torch.sqrt(1 + 8 * (depth - bins.near) / width)


def edge_places(depth: Tensor, bins: DepthBins, spacing: str) -> Tensor:
    """Where depths (metres) lie between the bins' edges: bin k is [k, k + 1); what is outside is 0 or D."""
    if spacing == "uniform":
        return ((depth - bins.near) / bins.step).clamp(0, bins.number)
    return linear_places(depth.clamp_min(bins.near), bins).clamp_max(bins.number)


def expected_depth(logits: Tensor, bins: DepthBins, spacing: str) -> Tensor:
    """The mean of depth distributions [..., D, h, w], each bin at its middle: float32 [..., h, w] metres."""
    edges = torch.arange(bins.number + 1, device=logits.device, dtype=torch.float32)
    if spacing == "linear":
        edges = (bins.far - bins.near) * edges * (edges + 1) / (bins.number * (bins.number + 1))
    else:
        edges = bins.step * edges
    middles = bins.near + (edges[1:] + edges[:-1]) / 2
    return (logits.float().softmax(-3) * middles[:, None, None]).sum(-3)


def loss_bins(bins: DepthBins, spacing: str) -> DepthBins | LinearBins:
    """The bins that the loss labels depths with; "mismatched" ones are uniform there."""
    return LinearBins(bins) if spacing == "linear" else bins
