"""Stereo soft feature assignment: the golden values of specs/occdepth.md 2.2, and the loop over voxels."""

import pytest
import torch

from syntheocc.occupancy.perception.occdepth.geometry import Projection
from syntheocc.occupancy.perception.occdepth.lifting import PATTERNS, PixelLookup, fuse_views, lift_features, look_up
from syntheocc.occupancy.perception.occdepth.reference import lift_voxels

PIXELS = torch.tensor([[[0, 0], [1, 1], [2, 0], [0, 1]], [[1, 0], [2, 1], [0, 0], [2, 0]]])[None, :, :, None]
INSIDE = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)[None, :, :, None]


def ramp(shape, step):
    return torch.sin(step * torch.arange(float(torch.Size(shape).numel()))).view(shape)


def close(found, golden):
    torch.testing.assert_close(found.mT, torch.tensor([golden]), atol=2e-6, rtol=0)


def test_the_published_assignment():
    views = ramp((2, 2, 2, 3), 0.7)[None]
    found = lift_features({1: views}, PixelLookup(PIXELS, INSIDE), "cosine")
    close(found, [[-0.144030, 0.121017, 0.492725, 0], [0.091178, -0.117497, -0.315633, 0]])
    found = lift_features({1: views[:, :1]}, PixelLookup(PIXELS[:, :1], INSIDE[:, :1]), "cosine")
    close(found, [[0, 0.334988, 0.985450, 0], [-0.871576, 0.656987, -0.631267, 0]])
    three = PixelLookup(torch.cat([PIXELS, PIXELS[:, :1]], 1), torch.cat([INSIDE, INSIDE[:, 1:]], 1))
    found = lift_features({1: ramp((3, 2, 2, 3), 0.7)[None]}, three, "cosine")
    close(found, [[0.024452, -0.039654, 0.328483, 0], [0.111241, -0.001452, -0.210422, 0]])


def test_the_published_pattern_averages_what_lies_in_the_picture():
    pixels = torch.tensor([[1, 0], [0, 0], [0, 0], [2, 0], [1, 1]])[None, None, None]
    inside = torch.tensor([1, 0, 1, 1, 1], dtype=torch.bool)[None, None, None]
    found = lift_features({1: ramp((2, 2, 2, 3), 0.7)[None, :1]}, PixelLookup(pixels, inside))
    close(found, [[0.491164], [-0.457077]])
    assert [len(pattern) for pattern in PATTERNS] == [1, 5, 5, 9, 9, 13, 25, 8, 21]
    assert all(len(set(pattern)) == len(pattern) for pattern in PATTERNS)  # the published 3 had one twice
    assert set(PATTERNS[3]) == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)}


@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("fusion", ["cosine", "similarity"])
@pytest.mark.parametrize("stride, pattern", [(1, 0), (2, 3), (4, 1)])
def test_lifting_is_the_loop_over_voxels_gradients_included(sampling, fusion, stride, pattern):
    generator = torch.Generator().manual_seed(stride)
    size = (11, 14)
    maps = torch.randn(2, 2, 3, -(-size[0] // stride), -(-size[1] // stride), generator=generator).double()
    maps.requires_grad_()
    places = torch.rand(2, 2, 6, 2, generator=generator).double() * 16 - 1
    depth = torch.ones(2, 2, 6).double()
    depth[0, 1, 2] = -1
    lookup = look_up(Projection(places, depth), size, sampling, pattern)
    fast = lift_features({stride: maps}, lookup, fusion)
    slow = torch.stack([lift_voxels(maps[b], lookup.pixels[b], lookup.inside[b], stride, fusion) for b in range(2)])
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=1e-5)  # the cosine is float32
    weight = torch.randn(fast.shape, generator=generator).double()
    grads = [torch.autograd.grad((values * weight).sum(), maps)[0] for values in (fast, slow)]
    torch.testing.assert_close(*grads, atol=2e-5, rtol=1e-4)


def test_a_pixel_is_a_cells_centre_at_every_scale():
    """A map that holds the column of the picture, averaged over cells, gives the column wherever it is read."""
    size = (8, 64)
    columns = torch.arange(64.0).expand(8, 64)
    places = torch.tensor([[10.0, 3.5], [10.25, 3.5], [50.5, 2.0]]).double()[None, None]
    lookup = look_up(Projection(places, torch.ones(1, 1, 3).double()), size)
    for stride in (1, 2, 4, 8):
        cells = columns.unflatten(0, (-1, stride)).unflatten(2, (-1, stride)).mean((1, 3))[None, None, None]
        found = lift_features({stride: cells}, lookup)
        assert found.flatten().tolist() == pytest.approx([10.0, 10.25, 50.5], abs=1e-5)


def test_disagreement_weakens_and_never_turns_over():
    """Opposite features: published minus their mean, here nothing; one view alone: published half, here all of it."""
    a = torch.tensor([[1.0, 2.0]]).expand(1, 1, 2)
    values = torch.stack([a, -a], 1)
    both, once = torch.ones(1, 2, 1, dtype=torch.bool), torch.tensor([[[True], [False]]])
    assert fuse_views(values, both, "similarity").abs().max() < 1e-6
    assert torch.allclose(fuse_views(torch.stack([a, a], 1), both, "similarity"), 2 * a)
    alone = torch.stack([a, torch.zeros_like(a)], 1)
    assert torch.allclose(fuse_views(alone, once, "cosine"), a / 2)
    assert torch.allclose(fuse_views(alone, once, "similarity"), a)


def test_voxels_that_no_view_shows_have_no_features_and_finite_gradients():
    maps = torch.ones(1, 2, 3, 4, 4, requires_grad=True)
    depth = torch.tensor([[[1.0, -1.0], [-1.0, 0.0]]]).double()
    lookup = look_up(Projection(torch.ones(1, 2, 2, 2).double(), depth), (4, 4))
    for fusion in ("cosine", "similarity"):
        found = lift_features({1: maps}, lookup, fusion)
        assert found[0, 1].abs().max() == 0
        (grad,) = torch.autograd.grad(found.sum(), maps)
        assert bool(torch.isfinite(grad).all()) and grad[0, 1].abs().max() == 0


def test_half_precision_maps_stay_half():
    maps = torch.randn(1, 2, 3, 4, 4).bfloat16()
    lookup = look_up(Projection(torch.ones(1, 2, 5, 2).double() * 1.3, torch.ones(1, 2, 5).double()), (4, 4))
    assert lift_features({1: maps}, lookup).dtype == torch.bfloat16
