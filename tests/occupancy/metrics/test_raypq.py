"""RayPQ and the panoptic ground truth: the vectors of specs/sparseocc.md, and what they leave open, by hand."""

import numpy as np
import pytest
import torch

from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec, OccupancyGrid
from syntheocc.occupancy.metrics import RayPQ, lidar_rays, panoptic_instances
from syntheocc.occupancy.taxonomy import Taxonomy


def runs(*pairs):
    return np.concatenate([np.full(count, value) for value, count in pairs])


def counted(pred, pred_instances, gt, gt_instances, apart):
    metric = RayPQ()
    metric.update_rays(pred, pred_instances, gt, gt_instances, apart, np.zeros(len(apart)))
    return metric.compute()


def test_vector_e():
    result = counted(
        runs((4, 16), (17, 4), (4, 23), (11, 25), (13, 5)),
        runs((5, 16), (0, 4), (5, 2), (6, 10), (7, 11), (1, 25), (2, 5)),
        runs((4, 43), (11, 30)),
        runs((1, 20), (2, 12), (0, 11), (9, 30)),
        runs((0.5, 14), (1.5, 2), (9.0, 4), (0.2, 12), (0.1, 11), (0.3, 20), (3.0, 5), (0.3, 5)),
    )
    assert result["RayPQ"] == pytest.approx(0.7481361231361232, abs=1e-10)
    assert result["RayPQ@1"] == pytest.approx(0.6884920634920635, abs=1e-10)
    assert result["RayPQ@2"] == pytest.approx(0.7124819624819625, abs=1e-10)
    assert result["RayPQ@4"] == pytest.approx(0.8434343434343434, abs=1e-10)
    for limit in (1, 2, 4):
        assert result.per_class["car"][f"tp@{limit}"] == 3
        assert result.per_class["driveable_surface"][f"tp@{limit}"] == 1
        # Five rays on a sidewalk that is not there are too few for a false positive, so the class has no PQ.
        assert result.per_class["sidewalk"][f"fp@{limit}"] == 0
        assert np.isnan(result.per_class["sidewalk"][f"PQ@{limit}"])


def test_vector_e2():
    result = counted(
        runs((4, 32), (17, 9), (4, 11), (7, 4)),
        runs((1, 11), (2, 9), (3, 12), (0, 9), (4, 11), (5, 4)),
        runs((4, 41), (7, 15)),
        runs((1, 20), (2, 12), (3, 9), (4, 15)),
        runs((0.5, 25), (1.5, 7), (9.0, 9), (0.1, 15)),
    )
    assert [result[name] for name in ("RayPQ@1", "RayPQ@2", "RayPQ@4", "RayPQ")] == pytest.approx(
        [0.11, 0.31, 0.31, 0.24333333333333337], abs=1e-10
    )
    car, pedestrian = result.per_class["car"], result.per_class["pedestrian"]
    assert [car[f"tp@{n}"] for n in (1, 2, 4)] == [1, 2, 2]
    assert [car[f"fp@{n}"] for n in (1, 2, 4)] == [2, 1, 1]
    assert [car[f"fn@{n}"] for n in (1, 2, 4)] == [1, 0, 0]
    assert [pedestrian[f"fn@{n}"] for n in (1, 2, 4)] == [1, 1, 1]


def test_an_instance_hit_with_two_classes_is_no_instance():
    # File instance 3 has 10 car and 10 truck rays: both join the nameless segments of their classes. Barriers (1) are
    # stuff: their two file instances are one segment.
    gt, instances = runs((4, 20), (10, 10), (1, 20)), runs((0, 10), (3, 20), (5, 10), (6, 10))
    result = counted(gt, runs((7, 20), (8, 10), (9, 20)), gt, instances, np.zeros(50))
    assert [result.per_class[name]["tp@1"] for name in ("car", "truck", "barrier")] == [1, 1, 1]
    assert result["RayPQ"] == 1.0


def test_more_instances_than_a_byte_holds():
    # The published code numbers them in a byte: 1 and 257 would be one.
    gt, instances = runs((4, 40)), runs((1, 20), (257, 20))
    result = counted(gt, runs((600, 20), (1, 20)), gt, instances, np.zeros(40))
    assert result.per_class["car"]["tp@1"] == 2 and result["RayPQ"] == 1.0
    spec = GridSpec((0.0, 0.0, 0.0), 1.0, (20, 20, 1))
    cars = torch.full(spec.shape, 4, dtype=torch.uint8)
    boxes = boxes_of(*(box((x + 0.5, y + 0.5, 0.5), (0.9, 0.9, 0.9), "car") for x in range(20) for y in range(20)))
    assert len(panoptic_instances(OccupancyGrid(cars, spec, OCC3D_NUSCENES.taxonomy), boxes).unique()) == 400


def test_rays_that_leave_the_truth_do_not_count():
    result = counted(runs((4, 40)), runs((1, 40)), runs((4, 20), (17, 20)), runs((1, 20), (0, 20)), np.zeros(40))
    assert result["RayPQ"] == 1.0
    nothing = counted(runs((4, 40)), runs((1, 40)), runs((17, 40)), runs((0, 40)), np.zeros(40))
    assert np.isnan(nothing["RayPQ"])


def frames(count):
    """A small world of two cars and a wall; in the prediction one car is two."""
    classes = ("ground", "car", "wall", "free")
    taxonomy = Taxonomy("four", classes, tuple((k, k, k) for k in range(4)), free=3)
    spec = GridSpec((-4.0, -4.0, -1.0), 0.4, (20, 20, 8))
    gt = torch.full((count, 20, 20, 8), 3, dtype=torch.uint8)
    gt[:, :, :, 0] = 0
    gt[:, 18, :, 1:] = 2
    instances = torch.zeros(gt.shape, dtype=torch.int32)
    for k in range(count):
        gt[k, 3:7, 2 + k % 3 : 6 + k % 3, 1:4] = 1
        instances[k, 3:7, 2 + k % 3 : 6 + k % 3, 1:4] = 1
        gt[k, 12:16, 8:12, 1:4] = 1
        instances[k, 12:16, 8:12, 1:4] = 2
    found = instances.clone()
    found[:, 14:16, 8:12] *= 9
    metric = RayPQ(taxonomy, spec, directions=lidar_rays()[::7], things=["car"])
    return (
        metric,
        gt.roll(1, 3),
        found.roll(1, 3),
        gt,
        instances,
        [torch.zeros(2, 3).double() + 0.1 * k for k in range(count)],
    )


def test_grids_batches_and_processes_agree():
    metric, pred, found, gt, instances, origins = frames(7)
    metric.update(pred, gt, found, instances, origins)
    whole = metric.compute()
    assert 0 < whole["RayPQ@1"] < whole["RayPQ@4"] <= 1
    others = [frames(1)[0] for _ in range(4)]
    for k in range(7):
        part = slice(k, k + 1)
        others[k % 4].update(pred[part].numpy(), gt[part], found[part].numpy(), instances[part], origins[part])
    merged = others[3].merge_state(others[:3])
    assert merged.compute() == whole and merged.compute().per_class == whole.per_class
    metric.reset()
    metric.update(gt, gt, instances, instances, origins)
    assert metric.compute()["RayPQ"] == 1.0
    metric.update(pred, gt, None, instances, origins)
    assert metric.compute()["RayPQ"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gt_instances": None}, "sample abc: RayPQ needs instances of the ground truth"),
        ({"gt_instances": torch.zeros(1, 20, 20, 7).int()}, "sample abc: the true instances have shape"),
        ({"pred_instances": torch.zeros(1, 20, 20, 8)}, "sample abc: the predicted instances must be integers"),
        ({"pred_instances": torch.full((1, 20, 20, 8), -1)}, r"sample abc: the predicted instances must lie in 0"),
        ({"origins": torch.full((1, 3), float("nan"))}, "sample abc: ray origins hold NaN"),
    ],
)
def test_bad_frames_are_named(change, message):
    metric, pred, found, gt, instances, origins = frames(1)
    arguments = {"pred_instances": found, "gt_instances": instances, "origins": origins} | change
    with pytest.raises(ValueError, match=message):
        metric.update(pred, gt, **arguments, tokens="abc")
    with pytest.raises(ValueError, match="seen no frame"):
        metric.compute()


def box(center, size, name):
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor(center, dtype=torch.float64)
    return pose, size, name


def boxes_of(*rows):
    return Boxes(torch.stack([r[0] for r in rows]), torch.tensor([r[1] for r in rows]), tuple(r[2] for r in rows))


def test_vector_p():
    """json:P_instances: two cars of 4.0 x 1.9 x 1.5 m whose voxels fill the enlarged boxes, and others."""
    labels = torch.full((200, 200, 16), 17, dtype=torch.uint8)
    labels[:, :, 2] = 11
    labels[160, :, 3:13] = 15
    labels[160, :4, 3] = 17
    labels[120:132, 90:96, 3:7] = labels[60:72, 110:116, 3:7] = 4
    labels[100:102, 130:132, 3:7] = 7
    labels[50:52, 50:52, 3:6] = 8
    labels[20, 20, 3] = 4
    labels[10:14, 10:12, 3:5] = 2
    boxes = boxes_of(
        box((10.4, -2.8, 1.0), (4.0, 1.9, 1.5), "car"),
        box((30.0, 30.0, 1.0), (4.0, 1.9, 1.5), "car"),  # without voxels: gets no number
        box((-13.6, 5.2, 1.0), (4.0, 1.9, 1.5), "car"),
        box((0.4, 12.4, 1.0), (0.8, 0.8, 1.6), "pedestrian"),
        box((-19.6, -19.6, 0.8), (0.8, 0.8, 1.2), "traffic_cone"),
        box((-19.6, -19.6, 0.8), (4.0, 4.0, 4.0), "animal"),  # no class of the table
    )
    instances = panoptic_instances(OccupancyGrid(labels, *OCC3D_NUSCENES), boxes)
    found = {
        int(k): (int((instances == k).sum()), labels[instances == k].unique().tolist()) for k in instances.unique()
    }
    assert found == {
        0: (597400, [2, 4, 17]), 1: (288, [4]), 2: (288, [4]), 3: (16, [7]), 4: (12, [8]), 5: (40000, [11]),
        6: (1996, [15]),
    }  # fmt: skip


def test_the_nearest_enlarged_box_takes_a_leftover_and_the_first_box_what_both_hold():
    spec = GridSpec((0.0, 0.0, 0.0), 1.0, (12, 4, 2))
    labels = torch.full(spec.shape, 17, dtype=torch.uint8)
    labels[0:12, 1, 0] = 4
    labels[5, 1, 1] = 255
    boxes = boxes_of(box((2.5, 1.5, 0.5), (4.3, 1.0, 1.0), "car"), box((7.0, 1.5, 0.5), (6.3, 1.0, 1.0), "car"))
    instances = panoptic_instances(OccupancyGrid(labels, spec, OCC3D_NUSCENES.taxonomy), boxes)
    # Box 1 reaches from 0.35 to 4.65 (enlarged 5.05): centres 0.5..4.5; box 2 from 3.85 to 10.15 (10.55): 5.5..9.5,
    # and of the leftovers 10.5.
    assert instances[:, 1, 0].tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0]
    assert int((instances > 0).sum()) == 11
    two = boxes_of(box((1.0, 1.5, 0.5), (2.0, 1.0, 1.0), "car"), box((3.6, 1.5, 0.5), (2.0, 1.0, 1.0), "car"))
    leftover = panoptic_instances(
        OccupancyGrid(labels[:6], GridSpec((0, 0, 0), 1.0, (6, 4, 2)), OCC3D_NUSCENES.taxonomy), two
    )
    # Between the boxes lies centre 2.5, 1.5 from the first (enlarged to 2.4: outside) and 1.1 from the second (2.2).
    assert leftover[:, 1, 0].tolist() == [1, 1, 2, 2, 2, 0]


@pytest.mark.gpu
def test_a_gpu_counts_the_same():
    metric, pred, found, gt, instances, origins = frames(3)
    metric.update(pred, gt, found, instances, origins)
    other = frames(1)[0]
    other.update(pred.cuda(), gt.cuda(), found.cuda(), instances.cuda(), origins)
    assert other.compute() == metric.compute()
