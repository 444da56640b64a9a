"""Samples of KITTI trees, against a scene that can be computed by hand (`kitti_scene`)."""

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from kitti_scene import CLASSES, make_old, pixel_of, render, scene_grid, write_planes
from PIL import Image

from syntheocc.engine.loading import BadSample
from syntheocc.occupancy.data import kitti
from syntheocc.occupancy.data.downsampling import downsample_labels
from syntheocc.occupancy.data.semantic_kitti_frames import completion_frames
from syntheocc.occupancy.perception.occdepth.augmentation import StereoAugmentation
from syntheocc.occupancy.perception.occdepth.batch import NO_TILE, StereoBatch, collate
from syntheocc.occupancy.perception.occdepth.dataset import StereoFrames
from syntheocc.occupancy.perception.occdepth.frustums import frustum_tiles
from syntheocc.occupancy.perception.occdepth.indoor_sources import stereo_source
from syntheocc.occupancy.perception.occdepth.presets import preset

CROPPED = (90, 300)  # of pictures of 94 x 310: no scaling
TINY = preset("tiny").model
POINT = (8.05, 0.4, -0.6)  # on the car's back


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("kitti")
    write_planes(root, "00", depth=True)
    return root


@pytest.fixture
def copy(tree, tmp_path):
    """A tree of the test's own."""
    return shutil.copytree(tree, tmp_path / "copy")


def samples(root, config=TINY, augmentation=None, views=2, frames=None, rounds=1, unreadable=None, **source):
    config = replace(config, num_views=views)
    frames = completion_frames(root, ["00"], views) if frames is None else frames
    return StereoFrames(stereo_source(config, frames, **source), augmentation, 0, rounds, unreadable)


def test_what_a_sample_holds(tree):
    data = samples(tree, depth="stereo")
    sample = data[0]
    assert sample.tokens == ["00_000000"] and [frame.token for frame in data.frames] == ["00_000000", "00_000005"]
    assert sample.images.shape == (1, 2, 3, 64, 208) and sample.images.dtype == torch.float32
    assert sample.velo2img.shape == (1, 2, 4, 4) and sample.velo2img.dtype == torch.float64
    assert sample.origin.tolist() == [[0.0, -25.6, -2.0]]
    assert float(sample.baseline) == pytest.approx(0.5324, abs=1e-3)
    assert sample.depth.shape == (1, 1, 64, 208) and sample.frustums.shape == (1, 2, 64, 64, 8)
    labels = scene_grid().labels.numpy()
    assert torch.equal(sample.semantics[0], torch.from_numpy(downsample_labels(labels, 4)))
    assert torch.equal(sample.coarse[0], torch.from_numpy(downsample_labels(labels, 16)))
    assert torch.equal(sample.known, sample.semantics != 255) and bool(sample.known.any()) and not sample.known.all()
    assert not sample.virtual and len(sample) == 1 and sample.occluded is None


def test_targets_at_full_size_are_the_files(tree):
    config = replace(preset("kitti_b3").model, image_size=CROPPED, occluded_head=True)
    source = samples(tree, config).source
    truth = source.truth(source.frames[0])
    labels = scene_grid().labels
    assert torch.equal(torch.from_numpy(truth.semantics), labels)
    assert np.array_equal(truth.coarse, downsample_labels(labels.numpy(), 8)) and truth.coarse.shape == (32, 32, 4)
    assert np.array_equal(truth.occluded, labels.numpy() == 255)
    assert torch.equal(source.semantics(source.frames[0]), labels)


@pytest.mark.parametrize("size", [TINY.image_size, CROPPED])
def test_points_are_seen_where_they_are_projected_mirrored_or_not(copy, size):
    """A red spot on the car, painted where each camera sees it, is found by `velo2img` in every sample."""
    (frame, *_) = completion_frames(copy, ["00"])
    for name, camera in frame.cameras.items():
        image, _ = render(camera)
        seen, _ = camera.project(camera.ego2cam[:3, :3] @ torch.tensor(POINT).double() + camera.ego2cam[:3, 3])
        u, v = (round(x) for x in seen.tolist())
        image[v - 3 : v + 4, u - 3 : u + 4] = (255, 0, 0)
        Image.fromarray(image).save(frame.image_paths[name])
    data = samples(copy, replace(TINY, image_size=size), StereoAugmentation(jitter=0), rounds=8, labels=False)
    flips = set()
    for index in range(0, len(data), 2):
        sample = data[index]
        flips.add(bool(sample.flipped))
        for image, matrix in zip(sample.images[0], sample.velo2img[0], strict=True):
            u, v, z = pixel_of(matrix, POINT)
            red = image[0] - image[1]
            rows, columns = torch.nonzero(red > 0.8 * red.max(), as_tuple=True)
            assert (float(columns.float().mean()), float(rows.float().mean())) == pytest.approx((u, v), abs=0.75)
        plain = data.source.frames[0].cameras["image_2"]
        assert z == pytest.approx(POINT[0] - 0.27, abs=0.1) and plain.width == 310
        assert sample.semantics is None and sample.coarse is None and sample.frustums is None
    assert flips == {True, False}


def test_depth_goes_with_the_picture(tree):
    """The teacher's depth at a voxel's pixel is the voxel's distance, in mirrored and scaled samples too."""
    for config in (TINY, replace(TINY, image_size=CROPPED)):
        for depth in ("stereo", "lidar"):
            data = samples(tree, config, StereoAugmentation(jitter=0), rounds=6, depth=depth, labels=False)
            flips = set()
            for index in range(0, 12, 2):
                sample = data[index]
                flips.add(bool(sample.flipped))
                assert sample.depth.shape[1] == (1 if depth == "stereo" else 2)
                for picture, matrix in zip(sample.depth[0], sample.velo2img[0], strict=False):
                    for y in (-0.8, 0.0, 0.8):
                        u, v, z = pixel_of(matrix, (8.05, y, -0.6))
                        near = picture[round(v) - 2 : round(v) + 3, round(u) - 2 : round(u) + 3]
                        assert near[near > 0].median() == pytest.approx(z, abs=0.01)
            assert flips == {True, False}


def test_tiles_are_those_of_the_picture_before_the_flip(tree):
    data = samples(tree, augmentation=StereoAugmentation(jitter=0), rounds=6)
    plain = samples(tree)[0]
    want = frustum_tiles(plain.velo2img[0], plain.origin[0], TINY.grid, TINY.image_size, TINY.frustum_tiles)
    for index in range(6):
        assert torch.equal(data[index].frustums[0], want)
    assert (want != NO_TILE).any(0).float().mean() > 0.3
    assert data[0].frustums.data_ptr() == data[2].frustums.data_ptr()  # one recording, one computation


def test_both_views_get_the_same_colours_unless_asked(tree):
    shared = samples(tree, augmentation=StereoAugmentation(flip=0, jitter=0.4), rounds=3)
    own = samples(tree, augmentation=StereoAugmentation(flip=0, jitter=0.4, shared=False), rounds=3)
    plain = samples(tree)[0].images[0]

    def gains(data, index):
        """How each view's brightness changed."""
        images = data[index].images[0]
        return [float(a.std() / b.std()) for a, b in zip(images, plain, strict=True)]

    same, apart = gains(shared, 2), gains(own, 2)
    assert same[0] == pytest.approx(same[1], rel=0.03) and abs(same[0] - 1) > 0.01
    assert abs(apart[0] / apart[1] - 1) > 0.05
    # A sample depends on its index alone.
    assert torch.equal(shared[4].images, shared[4].images) and not torch.equal(shared[2].images, shared[4].images)
    orders = [shared.order(epoch) for epoch in range(3)]
    assert sorted(sum(orders, [])) == list(range(6)) and all({i % 2 for i in order} == {0, 1} for order in orders)


def test_samples_batch_move_and_travel_to_readers(tree):
    data = samples(tree, depth="stereo")
    sent = pickle.loads(pickle.dumps(data))
    batch = collate([data[0], sent[1]])
    assert batch.tokens == ["00_000000", "00_000005"] and batch.images.shape == (2, 2, 3, 64, 208)
    assert batch.images[0].permute(0, 2, 3, 1).is_contiguous()
    assert batch.frustums.shape[0] == len(batch) == 2 and batch.to("cpu").known.dtype == torch.bool
    with pytest.raises(ValueError, match="samples 00_000005 have no depth, others of the batch have"):
        collate([data[0], samples(tree)[1]])
    with pytest.raises(
        ValueError, match=r"sample 00_000000: images is \[2, 3, 90, 300\], that of 00_000000 \[2, 3, 64"
    ):
        collate([data[0], samples(tree, replace(TINY, image_size=CROPPED), depth="stereo")[0]])
    assert isinstance(batch, StereoBatch) and batch.depth_valid.float().mean() > 0.9


def test_strong_augmentation_blurs_greys_and_erases(tree):
    generator = torch.Generator().manual_seed(0)
    draws = [StereoAugmentation(strong=True).draw(2, generator).strong for _ in range(400)]
    assert all(first == second for first, second in draws)
    blurred = sum(first.blur is not None for first, _ in draws) / 400
    assert blurred == pytest.approx(0.3, abs=0.08)
    grey, erased = (sum(bool(getattr(first, name)) for first, _ in draws) / 400 for name in ("grey", "erased"))
    assert grey == pytest.approx(0.03, abs=0.02) and erased == pytest.approx(0.15, abs=0.06)
    data = samples(tree, augmentation=StereoAugmentation(jitter=0, flip=0, strong=True), rounds=30, labels=False)
    plain = samples(tree, labels=False)[0].images
    changed = [data[2 * i].images for i in range(30)]
    holes = [int((image == 0).all(1).sum()) for image in (c[0] for c in changed)]
    assert any(torch.equal(c, plain) for c in changed) and any(not torch.equal(c, plain) for c in changed)
    area = max(holes) / (2 * 64 * 208)
    assert 0.008 < area < 0.022


def test_the_old_release_is_put_right_with_a_warning(copy):
    full = replace(preset("kitti_b3").model, image_size=CROPPED, frustum_loss=False)

    def labels(**settings):
        """All but the last voxel, which the old writer lost."""
        return samples(copy, full, **settings)[0].semantics.flatten()[:-1]

    want = labels()
    make_old(copy / "sequences/00")
    with pytest.warns(UserWarning, match="sequences/00/voxels: voxels released before 2020-08-24, one element late"):
        assert torch.equal(labels(), want)
    shutil.rmtree(copy / "sequences/00/velodyne")  # and without scans, which few people unpack
    with pytest.warns(UserWarning, match="one element late"):
        assert torch.equal(labels(), want)
    assert not torch.equal(labels(release="current"), want)


def test_a_damaged_first_frame_does_not_hide_the_release(copy):
    want = samples(copy)[1].semantics
    make_old(copy / "sequences/00")
    (copy / "sequences/00/voxels/000000.bin").write_bytes(b"cut")
    with pytest.warns(UserWarning, match="one element late"):
        assert torch.equal(samples(copy)[1].semantics, want)
    (copy / "sequences/00/voxels/000005.bin").write_bytes(b"cut too")
    with pytest.raises(ValueError, match=r"voxels/000000.bin: 3 bytes, want 262144"):
        samples(copy)


def broken(root, number=0, **settings):
    """The reason why a sample cannot be read, in a dataset that goes on."""
    found = samples(root, unreadable=BadSample, **settings)[number]
    assert isinstance(found, BadSample) and found.token.startswith("00_")
    return found.reason


def test_a_missing_second_camera_is_named_and_one_view_does_without(copy):
    (copy / "sequences/00/image_3/000000.png").unlink()
    assert "sequences/00/image_3/000000.png: no such picture" in (reason := broken(copy))
    assert "a model of one view" in reason
    assert samples(copy)[1].tokens == ["00_000005"]  # the others are not lost
    mono = samples(copy, views=1)[0]
    assert mono.images.shape[1] == mono.velo2img.shape[1] == mono.frustums.shape[1] == 1 and float(mono.baseline) == 0
    shutil.rmtree(copy / "sequences/00/image_3")
    with pytest.raises(ValueError, match="sequences/00/image_3: no pictures NNNNNN.png; is this camera's part"):
        samples(copy)
    assert samples(copy, views=1)[0].tokens == ["00_000000"]


def test_a_calibration_without_tr_is_named(copy):
    path = copy / "sequences/00/calib.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(
        ValueError, match="sequences/00/calib.txt: no row Tr; it has P0, P1, P2, P3.* have the velodyne"
    ):
        samples(copy)


def test_voxels_of_the_wrong_size_are_named(copy):
    folder = copy / "sequences/00/voxels"
    path = folder / "000005.label"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    assert "voxels/000005.label: 4194302 bytes, want 4194304" in broken(copy, 1, release="current")
    path.write_bytes(whole)
    (folder / "000005.invalid").write_bytes(b"\0" * 100)
    assert "voxels/000005.invalid: 100 bytes, want 262144" in broken(copy, 1, release="current")
    path.unlink()
    assert "voxels/000005.label: no such file" in broken(copy, 1, release="current")
    assert samples(copy, labels=False)[1].semantics is None


def test_pictures_of_another_sequence_are_named(copy):
    folder = copy / "sequences/00"
    image = Image.open(folder / "image_2/000005.png")
    image.crop((0, 0, 306, 94)).save(folder / "image_2/000005.png")
    assert "image_2/000005.png: the picture has 94 x 306 pixels" in broken(copy, 1)
    (folder / "image_2/000005.png").write_bytes((folder / "image_2/000000.png").read_bytes()[:-500])
    assert "image_2/000005.png: cannot be read" in broken(copy, 1)
    Image.fromarray(np.zeros((94, 306, 3), np.uint8)).save(folder / "image_3/000000.png")
    with pytest.raises(
        ValueError, match="00/image_3: pictures of 94 x 306 pixels, but those of image_2 have 94 x 310"
    ):
        samples(copy)


def test_pictures_that_do_not_belong_to_a_recording_of_kitti(tmp_path):
    folder = write_planes(tmp_path, "04", names=["000000"], size=(376, 1241), labels=False)
    assert len(completion_frames(tmp_path, ["04"])) == 1
    for camera in kitti.STEREO:
        Image.fromarray(np.zeros((370, 1226, 3), np.uint8)).save(folder / camera / "000000.png")
    with pytest.raises(
        ValueError, match="image_2: pictures of 370 x 1226 pixels, but .*calib.txt.* of 376 x 1241; one of"
    ):
        completion_frames(tmp_path, ["04"])


def test_depth_that_is_missing_or_of_another_size_is_named(copy, tmp_path):
    path = copy / "sequences/00/depth/000000.png"
    kitti.write_depth(np.ones((94, 300)), path)
    assert "depth/000000.png: depth of 94 x 300 pixels, the picture has 94 x 310" in broken(copy, depth="stereo")
    path.unlink()
    assert "depth/000000.png: no such depth picture; make them with `python utils/gen_depth.py`" in broken(
        copy, depth="stereo"
    )
    kitti.write_depth(np.full((94, 310), 7.0), tmp_path / "other/sequences/00/depth/000000.png")
    found = samples(copy, depth="stereo", depth_root=tmp_path / "other")[0].depth
    assert float(found.unique()) == 7.0
    (copy / "sequences/00/velodyne/000000.bin").unlink()
    assert "velodyne/000000.bin: no such file" in broken(copy, depth="lidar", release="current")
    with pytest.raises(ValueError, match="depth is one of stereo, lidar for semantic_kitti; got 'sensor'"):
        samples(copy, depth="sensor")


def test_frames_of_splits_sequences_and_plain_odometry(tree, copy, tmp_path):
    assert [f.token for f in completion_frames(tree, "train")] == ["00_000000", "00_000005"]
    with pytest.raises(ValueError, match="has no sequence of 'val', it has 00; splits are train, val, test"):
        completion_frames(tree, "val")
    with pytest.raises(ValueError, match="there are one or two views, not 3"):
        completion_frames(tree, views=3)
    with pytest.raises(ValueError, match="neither sequences/ nor dataset/sequences/ in it"):
        completion_frames(tmp_path / "none")
    (copy / "dataset").mkdir()
    (copy / "sequences").rename(copy / "dataset/sequences")
    shutil.rmtree(copy / "dataset/sequences/00/voxels")
    frames = completion_frames(copy, "train")
    assert len(frames) == 2 and samples(copy, frames=frames, labels=False)[1].images.shape[1] == 2
    with pytest.raises(ValueError, match="sample 00_000000 is there twice"):
        samples(copy, frames=frames + frames[:1], labels=False)
    (copy / "dataset/sequences/00/voxels").mkdir()
    with pytest.raises(ValueError, match="nothing is in .*00/voxels: remove it"):
        completion_frames(copy, "train")
    (copy / "dataset/sequences/00/voxels").rmdir()
    shutil.rmtree(copy / "dataset/sequences/00/image_2")
    with pytest.raises(ValueError, match="have neither voxels nor pictures"):
        completion_frames(copy, "train")


def test_grids_that_do_not_fit_are_refused(tree):
    nyu = replace(preset("nyu_b4").model, dataset="semantic_kitti")
    with pytest.raises(ValueError, match="is not the labels' .* in larger voxels; choose another preset"):
        samples(tree, nyu)
    names = scene_grid().taxonomy.classes
    assert [names[i] for i in CLASSES.values()] == list(CLASSES)
