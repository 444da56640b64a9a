"""GEGLU's gate in one pass: the plain version writes gelu(gates) to memory and reads it again."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from syntheocc.models.ops.launch import cdiv

BLOCK = 1024


@triton.jit
def _geglu(x_ptr, out_ptr, features, blocks, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    row, block = program // blocks, program % blocks
    f = block * BLOCK + tl.arange(0, BLOCK)
    mask = f < features
    values = tl.load(x_ptr + row * 2 * features + f, mask=mask, other=0.0).to(tl.float32)
    gates = tl.load(x_ptr + row * 2 * features + features + f, mask=mask, other=0.0).to(tl.float32)
    gated = values * (0.5 * gates * (1.0 + tl.erf(gates * 0.7071067811865476)))
    tl.store(out_ptr + row * features + f, gated.to(out_ptr.dtype.element_ty), mask=mask)


def geglu(
    x: Tensor,  # [..., 2F], contiguous
) -> Tensor:
    """`reference.geglu` without gradients, [..., F]."""
    features = x.shape[-1] // 2
    out = torch.empty(*x.shape[:-1], features, device=x.device, dtype=x.dtype)
    rows = out.numel() // features
    blocks = cdiv(features, BLOCK)
    _geglu[(rows * blocks,)](x, out, features, blocks, BLOCK=BLOCK)
    return out
