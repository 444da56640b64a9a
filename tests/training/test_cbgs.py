"""Class-balanced resampling against numbers that were counted by hand."""

from collections import Counter

import pytest
import torch

from syntheocc.engine.samplers import EpochSampler
from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.training.cbgs import ClassBalance, classes_of

CAR, BUS, NONE = frozenset({"car"}), frozenset({"bus"}), frozenset()


def frame(*names, boxes=True):
    rig = CameraRig({"CAM": Camera(torch.eye(3), torch.eye(4), 4, 4)})
    poses = torch.eye(4).expand(len(names), 4, 4)
    found = Boxes(poses, torch.ones(len(names), 3), names) if boxes else None
    return Frame("token", "scene", 0, rig, boxes=found)


def test_every_group_is_drawn_as_often():
    """22 samples with cars, of which 2 have a bus and 1 is a bus alone: 22 + 3 entries, 25 // 11 = 2 draws each."""
    balance = ClassBalance([CAR] * 20 + [CAR | BUS] * 2 + [BUS])
    assert [len(group) for group in balance.groups()] == [22, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
    assert balance.draws_per_group() == 2
    drawn = balance(0)
    assert len(drawn) == 4  # nine groups are empty
    assert sum(index >= 20 for index in drawn) >= 2  # the two draws of the bus, and maybe one of the cars


def test_a_sample_without_foreground_counts_120_times():
    """The example of the docstring: N = 2 + 1 + 120 = 123, 123 // 11 = 11 draws from each of three groups."""
    balance = ClassBalance([CAR, CAR | BUS, NONE])
    assert balance.draws_per_group() == 11
    counts = Counter(balance(0))
    assert sum(counts.values()) == 33
    assert counts[2] == 11  # the background's whole share
    assert counts[1] >= 11  # the bus's share, and some of the cars'


def test_a_large_epoch_has_equal_shares():
    """900 car samples and 100 bus samples: 1000 // 11 = 90 draws of either; in the data the shares are 9 to 1."""
    balance = ClassBalance([CAR] * 900 + [BUS] * 100)
    counts = Counter("bus" if index >= 900 else "car" for index in balance(3))
    assert counts == {"car": 90, "bus": 90}


def test_the_order_depends_on_seed_and_epoch_only():
    classes = [CAR] * 50 + [BUS] * 20 + [NONE] * 3
    balance = ClassBalance(classes, seed=1)
    assert balance(0) == ClassBalance(classes, seed=1)(0)
    assert balance(0) != balance(1)
    assert balance(0) != ClassBalance(classes, seed=2)(0)
    sampler = EpochSampler(len(classes), order=balance)
    assert sampler.indices(1) == balance(1)


def test_a_tiny_set_still_has_an_epoch():
    assert ClassBalance([CAR])(0) == [0]


def test_classes_of_a_clip_are_those_of_all_its_frames():
    assert classes_of([frame("car", "animal"), frame("bus")]) == CAR | BUS
    assert classes_of([frame("animal")]) == NONE
    with pytest.raises(ValueError, match="token has no boxes"):
        classes_of([frame(boxes=False)])
