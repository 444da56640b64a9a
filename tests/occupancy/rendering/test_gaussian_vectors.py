"""Gaussian splatting of occupancy by hand: the vectors V10 to V13 and V16 of a few splats."""

import torch
from splat_scene import CAM2EGO, DOUBLE, close, numbers

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.rendering.gaussian import Gaussians, splat
from syntheocc.occupancy.rendering.splat_images import project_gaussians, splat_pixels
from syntheocc.occupancy.rendering.splat_views import SplatViews

V10 = torch.tensor([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]], dtype=DOUBLE)
V13_K = torch.tensor([[1266.4172, 0, 816.2670], [0, 1266.4172, 491.5071], [0, 0, 1]], dtype=DOUBLE)


def painted(means, scales, opacities, pixels, intrinsics=V10, ego2cam=None, features=None, size=(900, 1600)):
    """`splat_pixels` of a few splats at the centres of whole pixels."""
    means = torch.tensor(means, dtype=DOUBLE)
    features = torch.eye(len(means), 3, dtype=DOUBLE) if features is None else features
    ego2cam = torch.eye(4, dtype=DOUBLE) if ego2cam is None else ego2cam
    at = torch.tensor(pixels, dtype=DOUBLE) + 0.5
    return splat_pixels(means, numbers(*scales), numbers(*opacities), features, ego2cam, intrinsics, *size, at)


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
    ego2cam = torch.linalg.inv(CAM2EGO)
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
