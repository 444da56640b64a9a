"""Objects over time and the choice of sweeps, on figures that a person can check."""

import math

import numpy as np
import pytest
import torch

from syntheocc.occupancy.accumulation.cloud import BACKGROUND, STRAY, OwnerRules, SceneCloud, Sweep, owners_of
from syntheocc.occupancy.accumulation.frames import BuildRules, choose_sweeps
from syntheocc.occupancy.accumulation.tracks import Track, tracks_of
from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.occupancy.transforms import rotation_z

SECOND = 1_000_000
EYE = torch.eye(4, dtype=torch.float64)
RIG = CameraRig({"front": Camera([[1.0, 0, 1], [0, 1, 1], [0, 0, 1]], EYE, 2, 2)})


def at(x, y=0.0, yaw=0.0):
    pose = rotation_z(yaw)
    pose[:3, 3] = torch.tensor([x, y, 0.0])
    return pose


def track(times, poses):
    times = np.array(times, dtype=np.int64)
    return Track("car", "car", times, torch.stack(poses), torch.ones(len(times), 3).double(), np.full(len(times), -1))


def test_between_boxes_an_object_moves_evenly_and_turns_the_short_way():
    moved = track([0, SECOND], [at(0, yaw=math.radians(170)), at(4, 2, yaw=math.radians(-170))])
    poses, there = moved.at(np.array([0, SECOND // 4, SECOND]))
    assert there.all() and poses[1, :2, 3].tolist() == pytest.approx([1.0, 0.5])
    assert math.degrees(math.atan2(poses[1, 1, 0], poses[1, 0, 0])) == pytest.approx(175.0)
    assert torch.allclose(poses[2], at(4, 2, math.radians(-170)))


def test_before_after_and_in_long_gaps_it_is_nowhere():
    moved = track([0, SECOND, 4 * SECOND], [at(0), at(1), at(2)])
    _, there = moved.at(np.array([-1, 0, SECOND // 2, 2 * SECOND, 4 * SECOND, 4 * SECOND + 1]))
    assert there.tolist() == [False, True, True, False, True, False]
    assert moved.speeds() == pytest.approx([1.0, 1.0, 1 / 3])
    assert track([0], [at(0)]).speeds().tolist() == [0.0]


def frame(k, boxes):
    return Frame(f"s{k}", "scene", k * SECOND // 2, RIG, ego2global=at(10.0 * k), boxes=boxes)


def boxes(positions, sizes, tokens=None):
    poses = torch.stack([at(*p) for p in positions])
    return Boxes(poses, torch.tensor(sizes), ("car",) * len(sizes), instance_tokens=tokens)


def test_tokens_name_objects():
    made = tracks_of(
        [frame(0, boxes([(5, 0)], [[4.0, 2, 1]], ("a",))), frame(1, boxes([(5, 0)], [[4.0, 2, 1]], ("a",)))], EYE
    )
    assert [t.token for t in made] == ["a"] and made[0].box2scene[:, 0, 3].tolist() == [5, 15]


def test_boxes_without_tokens_continue_the_nearest_of_their_size():
    first = boxes([(5, 0), (9, 0)], [[4.0, 2, 1], [5.0, 2, 1]])
    # seen from 10 m further: the small car stood still, the big one drove 4 m, a third one is new
    second = boxes([(-5, 0), (3, 0), (-4, 3)], [[4.0, 2, 1], [5.0, 2, 1], [4.0, 2, 1]])
    made = tracks_of([frame(0, first), frame(1, second)], EYE)
    assert sorted(len(t.times_us) for t in made) == [1, 2, 2]
    assert [t.box2scene[-1, 0, 3].item() for t in made[:2]] == [5, 13]
    far = boxes([(40, 0)], [[4.0, 2, 1]])
    assert len(tracks_of([frame(0, first), frame(1, far)], EYE)) == 3


def test_an_unannotated_frame_has_no_objects():
    assert tracks_of([frame(0, None)], EYE) == []


THINGS, MOVERS = torch.zeros(256, dtype=torch.bool), torch.zeros(256, dtype=torch.bool)
THINGS[[4, 7]] = MOVERS[4] = True
RULES = OwnerRules(things=THINGS, movers=MOVERS)
SIZE = torch.tensor([[4.0, 2.0, 2.0]]).double()


def owner(point, label, speed=0.0, rules=RULES):
    result = owners_of(
        torch.tensor([point]), torch.tensor([label]).byte(), EYE[None], SIZE, torch.tensor([True]), rules,
        torch.tensor([speed]),
    )  # fmt: skip
    return int(result[0])


def test_whose_a_return_is():
    assert owner([0.0, 0, 0], 4) == 0 and owner([0.0, 1.05, 0], 4) == 0
    assert owner([0.0, 0, -0.95], 11) == BACKGROUND  # road under the car
    assert owner([0.0, 1.2, 0], 4) == STRAY  # a car's return in no box
    assert owner([0.0, 1.2, 0], 7) == BACKGROUND  # what does not move leaves no trail
    assert owner([0.0, 0, 0], 255) == 0 and owner([0.0, 0, -0.95], 255) == BACKGROUND
    assert owner([2.5, 0, 0], 255) == BACKGROUND and owner([2.5, 0, 0], 255, speed=10.0) == STRAY
    assert owner([0.0, 0, -0.95], 11, rules=OwnerRules(margin=0.0)) == 0


def test_objects_keep_their_returns_in_their_own_frame():
    sweeps = []
    for k, label in ((0, 4), (1, 255)):
        points = torch.tensor([[1.0 + k, 0.0, 0.0], [30.0, 0, 0]])
        sweeps.append(
            Sweep(k, torch.zeros(3).double(), points, torch.tensor([label, 11]).byte(), torch.tensor([0, -1]).int())
        )
    cloud = SceneCloud.of(sweeps, 1, [at(0.0)[None], at(1.0)[None]])
    assert cloud.objects[0].tolist() == [[1.0, 0, 0], [1.0, 0, 0]]
    points, labels = cloud.background([0, 1])
    assert len(points) == 2 and labels.tolist() == [11, 11]


class TestChoice:
    origins = torch.stack([torch.arange(100.0), torch.zeros(100), torch.zeros(100)], 1).double()
    times = np.arange(100) * SECOND // 20
    keys = np.arange(100) % 10 == 0

    def choose(self, own, **rules):
        return choose_sweeps(self.origins, self.times, own, BuildRules(**rules), self.keys)

    def test_all_that_are_near(self):
        assert self.choose(50, sweeps=0, sweep_distance=20.0) == list(range(30, 71))

    def test_key_sweeps_first_then_evenly(self):
        assert self.choose(50, sweeps=10) == list(range(0, 100, 10))
        more = self.choose(50, sweeps=19)
        assert len(more) == 19 and set(range(0, 100, 10)) <= set(more)
        gaps = np.diff(sorted(set(more) - set(range(0, 100, 10))))
        assert gaps.min() > 5

    def test_fewer_than_key_sweeps_spread_over_the_way(self):
        few = self.choose(50, sweeps=4)
        assert 50 in few and few[0] == 0 and few[-1] == 90 and len(few) == 4

    def test_where_the_car_stood_one_sweep_in_a_while_is_enough(self):
        origins = self.origins.clone()
        origins[:50] = 0.0
        chosen = choose_sweeps(origins, self.times, 60, BuildRules(sweeps=11), np.zeros(100, dtype=bool))
        assert len(chosen) == 11 and sum(i < 50 for i in chosen) <= 2
