"""RayIoU: the vectors of specs/sparseocc.md, rays, origins, errors, and one result however frames are shared out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from syntheocc.occupancy.grids import OCC3D_NUSCENES, OPENOCC_V2, GridSpec, OccupancyGrid
from syntheocc.occupancy.metrics import RayIoU, lidar_rays, ray_origins, scene_origins
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.ray_confusion import ray_confusion
from syntheocc.occupancy.ops.ray_confusion.reference import ray_labels
from syntheocc.occupancy.taxonomy import Taxonomy
from syntheocc.occupancy.transforms import rotation_z

BACKENDS = [
    "reference",
    "torch",
    pytest.param("numba", marks=pytest.mark.skipif(not has_module("numba"), reason="needs numba")),
]
FREE = 17
ORIGINS_C = torch.tensor([[0.9858, 0.0, 1.8402], [10.3, -3.7, 1.84]], dtype=torch.float64)


def scene_c():
    """json:C_scene: prediction and ground truth."""
    gt = torch.full((200, 200, 16), FREE, dtype=torch.uint8)
    pred = gt.clone()
    gt[:, :, 2] = 11
    gt[125:135, 95:100, 3:7] = 4
    gt[160, :, 3:13] = 15
    gt[40:43, 60:141, 3:9] = 16
    gt[110, 110, 3:7] = 7
    gt[70:74, 20:26, 3:6] = 0
    pred[:, :, 2] = 11
    pred[:, :60, 2] = 13
    pred[128:138, 95:100, 3:7] = 4
    pred[163, :, 3:13] = 15
    pred[40:47, 60:141, 3:9] = 16
    pred[70:74, 20:26, 3:6] = 15
    return pred, gt


def small_metric(backend=None, **options):
    """A metric on a small grid with few rays, for tests that are about something else."""
    classes = ("road", "car", "tree", "free")
    taxonomy = Taxonomy("four", classes, tuple((k, k, k) for k in range(4)), free=3)
    spec = GridSpec((-4.0, -5.0, -1.0), 0.4, (20, 25, 8))
    return RayIoU(taxonomy, spec, directions=lidar_rays()[::37], backend=backend, **options)


def small_frames(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (count, 20, 25, 8)
    gt = torch.where(torch.rand(shape, generator=g) < 0.08, torch.randint(0, 3, shape, generator=g), 3).to(torch.uint8)
    pred = torch.where(torch.rand(shape, generator=g) < 0.3, gt.roll(1, 1), gt)
    origins = [torch.rand(1 + k % 3, 3, generator=g, dtype=torch.float64) * 2 - 1 for k in range(count)]
    return pred, gt, origins


def test_the_published_rays():
    rays = lidar_rays()
    assert rays.shape == (14040, 3) and rays.dtype == torch.float32
    assert rays[0].tolist() == [0.7071067690849304, 0.0, -0.7071067690849304]
    assert rays[4000].tolist() == pytest.approx([0.7637336850166321, 0.6408486366271973, -0.07761338353157043])
    assert rays[-1].tolist() == pytest.approx([0.9759665727615356, -0.017035558819770813, 0.21725346148014069])
    assert rays.double().sum(0).tolist() == pytest.approx([0.0, 0.0, -240.71792], abs=1e-4)
    pitch = torch.asin(rays[::360, 2].double())
    assert len(pitch) == 39 and float(pitch[-1]) == pytest.approx(0.218999839, abs=1e-6)
    assert torch.allclose(rays.norm(dim=1), torch.ones(14040), atol=1e-6)
    rays[0] = 0
    assert lidar_rays()[0, 0] != 0, "callers share no memory"


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_vector_c_integers_exact(backend):
    pred, gt = scene_c()
    metric = RayIoU(backend=backend)
    metric.update(pred, gt, ORIGINS_C)
    rays = metric.state["rays"]
    truth, guess, classes = rays.sum((1, 2)), rays.sum((0, 2)), OCC3D_NUSCENES.taxonomy.classes
    name = lambda counts: {classes[c]: n for c, n in enumerate(counts.tolist()) if n}  # noqa: E731
    assert int(rays.sum()) == 15260
    assert name(truth) == {
        "others": 24, "car": 1435, "pedestrian": 128, "driveable_surface": 8703, "manmade": 4048, "vegetation": 922,
    }  # fmt: skip
    assert name(guess) == {
        "car": 1086, "driveable_surface": 8024, "sidewalk": 1167, "manmade": 3702, "vegetation": 964, "free": 317,
    }  # fmt: skip
    hits = rays.diagonal().cumsum(0)
    assert name(hits[0]) == {"car": 825, "driveable_surface": 7484, "manmade": 208}
    assert name(hits[1]) == {"car": 1005, "driveable_surface": 7484, "manmade": 3250, "vegetation": 872}
    assert name(hits[2]) == {"car": 1007, "driveable_surface": 7484, "manmade": 3655, "vegetation": 922}
    result = metric.compute()
    assert result["RayIoU"] == pytest.approx(0.36677711882976927, abs=1e-12)
    assert [result[f"RayIoU@{n}"] for n in (1, 2, 4)] == pytest.approx(
        [0.18910162759114837, 0.4364007652481394, 0.4748289636500198], abs=1e-12
    )
    assert result.per_class["manmade"]["IoU@2"] == pytest.approx(0.7222222222222222)
    assert np.isnan(result.per_class["barrier"]["IoU@1"]) and result.per_class["sidewalk"]["IoU@1"] == 0
    assert "RayIoU        " in result.table() and "36.68" in result.table()
    for labels, total in ((gt, 646044.2819344997), (pred, 659785.869035244)):
        both = labels.expand(2, -1, -1, -1)
        directions = lidar_rays().double()
        distance = ray_labels(both, ORIGINS_C, directions, metric.rules, "torch")[1]
        assert float(distance.double().sum()) == pytest.approx(total, abs=1e-6)


def test_vector_b():
    metric = RayIoU()
    metric.update_rays(
        pred=[4, 4, 11, 11, 11, 17, 13, 15, 15, 17, 0, 4],
        gt=[4, 4, 4, 11, 11, 11, 11, 15, 15, 7, 0, 0],
        pred_distance=[10.5, 11.5, 10, 5, 8.9, 30, 5, 23.9, 24, 30, 4, 3],
        gt_distance=[10, 10, 10, 5, 5, 5, 5, 20, 20, 8, 3, 3],
    )
    result = metric.compute()
    assert result["RayIoU"] == pytest.approx(0.18148148148148147)
    assert result["RayIoU@1"] == pytest.approx(0.061111111111111116)
    assert result["RayIoU@2"] == pytest.approx(0.19444444444444442)
    assert result["RayIoU@4"] == pytest.approx(0.2888888888888889)
    expected = {
        "others": (0, 0.5, 0.5), "car": (0.2, 0.5, 0.5), "pedestrian": (0, 0, 0),
        "driveable_surface": (1 / 6, 1 / 6, 0.4), "sidewalk": (0, 0, 0), "manmade": (0, 0, 1 / 3),
    }  # fmt: skip
    for name, row in result.per_class.items():
        found = [row[f"IoU@{n}"] for n in (1, 2, 4)]
        assert found == pytest.approx(expected.get(name, [np.nan] * 3), nan_ok=True), name


def test_a_grid_against_itself_is_perfect():
    metric = RayIoU()
    _, gt = scene_c()
    metric.update(gt, gt, [ORIGINS_C])
    result = metric.compute()
    assert result["RayIoU"] == 1.0
    assert {row["IoU@1"] for row in result.per_class.values() if row["gt rays"]} == {1.0}


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_fast_paths_count_like_the_reference(backend):
    pred, gt, origins = small_frames(4)
    gt[0, :, :, 1] = 255
    pred[1, 5] = 255
    origins[2][0] = torch.tensor([9.0, 0.0, 0.3])  # outside, looking in
    origins[3][:, 2] = 60.0  # never enters, nor reaches voxel (0, 0, 0) by more than its label
    metric = small_metric()
    frames = torch.arange(4, dtype=torch.int32).repeat_interleave(torch.tensor([len(o) for o in origins]))
    arguments = (pred, gt, torch.cat(origins), frames, metric.directions(pred.device), metric.rules)
    slow = ray_confusion(*arguments, "reference")
    assert torch.equal(slow, ray_confusion(*arguments, backend))
    assert int(slow.sum()) > 500 and int(slow[4].sum()) > 10 and int(slow[:, 4].sum()) > 10
    assert int(slow.diagonal()[0].sum()) > 100


def test_one_result_from_one_process_and_four_batches_of_one_and_seven():
    pred, gt, origins = small_frames(14)
    whole = small_metric()
    whole.update(pred, gt, origins)
    sevens = small_metric("torch")
    for k in (7, 0):
        sevens.update(pred[k : k + 7].numpy(), gt[k : k + 7].numpy(), [o.numpy() for o in origins[k : k + 7]])
    shares = [small_metric() for _ in range(4)]
    for k in range(14):
        grid = OccupancyGrid(gt[k].long(), whole.spec, whole.taxonomy)
        shares[k % 4].update(pred[k], grid, origins[k], tokens=f"token {k}")
    merged = shares[2].merge_state([shares[0], shares[3]]).merge_state(shares[1])
    assert merged.compute() == whole.compute() == sevens.compute()
    assert merged.frames == whole.frames == 14
    merged.update(pred[:0], gt[:0], [])
    assert merged.compute() == whole.compute()
    copy = small_metric()
    copy.load_state_dict(whole.state_dict())
    assert copy.compute() == whole.compute()
    whole.reset()
    with pytest.raises(ValueError, match="seen no frame"):
        whole.compute()
    assert copy.frames == 14


@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64, ">i4", "u2"])
def test_labels_of_any_integer_type(kind):
    pred, gt, origins = small_frames(1)
    whole, other = small_metric(), small_metric()
    whole.update(pred, gt, origins)
    labels = pred.numpy().astype(kind) if isinstance(kind, str) else pred.to(kind)
    other.update(labels, gt.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0), origins)
    assert torch.equal(whole.state["rays"], other.state["rays"])


def test_states_are_a_few_kilobytes():
    metric = RayIoU()
    assert sum(value.numel() * value.element_size() for value in metric.state.values()) < 12_000


def test_unknown_voxels_stop_rays_and_are_of_no_class():
    metric = small_metric()
    gt = torch.full((20, 25, 8), 3, dtype=torch.uint8)
    gt[:, :, 0] = 255
    metric.update(gt, gt, torch.zeros(1, 3))
    result = metric.compute()
    assert int(metric.state["rays"][4, 4].sum()) > 50
    assert all(row["gt rays"] == row["pred rays"] == 0 for row in result.per_class.values())
    assert np.isnan(result["RayIoU"]) and result.to_json()["figures"]["RayIoU"] is None


def test_definitions_do_not_mix():
    pred, gt, origins = small_frames(1)
    metrics = [small_metric(), small_metric(thresholds=(1, 2)), RayIoU(OPENOCC_V2.taxonomy)]
    metrics[0].update(pred, gt, origins)
    with pytest.raises(ValueError, match=r"do not mix .*thresholds_m: \[1.0, 2.0\] here, \[1.0, 2.0, 4.0\] there"):
        metrics[1].merge_state(metrics[0])
    with pytest.raises(ValueError, match="taxonomy: 'openocc_v2' here, 'four' there"):
        metrics[2].merge_state(metrics[0])
    assert RayIoU(directions=lidar_rays().numpy()).definition == RayIoU().definition
    definition = metrics[0].compute().definition
    assert definition["metric"] == "RayIoU" and definition["thresholds_m"] == [1.0, 2.0, 4.0]
    assert definition["rays"].startswith("380 own rays") and metrics[2].definition["rays"].startswith("39 pitches")


def test_openocc_has_sixteen_classes():
    metric = RayIoU(OPENOCC_V2.taxonomy)
    gt = torch.full((200, 200, 16), 16, dtype=torch.uint8)
    gt[:, :, 1] = 10
    metric.update(gt, gt, [ORIGINS_C])
    result = metric.compute()
    assert len(result.per_class) == 16 and result["RayIoU"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pred": torch.zeros(1, 20, 25, 7, dtype=torch.uint8)},
            r"sample abc: the prediction has shape \(20, 25, 7\)",
        ),
        ({"gt": torch.zeros(20, 25, dtype=torch.uint8)}, r"sample abc: the ground truth must be \[X, Y, Z\]"),
        ({"gt": torch.zeros(2, 20, 25, 8, dtype=torch.uint8)}, "1 predictions for 2 frames"),
        ({"pred": torch.full((20, 25, 8), 4, dtype=torch.uint8)}, "sample abc: the prediction holds class id 4"),
        ({"pred": torch.full((20, 25, 8), 300)}, r"sample abc: the prediction must hold class ids in 0..255, got 300"),
        (
            {"pred": torch.zeros(20, 25, 8)},
            "sample abc: the prediction must hold integer class ids, got torch.float32",
        ),
        ({"origins": torch.tensor([[0.0, float("nan"), 0.0]])}, "sample abc: ray origins hold NaN"),
        ({"origins": torch.zeros(0, 3)}, r"sample abc: ray origins must be \[O, 3\] with O at least 1"),
        ({"origins": [torch.zeros(1, 3)] * 2}, "origins of 2 frames for 1 grids"),
        ({"origins": None}, "sample abc: ray origins are needed"),
        ({"pred": np.array([None])}, "sample abc: the prediction must be numbers, got an array of object"),
        ({"pred": torch.full((20, 25, 8), -1, dtype=torch.int8)}, "sample abc: .* must hold .* got -1..-1"),
        ({"tokens": ["a", "b"]}, "2 tokens for 1 frames"),
    ],
)
def test_bad_frames_are_named(change, message):
    pred, gt, origins = small_frames(1)
    arguments = {"pred": pred, "gt": gt, "origins": origins, "tokens": "abc"} | change
    metric = small_metric()
    with pytest.raises(ValueError, match=message):
        metric.update(**arguments)
    assert metric.frames == 0 and not metric.state["rays"].any()


def test_the_bad_frame_of_a_batch_is_named():
    pred, gt, origins = small_frames(3)
    gt[2, 0, 0, 0] = 9
    with pytest.raises(ValueError, match="sample c: the ground truth holds class id 9"):
        small_metric().update(pred, gt, origins, tokens=["a", "b", "c"])
    signed = pred.int()
    signed[1, 0, 0, 0] = -1
    with pytest.raises(ValueError, match="sample b: the prediction must hold class ids in 0..255, got -1..3"):
        small_metric().update(signed, gt, origins, list("abc"))
    with pytest.raises(ValueError, match="sample b: the prediction has shape"):
        small_metric().update([pred[0].numpy(), pred[1, 1:].numpy()], gt[:2], origins[:2], ["a", "b"])
    origins[1][0, 0] = float("inf")
    with pytest.raises(ValueError, match="frame 1 of the batch: ray origins hold NaN or infinite"):
        small_metric().update(pred, gt.clamp_max(3), origins)


def test_grids_of_another_class_table_are_refused():
    grid = OccupancyGrid(torch.full((200, 200, 16), 16, dtype=torch.uint8), *OPENOCC_V2)
    with pytest.raises(ValueError, match="classes of 'openocc_v2'"):
        RayIoU().update(grid, grid, [ORIGINS_C])
    elsewhere = GridSpec((-50.0, -50.0, -5.0), 0.5, (200, 200, 16))
    grid = OccupancyGrid(grid.labels, elsewhere, OCC3D_NUSCENES.taxonomy)
    with pytest.raises(ValueError, match="sample abc: the prediction is a grid of .*0.5.*spec=grid.spec"):
        RayIoU().update([grid], [grid], [ORIGINS_C], "abc")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": ()}, "thresholds must be"),
        ({"thresholds": (1, 1)}, "different positive metres"),
        ({"directions": torch.zeros(3, 3)}, "finite and not zero"),
        ({"directions": torch.zeros(3)}, r"must be \[R, 3\]"),
        ({"spec": GridSpec((0, 0, 0), (1, 1, 2), (4, 4, 4))}, "cubic voxels"),
    ],
)
def test_bad_definitions(options, message):
    with pytest.raises(ValueError, match=message):
        RayIoU(**options)


def drive(count=30, scene="scene-1"):
    """json:F_origins."""
    lidar2ego = rotation_z(-np.pi / 2)
    lidar2ego[:3, 3] = torch.tensor([0.9858, 0.0, 1.8402])
    frames = []
    for i in range(count):
        pose = rotation_z(0.01 * i)
        pose[:3, 3] = torch.tensor([100 + 3 * i, 50 + 0.02 * i * i, 0.0])
        frames.append(
            SimpleNamespace(
                token=f"{scene}-{i}", scene=scene, timestamp_us=500_000 * i, lidar2ego=lidar2ego, ego2global=pose
            )
        )
    return frames


def test_vector_f_origins_in_any_order_of_the_frames():
    frames = drive()
    expected = [
        [-11.01819, 0.12071, 1.8402], [-5.0192, -0.01959, 1.8402], [3.99055, 0.06975, 1.8402],
        [10.00455, 0.32914, 1.8402], [16.02456, 0.74839, 1.8402], [22.05057, 1.32749, 1.8402],
        [31.10084, 2.49586, 1.8402], [37.14186, 3.47456, 1.8402],
    ]  # fmt: skip
    origins = ray_origins(frames, 4)
    assert origins.dtype == torch.float64
    assert torch.allclose(origins, torch.tensor(expected, dtype=torch.float64), atol=1e-4)
    assert torch.equal(origins, ray_origins(frames[::-1], "scene-1-4"))
    assert len(ray_origins(frames, 4, limit=100)) == 17
    alone = ray_origins(frames[:1], 0)
    assert torch.allclose(alone, torch.tensor([[0.9858, 0, 1.8402]], dtype=torch.float64), atol=1e-6)


def test_origins_of_many_scenes():
    both = scene_origins([*drive(3), *drive(2, "scene-2")])
    assert len(both) == 5 and len(both["scene-1-0"]) == 3 and len(both["scene-2-1"]) == 2
    assert torch.equal(both["scene-1-2"], ray_origins(drive(3), 2))


def test_origins_without_poses_name_the_sample():
    frames = drive(3)
    frames[1].ego2global = None
    with pytest.raises(ValueError, match="sample scene-1-1: its source holds no ego2global"):
        ray_origins(frames)
    frames[1].ego2global = torch.full((4, 4), float("nan"))
    with pytest.raises(ValueError, match="ego2global of sample scene-1-1 holds NaN"):
        ray_origins(frames, 0)
    with pytest.raises(ValueError, match="got none"):
        ray_origins([])
    with pytest.raises(ValueError, match="no frame has the token 'x'"):
        ray_origins(drive(2), "x")


@pytest.mark.gpu
def test_a_gpu_counts_the_same():
    pred, gt = scene_c()
    slow, fast, alone = RayIoU(), RayIoU(), RayIoU()
    origins = [ORIGINS_C, ORIGINS_C[:1] + 0.37]
    slow.update(torch.stack([pred, gt]), torch.stack([gt, pred]), origins)
    fast.update(torch.stack([pred, gt]).cuda(), torch.stack([gt, pred]).cuda(), origins)
    alone.update(pred.cuda(), gt, origins[:1])
    alone.update(gt.cuda(), pred, origins[1:])
    assert torch.equal(slow.state["rays"], fast.state["rays"].cpu())
    assert torch.equal(slow.state["rays"], alone.state["rays"].cpu())
    alone.update((gt + 20).cuda(), gt, origins[:1])
    with pytest.raises(ValueError, match="holds class id"):
        alone.compute()
