"""Cross-view attention inside diffusers' transformer block, and attention processors that honour its back-ends.

Every BasicTransformerBlock of the UNet gains, between its text cross-attention and its feed-forward,
`norm4` -> `attn4` (this view asks, a neighbour view answers) -> `connector` (zero at first) -> residual
(SyntheOcc, arXiv 2410.00337, and the names of its released state dict). For video the same layers once more over the
previous and next frame: `norm5`, `attn5`, `connector_temporal`.

Legend: N = S*F*V batch (views fastest), L latent pixels, C channels, H heads, D channels a head, K neighbours.
"""

from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in the module that a saved class names)
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from syntheocc.models.neighbors import NeighborLinks, view_links
from syntheocc.models.ops.wide_copy import take

NEW_LAYERS = ("norm4", "attn4", "connector")
NEW_LAYERS_VIDEO = ("norm5", "attn5", "connector_temporal")


class DispatchAttnProcessor(AttnProcessor2_0):
    """AttnProcessor2_0 through diffusers' dispatcher, so that `set_attention_backend` takes effect on attn1 and attn2.

    The stock processor calls SDPA directly and ignores the back-end that was set, without a word. With the default
    back-end ("native") the numbers are the same bit for bit. Query, key and value stay views [N, L, H, D] of the
    projections' outputs: nothing is copied.
    """

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [N, L, C]
        encoder_hidden_states: Tensor | None = None,  # [N, T, C_text]
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Return [N, L, C]. Layouts that a transformer block never has go to the stock processor."""
        plain = (
            hidden_states.ndim == 3
            and attn.spatial_norm is None
            and attn.group_norm is None
            and attn.norm_q is None
            and attn.norm_k is None
            and not attn.norm_cross
            and not attn.residual_connection
            and attn.rescale_output_factor == 1
        )
        if not plain:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], context.shape[0])
            attention_mask = attention_mask.unflatten(0, (-1, attn.heads))  # [N, H, 1, T]
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1))
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        mixed = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[1](attn.to_out[0](mixed.flatten(2)))


def attend(attention: Attention, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """``attention(hidden_states, **kwargs)`` without asking which arguments its processor takes.

    diffusers inspects the processor's signature at every call, which takes the CPU longer than the launches do.
    """
    hooked = attention._forward_hooks or attention._forward_pre_hooks or "forward" in vars(attention)
    plain = type(attention) is Attention and type(attention.processor) is DispatchAttnProcessor and not hooked
    if not plain or kwargs.keys() - {"encoder_hidden_states", "attention_mask"}:
        return attention(hidden_states, **kwargs)
    return attention.processor(attention, hidden_states, **kwargs)


class NeighborAttention(nn.Module):
    """Attention of every batch element to its neighbours: one softmax per neighbour, the results summed ("add").

    Parameters and their names are those of diffusers' Attention (to_q, to_k, to_v without bias, to_out.0 with), but
    it is not one: `set_attn_processor`, `fuse_qkv_projections`, attention slicing and IP-Adapters, all of which know
    only self- and text attention, pass it by.

    The original projects every (view, neighbour) pair and adds the two outputs, so to_out's bias counts once per
    neighbour. Here queries, keys and values are projected once per view and to_out runs once, on the mean over the
    neighbours; multiplied by their number this is the same number, bias included, whatever wraps the linear layer
    (LoRA, float8 storage, offloading). Keys and values are gathered per neighbour, K calls of batch N: one call of
    batch K*N would copy the queries K times too and computes the same number of tiles.

    Args:
        dim: C, channels in and out.
        heads: H.
        head_dim: D.
        dropout: after the output projection.

    """

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float = 0.0):
        super().__init__()
        inner_dim = heads * head_dim
        self.heads = heads
        self.attention_backend: AttentionBackendName | None = None
        self.to_q = nn.Linear(dim, inner_dim, bias=False)
        self.to_k = nn.Linear(dim, inner_dim, bias=False)
        self.to_v = nn.Linear(dim, inner_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, dim), nn.Dropout(dropout)])

    def forward(self, hidden_states: Tensor, links: NeighborLinks) -> Tensor:
        """Attend to the neighbours.

        Args:
            hidden_states: [N, L, C].
            links: which element attends to which; an element without neighbours gets zeros.

        Returns:
            [N, L, C], the sum over the neighbours.

        """
        if links.num_neighbors == 0:
            return torch.zeros_like(hidden_states)
        query, key, value = (
            project(hidden_states).unflatten(-1, (self.heads, -1)) for project in (self.to_q, self.to_k, self.to_v)
        )
        answers = []
        for k, neighbor in enumerate(links.neighbor.unbind(0)):
            back = None if links.inverse is None else links.inverse[k]
            answer = dispatch_attention_fn(
                query, take(key, neighbor, back), take(value, neighbor, back), backend=self.attention_backend
            )
            if links.weight is not None:
                answer = answer * links.weight[k].to(answer.dtype)[:, None, None, None]
            answers.append(answer)
        mean = answers[0]
        for answer in answers[1:]:
            mean = mean + answer
        if links.weight is None and links.num_neighbors > 1:
            mean = mean / links.num_neighbors
        out = self.to_out[1](self.to_out[0](mean.flatten(2)))
        if links.degree is not None:
            return out * links.degree.to(out.dtype)[:, None, None]
        return out * links.num_neighbors if links.num_neighbors > 1 else out

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Any = None) -> None:
        """Take part in `enable_xformers_memory_efficient_attention()`, which finds modules by this method's name."""
        if valid and attention_op is not None:
            raise ValueError(f"cross-view attention lets xformers choose its operator; got {attention_op=}")
        self.attention_backend = AttentionBackendName.XFORMERS if valid else None


class MultiviewTransformerBlock(BasicTransformerBlock):
    """BasicTransformerBlock with cross-view attention between text attention and feed-forward.

    Made from an existing block by `install`: the class is changed in place and layers are added, so that none of
    diffusers' code for building a UNet is copied. `cross_attention_kwargs` carries "neighbors" (int64 [V, K] or
    [S*F, V, K], or NeighborLinks) and, for video, "frame_neighbors" (NeighborLinks).
    """

    @classmethod
    def install(cls, block: BasicTransformerBlock, video: bool = False) -> None:
        """Turn `block` into a MultiviewTransformerBlock in place; its output stays the same until it is trained.

        Raises:
            ValueError: the block is not the layer-norm kind that Stable Diffusion's UNets are made of.

        """
        if block.norm_type != "layer_norm" or block.pos_embed is not None or hasattr(block, "fuser"):
            raise ValueError(
                f"cross-view attention needs plain layer_norm transformer blocks (SD 1.x, 2.x, XL); got norm_type "
                f"{block.norm_type!r}, positional embedding {block.pos_embed}, gated: {hasattr(block, 'fuser')}"
            )
        block.__class__ = cls
        block.norm4, block.attn4, block.connector = cls._neighbor_layers(block)
        block.attn5 = None
        if video:
            block.norm5, block.attn5, block.connector_temporal = cls._neighbor_layers(block)

    @staticmethod
    def _neighbor_layers(block: BasicTransformerBlock) -> tuple[nn.LayerNorm, NeighborAttention, nn.Linear]:
        heads = block.attn1.heads
        attention = NeighborAttention(block.dim, heads, block.attn1.inner_dim // heads, dropout=block.dropout)
        connector = nn.Linear(block.dim, block.dim)
        nn.init.zeros_(connector.weight)
        nn.init.zeros_(connector.bias)
        return nn.LayerNorm(block.dim, eps=1e-5), attention, connector

    def forward(
        self,
        hidden_states: Tensor,  # [N, L, C]
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,  # [N, T, C_text]
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Self-attention, text attention, cross-view attention, (cross-frame attention,) feed-forward; [N, L, C]."""
        attention_kwargs = dict(cross_attention_kwargs or {})
        neighbors = attention_kwargs.pop("neighbors", None)
        frame_neighbors = attention_kwargs.pop("frame_neighbors", None)
        if neighbors is None:
            raise ValueError(
                'a multi-view block needs cross_attention_kwargs={"neighbors": LongTensor [V, K]} (-1 padding); '
                "CameraRig.neighbors() makes it, and a single camera passes an empty [1, 0]"
            )
        if not isinstance(neighbors, NeighborLinks):
            neighbors = view_links(neighbors, hidden_states.shape[0], hidden_states.device)

        hidden_states, normed = self.add_norm(hidden_states, None, self.norm1)
        change = attend(
            self.attn1,
            normed,
            encoder_hidden_states=encoder_hidden_states if self.only_cross_attention else None,
            attention_mask=attention_mask,
            **attention_kwargs,
        )
        if self.attn2 is not None:
            hidden_states, normed = self.add_norm(change, hidden_states, self.norm2)
            change = attend(
                self.attn2,
                normed,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                **attention_kwargs,
            )
        hidden_states, normed = self.add_norm(change, hidden_states, self.norm4)
        change = self.connector(self.attn4(normed, neighbors))
        if self.attn5 is not None and frame_neighbors is not None:
            hidden_states, normed = self.add_norm(change, hidden_states, self.norm5)
            change = self.connector_temporal(self.attn5(normed, frame_neighbors))
        hidden_states, normed = self.add_norm(change, hidden_states, self.norm3)
        return hidden_states + self.ff(normed)

    def add_norm(self, change: Tensor, residual: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the residual sum and the normed sum; a subclass may compute both in one pass."""
        total = change if residual is None else residual + change
        return total, norm(total)


def neighbor_attention_reference(attention: NeighborAttention, hidden_states: Tensor, neighbors: Tensor) -> Tensor:
    """Cross-view attention as the original does it: loop over samples, views and neighbours, project every pair.

    Slow and obvious; for tests. Weights come from `attention`, the arithmetic is written out here.

    Args:
        attention: whose weights to use.
        hidden_states: [S*V, L, C].
        neighbors: int64 [V, K] or [S, V, K], -1 padding.

    Returns:
        [S*V, L, C].

    """
    num_views = neighbors.shape[-2]
    samples = hidden_states.unflatten(0, (-1, num_views))  # [S, V, L, C]
    tables = neighbors.expand(samples.shape[0], -1, -1)
    outputs = []
    for sample, table in zip(samples, tables, strict=True):
        for view in range(num_views):
            total = torch.zeros_like(sample[view])
            for neighbor in table[view].tolist():
                if neighbor < 0:
                    continue
                query, key, value = (
                    projected.unflatten(-1, (attention.heads, -1)).transpose(0, 1)  # [H, L, D]
                    for projected in (
                        attention.to_q(sample[view]),
                        attention.to_k(sample[neighbor]),
                        attention.to_v(sample[neighbor]),
                    )
                )
                scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
                mixed = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
                total = total + attention.to_out[0](mixed)
            outputs.append(total)
    return torch.stack(outputs)
