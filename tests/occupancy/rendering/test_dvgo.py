"""RenderOcc's renderer: vectors V3 and V4, the published geometry and the corrected one."""

import math

import numpy as np
import pytest
import torch

from syntheocc.occupancy import OCC3D_NUSCENES
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.losses import binary_entropy
from syntheocc.occupancy.rendering.compositing import raw_alpha, shift_of, weights_from_alpha
from syntheocc.occupancy.rendering.dvgo import DvgoSettings, _far_enough, _Ray, contract, legacy_distances, render_dvgo
from syntheocc.occupancy.rendering.volume import Field, fields_of

SPEC = OCC3D_NUSCENES.spec
# A grid as wide as Occ3D's, in coarser voxels: rays of the published length cross it.
COARSE = GridSpec(lower=(-40.0, -40.0, -1.0), voxel_size=(4.0, 4.0, 0.8), shape=(20, 20, 8))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_v3_opacities_and_weights():
    shift = shift_of(1e-6)
    assert shift == pytest.approx(-13.81550956, abs=1e-8)
    alpha = raw_alpha(double(0, 4, 8.5, 10, 13.8155, 16, 20), shift)
    expected = double(5.0e-7, 0.00002730, 0.00244837, 0.01083458, 0.29289153, 0.68195610, 0.95464681)
    torch.testing.assert_close(alpha, expected, rtol=0, atol=6e-9)
    alpha = raw_alpha(double(10, 14, 18), shift)
    torch.testing.assert_close(alpha, double(0.01083458, 0.32619901, 0.87751942), rtol=0, atol=6e-9)
    weights, left = weights_from_alpha(alpha[None])
    torch.testing.assert_close(weights[0], double(0.01083458, 0.32266478, 0.58486725), rtol=0, atol=6e-9)
    assert float(left) == pytest.approx(0.08163338, abs=6e-9)


def test_v4_samples_depth_and_contraction():
    distances, inner = legacy_distances(SPEC, 39.0)
    assert inner == 391 and len(distances) == 417
    steps = distances.diff()
    assert float(steps[0]) == pytest.approx(0.19948849, abs=1e-8)
    assert distances[[0, 390]].tolist() == pytest.approx([0.09974, 77.9003], abs=5e-5)
    assert distances[[391, 416]].tolist() == pytest.approx([79.53, 3225.2], rel=1e-4)
    # What the renderer takes for the samples' depths, between them too: inverse depth grows with inverse distance.
    depth = _Ray(double(0, 0, 2.2)[None], double(1, 0, 0)[None], SPEC, DvgoSettings(legacy=True)).places()[1]
    asked = [5, 10, 20, 39, 52, 13.44828, 41.05263]
    found = 1 / np.interp(1 / np.array(asked), 1 / distances.numpy()[::-1], 1 / depth.numpy()[::-1])
    assert found.tolist() == pytest.approx([4.43182, 7.95918, 13.22034, 19.5, 22.28571, 10, 20], abs=6e-6)
    background = (40 - 39) / 39
    assert background == pytest.approx(0.02564103, abs=1e-8)
    point = (double(45, 10, 1) - double(0, 0, 2.2)) / 39
    assert float(point.norm()) == pytest.approx(1.18239331, abs=2e-8)
    found = contract(point, background) * 39 + double(0, 0, 2.2)
    # The vector is float32's: its norm above is off in the eighth digit too.
    torch.testing.assert_close(found, double(38.20893860, 8.49087524, 1.18109500), rtol=1e-7, atol=1e-8)


def wall_at(x, spec, raw=40.0):
    """A wall of thick raw density from x on, of class 1; in front of it class 0 and nothing."""
    density = torch.zeros(spec.shape, dtype=torch.float64)
    behind = spec.centers()[..., 0] > x
    density[behind] = raw
    return Field(density, torch.stack([(~behind).double(), behind.double()], -1))


def forward_ray():
    return torch.tensor([0]), double(0, 0, 2.2)[None], double(1, 0, 0)[None]


def test_a_wall_is_rendered_where_it_is_and_the_published_one_too_near():
    field = wall_at(20.0, SPEC)
    seen = render_dvgo([field], *forward_ray(), SPEC, keep_samples=True)
    assert float(seen.depth) == pytest.approx(20.0, abs=0.2)
    assert seen.semantics[0].argmax() == 1 and float(seen.weight_sum) == pytest.approx(1.0, abs=2e-3)
    published = render_dvgo([field], *forward_ray(), SPEC, DvgoSettings(legacy=True))
    # V4: 20 m are rendered as 13.22 m, give or take the quarter voxel by which the published lookup is off.
    assert float(published.depth) == pytest.approx(13.22034, abs=0.2)
    # The other way round: to render 10 m the surface must stand at 13.45 m.
    nearer = render_dvgo([wall_at(13.6, SPEC)], *forward_ray(), SPEC, DvgoSettings(legacy=True))
    assert float(nearer.depth) == pytest.approx(10.0, abs=0.2)
    assert float(binary_entropy(seen.weight_sum)) < 0.02


def test_the_published_grid_is_too_flat_and_its_voxels_are_off_centre():
    """Heights are looked up in 6.24 m instead of 6.4 m, from face to face: the top centre, 5.2 m, as 14.71."""
    for legacy, height in ((True, (5.2 - 2.2 + 3.12) / 6.24 * 15), (False, 15.0)):
        ray = _Ray(double(0, 0, 5.2)[None], double(1, 0, 0)[None], SPEC, DvgoSettings(legacy=legacy))
        at = ray.places()[0]
        assert float(at[0, 0, 2]) == pytest.approx(height, abs=1e-6)
        x = float(legacy_distances(SPEC, 39.0)[0][0]) if legacy else 0.1
        assert float(at[0, 0, 0]) == pytest.approx((x + 40) / 80 * 199 if legacy else (x + 40) / 0.4 - 0.5, abs=1e-6)


def slow_ray(field, origin, direction, spec, settings):
    """The published renderer, sample by sample, from the specification's text."""
    radius = settings.radius
    lower, upper = double(*spec.lower), double(*spec.upper)
    middle, extent = (lower + upper) / 2, (upper[0] - lower[0]) / 2
    background = float((extent - radius) / radius)
    box = double(1 + background, 1 + background, float((upper[2] - lower[2]) / 2 / extent))
    t = legacy_distances(spec, radius)[0] / radius
    least = 0.95 * 0.5 * (2 + 2 * background) / spec.shape[0]
    left, gone, last = 1.0, 0.0, None
    depth, semantics = 1e-7, torch.zeros(field.semantics.shape[3], dtype=torch.float64)
    for distance in t.tolist():
        straight = (origin - middle) / radius + direction * distance
        norm = float(straight.norm())
        point = straight if norm <= 1 else straight / norm * ((1 + background) - background / norm)
        kept = norm <= 1
        if last is not None:
            gone += float((point - last).norm())
            if gone > least:
                kept, gone = True, 0.0
        last = point
        if not kept:
            continue
        at = (point + box) / (2 * box) * (torch.tensor(spec.shape) - 1)
        corner, raw, logits = at.floor().long(), 0.0, 0.0
        for step in torch.cartesian_prod(*[torch.arange(2)] * 3):
            cell = corner + step
            if bool(((cell >= 0) & (cell < torch.tensor(spec.shape))).all()):
                share = float((1 - (at - cell).abs()).prod())
                raw += share * float(field.density[tuple(cell)])
                logits = logits + share * field.semantics[tuple(cell)]
        alpha = 1 - (1 + math.exp(raw - 13.81550956)) ** -0.5
        if alpha <= 1e-7:
            continue
        weight = left * alpha
        left *= 1 - alpha
        if weight > 1e-7:
            depth += radius * weight * (1 - 1 / (1 + distance))
            semantics = semantics + weight * logits
        if left < 1e-3:
            break
    return depth, semantics, left


def test_published_renderer_follows_the_text_sample_by_sample():
    g = torch.Generator().manual_seed(0)
    settings = DvgoSettings(legacy=True)
    density = (torch.rand(COARSE.shape, generator=g, dtype=torch.float64) * 18 - 2).clamp_min(0)
    field = Field(density, torch.randn(*COARSE.shape, 3, generator=g, dtype=torch.float64))
    origins = (torch.rand(5, 3, generator=g, dtype=torch.float64) - 0.5) * double(60, 60, 3) + double(0, 0, 2)
    directions = torch.randn(5, 3, generator=g, dtype=torch.float64) * double(1, 1, 0.02)
    directions /= directions.norm(dim=1, keepdim=True)
    seen = render_dvgo([field], torch.zeros(5, dtype=torch.int64), origins, directions, COARSE, settings)
    for ray in range(5):
        depth, semantics, left = slow_ray(field, origins[ray], directions[ray], COARSE, settings)
        assert float(seen.depth[ray]) == pytest.approx(depth, abs=1e-6)
        assert 1 - float(seen.weight_sum[ray]) == pytest.approx(left, abs=1e-6)
        torch.testing.assert_close(seen.semantics[ray], semantics, rtol=0, atol=1e-6)
    assert 0.1 < float(seen.weight_sum.mean()) < 0.999


def test_points_far_out_are_thinned_by_the_distance_since_the_last_one():
    steps = double(0.6, 0.6, 1.2, 0.4, 0.4, 0.4)[None]
    assert _far_enough(steps, 1.0).tolist() == [[False, False, True, True, False, False, True]]


@pytest.mark.parametrize("legacy", [False, True])
def test_batches_chunks_and_gradients(legacy):
    g = torch.Generator().manual_seed(0)
    density = torch.rand(2, *COARSE.shape, generator=g, dtype=torch.float64) * 14
    semantics = torch.randn(2, *COARSE.shape, 3, generator=g, dtype=torch.float64)
    origins = (torch.rand(20, 3, generator=g, dtype=torch.float64) - 0.5) * double(60, 60, 3) + double(0, 0, 2)
    directions = torch.randn(20, 3, generator=g, dtype=torch.float64) * double(1, 1, 0.05)
    directions /= directions.norm(dim=1, keepdim=True)
    index, results = torch.arange(20) % 2, []
    for chunk in (100, 6):
        leaves = [t.clone().requires_grad_() for t in (density, semantics)]
        seen = render_dvgo(
            fields_of(*leaves), index, origins, directions, COARSE, DvgoSettings(legacy=legacy, chunk=chunk),
            front_limits=torch.full((20,), 10.0, dtype=torch.float64), keep_samples=True,
        )  # fmt: skip
        loss = seen.depth.sum() + seen.semantics.square().sum() + seen.front.sum() + seen.weight_sum.sum()
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
        torch.testing.assert_close(seen.sample_weights.sum(1), seen.weight_sum, rtol=0, atol=5e-5)
        assert float(results[-1][1].abs().max()) > 0
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    # The slope along a random direction.
    g.manual_seed(1)
    ahead = torch.randn(density.shape, generator=g, dtype=torch.float64)

    def value(shift):
        fields = fields_of(density + shift * ahead, semantics)
        seen = render_dvgo(fields, index, origins, directions, COARSE, DvgoSettings(legacy=legacy))
        return float(seen.depth.sum() + seen.semantics.square().sum() + seen.weight_sum.sum())

    leaf = density.clone().requires_grad_()
    seen = render_dvgo(fields_of(leaf, semantics), index, origins, directions, COARSE, DvgoSettings(legacy=legacy))
    (seen.depth.sum() + seen.semantics.square().sum() + seen.weight_sum.sum()).backward()
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    # Samples may pass the thresholds of 1e-7 and 1e-3, where the published renderer jumps.
    assert slope == pytest.approx(float((leaf.grad * ahead).sum()), rel=2e-3)


def test_no_rays_and_impossible_settings():
    field = wall_at(20.0, SPEC)
    index, origin, along = forward_ray()
    seen = render_dvgo([field], index[:0], origin[:0], along[:0], SPEC, keep_samples=True)
    assert seen.semantics.shape == (0, 2) and seen.front is None
    for change in ({"far": 0.0}, {"alpha_init": 1.0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            DvgoSettings(**change)
