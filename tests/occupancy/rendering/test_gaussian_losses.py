"""From heads to losses of splatted Gaussians: activations, mirrored grids (V14), gradients, and what is learnt."""

import pytest
import torch
from splat_scene import DOUBLE, SPEC, label_rays, scene, splatting_loss

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.losses.rendering import free_space_loss, hit_loss, silog_loss
from syntheocc.occupancy.perception.transforms import GridTransform
from syntheocc.occupancy.rendering.gaussian import decide, gaussians_from_volume, splat, unflip
from syntheocc.occupancy.rendering.rays import RayLabels
from syntheocc.occupancy.rendering.splat_views import SplatRays


@pytest.mark.parametrize("flip_y", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
def test_loss_does_not_depend_on_the_mirroring_of_the_grid(flip_x, flip_y):
    """7.3, learned offsets included: a network that saw the mirrored grid says the mirrored volume."""
    heads = scene(batch=1, learned=True)
    labels = label_rays()
    transform = GridTransform(flip_x=flip_x, flip_y=flip_y).matrix()
    flips = torch.tensor([[flip_x, flip_y]])
    mirrored = [unflip(part, flips) for part in heads]
    mirrored[3] = mirrored[3] * torch.diagonal(transform)[:3]
    build = lambda parts, how: gaussians_from_volume(parts[0], parts[1], SPEC, None, *parts[2:], grid_transforms=how)  # noqa: E731
    plain = splatting_loss(build(heads, None), labels)
    back = splatting_loss(build(mirrored, transform[None]), labels)
    torch.testing.assert_close(back, plain, rtol=0, atol=1e-12)
    # The other way of the same: rays that are mirrored with the grid (V14). The grid's x and y lie about 0.
    with_rays = splatting_loss(build(mirrored, None), labels.transformed(transform))
    torch.testing.assert_close(with_rays, plain, rtol=0, atol=1e-9)
    if flip_x or flip_y:
        wrong = splatting_loss(build(mirrored, None), labels)
        assert abs(float(wrong) - float(plain)) > 1e-3


def test_grid_transforms_that_are_no_mirroring_are_refused():
    raw, logits, _, _ = scene(batch=1)
    for transform in (GridTransform(yaw=0.1), GridTransform(scale=1.1)):
        with pytest.raises(ValueError, match="transform the rays instead"):
            gaussians_from_volume(raw, logits, SPEC, grid_transforms=transform.matrix()[None])
    with pytest.raises(ValueError, match="must be \\[1, 4, 4\\]"):
        gaussians_from_volume(raw, logits, SPEC, grid_transforms=torch.eye(4).expand(2, 4, 4))


def test_activations():
    raw, logits, scale, offset = scene(batch=1, learned=True)
    zero = gaussians_from_volume(
        raw, logits, SPEC, raw_scale=torch.zeros_like(scale), raw_offset=torch.zeros_like(offset)
    )
    torch.testing.assert_close(zero.scale, torch.full_like(scale, 0.2))
    assert torch.equal(zero.means, SPEC.centers()[None].expand_as(zero.means))
    wild = gaussians_from_volume(raw, logits, SPEC, raw_scale=50 * scale, raw_offset=50 * offset)
    assert float(wild.scale.min()) >= 0.08 and float(wild.scale.max()) <= 0.32
    assert abs(float(wild.offsets.abs().max()) - 0.2) < 1e-9
    torch.testing.assert_close(zero.features.sum(-1), torch.ones_like(raw))
    half = gaussians_from_volume(raw.bfloat16(), logits.bfloat16(), SPEC)
    assert half.opacity.dtype == half.features.dtype == torch.float32
    begin = gaussians_from_volume(torch.full_like(raw, -2), logits, SPEC)
    assert abs(float(begin.opacity.mean()) - 0.1192) < 1e-4


def test_gradients_of_all_losses_reach_all_heads():
    leaves = [part.requires_grad_() for part in scene(batch=1, learned=True)]
    gaussians = gaussians_from_volume(leaves[0], leaves[1], SPEC, None, leaves[2], leaves[3])
    grads = torch.autograd.grad(splatting_loss(gaussians, label_rays()), leaves)
    assert all(bool(torch.isfinite(grad).all()) and float(grad.abs().max()) > 1e-6 for grad in grads)


def test_losses_learn_a_wall():
    """Rays that end on a wall make it opaque, clear what is in front of it, and give it its class."""
    spec = GridSpec((0.0, -1.0, -1.0), 0.4, (12, 5, 5))
    raw = torch.full((1, *spec.shape), -2.0, requires_grad=True)
    logits = torch.zeros(1, *spec.shape, 3, requires_grad=True)
    g = torch.Generator().manual_seed(0)
    at = torch.rand(200, 2, generator=g) * 1.6 - 0.8
    points = torch.cat([torch.full((200, 1), 3.4), at], 1)
    start = torch.tensor([-1.0, 0.0, 0.0])
    distance = (points - start).norm(dim=1)
    zeros = torch.zeros(200, dtype=torch.int64)
    labels = RayLabels(
        start.expand(200, 3), (points - start) / distance[:, None], distance, distance, zeros + 1, torch.ones(200),
        zeros, zeros, torch.zeros(200, 2), zeros, (0,),
    )  # fmt: skip
    optimizer = torch.optim.Adam([raw, logits], lr=0.3)
    for _ in range(40):
        optimizer.zero_grad()
        splatting_loss(gaussians_from_volume(raw, logits, spec), labels).backward()
        optimizer.step()
    decided = decide(raw.detach().sigmoid(), logits.detach(), 0.5, free=3)[0]
    assert bool((decided[8, 1:4, 1:4] == 1).all())  # the voxels from 3.2 to 3.6 m
    assert bool((decided[:6, 1:4, 1:4] == 3).all())


def test_empty_ray_sets_give_losses_of_zero_that_still_depend_on_the_heads():
    raw, logits, _, _ = scene(batch=1)
    raw.requires_grad_()
    none = RayLabels.empty((0,), dtype=DOUBLE)
    out = splat(gaussians_from_volume(raw, logits, SPEC), SplatRays.from_labels(none), front_limits=none.distance)
    loss = hit_loss(out.weight_sum) + free_space_loss(out.front) + silog_loss(out.depth, none.distance)
    loss.backward()
    assert float(loss.detach()) == 0 and float(raw.grad.abs().max()) == 0
