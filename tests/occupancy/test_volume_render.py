"""The implementations of composited volume values against the slow reference, and that against sums by hand."""

import math
import os

import pytest
import torch

from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.volume_render import choose_backend, composite_volume

needs_triton = pytest.mark.skipif(not has_module("triton"), reason="needs triton")
PATHS = [
    pytest.param("torch", "cpu", id="torch"),
    pytest.param("torch", "cuda", id="torch-gpu", marks=pytest.mark.gpu),
    pytest.param("triton", "cuda", id="triton-gpu", marks=[pytest.mark.gpu, needs_triton]),
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


def problem(rays=9, samples=21, channels=17, shape=(6, 5, 3), seed=0):
    """A volume, points of which a third lie outside, and weights of which a third are 0."""
    g = torch.Generator().manual_seed(seed)
    volume = torch.randn(*shape, channels, generator=g)
    at = torch.rand(rays, samples, 3, generator=g) * (torch.tensor(shape) + 2.0) - 1.5
    if rays and samples > 3:
        at[0, 0] = math.nan
        at[0, 1] = math.inf
        at[0, 2] = -1e30
        at[0, 3] = torch.tensor([2.0, 1.0, 1.0])
    weights = torch.rand(rays, samples, generator=g)
    return volume, at, weights * (torch.rand(rays, samples, generator=g) > 0.3)


def run(inputs, backend, nearest, device="cpu"):
    """The output and both gradients (of a fixed random projection of it), on the CPU."""
    volume, at, weights = inputs
    leaves = [t.detach().to(device, copy=True).requires_grad_() for t in (volume, weights)]
    out = composite_volume(leaves[0], at.to(device), leaves[1], nearest, backend)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out))
    return [t.detach().cpu() for t in (out, leaves[0].grad, leaves[1].grad)]


@pytest.mark.parametrize(("backend", "device"), PATHS)
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize(
    "sizes", [dict(), dict(channels=1, samples=1), dict(shape=(1, 4, 2), channels=3, samples=40), dict(rays=0)],
    ids=["plain", "one", "flat", "no-rays"],
)  # fmt: skip
def test_paths_agree_with_gradients(backend, device, nearest, sizes):
    inputs = problem(**sizes)
    for one, other in zip(run(inputs, "reference", nearest), run(inputs, backend, nearest, device), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("nearest", [False, True])
def test_float64_agrees_to_rounding(nearest):
    inputs = [t.double() for t in problem()]
    for one, other in zip(run(inputs, "reference", nearest), run(inputs, "torch", nearest), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_known_numbers(backend):
    """Two voxels of 1 and 3: half way they are 2, half a voxel beyond the second half of 3, and nothing further on."""
    volume = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    at = torch.zeros(1, 4, 3)
    at[0, :, 0] = torch.tensor([0.0, 0.5, 1.5, 2.0])
    for sample, (value, voxel) in enumerate(((1, 1), (2, 3), (1.5, 0), (0, 0))):
        weights = torch.zeros(1, 4)
        weights[0, sample] = 0.5
        assert composite_volume(volume, at, weights, backend=backend).item() == pytest.approx(0.5 * value)
        assert composite_volume(volume, at, weights, True, backend).item() == pytest.approx(0.5 * voxel)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradients_are_those_of_finite_differences(backend):
    volume, at, weights = (t.double() for t in problem(rays=3, samples=5, channels=2))
    at = at.nan_to_num(0.5)
    leaves = [volume.requires_grad_(), weights.requires_grad_()]
    assert torch.autograd.gradcheck(lambda v, w: composite_volume(v, at, w, False, backend), leaves)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, at, w: (v[0], at, w), r"\[X, Y, Z, C\]"),
        (lambda v, at, w: (v, at[:, :3], w), "belong together"),
        (lambda v, at, w: (v.double(), at, w), "share dtype"),
        (lambda v, at, w: (v.half(), at, w), "float32 or float64"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        composite_volume(*change(*problem()))


def test_backends_that_cannot_run_are_named():
    volume, at, weights = problem()
    assert choose_backend(volume) == "torch"
    with pytest.raises(ValueError, match="backend 'cuda' cannot run"):
        composite_volume(volume, at, weights, backend="cuda")
    with pytest.raises(ValueError, match="backend 'triton' cannot run"):
        composite_volume(volume.double(), at.double(), weights.double(), backend="triton")


@needs_triton
def test_the_operator_is_one_that_compilers_can_trace():
    """Its fake outputs have the shapes, strides and types of the real ones, and its gradients are registered."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (interpreted or torch.cuda.is_available()):
        pytest.skip("needs a CUDA device or TRITON_INTERPRET=1")
    from syntheocc.occupancy.ops.volume_render.triton import composite_volume_triton

    volume, at, weights = (t.to("cpu" if interpreted else "cuda") for t in problem())
    arguments = (volume.requires_grad_(), at, weights.requires_grad_(), False)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(composite_volume_triton, arguments, test_utils=checks)
