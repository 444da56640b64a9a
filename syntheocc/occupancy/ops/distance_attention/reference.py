"""Distance attention as its definition reads."""

from collections.abc import Sequence

import torch
from torch import Tensor


def distance_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    falloff: Tensor,
    centers: Tensor,
    dropout: float,
    seeds: Sequence[int] | None,
) -> Tensor:
    """See `distance_attention`; all [B, h, Q, Q] weights exist at once, in float32 or float64."""
    dtype = query.dtype
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key, value, falloff = (tensor.to(wide) for tensor in (query, key, value, falloff))
    out = []
    for b in range(len(query)):
        distance = (centers[b, :, None] - centers[b, None]).to(wide).square().sum(-1).sqrt()
        logits = query[b] @ key[b].transpose(-1, -2) / query.shape[-1] ** 0.5 - falloff[b][..., None] * distance
        weights = logits.softmax(-1)
        if dropout:
            generator = None
            if seeds is not None:
                generator = torch.Generator(query.device).manual_seed(int(seeds[b]))
            kept = torch.rand(weights.shape, generator=generator, device=query.device) >= dropout
            weights = weights * kept / (1 - dropout)
        out.append(weights @ value[b])
    return torch.stack(out).to(dtype)
