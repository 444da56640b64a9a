"""Layers whose weights are float32 masters and which compute in the dtype of what comes in.

For training without autocast: activations stay in half precision from end to end, frozen layers are stored in half
precision, and only what is trained is kept in float32 and cast on the way in. Autocast would widen every norm to
float32 and keep the wide copies for the backward.
"""

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in the module that a saved class names)
from torch import Tensor, nn
from torch.nn import functional as F


class _Cast(torch.autograd.Function):
    """A cast whose gradient has the weight's strides, as fused optimizers want it."""

    @staticmethod
    def forward(ctx, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.to(dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return torch.empty_like(weight).copy_(grad), None


def cast_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`, with gradients; itself where it has it."""
    if weight.dtype == dtype:
        return weight
    # Autograd sees to the layout of a gradient except where a size is 1, and a plain cast costs the CPU much less.
    needs_care = weight.ndim == 4 and weight.shape[-1] == 1
    return _Cast.apply(weight, dtype) if needs_care and not torch.compiler.is_compiling() else weight.to(dtype)


def _cast_bias(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else cast_weight(bias, dtype)


class MasterLinear(nn.Linear):
    """`nn.Linear` that casts its weights to the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(input, cast_weight(self.weight, input.dtype), _cast_bias(self.bias, input.dtype))


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution mixes channels and nothing else."""
    plain = conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
    return plain and conv.weight.shape[-2:] == (1, 1)


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of x [N, C, H, W] as a matrix product, which adds the bias too; weight [C_out, C, 1, 1].

    For channels-last tensors, of which the product is one without a copy.
    """
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class MasterConv2d(nn.Conv2d):
    """`nn.Conv2d` that casts its weights to the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C_out, H', W']."""
        weight, bias = cast_weight(self.weight, input.dtype), _cast_bias(self.bias, input.dtype)
        if is_pointwise(self) and input.is_contiguous(memory_format=torch.channels_last):
            return pointwise_conv(input, weight, bias)
        return self._conv_forward(input, weight, bias)


class MasterLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that casts its weights to the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] to the same shape."""
        weight, bias = cast_weight(self.weight, input.dtype), _cast_bias(self.bias, input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class MasterGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that casts its weights to the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] to the same shape."""
        weight, bias = cast_weight(self.weight, input.dtype), _cast_bias(self.bias, input.dtype)
        return F.group_norm(input, self.num_groups, weight, bias, self.eps)


_MASTERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: MasterLinear,
    nn.Conv2d: MasterConv2d,
    nn.LayerNorm: MasterLayerNorm,
    nn.GroupNorm: MasterGroupNorm,
}


def to_master_weights(model: nn.Module) -> nn.Module:
    """Let the plain layers of `model` that are trained cast their float32 weights; in place, names stay.

    Exact types only, and only layers of which a parameter requires gradients. `from_master_weights` takes it back.
    """
    for module in model.modules():
        master = _MASTERS.get(type(module))
        if master is not None and any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            module.__class__ = master
    return model


def from_master_weights(model: nn.Module) -> nn.Module:
    """Undo `to_master_weights`."""
    back = {master: plain for plain, master in _MASTERS.items()}
    for module in model.modules():
        if type(module) in back:
            module.__class__ = back[type(module)]
    return model
