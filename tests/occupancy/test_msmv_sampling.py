"""The implementations of multi-view sampling against the slow reference, and the reference against known numbers."""

import math
import os

import pytest
import torch

from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.msmv_sampling import msmv_sampling

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
SIZES = ((6, 9), (3, 5), (1, 2))


def problem(batch=1, frames=1, views=3, groups=1, channels=4, queries=7, points=2, sizes=SIZES, seed=0):
    """Maps, points of which a third lie beyond the border, and weights, all float32 on the CPU."""
    g = torch.Generator().manual_seed(seed)
    features = [torch.randn(batch, frames, views, h, w, groups * channels, generator=g) for h, w in sizes]
    locations = torch.rand(batch, frames, queries, groups, points, 3, generator=g)
    locations[..., :2] = locations[..., :2] * 1.6 - 0.3
    locations[..., 2] = torch.randint(views, locations.shape[:-1], generator=g) / max(1, views - 1)
    weights = torch.randn(batch, frames, queries, groups, points, len(sizes), generator=g).softmax(-1)
    return features, locations, weights


def run(inputs, backend, device="cpu", dtype=torch.float32):
    """The output and all gradients (of a fixed random projection of it), float32 on the CPU."""
    features, locations, weights = inputs
    maps = [f.detach().to(device, dtype, copy=True).requires_grad_() for f in features]
    at, shares = (t.detach().to(device, copy=True).requires_grad_() for t in (locations, weights))
    out = msmv_sampling(maps, at, shares, backend=backend)
    assert out.is_contiguous() and out.dtype == dtype
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out))
    assert all(m.grad.dtype == dtype for m in maps)
    return [t.detach().float().cpu() for t in (out, *[m.grad for m in maps], at.grad, shares.grad)]


def assert_same(inputs, backend, device, dtype=torch.float32, tolerance=2e-5):
    expected = run(inputs, "reference")
    for one, other in zip(expected, run(inputs, backend, device, dtype), strict=True):
        scale = max(1.0, float(one.abs().max()))
        assert one.shape == other.shape and float((one - other).abs().max()) < tolerance * scale


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_known_numbers(backend):
    """Specs/sparseocc.md 2.3, vector I."""
    maps = [torch.arange(24.0).view(1, 1, 2, 3, 4, 1), 100 + torch.arange(8.0).view(1, 1, 2, 2, 2, 1)]
    at = torch.tensor([[0.5, 0.5, 0], [1 / 3, 0.25, 1], [1.2, 0.5, 0], [1, 1, 1]]).view(1, 1, 4, 1, 1, 3)
    shares = torch.tensor([[1.0, 0], [0.5, 0.5], [1, 1], [1, 0]]).view(1, 1, 4, 1, 1, 2)
    out = msmv_sampling(maps, at, shares, backend=backend)
    assert tuple(out.shape) == (1, 4, 1, 1, 1, 1)
    torch.testing.assert_close(out.flatten(), torch.tensor([5.5, 59.916667, 84.4, 23.0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_groups_frames_and_samples_stay_apart(backend):
    """Every (sample, frame, group) has a constant map of its own: the numbers come out where they belong."""
    value = torch.arange(2 * 3 * 4.0).view(2, 3, 4)  # [B, T, G]
    maps = [value[:, :, None, None, None, :].expand(2, 3, 2, 5, 6, 4)]
    at = torch.tensor([0.5, 0.5, 1.0]).expand(2, 3, 5, 4, 2, 3)
    shares = torch.ones(2, 1, 5, 4, 2, 1).expand(-1, 3, -1, -1, -1, -1)
    out = msmv_sampling(maps, at, shares, backend=backend)  # [B, Q, G, T, P, C]
    torch.testing.assert_close(out, value.transpose(1, 2)[:, None, :, :, None, None].expand(2, 5, 4, 3, 2, 1))


def test_points_fade_out_beyond_the_border_and_nothing_leaks_from_the_next_view():
    """Half a pixel outside is half the border's value; one pixel outside, and anything further, is 0."""
    maps = [torch.ones(1, 1, 3, 5, 5, 1) * torch.tensor([1.0, 10, 100]).view(1, 1, 3, 1, 1, 1)]
    v = torch.tensor([-0.125, 1.125, -0.25, 1.25, -1.5, 2.5, 1e30, math.inf, math.nan])
    at = torch.stack([torch.full_like(v, 0.5), v, torch.full_like(v, 0.5)], -1).view(1, 1, -1, 1, 1, 3)
    at = torch.cat([at, at[..., [1, 0, 2]]], 2)
    shares = torch.ones(1, 1, 18, 1, 1, 1)
    for backend in ("reference", "torch"):
        expected = torch.tensor(2 * [5.0, 5, 0, 0, 0, 0, 0, 0, 0])
        torch.testing.assert_close(msmv_sampling(maps, at, shares, backend=backend).flatten(), expected)


@pytest.mark.parametrize(("backend", "device"), PATHS)
@pytest.mark.parametrize(
    "sizes",
    [
        dict(),
        dict(batch=2, frames=3, groups=2, points=3),
        dict(views=1, channels=5, sizes=((4, 4),)),
        dict(views=6, groups=4, channels=64, queries=65, points=1, sizes=((8, 22), (4, 11), (2, 6), (1, 3))),
        dict(queries=0),
    ],
    ids=["plain", "batched", "one-view", "wide", "no-queries"],
)
def test_paths_agree_with_gradients(backend, device, sizes):
    if sizes.get("queries") == 0:
        assert msmv_sampling(*problem(queries=0), backend=backend if device == "cpu" else None).shape[1] == 0
        return
    assert_same(problem(**sizes), backend, device)


@pytest.mark.parametrize(("backend", "device"), PATHS)
def test_half_precision_features(backend, device):
    features, locations, weights = problem(batch=2, groups=2, channels=16)
    features = [f.bfloat16().float() for f in features]
    assert_same((features, locations, weights), backend, device, torch.bfloat16, tolerance=1e-2)


@pytest.mark.parametrize(("backend", "device"), PATHS)
def test_strided_maps_and_expanded_weights(backend, device):
    """What the feature pyramid gives (channels-last convolutions) and weights that all frames share."""
    features, locations, weights = problem(batch=2, frames=2, groups=2)
    shared = weights[:, :1].expand(-1, 2, -1, -1, -1, -1)
    nchw = [f.permute(0, 1, 2, 5, 3, 4).contiguous().permute(0, 1, 2, 4, 5, 3) for f in features]
    expected = msmv_sampling(features, locations, shared.contiguous(), backend="reference")
    got = msmv_sampling([f.to(device) for f in nchw], locations.to(device), shared.to(device), backend=backend)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    features, locations, weights = problem(queries=3, sizes=((5, 4), (3, 2)), channels=2)
    for backend in ("reference", "torch"):
        _, *grads = run((features, locations, weights), backend)
        projection = torch.randn(1, 3, 1, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        loss = lambda f, at, s: float((msmv_sampling(f, at, s, backend=backend) * projection).sum())  # noqa: B023, E731
        for index in ((0, 0, 0, 0, 0, 0), (0, 0, 1, 0, 1, 1), (0, 0, 2, 0, 0, 1)):
            step = torch.zeros_like(locations)
            step[index] = 1e-3
            slope = (loss(features, locations + step, weights) - loss(features, locations - step, weights)) / 2e-3
            assert abs(slope - float(grads[2][index])) < 0.02, (backend, index)
        assert float(grads[2][..., 2].abs().max()) == 0  # none to the view


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, at, s: (f, at[..., :2], s), "locations must be"),
        (lambda f, at, s: (f, at, s[..., :2]), "weights must be"),
        (lambda f, at, s: (f[:0], at, s), "at least one level"),
        (lambda f, at, s: ([f[0], f[1].double()], at, s), "levels of a pyramid"),
        (lambda f, at, s: (f, at.repeat(1, 1, 1, 3, 1, 1), s.repeat(1, 1, 1, 3, 1, 1)), "3 groups"),
        (lambda f, at, s: ([m.long() for m in f], at, s), "must be float"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        msmv_sampling(*change(*problem()))


def test_unknown_backends_are_named():
    with pytest.raises(ValueError, match="backend 'cuda' cannot run"):
        msmv_sampling(*problem(), backend="cuda")


@pytest.mark.skipif(not has_module("triton"), reason="needs triton")
def test_the_operator_is_one_that_compilers_can_trace():
    """Its fake outputs have the shapes, strides and types of the real ones, and its gradients are registered."""
    from syntheocc.occupancy.ops.msmv_sampling.triton import msmv_sampling_triton

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (interpreted or torch.cuda.is_available()):
        pytest.skip("needs a CUDA device or TRITON_INTERPRET=1")
    device = "cpu" if interpreted else "cuda"
    features, *rest = problem(batch=2, frames=2, groups=2)
    moved = [[f.to(device).requires_grad_() for f in features], *[t.to(device).requires_grad_() for t in rest]]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(msmv_sampling_triton, tuple(moved), test_utils=checks)
