"""Samples from key frames: projections that put points on their pixels, history, augmentation, and what is missing."""

import math
from collections import ChainMap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception import dataset as dataset_module
from syntheocc.occupancy.perception.dataset import (
    SPARSEOCC_CAMERAS,
    FrameLabels,
    KeyImages,
    OccupancyBatch,
    OccupancyFrames,
    Sampling,
    collate,
)
from syntheocc.occupancy.perception.history import ShotHistory
from syntheocc.occupancy.perception.sparseocc import SparseOcc
from syntheocc.occupancy.perception.sparseocc.temporal import OnlinePredictor
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.occupancy.transforms import rotation_z

SPEC = GridSpec((-8.0, -8.0, -1.0), 1.0, (16, 16, 4))
IMAGE = ImageAugmentation(height=32, width=88)
HEIGHT, WIDTH = 90, 160
# A landmark in the world, ahead of the car in all frames.
LANDMARK = torch.tensor([30.0, 2.0, 1.0, 1.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def rig(camera_at):
    yaws = {"CAM_FRONT_LEFT": 55, "CAM_FRONT": 0, "CAM_FRONT_RIGHT": -55}
    return CameraRig({name: camera_at(yaw, focal=100.0, height=HEIGHT, width=WIDTH) for name, yaw in yaws.items()})


def pose(i):
    """Ego of key frame i: 2 m further and a degree to the left each time."""
    ego2global = rotation_z(math.radians(i))
    ego2global[0, 3] = 2.0 * i
    return ego2global


def paint(path, ego2global, camera):
    """A dark picture with a white square where the camera sees the landmark; returns nothing."""
    pixels = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    seen = torch.linalg.inv(ego2global @ camera.cam2ego) @ LANDMARK
    if seen[2] > 0.1:
        u, v, _ = (camera.intrinsics @ seen[:3] / seen[2]).tolist()
        column, row = round(u), round(v)
        if 3 < column < WIDTH - 3 and 3 < row < HEIGHT - 3:
            pixels[row - 2 : row + 3, column - 2 : column + 3] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def frames(rig, tmp_path_factory):
    """Five key frames of scene a and two of scene b, shuffled; the frames of a have five camera sweeps each."""
    root: Path = tmp_path_factory.mktemp("data")
    made = []
    for scene, number in (("a", 5), ("b", 2)):
        for i in range(number):
            paths = {}
            for name, camera in rig.items():
                paths[name] = root / "samples" / name / f"{scene}{i}.png"
                paint(paths[name], pose(i), camera)
            sweeps = []
            for back in range(1, 6) if scene == "a" and i else ():
                at = pose(i - back / 6)
                sweep = {}
                for name, camera in rig.items():
                    path = root / "sweeps" / name / f"{scene}{i}-{back}.png"
                    paint(path, at, camera)
                    sensor2global = at @ camera.cam2ego
                    sweep[name] = {
                        "data_path": str(path),
                        "cam_intrinsic": camera.intrinsics.numpy(),
                        "sensor2global_rotation": sensor2global[:3, :3].T.numpy(),  # transposed, as published
                        "sensor2global_translation": sensor2global[:3, 3].numpy(),
                    }
                sweeps.append(sweep)
            made.append(
                Frame(
                    token=f"{scene}{i}",
                    scene=scene,
                    timestamp_us=10**15 + 500_000 * i + (0 if scene == "a" else 10**9),
                    cameras=rig,
                    image_paths=paths,
                    ego2global=pose(i),
                    lidar2ego=rotation_z(math.pi / 2),
                    extras={"sweeps": sweeps},
                )
            )
    return [made[i] for i in (3, 6, 0, 4, 2, 5, 1)]


def labels_of(frame):
    semantics = torch.randint(0, 18, SPEC.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return FrameLabels(semantics, (semantics == 4).int() * 300)


def dataset_of(frames, num_frames=3, grid=SPEC, labels=labels_of, **options):
    place = {key: options.pop(key) for key in ("cameras", "seed", "rounds", "unreadable") if key in options}
    sampling = Sampling(num_frames=num_frames, image=IMAGE, draft=False, **options)
    return OccupancyFrames(frames, sampling, grid, labels, **place)


def spots(batch, ego_point):
    """(t, v, distance in pixels between the white square and where the matrices put the landmark)."""
    found = []
    for t in range(batch.images.shape[1]):
        for v in range(batch.images.shape[2]):
            x, y, z, _ = (batch.ego2img[0, t, v].double() @ ego_point).tolist()
            u, w = x / z, y / z
            pixels = batch.images[0, t, v].float().mean(0) - 60
            pixels = pixels.clamp_min(0)
            if z > 0 and 2 < u < IMAGE.width - 3 and 2 < w < IMAGE.height - 3:
                rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(88.0), indexing="ij")
                center = (pixels * columns).sum() / pixels.sum(), (pixels * rows).sum() / pixels.sum()
                found.append((t, v, math.hypot(center[0] - u, center[1] - w)))
    return found


def test_points_land_on_their_pixels_in_every_frame(frames):
    """The landmark's place in the current ego frame, projected into old images at their own poses."""
    data = dataset_of(frames)
    assert data.cameras == ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT")
    for token in ("a3", "a0", "b1"):
        frame = next(f for f in frames if f.token == token)
        batch = data.sample(frame)
        assert tuple(batch.images.shape) == (1, 3, 3, 3, 32, 88) and batch.images.dtype == torch.uint8
        found = spots(batch, torch.linalg.inv(frame.ego2global) @ LANDMARK)
        assert {t for t, _, _ in found} == {0, 1, 2} and max(d for *_, d in found) < 1.2


def test_augmentation_moves_images_grid_and_matrices_together(frames, monkeypatch):
    turns, draw = [], dataset_module.draw_grid_transform
    monkeypatch.setattr(dataset_module, "draw_grid_transform", lambda *a: turns.append(draw(*a)) or turns[-1])
    data = dataset_of(frames, training=True, rounds=3)
    seen, mirrored = 0, 0
    for index in range(len(data)):
        batch, frame = data[index], data.frames[index % 7]
        turn = turns[-1].matrix()
        found = spots(batch, turn @ torch.linalg.inv(frame.ego2global) @ LANDMARK)
        seen += len(found)
        assert all(distance < 1.6 for *_, distance in found), found
        # An image that is mirrored but not the grid, or the other way round, turns right into left.
        determinant = float(torch.linalg.det(batch.ego2img[0, 0, 0, :3, :3]) * torch.linalg.det(turn[:3, :3]))
        mirrored += determinant < 0
        centers = torch.cat([SPEC.centers(), torch.ones(*SPEC.shape, 1, dtype=torch.float64)], -1)
        old, valid = SPEC.index_of((centers @ torch.linalg.inv(turn).T)[..., :3])
        expected = torch.where(valid, labels_of(frame).semantics[old.unbind(-1)], torch.tensor(255, dtype=torch.uint8))
        # All but the centres that a turn puts on a face.
        assert float((batch.semantics[0] == expected).float().mean()) > 0.99
        assert torch.equal(batch.instances[0] == 300, batch.semantics[0] == 4)
    assert seen > 40 and 4 < mirrored < 17


def tokens_of(shots):
    return [next(iter(s.cameras.values())).path.stem for s in shots]


def test_key_frames_before_a_frame_in_shuffled_scenes(frames):
    history = ShotHistory(frames)
    assert tokens_of(history.key_shots("a4", 7)) == ["a3", "a2", "a1", "a0", "a0", "a0", "a0"]
    assert tokens_of(history.key_shots("a4", 2)) == ["a3", "a2"]
    assert tokens_of(history.key_shots("b0", 2)) == ["b0", "b0"]  # a scene's start: itself
    assert history.previous("b0") is None and history.previous("b1").token == "b0"
    assert history.key_shots("a4", 0) == []


def test_all_shots_before_a_frame(frames):
    """Five sweeps, the key frame before, its sweeps, ...: key frames are entries 5, 11, 17, ..."""
    history = ShotHistory(frames)
    shots = history.shots("a4")
    assert len(shots) == 24 and [i for i, s in enumerate(shots) if s.is_key] == [5, 11, 17, 23]
    assert tokens_of(shots)[:7] == ["a4-1", "a4-2", "a4-3", "a4-4", "a4-5", "a3", "a3-1"]
    assert history.shots("a0") == [] and len(history.shots("a4", most=8)) == 8


def test_random_spacing_is_the_published_one(frames):
    history = ShotHistory(frames)
    names = tokens_of(history.shots("a4"))
    g = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        got = tokens_of(history.random_shots("a4", 3, g))
        spacing = names.index(got[0]) + 1
        assert got == [names[spacing - 1], names[2 * spacing - 1], names[3 * spacing - 1]]
        seen.add(spacing)
    assert seen == {4, 5, 6, 7, 8}  # 24 shots: up to min(8, 24 // 3)
    # 12 shots for 7 images: only a spacing of 1; 6 shots: all, the last one repeated; none: the frame itself.
    assert tokens_of(history.random_shots("a2", 7, g)) == tokens_of(history.shots("a2"))[:7]
    assert tokens_of(history.random_shots("a1", 7, g)) == [*tokens_of(history.shots("a1")), "a0"]
    assert tokens_of(history.random_shots("a0", 2, g)) == ["a0", "a0"]
    assert tokens_of(history.random_shots("b1", 2, g)) == ["b0", "b0"]  # no sweeps: key frames


def test_a_sweep_that_lost_a_camera_is_replaced_by_the_one_after_it(frames):
    changed = []
    for frame in frames:
        sweeps = [dict(s) for s in frame.extras["sweeps"]]
        if frame.token == "a4":
            del sweeps[2]["CAM_FRONT"]
            del sweeps[0]["CAM_FRONT"]
        changed.append(replace(frame, extras={"sweeps": sweeps}))
    assert tokens_of(ShotHistory(changed).shots("a4"))[:4] == ["a4", "a4-2", "a4-2", "a4-4"]


def test_lidar_sweeps_are_no_images(frames):
    lidar = [{"data_path": "x.bin", "sensor2lidar_rotation": np.eye(3), "type": "lidar"}]
    history = ShotHistory([replace(f, extras={"sweeps": lidar}) for f in frames])
    assert tokens_of(history.shots("a2")) == ["a1", "a0"]


def test_scenes_without_names_are_told_by_time_and_single_frames_repeat(frames):
    nameless = [replace(f, scene="", extras={}) for f in frames]
    history = ShotHistory(nameless)
    assert tokens_of(history.key_shots("a2", 3)) == ["a1", "a0", "a0"]
    assert history.previous("b0") is None  # 1000 s later
    # Another car at the same time, a kilometre away; and a first frame that says so by having no sweeps.
    away = next(f for f in nameless if f.token == "a1")
    moved = away.ego2global.clone()
    moved[0, 3] += 1000
    other = replace(away, token="c", timestamp_us=away.timestamp_us + 1000, ego2global=moved)
    history = ShotHistory([*nameless, other])
    assert history.previous("c") is None and history.previous("a2").token == "a1"
    starts = [replace(f, scene="", extras={"sweeps": [] if f.token == "a2" else [{}]}) for f in frames]
    assert ShotHistory(starts).previous("a2") is None and ShotHistory(starts).previous("a3").token == "a2"
    alone = replace(nameless[0], ego2global=None)
    batch = dataset_of([alone], labels=None).sample(alone)
    assert batch.semantics is None and torch.equal(batch.images[:, 0], batch.images[:, 2])
    assert torch.equal(batch.ego2img[:, 0], batch.ego2img[:, 2])
    linked = [replace(f, prev="a0" if f.token == "a4" else None) for f in frames]
    assert ShotHistory(linked).previous("a4").token == "a0"
    with pytest.raises(ValueError, match="a sample is there twice"):
        ShotHistory([frames[0], frames[0]])


def test_missing_cameras_are_black_and_say_so(frames):
    partial = [f.select_cameras(["CAM_FRONT", "CAM_FRONT_RIGHT"]) if f.token == "a3" else f for f in frames]
    data = dataset_of(partial, cameras=SPARSEOCC_CAMERAS[:3])
    for token, t in (("a3", 0), ("a4", 1)):
        batch = data.sample(next(f for f in partial if f.token == token))
        gone = (batch.ego2img[0] == 0).flatten(2).all(-1)
        assert gone.nonzero().tolist() == [[t, 2]]
        assert int(batch.images[0, t, 2].max()) == 0 and int(batch.images[0, t, 1].max()) > 0


def test_files_that_are_gone_or_damaged(frames, tmp_path):
    frame = next(f for f in frames if f.token == "a3")
    gone = replace(frame, image_paths={**frame.image_paths, "CAM_FRONT": tmp_path / "gone.png"})
    rest = [f for f in frames if f is not frame]
    with pytest.raises(ValueError, match="gone.png: cannot be read"):
        dataset_of([gone, *rest])[0]
    assert dataset_of([gone, *rest], unreadable=lambda token, reason: (token, reason[-30:]))[0][0] == "a3"
    batch = dataset_of([gone, *rest], allow_missing_files=True)[0]
    assert (batch.ego2img[0] == 0).flatten(2).all(-1).nonzero().tolist() == [[0, 0]]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = replace(frame, image_paths={"CAM_FRONT": tmp_path / "broken.png"})
    with pytest.raises(ValueError, match="broken.png"):
        dataset_of([broken, *rest], allow_missing_files=True)[0]
    blind = replace(frame, image_paths={})
    with pytest.raises(ValueError, match="sample a3: none of CAM_FRONT, .* has a picture"):
        dataset_of([blind, *rest])[0]


def test_lidar_grids_and_wrong_labels(frames):
    frame = frames[0]
    ego, lidar = (
        dataset_of([frame], grid=replace(SPEC, frame=name), labels=None).sample(frame).ego2img.double()
        for name in ("ego", "lidar")
    )
    assert torch.allclose(lidar, ego @ frame.lidar2ego, atol=1e-3)
    with pytest.raises(ValueError, match="semantics of shape"):
        dataset_of([frame], labels=lambda f: FrameLabels(torch.zeros(2, 2, 2, dtype=torch.uint8)))[0]
    with pytest.raises(ValueError, match="camera frame"):
        dataset_of([frame], grid=replace(SPEC, frame="camera"))
    with pytest.raises(ValueError, match="lidar2ego is unknown"):
        dataset_of([replace(frame, lidar2ego=None)], grid=replace(SPEC, frame="lidar"))[0]


def test_current_images_alone_for_models_that_remember(frames):
    whole, current = dataset_of(frames), dataset_of(frames, current_only=True)
    for index in range(7):
        full, part = whole[index], current[index]
        assert tuple(part.images.shape[:3]) == (1, 1, 3) and torch.equal(part.images[:, 0], full.images[:, 0])
        assert torch.equal(part.ego2img, full.ego2img) and part.shots == full.shots
        # The older images are the current ones of the frames that the shots name.
        for t, token in enumerate(full.shots[0]):
            assert torch.equal(whole.images_of(token), full.images[0, t])
    assert whole[0].shots == [["a3", "a2", "a1"]]
    with pytest.raises(ValueError, match="current_only is for predicting"):
        dataset_of(frames, training=True, current_only=True)


def test_a_drive_online_in_any_order_is_the_drive_offline(frames):
    """From files to grids: remembered feature maps, images read on demand, a scene's start, two scenes."""
    torch.manual_seed(0)
    model = SparseOcc.from_preset("tiny", num_frames=3).eval()
    torch.nn.init.zeros_(model.head.mask_decoder.class_head.bias)  # or nothing would be confident enough to be seen
    height, width = model.config.image_size
    image = ImageAugmentation(height=height, width=width)

    def dataset(**options):
        sampling = Sampling(num_frames=3, image=image, draft=False, **options)
        return OccupancyFrames(frames, sampling, model.config.grid)

    whole, current = dataset(), dataset(current_only=True)
    online = OnlinePredictor(model)
    images, grids = KeyImages(current), []
    assert list(images) == [f.token for f in frames] and len(images) == 7 and "a9" not in images
    with pytest.raises(KeyError):
        images["a9"]
    for index in range(7):
        batch = current[index]
        known = ChainMap({batch.tokens[0]: batch.images[0, 0]}, images)
        got = online(batch.shots, known, batch.ego2img).semantics
        expected = model.predict(whole[index].images, whole[index].ego2img).semantics
        assert torch.equal(got, expected) and len(got.unique()) > 1
        grids.append(got)
    assert not any(torch.equal(one, other) for one, other in zip(grids, grids[1:], strict=False))


def same(one, other):
    return torch.equal(one.images, other.images) and torch.equal(one.ego2img, other.ego2img)


def test_samples_depend_on_their_index_alone_and_rounds_differ(frames):
    data = dataset_of(frames, training=True, rounds=2, seed=5)
    assert len(data) == 14 and same(data[3], data[3]) and not same(data[3], data[10])
    assert not same(data[3], dataset_of(frames, training=True, rounds=2, seed=6)[3])
    assert sorted(data.order(0)) == list(range(7)) and sorted(data.order(1)) == list(range(7, 14))
    assert data.order(0) == data.order(0) and sorted(data.order(2)) == list(range(7))
    assert [i - 7 for i in data.order(1)] != data.order(0)
    test = dataset_of(frames, rounds=2)
    assert same(test[3], test[10])


def test_batches_keep_channels_last_and_name_what_is_uneven(frames):
    data = dataset_of(frames, training=True)
    batch = collate([data[0], data[1]])
    assert isinstance(batch, OccupancyBatch) and batch.tokens == [frames[0].token, frames[1].token]
    assert tuple(batch.images.shape) == (2, 3, 3, 3, 32, 88) and batch.images.permute(0, 1, 2, 4, 5, 3).is_contiguous()
    assert torch.equal(batch.images[1:], data[1].images) and tuple(batch.semantics.shape) == (2, 16, 16, 4)
    assert batch.photometric.hue.shape == (18,) and batch.to("cpu").tokens == batch.tokens
    with pytest.raises(ValueError, match=f"samples {frames[1].token} have no semantics"):
        collate([data[0], dataset_of(frames, training=True, labels=None)[1]])
    assert collate([dataset_of(frames, labels=None)[0]]).semantics is None


def test_worker_processes_give_the_same_batches(frames):
    data = dataset_of(frames, labels=None)
    loader = torch.utils.data.DataLoader(data, batch_size=3, collate_fn=collate, num_workers=1)
    for start, batch in zip((0, 3, 6), loader, strict=True):
        assert same(batch, collate([data[i] for i in range(start, min(start + 3, 7))]))
