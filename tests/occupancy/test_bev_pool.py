"""Lift-splat pooling: numbers by hand, then every implementation and its gradients against the naive loop."""

import os

import pytest
import torch

from syntheocc.occupancy.ops.bev_pool import bev_pool, vectorised
from syntheocc.occupancy.ops.mpi_lookup import has_module

PATHS = [
    pytest.param("torch", "cpu", id="torch"),
    pytest.param("torch", "cuda", id="torch-gpu", marks=pytest.mark.gpu),
    pytest.param(
        "triton",
        "cuda",
        id="triton-gpu",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not has_module("triton"), reason="needs triton")],
    ),
    pytest.param(
        "triton",
        "cpu",
        id="triton-interpreted",
        marks=pytest.mark.skipif(
            os.environ.get("TRITON_INTERPRET") != "1" or not has_module("triton"),
            reason="set TRITON_INTERPRET=1 to run the kernels on the CPU",
        ),
    ),
]


def problem(images=2, bins=5, channels=3, height=2, width=4, num_voxels=9, dtype=torch.float32, seed=0):
    """Depth weights, features and voxel numbers, of which a quarter lie in no voxel."""
    g = torch.Generator().manual_seed(seed)
    depth = torch.randn(images, bins, height, width, generator=g, dtype=dtype).softmax(1)
    context = torch.randn(images, channels, height, width, generator=g, dtype=dtype)
    voxels = torch.randint(-num_voxels // 3, num_voxels, depth.shape, generator=g)
    return depth, context, voxels, num_voxels


def run(inputs, backend, device="cpu", dtype=torch.float32):
    depth, context, voxels, num_voxels = inputs
    depth, context = (t.to(device, dtype, copy=True).requires_grad_() for t in (depth, context))
    out = bev_pool(depth, context, voxels.to(device), num_voxels, backend=backend)
    assert out.dtype == dtype
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out))
    return [t.detach().cpu().float() for t in (out, depth.grad, context.grad)]


def test_a_pixel_is_spread_over_the_voxels_of_its_depths():
    depth = torch.tensor([0.25, 0.25, 0.5]).view(1, 3, 1, 1)
    context = torch.tensor([4.0, -8.0]).view(1, 2, 1, 1)
    out = bev_pool(depth, context, torch.tensor([1, -1, 1]).view(1, 3, 1, 1), 3)
    assert out.tolist() == [[0.0, 0.0], [3.0, -6.0], [0.0, 0.0]]


@pytest.mark.parametrize(("backend", "device"), PATHS)
@pytest.mark.parametrize("sizes", [{}, {"channels": 33, "width": 9, "height": 3}, {"bins": 18, "channels": 1}])
def test_implementations_agree_with_the_naive_loop(backend, device, sizes):
    inputs = problem(**sizes)
    for expected, got in zip(run(inputs, "reference"), run(inputs, backend, device), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "device"), PATHS)
def test_half_precision_is_summed_in_single(backend, device):
    """4,096 times 1 + 1/128: sums in bfloat16 would stop growing at 256."""
    depth = torch.ones(1, 1, 64, 64, dtype=torch.bfloat16, device=device)
    context = torch.full((1, 1, 64, 64), 1 + 1 / 128, dtype=torch.bfloat16, device=device)
    voxels = torch.zeros(depth.shape, dtype=torch.long, device=device)
    out = bev_pool(depth, context, voxels, 1, backend=backend)
    assert out.dtype == torch.bfloat16 and float(out) == 4128.0  # 4,128 is a bfloat16


def test_gradients_of_the_chunked_path(monkeypatch):
    depth, context, voxels, num_voxels = problem(dtype=torch.float64)
    monkeypatch.setattr(vectorised, "CHUNK_ROWS", 32)  # two bins a chunk, the last chunk has one
    depth.requires_grad_()
    context.requires_grad_()
    assert torch.autograd.gradcheck(lambda d, c: bev_pool(d, c, voxels, num_voxels, "torch"), (depth, context))
    expected = bev_pool(depth, context, voxels, num_voxels, "reference")
    torch.testing.assert_close(bev_pool(depth, context, voxels, num_voxels, "torch"), expected)


@pytest.mark.parametrize(("backend", "device"), PATHS)
def test_points_that_are_all_outside_give_zeros(backend, device):
    depth, context, voxels, num_voxels = problem()
    out, grad_depth, grad_context = run((depth, context, torch.full_like(voxels, -1), num_voxels), backend, device)
    assert not out.any() and not grad_depth.any() and not grad_context.any()


def test_what_does_not_fit_is_refused():
    depth, context, voxels, num_voxels = problem()
    with pytest.raises(ValueError, match="one floating type"):
        bev_pool(depth, context.double(), voxels, num_voxels)
    with pytest.raises(ValueError, match="same images and pixels"):
        bev_pool(depth, context[:1], voxels, num_voxels)
    with pytest.raises(ValueError, match="voxels must be integer"):
        bev_pool(depth, context, voxels[:, 1:], num_voxels)
    with pytest.raises(ValueError, match="at least 1"):
        bev_pool(depth, context, voxels, 0)
    with pytest.raises(ValueError, match="cannot run here"):
        bev_pool(depth, context, voxels, num_voxels, backend="cuda")
