"""Stereo costs: a plane in front of a moving camera is found at its depth."""

import math

import pytest
import torch

from syntheocc.occupancy.perception.stereo import EMPTY_COST, cost_volume, current2previous, warp_pixels
from syntheocc.occupancy.perception.transforms import ImageTransform
from syntheocc.occupancy.perception.view_transform import DepthBins, feature_pixels

SIZE = (64, 128)
BINS = DepthBins(2.0, 18.0, 1.0)
DEPTH = 9.0


def project(shift, image=None):
    """From the current camera's frame to the image of one that stands `shift` metres to the right of it."""
    k = torch.eye(4, dtype=torch.float64)
    k[0, 0] = k[1, 1] = 80.0
    k[0, 2], k[1, 2] = 63.5, 31.5
    moved = torch.eye(4, dtype=torch.float64)
    moved[0, 3] = -shift
    return (torch.eye(4, dtype=torch.float64) if image is None else image.matrix()) @ k @ moved


def painted(ego2img, z=DEPTH):
    """Features [1, 8, 16, 32] of stride 4 of a plane at depth z with a smooth pattern that does not repeat."""
    pixels = feature_pixels((16, 32), SIZE).double()
    img2ego = torch.linalg.inv(ego2img)
    rays = torch.cat([pixels, torch.ones(16, 32, 1)], -1) @ img2ego[:3, :3].T
    points = img2ego[:3, 3] + rays * ((z - img2ego[2, 3]) / rays[..., 2:])
    x, y = points[..., 0], points[..., 1]
    waves = [torch.sin(a * x + b * y + c) for a, b, c in ((1, 0, 0), (0.7, 0.5, 1), (0, 1, 2), (1.3, -0.4, 3))]
    return torch.stack([*waves, x / 4, y / 4, x * 0 + 1, x * y / 16]).float()[None]


@pytest.mark.parametrize(
    "image", [None, ImageTransform(0.9, 3, 2, *SIZE, flip=True, rotation=math.radians(4))], ids=["plain", "augmented"]
)
def test_the_cost_is_smallest_at_the_true_depth(image):
    current, previous = project(0.0, image), project(1.5, image)
    matrix = current2previous(current[None], previous[None])
    cost = cost_volume(painted(current), painted(previous), matrix, BINS, SIZE)
    assert cost.shape == (1, 16, 16, 32) and not cost.requires_grad
    there = warp_pixels(matrix, feature_pixels((16, 32), SIZE), torch.tensor([DEPTH]))[:, 0]
    inside = ((there > 4) & (there < torch.tensor([SIZE[1] - 5, SIZE[0] - 5]))).all(-1)
    assert inside.float().mean() > 0.6
    best = BINS.depths()[cost.argmin(1)][inside]
    assert (best == DEPTH).float().mean() > 0.99
    near = BINS.index(torch.tensor(DEPTH))
    assert cost[:, near][inside].max() < 0.2


def test_a_point_in_the_other_image_by_hand():
    """At depth 10 a camera 1.5 m further right sees a point 80 * 1.5 / 10 = 12 pixels further left."""
    matrix = current2previous(project(0.0)[None], project(1.5)[None])
    found = warp_pixels(matrix, torch.tensor([[[70.0, 20.0]]]), torch.tensor([10.0]))
    torch.testing.assert_close(found.view(2), torch.tensor([58.0, 20.0]))
    behind = project(0.0)
    behind[2, 3] = -20.0  # 20 m ahead: the point lies behind it
    matrix = current2previous(project(0.0)[None], behind[None])
    assert torch.isnan(warp_pixels(matrix, torch.tensor([[[70.0, 20.0]]]), torch.tensor([10.0]))).all()


def test_nothing_to_compare_costs_the_same_at_every_depth():
    """A camera that was missing, or looked elsewhere: no depth is preferred."""
    features = torch.ones(1, 8, 16, 32)
    matrix = current2previous(project(0.0)[None], torch.zeros(1, 4, 4))
    assert not matrix.any()
    cost = cost_volume(features, features, matrix, BINS, SIZE)
    assert torch.equal(cost, torch.full_like(cost, 8 + EMPTY_COST))


def test_chunks_of_bins_change_nothing(monkeypatch):
    import syntheocc.occupancy.perception.stereo as stereo

    current, previous = project(0.0), project(1.5)
    matrix = current2previous(current[None], previous[None])
    whole = cost_volume(painted(current), painted(previous), matrix, BINS, SIZE)
    monkeypatch.setattr(stereo, "_CHUNK_VALUES", 3 * 8 * 16 * 32)
    assert torch.equal(cost_volume(painted(current), painted(previous), matrix, BINS, SIZE), whole)


def test_the_published_emptiness_is_a_zero_in_one_channel():
    current, previous = project(0.0), project(1.5)
    matrix = current2previous(current[None], previous[None])
    features = painted(previous)
    features[:, 4] = 0.0  # channel C - 4: everything counts as empty
    legacy = cost_volume(painted(current), features, matrix, BINS, SIZE, legacy=True)
    assert (legacy >= EMPTY_COST).all()
    at = int(BINS.index(torch.tensor(DEPTH)))
    assert (cost_volume(painted(current), features, matrix, BINS, SIZE)[:, at] < EMPTY_COST).float().mean() > 0.6
