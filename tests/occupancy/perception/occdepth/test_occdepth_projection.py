"""Golden values of specs/occdepth.md 1.2, 1.3 and 1.7, and the vectorised projection against the plain one."""

import pytest
import torch

from syntheocc.occupancy.data.kitti import KittiCalibration
from syntheocc.occupancy.grids import SEMANTIC_KITTI, GridSpec
from syntheocc.occupancy.perception.occdepth.batch import NO_TILE
from syntheocc.occupancy.perception.occdepth.projection import (
    PATTERNS,
    ProjectionCache,
    coarse_grid,
    frustum_tiles,
    voxel_pixels,
)
from syntheocc.occupancy.perception.occdepth.virtual_view import beside, virtual_features

SIZE = (370, 1220)
F64 = torch.float64


def sequence_00():
    """velo2img [2, 4, 4] of sequence 00, and its calibration."""
    intrinsics = torch.tensor([[718.856, 0, 607.1928], [0, 718.856, 185.2157], [0, 0, 1]], dtype=F64)
    offsets = {
        "P2": [45.38225, -0.1130887, 0.003779761],
        "P3": [-337.2877, 2.369057, 0.004915215],
    }
    lidar2cam0 = torch.eye(4, dtype=F64)
    lidar2cam0[:3] = torch.tensor(
        [
            [4.276802385584e-04, -9.999672484946e-01, -8.084491683471e-03, -1.198459927713e-02],
            [-7.210626507497e-03, 8.081198471645e-03, -9.999413164504e-01, -5.403984729748e-02],
            [9.999738645903e-01, 4.859485810390e-04, -7.206933692422e-03, -2.921968648686e-01],
        ],
        dtype=F64,
    )
    rows = {name: torch.cat([intrinsics, torch.tensor(o, dtype=F64)[:, None]], 1) for name, o in offsets.items()}
    calibration = KittiCalibration(rows, lidar2cam0)
    matrices = []
    for name in ("P2", "P3"):
        matrix = torch.eye(4, dtype=F64)
        matrix[:3, :3] = intrinsics
        matrices.append(matrix @ calibration.lidar2cam(name))
    return torch.stack(matrices), calibration


def test_the_published_pixels_and_counts_of_sequence_00():
    velo2img, calibration = sequence_00()
    left, right = (calibration.lidar2cam(name)[:3, 3] for name in ("P2", "P3"))
    torch.testing.assert_close(left, torch.tensor([0.047954, -0.055171, -0.288417], dtype=F64), atol=1e-6, rtol=0)
    assert float((left - right)[0]) == pytest.approx(0.53329, abs=1e-5)
    half = voxel_pixels(velo2img, coarse_grid(SEMANTIC_KITTI.spec, 2), SIZE)
    table = {
        (10, 64, 4): ((580, 207), 3.9130, (482, 207), 3.9141),
        (30, 64, 4): ((598, 189), 11.9128, (566, 189), 11.9139),
        (30, 50, 6): ((936, 138), 11.9043, (904, 138), 11.9055),
        (60, 80, 8): ((410, 138), 23.9041, (394, 138), 23.9052),
        (127, 127, 15): ((248, 123), 50.6923, (240, 123), 50.6935),
    }
    for voxel, (*golden,) in table.items():
        for view in (0, 1):
            assert tuple(half.pixels[view][voxel][0].tolist()) == golden[2 * view]
            assert float(half.depth[view][voxel]) == pytest.approx(golden[2 * view + 1], abs=6e-5)
            assert bool(half.in_view[view][voxel])
    assert [round(float(z), 4) for z in half.depth[:, 0, 64, 8]] == [-0.0984, -0.0973]
    assert not half.in_view[:, 0, 64, 8].any()
    full = voxel_pixels(velo2img, SEMANTIC_KITTI.spec, SIZE)
    assert full.pixels[:, 60, 100, 12, 0].tolist() == [[945, 143], [913, 144]]
    counts = {"half": (half, (176742, 176691, 175500, 177933)), "full": (full, (1413743, 1413468, 1403782, 1423429))}
    for found, golden in counts.values():
        seen = found.in_view[..., 0].flatten(1)
        counted = [*seen.sum(1).tolist(), int(seen.all(0).sum()), int(seen.any(0).sum())]
        # The published centres are float32: up to a voxel on a picture's edge falls on its other side.
        assert all(abs(a - b) <= 1 for a, b in zip(counted, golden, strict=True)), counted


def test_the_vectorised_projection_is_the_plain_one():
    spec = GridSpec((-1.0, -2.0, 0.5), (0.5, 0.4, 0.3), (5, 4, 3))
    generator = torch.Generator().manual_seed(0)
    matrices = torch.eye(4, dtype=F64).repeat(2, 3, 1, 1)
    matrices[..., :3, :] = torch.randn(2, 3, 3, 4, generator=generator, dtype=F64) * 20
    origin = torch.randn(2, 1, 3, generator=generator, dtype=F64)
    found = voxel_pixels(matrices, spec, (40, 50), origin, PATTERNS[1])
    assert found.in_view.any() and not found.in_view.all()
    for b, v, i, j, k in torch.cartesian_prod(*map(torch.arange, (2, 3, 5, 4, 3))).tolist():
        centre = origin[b, 0] + (torch.tensor([i, j, k]) + 0.5) * torch.tensor(spec.voxel_size, dtype=F64)
        uz, vz, z = (matrices[b, v, :3, :3] @ centre + matrices[b, v, :3, 3]).tolist()
        assert float(found.depth[b, v, i, j, k]) == pytest.approx(z, abs=1e-9)
        for p, (du, dv) in enumerate(PATTERNS[1]):
            u, w = (round(uz / z) + du, round(vz / z) + dv) if z > 0 else (-1, -1)
            inside = z > 0 and 0 <= u < 50 and 0 <= w < 40
            assert bool(found.in_view[b, v, i, j, k, p]) == inside
            if inside:
                assert found.pixels[b, v, i, j, k, p].tolist() == [u, w]


def test_patterns_have_as_many_points_as_published():
    assert {k: len(v) for k, v in PATTERNS.items()} == {0: 1, 1: 5, 2: 5, 3: 9, 4: 9, 5: 13, 6: 25, 7: 8, 8: 21}
    assert all(len(set(pattern)) == len(pattern) and pattern.count((0, 0)) == 1 for pattern in PATTERNS.values())


def test_frustum_tiles_are_the_published_masks():
    target = torch.tensor([0, 1, 2, 255, 0, 1, 0, 2])
    pixels = torch.tensor(
        [
            [[1, 1], [5, 1], [1, 5], [5, 5], [3, 3], [4, 4], [7, 7], [8, 0]],
            [[0, 1], [3, 1], [0, 5], [3, 5], [2, 3], [4, 4], [6, 7], [7, 0]],
        ]
    )
    in_view = (pixels < 8).all(-1)
    in_view[:, 6] = False  # behind the cameras
    tiles = frustum_tiles(pixels, in_view, (8, 8), tiles=2)
    masks = [sorted(set((tiles == k).any(0).logical_and(target != 255).nonzero()[:, 0].tolist())) for k in range(4)]
    assert masks == [[0, 1, 4], [1, 7], [2], [5]]
    # As a loss counts them: each entry once.
    known = (tiles != NO_TILE) & (target != 255)
    counts = torch.zeros(4, 3, dtype=torch.int64)
    counts.index_put_(
        (tiles[known].long(), target.expand(2, 8)[known]), torch.ones(int(known.sum()), dtype=torch.int64), True
    )
    assert counts.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1], [0, 1, 0]]
    with pytest.raises(ValueError, match="1..15 tiles a side, got frustum_size=16"):
        frustum_tiles(pixels, in_view, (8, 8), tiles=16)


def test_tiles_of_a_width_that_eight_does_not_divide():
    """Column 152 is left of 1220 / 8 = 152.5, column 153 right of it."""
    pixels = torch.tensor([[[152, 0], [153, 0], [1219, 369], [0, 46], [0, 47]]])
    tiles = frustum_tiles(pixels, torch.ones(1, 5, dtype=torch.bool), SIZE)
    assert tiles.tolist() == [[0, 1, 63, 0, 8]]


def test_the_cache_knows_calibrations_apart():
    calls = []
    cache = ProjectionCache(lambda matrix, origin: calls.append(1) or matrix.sum() + origin.sum(), size=2)
    eye, origin = torch.eye(4, dtype=F64), torch.zeros(3, dtype=F64)
    assert cache(eye, origin) is cache(eye.clone(), origin.clone())
    cache(2 * eye, origin), cache(eye, origin), cache(eye, origin + 1)
    assert len(calls) == 3
    cache(2 * eye, origin)  # the one used least lately had to go
    assert len(calls) == 4


# --- the virtual second view -------------------------------------------------------------------------------------


def ramp(width=640, height=4):
    """Features whose value is their column, and whose second channel is ten times their row."""
    columns = torch.arange(float(width)).expand(height, width)
    return torch.stack([columns, 10 * torch.arange(float(height))[:, None].expand(height, width)])[None]


BF = torch.tensor([0.1 * 518.8579])


def test_the_released_weights_saw_everything_half_a_pixel_off():
    features, depth = ramp(), torch.full((1, 4, 640), 2.0)
    warped, _ = virtual_features(features, depth, BF, torch.tensor([False]), legacy=True)
    assert float(warped[0, 0, 1, 0]) == pytest.approx(25.4429, abs=1e-3)
    assert float(warped[0, 1, 1, 5]) == pytest.approx(5.0, abs=1e-3)  # row 1 reads 0.5
    fixed, seen = virtual_features(features, depth, BF, torch.tensor([False]))
    assert float(fixed[0, 0, 1, 0]) == pytest.approx(25.9429, abs=1e-3) and bool(seen.all())
    assert float(fixed[0, 1, 1, 5]) == pytest.approx(10.0, abs=1e-3)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_the_shift_is_focal_length_times_baseline_over_depth_at_every_scale(scale):
    features = ramp(640 // scale, 8)
    depth = torch.full((2, 8 * scale, 640), 4.0)
    depth[1] = 1.0  # each sample has its own depth
    warped, _ = virtual_features(features.expand(2, -1, -1, -1), depth, BF.expand(2), torch.tensor([False, False]))
    for sample, metres in enumerate((4.0, 1.0)):
        shift = float(BF) / scale / metres
        assert float(warped[sample, 0, 3, 10]) == pytest.approx(10 + shift, abs=2e-3)


def test_a_mirrored_picture_gives_the_mirrored_view():
    generator = torch.Generator().manual_seed(2)
    features = torch.rand(1, 3, 6, 64, generator=generator)
    depth = 0.5 + torch.rand(1, 1, 1, generator=generator).expand(1, 12, 128) * 2
    depth = depth + torch.linspace(0, 1, 128)
    plain, _ = virtual_features(features, depth, BF / 4, torch.tensor([False]))
    mirrored, _ = virtual_features(features.flip(-1), depth.flip(-1), BF / 4, torch.tensor([True]))
    torch.testing.assert_close(mirrored.flip(-1), plain, atol=1e-4, rtol=0)
    wrong, _ = virtual_features(features.flip(-1), depth.flip(-1), BF / 4, torch.tensor([True]), legacy=True)
    assert float((wrong.flip(-1) - plain).abs().max()) > 0.1


def test_holes_of_the_depth_stay_holes():
    depth = torch.full((1, 8, 64), 2.0)
    depth[:, :, 32:] = 0.0
    _, seen = virtual_features(ramp(16, 2), depth, BF, torch.tensor([False]))
    assert seen[0, 0].tolist() == [True] * 8 + [False] * 8


def test_the_camera_beside_sees_points_where_the_features_are_taken_from():
    """Projection and warp agree: a point at column u of the virtual camera is at u + f b / d of the real one."""
    intrinsics = torch.tensor([[518.8579, 0, 320], [0, 518.8579, 240], [0, 0, 1]], dtype=F64)
    world2img = torch.eye(4, dtype=F64)
    world2img[:3, :3] = intrinsics
    moved = beside(world2img, intrinsics)
    point = torch.tensor([0.3, -0.2, 2.5, 1.0], dtype=F64)
    real, virtual = (matrix @ point for matrix in (world2img, moved))
    assert float(real[0] / 2.5 - virtual[0] / 2.5) == pytest.approx(0.1 * 518.8579 / 2.5)
    assert torch.equal(real[1:], virtual[1:]) and not torch.equal(world2img, moved)
