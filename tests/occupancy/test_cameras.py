"""Cameras by hand: projection and back-projection, pixel conventions, neighbours, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syntheocc.occupancy import BrownConrady, Camera, CameraRig, KannalaBrandt
from syntheocc.occupancy.transforms import (
    invert_rigid,
    pose_from_quaternion,
    quaternion_from_rotation,
    rotation_z,
    transform_points,
)

K = [[400.0, 0.0, 499.5], [0.0, 410.0, 299.5], [0.0, 0.0, 1.0]]
LENSES = {
    "pinhole": {},
    "brown-conrady": {"distortion": [-0.3, 0.1, 0.001, 0.002, 0.01]},
    "rational": {"distortion": [0.3, 0.1, 0.001, 0.002, 0.01, 0.5, 0.1, 0.01]},
    "fisheye": {"model": "fisheye", "distortion": [0.01, -0.02, 0.003, -0.001]},
    "equidistant": {"model": "fisheye"},
    "unified": {"model": "unified", "xi": 1.2, "distortion": [-0.1, 0.05, 0.001, 0.001]},
    "unified without distortion": {"model": "unified", "xi": 0.7},
    "mirror": {"model": "unified", "xi": 2.0},
}


def lens(name: str) -> Camera:
    return Camera(K, torch.eye(4), 600, 1000, **LENSES[name])


def test_pinhole_by_hand():
    camera = Camera([[100, 0, 50], [0, 200, 40], [0, 0, 1]], torch.eye(4), 80, 100)
    pixels, depth = camera.project(torch.tensor([[0.5, -0.1, 2.0], [0.0, 0.0, -1.0]]))
    assert pixels[0].tolist() == pytest.approx([75.0, 30.0]) and depth.tolist() == [2.0, -1.0]
    assert bool(torch.isnan(pixels[1]).all()), "a point behind a pinhole has no image"


def test_fisheye_by_hand():
    camera = Camera([[100, 0, 0], [0, 100, 0], [0, 0, 1]], torch.eye(4), 80, 100, model="fisheye")
    points = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0], [-1.0, 0.0, -1.0]])
    pixels, depth = camera.project(points)
    expected = [[25 * math.pi, 0], [0, 50 * math.pi], [0, 0], [-75 * math.pi, 0]]
    assert torch.allclose(pixels, torch.tensor(expected, dtype=torch.float64))
    assert depth.tolist() == pytest.approx([2**0.5, 2, 3, 2**0.5])


def test_unified_by_hand():
    # The point at 90 degrees lands at x = 1 / xi on the unified plane; xi = 0 is a pinhole.
    camera = Camera([[100, 0, 0], [0, 100, 0], [0, 0, 1]], torch.eye(4), 80, 100, model="unified", xi=0.5)
    pixels, _ = camera.project(torch.tensor([[3.0, 0.0, 0.0]]))
    assert pixels[0].tolist() == pytest.approx([200.0, 0.0])
    assert torch.allclose(
        Camera(K, torch.eye(4), 600, 1000, model="unified").project(torch.tensor([[1.0, 2.0, 5.0]]))[0],
        lens("pinhole").project(torch.tensor([[1.0, 2.0, 5.0]]))[0],
    )


@pytest.mark.parametrize("name", LENSES)
def test_project_inverts_pixel_rays(name):
    camera = lens(name)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3000, 2, generator=generator, dtype=torch.float64) * torch.tensor([1000, 600])
    rays = camera.pixel_rays(pixels)
    seen = torch.isfinite(rays).all(-1)
    assert seen.float().mean() > (0.25 if name == "mirror" else 0.99)
    again, depth = camera.project(rays * 7)
    assert torch.allclose(again[seen], pixels[seen], atol=1e-9)
    assert torch.allclose(depth[seen], torch.tensor(7.0, dtype=torch.float64)), "rays are scaled by depth"
    if camera.model != "pinhole":
        assert torch.allclose(rays[seen].norm(dim=-1), torch.tensor(1.0, dtype=torch.float64))


def test_distortion_never_folds_back():
    strong = BrownConrady(k1=-0.5)
    # r (1 - 0.5 r^2) turns at r = sqrt(2/3); beyond it there is no image.
    assert strong.max_radius == pytest.approx(math.sqrt(2 / 3))
    assert torch.isnan(strong.distort(torch.tensor([[0.9, 0.0]], dtype=torch.float64))).all()
    assert torch.isnan(strong.undistort(torch.tensor([[0.7, 0.0]], dtype=torch.float64))).all()
    fish = KannalaBrandt(k1=-0.2)
    assert fish.max_angle == pytest.approx(math.sqrt(1 / 0.6))
    assert torch.isnan(fish.distort(torch.tensor([1.4], dtype=torch.float64))).all()
    assert torch.isnan(fish.undistort(torch.tensor([0.9], dtype=torch.float64))).all()
    assert KannalaBrandt().max_angle == math.pi and BrownConrady().max_radius == math.inf


@pytest.mark.parametrize("tiny", [5e-324, -5e-324, 1e-310, -1e-200])
def test_a_tiny_coefficient_changes_nothing(tiny):
    assert BrownConrady(k1=-0.5, k3=tiny, k6=tiny).max_radius == pytest.approx(math.sqrt(2 / 3))
    assert BrownConrady(k1=tiny).max_radius > 1e50
    assert KannalaBrandt(k1=-0.2, k4=tiny).max_angle == pytest.approx(math.sqrt(1 / 0.6))


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-0.3, 0.3), st.floats(-0.1, 0.1), st.floats(-0.01, 0.01), st.floats(-0.01, 0.01), st.floats(-0.5, 0.5),
    st.floats(-0.5, 0.5),
)  # fmt: skip
def test_undistort_inverts_distort(k1, k2, p1, p2, x, y):
    model = BrownConrady(k1, k2, p1, p2)
    point = torch.tensor([x, y], dtype=torch.float64)
    if math.hypot(x, y) < 0.9 * model.max_radius:
        assert torch.allclose(model.undistort(model.distort(point)), point, atol=1e-8)


def test_resizing_and_cropping_keep_the_ray_of_a_point():
    camera = lens("brown-conrady")
    point = torch.tensor([[0.3, -0.2, 4.0]])
    (u, v), _ = (t[0] for t in camera.project(point))
    half = camera.resized(300, 500).project(point)[0][0]
    # The image's left edge is at -0.5 in both: (u + 0.5) / 2 - 0.5.
    assert half.tolist() == pytest.approx([(float(u) + 0.5) / 2 - 0.5, (float(v) + 0.5) / 2 - 0.5])
    window = camera.cropped(top=100, left=200, height=50, width=60).project(point)[0][0]
    assert window.tolist() == pytest.approx([float(u) - 200, float(v) - 100])


def test_cell_rays_conventions(camera_at):
    camera = camera_at(0, focal=100.0, height=8, width=16)
    rig = CameraRig({"a": camera, "b": camera_at(90, focal=100.0, height=8, width=16)})
    center, corner = rig.cell_rays(4, 4), rig.cell_rays(4, 4, "corner")
    assert center.shape == corner.shape == (2, 1, 4, 4, 3)
    # Cell (0, 0) of a 4x4 raster over 16x8 pixels: its centre is pixel (1.5, 0.5), its corner pixel (0, 0).
    assert torch.equal(center[0, 0, 0, 0], camera.pixel_rays(torch.tensor([1.5, 0.5])))
    assert torch.equal(corner[0, 0, 0, 0], camera.pixel_rays(torch.tensor([0.0, 0.0])))
    assert torch.equal(corner[0, 0, 3, 2], camera.pixel_rays(torch.tensor([8.0, 6.0])))
    four = rig.cell_rays(4, 4, "center", 4)
    assert four.shape == (2, 4, 4, 4, 3)
    assert torch.allclose(four.mean(1), center[:, 0]), "the samples lie evenly about the cell's centre"
    assert torch.equal(four[0, 0, 0, 0], camera.pixel_rays(torch.tensor([0.5, 0.0])))
    for bad in ({"samples_per_cell": 3}, {"samples_per_cell": 0}, {"pixel_origin": "middle"}, {"h": 0}):
        with pytest.raises(ValueError):
            rig.cell_rays(**({"h": 4, "w": 4} | bad))


def test_nuscenes_neighbours_are_the_ring(six_cameras):
    assert six_cameras.neighbors().tolist() == [[5, 1], [0, 2], [1, 3], [2, 4], [3, 5], [4, 0]]


def test_neighbours_do_not_depend_on_the_order_of_views(six_cameras):
    names = list(six_cameras.names)[::-1]
    table = six_cameras.select(names).neighbors()
    front = names.index("CAM_FRONT")
    assert [names[j] for j in table[front]] == ["CAM_FRONT_LEFT", "CAM_FRONT_RIGHT"]


def test_neighbours_of_other_rigs(camera_at):
    front_only = CameraRig({"left": camera_at(0, position=(0, 0.3, 1)), "right": camera_at(0, position=(0, -0.3, 1))})
    assert front_only.neighbors().tolist() == [[1, -1], [0, -1]], "a stereo pair: one neighbour each"
    opposite = CameraRig({"front": camera_at(0), "back": camera_at(180)})
    assert opposite.neighbors().tolist() == [[-1, -1], [-1, -1]], "they do not see next to each other"
    assert CameraRig({"only": camera_at(0)}).neighbors().tolist() == [[-1, -1]]
    fish = {
        yaw: Camera(K, camera_at(yaw).cam2ego, 600, 1000, model="fisheye").resized(600, 1000)
        for yaw in (0, 90, 180, -90)
    }
    surround = CameraRig({str(yaw): camera for yaw, camera in fish.items()})
    assert surround.neighbors().tolist() == [[1, 3], [2, 0], [3, 1], [0, 2]]


def test_more_neighbours_go_outwards(six_cameras, camera_at):
    wide = CameraRig(
        {name: camera_at(yaw, focal=300.0) for name, yaw in zip("abcde", (0, 30, -30, 60, -60), strict=True)}
    )
    assert wide.neighbors(4)[0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"intrinsics": [[float("nan"), 0, 0], [0, 1, 0], [0, 0, 1]]}, "NaN"),
        ({"intrinsics": [[0, 0, 5], [0, 1, 5], [0, 0, 1]]}, "not invertible"),
        ({"intrinsics": [[1, 0, 5], [0, 1, 5], [0, 0, 2]]}, "last row"),
        ({"intrinsics": [[1, 0], [0, 1]]}, "3x3"),
        ({"cam2ego": torch.zeros(4, 4)}, "cam2ego"),
        ({"cam2ego": torch.eye(4) * 2}, "cam2ego"),
        ({"cam2ego": torch.full((4, 4), float("nan"))}, "cam2ego"),
        ({"cam2ego": torch.eye(3)}, "4x4"),
        ({"cam2ego": torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0]))}, "rigid"),
        ({"height": 0}, "pixels"),
        ({"width": 1000.5}, "whole pixels"),
        ({"width": float("inf")}, "whole pixels"),
        ({"model": "panorama"}, "pinhole"),
        ({"xi": 0.5}, "unified"),
        ({"xi": -1.0, "model": "unified"}, "xi"),
        ({"distortion": [0.1, 0.2]}, "4 or 5 or 8"),
        ({"distortion": KannalaBrandt()}, "BrownConrady"),
        ({"distortion": [float("nan"), 0, 0, 0]}, "finite"),
    ],
)
def test_bad_cameras_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Camera(**({"intrinsics": K, "cam2ego": torch.eye(4), "height": 600, "width": 1000} | kwargs))


def test_rigs_name_what_is_missing(six_cameras):
    with pytest.raises(ValueError, match="CAM_TOP"):
        six_cameras.select(["CAM_FRONT", "CAM_TOP"])
    with pytest.raises(KeyError, match="CAM_TOP"):
        six_cameras["CAM_TOP"]
    with pytest.raises(ValueError, match="at least one"):
        CameraRig({})
    with pytest.raises(ValueError, match="name -> Camera"):
        CameraRig({"CAM_FRONT": torch.eye(3)})
    with pytest.raises(ValueError, match="whole pixels, got height 0"):
        six_cameras["CAM_FRONT"].resized(0, 800)
    small = six_cameras.resized(448, 800)
    assert small.names == six_cameras.names and small["CAM_BACK"].width == 800
    assert small.cam2ego.shape == (6, 4, 4) and "CAM_BACK" in repr(small)


def test_camera_frames(camera_at):
    """The left camera's forward axis is ego y, its right axis ego x."""
    camera = camera_at(90)
    assert torch.allclose(
        camera.cam2ego[:3, :3] @ torch.tensor([0.0, 0, 1]).double(), torch.tensor([0.0, 1, 0]).double()
    )
    assert torch.allclose(camera.ego2cam @ camera.cam2ego, torch.eye(4, dtype=torch.float64))
    moved = camera.moved(torch.eye(4))
    assert torch.equal(moved.cam2ego, torch.eye(4, dtype=torch.float64)) and moved.width == camera.width


def test_transforms_by_hand():
    quarter = pose_from_quaternion([1, 2, 3], [math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)])
    point = transform_points(quarter, torch.tensor([[1.0, 0, 0]], dtype=torch.float64))
    assert point[0].tolist() == pytest.approx([1, 3, 3])
    assert torch.allclose(quarter[:3, :3], rotation_z(math.pi / 2)[:3, :3])
    assert torch.allclose(invert_rigid(quarter) @ quarter, torch.eye(4, dtype=torch.float64))
    for bad in ([1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0]):
        with pytest.raises(ValueError, match="quaternion"):
            pose_from_quaternion([0, 0, 0], bad)
    with pytest.raises(ValueError, match="finite"):
        pose_from_quaternion([0, float("nan"), 0], [1, 0, 0, 0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(v * v for v in q) > 1e-3))
def test_quaternions_round_trip(values):
    quaternion = torch.tensor(values, dtype=torch.float64)
    quaternion = quaternion / quaternion.norm()
    pose = pose_from_quaternion([0, 0, 0], quaternion)
    again = pose_from_quaternion([0, 0, 0], quaternion_from_rotation(pose[:3, :3]))
    assert torch.allclose(pose, again, atol=1e-9)


def test_a_pickled_rig_is_itself_and_opens_no_files(six_cameras):
    """Reading processes send rigs by the dozen; torch would open a file for every matrix of every camera."""
    import os
    import pickle
    from multiprocessing.reduction import ForkingPickler

    import torch.multiprocessing  # noqa: F401  (teaches the pickler about tensors)

    again = pickle.loads(pickle.dumps(six_cameras))
    assert again.names == six_cameras.names and torch.equal(again.cam2ego, six_cameras.cam2ego)
    assert torch.equal(again["CAM_BACK"].intrinsics, six_cameras["CAM_BACK"].intrinsics)
    fresh = type(six_cameras)(dict(six_cameras))
    before = len(os.listdir("/proc/self/fd"))
    sent = [ForkingPickler.dumps(fresh) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before and len(sent) == 5
