"""Splatting along rays: all implementations against brute force, with gradients, and that against known numbers."""

import math
import os
from dataclasses import replace

import pytest
import torch

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.splat_rays import RayPaths, splat_rays
from syntheocc.occupancy.ops.splat_rays.vectorised import splat_rays_torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and has_module("triton")
KERNELS = [
    pytest.param(
        "cuda",
        id="gpu",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not has_module("triton"), reason="needs triton")],
    ),
    pytest.param(
        "cpu",
        id="interpreted",
        marks=pytest.mark.skipif(not INTERPRETED, reason="set TRITON_INTERPRET=1 to run the kernels on the CPU"),
    ),
]
SPEC = GridSpec((-4.8, -4.0, -1.0), 0.4, (24, 20, 8))
SMALL = GridSpec((-2.4, -2.0, -1.0), 0.4, (12, 10, 5))


def problem(spec=SPEC, rays=60, batch=2, classes=5, scale=0.2, offset=0.0, dtype=torch.float64, seed=0):
    """Random voxels, and rays from in and around the grid, some level and some along an axis (equal distances)."""
    g = torch.Generator().manual_seed(seed)
    size = torch.tensor(spec.upper) - torch.tensor(spec.lower)
    opacity = torch.rand(batch, *spec.shape, generator=g, dtype=dtype) ** 3
    features = torch.randn(batch, *spec.shape, classes, generator=g, dtype=dtype)
    origins = (torch.rand(rays, 3, generator=g, dtype=dtype) * 1.3 - 0.15) * size + torch.tensor(spec.lower)
    directions = torch.randn(rays, 3, generator=g, dtype=dtype)
    directions[: rays // 4, 2] = 0
    directions[: rays // 8, 1] = 0
    directions = directions / directions.norm(dim=1, keepdim=True)
    volumes = torch.randint(batch, (rays,), generator=g)
    limits = torch.rand(rays, generator=g, dtype=dtype) * 6
    scales: float | torch.Tensor = scale
    if scale == "learned":
        scales = 0.08 + 0.24 * torch.rand(opacity.shape, generator=g, dtype=dtype)
    offsets = (torch.rand(*opacity.shape, 3, generator=g, dtype=dtype) * 2 - 1) * offset if offset else None
    paths = RayPaths.straight(origins, directions, volumes, spec)
    return {
        "opacity": opacity, "features": features, "paths": paths, "spec": spec, "scale": scales, "offsets": offsets,
        "front_limits": limits, "owners": None, "near": 0.1, "far": 60.0,
    }  # fmt: skip


def with_movers(arguments, seed=3):
    """Half of the rays also walk two other lines through the voxels of two owners, out of which theirs are taken."""
    g = torch.Generator().manual_seed(seed)
    spec, paths = arguments["spec"], arguments["paths"]
    owners = (torch.rand(2, *spec.shape, generator=g) * 4).floor().clamp(max=2).short()
    rows = {name: [] for name in paths.columns()}
    for ray in range(paths.num_rays):
        one = {name: column[ray] for name, column in paths.columns().items()}
        table = ray % 3 - 1
        for owner in range(3 if table >= 0 else 1):
            shift = torch.randn(3, generator=g, dtype=one["origins"].dtype) * (owner > 0)
            turned = one["directions"].roll(owner)
            bounds = one["bounds"] + torch.tensor([[1, 0, 0], [0, -1, -1]]) * (owner > 0)
            new = {"origins": one["origins"] + shift, "directions": turned, "bounds": bounds}
            new |= {"tables": torch.tensor(table), "owners": torch.tensor(owner)}
            for name, column in rows.items():
                column.append(new.get(name, one[name]))
    columns = {name: torch.stack(column) for name, column in rows.items()}
    return arguments | {"paths": RayPaths(**columns, num_rays=paths.num_rays), "owners": owners}


def run(arguments, backend, device="cpu", **options):
    """Outputs and the gradients of a fixed random projection of them to all that has any."""
    names = [name for name in ("opacity", "features", "scale", "offsets") if torch.is_tensor(arguments[name])]
    moved = {k: v.detach().to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    columns = {name: column.to(device) for name, column in arguments["paths"].columns().items()}
    moved["paths"] = RayPaths(**columns, num_rays=arguments["paths"].num_rays)
    leaves = {name: moved[name].clone().requires_grad_() for name in names}
    out = splat_rays(**(moved | leaves), backend=backend, **options)
    g = torch.Generator().manual_seed(1)
    loss = sum((part * torch.randn(part.shape, generator=g, dtype=part.dtype).to(device)).sum() for part in out)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {name: part.detach().cpu() for name, part in (*out._asdict().items(), *zip(leaves, grads, strict=True))} | {
        f"grad of {name}": grad.cpu() for name, grad in zip(leaves, grads, strict=True)
    }


def assert_same(one, other, tolerance):
    for name in one:
        assert one[name].shape == other[name].shape
        scale = max(1.0, float(one[name].abs().max())) if one[name].numel() else 1.0
        difference = float((one[name] - other[name]).abs().max()) if one[name].numel() else 0.0
        assert difference < tolerance * scale, (name, difference)


CASES = [
    pytest.param({"scale": s, "offset": o}, id=f"scale-{s}-offset-{o}")
    for s, o in ((0.1, 0), (0.2, 0), (0.27, 0), (0.32, 0), (0.4, 0), ("learned", 0), (0.2, 0.2), ("learned", 0.2))
]


@pytest.mark.parametrize("case", CASES)
def test_torch_equals_brute_force_with_gradients(case):
    """To 1e-10 in float64 (the issue asks for 1e-6); a window too small by one voxel would miss by 1e-3 and more."""
    arguments = problem(**case)
    expected = run(arguments, "reference")
    assert float(expected["weight_sum"].mean()) > 0.2 and float(expected["front"].max()) > 0.5
    assert_same(expected, run(arguments, "torch"), 1e-10)


def test_torch_on_moved_boxes_uneven_voxels_and_small_chunks():
    spec = GridSpec((-4.8, -4.0, -1.0), (0.5, 0.4, 0.25), (18, 20, 12))
    arguments = with_movers(problem(spec=spec, rays=30, scale="learned", offset=0.1))
    expected = run(arguments, "reference")
    assert_same(expected, run(arguments, "torch"), 1e-10)
    chunked = splat_rays_torch(*_positional(arguments), chunk_rays=7)
    for part, name in zip(chunked, ("features", "weight_sum", "depth", "front"), strict=True):
        whole = splat_rays(**arguments, backend="torch")._asdict()[name]
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)


def _positional(arguments):
    from syntheocc.occupancy.ops.splat_rays.responses import RayResponse

    return [*arguments.values(), RayResponse()]


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param({}, id="plain"),
        pytest.param({"scale": 0.1, "classes": 17}, id="small-splats"),
        pytest.param({"scale": "learned", "offset": 0.2, "movers": True}, id="learned-moving"),
    ],
)
def test_kernels_equal_brute_force_with_gradients(case, device):
    case = dict(case)
    movers = case.pop("movers", False)
    arguments = problem(spec=SMALL, rays=16, dtype=torch.float32, **case)
    if movers:
        arguments = with_movers(arguments)
    assert_same(run(arguments, "reference"), run(arguments, "triton", device), 2e-5)


@pytest.mark.parametrize("device", KERNELS)
def test_kernels_with_lists_that_overflow_and_lists_sorted_by_torch(device, monkeypatch):
    from syntheocc.occupancy.ops.splat_rays import triton as launches

    arguments = problem(spec=SMALL, rays=12, scale="learned", offset=0.1, dtype=torch.float32)
    expected = run(arguments, "reference")
    monkeypatch.setattr(launches, "CAPACITY", 16)
    monkeypatch.setattr(launches, "LIST_BYTES", 4 * 128 * 5)  # five rays a chunk once a list holds 128 hits
    monkeypatch.setattr(launches, "SORTS", ((8, 1), (32, 1)))
    assert_same(expected, run(arguments, "triton", device), 2e-5)


@pytest.mark.parametrize("device", KERNELS)
def test_kernels_leave_a_ray_when_nothing_is_left_of_it(device):
    """Twelve metres of fog: what is not looked at any more weighs less than 1e-5."""
    spec = GridSpec((0.0, -0.6, -0.6), 0.4, (40, 3, 3))
    opacity = torch.full((1, 40, 3, 3), 0.9)
    features = torch.linspace(0, 1, 40).view(1, 40, 1, 1, 1).expand(1, 40, 3, 3, 1).contiguous()
    ray = RayPaths.straight(
        torch.tensor([[-1.0, 0.1, 0.05]]), torch.tensor([[1.0, 0, 0]]), torch.zeros(1).long(), spec
    )
    slow = splat_rays(opacity, features, ray, spec, backend="reference")
    columns = {name: column.to(device) for name, column in ray.columns().items()}
    fast = splat_rays(opacity.to(device), features.to(device), RayPaths(**columns, num_rays=1), spec, backend="triton")
    assert abs(float(fast.weight_sum) - 1) < 2e-5
    for one, other in zip(slow, fast, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_known_numbers(backend):
    """V16: a splat 10 m ahead as four pixels of a camera with f = 1260 see it."""
    spec = GridSpec((-0.2, -0.2, 9.8), 0.4, (1, 1, 1))
    pixels = torch.tensor([800.0, 810, 825, 840], dtype=torch.float64)
    # Where the vector has its pixel centres: half a pixel off the integer.
    rays = torch.stack([(pixels + 0.5 - 800) / 1260, torch.full_like(pixels, 0.5 / 1260), torch.ones_like(pixels)], -1)
    length = rays.norm(dim=1, keepdim=True)
    paths = RayPaths.straight(torch.zeros_like(rays), rays / length, torch.zeros(4).long(), spec)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    out = splat_rays(0.9 * one, one[..., None], paths, spec, 0.1, backend=backend)
    expected = torch.tensor([0.89858388, 0.63549830, 0.11611069, 0.00516097], dtype=torch.float64)
    torch.testing.assert_close(out.weight_sum, expected, rtol=0, atol=1e-6)
    distance = torch.tensor([9.999998, 9.999652, 9.997952, 9.994837], dtype=torch.float64)
    torch.testing.assert_close(out.depth / out.weight_sum, distance, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_see_through_of_a_wall(backend):
    """V15: opacity at the middle of an edge, at a corner, and what four neighbours let through at the corner."""
    vectors = {
        0.05: (0.00034, 0.0, 1.0), 0.1: (0.13534, 0.01832, 0.92873), 0.2: (0.60653, 0.36788, 0.15966),
        0.27: (0.76007, 0.57770, 0.03180), 0.4: (0.88250, 0.77880, 0.00239),
    }  # fmt: skip
    spec = GridSpec((0.0, 0.0, 0.0), 0.4, (1, 2, 2))
    ahead = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    corner = RayPaths.straight(torch.tensor([[-1.0, 0.4, 0.4]]).double(), ahead, torch.zeros(1).long(), spec)
    edge = RayPaths.straight(torch.tensor([[-1.0, 0.2, 0.4]]).double(), ahead, torch.zeros(1).long(), spec)
    for scale, (at_edge, at_corner, through) in vectors.items():
        opacity = torch.ones(1, 1, 2, 2, dtype=torch.float64)
        single = torch.zeros_like(opacity)
        single[0, 0, 0, 0] = 1
        seen = splat_rays(opacity, opacity[..., None], corner, spec, scale, backend=backend).weight_sum
        # Answers below 1/255 are dropped, as rasterisers do.
        dropped = lambda alpha: alpha if alpha >= 1 / 255 else 0.0  # noqa: E731
        assert abs(1 - float(seen) - (through if at_corner >= 1 / 255 else 1.0)) < 1e-5
        alone = splat_rays(single, single[..., None], corner, spec, scale, backend=backend).weight_sum
        assert abs(float(alone) - dropped(at_corner)) < 1e-5
        alone = splat_rays(single, single[..., None], edge, spec, scale, backend=backend).weight_sum
        assert abs(float(alone) - dropped(at_edge)) < 1e-5


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradients_are_those_of_finite_differences(backend):
    g = torch.Generator().manual_seed(0)
    spec = GridSpec((0.0, 0.0, 0.0), 0.4, (4, 3, 2))
    opacity = 0.3 + 0.6 * torch.rand(1, 4, 3, 2, generator=g, dtype=torch.float64)
    features = torch.randn(1, 4, 3, 2, 2, generator=g, dtype=torch.float64)
    scale = 0.2 + 0.1 * torch.rand(opacity.shape, generator=g, dtype=torch.float64)
    offsets = 0.1 * torch.randn(*opacity.shape, 3, generator=g, dtype=torch.float64)
    way = torch.tensor([[0.9, 0.3, 0.1], [0.5, -0.8, 0.2]], dtype=torch.float64)
    paths = RayPaths.straight(
        torch.tensor([[-0.5, 0.1, 0.3], [0.1, 1.4, 0.2]], dtype=torch.float64),
        way / way.norm(dim=1, keepdim=True),
        torch.zeros(2).long(),
        spec,
    )
    limits = torch.tensor([1.0, 0.9], dtype=torch.float64)

    def call(opacity, features, scale, offsets):
        return tuple(splat_rays(opacity, features, paths, spec, scale, offsets, limits, backend=backend))

    leaves = [t.requires_grad_() for t in (opacity, features, scale, offsets)]
    assert torch.autograd.gradcheck(call, leaves, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "torch", *(["triton"] if INTERPRETED else [])])
def test_no_rays_and_rays_that_miss_give_zeros_that_still_depend_on_the_voxels(backend):
    arguments = problem(spec=SMALL, rays=4, dtype=torch.float32)
    paths = arguments["paths"]
    none = RayPaths(**{name: column[:0] for name, column in paths.columns().items()}, num_rays=0)
    away = replace(paths, origins=paths.origins + 100, directions=torch.tensor([[0.6, 0.0, 0.8]]).expand(4, 3))
    for missing, number in ((none, 0), (away, 4)):
        limits = arguments["front_limits"][:number]
        leaf = arguments["opacity"].clone().requires_grad_()
        changed = arguments | {"paths": missing, "front_limits": limits, "opacity": leaf}
        out = splat_rays(**changed, backend=backend)
        assert out.features.shape == (number, 5) and float(out.features.detach().abs().sum()) == 0
        out.weight_sum.sum().backward()
        assert float(leaf.grad.abs().sum()) == 0


def test_what_lies_beyond_near_and_far_is_not_seen():
    spec = GridSpec((0.0, -0.2, -0.2), 0.4, (5, 1, 1))
    opacity = torch.full((1, 5, 1, 1), 0.5, dtype=torch.float64)
    ray = RayPaths.straight(
        torch.zeros(1, 3).double(), torch.tensor([[1.0, 0, 0]]).double(), torch.zeros(1).long(), spec
    )
    for backend in ("reference", "torch"):
        out = splat_rays(opacity, opacity[..., None], ray, spec, 0.1, near=0.5, far=1.2, backend=backend)
        assert abs(float(out.weight_sum) - 0.75) < 1e-12  # the voxels at 0.6 and 1.0 m
        assert abs(float(out.depth) - (0.5 * 0.6 + 0.25 * 1.0)) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opacity": torch.zeros(2, 24, 20, 7)}, "opacity must be"),
        ({"features": torch.zeros(2, 24, 20, 8)}, "features must be"),
        ({"features": torch.zeros(2, 24, 20, 8, 3)}, "features must be torch.float64"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": torch.zeros(2, 24, 20, 8, dtype=torch.float64)}, "scale must be positive"),
        ({"front_limits": torch.zeros(3, dtype=torch.float64)}, "front_limits must be"),
        ({"offsets": torch.zeros(2, 24, 20, 8, dtype=torch.float64)}, "offsets must be"),
        ({"owners": torch.zeros(1, 24, 20, 8)}, "owners must be int16"),
        ({"near": 2.0, "far": 1.0}, "from near to far"),
        ({"backend": "cuda"}, "backend 'cuda' cannot run"),
        ({"backend": "triton"}, "backend 'triton' cannot run"),  # float64
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        splat_rays(**(problem(rays=2) | {"backend": "torch"} | change))


def test_windows_are_as_small_as_the_specification_says_or_smaller():
    """4.2: cubes of side 3, 5, 5, 7; ours are squares in a layer, and no wider but where a diagonal needs it."""
    from syntheocc.occupancy.ops.splat_rays.lattice import window_size
    from syntheocc.occupancy.ops.splat_rays.responses import CUTOFF

    assert abs(CUTOFF - 3.3291) < 1e-3 and math.isclose(math.exp(-(CUTOFF**2) / 2), 1 / 255)
    assert [window_size(SPEC, CUTOFF * s, 0.0) for s in (0.1, 0.2, 0.27, 0.32)] == [3, 5, 7, 8]
