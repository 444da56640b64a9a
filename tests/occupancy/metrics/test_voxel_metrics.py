"""Voxel mIoU and scene completion: vector D of specs/sparseocc.md, worked examples of specs/occdepth.md, errors."""

import numpy as np
import pytest
import torch

from syntheocc.occupancy.data.occ3d import read_occ3d
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OPENOCC_V2, SEMANTIC_KITTI, GridSpec
from syntheocc.occupancy.metrics import OccupancyIoU, SSCIoU
from syntheocc.occupancy.taxonomy import Taxonomy

GT_D = [[0, 4, 4, 11, 11, 17, 17, 15], [7, 4, 11, 11, 17, 17, 17, 15]]
PRED_D = [[0, 4, 11, 11, 11, 17, 4, 15], [17, 4, 11, 13, 17, 17, 16, 17]]
MASK_D = [[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 1, 1]]


def four(free=0):
    return Taxonomy("four", ("a", "b", "c", "d"), tuple((k, k, k) for k in range(4)), free=free)


def test_vector_d():
    metric = OccupancyIoU()
    metric.update(np.array(PRED_D), np.array(GT_D), np.array(MASK_D))
    result = metric.compute()
    assert result["mIoU"] == pytest.approx(0.42) and round(100 * result["IoU"], 2) == 66.67
    found = {name: row["IoU"] for name, row in result.per_class.items() if row["gt"]}
    assert found == pytest.approx(
        {"others": 1.0, "car": 0.5, "pedestrian": 0.0, "driveable_surface": 0.6, "manmade": 0.0, "free": 1 / 3}
    )
    # Predicted, but never there: no IoU, not 0 (unlike RayIoU).
    assert result.per_class["sidewalk"]["pred"] == 1 and np.isnan(result.per_class["sidewalk"]["IoU"])
    assert "mIoU" in result.table() and "42.00" in result.table() and "mask: camera" in result.table()


def test_v19_of_the_2d_supervised_models():
    """Specs/occflownet_splattingocc.md V19: three classes at one half; the mean leaves free and absent ones out."""
    metric = OccupancyIoU(mask=None)
    metric.update(np.array([[0, 4, 4, 17, 11, 11]]), np.array([[0, 0, 4, 17, 17, 11]]))
    result = metric.compute()
    assert result["mIoU"] == 0.5
    assert [result.per_class[name]["IoU"] for name in ("others", "car", "driveable_surface")] == [0.5, 0.5, 0.5]
    assert np.isnan(result.per_class["bus"]["IoU"])


def test_masks_are_part_of_the_definition():
    gt, pred, mask = torch.tensor(GT_D), torch.tensor(PRED_D), torch.tensor(MASK_D).bool()
    everything, lidar, camera = OccupancyIoU(mask=None), OccupancyIoU(mask="lidar"), OccupancyIoU()
    everything.update(pred, gt)
    lidar.update(pred, gt, mask)
    assert everything.compute().per_class["manmade"] == {"IoU": 0.5, "gt": 2, "pred": 1}
    with pytest.raises(ValueError, match="mask: 'camera' here, 'lidar' there"):
        camera.merge_state(lidar)
    with pytest.raises(ValueError, match="no mask was given, but the metric counts what the camera observed"):
        camera.update(pred, gt)
    with pytest.raises(ValueError, match="sample abc: a mask was given, but the metric counts all voxels"):
        everything.update(pred, gt, mask, tokens=["abc", "def"])
    with pytest.raises(ValueError, match="mask must be 'camera'"):
        OccupancyIoU(mask="radar")


def test_unknown_truth_is_left_out_and_unknown_prediction_is_a_miss():
    metric = OccupancyIoU(four(free=3), mask=None)
    metric.update(torch.tensor([[0, 0, 255, 255]]), torch.tensor([[0, 255, 0, 3]]))
    result = metric.compute()
    assert result.per_class["a"] == {"IoU": 0.5, "gt": 2, "pred": 1}
    assert result["mIoU"] == 0.5 and result["IoU"] == 0.5


def test_openocc_has_sixteen_classes_and_batches_agree():
    g = torch.Generator().manual_seed(0)
    gt = torch.randint(0, 17, (7, 5, 6, 4), generator=g).byte()
    pred = torch.randint(0, 17, (7, 5, 6, 4), generator=g).byte()
    mask = torch.rand(gt.shape, generator=g) < 0.6
    whole = OccupancyIoU(OPENOCC_V2.taxonomy)
    whole.update(pred, gt, mask)
    parts = [OccupancyIoU(OPENOCC_V2.taxonomy) for _ in range(4)]
    for k in range(7):
        parts[k % 4].update(pred[k].numpy(), gt[k], mask[k].byte().numpy())
    assert parts[0].merge_state(parts[1:]).compute() == whole.compute()
    iou = []
    for c in range(16):
        both = ((pred == c) & (gt == c) & mask).sum()
        iou.append(float(both / (((pred == c) | (gt == c)) & mask).sum()))
    assert whole.compute()["mIoU"] == pytest.approx(np.mean(iou))
    occupied = ((pred != 16) & (gt != 16) & mask).sum() / (((pred != 16) | (gt != 16)) & mask).sum()
    assert whole.compute()["IoU"] == pytest.approx(float(occupied))


@pytest.mark.parametrize("make", [lambda: OccupancyIoU(four(), mask=None), lambda: SSCIoU(four())])
def test_bad_voxels_are_named(make):
    metric, gt = make(), torch.zeros(2, 3, 3, 3, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"sample p: the prediction has shape \(1, 3, 3, 3\), the ground truth \(2, 3"
    ):
        metric.update(gt[0], gt, tokens=["p", "q"])
    with pytest.raises(ValueError, match="sample q: the ground truth holds class id 4"):
        metric.update(gt, torch.stack([gt[0], gt[0] + 4]), tokens=["p", "q"])
    with pytest.raises(ValueError, match="integer class ids, got torch.float32"):
        metric.update(gt.float(), gt)
    with pytest.raises(ValueError, match="the prediction must be numbers"):
        metric.update(np.array(["a"]), gt)
    with pytest.raises(ValueError, match="3 tokens for 2 frames"):
        metric.update(gt, gt, tokens=["p", "q", "r"])
    with pytest.raises(ValueError, match="seen no frame"):
        metric.compute()


TRUTH_A, GUESS_A = [0, 0, 1, 1, 2, 2, 255, 255, 0, 1, 2, 0], [0, 1, 1, 2, 2, 0, 1, 0, 0, 1, 1, 2]
TRUTH_B, GUESS_B = [0, 0, 0, 0, 1, 1, 1, 255, 255, 2, 0, 0], [0, 0, 0, 1, 1, 1, 0, 2, 3, 2, 2, 0]
KEEP_A = [1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]


def ssc(pairs, **options):
    metric = SSCIoU(four(), **options)
    for guess, truth, masks in pairs:
        metric.update(torch.tensor([guess]), torch.tensor([truth]), **{k: torch.tensor([v]) for k, v in masks.items()})
    return metric.compute()


def test_worked_example_a():
    result = ssc([(GUESS_A, TRUTH_A, {})])
    assert [result[k] for k in ("precision", "recall", "iou")] == pytest.approx([5 / 7, 5 / 6, 0.625])
    rows = list(result.per_class.values())
    assert [row["tp"] for row in rows] == [2, 2, 1, 0]
    assert [row["fp"] for row in rows] == [1, 2, 2, 0]
    assert [row["fn"] for row in rows] == [2, 1, 2, 0]
    assert [row["iou"] for row in rows] == pytest.approx([0.399999, 0.399999, 0.2, 0], abs=1e-6)
    assert result["miou"] == pytest.approx(0.2, abs=1e-6)


def test_worked_example_a_and_b():
    result = ssc([(GUESS_A, TRUTH_A, {}), (GUESS_B, TRUTH_B, {})])
    assert [result[k] for k in ("precision", "recall", "iou")] == pytest.approx([8 / 12, 0.8, 8 / 14])
    assert [row["iou"] for row in result.per_class.values()] == pytest.approx(
        [0.499999, 0.444444, 0.285714, 0], abs=1e-6
    )
    assert result["miou"] == pytest.approx(0.243386, abs=1e-6)
    official = ssc([(GUESS_A, TRUTH_A, {}), (GUESS_B, TRUTH_B, {})], eps=1e-15)
    assert official["miou"] == pytest.approx(0.243386243, abs=1e-9)


def test_worked_example_masks():
    masked = ssc([(GUESS_A, TRUTH_A, {"nonempty": KEEP_A})], nonempty=True)
    assert [masked[k] for k in ("precision", "recall", "iou")] == pytest.approx([1.0, 5 / 6, 5 / 6])
    assert masked["miou"] == pytest.approx(0.249999, abs=1e-6)
    surface = ssc([(GUESS_A, TRUTH_A, {"nonsurface": KEEP_A})], nonsurface=True)
    assert surface["iou"] == pytest.approx(5 / 6) and surface["miou"] == pytest.approx(0.2, abs=1e-6)
    with pytest.raises(ValueError, match="made with nonempty=True, so update needs such a mask"):
        ssc([(GUESS_A, TRUTH_A, {})], nonempty=True)
    with pytest.raises(ValueError, match="nonsurface=False, so update takes no such mask"):
        ssc([(GUESS_A, TRUTH_A, {"nonsurface": KEEP_A})])


def test_nothing_there_is_zero():
    empty = ssc([([0] * 4, [0] * 4, {})])
    assert [empty[k] for k in ("precision", "recall", "iou", "miou")] == [0, 0, 0, 0]
    assert empty.per_class["a"]["iou"] == pytest.approx(0.999999, abs=3e-6)
    unknown = ssc([([1] * 4, [255] * 4, {})])
    assert [unknown[k] for k in ("precision", "recall", "iou", "miou")] == [0, 0, 0, 0]


def test_figures_by_distance():
    # Voxels of 1 m; x centres 0.5..3.5 ahead, y -1.5..1.5. Range 2 holds x < 2 and -1 <= y < 1: four voxels.
    spec = GridSpec((0.0, -2.0, 0.0), 1.0, (4, 4, 1))
    truth = torch.ones(4, 4, 1, dtype=torch.uint8)
    guess = torch.zeros_like(truth)
    guess[:2, 1:3] = 1
    guess[0, 1] = 0
    metric = SSCIoU(four(), ranges=(2, 4), spec=spec)
    metric.update(guess, truth)
    result = metric.compute()
    assert result["recall@2"] == 0.75 and result["recall@4"] == result["recall"] == 3 / 16
    assert result["precision@2"] == 1.0 and result.per_class["b"]["iou@2"] == pytest.approx(0.75, abs=1e-5)
    parts = [SSCIoU(four(), ranges=(2, 4), spec=spec) for _ in range(2)]
    parts[1].update(guess[None].numpy(), truth[None].numpy())
    assert parts[0].merge_state(parts[1]).compute() == result
    with pytest.raises(ValueError, match="give spec"):
        SSCIoU(four(), ranges=(2,))
    with pytest.raises(ValueError, match="the metric's spec says"):
        metric.update(guess[:2], truth[:2])


def test_conventions():
    kitti, nyu = SSCIoU.semantic_kitti(), SSCIoU.nyuv2()
    assert kitti.taxonomy is SEMANTIC_KITTI.taxonomy and kitti.eps == 1e-15 and nyu.eps == 1e-5
    grid = torch.zeros(SEMANTIC_KITTI.spec.shape, dtype=torch.uint8)
    grid[:64, 96:160] = 9
    kitti.update(grid, grid)
    result = kitti.compute()
    assert result["iou@12.8"] == result["iou"] == 1.0 and result["miou"] == pytest.approx(1 / 19)
    assert result.per_class["road"]["tp"] == 64 * 64 * 32


@pytest.mark.real_data
def test_a_real_label_file(real_data):
    labels = read_occ3d(real_data / "occ3d_scene1077" / "labels.npz")
    metric = OccupancyIoU()
    metric.update(labels.grid, labels.grid, labels.mask_camera)
    result = metric.compute()
    assert result["mIoU"] == result["IoU"] == 1.0
    assert sum(row["gt"] for row in result.per_class.values()) == int(labels.mask_camera.sum())


@pytest.mark.gpu
def test_a_gpu_counts_the_same():
    g = torch.Generator().manual_seed(0)
    gt, pred = (torch.randint(0, 18, (2, *OCC3D_NUSCENES.spec.shape), generator=g).byte() for _ in range(2))
    gt[0, :, :, 3] = 255
    mask = torch.rand(gt.shape, generator=g) < 0.5
    slow, fast = OccupancyIoU(), OccupancyIoU()
    slow.update(pred, gt, mask)
    fast.update(pred.cuda(), gt.cuda(), mask.cuda())
    assert slow.compute() == fast.compute()
