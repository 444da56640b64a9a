"""The loss weights against the formulas of specs/syntheocc.md 3, by hand."""

import math

import pytest
import torch

from syntheocc.training.loss_weights import LossWeights, depth_weight, loss_weight_map, progressive_weight


def test_depth_weight_by_hand():
    # -0.5 (1 + cos(pi plane / 255)) + 2.1: cosines of 0, 60, 120 and 180 degrees are 1, 0.5, -0.5, -1.
    weights = depth_weight(torch.tensor([0, 85, 170, 255]))
    assert weights.tolist() == pytest.approx([1.1, 1.35, 1.85, 2.1], abs=1e-6)
    assert depth_weight(torch.tensor([0, 95], dtype=torch.uint8), num_planes=96).tolist() == pytest.approx([1.1, 2.1])


def test_progressive_weight_by_hand():
    assert [progressive_weight(step, 300) for step in (0, 100, 150, 200, 300)] == pytest.approx(
        [1.2, 1.45, 1.7, 1.95, 2.2]
    )
    assert progressive_weight(400, 300) == pytest.approx(2.2), "a longer run does not come down again"


def test_map_by_hand():
    # Free, a car on the nearest plane, a barrier on the farthest, a road: 1, 1.1 x 1.7, 2.1 x 1.7, 1.
    nearest = torch.tensor([[0, 1, 10, 11]], dtype=torch.uint8)
    plane = torch.tensor([[0, 0, 255, 255]], dtype=torch.int16)
    weights = loss_weight_map(nearest, plane, 50, 100)
    assert weights.dtype == torch.float32
    assert weights[0].tolist() == pytest.approx([1, 1.87, 3.57, 1], abs=1e-6)


@pytest.mark.parametrize(
    "weights, expected",
    [
        (LossWeights(depth=False), 1.7),
        (LossWeights(progressive=False), 1.1),
        (LossWeights(depth=False, progressive=False), 1.0),
        (LossWeights(foreground=(3,)), 1.0),
    ],
)
def test_weights_can_be_left_out(weights, expected):
    got = loss_weight_map(torch.tensor([[[1]]], dtype=torch.uint8), torch.tensor([[[0]]]), 50, 100, weights)
    assert got.item() == pytest.approx(expected)


def test_map_is_the_formula_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    nearest = torch.randint(0, 17, (2, 3, 4, 5), dtype=torch.uint8, generator=generator)
    plane = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=generator)
    got = loss_weight_map(nearest, plane, 7, 31)
    for label, depth, weight in zip(
        nearest.flatten().tolist(), plane.flatten().tolist(), got.flatten().tolist(), strict=True
    ):
        expected = 1.0
        if 1 <= label <= 10:
            w_depth = -0.5 * (1 + math.cos(math.pi * depth / 255)) + 2.1
            w_progress = -0.5 * (1 + math.cos(math.pi * 7 / 31)) + 2.2
            expected = w_depth * w_progress
        assert weight == pytest.approx(expected, rel=1e-5)
