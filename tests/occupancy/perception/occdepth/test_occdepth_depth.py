"""Occupancy-aware depth: golden values of specs/occdepth.md 2.3, 2.4 and 6, and what they should have been."""

import math

import pytest
import torch
from test_occdepth_projection import sequence_00

from syntheocc.occupancy.grids import SEMANTIC_KITTI, GridSpec
from syntheocc.occupancy.perception.depth_supervision import depth_bin_loss
from syntheocc.occupancy.perception.occdepth.depth_bins import LinearBins, expected_depth, linear_places, loss_bins
from syntheocc.occupancy.perception.occdepth.depth_lifting import (
    DepthFusion,
    depth_evidence,
    depth_half_extent,
    published_depth,
    published_places,
)
from syntheocc.occupancy.perception.occdepth.geometry import Projection, StereoCameras, project_voxels
from syntheocc.occupancy.perception.occdepth.losses import cell_depths
from syntheocc.occupancy.perception.occdepth.reference import depth_shares
from syntheocc.occupancy.perception.view_transform import DepthBins

KITTI = DepthBins(2.0, 54.0, 0.5)
SIZE = (370, 1220)
F64 = torch.float64


def test_labels_are_the_nearest_depth_of_each_cell():
    depth = torch.zeros(1, 16, 16)
    depth[:, :8, :8], depth[:, 3, 3] = 10.2, 7.6
    depth[:, 8:, :8], depth[:, 8:, 8:] = 60.0, 2.0
    cells = cell_depths(depth)
    assert cells.tolist() == [[[pytest.approx(7.6), math.inf], [60.0, 2.0]]]
    assert KITTI.number == 104 and KITTI.index(cells).tolist() == [[[11, -1], [-1, 0]]]
    loss = depth_bin_loss(torch.zeros(1, 104, 2, 2), cells, KITTI)
    assert float(loss) == pytest.approx(5.639567, abs=1e-5)
    assert float(loss) == pytest.approx(-math.log(1 / 104) - 103 * math.log(103 / 104), abs=1e-5)
    # A KITTI picture's last column of cells reaches beyond it.
    assert cell_depths(torch.ones(2, 1, 370, 1220)).shape == (2, 1, 47, 153)


def test_the_published_mismatch_of_bins():
    """The depth that the loss calls channel k is lifted as this place."""
    for depth, channel, place in (
        (4, 4, 20.00), (10, 16, 40.49), (20, 36, 60.98), (30, 56, 76.18), (40, 76, 88.83), (50, 96, 99.90),
    ):  # fmt: skip
        metres = torch.tensor(float(depth), dtype=F64)
        assert int(KITTI.index(metres)) == channel
        assert float(linear_places(metres, KITTI)) == pytest.approx(place, abs=0.005)
    assert loss_bins(KITTI, "mismatched") == loss_bins(KITTI, "uniform") == KITTI
    linear = loss_bins(KITTI, "linear")
    assert linear == LinearBins(KITTI) and linear.number == 104
    width = 2 * 52 / (104 * 105)
    assert width == pytest.approx(0.00952381)
    edges = 2 + width * torch.arange(105.0, dtype=F64) * torch.arange(1, 106, dtype=F64) / 2
    assert linear.index(edges[:-1] + 1e-6).tolist() == list(range(104))
    assert linear.index(torch.tensor([1.99, 54.01, math.inf, -1.0])).tolist() == [-1] * 4


@pytest.mark.parametrize("spacing", ["uniform", "linear"])
def test_the_expected_depth_of_a_sure_distribution_is_its_bins_middle(spacing):
    depths = torch.tensor([2.3, 10.1, 30.0, 53.0])
    bins = loss_bins(KITTI, spacing)
    logits = torch.full((104, 1, 4), -200.0)
    logits[bins.index(depths), 0, torch.arange(4)] = 200.0
    found = expected_depth(logits, KITTI, spacing)[0]
    assert torch.equal(bins.index(found), bins.index(depths))
    assert float((found - depths).abs().max()) <= (0.251 if spacing == "uniform" else 0.5)


def kitti_left(flipped=False):
    velo2img, _ = sequence_00()
    matrix = velo2img[None, :1].clone()
    if flipped:  # the published flip is about W, not W - 1
        mirror = torch.eye(4, dtype=F64)
        mirror[0, 0], mirror[0, 2] = -1, 1220
        matrix = mirror @ matrix
    spec = GridSpec(SEMANTIC_KITTI.spec.lower, (0.4, 0.4, 0.4), (128, 128, 16), "lidar")
    intrinsics = torch.tensor([[718.856, 0, 607.1928], [0, 718.856, 185.2157], [0, 0, 1]], dtype=F64)[None, None]
    cameras = StereoCameras(matrix, intrinsics, torch.tensor([spec.lower], dtype=F64))
    return cameras, spec


def test_the_published_frustum_grid():
    cameras, spec = kitti_left()
    grid = published_places(project_voxels(cameras, spec), KITTI, SIZE)[0, 0].view(128, 128, 16, 3)
    for voxel, golden in {
        (10, 64, 4): (-0.048582, 0.119530, -0.620398),
        (30, 64, 4): (-0.018161, 0.023000, -0.123723),
        (60, 80, 8): (-0.327098, -0.253041, 0.307264),
        (127, 127, 15): (-0.593895, -0.335645, 0.953823),
        (0, 64, 8): (-2, -2, -2),
        (3, 64, 4): (-2, -2, -2),
    }.items():
        assert grid[voxel].tolist() == pytest.approx(golden, abs=2e-6)
    inside = int((grid.abs() <= 1).all(-1).sum())
    assert inside == 176603 and inside / 128**2 / 16 == pytest.approx(0.673687, abs=1e-6)
    cameras, spec = kitti_left(flipped=True)
    grid = published_places(project_voxels(cameras, spec), KITTI, SIZE)[0, 0].view(128, 128, 16, 3)
    assert grid[30, 64, 4].tolist() == pytest.approx((0.019802, 0.023000, -0.123723), abs=2e-6)


def test_uniform_depth_hardly_changes_the_published_features():
    cameras, spec = kitti_left()
    probability = torch.full((1, 1, 104, 47, 153), 1 / 104)
    found = 100 * published_depth(probability, project_voxels(cameras, spec), KITTI, "mismatched", 8, SIZE)
    assert found.view(128, 128, 16)[30, 64, 4].item() == pytest.approx(0.9615, abs=1e-4)


def ahead(depths):
    """A camera that looks along x, and one row of voxels of 0.2 m on its axis, out to 52 m."""
    spec = GridSpec((0.0, -0.1, -0.1), (0.2, 0.2, 0.2), (260, 1, 1))
    matrix = torch.zeros(1, 1, 4, 4, dtype=F64)
    matrix[0, 0, 0] = torch.tensor([610.0, -718.0, 0, 0])
    matrix[0, 0, 1] = torch.tensor([185.0, 0, -718.0, 0])
    matrix[0, 0, 2, 0] = matrix[0, 0, 3, 3] = 1
    cameras = StereoCameras(matrix, torch.eye(3).expand(1, 1, 3, 3), torch.tensor([spec.lower], dtype=F64))
    probability = torch.zeros(1, 1, 104, 47, 153)
    probability[:, :, depths] = 1.0
    return probability, project_voxels(cameras, spec), depth_half_extent(cameras, spec)


@pytest.mark.parametrize("spacing", ["uniform", "linear"])
@pytest.mark.parametrize("depth", [5.0, 10.0, 20.0, 40.0])
def test_a_sure_depth_lights_the_voxels_at_that_depth(spacing, depth):
    """The physical test: what is hit is at the depth, what is before it is free, what is behind it is hidden."""
    channel = int(loss_bins(KITTI, spacing).index(torch.tensor(depth + 0.01)))
    probability, projection, extent = ahead(channel)
    assert float(extent) == pytest.approx(0.1)
    shares = depth_evidence(probability, projection, extent, KITTI, spacing, 8, SIZE)[0, 0]
    x = projection.depth[0, 0]
    surface, hidden, free = shares
    torch.testing.assert_close(shares.sum(0), torch.ones(260), atol=1e-5, rtol=0)
    assert float(surface.sum()) == pytest.approx(1, abs=1e-4)
    center = float((surface * x).sum())
    assert abs(center - depth) < 0.5 and x[surface.argmax()] == pytest.approx(depth, abs=0.6)
    assert bool((free[x < depth - 1.0] > 0.999).all()) and bool((hidden[x > depth + 1.0] > 0.999).all())


@pytest.mark.parametrize("channel, depth, near, far", [
    (16, 10.0, 3.21, 3.41), (36, 20.0, 8.2, 8.6), (61, 32.5, 19.4, 20.4),
])  # fmt: skip
def test_the_published_lift_lights_other_voxels(channel, depth, near, far):
    probability, projection, _ = ahead(channel)
    found = published_depth(probability, projection, KITTI, "mismatched", 8, SIZE)[0]
    lit = projection.depth[0, 0][found > 0.05]
    assert len(lit) and near - 0.2 < float(lit.min()) and float(lit.max()) < far + 0.2
    # The same sample with the bins that the loss means.
    found = published_depth(probability, projection, KITTI, "uniform", 8, SIZE)[0]
    lit = projection.depth[0, 0][found > 0.05]
    assert depth - 0.5 < float(lit.min()) and float(lit.max()) < depth + 1.0


def test_a_sure_depth_between_two_centres_is_not_lost():
    """Bins of a few centimetres near the camera: sampled at the centres of 0.4 m voxels one of them vanishes."""
    spec = GridSpec((0.0, -0.2, -0.2), (0.4, 0.4, 0.4), (130, 1, 1))
    probability, projection, _ = ahead(int(LinearBins(KITTI).index(torch.tensor(3.2))))
    keep = projection.depth[0, 0].sub(0.2).remainder(0.4).sub(0.2).abs() < 0.11  # every second voxel of 0.2 m
    coarse = Projection(projection.pixels[:, :, ::2], projection.depth[:, :, ::2] + 0.1)
    assert keep.any() and coarse.depth.shape[2] == spec.shape[0]
    sampled = published_depth(probability, coarse, KITTI, "mismatched", 8, SIZE)
    assert float(sampled.max()) < 0.05
    shares = depth_evidence(probability, coarse, torch.tensor([[0.2]]), KITTI, "linear", 8, SIZE)
    assert float(shares[0, 0, 0].sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("spacing", ["uniform", "linear"])
def test_evidence_is_the_sum_over_bins_gradients_included(spacing):
    generator = torch.Generator().manual_seed(3)
    bins = DepthBins(1.0, 6.0, 0.5)
    logits = torch.randn(1, 1, 10, 1, 1, generator=generator).requires_grad_()
    probability = logits.softmax(2)
    depth = torch.tensor([0.5, 1.1, 2.34, 3.0, 5.9, 7.5])
    projection = Projection(torch.zeros(1, 1, 6, 2).double(), depth.double()[None, None])
    extent = torch.tensor([[0.3]])
    fast = depth_evidence(probability, projection, extent, bins, spacing, 8, (8, 8))[0, 0].mT
    alone = probability[0, 0, :, 0, 0]
    slow = torch.stack(
        [torch.stack(depth_shares(alone, float(z) - 0.3, float(z) + 0.3, bins, spacing)) for z in depth]
    )
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    weight = torch.randn(6, 3, generator=generator)
    grads = [torch.autograd.grad((v * weight).sum(), logits, retain_graph=True)[0] for v in (fast, slow)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-3)


def test_evidence_is_read_between_the_cells_centres():
    """Two cells, one sure of 2 m and one of 4 m: at their centres what each says, half way the mean."""
    bins = DepthBins(1.0, 6.0, 1.0)
    probability = torch.zeros(1, 1, 5, 1, 2)
    probability[..., 1, 0, 0] = probability[..., 3, 0, 1] = 1
    pixels = torch.tensor([[3.5, 3.5], [7.5, 3.5], [11.5, 3.5], [0.0, 3.5]]).double()[None, None]
    projection = Projection(pixels, torch.full((1, 1, 4), 2.5).double())
    shares = depth_evidence(probability, projection, torch.tensor([[0.5]]), bins, "uniform", 8, (8, 16))
    assert shares[0, 0, 0].tolist() == pytest.approx([1, 0.5, 0, 1], abs=1e-5)
    assert shares[0, 0, 2].tolist() == pytest.approx([0, 0.5, 1, 0], abs=1e-5)
    outside = Projection(pixels - 30, projection.depth)
    assert depth_evidence(probability, outside, torch.tensor([[0.5]]), bins, "uniform", 8, (8, 16)).abs().max() == 0


def test_hidden_voxels_keep_their_features():
    """Published, what lies behind a surface is multiplied by zero."""
    fusion = DepthFusion(2)
    torch.nn.init.zeros_(fusion.shift.weight)
    evidence = torch.eye(3)[None, None]  # a voxel on the surface, one behind it, one before it
    evidence = torch.cat([evidence, torch.zeros(1, 1, 3, 3)], 1)  # the second view shows none of them
    found = fusion(torch.ones(1, 3, 2), evidence)
    assert found[0, :, 0].tolist() == [2.0, 1.0, 0.5]
