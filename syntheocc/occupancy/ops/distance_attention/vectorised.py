"""Distance attention by torch's fused kernels, which read what the distances take off as a mask."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from syntheocc.engine.dropout import each_sample


def distance_attention_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    falloff: Tensor,
    centers: Tensor,
    dropout: float,
    seeds: Sequence[int] | None,
) -> Tensor:
    """See `distance_attention`."""
    # Not torch.cdist: by the expansion of the square it puts a voxel two centimetres away from itself, without it it
    # starts a block of threads for each pair of points on a GPU.
    x, y = centers.unbind(-1)
    distance = torch.hypot(x[:, :, None] - x[:, None], y[:, :, None] - y[:, None])  # [B, Q, Q]
    mask = -falloff.to(query.dtype)[..., None] * distance[:, None].to(query.dtype)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)

    return each_sample(attend, tuple(seeds) if seeds is not None and dropout else None, query, key, value, mask)
