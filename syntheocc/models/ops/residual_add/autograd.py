"""The end of a ResNet block with gradients: nothing is kept for the backward."""

import torch
from torch import Tensor

from syntheocc.models.ops.residual_add import triton as forward_kernel


class ResidualAdd(torch.autograd.Function):
    """`reference.residual_add` of channels-last tensors on a GPU; arguments as there."""

    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
        """[N, C, H, W]."""
        ctx.bias_dtype = bias.dtype
        return forward_kernel.residual_add(x, residual, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of x, residual and bias."""
        dbias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        return grad, grad, dbias
