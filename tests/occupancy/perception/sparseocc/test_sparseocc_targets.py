"""Segments of a grid: one a class, or one an object."""

import pytest
import torch

from syntheocc.occupancy.perception.sparseocc.presets import preset
from syntheocc.occupancy.perception.sparseocc.targets import BACKGROUND, UNSEEN, segment_targets

FREE = 17
# File ids of the specification's scene with their classes and voxel counts (P_instances): two cars, a pedestrian, a
# cone, the ground, a wall; a car voxel and 16 bicycle voxels that no box claimed.
FILE = [(1, 4, 288), (2, 4, 288), (3, 7, 16), (4, 8, 12), (5, 11, 40000), (6, 15, 1996), (0, 4, 1), (0, 2, 16)]


@pytest.fixture
def panoptic_scene():
    semantics = torch.full((640000,), FREE, dtype=torch.uint8)
    instances = torch.zeros(640000, dtype=torch.uint8)
    start = 0
    for number, label, count in FILE:
        semantics[start : start + count], instances[start : start + count] = label, number
        start += count
    order = torch.randperm(640000, generator=torch.Generator().manual_seed(0))
    return semantics[order].view(200, 200, 16), instances[order].view(200, 200, 16)


def test_objects_are_told_apart_as_in_the_specification(panoptic_scene, vectors):
    semantics, instances = panoptic_scene
    vector = vectors["P_instances"]
    things = preset("r50_704x256_8f_pano").model.instance_classes
    assert things == (2, 3, 4, 5, 6, 7, 9, 10)
    targets = segment_targets(semantics, FREE, instances, things, legacy=True)
    assert targets.classes.tolist() == vector["loader_pano_class_ids"]
    counts = {str(i): int((targets.segments == i).sum()) for i in range(6)}
    counts["255"] = int((targets.segments == BACKGROUND).sum())
    assert counts == vector["loader_pano_counts"]


def test_voxels_of_unclaimed_objects_are_unseen_not_free(panoptic_scene):
    semantics, instances = panoptic_scene
    things = preset("r50_704x256_8f_pano").model.instance_classes
    targets = segment_targets(semantics, FREE, instances, things)
    assert int((targets.segments == UNSEEN).sum()) == 17
    assert torch.equal(targets.segments == BACKGROUND, semantics == FREE)


def test_without_objects_every_class_is_one_segment(panoptic_scene, vectors):
    targets = segment_targets(panoptic_scene[0], FREE)
    assert targets.classes.tolist() == vectors["P_instances"]["loader_sem_class_ids"]
    assert int((targets.segments == 1).sum()) == 288 * 2 + 1


def test_unknown_voxels_are_unseen_and_in_legacy_background():
    semantics = torch.tensor([255, 17, 3], dtype=torch.uint8).view(3, 1, 1)
    assert segment_targets(semantics, FREE).segments.flatten().tolist() == [UNSEEN, BACKGROUND, 0]
    assert segment_targets(semantics, FREE, legacy=True).segments.flatten().tolist() == [BACKGROUND, BACKGROUND, 0]


def test_more_than_254_objects_are_told_apart():
    semantics = torch.full((300, 1, 1), 4, dtype=torch.uint8)
    instances = torch.arange(1, 301, dtype=torch.int32).view(300, 1, 1)
    targets = segment_targets(semantics, FREE, instances, (4,))
    assert targets.segments.flatten().tolist() == list(range(300))


def test_an_empty_grid_has_no_segment():
    targets = segment_targets(torch.full((2, 2, 2), FREE, dtype=torch.uint8), FREE)
    assert len(targets.classes) == 0 and (targets.segments == BACKGROUND).all()


def test_objects_without_ids_are_refused_only_where_there_are_some():
    free = torch.full((2, 1, 1), FREE, dtype=torch.uint8)
    segment_targets(free, FREE, None, (4,))
    free[0] = 4
    with pytest.raises(ValueError, match="instance ids"):
        segment_targets(free, FREE, None, (4,))
    with pytest.raises(ValueError, match=r"\[1, 1, 1\]"):
        segment_targets(free, FREE, torch.zeros(1, 1, 1), (4,))
