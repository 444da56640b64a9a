"""Distance attention in Triton: tiles of logits that never leave the chip, forward and backward.

As in FlashAttention-2 (Dao 2023) a program keeps a block of queries, goes through all keys and rescales what it has
summed; the backward pass computes the tiles again from the logits' log-sum-exp. What is added here: a tile's distances
come from the centres, the falloff's gradient is the sum of distance times the logits' gradients, and dropped weights
come from a counter-based generator (Philox) of (seed of the sample and head, query, key), so that both passes drop the
same ones.

Everything is computed in float32, products in the inputs' precision.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows and columns of a tile, warps.
FORWARD_CONFIG = (64, 64, 4)
BACKWARD_CONFIG = (64, 64, 4)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(ptr, n, channel, live, stride, SIZE: tl.constexpr):
    """Rows `n` of a matrix, [n, channels], zeros beyond its end."""
    return tl.load(
        ptr + n[:, None].to(tl.int64) * stride + channel[None, :],
        mask=live[:, None] & (channel < SIZE)[None, :],
        other=0.0,
    )


@triton.jit
def _centers(ptr, n, live):
    """The coordinates x and y of points `n`."""
    return tl.load(ptr + 2 * n, mask=live, other=0.0), tl.load(ptr + 2 * n + 1, mask=live, other=0.0)


@triton.jit
def _distances(qx, qy, kx, ky):
    """Distances [queries, keys]."""
    dx, dy = qx[:, None] - kx[None, :], qy[:, None] - ky[None, :]
    return tl.sqrt(dx * dx + dy * dy)


@triton.jit
def _kept(seed, q, k, length, dropout):
    """1 / (1 - dropout) where a weight is kept, 0 where it is dropped."""
    drawn = tl.rand(seed, q[:, None] * length + k[None, :])
    return tl.where(drawn >= dropout, 1.0 / (1.0 - dropout), 0.0)


@triton.jit
def _forward_kernel(
    query_ptr, key_ptr, value_ptr, falloff_ptr, centers_ptr, seeds_ptr, out_ptr, sums_ptr,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    out_batch, out_head, out_row, heads, length, scale, dropout,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    channel = tl.arange(0, CHANNELS)
    q = block * QUERIES + tl.arange(0, QUERIES)
    q_live = q < length
    queries = _rows(query_ptr + b * query_batch + h * query_head, q, channel, q_live, query_row, SIZE)
    falloff = tl.load(falloff_ptr + bh * length + q, mask=q_live, other=0.0)
    points = centers_ptr + b * length * 2
    qx, qy = _centers(points, q, q_live)
    key_ptr += b * key_batch + h * key_head
    value_ptr += b * value_batch + h * value_head
    seed = tl.load(seeds_ptr + bh) if DROPS else 0
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, CHANNELS], tl.float32)
    for start in range(0, length, KEYS):
        k = start + tl.arange(0, KEYS)
        k_live = k < length
        kx, ky = _centers(points, k, k_live)
        keys = _rows(key_ptr, k, channel, k_live, key_row, SIZE)
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        logits = (logits - falloff[:, None] * _distances(qx, qy, kx, ky)) * _LOG2_E
        logits = tl.where(k_live[None, :], logits, float("-inf"))
        raised = tl.maximum(highest, tl.max(logits, 1))
        weights = tl.exp2(logits - raised[:, None])
        shrunk = tl.exp2(highest - raised)
        total = total * shrunk + tl.sum(weights, 1)
        if DROPS:
            weights *= _kept(seed, q, k, length, dropout)
        values = _rows(value_ptr, k, channel, k_live, value_row, SIZE)
        out = out * shrunk[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        highest = raised
    out /= total[:, None]
    at = out_ptr + b * out_batch + h * out_head + q[:, None].to(tl.int64) * out_row + channel[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=q_live[:, None] & (channel < SIZE)[None, :])
    tl.store(sums_ptr + bh * length + q, highest + tl.log2(total), mask=q_live)


@triton.jit
def _tile(
    queries, keys, values, grad_out, falloff, distance, sums, agreement, seed, q, k, q_live, k_live, length, scale,
    dropout, DROPS: tl.constexpr,
):  # fmt: skip
    """Weights as they were applied, and the logits' gradients, [queries, keys]."""
    logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale - falloff[:, None] * distance
    weights = tl.exp2(logits * _LOG2_E - sums[:, None])
    weights = tl.where(q_live[:, None] & k_live[None, :], weights, 0.0)
    grad_weights = tl.dot(grad_out, tl.trans(values), input_precision="ieee")
    applied = weights
    if DROPS:
        kept = _kept(seed, q, k, length, dropout)
        grad_weights *= kept
        applied = weights * kept
    return applied, weights * (grad_weights - agreement[:, None])


@triton.jit
def _query_kernel(
    query_ptr, key_ptr, value_ptr, falloff_ptr, centers_ptr, seeds_ptr, sums_ptr, agreement_ptr, grad_out_ptr,
    grad_query_ptr, grad_falloff_ptr,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    grad_batch, grad_head, grad_row, heads, length, scale, dropout,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries and of their falloffs."""
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    channel = tl.arange(0, CHANNELS)
    q = block * QUERIES + tl.arange(0, QUERIES)
    q_live = q < length
    queries = _rows(query_ptr + b * query_batch + h * query_head, q, channel, q_live, query_row, SIZE)
    grad_out = _rows(grad_out_ptr + b * grad_batch + h * grad_head, q, channel, q_live, grad_row, SIZE)
    row = bh * length + q
    falloff = tl.load(falloff_ptr + row, mask=q_live, other=0.0)
    sums = tl.load(sums_ptr + row, mask=q_live, other=0.0)
    agreement = tl.load(agreement_ptr + row, mask=q_live, other=0.0)
    points = centers_ptr + b * length * 2
    qx, qy = _centers(points, q, q_live)
    key_ptr += b * key_batch + h * key_head
    value_ptr += b * value_batch + h * value_head
    seed = tl.load(seeds_ptr + bh) if DROPS else 0
    grad_query = tl.zeros([QUERIES, CHANNELS], tl.float32)
    grad_falloff = tl.zeros([QUERIES], tl.float32)
    for start in range(0, length, KEYS):
        k = start + tl.arange(0, KEYS)
        k_live = k < length
        kx, ky = _centers(points, k, k_live)
        keys = _rows(key_ptr, k, channel, k_live, key_row, SIZE)
        values = _rows(value_ptr, k, channel, k_live, value_row, SIZE)
        distance = _distances(qx, qy, kx, ky)
        _, grad_logits = _tile(
            queries, keys, values, grad_out, falloff, distance, sums, agreement, seed, q, k, q_live, k_live, length,
            scale, dropout, DROPS,
        )  # fmt: skip
        grad_falloff -= tl.sum(grad_logits * distance, 1)
        grad_query += tl.dot(grad_logits.to(keys.dtype), keys, input_precision="ieee")
    at = grad_query_ptr + (row * SIZE)[:, None] + channel[None, :]
    live = q_live[:, None] & (channel < SIZE)[None, :]
    tl.store(at, (grad_query * scale).to(grad_query_ptr.dtype.element_ty), mask=live)
    tl.store(grad_falloff_ptr + row, grad_falloff, mask=q_live)


@triton.jit
def _key_kernel(
    query_ptr, key_ptr, value_ptr, falloff_ptr, centers_ptr, seeds_ptr, sums_ptr, agreement_ptr, grad_out_ptr,
    grad_key_ptr, grad_value_ptr,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    grad_batch, grad_head, grad_row, heads, length, scale, dropout,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and of their values."""
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    channel = tl.arange(0, CHANNELS)
    k = block * KEYS + tl.arange(0, KEYS)
    k_live = k < length
    keys = _rows(key_ptr + b * key_batch + h * key_head, k, channel, k_live, key_row, SIZE)
    values = _rows(value_ptr + b * value_batch + h * value_head, k, channel, k_live, value_row, SIZE)
    points = centers_ptr + b * length * 2
    kx, ky = _centers(points, k, k_live)
    query_ptr += b * query_batch + h * query_head
    grad_out_ptr += b * grad_batch + h * grad_head
    seed = tl.load(seeds_ptr + bh) if DROPS else 0
    grad_key = tl.zeros([KEYS, CHANNELS], tl.float32)
    grad_value = tl.zeros([KEYS, CHANNELS], tl.float32)
    for start in range(0, length, QUERIES):
        q = start + tl.arange(0, QUERIES)
        q_live = q < length
        qx, qy = _centers(points, q, q_live)
        queries = _rows(query_ptr, q, channel, q_live, query_row, SIZE)
        grad_out = _rows(grad_out_ptr, q, channel, q_live, grad_row, SIZE)
        row = bh * length + q
        falloff = tl.load(falloff_ptr + row, mask=q_live, other=0.0)
        sums = tl.load(sums_ptr + row, mask=q_live, other=0.0)
        agreement = tl.load(agreement_ptr + row, mask=q_live, other=0.0)
        applied, grad_logits = _tile(
            queries, keys, values, grad_out, falloff, _distances(qx, qy, kx, ky), sums, agreement, seed, q, k, q_live,
            k_live, length, scale, dropout, DROPS,
        )  # fmt: skip
        grad_value += tl.dot(tl.trans(applied).to(grad_out.dtype), grad_out, input_precision="ieee")
        grad_key += tl.dot(tl.trans(grad_logits).to(queries.dtype), queries, input_precision="ieee")
    at = ((bh * length + k) * SIZE)[:, None] + channel[None, :]
    live = k_live[:, None] & (channel < SIZE)[None, :]
    tl.store(grad_key_ptr + at, (grad_key * scale).to(grad_key_ptr.dtype.element_ty), mask=live)
    tl.store(grad_value_ptr + at, grad_value.to(grad_value_ptr.dtype.element_ty), mask=live)


class _DistanceAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        falloff: Tensor,
        centers: Tensor,
        dropout: float,
        seeds: Any,
    ) -> Tensor:
        batch, heads, length, size = query.shape
        sums = query.new_empty(batch, heads, length, dtype=torch.float32)
        # The layout that the next layer wants: all heads of a query side by side.
        out = query.new_empty(batch, length, heads, size).transpose(1, 2)
        rows, columns, warps = FORWARD_CONFIG
        if query.numel():
            _forward_kernel[(-(-length // rows), batch * heads)](
                query, key, value, falloff, centers, seeds, out, sums, *_strides(query, key, value, out), heads,
                length, size**-0.5, dropout, size, max(16, triton.next_power_of_2(size)), rows, columns, dropout > 0,
                num_warps=warps,
            )  # fmt: skip
        ctx.save_for_backward(query, key, value, falloff, centers, seeds, out, sums)
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, falloff, centers, seeds, out, sums = ctx.saved_tensors
        batch, heads, length, size = query.shape
        grad_out = _rows_of(grad_out)
        agreement = (grad_out.float() * out.float()).sum(-1).contiguous()
        grads = [torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(3)]
        grad_falloff = torch.empty_like(falloff)
        rows, columns, warps = BACKWARD_CONFIG
        shared = (query, key, value, falloff, centers, seeds, sums, agreement, grad_out)
        numbers = (
            *_strides(query, key, value, grad_out), heads, length, size**-0.5, ctx.dropout, size,
            max(16, triton.next_power_of_2(size)), rows, columns, ctx.dropout > 0,
        )  # fmt: skip
        if query.numel():
            grid = (-(-length // rows), batch * heads)
            _query_kernel[grid](*shared, grads[0], grad_falloff, *numbers, num_warps=warps)
            grid = (-(-length // columns), batch * heads)
            _key_kernel[grid](*shared, grads[1], grads[2], *numbers, num_warps=warps)
        return (*grads, grad_falloff, None, None, None)


def distance_attention_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    falloff: Tensor,
    centers: Tensor,
    dropout: float,
    seeds: Sequence[int] | None,
) -> Tensor:
    """See `distance_attention`."""
    batch, heads = query.shape[:2]
    drawn = torch.zeros(1, dtype=torch.int64, device=query.device)
    if dropout and seeds is not None:
        # Neighbouring numbers make unrelated streams: the generator mixes its key.
        first = torch.tensor([seed % (1 << 62) for seed in seeds], dtype=torch.int64)
        first = first.to(query.device, non_blocking=True)
        drawn = (first[:, None] + torch.arange(heads, device=query.device)).contiguous()
    elif dropout:
        drawn = torch.randint(1 << 62, (batch, heads), device=query.device)
    query, key, value = (_rows_of(tensor) for tensor in (query, key, value))
    falloff, centers = falloff.float().contiguous(), centers.detach().float().contiguous()
    return _DistanceAttention.apply(query, key, value, falloff, centers, float(dropout), drawn)


def _rows_of(tensor: Tensor) -> Tensor:
    """The tensor with the channels of a row side by side; other strides may be anything."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]
