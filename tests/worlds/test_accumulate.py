"""Accumulated labels: what a few returns make of voxels, and the real data's errors in a real scene."""

from collections import namedtuple

import pytest
import torch

from syntheocc.occupancy import OCC3D_NUSCENES
from syntheocc.occupancy.grids import GridSpec, Preset
from syntheocc.worlds.accumulate import Accumulation
from syntheocc.worlds.labels import exact_labels
from syntheocc.worlds.lidar import scan
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.taxonomy import LIDARSEG_NAMES, WORLD_TAXONOMY


@pytest.fixture(scope="module")
def scene():
    return make_scene(6, key_frames=3)


@pytest.fixture(scope="module")
def accumulation(scene):
    return Accumulation.of(scene, [scan(scene, t) for t in scene.key_times])


def test_unseen_is_unknown_and_passed_is_free(scene, accumulation):
    grid, _ = accumulation.labels(1, OCC3D_NUSCENES)
    observed = accumulation.observed(1, OCC3D_NUSCENES.spec)
    # an object's returns of other sweeps may lie where no ray passed
    assert torch.equal(grid.labels == 17, observed & ~grid.occupied())
    assert torch.equal(grid.labels == 255, ~observed & ~grid.occupied())
    assert 0.01 < (grid.labels == 17).float().mean() < 0.9
    without, _ = accumulation.labels(1, OCC3D_NUSCENES, unseen=False)
    assert (without.labels != 255).all() and torch.equal(without.occupied(), grid.occupied())


def test_returns_lie_on_the_exact_surfaces(scene, accumulation):
    """Occupied voxels are exactly occupied, or next to one that is; and there are holes.

    Rain and spray (raw category noise) hang in the air as "others", as in the real files.
    """
    exact, _ = exact_labels(scene, scene.key_times[1], OCC3D_NUSCENES, shell=None)
    grid, _ = accumulation.labels(1, OCC3D_NUSCENES)
    solid = torch.nn.functional.max_pool3d(exact.occupied().float()[None, None], 3, 1, 1)[0, 0].bool()
    found = grid.occupied()
    assert solid[found & (grid.labels != 0)].float().mean() > 0.97
    assert found.sum() < 0.9 * exact.occupied().sum()
    both = found & exact.occupied()
    assert (grid.labels == exact.labels)[both].float().mean() > 0.9


def test_what_moves_leaves_ghosts_and_boxes_take_their_ground(scene):
    """A sweep by hand: a car's return out of its box stays where it was, a road return inside it becomes car."""
    Sweep = namedtuple("Sweep", "points category instance")
    moving = next(i for i, a in enumerate(scene.actors) if float(a.velocity_at(0.0).norm()) > 2)
    car, road = (LIDARSEG_NAMES.index(n) for n in (scene.actors[moving].category, "flat.driveable_surface"))
    sweeps, lidar2world = [], [scene.ego.pose_at(t) @ scene.lidar2ego for t in scene.key_times]
    for t, pose in zip(scene.key_times, lidar2world, strict=True):
        box = scene.actors[moving].pose_at(t)
        length = scene.actors[moving].size[0]
        inside, outside = (
            box @ torch.tensor([0.1, 0, 0, 1.0]).double(),
            box @ torch.tensor([-length, 0, 0, 1]).double(),
        )
        points = (torch.linalg.inv(pose) @ torch.stack([inside, outside], 1))[:3].T
        sweeps.append(
            Sweep(points.float(), torch.tensor([road, car], dtype=torch.uint8), torch.tensor([0, moving + 1]))
        )
    made = Accumulation.of(scene, sweeps)
    own, (still, _) = made.cloud.objects[moving], made.cloud.background(range(3))
    assert len(own) == 3 and len(still) == 3
    assert torch.allclose(own, torch.tensor([[0.1, 0, 0]] * 3), atol=1e-4)
    spec = GridSpec((-80.0, -80.0, -4.0), 0.5, (320, 320, 16))
    grid, instances = made.labels(2, Preset(spec, WORLD_TAXONOMY), unseen=False)
    # three ghosts in three places, the car once: its three returns met in one voxel
    assert grid.occupied().sum() == 4 and (instances == moving + 1).sum() == 1


def test_a_sweep_a_key_frame_is_wanted(scene):
    with pytest.raises(ValueError, match="3 key frames need as many sweeps, got 0"):
        Accumulation.of(scene, [])
