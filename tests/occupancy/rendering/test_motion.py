"""Backward warping of samples: vector V9, the fast path against the rule, gating by class, rendering."""

import math

import pytest
import torch

from syntheocc.occupancy import OCC3D_NUSCENES
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.rendering.compositing import weights_from_density
from syntheocc.occupancy.rendering.lookup import trilinear, voxel_coordinates
from syntheocc.occupancy.rendering.motion import warp_points, warp_rays
from syntheocc.occupancy.rendering.rays import BoxMotion
from syntheocc.occupancy.rendering.volume import Field, RenderSettings, render_rays
from syntheocc.occupancy.transforms import rotation_z

CAR = 4


def pose(x, y, z, yaw=0.0):
    matrix = rotation_z(yaw)
    matrix[:3, 3] = torch.tensor([x, y, z])
    return matrix


def boxes(*rows):
    """(source pose, target pose, size, class, frame, sample) a row."""
    source, target, sizes, labels, frames, samples = zip(*rows, strict=True)
    return BoxMotion(
        torch.stack(source), torch.stack(target), torch.tensor(sizes, dtype=torch.float64), torch.tensor(labels),
        torch.tensor(frames), torch.tensor(samples),
    )  # fmt: skip


def v9_boxes(yaw_deg=10.0):
    turned = pose(15, 1, 0.6, math.radians(yaw_deg))
    return boxes((pose(10, 0, 0.6), turned, (4.6, 1.9, 1.7), CAR, 2, 0))


def test_v9_samples_go_back_to_where_the_object_was():
    points = torch.tensor(
        [[15.16223, 1.23169, 0.8], [16, 1.5, 0.4], [10.2, 0.2, 0.8], [10.2, 0.2, 9.8]], dtype=torch.float64
    )
    frames, samples = torch.full((4,), 2), torch.zeros(4, dtype=torch.int64)
    at, moved, left = warp_points(points, frames, samples, v9_boxes())
    expected = torch.tensor([[10.2, 0.2, 0.8], [11.07163, 0.31876, 0.4], [10.2, 0.2, 0.8], [10.2, 0.2, 9.8]])
    torch.testing.assert_close(at, expected.double(), rtol=0, atol=1e-5)
    assert moved.tolist() == [True, True, False, False] and left.tolist() == [False, False, True, False]
    # Points seen in other frames, or of other samples, stay.
    for other in ((frames - 1, samples), (frames, samples + 1)):
        at, moved, left = warp_points(points, *other, v9_boxes())
        assert torch.equal(at, points) and not bool((moved | left).any())


def crowd(seed=0, number=30, dtype=torch.float64):
    """Boxes of three frames and two samples, near each other so that many overlap, and rays among them."""
    g = torch.Generator().manual_seed(seed)

    def poses():
        at = torch.rand(number, 3, generator=g) * 6 - 3
        yaw = torch.rand(number, generator=g) * 6.3
        return torch.stack([pose(*p.tolist(), float(y)) for p, y in zip(at, yaw, strict=True)])

    motion = BoxMotion(
        poses(), poses(), torch.rand(number, 3, generator=g).double() * 3 + 1,
        torch.randint(3, (number,), generator=g),
        torch.randint(3, (number,), generator=g), torch.randint(2, (number,), generator=g),
    ).to(dtype=dtype)  # fmt: skip
    origins = (torch.rand(60, 3, generator=g) * 6 - 3).to(dtype)
    directions = torch.randn(60, 3, generator=g).to(dtype)
    directions /= directions.norm(dim=1, keepdim=True)
    directions[0] = torch.tensor([0.0, 0, 1])
    frames, samples = torch.randint(3, (60,), generator=g), torch.randint(2, (60,), generator=g)
    return motion, origins, directions, frames, samples


def test_rays_follow_the_rule_for_every_sample():
    motion, origins, directions, frames, samples = crowd()
    distances = torch.linspace(0.01, 5.03, 37, dtype=torch.float64).expand(60, -1)
    points = origins[:, None] + directions[:, None] * distances[..., None]
    warp = warp_rays(origins, directions, frames, samples, motion)
    rows = [t[:, None].expand(-1, 37).reshape(-1) for t in (frames, samples)]
    at, moved, left = warp_points(points.reshape(-1, 3), *rows, motion)
    assert 100 < int(moved.sum()) < 1900 and int(left.sum()) > 100 and warp.enter.shape[1] > 1
    found = warp.apply(points, distances)
    torch.testing.assert_close(found[0].reshape(-1, 3), at)
    assert torch.equal(found[1].reshape(-1), moved) and torch.equal(found[2].reshape(-1), left)


@pytest.mark.parametrize("by_class", [False, True])
def test_rendered_densities_follow_the_rule(by_class):
    """Every sample of every ray against the three cases as the module states them."""
    motion, origins, directions, frames, samples = crowd()
    spec = GridSpec(lower=(-4.0, -4.0, -4.0), voxel_size=0.8, shape=(10, 10, 10))
    g = torch.Generator().manual_seed(5)
    density = torch.rand(2, *spec.shape, generator=g, dtype=torch.float64)
    semantics = torch.randn(2, *spec.shape, 3, generator=g, dtype=torch.float64)
    stays = torch.rand(2, *spec.shape, generator=g) < 0.5
    fields = [Field(d, s, k if by_class else None) for d, s, k in zip(density, semantics, stays, strict=True)]
    settings = RenderSettings(sampling="uniform", samples=30, far=6.0, near=0.0, density="sigmoid")
    warp = warp_rays(origins, directions, frames, samples, motion)
    seen = render_rays(fields, samples, origins, directions, spec, settings, warp, keep_samples=True)
    for ray in range(len(origins)):
        b = int(samples[ray])
        points = origins[ray] + directions[ray] * seen.midpoints[ray][:, None]
        row = torch.ones(30, dtype=torch.int64)
        source, moved, left = warp_points(points, row * frames[ray], row * b, motion)
        at, back = voxel_coordinates(points, spec), voxel_coordinates(source, spec)
        here, there = trilinear(density[b], at), trilinear(density[b], back)
        if by_class:
            rest = torch.where(left, trilinear(density[b] * stays[b], at), here)
            body = trilinear(density[b] * ~stays[b], back)
            taken = moved & (body >= rest)
        else:
            rest, body, taken = torch.where(left, 0.0, here), there, moved
        value = torch.where(taken, body, rest)
        weights = weights_from_density(value[None], seen.lengths[ray : ray + 1])
        torch.testing.assert_close(seen.sample_weights[ray], weights[0])
        logits = trilinear(semantics[b], torch.where(taken[:, None], back, at))
        torch.testing.assert_close(seen.semantics[ray], (weights @ logits)[0])


def test_without_boxes_or_rays_nothing_is_warped():
    motion, origins, directions, frames, samples = crowd()
    distances = torch.rand(60, 4, dtype=torch.float64)
    points = origins[:, None] + directions[:, None] * distances[..., None]
    warp = warp_rays(origins, directions, frames, samples, BoxMotion.empty(dtype=torch.float64))
    at, moved, left = warp.apply(points, distances)
    assert torch.equal(at, points) and not bool((moved | left).any())
    none = warp_rays(origins[:0], directions[:0], frames[:0], samples[:0], motion)
    assert none.apply(points[:0], distances[:0])[0].shape == (0, 4, 3)


def painted(spec, box, label):
    """A grid with the road (class 11) in its lowest layer and a box of one class."""
    labels = torch.full(spec.shape, 17)
    labels[:, :, 0] = 11
    low, high = (spec.index_of(torch.tensor(corner))[0] for corner in box)
    labels[low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1] = label
    return labels


@pytest.mark.parametrize("sampling", ["importance", "exact"])
def test_a_moved_car_is_rendered_where_it_went_and_the_road_where_it_was(sampling):
    """A car drives 6 m ahead between the frames; a camera above looks at both places, and at the road between."""
    spec = GridSpec(lower=(0.0, -4.0, -1.0), voxel_size=0.4, shape=(50, 20, 10))
    car = ((3.0, -0.7, -0.5), (6.9, 0.7, 0.9))
    labels = painted(spec, car, CAR)
    motion = boxes((pose(5, 0, 0.2), pose(11, 0, 0.2), (4.0, 1.6, 1.5), CAR, 1, 0)).to(dtype=torch.float32)
    targets = torch.tensor([[5.0, 0.1, -1.0], [11.0, 0.1, -1.0], [15.0, 0.1, -1.0]])
    origins = targets + torch.tensor([-0.5, 0.3, 5.0])
    directions = (targets - origins) / (targets - origins).norm(dim=1, keepdim=True)
    one_hot = torch.nn.functional.one_hot(labels, 18)[..., :17].float()
    field = Field((labels != 17).float(), one_hot, labels != CAR)
    settings = RenderSettings(sampling=sampling, far=9.0)
    zero, seen = torch.zeros(3, dtype=torch.int64), {}
    for frame in (0, 1):
        warp = warp_rays(origins, directions, zero + frame, zero, motion)
        seen[frame] = render_rays([field], zero, origins, directions, spec, settings, warp)
    assert seen[0].semantics.argmax(1).tolist() == [CAR, 11, 11]
    assert seen[1].semantics.argmax(1).tolist() == [11, CAR, 11]
    assert float(seen[1].weight_sum.min()) > 0.9
    # What was seen of the car is seen 6 m further on, and so is the road that it uncovers.
    assert float(seen[1].depth[1]) == pytest.approx(float(seen[0].depth[0]), abs=0.1)
    assert float(seen[1].depth[0]) == pytest.approx(float(seen[0].depth[1]), abs=0.2)
    # Without the classes the padded box takes most of the road beneath the car away with it.
    field.stays = None
    bare = warp_rays(origins, directions, zero + 1, zero, motion)
    assert float(render_rays([field], zero, origins, directions, spec, settings, bare).weight_sum[0]) < 0.5


def test_gradients_reach_the_voxels_that_the_object_had():
    spec = OCC3D_NUSCENES.spec
    density = torch.full(spec.shape, 0.01, requires_grad=True)
    origins, directions = torch.tensor([[15.0, 1.0, 4.0]]), torch.tensor([[0.0, 0, -1]])
    frames, samples = torch.tensor([2]), torch.tensor([0])
    warp = warp_rays(origins, directions, frames, samples, v9_boxes().to(dtype=torch.float32))
    field = Field(density, torch.zeros(*spec.shape, 2), torch.zeros(spec.shape, dtype=torch.bool))
    seen = render_rays([field], samples, origins, directions, spec, RenderSettings(far=5.0), warp)
    seen.weight_sum.sum().backward()
    touched = density.grad.nonzero()
    at_key_time = (spec.centers()[touched.unbind(1)] - torch.tensor([10.0, 0, 0.6])).abs()
    inside = (at_key_time[:, :2] < 0.6).all(1)
    assert bool(inside.any()) and bool((~inside).any())
    # Nothing in between, where the ray would be looked up if it were bent instead of cut.
    assert int(((touched[:, 0] > 128) & (touched[:, 0] < 135)).sum()) == 0
