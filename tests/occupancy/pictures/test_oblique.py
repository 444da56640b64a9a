import numpy as np
import pytest
import torch

from syntheocc.occupancy import SEMANTIC_KITTI, GridSpec, OccupancyGrid
from syntheocc.occupancy.data.occ3d import read_occ3d
from syntheocc.occupancy.pictures import Viewpoint, bev_picture, class_colors, oblique_picture
from syntheocc.occupancy.pictures.faces import facing_faces, paint_faces, trace_faces
from syntheocc.occupancy.pictures.oblique import PAPER
from syntheocc.occupancy.pictures.viewpoint import _FILLED
from syntheocc.occupancy.taxonomy import taxonomy_named
from syntheocc.occupancy.transforms import pose_from_quaternion

TAXONOMY = taxonomy_named("syntheocc")
CAR, ROAD = 1, 11
ORANGE, CYAN = [255, 158, 0], [0, 207, 191]
ABOVE = Viewpoint(180, 90, fov_deg=None)
PLAIN = {"ego": False, "lines": 0.0, "occlusion": False, "supersample": 1}


def grid_of(labels, size=1.0, lower=(0.0, 0.0, 0.0)):
    labels = np.asarray(labels, np.uint8)
    return OccupancyGrid(labels, GridSpec(lower, (size,) * 3, labels.shape), TAXONOMY)


def faces_at(labels, view, height, width):
    """(voxel, side) of every pixel as text, "" where nothing is."""
    grid = grid_of(labels)
    ends = np.stack(np.meshgrid(*zip((0.0, 0.0, 0.0), grid.spec.upper, strict=True)), -1).reshape(-1, 3)
    fitted = view.fitted(ends, height, width)
    faces = facing_faces(class_colors(grid).drawn, grid.spec, np.eye(4), fitted)
    number = paint_faces(faces, grid.spec, np.eye(4), fitted, height, width)
    names = ["back", "front", "right", "left", "bottom", "top"]
    text = [f"{''.join(map(str, v))} {names[s]}" for v, s in zip(faces.voxel, faces.side, strict=True)] + [""]
    return np.array(text)[number]


def test_from_above_forward_is_up_and_left_is_left():
    labels = np.zeros((2, 2, 1))
    labels[1, 1] = CAR  # ahead, to the left
    labels[0, 0] = ROAD  # behind, to the right
    picture = oblique_picture(grid_of(labels), ABOVE, height=40, width=40, **PLAIN)
    assert picture.shape == (40, 40, 3) and picture.dtype == np.uint8
    assert picture[10, 10].tolist() == ORANGE and picture[30, 30].tolist() == CYAN
    assert picture[10, 30].tolist() == picture[30, 10].tolist() == list(PAPER)
    assert (picture[0] == PAPER).all()  # the margin


def test_a_cube_from_behind_shows_its_top_above_its_back():
    """At 45 degrees both take up half of the picture; the drawn box of one voxel is sqrt(2) high and 1 wide."""
    height = 100
    seen = faces_at([[[CAR]]], Viewpoint(180, 45, fov_deg=None), height, 200)
    metre = height * _FILLED / 2**0.5
    assert seen[40, 100] == "000 top" and seen[60, 100] == "000 back"
    assert (seen == "000 top").sum() == pytest.approx(metre * metre * 0.5**0.5, rel=0.03)
    assert (seen == "000 back").sum() == pytest.approx(metre * metre * 0.5**0.5, rel=0.03)
    column = seen[:, 100]
    assert list(dict.fromkeys(column)) == ["", "000 top", "000 back"]
    assert "" in seen[50, :60] and "" in seen[50, 140:]


@pytest.mark.parametrize(
    ("azimuth", "near_face", "order"),
    [(180, "back", [1, 0]), (0, "front", [0, 1]), (90, "left", [1, 0]), (270, "right", [0, 1])],
)
def test_who_stands_where_sees_which_side(azimuth, near_face, order):
    """Two voxels side by side, level view: the viewer's left and right are those of ego."""
    labels = np.zeros((1, 2, 1)) if near_face in ("back", "front") else np.zeros((2, 1, 1))
    labels[:] = CAR
    seen = faces_at(labels, Viewpoint(azimuth, 0, fov_deg=None), 40, 80)
    name = (lambda i: f"0{i}0") if labels.shape[1] == 2 else (lambda i: f"{i}00")
    assert seen[20, 25] == f"{name(order[0])} {near_face}"
    assert seen[20, 55] == f"{name(order[1])} {near_face}"


def test_what_stands_before_hides_what_stands_behind():
    labels = np.zeros((2, 1, 2))
    labels[0, 0, :] = CAR  # near: two voxels high
    labels[1, 0, 0] = ROAD  # far: one
    for view in (Viewpoint(180, 20, fov_deg=None), Viewpoint(180, 20)):
        seen = set(faces_at(labels, view, 60, 60).ravel())
        assert "000 back" in seen and "001 back" in seen and not any(name.startswith("100") for name in seen)
        assert "100 front" in set(faces_at(labels, Viewpoint(0, 20, fov_deg=view.fov_deg), 60, 60).ravel())


@pytest.mark.parametrize("fov", [None, 40.0, 100.0])
@pytest.mark.parametrize(("azimuth", "elevation"), [(205.0, 38.0), (180.0, 0.5), (33.0, 71.0), (300.0, 89.0)])
def test_painting_shows_what_a_ray_through_every_pixel_meets(fov, azimuth, elevation):
    """Any voxel size, any frame; random voxels are harder than any street."""
    generator = np.random.default_rng(int(azimuth))
    drawn = generator.random((9, 12, 5)) < 0.25
    spec = GridSpec((-2.0, 1.0, -0.5), (0.4, 0.3, 0.5), drawn.shape, "lidar")
    grid2ego = pose_from_quaternion([1.0, -2.0, 0.7], torch.tensor([0.8, 0.1, -0.05, 0.5]) / 0.9025**0.5).numpy()
    low, high = np.array(spec.lower), np.array(spec.upper)
    ends = np.stack(np.meshgrid(*zip(low, high, strict=True)), -1).reshape(-1, 3) @ grid2ego[:3, :3].T
    view = Viewpoint(azimuth, elevation, fov_deg=fov).fitted(ends + grid2ego[:3, 3], 83, 121)
    faces = facing_faces(drawn, spec, grid2ego, view)
    number = paint_faces(faces, spec, grid2ego, view, 83, 121)
    hits = trace_faces(drawn, spec, grid2ego, view, 83, 121)
    side = np.append(faces.side, -1)[number]
    assert (number >= 0).mean() > 0.2
    assert np.array_equal(side, hits.side)
    assert np.array_equal(faces.voxel[number[number >= 0]], hits.voxel[number >= 0])


def test_a_lidar_grid_is_turned_upright():
    lidar2ego = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    labels = np.zeros((2, 3, 1), np.uint8)
    labels[0, 2, 0] = CAR  # lidar x right, y forward: left and far ahead
    grid = OccupancyGrid(labels, GridSpec((0.0, 0.0, 0.0), (1.0,) * 3, labels.shape, "lidar"), TAXONOMY, lidar2ego)
    picture = oblique_picture(grid, ABOVE, height=60, width=40, **PLAIN)
    assert picture[10, 10].tolist() == ORANGE
    assert (picture[30:] == PAPER).all() and (picture[:, 22:] == PAPER).all()


def test_unknown_is_drawn_on_request_and_a_ceiling_can_be_left_out():
    labels = np.zeros((1, 1, 3))
    labels[0, 0] = [ROAD, 0, 255]
    grid = grid_of(labels)

    def middle(**options):
        return oblique_picture(grid, ABOVE, height=20, width=20, **PLAIN, **options)[10, 10].tolist()

    assert middle() == CYAN
    assert middle(unknown=True) == [64, 64, 64]
    assert middle(unknown=True, below=2.0) == CYAN
    assert middle(below=0.5) == list(PAPER)


def test_light_lines_and_corners():
    labels = np.zeros((9, 9, 4))
    labels[:, :, 0] = ROAD
    labels[8, :, 1:] = CAR  # a wall ahead
    view = Viewpoint(180, 60, fov_deg=None)
    options = PLAIN | {"height": 180, "width": 180}
    flat = oblique_picture(grid_of(labels), view, **options).astype(int)
    shaded = oblique_picture(grid_of(labels), view, **(options | {"occlusion": True})).astype(int)
    lined = oblique_picture(grid_of(labels), view, **(options | {"lines": 1.0})).astype(int)
    road = (flat == CYAN).all(-1)
    rows = np.flatnonzero(road[:, 90])
    assert (shaded[rows[0], 90] < 0.9 * flat[rows[0], 90])[1:].all()  # at the foot of the wall
    assert np.array_equal(shaded[rows[-1], 90], flat[rows[-1], 90])  # in the open
    back_of_wall = ((flat[..., 0] > 100) & (flat != ORANGE).any(-1)).sum()
    assert back_of_wall > 100, "the wall's side is as bright as its top"
    assert (lined <= flat).all() and 0.01 < (lined < flat).any(-1).mean() < 0.5


def test_the_ego_car_stands_on_the_road_and_a_wall_hides_it():
    labels = np.zeros((40, 40, 12))
    labels[:, :, 1] = ROAD
    open_road = grid_of(labels, 0.4, (-8.0, -8.0, -1.0))
    labels[14, :, 1:] = CAR
    behind_wall = grid_of(labels, 0.4, (-8.0, -8.0, -1.0))
    view = Viewpoint(180, 15)
    for grid, visible in ((open_road, True), (behind_wall, False)):
        with_car = oblique_picture(grid, view, height=200, width=300)
        without = oblique_picture(grid, view, height=200, width=300, ego=False)
        assert (with_car != without).any() == visible
    elsewhere = oblique_picture(open_road, ABOVE, height=200, width=200, ego=np.diag([1.0, 1, 1, 1]))
    pushed = np.eye(4)
    pushed[0, 3] = 4.0
    moved = oblique_picture(open_road, ABOVE, height=200, width=200, ego=pushed)
    bare = oblique_picture(open_road, ABOVE, height=200, width=200, ego=False)
    rows = [np.flatnonzero((picture != bare).any((1, 2))).mean() for picture in (elsewhere, moved)]
    assert rows[0] - rows[1] == pytest.approx(4.0 / 16 * 200 * _FILLED, abs=2)


def test_any_grid_of_the_field():
    """KITTI's grid begins at the car; a camera's grid has none."""
    spec, taxonomy = SEMANTIC_KITTI
    labels = torch.zeros(spec.shape, dtype=torch.uint8)
    labels[:, :, 1] = taxonomy.id_of("road")
    kitti = OccupancyGrid(labels, spec, taxonomy, torch.eye(4))
    picture = oblique_picture(kitti, height=120, width=180)
    assert picture.shape == (120, 180, 3)
    assert (picture != oblique_picture(kitti, height=120, width=180, ego=False)).any(), "the car is not drawn"
    close = oblique_picture(kitti, Viewpoint(180, 0, fov_deg=120), height=120, width=180, supersample=1)
    assert (np.ptp(close.astype(int), axis=-1) < 20).any(), "an eye this near would be inside the car"
    pose = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    camera = OccupancyGrid(
        np.ones((4, 4, 4), np.uint8), GridSpec((0, 0, 0), (1,) * 3, (4, 4, 4), "camera"), TAXONOMY, pose
    )
    assert np.array_equal(oblique_picture(camera), oblique_picture(camera, ego=False))
    empty = oblique_picture(grid_of(np.zeros((3, 3, 3))), height=10, width=12, ego=False)
    assert (empty == PAPER).all()


def test_zoom_brings_the_target_to_the_middle():
    labels = np.zeros((20, 20, 1))
    labels[15, 5] = CAR
    for fov in (None, 35.0):
        view = Viewpoint(200, 50, zoom=3, fov_deg=fov, target=(15.5, 5.5, 0.5))
        picture = oblique_picture(grid_of(labels), view, height=101, width=151, **PLAIN)
        assert picture[50, 75].tolist() != list(PAPER)
        wide = oblique_picture(grid_of(labels), Viewpoint(200, 50, fov_deg=fov), height=101, width=151, **PLAIN)
        seen, far = ((p != PAPER).any(-1).sum() for p in (picture, wide))
        assert seen == pytest.approx(9 * far, rel=0.35)


def test_a_small_thing_in_a_large_grid_can_fill_the_picture():
    labels = np.zeros((50, 50, 9))
    labels[30:32, 7:9, 4] = CAR
    labels[31, 8, 4] = ROAD
    small = oblique_picture(grid_of(labels), ABOVE, height=40, width=40, fit="drawn", **PLAIN)
    alone = oblique_picture(grid_of(labels[30:32, 7:9, 4:5]), ABOVE, height=40, width=40, **PLAIN)
    assert np.array_equal(small, alone) and small[10, 10].tolist() == CYAN
    nothing = oblique_picture(grid_of(np.zeros((3, 3, 3))), ABOVE, height=4, width=4, fit="drawn", **PLAIN)
    assert (nothing == PAPER).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"height": 0}, "height"),
        ({"fit": "car"}, "fit"),
        ({"supersample": 0}, "supersample"),
        ({"colors": class_colors(grid_of(np.ones((1, 1, 2))))}, "X, Y, Z"),
        ({"ego": np.zeros((4, 4))}, "car2ego"),
    ],
)
def test_what_cannot_be_drawn_is_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        oblique_picture(grid_of(np.ones((1, 1, 1))), **wrong)


@pytest.mark.parametrize(
    "wrong", [{"elevation_deg": -1}, {"zoom": 0}, {"fov_deg": 180}, {"target": (1.0, 2.0)}, {"azimuth_deg": np.nan}]
)
def test_a_viewpoint_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Viewpoint(**wrong)


def test_bev_is_enlarged_and_shows_the_car_ahead_of_its_rear_axle():
    labels = np.full((40, 30, 2), ROAD)
    grid = grid_of(labels, 0.4, (-8.0, -6.0, 0.0))
    plain = bev_picture(grid, shade=False, scale=5)
    assert plain.shape == (200, 150, 3) and (plain == CYAN).all()
    rows, columns = np.nonzero((bev_picture(grid, shade=False, scale=5, ego=True) != plain).any(-1))
    metre = 5 / 0.4
    assert columns.mean() == pytest.approx(74.5, abs=0.6)  # in the middle
    assert 100 - rows.mean() == pytest.approx(1.25 * metre, abs=3)  # forward is up
    assert np.ptp(columns) + 1 == pytest.approx(1.76 * metre, abs=2)
    with pytest.raises(ValueError, match="scale"):
        bev_picture(grid, scale=0)


@pytest.mark.real_data
def test_a_real_label_is_painted_as_rays_see_it(real_data):
    grid = read_occ3d(real_data / "occ3d_scene1077" / "labels.npz").grid
    colors, spec, pose = class_colors(grid), grid.spec, np.eye(4)
    ends = np.stack(np.meshgrid(*zip(spec.lower, spec.upper, strict=True)), -1).reshape(-1, 3)
    view = Viewpoint().fitted(ends, 360, 540)
    faces = facing_faces(colors.drawn, spec, pose, view)
    number = paint_faces(faces, spec, pose, view, 360, 540)
    hits = trace_faces(colors.drawn, spec, pose, view, 360, 540)
    assert np.array_equal(np.append(faces.side, -1)[number], hits.side)
    assert np.array_equal(faces.voxel[number[number >= 0]], hits.voxel[number >= 0])
    picture = oblique_picture(grid, height=360, width=540, **PLAIN)
    road = (picture == grid.taxonomy.palette[grid.taxonomy.id_of("driveable_surface")]).all(-1)
    assert road.mean() > 0.05
