"""Volume rendering: vectors V1, V2, V5, V6 of the specification, sampling, batches, chunks, precision."""

import math
import os

import pytest
import torch

from syntheocc.occupancy import OCC3D_NUSCENES
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.losses import semantic_loss
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.rendering.compositing import (
    activate_density,
    composite_depth,
    metric_density,
    weights_from_alpha,
    weights_from_density,
)
from syntheocc.occupancy.rendering.lookup import nearest_voxel, trilinear, voxel_coordinates
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.occupancy.rendering.sampling import edges_around, ray_jitter, resample, uniform_edges, voxel_edges
from syntheocc.occupancy.rendering.volume import Field, RenderSettings, fields_of, render_rays

SPEC = GridSpec(lower=(-2.0, -1.6, -0.8), voxel_size=0.4, shape=(12, 8, 5))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def scene(batch=2, classes=3, seed=0, dtype=torch.float64):
    """Random activated volumes, and rays from inside and outside to points of the grid."""
    g = torch.Generator().manual_seed(seed)
    density = torch.rand(batch, *SPEC.shape, generator=g, dtype=torch.float64).pow(2).to(dtype)
    semantics = torch.randn(batch, *SPEC.shape, classes, generator=g, dtype=torch.float64).to(dtype)
    origins = (torch.rand(40, 3, generator=g, dtype=torch.float64) * 6 - 3).to(dtype)
    within = torch.rand(40, 3, generator=g, dtype=torch.float64) * torch.tensor(SPEC.shape) * 0.4
    directions = (within + torch.tensor(SPEC.lower, dtype=torch.float64)).to(dtype) - origins
    directions /= directions.norm(dim=1, keepdim=True)
    return density, semantics, torch.randint(batch, (40,), generator=g), origins, directions


def test_v1_compositing_of_three_voxels():
    density = double(0.1, 0.8, 1.0)[None].requires_grad_()
    edges = double(10, 10.4, 10.8, 11.2)[None]
    lengths, middle = edges.diff(dim=1), (edges[:, 1:] + edges[:, :-1]) / 2
    weights = weights_from_density(density, lengths)
    torch.testing.assert_close(weights[0], double(0.03921056, 0.26311311, 0.23000990), rtol=0, atol=1e-8)
    depth = composite_depth(weights, middle, "sum", 40.0)
    (gradient,) = torch.autograd.grad(depth, density, retain_graph=True)
    torch.testing.assert_close(gradient[0], double(1.79237776, 1.94610407, 2.05773228), rtol=0, atol=1e-8)
    found = [weights.sum(), depth[0]] + [
        composite_depth(weights, middle, f, 40.0)[0] for f in ("normalised", "residual")
    ]
    expected = double(0.53233357, 5.71905561, 10.74336825, 24.42571269)
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-8)
    logits = double(2, 1, 3).diag()
    rendered = weights @ logits
    torch.testing.assert_close(rendered[0], double(0.07842112, 0.26311311, 0.69002970), rtol=0, atol=1e-8)
    assert float(semantic_loss(rendered, torch.tensor([1])).detach()) == pytest.approx(1.21309659, abs=1e-8)
    averaged = weights @ logits.softmax(1)
    torch.testing.assert_close(averaged[0], double(0.09703727, 0.16617461, 0.26912169), rtol=0, atol=1e-8)


def test_v1_through_a_volume():
    """The same three voxels in a grid: the renderer's intervals are theirs, and so are the numbers."""
    spec = GridSpec(lower=(10.0, 0.0, 0.0), voxel_size=0.4, shape=(3, 1, 1))
    density = double(0.1, 0.8, 1.0).view(3, 1, 1)
    field = Field(density, double(2, 1, 3).diag().view(3, 1, 1, 3))
    origin, along = double(0, 0.1, 0.3)[None], double(1, 0, 0)[None]
    for form, expected in (("sum", 5.71905561), ("normalised", 10.74336825), ("residual", 24.42571269)):
        settings = RenderSettings(sampling="exact", density="sigmoid", depth=form)
        seen = render_rays([field], torch.tensor([0]), origin, along, spec, settings)
        assert float(seen.depth) == pytest.approx(expected, abs=1e-8)
    torch.testing.assert_close(seen.semantics[0], double(0.07842112, 0.26311311, 0.69002970), rtol=0, atol=1e-8)
    assert float(seen.weight_sum) == pytest.approx(0.53233357, abs=1e-8)


def test_v2_sigmoid_densities_render_too_deep_and_opacities_do_not():
    middle = 10.05 + 0.1 * torch.arange(300, dtype=torch.float64)[None]
    lengths = torch.full_like(middle, 0.1)
    weights = weights_from_density(torch.ones_like(middle), lengths)
    assert float(composite_depth(weights, middle, "sum", 40.0)) == pytest.approx(11.00083319, abs=1e-8)
    assert 1 - float(weights[0, :4].sum()) == pytest.approx(0.67032005, abs=1e-8)
    assert 1 - float(weights[0, :12].sum()) == pytest.approx(0.30119421, abs=1e-8)
    wall = weights_from_density(double(1)[None], double(0.4)[None])
    assert float(wall) == pytest.approx(0.32967995, abs=1e-8)
    assert float(wall * 10.2) == pytest.approx(3.36273553, abs=1e-8)
    # The corrected form: an opaque voxel of 0.4 m stops the ray, however finely it is sampled.
    density = metric_density(torch.full((1, 4), 0.97, dtype=torch.float64), "opacity", 0.4)
    assert float(weights_from_density(density, lengths[:, :4]).sum()) == pytest.approx(0.97, abs=1e-12)
    middle = double(10.2)[None]
    weights = weights_from_density(metric_density(double(1)[None], "opacity", 0.4), double(0.4)[None])
    assert float(composite_depth(weights, middle, "sum", 40.0)) == pytest.approx(10.2, abs=1e-4)


def test_v5_importance_resampling():
    edges, density = double(0, 4, 8, 12, 16)[None], double(0, 0.05, 0.5, 0.1)[None]
    stopped = weights_from_density(density, edges.diff(dim=1)).cumsum(1)[0, :3]
    torch.testing.assert_close(stopped, double(0, 0.18126925, 0.88919684), rtol=0, atol=1e-8)
    samples = resample(edges, density, 4)
    torch.testing.assert_close(samples[0], double(6.75832778, 9.09463597, 10.50720981, 11.91978365), rtol=0, atol=1e-8)
    around = edges_around(samples, 0.0, 16.0)
    expected = double(5.59017369, 7.92648188, 9.80092289, 11.21349673, 12.62607057)
    torch.testing.assert_close(around[0], expected, rtol=0, atol=1e-8)
    clamped = edges_around(samples, 6.0, 12.0)[0]
    assert clamped[0] == 6 and clamped[-1] == 12
    # Through nothing, all samples lie in the last interval.
    assert bool((resample(edges, 0 * density, 5) > 12).all())


def test_v6_lookup_is_centred_and_legacy_is_not():
    spec = OCC3D_NUSCENES.spec
    points = double(-39.8, -0.2, 20.2, 39.8)[:, None].expand(-1, 3)
    legacy = voxel_coordinates(points, spec, legacy=True)[:, 0]
    torch.testing.assert_close(legacy, double(0.4975, 99.0025, 149.7475, 198.5025), rtol=0, atol=1e-9)
    centred = voxel_coordinates(points, spec)
    torch.testing.assert_close(centred[:, 0], double(0, 99, 150, 199), rtol=0, atol=1e-9)
    # The centre of each voxel reads that voxel alone.
    volume = torch.rand(12, 8, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at = voxel_coordinates(SPEC.centers(), SPEC)
    torch.testing.assert_close(trilinear(volume, at), volume)
    torch.testing.assert_close(nearest_voxel(volume, at), volume)


def eight_corners(volume, at):
    """Trilinear interpolation by its definition, with zeros beyond the grid."""
    corner, total = at.floor().long(), 0.0
    size = torch.tensor(volume.shape[:3])
    for step in torch.cartesian_prod(*[torch.arange(2)] * 3):
        cell = corner + step
        share = (1 - (at - cell).abs()).prod(-1)
        inside = ((cell >= 0) & (cell < size)).all(-1)
        x, y, z = (cell * inside[..., None]).unbind(-1)
        total = total + (share * inside)[..., None] * volume[x, y, z]
    return total


def test_trilinear_is_the_sum_over_eight_corners_with_gradients():
    g = torch.Generator().manual_seed(0)
    volume = torch.randn(4, 3, 1, 2, generator=g, dtype=torch.float64, requires_grad=True)
    at = (torch.rand(200, 3, generator=g, dtype=torch.float64) * 8 - 2.5).requires_grad_()
    found, expected = trilinear(volume, at), eight_corners(volume, at)
    torch.testing.assert_close(found, expected)
    probe = torch.randn(found.shape, generator=g, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((found * probe).sum(), (volume, at)),
        torch.autograd.grad((expected * probe).sum(), (volume, at)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    far = double(1e30, -math.inf, math.nan)[:, None].expand(-1, 3)
    assert float(trilinear(volume, far).detach().abs().max()) == 0
    assert float(nearest_voxel(volume, far).detach().abs().max()) == 0


def test_uniform_edges_move_by_half_an_interval_and_only_if_asked_to():
    still = uniform_edges(3, 0.0, 10.0, 5)
    assert still.tolist() == [[0, 2, 4, 6, 8, 10]] * 3
    jitter = ray_jitter(torch.zeros(1000).long(), 4, torch.Generator().manual_seed(0))
    moved = uniform_edges(1000, 0.0, 10.0, 5, jitter=jitter)
    assert bool((moved.diff(dim=1) >= 0).all())
    shift = moved - still[:1]
    assert float(shift[:, [0, -1]].abs().max()) == 0 and 0.9 < float(shift.abs().max()) <= 1


def test_exact_intervals_end_where_a_stepping_ray_leaves_its_voxels():
    density, semantics, _, origins, directions = scene()
    directions[0], directions[1], directions[2] = double(1, 0, 0), double(0, -1, 0), double(0, 0.6, 0.8)
    origins[0], origins[1] = double(-3, 0.1, 0.1), double(0.3, 9.0, 0.1)
    edges = voxel_edges(origins, directions, SPEC, 0.0, 20.0)
    assert edges.shape[0] == 40 and bool((edges.diff(dim=1) >= 0).all())
    # Ray 0 passes the whole length of the grid in 12 voxels.
    lengths = edges.diff(dim=1)[0]
    assert lengths[lengths > 1e-9].tolist() == pytest.approx([0.4] * 12)
    occupied = density[0] > 0.8
    distance, index, hit = cast_rays(occupied, origins, directions, SPEC, distance="entry")
    assert 5 < int(hit.sum()) < 40
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    cell, inside = SPEC.index_of(origins[:, None] + directions[:, None] * middle[..., None])
    stops = occupied[cell.unbind(-1)] & inside & (edges.diff(dim=1) > 1e-9)
    assert torch.equal(stops.any(1), hit)
    first = stops.int().argmax(1, keepdim=True)
    entered = edges.gather(1, first)[:, 0]
    torch.testing.assert_close(entered[hit], distance[hit], rtol=0, atol=1e-9)
    assert torch.equal(cell[torch.arange(40), first[:, 0]][hit], index[hit])


def test_opaque_voxels_are_rendered_at_their_middle():
    """Exact intervals and opacity 1: depth and class of the voxel that the ray caster finds."""
    density, semantics, _, origins, directions = scene()
    occupied = density[0] > 0.8
    field = Field(occupied.double(), semantics[0])
    zero = torch.zeros(40, dtype=torch.int64)
    settings = RenderSettings(sampling="exact", near=0.0)
    seen = render_rays([field], zero, origins, directions, SPEC, settings)
    entry, index, hit = cast_rays(occupied, origins, directions, SPEC, distance="entry")
    leave = cast_rays(occupied, origins, directions, SPEC, distance="exit")[0]
    full = hit & (leave - entry > 0.15)  # a ray that only grazes an opaque voxel is not stopped by it
    assert int(full.sum()) > 5
    torch.testing.assert_close(seen.depth[full], (entry + leave)[full] / 2, rtol=0, atol=0.05)
    torch.testing.assert_close(seen.semantics[full], semantics[0][index[full].unbind(1)], rtol=0, atol=0.05)
    assert float(seen.weight_sum[~hit].max()) == 0


@pytest.mark.parametrize("sampling", ["importance", "uniform", "exact"])
@pytest.mark.parametrize("form", ["sigmoid", "opacity"])
def test_batches_and_chunks_change_nothing(sampling, form):
    density, semantics, index, origins, directions = scene()
    g = torch.Generator().manual_seed(3)
    probe = torch.randn(40, 5, generator=g, dtype=torch.float64)
    results, noise = [], torch.Generator()
    for chunk in (40, 7):
        leaves = [t.clone().requires_grad_() for t in (density, semantics)]
        settings = RenderSettings(sampling=sampling, density=form, far=8.0, proposals=12, samples=20, chunk=chunk)
        seen = render_rays(
            fields_of(*leaves), index, origins, directions, SPEC, settings,
            jitter=None if sampling == "exact" else ray_jitter(index, settings.intervals - 1, noise.manual_seed(1)),
            front_limits=origins.norm(dim=1), keep_samples=True,
        )  # fmt: skip
        values = torch.cat([seen.weight_sum[:, None], seen.depth[:, None], seen.semantics], 1)
        loss = (values * probe).sum() + seen.front.sum()
        results.append([values.detach(), seen.front.detach(), *torch.autograd.grad(loss, leaves)])
        torch.testing.assert_close(seen.sample_weights.sum(1), seen.weight_sum)
        assert bool((seen.lengths >= 0).all()) and bool((seen.front <= seen.weight_sum + 1e-12).all())
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_ray_sees_the_volume_of_its_own_sample():
    density, semantics, index, origins, directions = scene()
    settings, second = RenderSettings(far=8.0), index == 1
    both = render_rays(fields_of(density, semantics), index, origins, directions, SPEC, settings)
    alone = render_rays(
        fields_of(density[1:], semantics[1:]), 0 * index[second], origins[second], directions[second], SPEC, settings
    )
    torch.testing.assert_close(alone.depth, both.depth[second])
    torch.testing.assert_close(alone.semantics, both.semantics[second])


def test_gradients_are_those_of_finite_differences():
    density, semantics, index, origins, directions = scene(batch=1)
    settings = RenderSettings(far=8.0, sampling="uniform", samples=15)

    def depth_and_logits(density, semantics):
        seen = render_rays(
            [Field(density, semantics)], index[:6], origins[:6], directions[:6], SPEC, settings
        )  # fmt: skip
        return seen.depth, seen.semantics

    leaves = [density[0, :4, :4, :3], semantics[0, :4, :4, :3]]

    def small(d, s):
        full = density[0].clone(), semantics[0].clone()
        full[0][:4, :4, :3], full[1][:4, :4, :3] = d, s
        return depth_and_logits(*full)

    leaves = [t.clone().requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(small, leaves, fast_mode=True)


def test_samples_are_the_same_in_evaluation_and_jittered_in_training():
    density, semantics, index, origins, directions = scene()
    settings = RenderSettings(far=8.0, proposals=10, samples=10)

    def depth(*seeds):
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        jitter = ray_jitter(index, settings.intervals - 1, noise) if noise else None
        return render_rays(
            fields_of(density, semantics), index, origins, directions, SPEC, settings, jitter=jitter
        ).depth  # fmt: skip

    assert torch.equal(depth(), depth())
    jittered, other = depth(0, 1), depth(0, 2)
    assert torch.equal(jittered, depth(0, 1)) and not torch.equal(jittered, depth())
    # A sample's rays depend on its own generator only.
    assert torch.equal(jittered[index == 0], other[index == 0])
    assert not torch.equal(jittered[index == 1], other[index == 1])


def test_autocast_and_half_precision_volumes_are_rendered_in_float32():
    density, semantics, index, origins, directions = scene(dtype=torch.float32)
    settings = RenderSettings(far=8.0)
    half = [t.bfloat16().requires_grad_() for t in (density, semantics)]
    plain = render_rays(
        fields_of(*(t.detach().float() for t in half)), index, origins, directions, SPEC, settings
    )  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = render_rays(fields_of(*half), index, origins, directions, SPEC, settings)
    assert seen.depth.dtype == seen.semantics.dtype == torch.float32
    assert torch.equal(seen.depth, plain.depth) and torch.equal(seen.semantics, plain.semantics)
    seen.semantics.sum().backward()
    assert half[0].grad.dtype == torch.bfloat16 and bool(torch.isfinite(half[0].grad).all())


def test_no_rays_give_nothing_and_still_a_gradient():
    density, semantics, index, origins, directions = scene()
    leaves = [t.requires_grad_() for t in (density, semantics)]
    seen = render_rays(
        fields_of(*leaves),
        index[:0],
        origins[:0],
        directions[:0],
        SPEC,
        front_limits=origins[:0, 0],
        keep_samples=True,
    )
    assert seen.depth.shape == (0,) and seen.semantics.shape == (0, 3) and seen.sample_weights.shape[0] == 0
    (seen.depth.sum() + seen.semantics.sum()).backward()
    assert float(density.grad.abs().sum() + semantics.grad.abs().sum()) == 0


def test_rays_that_miss_the_grid_see_nothing():
    density, semantics, *_ = scene(batch=1)
    origins, directions = double(0, 50, 0)[None], double(0, 1, 0)[None]
    for sampling in ("importance", "uniform", "exact"):
        settings = RenderSettings(sampling=sampling)
        seen = render_rays(
            fields_of(density, semantics), torch.tensor([0]), origins, directions, SPEC, settings
        )  # fmt: skip
        assert float(seen.weight_sum) == float(seen.depth) == float(seen.semantics.abs().sum()) == 0


def test_saturated_opacities_keep_finite_gradients():
    raw = torch.tensor([[-100.0, 40.0, 100.0]], requires_grad=True)
    for form in ("sigmoid", "softplus", "opacity"):
        density = metric_density(activate_density(raw, form), form, 0.4)
        weights_from_density(density, torch.full((1, 3), 0.3)).sum().backward()
    assert bool(torch.isfinite(raw.grad).all())
    alpha = torch.tensor([[1.0, 0.5]], requires_grad=True)
    weights, left = weights_from_alpha(alpha)
    assert weights.tolist() == [[1, 0]] and left.tolist() == [0]
    weights.sum().backward()
    assert bool(torch.isfinite(alpha.grad).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"near": 5.0, "far": 5.0}, "near < far"),
        ({"samples": 0}, "samples must be positive"),
        ({"sampling": "dense"}, "sampling must be one of"),
        ({"density": "relu"}, "density must be one of"),
        ({"legacy": True, "sampling": "exact"}, "legacy lookup knows none"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RenderSettings(**change)


def test_wrong_shapes_are_refused():
    density, semantics, index, origins, directions = scene()
    fields = fields_of(density, semantics)
    with pytest.raises(ValueError, match="origins must be"):
        render_rays(fields, index, origins[:3], directions, SPEC)
    with pytest.raises(ValueError, match="of the grid's shape"):
        render_rays([Field(density[0, 1:], semantics[0])], index, origins, directions, SPEC)
    with pytest.raises(ValueError, match="no field"):
        render_rays([], index, origins, directions, SPEC)
    with pytest.raises(ValueError, match="density must be"):
        activate_density(density, "tanh")  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", ["importance", "exact"])
@pytest.mark.parametrize(
    ("backend", "device"),
    [
        ("reference", "cpu"),
        pytest.param(
            "triton",
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not has_module("triton"), reason="needs triton")],
        ),
        pytest.param(
            "triton",
            "cpu",
            marks=pytest.mark.skipif(
                os.environ.get("TRITON_INTERPRET") != "1" or not has_module("triton"),
                reason="set TRITON_INTERPRET=1 to run the kernels on the CPU",
            ),
        ),
    ],
)
@pytest.mark.parametrize(("form", "depth"), [("opacity", "residual"), ("sigmoid", "sum")])
def test_backends_render_the_same(sampling, backend, device, form, depth):
    density, semantics, index, origins, directions = scene(dtype=torch.float32)
    index, origins, directions = index[:12], origins[:12], directions[:12]
    for keep in (False, True):
        results = []
        for name, where in (("torch", "cpu"), (backend, device)):
            leaves = [t.to(where, copy=True).requires_grad_() for t in (density, semantics)]
            settings = RenderSettings(
                sampling=sampling, far=8.0, proposals=12, samples=20, chunk=9, backend=name, density=form, depth=depth
            )  # fmt: skip
            rays = [t.to(where) for t in (index, origins, directions)]
            limits = torch.full((12,), 3.0, device=where)
            seen = render_rays(fields_of(*leaves), *rays, SPEC, settings, front_limits=limits, keep_samples=keep)
            loss = seen.depth.sum() + seen.semantics.square().sum() + seen.front.sum() + seen.weight_sum.sum()
            found = (seen.weight_sum, seen.front, seen.depth, seen.semantics, *torch.autograd.grad(loss, leaves))
            results.append([t.detach().cpu() for t in found])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
