"""Channels-last networks that never transpose: fused norms and gates in place of diffusers' modules.

Convolutions on recent NVIDIA GPUs are faster in channels-last, but in stock diffusers modules the gain is lost again:
GroupNorm and Transformer2DModel bring every tensor back to NCHW. `to_channels_last` swaps the class of those modules
in place (weights, names and hooks stay) and converts the weights. The numbers are the same up to rounding.
"""

from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in the module that a saved class names)
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from syntheocc.models.attention import MultiviewTransformerBlock, attend
from syntheocc.models.master_weights import (
    MasterConv2d,
    MasterLayerNorm,
    cast_weight,
    is_pointwise,
    pointwise_conv,
)
from syntheocc.models.ops.add_layer_norm import add_layer_norm
from syntheocc.models.ops.dispatch import use_triton, use_triton_autograd
from syntheocc.models.ops.geglu import geglu
from syntheocc.models.ops.group_norm import group_norm
from syntheocc.models.ops.residual_add import residual_add
from syntheocc.models.ops.wide_copy import double_pixels


class FusedGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that stays in channels-last; optionally with a shift before and SiLU after."""

    def forward(self, input: Tensor, shift: Tensor | None = None, silu: bool = False) -> Tensor:
        """[N, C, ...] to the same shape; ``shift`` is [N, C]."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps, shift, silu)


class FusedResnetBlock2D(ResnetBlock2D):
    """`ResnetBlock2D` with norm, time embedding and SiLU in one pass; for the plain block of SD's networks only."""

    @staticmethod
    def fits(block: ResnetBlock2D) -> bool:
        """Whether a block is one that this forward computes."""
        return (
            block.upsample is None
            and block.downsample is None
            # "group" is the VAE's: as "default" where there is no time embedding to add.
            and (block.time_embedding_norm == "default" or _is_timeless_group(block))
            and isinstance(block.nonlinearity, nn.SiLU)
            and not block.skip_time_act
        )

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        """[N, C, H, W] and the time embedding [N, T] to [N, C_out, H, W]."""
        normed = self.norm1(input_tensor, silu=True)
        shift = None
        if self.time_emb_proj is not None and temb is not None:
            shift = self.time_emb_proj(self.nonlinearity(temb))
        weights = (normed, self.conv1.weight, self.conv2.weight)
        has_kernel = use_triton(*weights) or use_triton_autograd(*weights)
        if not (has_kernel and _is_bare(self.conv1, *_CONVS) and _is_bare(self.conv2, *_CONVS)):
            hidden = self.conv2(self.dropout(self.norm2(self.conv1(normed), shift=shift, silu=True)))
            output = self._shortcut(input_tensor) + hidden
            return output if self.output_scale_factor == 1 else output / self.output_scale_factor
        # The biases travel with passes that are made anyway: conv1's in norm2's shift, conv2's in the residual sum.
        bias = self.conv1.bias.expand(normed.shape[0], -1) if shift is None else shift + self.conv1.bias
        weight1, weight2 = (cast_weight(conv.weight, normed.dtype) for conv in (self.conv1, self.conv2))
        hidden = self.norm2(nn.functional.conv2d(normed, weight1, padding=1), shift=bias, silu=True)
        hidden = nn.functional.conv2d(self.dropout(hidden), weight2, padding=1)
        output = residual_add(hidden, self._shortcut(input_tensor), self.conv2.bias)
        return output if self.output_scale_factor == 1 else output / self.output_scale_factor

    def _shortcut(self, input_tensor: Tensor) -> Tensor:
        conv = self.conv_shortcut
        if conv is None:
            return input_tensor
        channels_last = input_tensor.is_contiguous(memory_format=torch.channels_last)
        if channels_last and _is_bare(conv, nn.Conv2d) and is_pointwise(conv):
            return pointwise_conv(input_tensor, conv.weight, conv.bias)
        return conv(input_tensor)


def _is_timeless_group(block: ResnetBlock2D) -> bool:
    return block.time_embedding_norm == "group" and block.time_emb_proj is None


_CONVS, _NORMS = (nn.Conv2d, MasterConv2d), (nn.LayerNorm, MasterLayerNorm)


def _is_bare(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer is nothing but its weights: no LoRA around it, no off-loading or other hook on it."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return type(layer) in kinds and layer.bias is not None and not hooked


class ChannelsLastTransformer2DModel(Transformer2DModel):
    """`Transformer2DModel` whose output is a channels-last view of its tokens instead of an NCHW copy."""

    def _get_output_for_continuous_inputs(self, hidden_states, residual, batch_size, height, width, inner_dim):
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        image = hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            image = self.proj_out(image)
        # The residual second: the sum takes its first operand's layout, and both are channels-last.
        return image + residual


class ChannelsLastUpsample2D(Upsample2D):
    """`Upsample2D` whose doubling of the pixels runs at the speed of a copy."""

    @staticmethod
    def fits(layer: Upsample2D) -> bool:
        """Whether a layer doubles the pixels and convolves, and nothing else."""
        return layer.norm is None and layer.use_conv and not layer.use_conv_transpose and layer.interpolate

    def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """[N, C, H, W] to [N, C_out, 2H, 2W], or to `output_size` where a skip connection is a pixel short."""
        height, width = hidden_states.shape[-2:]
        if output_size is not None and tuple(output_size) != (2 * height, 2 * width):
            return super().forward(hidden_states, output_size, *args, **kwargs)
        convolve = self.conv if self.name == "conv" else self.Conv2d_0
        return convolve(double_pixels(hidden_states))


def _add_norm(change: Tensor, residual: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The residual sum and the normed sum, in one pass where the norm is a plain one."""
    if isinstance(norm, nn.LayerNorm) and _is_bare(norm, *_NORMS):
        return add_layer_norm(change, residual, norm.weight, norm.bias, norm.eps)
    total = change if residual is None else residual + change
    return total, norm(total)


class FusedMultiviewTransformerBlock(MultiviewTransformerBlock):
    """`MultiviewTransformerBlock` that adds and norms in one pass."""

    def add_norm(self, change: Tensor, residual: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """The residual sum and the normed sum."""
        return _add_norm(change, residual, norm)


class FusedTransformerBlock(BasicTransformerBlock):
    """`BasicTransformerBlock` of self-attention, text attention and feed-forward that adds and norms in one pass."""

    @staticmethod
    def fits(block: BasicTransformerBlock) -> bool:
        """Whether a block is one that this forward computes."""
        plain = block.norm_type == "layer_norm" and block.pos_embed is None and block._chunk_size is None
        return plain and block.attn2 is not None and not hasattr(block, "fuser")

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
        """[N, L, C] to the same shape."""
        kwargs = cross_attention_kwargs or {}
        hidden_states, normed = _add_norm(hidden_states, None, self.norm1)
        context = encoder_hidden_states if self.only_cross_attention else None
        change = attend(self.attn1, normed, encoder_hidden_states=context, attention_mask=attention_mask, **kwargs)
        hidden_states, normed = _add_norm(change, hidden_states, self.norm2)
        change = attend(
            self.attn2,
            normed,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            **kwargs,
        )
        hidden_states, normed = _add_norm(change, hidden_states, self.norm3)
        return hidden_states + self.ff(normed)


class FusedGEGLU(GEGLU):
    """`GEGLU` with the gate in one pass."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., dim_in] to [..., dim_out]."""
        return geglu(self.proj(hidden_states))


_SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: FusedGroupNorm,
    ResnetBlock2D: FusedResnetBlock2D,
    Transformer2DModel: ChannelsLastTransformer2DModel,
    Upsample2D: ChannelsLastUpsample2D,
    BasicTransformerBlock: FusedTransformerBlock,
    MultiviewTransformerBlock: FusedMultiviewTransformerBlock,
    GEGLU: FusedGEGLU,
}


def to_channels_last(model: nn.Module) -> nn.Module:
    """Turn a UNet, ControlNet or VAE into its channels-last form, in place.

    Exact types only: a subclass that somebody else put there is left alone. Saving, loading and the state dict do not
    change. `to_contiguous` takes it back.

    Returns:
        The model.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stub
    for module in model.modules():
        swap = _SWAPS.get(type(module))
        if swap is not None and getattr(swap, "fits", lambda _: True)(module):
            module.__class__ = swap
    return model


def to_contiguous(model: nn.Module) -> nn.Module:
    """Undo `to_channels_last`: diffusers' own modules and NCHW weights."""
    back = {new: old for old, new in _SWAPS.items()}
    for module in model.modules():
        if type(module) in back:
            module.__class__ = back[type(module)]
    return model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
