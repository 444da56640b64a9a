"""``syntheocc world`` from its command line: the same bytes whoever writes them, and nothing made twice."""

import hashlib
import importlib.util

import pytest

from syntheocc.commands import main
from syntheocc.commands.world import WorldConfig, kitti_sequences
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes
from syntheocc.worlds.splits import plan_scenes

# Two scenes of one key frame and 40x24 pixels: what a test can wait for.
SMALL = ["--scenes", "2", "--val-scenes", "1", "--key-frames", "1", "--size", "40x24"]


def digests(root):
    """File -> MD5 of its bytes."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("one") / "nuscenes"
    assert main(["world", "--out", str(root), *SMALL, "--workers", "1"]) == 0
    return root


def test_the_same_bytes_with_two_workers(written, tmp_path, warm_workers):
    assert main(["world", "--out", str(tmp_path), *SMALL, "--workers", "2"]) == 0
    assert digests(tmp_path) == digests(written)


def test_it_goes_on_where_it_stopped(written, tmp_path, capsys):
    """A complete scene is not touched, one whose part is missing is made again, with the same bytes."""
    before = digests(written)
    first, second = (written / f"world/scene-000{i}.json" for i in (1, 3))
    stamp = first.stat().st_mtime_ns
    picture = next((written / "samples/CAM_FRONT").glob("*scene-0001*"))
    drawn = picture.stat().st_mtime_ns
    second.unlink()
    assert main(["world", "--out", str(written), *SMALL, "--workers", "1"]) == 0
    assert "1 scenes made, 1 were there already" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == stamp and picture.stat().st_mtime_ns == drawn
    assert digests(written) == before


def test_other_settings_need_another_folder(written, capsys):
    assert main(["world", "--out", str(written), *SMALL, "--seed", "1"]) == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_scenes_that_fail_are_told(workers, tmp_path, capsys, warm_workers):
    """A file stands where the samples' folder should be, so that no scene can be written."""
    (tmp_path / "samples").touch()
    assert main(["world", "--out", str(tmp_path), *SMALL, "--workers", workers]) == 1
    out = capsys.readouterr().out
    assert "0 key frames; 0 scenes made" in out
    assert "failed: scene-0001: " in out and "failed: scene-0003: " in out


@pytest.mark.parametrize(("scenes", "val"), [(1, 0), (2, 1), (3, 1), (4, 1), (8, 2)])
def test_a_world_of_two_scenes_has_a_val_split(scenes, val):
    assert [plan.split for plan in WorldConfig(scenes=scenes).plan()].count("val") == val


def test_both_splits_are_written(written):
    assert [frame.scene for frame in read_nuscenes(written)] == ["scene-0001", "scene-0003"]
    assert (written / "nuscenes_infos_train.pkl").is_file() and (written / "nuscenes_infos_val.pkl").is_file()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": "400"}, "width x height"),
        ({"size": "0x224"}, "width x height"),
        ({"size": "1x1"}, "at least 16 pixels"),
        ({"seed": -1}, "cannot be negative"),
        ({"scenes": 0}, "--scenes"),
        ({"val_scenes": 9}, "--val_scenes"),
        ({"workers": 0}, "--workers"),
        ({"key_frames": 0}, "--key_frames"),
        ({"version": "mine"}, "v1.0-"),
        ({"test_scenes": -1}, "--test_scenes"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**wrong)


def test_kitti_has_room_for_ten_one_and_eleven():
    sequences = kitti_sequences(plan_scenes(12, 2, 1))
    assert list(sequences.values()) == ["00", "01", "02", "03", "04", "05", "06", "07", "09", "10", "08", "11"]
    assert sequences["scene-0003"] == "08"


@pytest.mark.skipif(importlib.util.find_spec("nuscenes") is None, reason="nuscenes-devkit is not installed")
def test_the_devkit_opens_lists_and_renders_it(written, tmp_path, capsys):
    """The outside judge. Install it in an environment of its own: it pins numpy < 2."""
    import matplotlib

    matplotlib.use("Agg")
    from nuscenes import NuScenes

    nusc = NuScenes("v1.0-trainval", str(written), verbose=True)
    nusc.list_scenes()
    nusc.list_categories()
    nusc.list_attributes()
    nusc.list_lidarseg_categories()
    nusc.list_panoptic_instances()
    sample = nusc.sample[0]
    nusc.list_sample(sample["token"])
    nusc.render_sample(sample["token"], out_path=str(tmp_path / "sample.png"), verbose=False)
    nusc.render_pointcloud_in_image(sample["token"], out_path=str(tmp_path / "points.png"), verbose=False)
    nusc.render_sample_data(sample["data"]["LIDAR_TOP"], out_path=str(tmp_path / "lidar.png"), verbose=False)
    nusc.render_annotation(sample["anns"][0], out_path=str(tmp_path / "annotation.png"))
    nusc.render_egoposes_on_map(nusc.log[0]["location"], out_path=str(tmp_path / "map.png"))
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in ("sample", "points", "lidar", "map"))
