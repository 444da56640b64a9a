"""The models taught by 2D labels in benchmarks/perception.py: calibration given back, rays kept, one step."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "occupancy" / "perception"))

from rendered_scene import TINY_GRID, scene_batch  # noqa: E402

from syntheocc.occupancy.perception.transforms import GridTransform  # noqa: E402
from syntheocc.occupancy.rendering.rays import RayLabels  # noqa: E402


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    """A benchmark imports its neighbours as a script does: from its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent == ROOT / "benchmarks":
            del sys.modules[name]


def test_the_calibration_is_in_the_projections():
    """A window 8 rows down, mirrored images and a mirrored grid: intrinsics and poses come out as they went in."""
    from perception_labels2d import cameras_of

    batch = scene_batch(GridTransform(flip_y=True))
    window = torch.eye(4)
    window[1, 2], window[0, 0], window[0, 2] = -8.0, -1.0, 96.0
    ego2img = window @ batch.ego2img
    found = cameras_of(ego2img, 8, 96, torch.tensor([[True, False, True]]))
    torch.testing.assert_close(found.intrinsics, batch.intrinsics, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.image_transforms[0, 0, 0], window)
    torch.testing.assert_close(found.grid_transforms, batch.grid_transforms)
    # The pose is that of a camera: the last twelve numbers hold a rotation.
    pose = found.vectors()[..., -12:].unflatten(-1, (3, 4))[..., :3]
    torch.testing.assert_close(pose @ pose.transpose(-1, -2), torch.eye(3).expand_as(pose), atol=1e-3, rtol=0)


def test_rays_are_taken_as_they_were_kept():
    from perception_labels2d import RAYS, rays_at

    batch = scene_batch(samples=2)
    rays = batch.rays.select(torch.arange(len(batch.rays)) < 1000)
    columns = {"ray_number": torch.bincount(rays.samples, minlength=2)}
    for name in ("origins", "directions", "distance", "depth", "labels", "frames", "cameras", "pixels"):
        values = getattr(rays, name)
        kept = torch.zeros(2, RAYS.num_rays, *values.shape[1:], dtype=values.dtype)
        for sample in range(2):
            own = values[rays.samples == sample]
            kept[sample, : len(own)] = own
        columns[f"ray_{name}"] = kept.to(torch.uint8) if name in ("labels", "frames", "cameras") else kept
    motion = [batch.motion.of_sample(0), batch.motion.of_sample(1)]
    taken, moved = rays_at(columns, motion, torch.tensor([1, 0]))
    expected = RayLabels.collate([rays.of_sample(1), rays.of_sample(0)])
    for name in ("origins", "distance", "labels", "pixels", "samples"):
        assert torch.equal(getattr(taken, name), getattr(expected, name)), name
    assert taken.frame_offsets == (-3, -2, -1, 0, 1, 2, 3) and moved.samples.tolist() == [0, 0, 1, 1]


def test_every_arm_learns_and_answers():
    from perception_labels2d import RAYS
    from perception_models import ARMS, MODELS

    contender = MODELS["labels2d_tiny"]()
    assert contender.rays and contender.preset.spec == TINY_GRID
    batch = scene_batch(samples=2)
    frames = batch.rays.frames + 2  # of three frames around the key frame to their places among seven
    columns = {name: getattr(batch.rays, name) for name in batch.rays._SHAPES} | {"frames": frames}
    batch.rays = RayLabels(**columns, frame_offsets=RAYS.frame_offsets)
    batch.motion.frames += 2
    for name in ("trunk_3d", "volume_2d", "volume_2d_flow", "splatting", "renderocc"):
        model = contender.make(ARMS[name])
        losses = contender.losses(model, batch, None)
        losses["loss"].backward()
        assert torch.isfinite(losses["loss"]) and (("voxel_density" in losses) == (name == "trunk_3d"))
        grids, panoptic = contender.predict(model.eval(), batch.images, batch.ego2img, (0.5, 0.0, 1.1))
        assert panoptic is None and (grids[1] != 17).all() and (grids[2] == 17).all()
        free = (model.labels(model(batch.images, _cameras(batch))) == grids[0]).float().mean()
        assert free > 0.99  # the settings are opacities, the models' own thresholds the opacity 0.5


def _cameras(batch):
    from perception_labels2d import cameras_of

    return cameras_of(batch.ego2img, 8, 96)
