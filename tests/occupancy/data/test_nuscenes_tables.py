import json

import numpy as np
import pytest
import torch

from syntheocc.occupancy.cameras import NUSCENES_CAMERAS
from syntheocc.occupancy.data.nuscenes import TABLE_NAMES, read_tables, write_tables
from syntheocc.occupancy.data.nuscenes_frames import frames_from_tables, read_nuscenes, write_nuscenes


@pytest.fixture
def tables_root(data_root, make_frame):
    write_nuscenes(data_root, "v1.0-hand", [make_frame(1), make_frame(0), make_frame(2)])
    return data_root


def edit(root, table, change):
    path = root / "v1.0-hand" / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_frames_survive_the_tables(tables_root, make_frame):
    frames = read_nuscenes(tables_root)
    assert [frame.token for frame in frames] == ["sample0", "sample1", "sample2"]
    assert [(f.prev, f.next) for f in frames] == [(None, "sample1"), ("sample0", "sample2"), ("sample1", None)]
    for i, frame in enumerate(frames):
        given = make_frame(i)
        frame.check_files()
        assert frame.scene == "scene-0001" and frame.caption == "A street, sunny"
        assert frame.timestamp_us == given.timestamp_us and frame.cameras.names == NUSCENES_CAMERAS
        assert torch.allclose(frame.cameras.cam2ego, given.cameras.cam2ego, atol=1e-9)
        assert torch.allclose(frame.lidar2ego, given.lidar2ego, atol=1e-9)
        assert torch.allclose(frame.ego2global, given.ego2global, atol=1e-9)
        assert torch.allclose(frame.boxes.box2ego, given.boxes.box2ego, atol=1e-9)
        assert torch.equal(frame.boxes.sizes, given.boxes.sizes)
        assert frame.boxes.names == given.boxes.names and frame.boxes.instance_tokens == given.boxes.instance_tokens
        assert frame.boxes.num_lidar_points.tolist() == [7, 1]
        for key in ("lidar_token", "scene_token", "camera_tokens", "camera_timestamps_us"):
            assert frame.extras[key] == given.extras[key]


def test_the_cameras_own_ego_pose_counts(tables_root):
    frame = read_nuscenes(tables_root)[0]
    # The rig of the fixture stands at (0, 0, 1.5); its cameras fired 0.3 m before the lidar.
    assert frame.cameras["CAM_FRONT"].cam2ego[:3, 3].tolist() == pytest.approx([-0.3, 0.0, 1.5])
    mounts = {row["token"]: row for row in read_tables(tables_root).table("calibrated_sensor")}
    data = read_tables(tables_root).key_data["sample0"]["CAM_FRONT"]
    assert mounts[data["calibrated_sensor_token"]]["translation"] == pytest.approx([0.0, 0.0, 1.5])


def test_velocities_come_from_the_neighbouring_frames(tables_root):
    # The boxes stay where they are in ego while ego drives 1 m along global x every half second, at a yaw of 0.5.
    expected = [2 * np.cos(0.5), -2 * np.sin(0.5)]
    for frame in read_nuscenes(tables_root):
        assert frame.boxes.velocities[0].tolist() == pytest.approx(expected)

    def too_far_apart(rows):
        rows[2]["timestamp"] += 4_000_000

    edit(tables_root, "sample", too_far_apart)
    velocities = [frame.boxes.velocities[0] for frame in read_nuscenes(tables_root)]
    assert velocities[0].tolist() == pytest.approx(expected)
    assert velocities[1].isnan().all() and velocities[2].isnan().all()


def test_partial_tables_are_enough(tables_root, make_frame):
    folder = tables_root / "v1.0-hand"
    needed = {"sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor"}
    for name in set(TABLE_NAMES) - needed:
        (folder / f"{name}.json").unlink()
    edit(tables_root, "sample", lambda rows: [row.pop(k) for row in rows for k in ("prev", "next", "scene_token")])
    frame = read_nuscenes(tables_root)[0]
    assert frame.boxes is None and frame.caption is None and frame.scene == "" and frame.next is None
    assert torch.allclose(frame.cameras.cam2ego, make_frame().cameras.cam2ego, atol=1e-9)
    for name in needed - {"sample"}:
        rows = (folder / f"{name}.json").read_text()
        (folder / f"{name}.json").unlink()
        with pytest.raises(ValueError, match=f"{name}.json: the table '{name}' is needed here"):
            read_nuscenes(tables_root)
        (folder / f"{name}.json").write_text(rows)


def test_what_is_missing_is_named(tables_root):
    with pytest.raises(ValueError, match="no scene is named scene-9999"):
        read_nuscenes(tables_root, scenes=["scene-9999"])
    with pytest.raises(ValueError, match="no sample has the token nobody"):
        read_nuscenes(tables_root, tokens=["nobody"])
    assert [f.token for f in read_nuscenes(tables_root, scenes=["scene-0001"], tokens=["sample2"])] == ["sample2"]
    with pytest.raises(ValueError, match="sample sample0 has no key frame of CAM_ROOF"):
        read_nuscenes(tables_root, cameras=["CAM_FRONT", "CAM_ROOF"])
    edit(tables_root, "sample_data", lambda rows: [row.update(height=0) for row in rows])
    with pytest.raises(ValueError, match="v1.0-hand, sample sample0: CAM_FRONT_LEFT: an image needs whole pixels"):
        read_nuscenes(tables_root)
    unreadable = {}
    assert frames_from_tables(read_tables(tables_root), unreadable=unreadable) == []
    assert "whole pixels" in unreadable["sample0"]
    edit(tables_root, "calibrated_sensor", lambda rows: [row.update(translation=[1, 2]) for row in rows])
    with pytest.raises(ValueError, match="calibrated_sensor.json, row .*: translation is 3 numbers, got .1, 2."):
        read_nuscenes(tables_root)
    edit(tables_root, "calibrated_sensor", lambda rows: [row.update(translation=[1, 2, 3]) for row in rows])
    edit(tables_root, "calibrated_sensor", lambda rows: [row.pop("rotation") for row in rows])
    with pytest.raises(ValueError, match="calibrated_sensor.json: row '.*' lacks the field 'rotation'"):
        read_nuscenes(tables_root)
    edit(tables_root, "sensor", lambda rows: rows.clear())
    with pytest.raises(ValueError, match="sensor.json: no row has the token"):
        read_nuscenes(tables_root)
    (tables_root / "v1.0-hand" / "sample.json").write_text('[{"token":')
    with pytest.raises(ValueError, match="sample.json: not a JSON document"):
        read_nuscenes(tables_root)


def test_the_tables_folder_is_found_or_asked_for(tables_root):
    assert read_tables(tables_root / "v1.0-hand").root == tables_root
    (tables_root / "v1.0-other").mkdir()
    (tables_root / "v1.0-other" / "sample.json").write_text("{}")
    with pytest.raises(ValueError, match=r"v1.0-hand.*v1.0-other.*give version="):
        read_tables(tables_root)
    with pytest.raises(ValueError, match="holds no sample.json"):
        read_tables(tables_root, "v1.0-trainval")
    with pytest.raises(ValueError, match="list of records"):
        read_tables(tables_root, "v1.0-other").table("sample")


def test_bad_tables_are_not_written(tmp_path, data_root, make_frame):
    with pytest.raises(ValueError, match="no nuScenes tables"):
        write_tables(tmp_path / "t", {"samples": []})
    with pytest.raises(ValueError, match="sample.json: every row needs a token"):
        write_tables(tmp_path / "t", {"sample": [{"token": "a"}, {"token": "a"}]})
    assert not (tmp_path / "t").exists()
    with pytest.raises(ValueError, match="does not lie below the root"):
        write_nuscenes(tmp_path / "elsewhere", "v1.0-x", [make_frame()])


def test_every_table_is_complete(tables_root):
    """What the devkit follows on loading: each token resolves, and instances know their chain."""
    tables = read_tables(tables_root)
    assert all(tables.has(name) for name in TABLE_NAMES)
    (scene,) = tables.table("scene")
    assert scene["nbr_samples"] == 3 and scene["first_sample_token"] == "sample0"
    assert tables.get("log", scene["log_token"])["token"] in tables.table("map")[0]["log_tokens"]
    assert (tables_root / tables.table("map")[0]["filename"]).is_file()
    for instance in tables.table("instance"):
        first = tables.get("sample_annotation", instance["first_annotation_token"])
        assert instance["nbr_annotations"] == 3 and first["prev"] == "" and first["next"]
        tables.get("category", instance["category_token"])
    assert len(tables.table("sensor")) == 7 and len(tables.table("calibrated_sensor")) == 7
    assert len(tables.table("sample_data")) == 21


@pytest.mark.real_data
def test_the_real_reduced_tables(real_data):
    (frame,) = read_nuscenes(real_data / "nuscenes_scene0061", "tables_reduced")
    frame.check_files()
    assert frame.scene == "scene-0061" and frame.boxes is None and frame.caption.startswith("Parked truck")
    assert frame.cameras.names == NUSCENES_CAMERAS and frame.timestamp_us == 1532402927647951


def test_the_devkit_reads_the_same_frames(tables_root):
    """The outside judge: nuscenes-devkit on the tables that we wrote, against our own reader of them."""
    devkit = pytest.importorskip("nuscenes.nuscenes")
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    tables = devkit.NuScenes("v1.0-hand", str(tables_root), verbose=False)

    def pose_of(row, center="translation"):
        return transform_matrix(row[center], Quaternion(row["rotation"]))

    for frame in read_nuscenes(tables_root):
        sample = tables.get("sample", frame.token)
        global2ego = np.linalg.inv(pose_of(tables.get("ego_pose", frame.extras["lidar_token"])))
        for name, camera in frame.cameras.items():
            data = tables.get("sample_data", sample["data"][name])
            mount = tables.get("calibrated_sensor", data["calibrated_sensor_token"])
            cam2ego = global2ego @ pose_of(tables.get("ego_pose", data["ego_pose_token"])) @ pose_of(mount)
            assert np.allclose(cam2ego, camera.cam2ego, atol=1e-9)
            assert str(tables_root / data["filename"]) == str(frame.image_paths[name])
        for i, box in enumerate(tables.get_boxes(sample["data"]["LIDAR_TOP"])):
            assert np.allclose(
                global2ego @ transform_matrix(box.center, box.orientation), frame.boxes.box2ego[i], atol=1e-9
            )
            assert np.allclose(box.wlh[[1, 0, 2]], frame.boxes.sizes[i])
            velocity = global2ego[:3, :3] @ (tables.box_velocity(sample["anns"][i]) * [1, 1, 0])
            assert np.allclose(velocity[:2], frame.boxes.velocities[i])
