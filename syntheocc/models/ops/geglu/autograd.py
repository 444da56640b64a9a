"""GEGLU's gate with gradients: only the projection's output is kept, of which torch keeps the gelu as well."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from syntheocc.models.ops.geglu import triton as forward_kernel
from syntheocc.models.ops.launch import cdiv

BLOCK = 1024


@triton.jit
def _geglu_backward(x_ptr, grad_ptr, out_ptr, features, blocks, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    row, block = program // blocks, program % blocks
    f = block * BLOCK + tl.arange(0, BLOCK)
    mask = f < features
    at = row * 2 * features + f
    values = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    gates = tl.load(x_ptr + at + features, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * features + f, mask=mask, other=0.0).to(tl.float32)
    # gelu(z) = z P(z) with P the normal distribution, so gelu'(z) = P(z) + z p(z).
    probability = 0.5 * (1.0 + tl.erf(gates * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * gates * gates)
    tl.store(out_ptr + at, (grad * gates * probability).to(out_ptr.dtype.element_ty), mask=mask)
    d_gates = grad * values * (probability + gates * density)
    tl.store(out_ptr + at + features, d_gates.to(out_ptr.dtype.element_ty), mask=mask)


class Geglu(torch.autograd.Function):
    """`reference.geglu` of a contiguous tensor on a GPU."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """[..., 2F] to [..., F]."""
        ctx.save_for_backward(x)
        return forward_kernel.geglu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        """[..., F] to [..., 2F]."""
        (x,) = ctx.saved_tensors
        grad = grad.contiguous()
        features = grad.shape[-1]
        out = torch.empty_like(x)
        blocks = cdiv(features, BLOCK)
        _geglu_backward[(grad.numel() // features * blocks,)](x, grad, out, features, blocks, BLOCK=BLOCK)
        return out
