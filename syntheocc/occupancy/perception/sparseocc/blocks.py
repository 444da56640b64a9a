"""Building blocks of both decoders (specs/sparseocc.md 2.5).

Legend: B samples, Q queries, D channels of a query, G groups, c = D / G channels of a group, I sampled points,
O mixed points, h heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from syntheocc.engine.dropout import Seeds, dropout, each_sample, fold
from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.distance_attention import distance_attention


class PositionEncoder(nn.Sequential):
    """Where a voxel lies, as channels: Linear-LN-ReLU twice on its corner, normalised to [0, 1] over the grid."""

    def __init__(self, dims: int):
        super().__init__(
            nn.Linear(3, dims), nn.LayerNorm(dims), nn.ReLU(),
            nn.Linear(dims, dims), nn.LayerNorm(dims), nn.ReLU(),
        )  # fmt: skip

    def of_corners(self, corners: Tensor, spec: GridSpec) -> Tensor:
        """Encode corners [B, Q, 3] (full-resolution voxel indices): [B, Q, D]."""
        share = corners / constant(spec.shape, corners.device)
        return self(share.to(next(self.parameters()).dtype))


class SelfAttention(nn.Module):
    """Multi-head attention among queries, residual included.

    Args:
        dims: channels D.
        num_heads: heads h.
        dropout: of the attention weights.
        scale_adaptive: subtract ``tau_h(q) * |xy_q - xy_k|`` (metres) from the logits, so that each query chooses how
            far it looks (SparseBEV, eq. 3).
    """

    def __init__(self, dims: int, num_heads: int, dropout: float = 0.0, scale_adaptive: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dims, 3 * dims)
        self.out = nn.Linear(dims, dims)
        self.tau = nn.Linear(dims, num_heads) if scale_adaptive else None
        # torch's own MultiheadAttention starts this way.
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        if self.tau is not None:
            nn.init.zeros_(self.tau.weight)
            nn.init.uniform_(self.tau.bias, 0.0, 2.0)

    def forward(
        self,
        queries: Tensor,  # [B, Q, D]
        positions: Tensor | None = None,  # [B, Q, D]
        centers_xy: Tensor | None = None,  # [B, Q, 2]
        seeds: Seeds = None,
    ) -> Tensor:
        """Attend.

        Args:
            queries: the values; with `positions` added, also queries and keys.
            positions: learnt positions, if any.
            centers_xy: metres; needed by scale-adaptive attention.
            seeds: of the dropout while training, one a sample; None draws from torch's own state.

        Returns:
            [B, Q, D], the input added.
        """
        batch, length, dims = queries.shape
        if positions is None:
            query, key, value = self.qkv(queries).chunk(3, -1)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            placed = functional.linear(queries + positions, weight[: 2 * dims], bias[: 2 * dims])
            query, key = placed.chunk(2, -1)
            value = functional.linear(queries, weight[2 * dims :], bias[2 * dims :])
        query, key, value = (x.reshape(batch, length, self.num_heads, -1).transpose(1, 2) for x in (query, key, value))
        share = self.dropout if self.training else 0.0
        seeds = seeds if share else None
        if self.tau is None:

            def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                return functional.scaled_dot_product_attention(query, key, value, dropout_p=share)

            attended = each_sample(attend, seeds, query, key, value)
        else:
            assert centers_xy is not None, "scale-adaptive attention needs the queries' positions"
            tau = self.tau(queries).transpose(1, 2)  # [B, h, Q]
            attended = distance_attention(query, key, value, tau, centers_xy, share, seeds)
        return queries + self.out(attended.transpose(1, 2).reshape(batch, length, dims))


class AdaptiveMixing(nn.Module):
    """Mix sampled features over channels and points by matrices that each query makes (SparseBEV, section 3.4).

    Args:
        dims: channels D of query and output.
        in_points: sampled points I of each group.
        out_points: mixed points O.
        num_groups: groups G.
    """

    def __init__(self, dims: int, in_points: int, out_points: int, num_groups: int):
        super().__init__()
        self.in_points, self.out_points, self.num_groups = in_points, out_points, num_groups
        self.channels = dims // num_groups
        numbers = self.channels**2 + in_points * out_points
        self.parameter_generator = nn.Linear(dims, num_groups * numbers)
        self.out_proj = nn.Linear(num_groups * out_points * self.channels, dims)
        nn.init.zeros_(self.parameter_generator.weight)

    def forward(
        self,
        sampled: Tensor,  # [B, Q, G, I, c]
        queries: Tensor,  # [B, Q, D]
    ) -> Tensor:
        """Return the queries [B, Q, D] with what they made of their samples added."""
        batch, length, groups, points, channels = sampled.shape
        made = self.parameter_generator(queries).view(batch * length, groups, -1)
        over_channels, over_points = made.split([channels**2, points * self.out_points], -1)
        mixed = sampled.reshape(batch * length, groups, points, channels).to(made.dtype)
        mixed = _norm_relu(mixed @ over_channels.view(-1, groups, channels, channels))
        mixed = _norm_relu(over_points.view(-1, groups, self.out_points, points) @ mixed)
        return queries + self.out_proj(mixed.view(batch, length, -1))


def _norm_relu(x: Tensor) -> Tensor:
    """Normalise each matrix [..., rows, columns] as a whole, without learnt scale, then ReLU."""
    # Autocast would keep both sides in float32: half a gigabyte each in the last stage, for statistics that the kernel
    # takes in float32 anyway.
    with torch.autocast(x.device.type, enabled=False):
        return functional.layer_norm(x, x.shape[-2:]).relu_()


class FeedForward(nn.Module):
    """Two linear layers with ReLU and dropout, residual included."""

    def __init__(self, dims: int, hidden: int, dropout: float):
        super().__init__()
        self.up = nn.Linear(dims, hidden)
        self.down = nn.Linear(hidden, dims)
        self.dropout = dropout

    def forward(
        self,
        x: Tensor,  # [B, ..., D]
        seeds: Seeds = None,
    ) -> Tensor:
        """[B, ..., D] to [B, ..., D]; `seeds` are the dropout's, one a sample (None: torch's own state)."""
        hidden = dropout(self.up(x).relu(), self.dropout, self.training, fold(seeds, 0))
        return x + dropout(self.down(hidden), self.dropout, self.training, fold(seeds, 1))
