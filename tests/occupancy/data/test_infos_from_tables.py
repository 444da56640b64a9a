"""What info files hold of the tables: sweeps, velocities, counts, in numbers that can be checked by hand."""

import json
import pickle

import numpy as np
import pytest
import torch
from drive_tables import CHANNELS, FIRST_US, edit_table, token, write_drive

from syntheocc.occupancy.data.infos import STYLES, read_infos
from syntheocc.occupancy.data.infos_from_tables import frames_for_infos
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.nuscenes import NuScenesTables
from syntheocc.occupancy.data.table_stream import LeanTables, stream_rows

SWEEPS = {"lidar": 10, "camera": 5}
NAME = "scene-0061"
SPLITS = {NAME: "train", "scene-0103": "val"}


def frames_of(root, tables=None, **options):
    unreadable = {}
    folder = root / "v1.0-mini"
    tables = tables or NuScenesTables(folder, root)
    return frames_for_infos(tables, SPLITS, SWEEPS, unreadable, **options), unreadable


def infos_of(root, style, prefix=""):
    frames, _ = frames_of(root)
    write_infos(root / "x.pkl", frames["train"], style, root, "v1.0-mini", prefix)
    document = pickle.loads((root / "x.pkl").read_bytes())
    return document["data_list" if style == "mmdet3d_v1.1" else "infos"]


def test_each_scene_goes_to_its_split(tmp_path):
    write_drive(tmp_path)
    frames, unreadable = frames_of(tmp_path)
    assert not unreadable
    assert [f.token for f in frames["train"]] == [token(NAME, k) for k in range(3)]
    assert [f.scene for f in frames["val"]] == ["scene-0103"] * 3
    some = frames_for_infos(NuScenesTables(tmp_path / "v1.0-mini", tmp_path), {NAME: "mine"}, {})
    assert list(some) == ["mine"] and len(some["mine"]) == 3 and "lidar_sweeps" not in some["mine"][2].extras


@pytest.mark.parametrize("style", ["mmdet3d_v1.0", "bevdet", "openoccupancy"])
def test_lidar_sweeps_newest_first_with_the_motion_between(tmp_path, style):
    write_drive(tmp_path)
    first, second, third = infos_of(tmp_path, style, prefix="./data/nuscenes/")
    assert first["sweeps"] == []
    assert [s["timestamp"] - FIRST_US for s in third["sweeps"]] == [750_000, 500_000, 250_000, 0]
    sweep = third["sweeps"][0]
    assert sweep["sample_data_token"] == token(NAME, "LIDAR_TOP", 3) and sweep["type"] == "lidar"
    assert sweep["data_path"] == f"./data/nuscenes/sweeps/LIDAR_TOP/{NAME}__LIDAR_TOP__{FIRST_US + 750_000}.x"
    assert third["sweeps"][1]["data_path"].startswith("./data/nuscenes/samples/LIDAR_TOP/")
    assert sweep["ego2global_translation"] == [103.0, 50.0, 0.0]
    assert sweep["sensor2ego_rotation"] == pytest.approx([0.5**0.5, 0, 0, -(0.5**0.5)])
    # A quarter of a second ago the car was 1 m further back: that is -1 along the lidar's y.
    assert sweep["sensor2lidar_translation"] == pytest.approx(np.array([0, -1, 0]), abs=1e-12)
    assert sweep["sensor2lidar_rotation"] == pytest.approx(np.eye(3), abs=1e-12)
    assert second["sweeps"][1]["sensor2lidar_translation"] == pytest.approx(np.array([0, -2, 0]), abs=1e-12)


def test_lidar_sweeps_of_the_newer_style(tmp_path):
    write_drive(tmp_path)
    first, _, third = infos_of(tmp_path, "mmdet3d_v1.1")
    assert "lidar_sweeps" not in first  # as in the published files
    sweep = third["lidar_sweeps"][0]
    assert sweep["timestamp"] == pytest.approx(1_600_000_000.75, abs=1e-7)
    assert sweep["sample_data_token"] == token(NAME, "LIDAR_TOP", 3)
    assert sweep["lidar_points"]["lidar_path"] == f"sweeps/LIDAR_TOP/{NAME}__LIDAR_TOP__{FIRST_US + 750_000}.x"
    expected = np.eye(4)
    expected[1, 3] = 1.0  # what is here was 1 m further ahead of the older lidar
    assert np.allclose(sweep["lidar2sensor"], expected, atol=1e-12)
    assert sweep["lidar_points"]["lidar2sensor"] == sweep["lidar2sensor"]
    assert np.array(sweep["lidar_points"]["ego2global"])[:3, 3].tolist() == [103.0, 50.0, 0.0]


def test_camera_sweeps_repeat_the_last_where_a_chain_ends(tmp_path):
    write_drive(tmp_path)
    first, second, third = infos_of(tmp_path, "sweep")
    assert first["sweeps"] == [] and len(second["sweeps"]) == len(third["sweeps"]) == 5
    stamps = [s["CAM_BACK"]["timestamp"] - FIRST_US for s in third["sweeps"]]
    assert stamps == [750_000, 500_000, 250_000, 0, 0]  # specs/sparseocc.md 1.2
    newest = third["sweeps"][0]
    assert list(newest) == list(CHANNELS[1:])
    camera = newest["CAM_FRONT"]
    assert camera["sensor2global_translation"].tolist() == [104.0, 50.0, 1.5]
    # Camera x is global -y, y is -z, z is x; stored transposed, so row i is where axis i points.
    assert camera["sensor2global_rotation"] == pytest.approx(np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]), abs=1e-12)
    assert camera["cam_intrinsic"].tolist() == [[1000, 0, 800], [0, 1000, 450], [0, 0, 1]]


def test_one_lost_camera_ends_all_chains(tmp_path):
    folder = write_drive(tmp_path)

    def cut(rows):
        next(row for row in rows if row["token"] == token(NAME, "CAM_BACK", 3))["prev"] = ""

    edit_table(folder, "sample_data", cut)
    sweeps = infos_of(tmp_path, "sweep")[2]["sweeps"]
    assert [s["CAM_FRONT"]["timestamp"] - FIRST_US for s in sweeps] == [750_000] * 5


def test_tables_without_firings_between_key_frames_have_no_sweeps(tmp_path):
    write_drive(tmp_path, sweeps=False)
    assert all(info["sweeps"] == [] for info in infos_of(tmp_path, "mmdet3d_v1.0"))
    assert all(info["sweeps"] == [] for info in infos_of(tmp_path, "sweep"))


def test_boxes_velocities_and_counts(tmp_path):
    write_drive(tmp_path)
    first, _, third = infos_of(tmp_path, "bevdet")
    # 20 m ahead in ego, 19 of the lidar, which looks along its y and is 1.5 m up.
    assert first["gt_boxes"][0] == pytest.approx([0.0, 19.0, -0.5, 4.0, 2.0, 1.5, np.pi / 2])
    assert first["gt_velocity"][0] == pytest.approx([0.0, 6.0])  # 3 m in half a second, along the lidar's y
    assert first["gt_names"].tolist() == ["car"] and first["num_lidar_pts"].tolist() == [5]
    assert first["valid_flag"].tolist() == [True] and third["valid_flag"].tolist() == [False]
    assert first["gt_instance_tokens"] == [token(NAME, "car")]
    rows, labels = first["ann_infos"]
    assert rows == [pytest.approx([20.0, 0.0, 1.0, 4.0, 2.0, 1.5, 0.0, 6.0, 0.0], abs=1e-12)] and labels == [0]
    assert third["ann_infos"] == ([], [])  # a box without points is none to learn from
    assert first["occ_path"] == "" and first["lidar_idx"] == token(NAME, "LIDAR_TOP", 0)
    info = infos_of(tmp_path, "mmdet3d_v1.1")[0]
    (instance,) = info["instances"]
    assert instance["bbox_label_3d"] == 0 and instance["velocity"] == pytest.approx([0.0, 6.0])
    (seen,) = info["cam_instances"]["CAM_FRONT"]
    # The camera is 1 m ahead of ego, 1.5 m up: the car's rear is 17 m away, 1 m to each side.
    assert seen["bbox_3d"] == pytest.approx([0.0, 0.5, 19.0, 4.0, 1.5, 2.0, -np.pi / 2], abs=1e-9)
    assert seen["depth"] == 19.0 and seen["center_2d"] == pytest.approx([800, 450 + 1000 * 0.5 / 19])
    near, top = 1000 / 17, 450 - 1000 * 0.25 / 17
    assert seen["bbox"] == pytest.approx([800 - near, top, 800 + near, 450 + 1000 * 1.25 / 17])
    assert seen["attr_label"] == 5 and seen["velocity"] == pytest.approx([0.0, 6.0], abs=1e-12)  # vehicle.moving


def test_tables_without_annotations_give_no_boxes(tmp_path):
    write_drive(tmp_path, annotations=False)
    assert "gt_boxes" not in infos_of(tmp_path, "mmdet3d_v1.0")[0]
    assert infos_of(tmp_path, "bevdet")[0]["ann_infos"] == ([], [])
    info = infos_of(tmp_path, "mmdet3d_v1.1")[0]
    assert "instances" not in info and "cam_instances" not in info
    assert read_infos(tmp_path / "x.pkl", tmp_path)[0].boxes is None


def test_lidarseg_files_are_named(tmp_path):
    folder = write_drive(tmp_path)
    lidar = token(NAME, "LIDAR_TOP", 0)
    rows = [{"token": lidar, "sample_data_token": lidar, "filename": f"lidarseg/v1.0-mini/{lidar}_lidarseg.bin"}]
    (folder / "lidarseg.json").write_text(json.dumps(rows))
    assert infos_of(tmp_path, "mmdet3d_v1.1")[0]["pts_semantic_mask_path"] == f"{lidar}_lidarseg.bin"
    first, second, _ = infos_of(tmp_path, "mmdet3d_v1.0", "data/")
    assert first["pts_semantic_mask_path"] == f"data/lidarseg/v1.0-mini/{lidar}_lidarseg.bin"
    assert "pts_semantic_mask_path" not in second


class TestLeanTables:
    def test_they_give_the_same_frames_with_fewer_rows(self, tmp_path):
        folder = write_drive(tmp_path)
        lean = LeanTables(folder, tmp_path, CHANNELS)
        ours, _ = frames_of(tmp_path, lean)
        whole, _ = frames_of(tmp_path)
        for style in STYLES:
            for name, frames in (("lean", ours), ("whole", whole)):
                write_infos(tmp_path / f"{name}.pkl", frames["train"], style, tmp_path)
            assert (tmp_path / "lean.pkl").read_bytes() == (tmp_path / "whole.pkl").read_bytes()
        assert len(lean.table("sample_data")) == 2 * 7 * 5 < len(json.loads((folder / "sample_data.json").read_text()))
        assert len(lean.table("ego_pose")) == 2 * 7 * 5 and "fileformat" not in lean.table("sample_data")[0]

    def test_only_key_frames_of_some_channels(self, tmp_path):
        folder = write_drive(tmp_path)
        lean = LeanTables(folder, tmp_path, CHANNELS, key_frames_only=CHANNELS[1:])
        assert len(lean.table("sample_data")) == 2 * (5 + 6 * 3)
        lean.release()
        assert len(lean.table("sample_data")) == 2 * (5 + 6 * 3)  # read again when asked for

    @pytest.mark.parametrize("chunk", [7, 100, 1 << 20])
    def test_rows_come_whole_however_the_file_is_cut(self, tmp_path, monkeypatch, chunk):
        monkeypatch.setattr("syntheocc.occupancy.data.table_stream._CHUNK", chunk)
        rows = [{"token": "é]}", "n": [1, 2.5e-3]}, {"token": "b", "t": {"a": "},{"}}]
        for text in (json.dumps(rows), json.dumps(rows, indent=0), "\n " + json.dumps(rows, indent="\t") + "\n\n"):
            (tmp_path / "t.json").write_text(text, encoding="utf-8")
            assert list(stream_rows(tmp_path / "t.json")) == rows
        (tmp_path / "t.json").write_text(" []")
        assert list(stream_rows(tmp_path / "t.json")) == []

    @pytest.mark.parametrize(
        "text, words",
        [
            ('{"token": "a"}', "a list of records"),
            ('[{"token": "a"}, {"token": "b", ', "after 1 rows .row 'a'."),
            ('[{"token": "a"},', "after 1 rows .row 'a'. the file ends there"),
            ('[{"token": "a"}, 3]', "3 is no record"),
            ('[{"token": "a"}] [', "more text follows"),
            ('[{"token": "a"}, {"token" "b"}]', "after 1 rows"),
            ("", "a list of records"),
        ],
    )
    def test_damaged_tables_are_named_with_their_last_whole_row(self, tmp_path, text, words):
        (tmp_path / "sample_data.json").write_text(text)
        with pytest.raises(ValueError, match=f"sample_data.json: .*{words}"):
            list(stream_rows(tmp_path / "sample_data.json"))

    def test_other_damage_is_named_too(self, tmp_path):
        with pytest.raises(ValueError, match="none.json: no such file"):
            list(stream_rows(tmp_path / "none.json"))
        (tmp_path / "x.json").write_bytes(b'[{"token": "\xff\xfe"}]')
        with pytest.raises(ValueError, match="x.json: not a whole JSON table"):
            list(stream_rows(tmp_path / "x.json"))


@pytest.mark.parametrize(
    "table, change, words",
    [
        ("ego_pose", {"rotation": [0, 0, 0, 0]}, "ego_pose.json, row .*unit quaternion"),
        ("ego_pose", {"translation": [1, 2]}, "ego_pose.json, row .*translation is 3 numbers"),
        ("ego_pose", {"translation": [1, 2, float("nan")]}, "ego_pose.json, row .*three finite metres"),
        ("sample_data", {"calibrated_sensor_token": "gone"}, "calibrated_sensor.json: no row has the token 'gone'"),
        ("sample_data", {"prev": "gone"}, "sample_data.json: no row has the token 'gone'"),
        ("sample_annotation", {"size": [1, 2]}, "sample_annotation.json, row .*size is 3 numbers"),
        ("sample_annotation", {"instance_token": "gone"}, "instance.json: no row has the token 'gone'"),
    ],
)
def test_a_bad_row_costs_its_sample_and_is_named(tmp_path, table, change, words):
    folder = write_drive(tmp_path)
    channel = {"sample_annotation": "car"}.get(table, "CAM_BACK")
    wanted = token(NAME, channel, 2 if table == "sample_annotation" else 4)
    edit_table(folder, table, lambda rows: next(r for r in rows if r["token"] == wanted).update(change))
    if change.get("calibrated_sensor_token"):  # no one's sensor: which channel a reading is of cannot be told at all
        with pytest.raises(ValueError, match=words):
            frames_of(tmp_path)
        return
    frames, unreadable = frames_of(tmp_path)
    last = token(NAME, 2)
    assert len(frames["train"]) == 2 and len(frames["val"]) == 3 and list(unreadable) == [last]
    with pytest.raises(ValueError, match=f"sample {last}: .*{words}"):
        raise ValueError(unreadable[last])


def test_the_same_tables_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_drive(tmp_path / name)
        for style in STYLES:
            infos_of(tmp_path / name, style)
            (tmp_path / name / "x.pkl").rename(tmp_path / name / f"{style}.pkl")
    for style in STYLES:
        assert (tmp_path / "a" / f"{style}.pkl").read_bytes() == (tmp_path / "b" / f"{style}.pkl").read_bytes()


def test_what_was_written_reads_back(tmp_path):
    write_drive(tmp_path)
    frames, _ = frames_of(tmp_path)
    for style in STYLES:
        write_infos(tmp_path / "x.pkl", frames["train"], style, tmp_path)
        for read, given in zip(read_infos(tmp_path / "x.pkl", tmp_path), frames["train"], strict=True):
            assert torch.allclose(read.cameras.cam2ego, given.cameras.cam2ego, atol=1e-9)
            assert torch.allclose(read.boxes.velocities, given.boxes.velocities, atol=1e-9)
            assert torch.allclose(read.boxes.box2ego, given.boxes.box2ego, atol=1e-9)
            assert read.boxes.num_radar_points.tolist() == [0]
