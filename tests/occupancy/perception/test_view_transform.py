"""Lift-splat geometry against points worked out by hand; images and grids augmented without moving anything."""

import math

import pytest
import torch

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.perception.transforms import GridTransform, ImageTransform
from syntheocc.occupancy.perception.view_transform import (
    DepthBins,
    LiftCameras,
    feature_pixels,
    image_to_grid,
    lift_points,
    lift_splat,
    voxel_numbers,
)

GRID = GridSpec((-4.0, -4.0, -1.0), 0.5, (16, 16, 8))
# Specs/occflownet_splattingocc.md V8 and V13.
INTRINSICS = torch.tensor([[1266.4172, 0, 816.2670], [0, 1266.4172, 491.5071], [0, 0, 1]], dtype=torch.float64)


def cam2ego(translation=(1.70, 0.02, 1.51)):
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose[:3, 3] = torch.tensor(translation)
    return pose


def cameras(intrinsics=INTRINSICS, pose=None, image=None, turn=None):
    """One camera of one frame."""
    pose = cam2ego() if pose is None else pose
    image = torch.eye(4, dtype=torch.float64) if image is None else image.matrix()
    turn = torch.eye(4, dtype=torch.float64) if turn is None else turn.matrix()
    k = torch.eye(4, dtype=torch.float64)
    k[:3, :3] = intrinsics
    ego2img = image @ k @ torch.linalg.inv(pose) @ torch.linalg.inv(turn)
    return LiftCameras(ego2img[None, None, None], intrinsics[None, None, None], image[None, None, None], turn[None])


def test_a_voxel_is_found_through_its_pixel():
    """V13: the voxel (130, 100, 6) lies at z 10.5 before pixel (794.557, 480.652)."""
    pixel = torch.tensor([[[794.55699086, 480.65209543]]])
    (point,) = lift_points(image_to_grid(cameras().ego2img[0, 0]), pixel, torch.tensor([10.5])).view(-1, 3)
    torch.testing.assert_close(point, torch.tensor([12.2, 0.2, 1.6]), atol=1e-4, rtol=0)
    spec = OCC3D_NUSCENES.spec
    assert int(voxel_numbers(point, spec)) == (130 * 200 + 100) * 16 + 6


def test_voxels_are_rounded_down_and_legacy_leaks_into_the_first_layer():
    points = torch.tensor([[-4.3, 0.0, 0.0], [-3.9, -4.0, -1.0], [3.99, 3.99, 2.99], [4.0, 0, 0], [math.nan, 0, 0]])
    assert voxel_numbers(points, GRID).tolist() == [-1, 0, 16 * 16 * 8 - 1, -1, -1]
    first = 8 * 8 + 2  # x 0, y 8, z 2
    assert voxel_numbers(points, GRID, legacy=True).tolist() == [first, 0, 16 * 16 * 8 - 1, -1, -1]


def test_features_stand_for_the_centres_of_their_cells():
    pixels = feature_pixels((2, 4), (32, 64))
    assert pixels[0, :, 0].tolist() == [7.5, 23.5, 39.5, 55.5] and pixels[:, 0, 1].tolist() == [7.5, 23.5]
    published = feature_pixels((32, 88), (512, 1408), legacy=True)
    assert published[0, 0].tolist() == [0, 0] and published[-1, -1].tolist() == [1407, 511]
    assert float(published[0, 1, 0]) == pytest.approx(1407 / 87)


def test_depth_bins_of_lidar_points():
    """V17."""
    bins = DepthBins()
    assert bins.number == 88 and bins.depths()[[0, 1, 87]].tolist() == [1.0, 1.5, 44.5]
    assert bins.index(torch.tensor([0.4, 1.0, 1.49, 1.5, 10.3, 44.99, 45.0])).tolist() == [-1, 0, 0, 1, 18, 87, -1]
    with pytest.raises(ValueError, match="near to far"):
        DepthBins(2.0, 1.0)


@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_a_mirrored_grid_has_the_mirrored_volume(flip_x, flip_y):
    """Acceptance test 3, as far as the view transform goes: four mirrorings, four mirrored volumes."""
    g = torch.Generator().manual_seed(0)
    intrinsics = torch.tensor([[30.0, 0, 31.3], [0, 30.0, 14.7], [0, 0, 1]], dtype=torch.float64)
    bins, pose = DepthBins(0.5, 4.5, 0.25), cam2ego((-3.1, 0.13, 0.9))
    depth = torch.randn(1, 1, 16, 4, 8, generator=g).softmax(2)
    context = torch.randn(1, 1, 3, 4, 8, generator=g)
    plain = cameras(intrinsics, pose)
    turned = cameras(intrinsics, pose, turn=GridTransform(flip_x=flip_x, flip_y=flip_y))
    expected = lift_splat(depth, context, image_to_grid(plain.ego2img[:, 0]), bins, GRID, (32, 64))
    assert expected.shape == (1, 3, 16, 16, 8) and expected.abs().sum() > 1
    got = lift_splat(depth, context, image_to_grid(turned.ego2img[:, 0]), bins, GRID, (32, 64))
    axes = [axis for axis, flip in ((2, flip_x), (3, flip_y)) if flip]
    torch.testing.assert_close(got.flip(axes) if axes else got, expected, atol=1e-5, rtol=1e-5)


def test_augmented_images_are_lifted_to_the_same_places():
    """Acceptance test 4: the pixel that a point went to by the image's matrix is lifted to that point again."""
    point = torch.tensor([12.2, 0.2, 1.6, 1.0], dtype=torch.float64)
    for image in (
        ImageTransform(0.88, 100, 280, 512, 1408),
        ImageTransform(0.91, 7, 300, 512, 1408, flip=True),
        ImageTransform(0.95, 7, 300, 512, 1408, flip=True, rotation=math.radians(5.4)),
    ):
        rig = cameras(image=image)
        u, v, z, _ = (rig.ego2img[0, 0, 0] @ point).tolist()
        assert z == pytest.approx(10.5)
        pixel = torch.tensor([[[u / z, v / z]]])
        lifted = lift_points(image_to_grid(rig.ego2img[0, 0]), pixel, torch.tensor([z])).view(3)
        torch.testing.assert_close(lifted, point[:3].float(), atol=1e-4, rtol=0)


def test_what_the_depth_network_knows_of_a_camera():
    image, turn = ImageTransform(0.88, 100, 280, 512, 1408, flip=True), GridTransform(flip_y=True)
    rig = cameras(image=image, turn=turn)
    expected = [1266.4172, 1266.4172, 816.2670, 491.5071]
    expected += [-0.88, 0, 1508, 0, 0.88, -280]
    expected += [1, 0, 0, -1, 1]
    expected += cam2ego()[:3].flatten().tolist()
    assert rig.vectors().shape == (1, 1, 27)
    torch.testing.assert_close(rig.vectors()[0, 0], torch.tensor(expected), atol=1e-3, rtol=1e-5)


def test_a_missing_camera_lifts_nothing():
    rig = cameras()
    rig.ego2img = torch.cat([rig.ego2img, torch.zeros(1, 1, 1, 4, 4)], 2)
    rig = LiftCameras(rig.ego2img, rig.intrinsics.repeat(1, 1, 2, 1, 1), rig.image_transforms.repeat(1, 1, 2, 1, 1),
                      rig.grid_transforms)  # fmt: skip
    assert rig.exists.tolist() == [[[True, False]]] and not rig.vectors()[0, 1].any()
    points = lift_points(image_to_grid(rig.ego2img[0, 0]), torch.zeros(1, 1, 2), torch.tensor([2.0]))
    assert torch.isfinite(points[0]).all() and torch.isnan(points[1]).all()
    volume = lift_splat(
        torch.ones(1, 1, 1, 1, 1),
        torch.ones(1, 1, 1, 1, 1),
        image_to_grid(rig.ego2img[:, 0, 1:]),
        DepthBins(1.0, 2.0, 1.0),
        GRID,
        (1, 1),
    )
    assert not volume.any()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="intrinsics must be"):
        LiftCameras(
            torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 1, 3, 3, 3), torch.zeros(1, 2, 3, 4, 4), torch.eye(4)[None]
        )
    with pytest.raises(ValueError, match="depth must be"):
        lift_splat(
            torch.ones(1, 1, 2, 1, 1), torch.ones(1, 1, 1, 1, 1), torch.eye(4)[None, None], DepthBins(), GRID, (1, 1)
        )
