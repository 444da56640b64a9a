"""Depth labels from lidar points: nearest in a cell, in the right bin, in the augmented image."""

import math

import pytest
import torch

from syntheocc.occupancy.perception.depth_supervision import depth_bin_loss, nearest_depths, ray_depths
from syntheocc.occupancy.perception.transforms import ImageTransform
from syntheocc.occupancy.perception.view_transform import DepthBins, LiftCameras
from syntheocc.occupancy.rendering.rays import RayLabels

BINS = DepthBins(1.0, 5.0, 1.0)


def test_the_nearest_point_of_a_cell_counts():
    pixels = torch.tensor([[3.0, 3.0], [3.4, 2.6], [4.0, 3.49], [3.6, 3.0], [8.2, 3.0], [-0.6, 0.0], [math.nan, 0.0]])
    depth = torch.tensor([9.0, 7.0, 5.0, 3.0, 2.0, 1.0, 1.0])
    found = nearest_depths(pixels, depth, torch.zeros(7, dtype=torch.long), 1, (8, 8), 4)
    # (3.6, 3) rounds to pixel 4, and so does (4, 3.49): the second column. 8.2 lies beyond the image.
    assert found.tolist() == [[[7.0, 3.0], [math.inf, math.inf]]]
    found = nearest_depths(pixels[:2], torch.tensor([-1.0, 2.0]), torch.tensor([0, 1]), 2, (8, 8), 4)
    assert found[:, 0, 0].tolist() == [math.inf, 2.0]


def rays(pixels, depth, frames):
    number = len(pixels)
    unit = torch.tensor([[0.0, 0.0, 1.0]]).expand(number, 3)
    zeros = torch.zeros(number, dtype=torch.long)
    depth = torch.tensor(depth)
    return RayLabels(torch.zeros(number, 3), unit, depth, depth, zeros, torch.ones(number), torch.tensor(frames),
                     zeros, torch.tensor(pixels), zeros, (-1, 0, 1))  # fmt: skip


def test_rays_of_the_key_frame_go_through_the_image_transform():
    """Original (20, 30) at half size, cut at (2, 3) and mirrored in 16 columns: (16 - 8, 12), cell (3, 2)."""
    a = ImageTransform(0.5, 2, 3, 16, 16, flip=True).matrix().float()[None, None, None]
    k = torch.eye(3)[None, None, None]
    cameras = LiftCameras(a, k, a, torch.eye(4)[None])
    labels = rays([[20.0, 30.0], [20.0, 30.0], [20.0, 30.0]], [4.0, 1.0, 9.0], [1, 0, 1])
    found = ray_depths(labels, cameras, (16, 16), 4)
    assert found.shape == (1, 1, 4, 4) and float(found[0, 0, 3, 2]) == 4.0
    assert int(torch.isfinite(found).sum()) == 1
    none = ray_depths(labels.select(torch.zeros(3, dtype=torch.bool)), cameras, (16, 16), 4)
    assert torch.isinf(none).all()


def test_the_loss_by_hand():
    """Two labelled cells: uniform over 4 bins costs -ln(1/4) - 3 ln(3/4); a certain right answer costs nothing."""
    logits = torch.zeros(1, 4, 1, 4)
    logits[0, :, 0, 1] = torch.tensor([0.0, 40.0, 0.0, 0.0])
    depth = torch.tensor([[[3.2, 2.9, math.inf, 0.2]]])
    expected = (-math.log(0.25) - 3 * math.log(0.75)) / 2
    assert float(depth_bin_loss(logits, depth, BINS)) == pytest.approx(expected, abs=1e-5)


def test_no_label_gives_zero_and_gradients_are_finite():
    logits = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 100  # saturated
    logits.requires_grad_()
    loss = depth_bin_loss(logits, torch.full((2, 3, 3), math.inf), BINS)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()
    logits.grad = None
    depth_bin_loss(logits, torch.full((2, 3, 3), 2.5), BINS).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.any()
    with pytest.raises(ValueError, match="logits must be"):
        depth_bin_loss(logits, torch.zeros(2, 3), BINS)
