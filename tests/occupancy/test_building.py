"""The builder on a street whose layout is known: every rule must give the class that stands there."""

import math

import numpy as np
import pytest
import torch

from syntheocc.occupancy.building import BuildingRules, build_occupancy
from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.grids import NYUV2, OCC3D_NUSCENES, SYNTHEOCC, SYNTHEOCC_COARSE

CURB_LEFT, CURB_RIGHT, STEP, WALL = 6.0, -6.0, 0.15, 14.0


def lidar2ego():
    """The nuScenes mounting: lidar x is ego -y, lidar y is ego x, 1.84 m up, tilted forward by a degree."""
    turn = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    a = math.radians(1.0)
    tilt = torch.tensor(
        [[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]], dtype=torch.float64
    )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = turn @ tilt
    pose[:3, 3] = torch.tensor([0.94, 0.0, 1.84])
    return pose


@pytest.fixture(scope="module")
def boxes():
    """A car 12 m ahead, and one behind the wall that no ray reaches."""
    box2ego = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    box2ego[0, :3, 3] = torch.tensor([12.0, 1.0, 0.8])
    box2ego[1, :3, 3] = torch.tensor([5.0, 20.0, 0.8])
    return Boxes(box2ego, torch.tensor([[4.0, 2.0, 1.6]] * 2), ("car", "car"))


@pytest.fixture(scope="module")
def sweep(boxes):
    """32 rings of 1080: road |y| < 6, sidewalk to the left up to a wall at y = 14, grass to the right, a bush."""
    rng = np.random.default_rng(0)
    pose = lidar2ego().numpy()
    ring, azimuth = (a.ravel() for a in np.meshgrid(np.arange(32), np.arange(1080) * 2 * np.pi / 1080, indexing="ij"))
    elevation = np.radians(-30.67 + 1.333 * ring)
    rays = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], 1)
    origin, d = pose[:3, 3], rays @ pose[:3, :3].T
    best, shine = np.full(len(d), np.inf), np.zeros(len(d))

    def hit(t, where, intensity):
        nearer = (t > 0) & (t < best) & where(origin + d * np.where(np.isfinite(t), t, 0)[:, None])
        best[nearer], shine[nearer] = t[nearer], intensity

    with np.errstate(divide="ignore", invalid="ignore"):
        road, raised = -origin[2] / d[:, 2], (STEP - origin[2]) / d[:, 2]
        hit(road, lambda p: np.abs(p[:, 1]) < CURB_LEFT, 5)
        hit(raised, lambda p: p[:, 1] > CURB_LEFT, 8)
        hit(raised, lambda p: p[:, 1] < CURB_RIGHT, 60)
        for curb in (CURB_LEFT, CURB_RIGHT):
            hit(curb / d[:, 1], lambda p: (p[:, 2] > 0) & (p[:, 2] < STEP), 8)
        hit(WALL / d[:, 1], lambda p: (p[:, 2] > 0) & (p[:, 2] < 6), 10)
        center, size = boxes.centers[0].numpy(), boxes.sizes[0].numpy()
        for axis in range(3):
            for side in (-0.5, 0.5):
                face = (center[axis] + side * size[axis] - origin[axis]) / d[:, axis]
                hit(face, lambda p: (np.abs(p - center) <= size / 2 + 1e-6).all(1), 20)
    points = origin + d * best[:, None]
    seen = best < 60
    points, ring, shine = points[seen] + rng.normal(0, 0.01, (int(seen.sum()), 3)), ring[seen], shine[seen]
    bush = np.array([8.0, -9.0, 1.2]) + rng.uniform(-0.8, 0.8, (400, 3))
    body = np.array([[1.0, 0.5, 1.5], [0.0, -0.8, 1.0]])
    everything = np.concatenate([points, bush, body])
    ring = np.concatenate([ring, rng.integers(0, 32, 402)])
    shine = np.concatenate([shine, np.full(402, 40.0)])
    in_lidar = (everything - pose[:3, 3]) @ pose[:3, :3]
    return np.concatenate([in_lidar, shine[:, None], ring[:, None]], axis=1).astype(np.float32)


def classes_at(grid, x, y, z):
    """Names of the classes at positions in ego (broadcast, metres)."""
    points = torch.stack(torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float64) for v in (x, y, z))), -1)
    ego2grid = torch.linalg.inv(grid.grid2ego)
    index, inside = grid.spec.index_of(points @ ego2grid[:3, :3].T + ego2grid[:3, 3])
    assert bool(inside.all())
    return [grid.taxonomy.classes[i] for i in grid.labels[index.unbind(-1)].ravel().tolist()]


def ground_classes(grid, x, y, height):
    """The ground's class in columns of the grid: what is found within a voxel of the given height."""
    size = grid.spec.voxel_size[2]
    found = [classes_at(grid, x, y, height + offset) for offset in (0.0, size, -size)]
    ground = {"driveable_surface", "sidewalk", "terrain"}
    return [next((name for name in column if name in ground), "none") for column in zip(*found, strict=True)]


def share(names, wanted):
    return sum(name == wanted for name in names) / len(names)


@pytest.mark.parametrize("preset", [SYNTHEOCC, SYNTHEOCC_COARSE, OCC3D_NUSCENES])
def test_the_street_is_found(sweep, boxes, preset):
    grid = build_occupancy(sweep, boxes, lidar2ego(), *preset)
    assert grid.spec == preset.spec and grid.taxonomy == preset.taxonomy
    x = torch.arange(-15.0, 15.0, 0.5)[:, None]
    road = ground_classes(grid, x, torch.arange(-5.0, 5.01, 0.5), 0.0)
    assert share(road, "driveable_surface") > 0.95  # under the ego car too, where no ray lands
    assert share(ground_classes(grid, x, torch.arange(7.5, 12.0, 0.5), STEP), "sidewalk") > 0.9
    near = torch.arange(-10.0, 5.0, 0.5)[:, None]
    assert share(ground_classes(grid, near, torch.arange(-11.0, -7.0, 0.5), STEP), "terrain") > 0.9
    # The wall, above the ground and between the rings; half a voxel of play for where it is cut.
    wall = [
        classes_at(grid, torch.arange(-8.0, 8.0, 0.5)[:, None], y, torch.arange(0.8, 3.0, 0.2)) for y in (13.95, 14.05)
    ]
    assert sum("manmade" in pair for pair in zip(*wall, strict=True)) / len(wall[0]) > 0.9
    bush = classes_at(
        grid,
        *(
            torch.from_numpy(np.random.default_rng(1).uniform(-0.6, 0.6, (3, 200)))
            + torch.tensor([[8.0], [-9], [1.2]])
        ),
    )
    assert share(bush, "vegetation") > 0.5 and share(bush, "manmade") == 0


def test_boxes_are_filled_when_something_was_seen_in_them(sweep, boxes):
    grid = build_occupancy(sweep, boxes, lidar2ego())
    inside = classes_at(
        grid,
        torch.arange(10.2, 13.9, 0.2)[:, None, None],
        torch.arange(0.2, 1.9, 0.2)[:, None],
        torch.arange(0.4, 1.5, 0.2),
    )
    assert set(inside) == {"car"}
    assert "car" not in classes_at(grid, 5.0, 20.0, torch.arange(0.2, 1.6, 0.2))  # hidden behind the wall
    car = int((grid.labels == grid.taxonomy.id_of("car")).sum()) * 0.2**3
    assert car == pytest.approx(4.0 * 2.0 * 1.6, rel=0.25)
    without = build_occupancy(sweep, None, lidar2ego())
    assert "car" not in {without.taxonomy.classes[i] for i in without.labels.unique().tolist()}
    assert "manmade" in classes_at(without, torch.arange(9.9, 10.2, 0.1), 1.0, 1.0)


def test_the_ego_body_and_the_unseen_stay_free(sweep, boxes):
    grid = build_occupancy(sweep, boxes, lidar2ego())
    assert set(classes_at(grid, torch.tensor([1.0, 0.0]), torch.tensor([0.5, -0.8]), torch.tensor([1.5, 1.0]))) == {
        "free"
    }
    behind_the_wall = classes_at(grid, torch.arange(-10.0, 10.0, 1.0)[:, None], torch.arange(16.0, 30.0, 1.0), STEP)
    assert set(behind_the_wall) == {"free"}


def test_columns_that_are_missing_only_cost_their_rule(sweep, boxes):
    full = build_occupancy(sweep, boxes, lidar2ego(), *SYNTHEOCC_COARSE)
    again = build_occupancy(torch.from_numpy(sweep), boxes, lidar2ego(), *SYNTHEOCC_COARSE)
    assert torch.equal(full.labels, again.labels)
    bare = build_occupancy(sweep[:, :3], boxes, lidar2ego(), *SYNTHEOCC_COARSE)
    names = {bare.taxonomy.classes[i] for i in bare.labels.unique().tolist()}
    assert "terrain" not in names and {"driveable_surface", "sidewalk", "manmade", "car"} <= names
    manmade = full.taxonomy.id_of("manmade")
    assert int((full.labels == manmade).sum()) > int((bare.labels == manmade).sum())


def test_an_empty_sweep_gives_the_ground_the_car_stands_on():
    grid = build_occupancy(np.zeros((0, 5), np.float32), None, lidar2ego(), *SYNTHEOCC_COARSE)
    assert ground_classes(grid, torch.tensor([0.0, 2.0]), 0.0, 0.0) == ["driveable_surface"] * 2
    assert {grid.taxonomy.classes[i] for i in grid.labels.unique().tolist()} == {"free", "driveable_surface"}


def test_bad_input_is_refused(sweep):
    with pytest.raises(ValueError, match=r"finite numbers \[P, 3..5\], got float32 \[34"):
        build_occupancy(sweep[:34, :2], None, lidar2ego())
    with pytest.raises(ValueError, match="finite"):
        build_occupancy(sweep * np.nan, None, lidar2ego())
    with pytest.raises(ValueError, match="finite numbers .*<U"):
        build_occupancy(sweep[:3].astype(str), None, lidar2ego())
    for ring in (-1, 10**9):  # a column of something else, which would index a range image of that many lines
        other = sweep[:3].copy()
        other[0, 4] = ring
        with pytest.raises(ValueError, match="column 4 of a sweep is the ring"):
            build_occupancy(other, None, lidar2ego())
    with pytest.raises(ValueError, match="not in 'world'"):
        build_occupancy(sweep, None, lidar2ego(), *NYUV2)
    with pytest.raises(ValueError, match="has no class 'driveable_surface'"):
        build_occupancy(sweep, None, lidar2ego(), SYNTHEOCC.spec, NYUV2.taxonomy)
    with pytest.raises(ValueError, match="lidar2ego"):
        build_occupancy(sweep, None, torch.zeros(4, 4))


def test_rules_are_thresholds(sweep, boxes):
    strict = build_occupancy(sweep, boxes, lidar2ego(), *SYNTHEOCC_COARSE, rules=BuildingRules(min_points=10**6))
    assert strict.taxonomy.id_of("car") not in strict.labels.unique().tolist()


@pytest.mark.real_data
def test_the_real_key_frame(real_data):
    """Most of every picture's lower half has a class, and truck and road are where the photographs show them."""
    from syntheocc.occupancy import render_mpi
    from syntheocc.occupancy.data.infos import read_infos
    from syntheocc.occupancy.data.lidar import read_lidar

    folder = real_data / "nuscenes_scene0061"
    (frame,) = read_infos(folder / "info_mmdet3d_v1.1.pkl", folder)
    grid = build_occupancy(read_lidar(frame.lidar_path), frame.boxes, frame.lidar2ego)
    nearest = render_mpi(grid, frame.cameras, 56, 100).nearest
    assert float((nearest[:, 35:] > 0).float().mean()) > 0.9
    front = nearest[1]
    # Seen in the photograph: the back of a truck at columns 5..25, rows 15..38, and asphalt below.
    assert share(front[18:36, 8:24].ravel().tolist(), grid.taxonomy.id_of("truck")) > 0.9
    assert share(front[45:, 10:90].ravel().tolist(), grid.taxonomy.id_of("driveable_surface")) > 0.9
    assert share(nearest[5][45:53, 20:90].ravel().tolist(), grid.taxonomy.id_of("terrain")) > 0.5
