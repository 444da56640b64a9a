"""Samples of NYUv2 (a virtual second view) and SemanticTartanAir (voxels voted from depth)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from kitti_scene import pixel_of
from PIL import Image

from syntheocc.engine.loading import BadSample
from syntheocc.occupancy.data import nyuv2, tartanair
from syntheocc.occupancy.data.tartanair_frames import read_tartanair_frames, read_voxels
from syntheocc.occupancy.perception.occdepth.augmentation import StereoAugmentation
from syntheocc.occupancy.perception.occdepth.batch import NO_TILE, collate
from syntheocc.occupancy.perception.occdepth.dataset import StereoFrames
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
from syntheocc.occupancy.perception.occdepth.indoor_sources import NyuSource, TartanAirSource, stereo_source
from syntheocc.occupancy.perception.occdepth.model import OccDepth
from syntheocc.occupancy.perception.occdepth.presets import preset

# A camera 1.2 m up that looks along the world's y.
CAM2WORLD = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.2], [0, 0, 0, 1]], dtype=torch.float64)
NYU, TARTAN = preset("nyu_b4").model, preset("tartanair").model
ORIGINS = ((-2.4, 0.3, -0.05), (-2.0, 0.5, -0.1))
CHAIR = (28, 20, 10)  # voxel x, y, up


def spotted(size, places):
    """A dark picture with bright spots at pixels (u, v)."""
    image = np.full((*size, 3), 30, np.uint8)
    for u, v in places:
        image[round(v) - 3 : round(v) + 4, round(u) - 3 : round(u) + 4] = (255, 0, 0)
    return image


def spot_in(image):
    """Middle of the red spot of a normalised image [3, H, W]: column, row."""
    red = image[0] - image[1]
    rows, columns = torch.nonzero(red > 0.8 * red.max(), as_tuple=True)
    return float(columns.float().mean()), float(rows.float().mean())


# --- NYUv2 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Two rooms with a chair in voxel CHAIR each, whose grids begin in different places."""
    root = tmp_path_factory.mktemp("nyu")
    for number, origin in enumerate(ORIGINS):
        folder = root / ("NYUtrain" if number < 2 else "NYUtest")
        ids = np.zeros(nyuv2.FILE_SHAPE, np.uint8)
        ids[4 * CHAIR[0] : 4 * CHAIR[0] + 4, 4 * CHAIR[2] : 4 * CHAIR[2] + 4, 4 * CHAIR[1] : 4 * CHAIR[1] + 4] = 6
        ids[:, :, 200:] = 255
        path = folder / f"NYU{number + 1:04d}_0000.bin"
        nyuv2.write_nyuv2(nyuv2.NyuVoxels(ids, torch.tensor(origin, dtype=torch.float64), CAM2WORLD), path)
        point = chair(number)
        depth = point[1]
        u, v = 518.8579 * point[0] / depth + 320, 518.8579 * (1.2 - point[2]) / depth + 240
        Image.fromarray(spotted((480, 640), [(u, v)])).save(path.with_name(f"{path.stem}_color.jpg"), quality=95)
        nyuv2.write_depth(np.full((480, 640), depth), path.with_suffix(".png"))
    return root


def chair(number):
    """Middle of the chair's voxel in the world, metres."""
    return [o + 0.08 * (i + 0.5) for o, i in zip(ORIGINS[number], CHAIR, strict=True)]


def test_rooms_have_origins_of_their_own_and_a_virtual_view(rooms):
    frames = nyuv2.read_nyuv2_frames(rooms, "train")
    assert [frame.token for frame in frames] == ["NYU0001_0000", "NYU0002_0000"]
    data = StereoFrames(stereo_source(NYU, frames, depth="sensor"), StereoAugmentation(jitter=0), rounds=6)
    assert isinstance(data.source, NyuSource)
    flips = set()
    for index in range(12):
        sample, number = data[index], index % 2
        assert sample.virtual and sample.images.shape == (1, 1, 3, 480, 640) and sample.velo2img.shape == (1, 2, 4, 4)
        assert sample.origin[0].tolist() == pytest.approx(ORIGINS[number], abs=1e-6)
        assert float(sample.baseline) == pytest.approx(0.1)
        assert sample.semantics[0][CHAIR] == 5 and int((sample.semantics == 5).sum()) == 1
        assert bool((sample.semantics[0, :, 50:] == 255).all()) and sample.coarse.shape == (1, 15, 15, 9)
        u, v, z = pixel_of(sample.velo2img[0, 0], chair(number))
        assert spot_in(sample.images[0, 0]) == pytest.approx((u, v), abs=0.75)
        # The second camera stands 0.1 m to the right: everything is further left, in a mirrored picture further right.
        beside, row, _ = pixel_of(sample.velo2img[0, 1], chair(number))
        flipped = bool(sample.flipped)
        assert u - beside == pytest.approx((-1 if flipped else 1) * 51.88579 / z) and row == pytest.approx(v)
        shift = StereoCameras.of_batch(sample).ray_shift()
        assert float(shift) == pytest.approx(-51.88579 if flipped else 51.88579)
        assert float(sample.depth.unique()) == pytest.approx(chair(number)[1], abs=1e-3)
        flips.add(flipped)
    assert flips == {True, False}
    batch = collate([data[0], data[1]])
    assert batch.origin.shape == (2, 3) and batch.depth.shape == (2, 1, 480, 640)


def test_tiles_of_a_room_are_its_own(rooms):
    data = StereoFrames(stereo_source(replace(NYU, frustum_loss=True), nyuv2.read_nyuv2_frames(rooms), depth="sensor"))
    first, second = data[0].frustums[0], data[1].frustums[0]
    assert first.shape == (2, 60, 60, 36) and not torch.equal(first, second)
    assert 0.2 < float((first[0] != NO_TILE).float().mean()) < 0.95
    # What both views show in one tile is counted by the first alone.
    assert (second[1] != NO_TILE).float().mean() < (second[0] != NO_TILE).float().mean() / 2


def test_what_rooms_lack_is_named(rooms, tmp_path):
    with pytest.raises(ValueError, match="NYUtest: no such folder; give NYUv2's root"):
        nyuv2.read_nyuv2_frames(rooms, "test")
    with pytest.raises(ValueError, match="splits are train and test"):
        nyuv2.read_nyuv2_frames(rooms, "val")
    (frame, _) = nyuv2.read_nyuv2_frames(rooms)
    path = tmp_path / "NYUtrain" / frame.occupancy_path.name
    path.parent.mkdir()
    path.write_bytes(frame.occupancy_path.read_bytes())
    (alone,) = nyuv2.read_nyuv2_frames(tmp_path)
    data = StereoFrames(stereo_source(NYU, [alone], depth="sensor"), unreadable=BadSample)
    assert "NYU0001_0000_color.jpg: no such picture" in data[0].reason
    Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(path.with_name("NYU0001_0000_color.jpg"))
    assert "NYU0001_0000.png: no such file" in data[0].reason
    nyuv2.write_depth(np.ones((240, 320)), path.with_suffix(".png"))
    assert "NYU0001_0000.png: depth of 240 x 320 pixels" in data[0].reason
    nyuv2.write_depth(np.ones((480, 640)), path.with_suffix(".png"))
    path.write_bytes(path.read_bytes()[:-8])
    assert "NYU0001_0000.bin: runs of" in data[0].reason
    real_pair = replace(NYU, virtual_view=False)
    with pytest.raises(ValueError, match="one camera; a model of two views needs virtual_view"):
        StereoFrames(stereo_source(real_pair, [alone], labels=False))[0]
    mono = replace(NYU, virtual_view=False, num_views=1)
    sample = StereoFrames(stereo_source(mono, [alone], labels=False))[0]
    assert not sample.virtual and sample.velo2img.shape == (1, 1, 4, 4) and sample.depth is None


@pytest.mark.real_data
def test_the_real_room(real_data, tmp_path):
    """The real files have no picture; with one beside them they go through reader, projection and targets."""
    folder = tmp_path / "NYUtrain"
    folder.mkdir()
    for name in ("NYU0001_0000.bin", "NYU0001_0000.png"):
        (folder / name).symlink_to((real_data / "nyuv2_ssc" / name).resolve())
    Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(folder / "NYU0001_0000_color.jpg")
    source = stereo_source(replace(NYU, frustum_loss=True), nyuv2.read_nyuv2_frames(tmp_path), depth="sensor")
    sample = StereoFrames(source)[0]
    assert sample.semantics.shape == (1, 60, 60, 36) and sample.coarse.shape == (1, 15, 15, 9)
    classes = sample.semantics.unique().tolist()
    assert {0, 2, 255} <= set(classes) and max(c for c in classes if c != 255) <= 11
    # Labelled surfaces lie where the depth picture has them: voxels that the camera shows, at their own distance.
    known = (sample.semantics[0] > 0) & (sample.semantics[0] < 255)
    centres = source.spec.centers()[known] + sample.origin[0]
    seen = torch.cat([centres, torch.ones(len(centres), 1)], 1).double() @ sample.velo2img[0, 0].T
    u, v = (seen[:, :2] / seen[:, 2:3]).round().long().unbind(1)
    inside = (seen[:, 2] > 0) & (u >= 0) & (u < 640) & (v >= 0) & (v < 480)
    depth = sample.depth[0, 0][v[inside], u[inside]]
    behind = seen[inside, 2] - depth
    assert inside.float().mean() > 0.4 and float((behind[depth > 0] > -0.2).float().mean()) > 0.9
    assert float((behind[depth > 0].abs() < 0.15).float().mean()) > 0.3
    small = replace(NYU, backbone="tiny", channels=8, decoder_channels=32, image_size=(120, 160))
    sample = StereoFrames(stereo_source(small, [source.frames[0]], depth="sensor"))[0]
    torch.manual_seed(0)
    model = OccDepth(small)
    cameras = StereoCameras.of_batch(sample)
    losses = model.losses(model(sample.images, cameras, sample.depth), sample)
    assert {"ssc", "sem_scal", "geo_scal", "loss"} <= set(losses) and bool(torch.isfinite(losses["loss"]))
    predicted = model.eval().predict(sample.images, cameras, sample.depth)
    assert predicted.semantics.shape == (1, 60, 60, 36) and int(predicted.semantics.max()) < 12


# --- SemanticTartanAir -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    """A wall at 4.04 m before a level camera; a red spot 1 m to the right of the axis and 0.5 m below."""
    root = tmp_path_factory.mktemp("tartanair")
    folder = root / "office" / "Easy" / "P000"
    for name in ("image_left", "image_right", "depth_left", "seg_left"):
        (folder / name).mkdir(parents=True)
    poses = torch.eye(4, dtype=torch.float64).repeat(7, 1, 1)
    tartanair.write_poses(poses, folder / "pose_left.txt")
    poses[:, 1, 3] = 0.25  # north-east-down: to the right
    tartanair.write_poses(poses, folder / "pose_right.txt")
    u, v = 320 + 320 * 1.0 / 4.04, 240 + 320 * 0.5 / 4.04
    for number in ("000000", "000003", "000005"):
        for side, column in (("left", u), ("right", u - 80 / 4.04)):
            picture = spotted((480, 640), [(column, v)])
            Image.fromarray(picture).save(folder / f"image_{side}" / f"{number}_{side}.png")
        np.save(folder / "depth_left" / f"{number}_left_depth.npy", np.full((480, 640), 4.04, np.float32))
        np.save(folder / "seg_left" / f"{number}_left_seg.npy", np.full((480, 640), 90, np.uint8))
    return root


@pytest.mark.parametrize("rule", ["rint", "floor"])
def test_offices_are_stereo_pairs_with_voted_voxels(office, rule):
    frames = read_tartanair_frames(office)
    assert [frame.token for frame in frames] == ["Easy_P000_000000", "Easy_P000_000005"]  # every fifth has voxels
    data = StereoFrames(stereo_source(TARTAN, frames, depth="sensor", index_rule=rule), StereoAugmentation(jitter=0))
    assert isinstance(data.source, TartanAirSource)
    sample = data[0]
    assert sample.images.shape == (1, 2, 3, 480, 640) and sample.semantics.shape == (1, 120, 48, 120)
    assert sample.coarse.shape == (1, 30, 12, 30) and sample.frustums.shape == (1, 2, 120, 48, 120)
    assert float(sample.baseline) == pytest.approx(0.25) and float(sample.depth.unique()) == pytest.approx(4.04)
    wall = sample.semantics[0] == 3
    assert wall.nonzero()[:, 2].unique().tolist() == [40] and not (sample.semantics == 255).any()
    # Where the labels say the spot is, the pictures show it: up to half a voxel, whatever the rule rounds to.
    voxel = (70, 35, 40)
    assert wall[voxel]
    centre = [low + 0.1 * (i + 0.5) for low, i in zip((-6.0, -3.0, 0.0), voxel, strict=True)]
    for image, matrix in zip(sample.images[0], sample.velo2img[0], strict=True):
        u, v, z = pixel_of(matrix, centre)
        assert z == pytest.approx(4.04, abs=0.051) and spot_in(image) == pytest.approx((u, v), abs=6)


def test_exported_voxels_are_taken_where_there_are_some(office, tmp_path):
    (first, _) = read_tartanair_frames(office)
    voted = read_voxels(first)
    path = tmp_path / "labels/office/Easy/P000/voxels_left/000000.pkl"
    tartanair.write_tartanair(voted, path)
    frames = read_tartanair_frames(office, [("Easy", "P000")], voxels_root=tmp_path)
    assert torch.equal(read_voxels(frames[0]).grid.labels, voted.grid.labels)
    assert frames[0].occupancy_path == path and first.occupancy_path.name == "000000_left_seg.npy"
    data = StereoFrames(stereo_source(TARTAN, frames), unreadable=BadSample)
    assert torch.equal(data[0].semantics[0], voted.grid.labels)
    assert isinstance(data[1], BadSample) and "000005.pkl" in data[1].reason


def test_what_offices_lack_is_named(office, tmp_path):
    with pytest.raises(ValueError, match="no frames of val; give the raw tree's root"):
        read_tartanair_frames(office, "val")
    with pytest.raises(ValueError, match="'test' is none of the splits train, val"):
        read_tartanair_frames(office, "test")
    with pytest.raises(ValueError, match="Hard/P001: no such trajectory"):
        read_tartanair_frames(office, [("Hard", "P001")])
    (first, second) = read_tartanair_frames(office)
    gone = replace(second, image_paths=second.image_paths | {"image_right": tmp_path / "000005_right.png"})
    data = StereoFrames(stereo_source(TARTAN, [first, gone]), unreadable=BadSample)
    assert "000005_right.png: no such picture" in data[1].reason
    np.save(tmp_path / "small.npy", np.ones((240, 320), np.float32))
    small = replace(first, extras=first.extras | {"depth": tmp_path / "small.npy"})
    source = stereo_source(TARTAN, [small], depth="sensor", labels=False)
    assert "small.npy: depth of 240 x 320 pixels" in StereoFrames(source, unreadable=BadSample)[0].reason
    short = replace(first, extras=first.extras | {"segments": tmp_path / "none.npy"})
    assert "none.npy" in StereoFrames(stereo_source(TARTAN, [short]), unreadable=BadSample)[0].reason
