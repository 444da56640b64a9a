"""The occupancy-and-flow score on OpenOcc v2: by hand on a wall of cars, merging, errors."""

import pytest
import torch

from syntheocc.occupancy.grids import OPENOCC_V2
from syntheocc.occupancy.metrics import OccupancyFlow, RayIoU

CAR, TRUCK, FREE = 0, 1, 16
ORIGIN = torch.tensor([[0.2, 0.2, 1.0]], dtype=torch.float64)
AHEAD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def scene():
    """Four rays meet a car 10 m ahead (1 m too far in the prediction), a truck left, a wall behind, nothing right."""
    shape = OPENOCC_V2.spec.shape
    gt = torch.full(shape, FREE, dtype=torch.uint8)
    gt[125, 100, 5] = CAR
    gt[100, 125, 5] = TRUCK
    gt[50, 100, 5] = 14
    pred = torch.full(shape, FREE, dtype=torch.uint8)
    pred[127, 100, 5] = CAR
    pred[100, 140, 5] = TRUCK
    pred[50, 100, 5] = 14
    pred_flow, gt_flow = torch.zeros(*shape, 2), torch.zeros(*shape, 2, dtype=torch.float16)
    gt_flow[125, 100, 5] = torch.tensor([3.0, 0.0]).half()
    pred_flow[127, 100, 5] = torch.tensor([3.3, 0.4])
    pred_flow[50, 100, 5] = 9.0
    return pred, gt, pred_flow, gt_flow


def test_by_hand():
    metric = OccupancyFlow(directions=AHEAD)
    metric.update(*scene(), ORIGIN)
    result = metric.compute()
    # Car: found 0.8 m off, 0.5 m/s off. Truck: 6 m off, so no true positive and no error. The wall does not move.
    assert result["mAVE"] == pytest.approx(0.5, abs=1e-6)
    assert result.per_class["car"]["matched"] == 1 and result.per_class["truck"]["matched"] == 0
    assert result["RayIoU"] == pytest.approx(2 / 3)
    assert result["OccScore"] == pytest.approx(0.9 * 2 / 3 + 0.1 * 0.5, abs=1e-6)
    rays = RayIoU(OPENOCC_V2.taxonomy, directions=AHEAD)
    rays.update(*scene()[:2], ORIGIN)
    assert rays.compute()["RayIoU"] == result["RayIoU"]
    assert "0.500" in result.table()


def test_the_second_term_is_never_negative_and_zero_without_a_match():
    pred, gt, pred_flow, gt_flow = scene()
    pred_flow[127, 100, 5, 0] = 40.0
    metric = OccupancyFlow(directions=AHEAD)
    metric.update(pred, gt, pred_flow, gt_flow, ORIGIN)
    assert metric.compute()["OccScore"] == pytest.approx(0.9 * metric.compute()["RayIoU"])
    metric.reset()
    pred[127, 100, 5] = FREE
    metric.update(pred, gt, pred_flow, gt_flow, ORIGIN)
    result = metric.compute()
    assert result["mAVE"] != result["mAVE"] and result["OccScore"] == pytest.approx(0.9 * result["RayIoU"])


def test_batches_and_merging():
    pred, gt, pred_flow, gt_flow = (torch.stack([v, v.flip(1)]) for v in scene())
    whole = OccupancyFlow(directions=AHEAD)
    whole.update(pred, gt, pred_flow, gt_flow, [ORIGIN, ORIGIN])
    parts = [OccupancyFlow(directions=AHEAD) for _ in range(2)]
    for k, part in enumerate(parts):
        part.update(pred[k].numpy(), gt[k], pred_flow[k].numpy(), gt_flow[k].numpy(), ORIGIN)
    assert parts[0].merge_state(parts[1]).compute() == whole.compute()


def test_bad_flows_are_named():
    pred, gt, pred_flow, gt_flow = scene()
    metric = OccupancyFlow(directions=AHEAD)
    with pytest.raises(ValueError, match="sample abc: the predicted flow has shape"):
        metric.update(pred, gt, pred_flow[..., :1], gt_flow, ORIGIN, tokens="abc")
    pred_flow[127, 100, 5] = float("nan")
    with pytest.raises(ValueError, match="sample abc: the predicted flow holds NaN"):
        metric.update(pred, gt, pred_flow, gt_flow, ORIGIN, tokens="abc")
    gt_flow[125, 100, 5] = float("nan")
    metric.reset()
    metric.update(pred, gt, pred_flow, gt_flow, ORIGIN)
    assert metric.compute().per_class["car"]["matched"] == 0
    with pytest.raises(ValueError, match="match_threshold 3"):
        OccupancyFlow(match_threshold=3)
