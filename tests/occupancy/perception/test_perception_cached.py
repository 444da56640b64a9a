"""Frames held in memory give the samples that the files give."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.cached import CachedFrames, FrameStore, store_frames
from syntheocc.occupancy.perception.dataset import FrameLabels, OccupancyFrames, Sampling, collate
from syntheocc.occupancy.perception.transforms import ImageAugmentation

SPEC = GridSpec((-8.0, -8.0, -1.0), 1.0, (16, 16, 4))
IMAGE = ImageAugmentation(height=32, width=80)


@pytest.fixture(scope="module")
def frames(camera_at, tmp_path_factory):
    """Three key frames of one scene and one of another, smooth pictures of 60 x 100 pixels, in no order."""
    root = tmp_path_factory.mktemp("pictures")
    rig = CameraRig({f"C{yaw}": camera_at(yaw, focal=60.0, height=60, width=100) for yaw in (0, 90)})
    y, x = np.mgrid[:60, :100]
    made = []
    for i, scene in enumerate("aaab"):
        paths = {}
        for v, name in enumerate(rig):
            pixels = np.stack([127 + 100 * np.sin((x + 9 * i) / 15), 127 + 100 * np.cos(y / 12 + v), x + y], -1)
            paths[name] = root / f"{i}{name}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[name])
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = 2.0 * i
        made.append(Frame(f"f{i}", scene, 10**15 + 500_000 * i, rig, paths, ego2global=pose))
    return [made[i] for i in (2, 0, 3, 1)]


def labels_of(frame):
    g = torch.Generator().manual_seed(int(frame.token[1]))
    semantics = torch.randint(0, 18, SPEC.shape, generator=g, dtype=torch.uint8)
    return FrameLabels(semantics, (semantics == 4).long() * 70000)


def both(frames, labels=labels_of, rounds=1, **options):
    sampling = Sampling(num_frames=3, image=IMAGE, draft=False, **options)
    files = OccupancyFrames(frames, sampling, SPEC, labels, seed=3, rounds=rounds)
    return files, CachedFrames(store_frames(files), sampling, SPEC, seed=3, rounds=rounds)


def assert_same(one, other, tolerance):
    assert one.tokens == other.tokens and one.shots == other.shots
    torch.testing.assert_close(one.ego2img, other.ego2img, rtol=1e-5, atol=1e-3)
    for name in ("intrinsics", "image_transforms", "grid_transforms"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-3)
    difference = (one.images.int() - other.images.int()).abs()
    assert one.images.shape == other.images.shape and float(difference.float().mean()) < tolerance
    if one.semantics is not None:
        assert torch.equal(one.semantics, other.semantics) and torch.equal(one.instances, other.instances)


def test_test_samples_are_those_of_the_files(frames):
    files, cached = both(frames)
    assert len(cached) == 4 and [cached[i].shots[0] for i in range(4)] == [
        ["f2", "f1", "f0"], ["f0", "f0", "f0"], ["f3", "f3", "f3"], ["f1", "f0", "f0"],
    ]  # fmt: skip
    for i in range(4):
        assert_same(files[i], cached[i], 0.01)
    assert int(cached[0].instances.max()) == 70000
    current = both(frames, current_only=True)
    assert_same(current[0][0], current[1][0], 0.01)


def test_training_samples_are_those_of_the_files(frames):
    files, cached = both(frames, training=True, rounds=3)
    for i in range(12):
        one, other = files[i], cached[i]
        assert_same(one, other, 2.5)  # bilinear from the scaled picture against bicubic from the whole one
        assert torch.equal(one.photometric.hue, other.photometric.hue)
    assert cached.order(1) == files.order(1) and sorted(cached.order(4)) == [4, 5, 6, 7]
    batch = collate([cached[0], cached[5]])
    assert tuple(batch.images.shape) == (2, 3, 2, 3, 32, 80) and batch.photometric.hue.shape == (12,)


def test_turned_images_and_draws_of_each_camera(frames):
    """The published recipe of OccFlowNet: each camera has its own draw, which its frames share, and is turned."""
    image = replace(IMAGE, max_rotation=0.2, per_camera=True)
    sampling = Sampling(num_frames=3, image=image, draft=False, training=True, photometric=False)
    files = OccupancyFrames(frames, sampling, SPEC, seed=3)
    cached = CachedFrames(store_frames(files), sampling, SPEC, seed=3)
    for i in range(4):
        assert_same(files[i], cached[i], 3.0)
        a = files[i].image_transforms[0]
        assert torch.equal(a[0], a[1]) and torch.equal(a[0], a[2]) and not torch.equal(a[0, 0], a[0, 1])
        assert a[0, 0, 0, 1] != 0


def test_a_projection_is_made_of_what_comes_with_it(frames):
    """ego2img = image transform @ intrinsics @ ego2cam @ inv(grid transform)."""
    sample = both(frames, training=True)[0][0]
    k = torch.eye(4).repeat(3, 2, 1, 1)
    k[..., :3, :3] = sample.intrinsics[0]
    ego2cam = torch.linalg.inv(sample.image_transforms[0] @ k) @ sample.ego2img[0] @ sample.grid_transforms[0]
    (frame,) = [f for f in frames if f.token == "f2"]
    for v, camera in enumerate(frame.cameras.values()):
        torch.testing.assert_close(torch.linalg.inv(ego2cam[0, v]), camera.cam2ego.float(), atol=1e-3, rtol=0)


def test_the_current_frame_stands_in_for_frames_before_the_scene(frames):
    files, cached = both(frames, missing="current")
    for dataset in (files, cached):
        assert [dataset[i].shots[0] for i in range(4)] == [
            ["f2", "f1", "f0"], ["f0", "f0", "f0"], ["f3", "f3", "f3"], ["f1", "f0", "f1"],
        ]  # fmt: skip


def test_missing_cameras_and_labels(frames):
    partial = [f.select_cameras(["C90"]) if f.token == "f1" else f for f in frames]
    files, cached = both(partial, labels=None)
    for i in range(4):
        assert_same(files[i], cached[i], 0.01)
    gone = (cached[3].ego2img[0] == 0).flatten(2).all(-1)
    assert gone.nonzero().tolist() == [[0, 0]] and cached[3].semantics is None
    with pytest.raises(ValueError, match="some frames have semantics"):
        both(frames, labels=lambda f: labels_of(f) if f.token == "f0" else None)


def test_stores_that_do_not_fit_are_named(frames):
    files, cached = both(frames)
    store = cached.store
    for changes, message in (
        (dict(tokens=["a"]), "1 tokens, but images"),
        (dict(previous=store.previous + 4), "previous names a row"),
        (dict(cam2global=store.cam2global[:, :1]), "cam2global must be"),
        (dict(semantics=store.semantics[:2]), "4 frames but 2 semantics"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(store, **changes)
    assert isinstance(store, FrameStore)
    with pytest.raises(ValueError, match="the grid is"):
        CachedFrames(store, files.sampling, GridSpec((0.0, 0.0, 0.0), 1.0, (2, 2, 2)))
    with pytest.raises(ValueError, match="give a generator"):
        CachedFrames(store, replace(files.sampling, training=True), SPEC).sample(0)
