"""Losses of rendered rays and class weights: the vectors of specs/occflownet_splattingocc.md and sums by hand."""

import math

import pytest
import torch

from syntheocc.occupancy import losses
from syntheocc.occupancy.losses.rendering import FREE_MARGIN, HIT_EPSILON


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_v7_class_weights():
    log = [
        1.3471, 1.2018, 1.7324, 1.1465, 0.7410, 1.4129, 1.6782, 1.1886, 1.5273, 1.1662, 0.9601, 0.2417, 1.0154, 0.5005,
        0.4612, 0.3496, 0.3295,
    ]  # fmt: skip
    cross_entropy = [
        0.07160, 0.06825, 0.08232, 0.06705, 0.05943, 0.07323, 0.08062, 0.06796, 0.07624, 0.06748, 0.06332, 0.05213,
        0.06438, 0.05567, 0.05510, 0.05355, 0.05328,
    ]  # fmt: skip
    drawing = [
        1.3973, 1.1365, 933.3283, 1.2505, 1.0254, 1.8349, 14.2227, 1.5039, 5.2462, 1.2162, 1.0659, 1.0001, 1.1619,
        1.0127, 1.0116, 1.0, 1.0024,
    ]  # fmt: skip
    weights = losses.log_frequency_weights(losses.OCC3D_COUNTS)
    torch.testing.assert_close(weights, torch.tensor(log), rtol=0, atol=5.1e-5)
    assert weights.mean() == pytest.approx(1.0)
    found = losses.frequency_weights(losses.OCC3D_COUNTS)
    torch.testing.assert_close(found, torch.tensor(cross_entropy), rtol=0, atol=5.1e-6)
    found = losses.sampling_balance(losses.OCC3D_RAY_COUNTS)
    torch.testing.assert_close(found, torch.tensor(drawing), rtol=1e-6, atol=5.1e-5)


def test_effective_numbers_lie_between_equal_and_inverse_weights():
    counts = [10.0, 1000.0]
    assert losses.effective_number_weights(counts, 0.0).tolist() == [1.0, 1.0]
    first, second = losses.effective_number_weights(counts, 1 - 1e-12).tolist()
    assert first / second == pytest.approx(100, rel=1e-3)
    first, second = losses.effective_number_weights(counts, 0.9).tolist()
    assert first / second == pytest.approx((1 - 0.9**1000) / (1 - 0.9**10), rel=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.log_frequency_weights([1, 0]),
        lambda: losses.log_frequency_weights([3]),
        lambda: losses.sampling_balance([]),
        lambda: losses.effective_number_weights([1, 2], 1.0),
        lambda: losses.depth_loss(torch.ones(1), torch.ones(1), kind="ssim"),  # type: ignore[arg-type]
    ],
)
def test_impossible_settings_are_refused(call):
    with pytest.raises(ValueError, match="got"):
        call()


def test_v1_cross_entropy_of_composited_logits():
    logits = torch.tensor([[0.07842112, 0.26311311, 0.69002970]], dtype=torch.float64)
    assert losses.semantic_loss(logits, torch.tensor([1])) == pytest.approx(1.21309659, abs=1e-6)
    both = torch.cat([logits, logits.flip(1)])
    labels, weights = torch.tensor([1, 255]), torch.tensor([3.0, 100.0])
    assert losses.semantic_loss(both, labels, weights) == pytest.approx(3 * 1.21309659, abs=1e-6)
    assert losses.semantic_loss(both, labels, weights, weighted=True) == pytest.approx(1.21309659, abs=1e-6)


def test_v20_silog():
    depth, target = leaf(8, 12, 30), leaf(10, 10, 33)
    assert float(losses.silog_loss(depth, target).detach()) == pytest.approx(0.17016414, abs=1e-6)
    assert losses.depth_loss(depth, target, kind="silog") == losses.silog_loss(depth, target)
    # Rays that do not count may hold anything, and repeating a ray is weighing it twice.
    masked = losses.silog_loss(leaf(8, 12, 30, 0), leaf(10, 10, 33, math.nan), mask=torch.tensor([1, 1, 1, 0]).bool())
    assert float(masked.detach()) == pytest.approx(0.17016414, abs=1e-6)
    twice = losses.silog_loss(leaf(8, 8, 12, 30), leaf(10, 10, 10, 33))
    weighted = losses.silog_loss(depth, target, torch.tensor([2.0, 1, 1]))
    assert float(weighted) == pytest.approx(float(twice), abs=1e-12)


def test_v21_entropy_and_distortion():
    assert float(losses.binary_entropy(leaf(0.2, 0.9))) == pytest.approx(0.41274270, abs=1e-6)
    weights, midpoints = leaf(0.2, 0.5, 0.3)[None], leaf(0.1, 0.3, 0.5)[None]
    assert float(losses.distortion_loss(weights, midpoints, 0.2)) == pytest.approx(0.17333333, abs=1e-6)


def test_distortion_is_the_double_sum():
    g = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 6, generator=g, dtype=torch.float64, requires_grad=True)
    midpoints = torch.rand(3, 6, generator=g, dtype=torch.float64).cumsum(1)
    lengths = torch.rand(3, 6, generator=g, dtype=torch.float64)
    apart = (midpoints[:, :, None] - midpoints[:, None]).abs()
    slow = (weights[:, :, None] * weights[:, None] * apart).sum((1, 2)) + (weights**2 * lengths).sum(1) / 3
    fast = losses.distortion_loss(weights, midpoints, lengths)
    torch.testing.assert_close(fast, slow.mean())
    torch.testing.assert_close(*(torch.autograd.grad(value, weights)[0] for value in (fast, slow.mean())))


def test_depth_losses_by_hand():
    depth, target, weights = leaf(1, 4), leaf(2, 2), torch.tensor([1.0, 3.0])
    assert float(losses.depth_loss(depth, target, weights)) == pytest.approx((1 * 1 + 3 * 4) / 2)
    assert float(losses.depth_loss(depth, target, kind="l1")) == pytest.approx(1.5)
    assert float(losses.depth_loss(depth, target, kind="huber")) == pytest.approx((0.5 + 1.5) / 2)
    near = torch.tensor([True, False])
    assert float(losses.depth_loss(leaf(1, math.nan), target, weights, mask=near)) == pytest.approx(1.0)


def test_hit_free_space_and_conditional_semantics_by_hand():
    assert float(losses.hit_loss(leaf(1.0, 0.5))) == pytest.approx(-(math.log(1.0001) + math.log(0.5001)) / 2)
    weights, distances = leaf(0.2, 0.5, 0.3)[None], leaf(1.0, 9.1, 9.3)[None]
    front = losses.mass_before(weights, distances, torch.tensor([10.0]) - FREE_MARGIN)
    assert front.tolist() == pytest.approx([0.7])
    assert float(losses.free_space_loss(front, torch.tensor([0.5]))) == pytest.approx(0.35)
    # Half of the ray is stopped, by class 1 with certainty: as good as a whole one.
    semantics = torch.tensor([[0.0, 0.5, 0.0]], dtype=torch.float64)
    loss = losses.conditional_semantic_loss(semantics, leaf(0.5), torch.tensor([1]))
    assert float(loss) == pytest.approx(-math.log((0.5 + HIT_EPSILON) / (0.5 + 3 * HIT_EPSILON)))
    # Nothing at all: no class is better than another.
    nothing = losses.conditional_semantic_loss(torch.zeros(1, 3), torch.zeros(1), torch.tensor([2]))
    assert float(nothing) == pytest.approx(math.log(3))


def test_total_variation_by_hand():
    volume = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    volume[0, 0, 0, 0] = 1
    # One of the four differences along each axis.
    assert float(losses.total_variation(volume)) == pytest.approx(3 / 4)
    assert float(losses.total_variation(volume[..., None].repeat(1, 1, 1, 1, 5))) == pytest.approx(3 / 4)


@pytest.mark.parametrize("case", ["empty", "masked"])
def test_without_a_ray_losses_are_zero_and_differentiable(case):
    rays = 0 if case == "empty" else 2
    one = torch.full((rays,), math.nan, requires_grad=True)
    semantics = torch.zeros(rays, 3, requires_grad=True)
    target, none = torch.full((rays,), math.nan), torch.zeros(rays, dtype=torch.bool)
    labels = torch.full((rays,), 255)
    found = [
        losses.semantic_loss(semantics, labels),
        losses.conditional_semantic_loss(semantics, torch.nan_to_num(one), labels),
        losses.hit_loss(one, mask=none),
        losses.free_space_loss(one, mask=none),
        *(losses.depth_loss(one, target, mask=none, kind=kind) for kind in ("mse", "l1", "huber", "silog")),
    ]
    if case == "empty":
        found += [losses.silog_loss(one, target), losses.binary_entropy(one)]
        found += [losses.distortion_loss(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4), 0.1)]
    for loss in found:
        assert float(loss) == 0
        loss.backward()
    assert float(one.grad.nan_to_num(9.0).abs().sum()) == 0 and float(semantics.grad.abs().sum()) == 0


def test_extreme_rays_keep_finite_gradients():
    """Perfect depths, depths of 0, opacities of exactly 0 and 1."""
    for depth, target in ((leaf(2, 3), leaf(2, 3)), (leaf(0, 3), leaf(2, 3))):
        losses.silog_loss(depth, target).backward()
        assert bool(torch.isfinite(depth.grad).all())
    p = leaf(0, 1, 0.5)
    (losses.binary_entropy(p) + losses.hit_loss(p)).backward()
    assert bool(torch.isfinite(p.grad).all())


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(50, 17, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(50) % 17
    assert losses.semantic_loss(logits, labels) == losses.semantic_loss(logits.float(), labels)
    depth = torch.linspace(1, 50, 50).half()
    assert losses.silog_loss(depth, depth * 1.1).dtype == torch.float32
