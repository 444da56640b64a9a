"""Attention that falls with distance: numbers by hand, and the fast paths against the slow one."""

import math
import os

import pytest
import torch

from syntheocc.occupancy.ops.distance_attention import distance_attention
from syntheocc.occupancy.ops.mpi_lookup import has_module

INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or not has_module("triton"),
    reason="set TRITON_INTERPRET=1 to run the kernels on the CPU",
)
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not has_module("triton"), reason="needs triton")]
PATHS = [
    pytest.param("torch", "cpu", id="torch"),
    pytest.param("torch", "cuda", id="torch-gpu", marks=pytest.mark.gpu),
    pytest.param("triton", "cuda", id="triton-gpu", marks=ON_GPU),
    pytest.param("triton", "cpu", id="triton-interpreted", marks=INTERPRETED),
]
KERNEL = PATHS[2:]


def problem(batch=2, heads=3, length=21, channels=5, seed=0):
    """Query, key, value, falloff and centres, float32 on the CPU; the first three as projections leave them."""
    g = torch.Generator().manual_seed(seed)
    projected = torch.randn(batch, length, 3, heads, channels, generator=g)
    query, key, value = (projected[:, :, i].transpose(1, 2) for i in range(3))
    falloff = torch.randn(batch, heads, length, generator=g)
    return query, key, value, falloff, 4 * torch.rand(batch, length, 2, generator=g)


def run(inputs, backend, device="cpu", dtype=torch.float32, **options):
    """The output, and all gradients of a fixed random projection of it, float32 on the CPU."""
    *leaves, centers = inputs
    leaves = [leaf.detach().to(device, dtype).requires_grad_() for leaf in leaves]
    out = distance_attention(*leaves, centers.to(device), backend=backend, **options)
    assert out.dtype == dtype
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out))
    return [t.detach().float().cpu() for t in (out, *[leaf.grad for leaf in leaves])]


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_two_points_by_hand(backend):
    # Equal keys: the logits are 0 for the point itself and -ln 3 for the other, half a metre away: weights 3/4, 1/4.
    ones = torch.ones(1, 1, 2, 1)
    value = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1)
    falloff = torch.full((1, 1, 2), 2 * math.log(3))
    centers = torch.tensor([[[0.0, 0.0], [0.3, 0.4]]])
    out = distance_attention(ones, ones, value, falloff, centers, backend=backend)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize(("backend", "device"), PATHS)
@pytest.mark.parametrize("length", [1, 21, 70])
def test_paths_agree(backend, device, length):
    inputs = problem(length=length)
    for got, expected in zip(run(inputs, backend, device), run(inputs, "reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("backend", "device"), KERNEL)
@pytest.mark.parametrize("channels", [16, 33])
def test_the_kernel_with_whole_and_odd_channels(backend, device, channels):
    inputs = problem(batch=1, heads=2, length=67, channels=channels, seed=3)
    for got, expected in zip(run(inputs, backend, device), run(inputs, "reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=5e-5)


@pytest.mark.parametrize(("backend", "device"), KERNEL)
def test_weights_that_are_dropped_get_no_gradients(backend, device):
    """With the identity as values the output shows which weights were dropped; the rest follows from these."""
    length, share, seeds = 32, 0.4, [7, 8]
    query, key, _, falloff, centers = problem(heads=2, length=length, channels=length, seed=5)
    value = torch.eye(length).expand_as(query).contiguous()
    shown = run((query, key, value, falloff, centers), backend, device, dropout=share, seeds=seeds)[0]
    kept = shown != 0
    assert 0.5 < float(kept.float().mean()) < 0.7
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[:, 0], kept[:, 1])
    leaves = [t.clone().requires_grad_() for t in (query, key, value, falloff)]
    distance = (centers[:, :, None] - centers[:, None]).norm(dim=-1)[:, None]
    logits = leaves[0] @ leaves[1].mT / length**0.5 - leaves[3][..., None] * distance
    expected = (logits.softmax(-1) * kept / (1 - share)) @ leaves[2]
    expected.backward(torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)))
    got = run((query, key, value, falloff, centers), backend, device, dropout=share, seeds=seeds)
    for one, other in zip(got, (expected, *[leaf.grad for leaf in leaves]), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=5e-4, atol=2e-4)


@pytest.mark.parametrize(("backend", "device"), [pytest.param("reference", "cpu"), *PATHS])
def test_a_sample_drops_the_same_in_any_batch(backend, device):
    query, key, value, falloff, centers = (t.to(device) for t in problem(batch=3))
    inputs = (query, key, value, falloff, centers)
    whole = distance_attention(*inputs, dropout=0.5, seeds=[4, 5, 4], backend=backend)
    alone = distance_attention(*(t[1:2] for t in inputs), dropout=0.5, seeds=[5], backend=backend)
    torch.testing.assert_close(alone, whole[1:2])
    assert not torch.allclose(whole, distance_attention(*inputs, backend=backend))
    again = distance_attention(*inputs, dropout=0.5, seeds=[4, 6, 4], backend=backend)
    assert torch.equal(again[0], whole[0]) and not torch.allclose(again[1], whole[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_gpu(dtype):
    inputs = problem(length=500, channels=32)
    for got, expected in zip(run(inputs, "triton", "cuda", dtype), run(inputs, "reference"), strict=True):
        assert float((got - expected).norm() / expected.norm()) < 0.02


def test_errors_name_what_is_wrong():
    query, key, value, falloff, centers = problem()
    with pytest.raises(ValueError, match="falloff must be"):
        distance_attention(query, key, value, falloff[..., :-1], centers)
    with pytest.raises(ValueError, match="dropout is 1.0"):
        distance_attention(query, key, value, falloff, centers, dropout=1.0)
    with pytest.raises(ValueError, match="1 seeds for 2 samples"):
        distance_attention(query, key, value, falloff, centers, dropout=0.1, seeds=[1])
    with pytest.raises(ValueError, match="'numpy' cannot run here"):
        distance_attention(query, key, value, falloff, centers, backend="numpy")
