"""Real files through readers, projection and model: SemanticKITTI's sequence 00 and a pair of the object benchmark."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from syntheocc.occupancy.data.semantic_kitti_frames import completion_frames
from syntheocc.occupancy.data.stereo_pairs import read_stereo_pair
from syntheocc.occupancy.perception.occdepth.augmentation import StereoAugmentation
from syntheocc.occupancy.perception.occdepth.batch import NO_TILE, collate
from syntheocc.occupancy.perception.occdepth.dataset import StereoFrames
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras, project_voxels
from syntheocc.occupancy.perception.occdepth.indoor_sources import stereo_source
from syntheocc.occupancy.perception.occdepth.model import OccDepth
from syntheocc.occupancy.perception.occdepth.presets import preset

pytestmark = pytest.mark.real_data
NAMES = ("000000", "000005")


@pytest.fixture(scope="module")
def tree(real_data, tmp_path_factory):
    """The real sequence with the labels accumulated of its scans, which the sample files lack; all of it one late."""
    real = real_data / "semantickitti"
    folder = tmp_path_factory.mktemp("semantickitti") / "dataset" / "sequences" / "00"
    (folder / "voxels").mkdir(parents=True)
    for path in (real / "sequences" / "00").iterdir():
        if path.name != "voxels":
            (folder / path.name).symlink_to(path.resolve())
    for path in (real / "sequences" / "00" / "voxels").iterdir():
        (folder / "voxels" / path.name).symlink_to(path.resolve())
    for name in NAMES:
        with np.load(real / "derived" / f"00_{name}_partial.npz") as derived:
            raw = derived["label"].ravel()
        np.r_[np.uint16(0), raw[:-1]].astype("<u2").tofile(folder / "voxels" / f"{name}.label")
    return folder.parents[2]


@pytest.fixture(scope="module")
def frames(tree):
    return completion_frames(tree, "train")


def source_of(config, frames, **settings):
    with pytest.warns(UserWarning, match="released before 2020-08-24"):
        return stereo_source(config, frames, **settings)


def test_samples_of_the_real_sequence(frames, real_data):
    config = preset("kitti_b7").model
    data = StereoFrames(source_of(config, frames, depth="lidar"))
    assert [frame.token for frame in data.frames] == [f"00_{name}" for name in NAMES]
    sample = collate([data[0], data[1]])
    assert sample.images.shape == (2, 2, 3, 370, 1220) and sample.semantics.shape == (2, 256, 256, 32)
    assert sample.baseline.tolist() == pytest.approx([0.5323] * 2, abs=1e-3)
    # The published numbers of sequence 00 (specs/occdepth.md 1.2): what each camera shows at half the resolution.
    seen = project_voxels(StereoCameras.of_batch(sample), config.volume_grid).inside((370, 1220))[0]
    counted = [*seen.sum(1).tolist(), int(seen.all(0).sum()), int(seen.any(0).sum())]
    assert all(abs(a - b) <= 1 for a, b in zip(counted, (176742, 176691, 175500, 177933), strict=True)), counted
    full = [int((sample.frustums[0, view] != NO_TILE).sum()) for view in (0, 1)]
    assert abs(full[0] - 1413743) <= 1 and full[1] < full[0]
    with np.load(real_data / "semantickitti" / "derived" / "00_000000_partial.npz") as derived:
        occupied = torch.from_numpy(derived["label"] > 0)
    known = sample.known[0] & (sample.semantics[0] > 0)
    assert int(known.sum()) > 20000 and not bool((known & ~occupied).any())
    # Voxels of the frame's own points lie where the lidar's depths are in the left picture.
    pixels, depth = project_voxels(StereoCameras.of_batch(sample), config.grid)
    scan = torch.from_numpy(np.unpackbits(np.load(_derived(real_data))["input_fixed"]).astype(bool))
    u, v = pixels[0, 0][scan].round().long().unbind(1)
    inside = (depth[0, 0][scan] > 2) & (u >= 0) & (u < 1220) & (v >= 0) & (v < 370)
    near = torch.nn.functional.max_pool2d(-torch.where(sample.depth[0] > 0, sample.depth[0], 1e3), 7, 1, 3)
    off = depth[0, 0][scan][inside] + near[0][v[inside], u[inside]]
    assert inside.sum() > 4000 and float((off.abs() < 0.5).double().mean()) > 0.65


def _derived(real_data):
    return real_data / "semantickitti" / "derived" / "00_000000_partial.npz"


@pytest.mark.parametrize("name", ["tiny", pytest.param("small_mono_flosp", marks=pytest.mark.slow)])
def test_the_model_learns_from_and_predicts_the_real_sequence(frames, name):
    config = replace(preset(name).model, image_size=(64, 208))
    depth = None if config.depth_loss_weight == 0 else "lidar"
    data = StereoFrames(source_of(config, frames, depth=depth), StereoAugmentation())
    batch = data[1]
    torch.manual_seed(0)
    model = OccDepth(config)
    output = model(batch.images, StereoCameras.of_batch(batch), batch.depth)
    losses = model.losses(output, batch)
    expected = {"ssc", "occupancy", "sem_scal", "geo_scal", "frustum", "relation", "loss"}
    assert set(losses) == expected | ({"depth"} if depth else set())
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    losses["loss"].backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    predicted = model.eval().predict(batch.images, StereoCameras.of_batch(batch)).semantics
    assert predicted.shape == (1, *config.grid.shape) and int(predicted.max()) < 20


def test_a_pair_of_the_object_benchmark_is_predicted(real_data):
    folder = real_data / "kitti_object_stereo"
    frame = read_stereo_pair(*(folder / name for name in ("left.png", "right.png", "calib.txt", "lidar.bin")))
    config = preset("tiny").model
    sample = StereoFrames(stereo_source(config, [frame], depth="lidar", labels=False))[0]
    assert sample.tokens == ["left"] and sample.semantics is None
    assert (
        float(sample.baseline) == pytest.approx(0.5327, abs=2e-3) and float((sample.depth > 0).float().mean()) > 0.02
    )
    torch.manual_seed(0)
    model = OccDepth(config).eval()
    assert model.predict(sample.images, StereoCameras.of_batch(sample)).semantics.shape == (1, 64, 64, 8)


def test_the_real_calibration_without_the_velodyne_is_refused(real_data, tmp_path):
    real = real_data / "semantickitti" / "sequences" / "00"
    folder = tmp_path / "sequences" / "00"
    folder.mkdir(parents=True)
    for name in ("image_2", "image_3", "voxels"):
        (folder / name).symlink_to((real / name).resolve())
    (folder / "calib.txt").symlink_to((real / "calib_without_Tr.txt").resolve())
    with pytest.raises(ValueError, match="00/calib.txt: no row Tr; it has P0, P1, P2, P3"):
        completion_frames(tmp_path, ["00"])
