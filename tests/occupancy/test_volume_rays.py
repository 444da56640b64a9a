"""Rays through a volume: the kernels and the renderer against the definition, sample by sample."""

import os

import pytest
import torch

from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.volume_rays import RaySamples, volume_rays

needs_triton = pytest.mark.skipif(not has_module("triton"), reason="needs triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and has_module("triton")
WHERE = [
    pytest.param("cuda", id="gpu", marks=[pytest.mark.gpu, needs_triton]),
    pytest.param(
        "cpu",
        id="interpreted",
        marks=pytest.mark.skipif(not INTERPRETED, reason="set TRITON_INTERPRET=1 to run the kernels on the CPU"),
    ),
]


def problem(rays=5, samples=37, classes=17, shape=(6, 5, 3), dtype=torch.float32, seed=0):
    """Volumes (densities small, large and, as opacities, saturated), samples along lines, some outside."""
    g = torch.Generator().manual_seed(seed)
    density = torch.rand(shape, generator=g).pow(4) * 1.02
    semantics = torch.randn(*shape, classes, generator=g)
    start = torch.rand(rays, 1, 3, generator=g) * torch.tensor(shape) - 1
    way = torch.randn(rays, 1, 3, generator=g) * 0.12
    steps = torch.rand(rays, samples, generator=g).cumsum(1)
    edges = torch.cat([torch.zeros(rays, 1), steps], 1)
    at = start + way * steps[..., None]
    if rays and samples > 3:
        at[0, 3] = float("nan")
    limits = steps[:, samples // 2] if samples > 1 else steps[:, 0]
    found = RaySamples(at, edges.diff(dim=1), (edges[:, 1:] + edges[:, :-1]) / 2, limits)
    return density.to(dtype), semantics.to(dtype), RaySamples(*(part.to(dtype) for part in found))


def run(inputs, opacity_size, nearest, backend, device="cpu"):
    """Results and gradients of a fixed random projection of them, on the CPU."""
    density, semantics, samples = inputs
    leaves = [t.to(device, copy=True).requires_grad_() for t in (density, semantics)]
    moved = RaySamples(*(part.to(device) for part in samples))
    stops, classes = volume_rays(*leaves, moved, opacity_size, nearest, backend)
    g = torch.Generator().manual_seed(1)
    probes = [torch.randn(out.shape, generator=g).to(out) for out in (stops, classes)]
    gradients = torch.autograd.grad((stops * probes[0]).sum() + (classes * probes[1]).sum(), leaves)
    return [t.detach().cpu() for t in (stops, classes, *gradients)]


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("opacity_size", [0.0, 0.4])
@pytest.mark.parametrize("sizes", [dict(), dict(samples=1, classes=1), dict(rays=0)], ids=["plain", "one", "none"])
def test_kernels_agree_with_the_definition(device, nearest, opacity_size, sizes):
    inputs = problem(**sizes)
    expected = run(inputs, opacity_size, nearest, "reference")
    for one, other in zip(expected, run(inputs, opacity_size, nearest, "triton", device), strict=True):
        scale = max(1.0, float(one.abs().max())) if one.numel() else 1.0
        torch.testing.assert_close(other, one, rtol=2e-4, atol=2e-5 * scale)


def test_the_definition_by_hand():
    """V1 of the specification: three voxels of 0.4 m, 10 m away."""
    density = torch.tensor([0.1, 0.8, 1.0], dtype=torch.float64).view(3, 1, 1)
    semantics = torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64).diag().view(3, 1, 1, 3)
    at = torch.zeros(1, 3, 3, dtype=torch.float64)
    at[0, :, 0] = torch.arange(3.0)
    middles = torch.tensor([[10.2, 10.6, 11.0]], dtype=torch.float64)
    samples = RaySamples(at, torch.full_like(middles, 0.4), middles, torch.tensor([10.7], dtype=torch.float64))
    for nearest in (False, True):
        stops, classes = volume_rays(density, semantics, samples, 0.0, nearest, "reference")
        assert stops[0].tolist() == pytest.approx([0.53233357, 5.71905561, 0.03921056 + 0.26311311], abs=1e-8)
        assert classes[0].tolist() == pytest.approx([0.07842112, 0.26311311, 0.69002970], abs=1e-8)


def test_wrong_backends_and_types_are_named():
    with pytest.raises(ValueError, match="'reference' or 'triton'"):
        volume_rays(*problem(), 0.0, False, "torch")
    if INTERPRETED:
        with pytest.raises(ValueError, match="float32"):
            volume_rays(*problem(dtype=torch.float64), 0.0, False, "triton")
