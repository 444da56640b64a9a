"""Golden values of specs/occdepth.md 1.2, 1.3 and 1.7, and the vectorised projection against the plain one."""

import pytest
import torch

from syntheocc.occupancy.data.kitti import KittiCalibration
from syntheocc.occupancy.grids import SEMANTIC_KITTI, GridSpec
from syntheocc.occupancy.perception.occdepth.batch import NO_TILE
from syntheocc.occupancy.perception.occdepth.frustums import ProjectionCache, frustum_tiles, tiles_of_pixels
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras, project_voxels
from syntheocc.occupancy.perception.occdepth.virtual_view import beside, second_view

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
    eye = torch.eye(3, dtype=F64).expand(1, 2, 3, 3)
    cameras = StereoCameras(velo2img[None], eye, torch.tensor([SEMANTIC_KITTI.spec.lower], dtype=F64))
    table = {
        (10, 64, 4): ((580, 207), 3.9130, (482, 207), 3.9141),
        (30, 64, 4): ((598, 189), 11.9128, (566, 189), 11.9139),
        (30, 50, 6): ((936, 138), 11.9043, (904, 138), 11.9055),
        (60, 80, 8): ((410, 138), 23.9041, (394, 138), 23.9052),
        (127, 127, 15): ((248, 123), 50.6923, (240, 123), 50.6935),
    }
    full = SEMANTIC_KITTI.spec
    half = GridSpec(full.lower, 0.4, (128, 128, 16), full.frame)
    counts = {full: (1413743, 1413468, 1403782, 1423429), half: (176742, 176691, 175500, 177933)}
    for spec, golden in counts.items():
        found = project_voxels(cameras, spec)
        if spec is full:
            fine = [found.pixels[0, view].round().unflatten(0, spec.shape)[60, 100, 12].tolist() for view in (0, 1)]
            assert fine == [[945, 143], [913, 144]]
        seen = found.inside(SIZE)[0]
        counted = [*seen.sum(1).tolist(), int(seen.all(0).sum()), int(seen.any(0).sum())]
        # The published centres are float32: up to a voxel on a picture's edge falls on its other side.
        assert all(abs(a - b) <= 1 for a, b in zip(counted, golden, strict=True)), counted
    pixels, depth, seen = (x.unflatten(1, spec.shape) for x in (found.pixels[0].round(), found.depth[0], seen))
    for voxel, expected in table.items():
        for view in (0, 1):
            assert tuple(pixels[view][voxel].tolist()) == expected[2 * view]
            assert float(depth[view][voxel]) == pytest.approx(expected[2 * view + 1], abs=6e-5)
            assert bool(seen[view][voxel])
    assert [round(float(z), 4) for z in depth[:, 0, 64, 8]] == [-0.0984, -0.0973] and not seen[:, 0, 64, 8].any()


def test_the_tiles_of_a_scene_are_those_of_its_voxels_one_by_one():
    spec = GridSpec((-1.0, -2.0, 0.5), (0.5, 0.4, 0.3), (5, 4, 3))
    # Two cameras that look along x, 0.2 m apart, between the grid's first and second layer.
    intrinsics = torch.tensor([[20.0, 0, 24.3], [0, 20, 19.6], [0, 0, 1]], dtype=F64)
    matrices = torch.eye(4, dtype=F64).repeat(2, 1, 1)
    matrices[:, :3, :3] = intrinsics @ torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=F64)
    matrices[1, :3, 3] = intrinsics @ torch.tensor([-0.2, 0, 0], dtype=F64)
    origin = torch.tensor([-0.4, -1.1, -0.3], dtype=F64)
    found = frustum_tiles(matrices, origin, spec, (40, 50), tiles=3)
    assert found.shape == (2, 5, 4, 3) and (found != NO_TILE).any() and (found == NO_TILE).any()
    for i, j, k in torch.cartesian_prod(*map(torch.arange, spec.shape)).tolist():
        centre = origin + (torch.tensor([i, j, k]) + 0.5) * torch.tensor(spec.voxel_size, dtype=F64)
        counted = set()
        for v in range(2):
            uz, vz, z = (matrices[v, :3, :3] @ centre + matrices[v, :3, 3]).tolist()
            u, w = (round(uz / z), round(vz / z)) if z > 0 else (-1, -1)
            inside = z > 0 and 0 <= u < 50 and 0 <= w < 40
            tile = int(w / (40 / 3)) * 3 + int(u / (50 / 3)) if inside else NO_TILE
            assert int(found[v, i, j, k]) == (NO_TILE if tile in counted else tile)
            counted.add(tile)


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
    tiles = tiles_of_pixels(pixels, in_view, (8, 8), tiles=2)
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
        tiles_of_pixels(pixels, in_view, (8, 8), tiles=16)


def test_tiles_of_a_width_that_eight_does_not_divide():
    """Column 152 is left of 1220 / 8 = 152.5, column 153 right of it."""
    pixels = torch.tensor([[[152, 0], [153, 0], [1219, 369], [0, 46], [0, 47]]])
    tiles = tiles_of_pixels(pixels, torch.ones(1, 5, dtype=torch.bool), SIZE)
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


def ramp(width=640, height=4):
    """Features whose value is their column, and whose second channel is ten times their row."""
    columns = torch.arange(float(width)).expand(height, width)
    return torch.stack([columns, 10 * torch.arange(float(height))[:, None].expand(height, width)])[None]


BF = torch.tensor([0.1 * 518.8579])


def test_the_released_weights_saw_everything_half_a_pixel_off():
    features, depth = ramp(), torch.full((1, 4, 640), 2.0)
    warped = second_view(features, depth, BF, 1, legacy=True)
    assert float(warped[0, 0, 1, 0]) == pytest.approx(25.4429, abs=1e-3)
    assert float(warped[0, 1, 1, 5]) == pytest.approx(5.0, abs=1e-3)  # row 1 reads 0.5
    fixed = second_view(features, depth, BF, 1)
    assert float(fixed[0, 0, 1, 0]) == pytest.approx(25.9429, abs=1e-3)
    assert float(fixed[0, 1, 1, 5]) == pytest.approx(10.0, abs=1e-3)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_the_shift_is_focal_length_times_baseline_over_depth_at_every_scale(stride):
    features = ramp(640 // stride, 8)
    depth = torch.full((2, 8 * stride, 640), 4.0)
    depth[1] = 1.0  # each sample has its own depth
    warped = second_view(features.expand(2, -1, -1, -1), depth, BF.expand(2), stride)
    for sample, metres in enumerate((4.0, 1.0)):
        shift = float(BF) / stride / metres
        assert float(warped[sample, 0, 3, 10]) == pytest.approx(10 + shift, abs=2e-3)
    published = second_view(features.expand(2, -1, -1, -1), depth, BF.expand(2), stride, legacy=True)
    assert torch.equal(published[0], published[1])


def test_a_mirrored_picture_gives_the_mirrored_view():
    generator = torch.Generator().manual_seed(2)
    features = torch.rand(1, 3, 6, 64, generator=generator)
    depth = 1.0 + torch.linspace(0, 1, 128).expand(1, 12, 128)
    plain = second_view(features, depth, BF / 4, 2)
    mirrored = second_view(features.flip(-1), depth.flip(-1), -BF / 4, 2)
    torch.testing.assert_close(mirrored.flip(-1), plain, atol=1e-4, rtol=0)
    wrong = second_view(features.flip(-1), depth.flip(-1), -BF / 4, 2, legacy=True)
    assert float((wrong.flip(-1) - plain).abs().max()) > 0.1


def test_holes_of_the_depth_do_not_pull_on_their_surroundings():
    depth = torch.full((1, 8, 64), 2.0)
    depth[:, :, 33:] = 0.0
    warped = second_view(ramp(16, 2), depth, BF / 10, 4)
    moved = warped[0, 0, 0] - torch.arange(16.0)
    shift = float(BF) / 10 / 4 / 2
    # Cell 8 has one pixel in four with a depth; the cells after it have none and stay.
    assert moved[:9].tolist() == pytest.approx([shift] * 9, abs=1e-4)
    assert moved[9:].tolist() == pytest.approx([0.0] * 7, abs=1e-4)


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
