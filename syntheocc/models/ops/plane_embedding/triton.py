"""Sum of the (plane, class) vectors of every pixel, with gradients: nothing waits for the device, nothing is sorted.

torch needs the number of occupied cells (2 % of them) on the CPU to list them, which makes the CPU wait until the GPU
has done everything before, and sorts the list for the gradient. Here a program walks the planes of a few neighbouring
pixels, most of which are free together; for the gradient, a program walks all pixels of one plane and multiplies
their one-hot classes with the gradient, so that the sums have one order and the result is the same every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from syntheocc.models.ops.launch import cdiv, next_power_of_2

FORWARD_PIXELS = 16
BACKWARD_PIXELS = 128
BLOCK_CHANNELS = 64


@triton.jit
def _sum_planes(
    labels_ptr, table_ptr, out_ptr, pixels, size, num_layers, channels,
    CLASSES: tl.constexpr, FREE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Vectors of BLOCK_P pixels; `size` pixels an image."""
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    real = p < pixels
    at = p // size * num_layers * size + p % size
    total = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for layer in range(num_layers):
        label = tl.load(labels_ptr + at + layer * size, mask=real, other=FREE).to(tl.int32)
        occupied = label != FREE
        if tl.max(occupied.to(tl.int32), axis=0) > 0:
            row = (layer * CLASSES + label) * channels
            known = occupied & (label < CLASSES)
            vectors = tl.load(
                table_ptr + row[:, None] + c[None, :], mask=known[:, None] & (c < channels)[None, :], other=0.0
            ).to(tl.float32)
            total += tl.where((occupied & (label >= CLASSES))[:, None], float("nan"), vectors)
    tl.store(
        out_ptr + p[:, None] * channels + c[None, :], total.to(out_ptr.dtype.element_ty),
        mask=real[:, None] & (c < channels)[None, :],
    )  # fmt: skip


@triton.jit
def _table_gradient(
    labels_ptr, grad_ptr, out_ptr, pixels, size, num_layers, channels,
    CLASSES: tl.constexpr, FREE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of one plane's vectors for a channel block."""
    layer = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_K, BLOCK_C], dtype=tl.float32)
    for start in range(0, pixels, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        real = p < pixels
        at = (p // size * num_layers + layer) * size + p % size
        label = tl.load(labels_ptr + at, mask=real, other=FREE).to(tl.int32)
        occupied = label != FREE
        if tl.max(occupied.to(tl.int32), axis=0) > 0:
            grad = tl.load(
                grad_ptr + p[:, None] * channels + c[None, :], mask=real[:, None] & (c < channels)[None, :], other=0.0
            )
            one_hot = ((label[None, :] == k[:, None]) & occupied[None, :]).to(grad.dtype)
            total += tl.dot(one_hot, grad, input_precision="ieee")
    tl.store(
        out_ptr + (layer * CLASSES + k[:, None]) * channels + c[None, :], total,
        mask=(k < CLASSES)[:, None] & (c < channels)[None, :],
    )  # fmt: skip


class PlaneEmbedding(torch.autograd.Function):
    """`reference.plane_embedding` of contiguous uint8 labels on a GPU; arguments as there."""

    @staticmethod
    def forward(ctx, layers: Tensor, table: Tensor, free_class: int, dtype: torch.dtype) -> Tensor:
        """[N, C, h, w], channels last in memory."""
        num_images, num_layers, height, width = layers.shape
        _, num_classes, channels = table.shape
        size = height * width
        pixels = num_images * size
        out = torch.empty(num_images, height, width, channels, device=layers.device, dtype=dtype)
        _sum_planes[(cdiv(pixels, FORWARD_PIXELS),)](
            layers, table.contiguous(), out, pixels, size, num_layers, channels,
            CLASSES=num_classes, FREE=free_class, BLOCK_P=FORWARD_PIXELS, BLOCK_C=next_power_of_2(channels),
        )  # fmt: skip
        ctx.save_for_backward(layers, table)
        ctx.free_class = free_class
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, None, None]:
        """Gradient of the table."""
        layers, table = ctx.saved_tensors
        grad = grad.permute(0, 2, 3, 1).contiguous()
        num_images, num_layers, height, width = layers.shape
        _, num_classes, channels = table.shape
        size = height * width
        out = torch.empty_like(table, dtype=torch.float32, memory_format=torch.contiguous_format)
        _table_gradient[(num_layers, cdiv(channels, BLOCK_CHANNELS))](
            layers, grad, out, num_images * size, size, num_layers, channels,
            CLASSES=num_classes, FREE=ctx.free_class, BLOCK_K=max(16, next_power_of_2(num_classes)),
            BLOCK_P=BACKWARD_PIXELS, BLOCK_C=BLOCK_CHANNELS,
        )  # fmt: skip
        return None, out.to(table.dtype), None, None
