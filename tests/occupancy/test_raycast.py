"""Ray casting: the vectors of specs/sparseocc.md (original caster's results), tie rules, metres, errors."""

import math

import numpy as np
import pytest
import torch

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.raycast import traverse, voxel_rays
from syntheocc.occupancy.rendering.raycast import cast_rays

BACKENDS = [
    "reference",
    "torch",
    pytest.param("numba", marks=pytest.mark.skipif(not has_module("numba"), reason="needs numba")),
]
DTYPES = [torch.float32, torch.float64]

# json:A_cast4; origin, point on the ray, exit distance in voxels, voxel, hit
OCCUPIED_4 = [(3, 1, 2), (0, 0, 0), (2, 3, 1)]
CASES_4 = [
    ((0.5, 1.5, 2.5), (1.5, 1.5, 2.5), 3.5, (3, 1, 2), True),
    ((0.5, 1.5, 2.5), (0.5, 2.5, 2.5), 2.5, (0, 3, 2), False),
    ((0.5, 0.5, 0.5), (1.5, 0.5, 0.5), 0.5, (0, 0, 0), True),
    ((1.25, 1.5, 1.5), (1.75, 2.5, 1.25), 2.291287899017334, (2, 3, 1), True),
    ((3.5, 3.5, 3.5), (2.5, 3.0, 2.75), 4.712019443511963, (0, 1, 0), False),
    ((-2.0, 1.5, 2.5), (-1.0, 1.5, 2.5), 6.0, (3, 1, 2), True),
    ((-2.0, 1.5, 2.5), (-2.0, 2.5, 2.5), -1.0, (0, 0, 0), False),
    ((-0.5, 1.5, 2.5), (0.5, 1.5, 2.5), 4.5, (3, 1, 2), True),
    ((0.5, 0.5, -3.5), (1.5, 0.75, -1.5), 7.3125, (3, 1, 2), True),
    ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), 5.196152210235596, (3, 3, 3), False),
    ((3.0, 3.0, 3.0), (2.0, 2.0, 2.0), 5.196152210235596, (0, 0, 0), True),
]


def grid_4():
    occupied = torch.zeros(4, 4, 4, dtype=torch.bool)
    for voxel in OCCUPIED_4:
        occupied[voxel] = True
    return occupied


def pattern(shape, modulus):
    x, y, z = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    return (7 * x + 11 * y + 13 * z) % modulus == 0


def lidar_directions():
    """specs/sparseocc.md 3.1: 39 pitches times 360 azimuths, float32 [14040, 3]."""
    pitch = [-math.atan(1 / (k + 1)) for k in range(10)]
    step = pitch[-1] - pitch[-2]
    while pitch[-1] < 0.21:
        pitch.append(pitch[-1] + step)
    p, a = np.meshgrid(pitch, np.deg2rad(np.arange(360.0)), indexing="ij")
    rays = np.stack([np.cos(p) * np.cos(a), np.cos(p) * np.sin(a), np.sin(p)], -1)
    return torch.from_numpy(rays.reshape(-1, 3)).float()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 0.4])
def test_published_cases(backend, dtype, size):
    spec = GridSpec((0.0, 0.0, 0.0), size, (4, 4, 4))
    start = torch.tensor([case[0] for case in CASES_4], dtype=dtype)
    point = torch.tensor([case[1] for case in CASES_4], dtype=dtype)
    distance, index, hit = cast_rays(grid_4(), start * size, (point - start) * size, spec, backend=backend)
    assert distance.dtype == dtype and index.dtype == torch.int64 and hit.dtype == torch.bool
    expected = torch.tensor([case[2] for case in CASES_4], dtype=dtype) * size
    assert torch.allclose(distance, expected, atol=1e-6)
    assert index.tolist() == [list(case[3]) for case in CASES_4]
    assert hit.tolist() == [case[4] for case in CASES_4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_checksums_of_a_small_grid(backend):
    spec = GridSpec((0.0, 0.0, 0.0), 1.0, (12, 10, 8))
    origin = torch.tensor([5.37, 4.21, 3.63])
    distance, index, hit = cast_rays(
        pattern(spec.shape, 29), origin, 2.5 * lidar_directions()[::97], spec, backend=backend
    )
    assert len(hit) == 145 and int(hit.sum()) == 22
    assert float(distance.double().sum()) == pytest.approx(848.094, abs=1e-3)
    assert int((index * torch.tensor([80, 8, 1])).sum()) == 64604
    assert float(distance.max()) == pytest.approx(8.60686206817627, abs=1e-6)
    first = [(5.1335954666, 8, 4, 0), (2.3051681519, 5, 5, 2), (1.9967855215, 4, 3, 2), (5.1335954666, 6, 0, 0)]
    for k, (want, *voxel) in enumerate(first):
        assert float(distance[k]) == pytest.approx(want, abs=1e-6) and index[k].tolist() == voxel


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("origin", "hits", "total", "flat", "furthest"),
    [
        ((0.9858, 0.0, 1.8402), 1471, 992142.283, 4536855901, 142.65159606933594),
        ((-21.37, 17.93, 1.2), 2030, 826683.809, 2405325321, 209.97760009765625),
    ],
)
def test_published_checksums_of_all_lidar_rays(backend, origin, hits, total, flat, furthest):
    """float32 rays give the original's voxels without exception; the sums are in voxels of 0.4 m."""
    rays = lidar_directions()
    assert torch.allclose(rays.double().sum(0), torch.tensor([0.0, 0.0, -240.71792]).double(), atol=1e-4)
    occupied = pattern((200, 200, 16), 1009)
    distance, index, hit = cast_rays(occupied, torch.tensor(origin), rays, OCC3D_NUSCENES.spec, backend=backend)
    voxels = distance.double() / float(torch.tensor(0.4))
    assert int(hit.sum()) == hits
    assert int((index * torch.tensor([3200, 16, 1])).sum()) == flat
    assert float(voxels.sum()) == pytest.approx(total, abs=0.1)
    assert float(voxels.max()) == pytest.approx(furthest, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("origin", "hits", "total", "flat", "furthest"),
    [
        ((0.9858, 0.0, 1.8402), 1471, 992142.283, 4536855901, 142.65159606933594),
        ((-21.37, 17.93, 1.2), 2030, 826683.809, 2405325321, 209.97760009765625),
    ],
)
def test_published_checksums_in_the_metrics_coordinates(backend, origin, hits, total, flat, furthest):
    """Origin and end point rounded as the published metric hands them over: every printed digit of the sums."""
    lower, size = (-40.0, -40.0, -1.0), (0.4, 0.4, 0.4)
    start, unit = voxel_rays(torch.tensor(origin, dtype=torch.float64), lidar_directions().double(), lower, size, True)
    exit_t, index, hit = traverse(pattern((200, 200, 16), 1009), start.contiguous(), unit, backend)
    assert int(hit.sum()) == hits and int((index * torch.tensor([3200, 16, 1])).sum()) == flat
    assert round(float(exit_t.float().double().sum()), 3) == total and float(exit_t.float().max()) == furthest


@pytest.mark.skipif(not has_module("numba"), reason="needs numba")
@pytest.mark.parametrize("distance", ["exit", "entry"])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_paths_agree_to_the_last_bit(distance, backend):
    g = torch.Generator().manual_seed(0)
    origins = torch.rand(6000, 3, generator=g, dtype=torch.float64) * 24 - 6
    directions = torch.randn(6000, 3, generator=g, dtype=torch.float64)
    # Lattice points and axis-parallel or diagonal rays, where ties decide.
    origins[:2000] = origins[:2000].round()
    directions[1000:3000] = directions[1000:3000].round()
    directions[(directions == 0).all(1)] = 1.0
    spec = GridSpec((-1.0, 0.0, 1.0), (1.0, 0.5, 2.0), (12, 10, 8))
    occupied = pattern(spec.shape, 29)
    slow = cast_rays(occupied, origins, directions, spec, distance, backend="reference")
    fast = cast_rays(occupied, origins, directions, spec, distance, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(slow, fast, strict=True))
    assert 100 < int(slow[2].sum()) < 5900


@pytest.mark.gpu
def test_a_gpu_takes_the_same_steps():
    g = torch.Generator().manual_seed(2)
    origins = torch.rand(500, 3, generator=g, dtype=torch.float64) * 12
    directions = torch.nn.functional.normalize(torch.randn(500, 3, generator=g, dtype=torch.float64), dim=1)
    occupied = pattern((12, 10, 8), 29)
    slow = traverse(occupied, origins, directions, backend="reference")
    fast = traverse(occupied.cuda(), origins.cuda(), directions.cuda())
    assert all(torch.equal(a, b.cpu()) for a, b in zip(slow, fast, strict=True))


def brute_force(occupied, origin, direction, spec):
    """First occupied voxel by entry distance, from every voxel's slab intersection: (entry, exit, index) or None."""
    unit = direction / np.linalg.norm(direction)
    best = None
    for voxel in np.argwhere(occupied.numpy()):
        low = np.array(spec.lower) + voxel * np.array(spec.voxel_size)
        with np.errstate(divide="ignore"):
            a, b = (low - origin) / unit, (low + spec.voxel_size - origin) / unit
        enter, leave = np.minimum(a, b).max(), np.maximum(a, b).min()
        if leave > max(enter, 0) and (best is None or enter < best[0]):
            best = (enter, leave, voxel.tolist())
    return best


@pytest.mark.parametrize("backend", BACKENDS)
def test_metres_in_a_grid_of_boxes_against_brute_force(backend):
    g = torch.Generator().manual_seed(5)
    spec = GridSpec((-2.0, 1.0, -0.5), (0.5, 0.25, 0.8), (6, 8, 4))
    occupied = torch.rand(spec.shape, generator=g) < 0.08
    origins = torch.rand(120, 3, generator=g, dtype=torch.float64) * torch.tensor([3.0, 2.0, 3.2]) + torch.tensor(
        spec.lower
    )
    directions = torch.randn(120, 3, generator=g, dtype=torch.float64)
    leaving, index, hit = cast_rays(occupied, origins, directions, spec, "exit", backend)
    entering, same_index, _ = cast_rays(occupied, origins, directions, spec, "entry", backend)
    assert torch.equal(index, same_index)
    for k in range(120):
        expected = brute_force(occupied, origins[k].numpy(), directions[k].numpy(), spec)
        assert bool(hit[k]) == (expected is not None)
        if expected is not None:
            assert index[k].tolist() == expected[2]
            assert float(entering[k]) == pytest.approx(max(expected[0], 0.0), abs=1e-9)
            assert float(leaving[k]) == pytest.approx(expected[1], abs=1e-9)
    assert 20 < int(hit.sum()) < 110


def test_entry_distances_by_hand():
    spec = GridSpec((0.0, 0.0, 0.0), 0.5, (4, 4, 4))
    occupied = torch.zeros(4, 4, 4, dtype=torch.bool)
    occupied[3, 1, 2] = occupied[0, 0, 0] = True
    origins = [[0.25, 0.75, 1.25], [0.2, 0.2, 0.2], [-1.0, 0.75, 1.25], [-1.0, 0.75, 1.25], [0.25, 0.75, 1.25]]
    directions = [[2.0, 0, 0], [1, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0]]
    entering, index, hit = cast_rays(occupied, origins, directions, spec, distance="entry")
    leaving = cast_rays(occupied, origins, directions, spec)[0]
    # Hit; inside an occupied voxel; from outside; away from the grid; through and out without a hit.
    assert entering.tolist() == pytest.approx([1.25, 0.0, 2.5, -0.5, 0.75])
    assert leaving.tolist() == pytest.approx([1.75, 0.3, 3.0, -0.5, 1.25])
    assert index.tolist() == [[3, 1, 2], [0, 0, 0], [3, 1, 2], [0, 0, 0], [0, 3, 2]]
    assert hit.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_z_then_y_then_x(backend):
    # Along the diagonal from a corner the path is z, y, x: (0,0,0) -> (0,0,1) -> (0,1,1) -> (1,1,1).
    spec = GridSpec((0.0, 0.0, 0.0), 1.0, (2, 2, 2))
    for voxel, stops in (((0, 0, 1), True), ((0, 1, 1), True), ((0, 1, 0), False), ((1, 0, 0), False)):
        occupied = torch.zeros(2, 2, 2, dtype=torch.bool)
        occupied[voxel] = True
        hit = cast_rays(occupied, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], spec, backend=backend)[2]
        assert bool(hit) == stops, voxel


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_grids_and_far_origins(backend):
    # No step limit inside the grid (1500 voxels); outside it the published limit of 1001 steps holds.
    spec = GridSpec((0.0, 0.0, 0.0), 0.5, (1500, 1, 1))
    occupied = torch.zeros(spec.shape, dtype=torch.bool)
    occupied[-1] = True
    origins = [[0.1, 0.25, 0.25], [-500.1, 0.25, 0.25], [-501.1, 0.25, 0.25]]
    distance, _, hit = cast_rays(occupied, origins, [1.0, 0.0, 0.0], spec, backend=backend)
    assert hit.tolist() == [True, True, False]
    assert distance.tolist() == pytest.approx([749.9, 1250.1, -0.5])


def test_inputs_broadcast_and_keep_their_type():
    spec = GridSpec((0.0, 0.0, 0.0), 1.0, (4, 4, 4))
    occupied = grid_4()
    one = cast_rays(occupied.numpy(), np.array([0.5, 1.5, 2.5]), np.array([1.0, 0, 0]), spec)
    assert one[0].tolist() == [3.5] and one[0].dtype == torch.float64 and one[1].shape == (1, 3)
    many = cast_rays(occupied, torch.rand(5, 3), torch.tensor([0.0, 0, 1]), spec)
    assert many[0].shape == (5,) and many[0].dtype == torch.float32
    none = cast_rays(occupied, torch.zeros(0, 3), torch.zeros(0, 3), spec)
    assert none[0].shape == (0,) and none[1].shape == (0, 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distance", ["exit", "entry"])
def test_frames_origins_and_rays_in_one_call(backend, distance):
    g = torch.Generator().manual_seed(3)
    spec = GridSpec((-1.0, 0.0, 1.0), 0.5, (6, 5, 4))
    occupied = torch.rand((2, *spec.shape), generator=g) < 0.1
    origins = torch.rand(2, 3, 1, 3, generator=g) * 3
    directions = torch.randn(7, 3, generator=g)
    distances, index, hit = cast_rays(occupied, origins, directions, spec, distance, backend)
    assert distances.shape == hit.shape == (2, 3, 7) and index.shape == (2, 3, 7, 3)
    for b in range(2):
        for o in range(3):
            alone = cast_rays(occupied[b], origins[b, o, 0], directions, spec, distance, "reference")
            assert all(torch.equal(x[b, o], y) for x, y in zip((distances, index, hit), alone, strict=True))
    # One grid takes any leading shape too, and one set of rays any number of grids.
    one = cast_rays(occupied[0], origins[0], directions, spec, distance, backend)
    assert torch.equal(one[0], distances[0])
    shared = cast_rays(occupied, origins[:1, 0], directions, spec, distance, backend)
    assert shared[0].shape == (2, 7) and torch.equal(shared[0][0], distances[0, 0])
    none = cast_rays(occupied[:0], origins[:0], directions, spec)
    assert none[0].shape == (0, 3, 7) and none[1].shape == (0, 3, 7, 3)


def test_bad_batches_are_named():
    spec = GridSpec((0.0, 0.0, 0.0), 1.0, (4, 4, 4))
    grids = torch.stack([grid_4(), grid_4()])
    with pytest.raises(
        ValueError, match=r"2 grids need origins or directions \[2, ..., 3\]; together they are \(5, 3\)"
    ):
        cast_rays(grids, torch.zeros(5, 3), torch.ones(3), spec)
    with pytest.raises(ValueError, match="do not broadcast"):
        cast_rays(grids, torch.zeros(2, 5, 3), torch.ones(4, 3), spec)
    rays = torch.ones(3, 2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="2 grids but rays of 3"):
        traverse(grids, rays, rays)
    with pytest.raises(ValueError, match="occupied must be uint8 labels"):
        traverse(grids, rays, rays, free=3)
    with pytest.raises(ValueError, match="a grid needs voxels"):
        traverse(grids[:, :0], rays[:2], rays[:2])


def test_labels_stop_rays_like_what_is_occupied():
    labels = torch.where(pattern((12, 10, 8), 29), 3, 9).to(torch.uint8)
    start = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 8
    ways = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64).expand(50, 3)
    results = traverse(labels, start, ways, free=9), traverse(labels != 9, start, ways)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bad_arguments_are_named():
    spec = GridSpec((0.0, 0.0, 0.0), 1.0, (4, 4, 4))
    occupied, origin, ray = grid_4(), torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match="bool \\(4, 4, 4\\) .* got torch.uint8"):
        cast_rays(occupied.byte(), origin, ray, spec)
    with pytest.raises(ValueError, match="got torch.bool \\(4, 4, 3\\)"):
        cast_rays(occupied[..., :3], origin, ray, spec)
    with pytest.raises(ValueError, match="distance must be 'exit' or 'entry', got 'middle'"):
        cast_rays(occupied, origin, ray, spec, distance="middle")
    with pytest.raises(ValueError, match="origins must be \\[R, 3\\]"):
        cast_rays(occupied, torch.zeros(2), ray, spec)
    with pytest.raises(ValueError, match="directions hold NaN"):
        cast_rays(occupied, origin, torch.tensor([1.0, float("nan"), 0.0]), spec)
    with pytest.raises(ValueError, match="2 origins but 3 directions"):
        cast_rays(occupied, torch.zeros(2, 3), torch.ones(3, 3), spec)
    with pytest.raises(ValueError, match="one of them is \\(0, 0, 0\\)"):
        cast_rays(occupied, origin, torch.zeros(2, 3), spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"occupied": torch.zeros(4, 4, 4)}, "occupied must be bool"),
        ({"origins": torch.zeros(2, 3)}, "origins must be float64"),
        ({"directions": torch.zeros(2, 2, dtype=torch.float64)}, "directions must be float64"),
        ({"directions": torch.zeros(3, 3, dtype=torch.float64)}, "2 origins but 3 directions"),
        ({"origins": torch.zeros(2, 3, dtype=torch.float64, device="meta")}, "share one device"),
        ({"backend": "triton"}, "backend 'triton' cannot run on cpu"),
    ],
)
def test_bad_operator_arguments(change, message):
    arguments = {
        "occupied": grid_4(),
        "origins": torch.zeros(2, 3, dtype=torch.float64),
        "directions": torch.ones(2, 3, dtype=torch.float64),
    }
    with pytest.raises(ValueError, match=message):
        traverse(**arguments | change)
