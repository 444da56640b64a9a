"""Primitives, paths, speeds and footprints: numbers that can be checked by hand."""

import math

import numpy as np
import pytest
import torch

from syntheocc.worlds.actors import SpeedProfile
from syntheocc.worlds.footprints import Footprints, overlap
from syntheocc.worlds.ground import Ground
from syntheocc.worlds.paths import Offset, Path, fillet
from syntheocc.worlds.primitives import CONE, Primitives
from syntheocc.worlds.solids import Solids, pose


def test_contains_of_the_three_kinds():
    solids = Solids("vehicle.car")
    solids.box((0, 0, 0), (4, 2, 1), 0)
    solids.ellipsoid((10, 0, 0), (3, 1, 1), 0)
    solids.cylinder((0, 10, 1), 2.0, 2.0, 0, taper=0.5)  # radius 2 at z = 0, 1 at z = 2
    points = torch.tensor(
        [
            [4, 2, 1],
            [4.01, 1, 0.5],
            [12.9, 0, 0],
            [12, 0.9, 0],
            [1.9, 10, 0.05],
            [1.4, 10, 1],
            [1.6, 10, 1],
            [0.9, 10, 2],
        ],
        dtype=torch.float64,
    )
    inside = solids.primitives().contains(points)
    assert inside.int().tolist() == [
        [1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 1]
    ]  # fmt: skip


def test_bounds_are_tight():
    solids = Solids("manmade", pose(1, 2, 3, math.pi / 2))
    solids.box((-2, -1, 0), (2, 1, 5), 0)
    solids.ellipsoid((0, 0, 0), (3, 1, 2), 0)
    solids.cylinder((0, 0, 0), 0.5, 6.0, 0, axis="x", taper=1.0)
    lower, upper = solids.primitives().bounds()
    assert torch.allclose(lower, torch.tensor([[0, 0, 3], [0, -1, 1], [0.5, -1, 2.5]], dtype=torch.float64))
    assert torch.allclose(upper, torch.tensor([[2, 4, 8], [2, 5, 5], [1.5, 5, 3.5]], dtype=torch.float64))
    # Sampled: every point inside lies in the bounds, and the bounds are reached to a few percent.
    cone = Solids("manmade")
    cone.rod((0, 0, 0), (1, 2, 3), 0.7, 0, taper=0.4)
    part = cone.primitives()
    lower, upper = part.bounds()
    points = lower[0] + (upper[0] - lower[0]) * torch.rand(
        40000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    wide = torch.cat([points, points * 1.2 - 0.1])
    inside = wide[part.contains(wide)[:, 0]]
    assert (inside >= lower[0] - 1e-9).all() and (inside <= upper[0] + 1e-9).all()
    assert ((inside.amax(0) - inside.amin(0)) > 0.9 * (upper - lower)[0]).all()


def test_transform_and_cat_keep_everything_but_the_frame():
    solids = Solids("vehicle.car")
    solids.box((-1, -1, -1), (1, 1, 1), 3)
    part = solids.primitives()
    moved = part.transformed(torch.from_numpy(pose(5, 0, 0))).with_instance(7)
    assert moved.contains(torch.tensor([[5.5, 0, 0], [0.0, 0, 0]])).tolist() == [[True], [False]]
    both = Primitives.cat([part, moved])
    assert both.instance.tolist() == [0, 7] and both.material.tolist() == [3, 3] and both.kind.tolist() != [CONE] * 2
    with pytest.raises(ValueError, match="one entry a solid"):
        Primitives(part.kind, part.shape2frame, part.taper, part.label, part.category, both.instance, part.material)


def test_height_gradient_and_raster_by_hand():
    raster = torch.tensor([[11, 13], [14, 14]], dtype=torch.uint8)
    waves = torch.tensor([[0.1, 0.2, 0.0, 0.0]], dtype=torch.float64)
    ground = Ground(raster, raster, (0.0, 0.0), 1.0, torch.tensor([0.0, 0.01], dtype=torch.float64), waves, 1.0)
    at = torch.tensor([math.pi / 0.4, 3.0], dtype=torch.float64)  # 0.2 x = pi / 2
    assert float(ground.height(at)) == pytest.approx(1 + 0.1 + 0.03)
    assert ground.gradient(at).tolist() == pytest.approx([0, 0.01], abs=1e-12)
    assert ground.max_slope() == pytest.approx(0.02 + 0.01)
    xy = torch.tensor([[0.5, 0.5], [0.5, 1.5], [-9.0, 9.0], [9.0, 9.0]])
    assert ground.label_at(xy).tolist() == [11, 13, 13, 14]


def test_a_quarter_circle():
    path = Path(0.0, 0.0, 0.0, ((10.0, 0.0), (5 * math.pi / 2, 1 / 5), (3.0, 0.0)))
    points = path.points(np.array([-2.0, 10.0, 10 + 5 * math.pi / 2, path.length + 1]))
    assert points == pytest.approx(np.array([[-2, 0], [10, 0], [15, 5], [15, 9]]), abs=1e-9)
    # 1 m to the left of the arc's middle
    angle = math.pi / 4
    x, y = np.array([10 + 4 * math.sin(angle)]), np.array([5 - 4 * math.cos(angle)])
    s, d = path.locate(x, y)
    assert float(s[0]) == pytest.approx(10 + 5 * angle) and float(d[0]) == pytest.approx(1)


def test_locate_undoes_offset_on_both_kinds_of_curve():
    path = Path(1.0, 2.0, 0.3, ((30.0, 0.0), (40.0, 1 / 50), (20.0, 0.0), (30.0, -1 / 60)))
    s, d = np.linspace(-20, 150, 60), np.linspace(-6, 6, 60)
    points = np.stack([Offset(path, float(b)).points(a) for a, b in zip(s, d, strict=True)])
    back = path.locate(points[:, 0], points[:, 1])
    assert back[0] == pytest.approx(s, abs=1e-9) and back[1] == pytest.approx(d, abs=1e-9)
    assert Offset(path, 0.0, True, 100.0).points(np.float64(30.0)) == pytest.approx(path.points(np.float64(70.0)))


def test_fillet_rounds_a_corner():
    path, begins = fillet((0, 0), (50, 0), (50, -60), 9.0)
    assert begins == pytest.approx(41)
    end = path.points(np.array([begins + 9 * math.pi / 2]))
    assert end[0] == pytest.approx([50, -9])
    with pytest.raises(ValueError, match="no room to turn"):
        fillet((0, 0), (5, 0), (5, -60), 9.0)


def test_a_speed_profile_is_the_derivative_of_its_distance():
    profile = SpeedProfile((1.0, 3.0, 6.0), (10.0, 0.0, 4.0), start=20.0)
    assert float(profile.distance(0.0)) == 20 and float(profile.distance(-2.0)) == 0
    # 10 m in the first second, then 2 s at 5 m/s on average, then 3 s at 2 m/s on average, then 4 m/s
    assert float(profile.distance(8.0)) == pytest.approx(20 + 10 + 10 + 6 + 8)
    t = np.linspace(-1, 8, 50)
    derivative = (profile.distance(t + 1e-5) - profile.distance(t - 1e-5)) / 2e-5
    assert derivative == pytest.approx(profile.speed(t), abs=1e-6)
    with pytest.raises(ValueError, match="increasing times"):
        SpeedProfile((1.0, 1.0), (2.0, 3.0))


def test_rectangles_overlap():
    square, half = np.array([[0.0, 0, 0]]), np.array([[1.0, 1.0]])
    assert not overlap(square, half, np.array([[2.01, 0, 0]]), half)[0]
    assert overlap(square, half, np.array([[1.99, 0, 0]]), half)[0]
    # A diamond's corner reaches 1.41 m, but not into the gap beside the square's corner.
    assert overlap(square, half, np.array([[2.3, 0, math.pi / 4]]), half)[0]
    assert not overlap(square, half, np.array([[1.8, 1.8, math.pi / 4]]), half)[0]


def test_footprints_of_things_that_meet_only_sometimes():
    places = Footprints(np.array([0.0, 1.0, 2.0]))
    crossing = np.array([[-4.0, 0, 0], [0, 0, 0], [4, 0, 0]])
    assert places.claim(crossing, (1.0, 1.0))
    assert not places.free(np.array([0.0, 1.5, 0]), (1.0, 1.0))
    assert places.free(np.array([2.0, 2.5, 0]), (1.0, 1.0)) and not places.free(np.array([2.0, 2.5, 0]), (1, 1), 1.0)
    late = np.array([[0.0, 9, 0], [0, 5, 0], [0, 0.5, 0]])
    assert places.claim(late, (1.0, 1.0)) and len(places) == 2
    for i in range(100):  # more than the first reservation
        places.add(np.array([100.0 + 3 * i, 0, 0]), (1.0, 1.0))
    assert not places.free(np.array([100.0 + 3 * 99, 0, 0]), (0.1, 0.1)) and not places.free(late, (0.1, 0.1))
