"""Channels-last networks that never transpose: fused norms and gates in place of diffusers' modules.

Convolutions on recent NVIDIA GPUs are faster in channels-last, but in stock diffusers modules the gain is lost again:
GroupNorm and Transformer2DModel bring every tensor back to NCHW. `to_channels_last` swaps the class of those modules
in place (weights, names and hooks stay) and converts the weights. The numbers are the same up to rounding.
"""

from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in the module that a saved class names)
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from syntheocc.models.ops.dispatch import use_triton
from syntheocc.models.ops.geglu import geglu
from syntheocc.models.ops.group_norm import group_norm
from syntheocc.models.ops.residual_add import residual_add


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
            and block.time_embedding_norm == "default"
            and isinstance(block.nonlinearity, nn.SiLU)
            and not block.skip_time_act
        )

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        """[N, C, H, W] and the time embedding [N, T] to [N, C_out, H, W]."""
        normed = self.norm1(input_tensor, silu=True)
        shift = None
        if self.time_emb_proj is not None and temb is not None:
            shift = self.time_emb_proj(self.nonlinearity(temb))
        if not (use_triton(normed, self.conv1.weight) and _is_bare(self.conv1) and _is_bare(self.conv2)):
            hidden = self.conv2(self.dropout(self.norm2(self.conv1(normed), shift=shift, silu=True)))
            output = self._shortcut(input_tensor) + hidden
            return output if self.output_scale_factor == 1 else output / self.output_scale_factor
        # The biases travel with passes that are made anyway: conv1's in norm2's shift, conv2's in the residual sum.
        bias = self.conv1.bias.expand(normed.shape[0], -1) if shift is None else shift + self.conv1.bias
        hidden = self.norm2(nn.functional.conv2d(normed, self.conv1.weight, padding=1), shift=bias, silu=True)
        hidden = nn.functional.conv2d(self.dropout(hidden), self.conv2.weight, padding=1)
        output = residual_add(hidden, self._shortcut(input_tensor), self.conv2.bias)
        return output if self.output_scale_factor == 1 else output / self.output_scale_factor

    def _shortcut(self, input_tensor: Tensor) -> Tensor:
        return input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)


def _is_bare(conv: nn.Module) -> bool:
    """Whether a convolution is nothing but its weights: no LoRA around it, no off-loading or other hook on it."""
    hooked = conv._forward_hooks or conv._forward_pre_hooks or "forward" in vars(conv)
    return type(conv) is nn.Conv2d and conv.bias is not None and not hooked


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


class FusedGEGLU(GEGLU):
    """`GEGLU` with the gate in one pass."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., dim_in] to [..., dim_out]."""
        return geglu(self.proj(hidden_states))


_SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: FusedGroupNorm,
    ResnetBlock2D: FusedResnetBlock2D,
    Transformer2DModel: ChannelsLastTransformer2DModel,
    GEGLU: FusedGEGLU,
}


def to_channels_last(model: nn.Module) -> nn.Module:
    """Turn a UNet, ControlNet or VAE into its channels-last form, in place.

    Exact types only: a subclass that somebody else put there is left alone. Saving, loading and the state dict do not
    change. `to_contiguous` takes it back.

    Returns:
        The model.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if type(module) is ResnetBlock2D and not FusedResnetBlock2D.fits(module):
            continue
        if type(module) in _SWAPS:
            module.__class__ = _SWAPS[type(module)]
    return model


def to_contiguous(model: nn.Module) -> nn.Module:
    """Undo `to_channels_last`: diffusers' own modules and NCHW weights."""
    back = {new: old for old, new in _SWAPS.items()}
    for module in model.modules():
        if type(module) in back:
            module.__class__ = back[type(module)]
    return model.to(memory_format=torch.contiguous_format)
