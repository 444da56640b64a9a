"""Gaussian splatting of occupancy: vectors V10 to V16, back-ends against each other, mirrored grids, moving boxes."""

import math

import pytest
import torch

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.losses.rendering import conditional_semantic_loss, free_space_loss, hit_loss, silog_loss
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.perception.transforms import GridTransform
from syntheocc.occupancy.rendering.gaussian import (
    Gaussians,
    SplatSettings,
    decide,
    gaussians_from_volume,
    splat,
    unflip,
)
from syntheocc.occupancy.rendering.gaussian_motion import GaussianMoves
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.occupancy.rendering.splat_images import project_gaussians, splat_pixels
from syntheocc.occupancy.rendering.splat_views import SplatRays, SplatViews
from syntheocc.occupancy.transforms import rotation_z

SPEC = GridSpec((-4.8, -4.0, -1.0), 0.4, (24, 20, 8))
DOUBLE = torch.float64
V10 = torch.tensor([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]], dtype=DOUBLE)
V13_K = torch.tensor([[1266.4172, 0, 816.2670], [0, 1266.4172, 491.5071], [0, 0, 1]], dtype=DOUBLE)
V13_CAM2EGO = torch.tensor([[0, 0, 1, 1.7], [-1, 0, 0, 0.02], [0, -1, 0, 1.51], [0, 0, 0, 1]], dtype=DOUBLE)


def numbers(*values):
    return torch.tensor(values, dtype=DOUBLE)


def painted(means, scales, opacities, pixels, intrinsics=V10, ego2cam=None, features=None, size=(900, 1600)):
    """`splat_pixels` of a few splats at the centres of whole pixels."""
    means = torch.tensor(means, dtype=DOUBLE)
    features = torch.eye(len(means), 3, dtype=DOUBLE) if features is None else features
    ego2cam = torch.eye(4, dtype=DOUBLE) if ego2cam is None else ego2cam
    at = torch.tensor(pixels, dtype=DOUBLE) + 0.5
    return splat_pixels(means, numbers(*scales), numbers(*opacities), features, ego2cam, intrinsics, *size, at)


def close(found, *expected, tolerance=1e-6):
    torch.testing.assert_close(found, numbers(*expected).view(found.shape), rtol=0, atol=tolerance)


def test_v10_one_splat():
    means, covariance, depth = project_gaussians(
        numbers(0, 0, 10)[None], numbers(0.1), torch.eye(4, dtype=DOUBLE), V10, 900, 1600
    )
    close(means, 800, 450)
    close(covariance, 159.06, 0, 0, 159.06)
    close(depth, 10)
    row = [[u, 450] for u in (800, 810, 825, 840, 860)]
    _, weight, depth, _ = painted([[0, 0, 10]], [0.1], [0.9], row)
    close(weight, 0.89858655, 0.63590016, 0.11646245, 0.00518379, 0)
    close(depth[:1], 8.98586551)
    close(depth[:1] / weight[:1], 10)


def test_v10_at_a_quarter_of_the_size():
    cameras = SplatViews.from_matrices(
        torch.eye(4, dtype=DOUBLE)[None], V10[None] - 0.5 * _principal(), (900, 1600), 0.25
    )
    close(cameras.intrinsics[0], 315, 0, 200, 0, 315, 112.5, 0, 0, 1)
    assert (cameras.height, cameras.width) == (225, 400)
    _, covariance, _ = project_gaussians(
        numbers(0, 0, 10)[None], numbers(0.1), cameras.ego2cam[0], cameras.intrinsics[0], 225, 400
    )
    close(covariance, 10.2225, 0, 0, 10.2225)
    _, weight, _, _ = painted(
        [[0, 0, 10]], [0.1], [0.9], [[200, 112], [210, 112]], cameras.intrinsics[0], size=(225, 400)
    )
    close(weight, 0.88906188, 0.00409546)


def _principal():
    return torch.tensor([[[0.0, 0, 1], [0, 0, 1], [0, 0, 0]]], dtype=DOUBLE)


def test_v11_two_splats():
    seen, weight, depth, _ = painted([[0, 0, 10], [0, 0, 12]], [0.1, 0.1], [0.6, 0.9], [[800, 450]])
    close(seen, 0.59905770, 0.36003296, 0)
    close(weight, 0.95909066)
    close(depth, 10.31097255)
    close(depth / weight, 10.75077983)
    close(1 - weight, 0.04090934)


def test_v12_off_axis():
    mean, covariance, _ = project_gaussians(
        numbers(3, -1, 8)[None], numbers(0.2), torch.eye(4, dtype=DOUBLE), V10, 900, 1600
    )
    close(mean, 1272.5, 292.5)
    close(covariance, 1132.08515625, -46.51171875, -46.51171875, 1008.05390625)
    close(torch.linalg.inv(covariance), 8.850034e-4, 4.083416e-5, 4.083416e-5, 9.938945e-4, tolerance=1e-9)
    _, weight, _, _ = painted([[3, -1, 8]], [0.2], [0.5], [[1272, 292], [1300, 292]])
    close(weight, 0.5, 0.35343046)
    close(along_rays([3, -1, 8], 0.2, 0.5, [[1300, 292]]).weight_sum, 0.35519584)


def along_rays(mean, scale, opacity, pixels, intrinsics=V10, ego2cam=None):
    """The exact response of one splat."""
    ego2cam = torch.eye(4, dtype=DOUBLE) if ego2cam is None else ego2cam
    spec = GridSpec(tuple(v - 0.2 for v in mean), 0.4, (1, 1, 1))
    one = torch.full((1, 1, 1, 1), opacity, dtype=DOUBLE)
    none = torch.zeros(1, dtype=torch.int64)
    views = SplatViews(ego2cam[None], intrinsics[None], 900, 1600, none, none)
    rays = views.rays(torch.zeros(len(pixels), dtype=torch.int64), torch.tensor(pixels, dtype=DOUBLE) + 0.5)
    return splat(Gaussians(one, one[..., None], scale, spec), rays, backend="torch_sparse")


def test_v13_from_a_voxel_to_the_image():
    spec = OCC3D_NUSCENES.spec
    centre = spec.centers()[130, 100, 6]
    close(centre, 12.2, 0.2, 1.6)
    ego2cam = torch.linalg.inv(V13_CAM2EGO)
    close(ego2cam[:3, :3] @ centre + ego2cam[:3, 3], -0.18, -0.09, 10.5)
    mean, covariance, _ = project_gaussians(centre[None], numbers(0.2), ego2cam, V13_K, 900, 1600)
    close(mean, 794.55699086, 480.65209543)
    close(covariance, 582.35309713, 0.08550104, 0.08550104, 582.22484556)
    _, weight, _, _ = painted([centre.tolist()], [0.2], [0.8], [[794, 465]], V13_K, ego2cam)
    close(weight, 0.65684397)


def test_v16_the_exact_response_is_within_half_a_percent_of_the_rasterisers():
    row = [[u, 450] for u in (800, 810, 825, 840)]
    exact = along_rays([0, 0, 10], 0.1, 0.9, row)
    close(exact.weight_sum, 0.89858388, 0.63549830, 0.11611069, 0.00516097)
    close(exact.depth, 9.999998, 9.999652, 9.997952, 9.994837)
    _, weight, _, _ = painted([[0, 0, 10]], [0.1], [0.9], row)
    assert float((exact.weight_sum / weight - 1).abs().max()) < 0.005


def scene(batch=2, classes=5, learned=False, seed=0):
    """Raw heads of a random volume, float64."""
    g = torch.Generator().manual_seed(seed)
    raw = 2 * torch.randn(batch, *SPEC.shape, generator=g, dtype=DOUBLE) - 3.5
    logits = torch.randn(batch, *SPEC.shape, classes, generator=g, dtype=DOUBLE)
    if not learned:
        return raw, logits, None, None
    return (
        raw,
        logits,
        torch.randn(raw.shape, generator=g, dtype=DOUBLE),
        torch.randn(*raw.shape, 3, generator=g, dtype=DOUBLE),
    )


def views_of(batch=2, frames=2, size=(36, 64)):
    """Cameras in the volume's corner and outside of it that look inwards, their principal points off the middle."""
    poses, samples, times = [], [], []
    for b in range(batch):
        for t in range(frames):
            for yaw, x in ((0.3, -5.5), (2.8, 3.9)):
                pose = rotation_z(yaw + 0.1 * t) @ V13_CAM2EGO
                pose[:3, 3] = numbers(x, 0.5 * t - 0.3, 0.4)
                poses.append(pose)
                samples.append(b)
                times.append(t)
    matrix = numbers(50, 0, size[1] / 2 + 3, 0, 52, size[0] / 2 - 4, 0, 0, 1).view(1, 3, 3)
    return SplatViews.from_matrices(
        torch.stack(poses), matrix.expand(len(poses), 3, 3), size, 1.0, torch.tensor(samples), torch.tensor(times)
    )


def boxes(batch=2):
    """Two boxes that move and turn between frame 0 (the key frame) and frame 1, overlapping at key time."""
    rows = []
    for b in range(batch):
        for k, (x, y, label) in enumerate(((-1.0, 0.5, 1), (0.2, 0.4, 2))):
            source, target = rotation_z(0.2 * k), rotation_z(0.9 - k)
            source[:3, 3], target[:3, 3] = numbers(x, y, 0.2), numbers(x + 1.3, y - 1.1 * k - 0.4, 0.3)
            rows.append((source, target, numbers(2.0, 1.2, 1.0), label, 1, b))
    source, target, sizes, labels, frames, samples = zip(*rows, strict=True)
    return BoxMotion(
        *(torch.stack(part) for part in (source, target, sizes)),
        *(torch.tensor(part) for part in (labels, frames, samples)),
    )


def some_pixels(views, number=40, seed=5):
    """The same random pixels' centres in all views."""
    g = torch.Generator().manual_seed(seed)
    view = torch.arange(len(views)).repeat_interleave(number)
    extent = torch.tensor([views.width, views.height], dtype=DOUBLE)
    return views.rays(view, (torch.rand(len(view), 2, generator=g, dtype=DOUBLE) * extent).floor() + 0.5)


def results(gaussians_of, leaves, rays, settings, moves_of, backend, limits):
    """Outputs and gradients to the raw heads."""
    leaves = [None if leaf is None else leaf.clone().requires_grad_() for leaf in leaves]
    gaussians = gaussians_of(*leaves)
    out = splat(gaussians, rays, settings, moves_of(gaussians), limits, backend)
    parts = [out.weight_sum, out.depth, out.semantics, out.front]
    g = torch.Generator().manual_seed(2)
    loss = sum((part * torch.randn(part.shape, generator=g, dtype=part.dtype)).sum() for part in parts)
    grads = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])
    return [part.detach() for part in parts], grads


@pytest.mark.parametrize("moving", [False, True], ids=["still", "moving"])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("response", ["ray", "ewa"])
def test_backends_agree_on_a_random_volume_with_gradients(response, learned, moving):
    """7.2, to 1e-8 in float64 (1e-6 asked for). Moved Gaussians: rays that go back here, means that go along there."""
    settings = SplatSettings(response=response, depth="sum", feature="prob" if learned else "logit")
    rays = some_pixels(views_of(), 8 if response == "ray" else 40)
    limits = torch.linspace(0.5, 6, len(rays), dtype=DOUBLE)
    found = [
        results(
            lambda raw, logits, scale, offset: gaussians_from_volume(raw, logits, SPEC, settings, scale, offset),
            scene(learned=learned), rays, settings,
            lambda g: GaussianMoves.of(boxes(), g.classes, SPEC) if moving else None, backend, limits,
        )
        for backend in ("torch_reference", "torch_sparse")
    ]  # fmt: skip
    assert float(found[0][0][0].mean()) > 0.3
    for slow, fast in zip(*[[*outputs, *grads] for outputs, grads in found], strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-8 * max(1.0, float(slow.abs().max())))


def test_rays_through_moved_gaussians_see_what_moved_means_show():
    """The exact response again, against Gaussians that were really moved: a lattice of one voxel each."""
    settings = SplatSettings(depth="sum")
    raw, logits, _, _ = scene(batch=1)
    gaussians = gaussians_from_volume(raw, logits, SPEC, settings)
    motion = boxes(batch=1)
    moves = GaussianMoves.of(motion, gaussians.classes, SPEC)
    means = moves.means(gaussians.means[0], 0, 1)
    moved = (means - gaussians.means[0]).norm(dim=-1) > 1e-9
    assert 5 < int(moved.sum()) < 300 and set(gaussians.classes[0][moved].tolist()) == {1, 2}
    # The same Gaussians with their means as offsets from the centres, which no box moves any more.
    placed = Gaussians(gaussians.opacity, gaussians.features, gaussians.scale, SPEC, (means - SPEC.centers())[None])
    rays = some_pixels(views_of(batch=1), 30)
    at_one = [i for i in range(len(rays)) if int(rays.frames[i]) == 1]
    seen = splat(gaussians, rays, settings, moves, backend="torch_sparse")
    expected = splat(placed, rays, settings, backend="torch_reference")
    still = splat(gaussians, rays, settings, backend="torch_sparse")
    torch.testing.assert_close(seen.semantics[at_one], expected.semantics[at_one], rtol=0, atol=1e-9)
    assert float((seen.semantics - still.semantics)[at_one].abs().max()) > 0.05
    key = [i for i in range(len(rays)) if int(rays.frames[i]) == 0]
    assert torch.equal(seen.semantics[key], still.semantics[key])  # nothing moves at key time


def test_a_box_beyond_the_grid_or_of_another_class_moves_nothing():
    raw, logits, _, _ = scene(batch=1)
    gaussians = gaussians_from_volume(raw, logits, SPEC)
    far = boxes(batch=1)
    far.source2ego[:, 0, 3] += 100
    assert int(GaussianMoves.of(far, gaussians.classes, SPEC).owners.sum()) == 0
    other = boxes(batch=1)
    other.labels += 17
    assert int(GaussianMoves.of(other, gaussians.classes, SPEC).owners.sum()) == 0
    assert int(GaussianMoves.of(other, None, SPEC).owners.sum()) > 0
    assert GaussianMoves.of(BoxMotion.empty(), gaussians.classes, SPEC) is None


def test_frames_are_needed_where_gaussians_move():
    raw, logits, _, _ = scene(batch=2)
    gaussians = gaussians_from_volume(raw, logits, SPEC)
    rays = some_pixels(views_of(), 2)
    timeless = SplatRays(rays.origins, rays.directions, rays.samples)
    with pytest.raises(ValueError, match=r"give SplatRays\.frames"):
        splat(gaussians, timeless, moves=GaussianMoves.of(boxes(), None, SPEC))


def label_rays(number=60, seed=1):
    """Labels whose rays start in the volume, one sample."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(number, 3, generator=g, dtype=DOUBLE) * numbers(1, 1, 0.3)
    directions = directions / directions.norm(dim=1, keepdim=True)
    zeros = torch.zeros(number, dtype=torch.int64)
    distance = 1 + 4 * torch.rand(number, generator=g, dtype=DOUBLE)
    return RayLabels(
        origins=numbers(0.3, -0.2, 0.1).expand(number, 3), directions=directions, distance=distance, depth=distance,
        labels=torch.randint(5, (number,), generator=g), weights=torch.ones(number, dtype=DOUBLE), frames=zeros,
        cameras=zeros, pixels=torch.zeros(number, 2, dtype=DOUBLE), samples=zeros, frame_offsets=(0,),
    )  # fmt: skip


def splatting_loss(gaussians, labels):
    """The losses of 4.2."""
    out = splat(gaussians, SplatRays.from_labels(labels), front_limits=labels.distance - 0.8)
    seen = (out.weight_sum > 0.05) & (labels.distance <= 52)
    return (
        conditional_semantic_loss(out.semantics, out.weight_sum, labels.labels, labels.weights)
        + silog_loss(out.depth, labels.distance, labels.weights, seen)
        + hit_loss(out.weight_sum, labels.weights)
        + 0.5 * free_space_loss(out.front)
    )


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


def test_autocast_changes_nothing():
    raw, logits, _, _ = (None if part is None else part.float() for part in scene())
    settings = SplatSettings(response="ewa")
    rays = some_pixels(views_of(), 5)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            gaussians = gaussians_from_volume(raw, logits, SPEC, settings)
            moves = GaussianMoves.of(boxes().to(dtype=torch.float32), gaussians.classes, SPEC)
            found.append(splat(gaussians, rays, settings, moves).semantics)
    assert torch.equal(*found)


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


def test_labels_find_their_views_and_pixels():
    """Views are ordered sample, frame, camera; an integer pixel is a centre here and i + 0.5 for a rasteriser."""
    views = views_of(batch=2, frames=2)
    none = torch.zeros(3, 3, dtype=DOUBLE)
    index = torch.tensor
    pixels = numbers(10.0, 20.0, 3.4, 7.5, 0.0, 0.0).view(3, 2)
    labels = RayLabels(
        none, none + 1, none[:, 0] + 1, none[:, 0] + 1, index([0, 1, 2]), none[:, 0], index([0, 1, 1]),
        index([1, 0, 1]), pixels, index([0, 0, 1]), (0, 1),
    )  # fmt: skip
    rays = SplatRays.from_labels(labels, views)
    assert rays.view.tolist() == [1, 2, 7] and rays.samples.tolist() == [0, 0, 1] and rays.frames.tolist() == [0, 1, 1]
    close(rays.pixels, 10.5, 20.5, 3.9, 8.0, 0.5, 0.5)
    close(SplatRays.from_labels(labels, views, snap=True).pixels, 10.5, 20.5, 3.5, 8.5, 0.5, 0.5)
    # Through the pixel: what the camera itself says (OpenCV convention).
    matrix = views.intrinsics[1].clone()
    matrix[:2, 2] -= 0.5
    way = torch.linalg.inv(views.ego2cam[1])[:3, :3] @ torch.linalg.inv(matrix) @ numbers(10, 20, 1)
    close(rays.directions[0], *(way / way.norm()).tolist(), tolerance=1e-12)
    with pytest.raises(ValueError, match="8 views are not the cameras"):
        SplatRays.from_labels(RayLabels(**(vars(labels) | {"frame_offsets": (0, 1, 2)})), views)


def test_an_image_is_all_rays(camera_at):
    """The whole picture through the sparse back-end, with full intrinsics and at a part of the size."""
    spec = GridSpec((3.0, -0.2, 1.3), 0.4, (1, 1, 1))
    one = torch.ones(1, 1, 1, 1, dtype=DOUBLE)
    views = SplatViews.from_cameras([camera_at(0.0, focal=100.0, height=45, width=80)], 0.5)
    rays = views.all_rays()
    assert len(rays) == 22 * 40
    image = splat(Gaussians(one, one[..., None], 0.2, spec), rays).weight_sum.view(22, 40)
    peak = divmod(int(image.argmax()), 40)
    # The camera looks along x from (0, 0, 1.5), where the splat's centre is on its axis.
    assert peak in {(10, 19), (10, 20), (11, 19), (11, 20)} and float(image.max()) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.5}, "scale must lie within scale_range"),
        ({"max_offset": 0.0}, "max_offset must be positive"),
        ({"near": 2.0, "far": 1.0}, "near < far"),
        ({"feature": "rgb"}, "feature must be one of"),
        ({"response": "fast"}, "response must be one of"),
        ({"depth": "z"}, "depth must be one of"),
        ({"hard_mask": 1.0}, "hard_mask is an opacity"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        SplatSettings(**change)


def test_wrong_arguments_are_named():
    raw, logits, _, _ = scene(batch=1)
    gaussians = gaussians_from_volume(raw, logits, SPEC)
    rays = SplatRays.from_labels(label_rays(3))
    for arguments, message in (
        ({"backend": "cuda"}, "backend must be one of"),
        ({"backend": "gsplat"}, "needs SplatRays.views"),
        ({"settings": SplatSettings(response="ewa")}, "needs SplatRays.views"),
        ({"backend": "triton"}, "triton"),
    ):
        with pytest.raises(ValueError, match=message):
            splat(gaussians, rays, **arguments)
    beyond = SplatRays(rays.origins, rays.directions, rays.samples + 1)
    with pytest.raises(ValueError, match="rays of sample 1, but 1 samples"):
        splat(gaussians, beyond)
    with pytest.raises(ValueError, match="a volume is raw"):
        gaussians_from_volume(raw[:, :-1], logits, SPEC)
    if not has_module("gsplat"):
        with pytest.raises(ValueError, match="backend 'gsplat' cannot run on cpu"):
            splat(gaussians, some_pixels(views_of(batch=1), 1), backend="gsplat")


@pytest.mark.gpu
@pytest.mark.skipif(not has_module("gsplat"), reason="needs gsplat")
@pytest.mark.parametrize("moving", [False, True], ids=["still", "moving"])
def test_gsplat_agrees(moving):
    """To 1e-3, as asked; gsplat stops where less than 1e-4 is left."""
    settings = SplatSettings(response="ewa", depth="sum")
    heads = [part.float().cuda() for part in scene()[:2]]
    gaussians = gaussians_from_volume(*heads, SPEC, settings)
    rays = some_pixels(views_of().to("cuda", torch.float32).to(dtype=torch.float32), 40)
    moves = GaussianMoves.of(boxes().to("cuda", torch.float32), gaussians.classes, SPEC) if moving else None
    ours = splat(gaussians, rays, settings, moves, backend="torch_sparse")
    theirs = splat(gaussians, rays, settings, moves, backend="gsplat")
    for name in ("weight_sum", "semantics", "depth"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert float((one - other).abs().max()) < 1e-3 * max(1.0, float(one.abs().max())), name


@pytest.mark.gpu
def test_the_kernels_agree_on_a_gpu():
    settings = SplatSettings(depth="sum")
    heads = [part.float() for part in scene(learned=True)]
    rays = some_pixels(views_of().to(dtype=torch.float32), 40)
    found = []
    for device, backend in (("cpu", "torch_sparse"), ("cuda", "triton"), ("cuda", "torch_sparse")):
        parts = [part.to(device) for part in heads]
        gaussians = gaussians_from_volume(*parts[:2], SPEC, settings, *parts[2:])
        moves = GaussianMoves.of(boxes().to(device, torch.float32), gaussians.classes, SPEC)
        moved = SplatRays(*(t.to(device) for t in (rays.origins, rays.directions, rays.samples, rays.frames)))
        out = splat(gaussians, moved, settings, moves, backend=backend)
        found.append([out.weight_sum.cpu(), out.depth.cpu(), out.semantics.cpu()])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert math.isclose(float((one - two).abs().max()), 0, abs_tol=1e-4)
