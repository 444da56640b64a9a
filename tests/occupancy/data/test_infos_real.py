"""The infos that we make of real tables against the real info file that mmdetection3d 1.1 made, field by field.

The reduced tables hold one sample and no annotations: what follows from cameras, lidar and poses is compared as the
command writes it. Boxes are compared from a frame whose boxes are those of the real file, so that every field that
derives from a box (2D rectangles, centres, velocities in camera axes, labels, validity) is checked; where a box comes
from in the tables (its pose, size, neighbours' times) is checked with the drive of `test_infos_from_tables`.

Not in the reduced tables, hence not compared: annotations themselves and the attributes (the latter are taken from the
real file and must come back). Not in the real file: sweeps (the sample is the first of its scene).
"""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from syntheocc.commands.infos import InfosConfig, run
from syntheocc.engine.unpickling import safe_load
from syntheocc.occupancy.data.frames import DETECTION_CLASSES
from syntheocc.occupancy.data.info_boxes import boxes_from_rows, quaternion_yaws
from syntheocc.occupancy.data.info_camera_boxes import ATTRIBUTE_LABELS
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes

pytestmark = pytest.mark.real_data

# What a real file rounds to float32: relative to the value, a pixel's to its larger coordinate.
FLOAT32 = 2.0**-23
# Ours alone: the sizes of the pictures and the scene's name, which our own reader asks for.
OURS = {"scene_name", "width", "height"}


@pytest.fixture(scope="module")
def folder(real_data):
    return real_data / "nuscenes_scene0061"


@pytest.fixture(scope="module")
def real(folder):
    (info,) = safe_load(folder / "info_mmdet3d_v1.1.pkl")["data_list"]
    return info


def leaves(value, path=""):
    """Path -> plain value, with the indices of lists left out of the dictionaries' paths."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key}")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield f"{path}/#", len(value)
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}/{i}")
    else:
        yield path, value


def compare(real, ours, exactly, roughly):
    """Every field of `real` is in `ours` and equal; `roughly` holds those that the real file rounds to float32."""
    expected, got = dict(leaves(real)), dict(leaves(ours))
    assert set(expected) - set(got) == set()
    assert {path.rsplit("/", 1)[-1] for path in set(got) - set(expected)} <= OURS
    for path, value in expected.items():
        name = path.rsplit("/", 1)[-1]
        if name in roughly:
            a, b = np.array(value, float), np.array(got[path], float)
            size = np.maximum(np.abs(a) if a.ndim == 2 else np.abs(a).max(), 1)  # a matrix's entries each on its own
            assert (np.abs(a - b) <= roughly[name] * FLOAT32 * size).all(), path
        elif isinstance(value, list | float):
            a, b = np.array(value, float), np.array(got[path], float)
            assert np.allclose(a, b, rtol=0, atol=exactly, equal_nan=True), path
        else:
            assert value == got[path], path


def test_cameras_lidar_and_poses(folder, real, tmp_path):
    assert run(InfosConfig(dataroot_path=folder, version="tables_reduced", out=tmp_path, check_files=True)) == 0
    document = pickle.loads((tmp_path / "nuscenes_infos_train_v1.1.pkl").read_bytes())
    (ours,) = document["data_list"]
    assert document["metainfo"]["categories"] == safe_load(folder / "info_mmdet3d_v1.1.pkl")["metainfo"]["categories"]
    tables_lack = {"instances", "cam_instances"}
    assert set(real) - set(ours) == tables_lack
    given = {key: value for key, value in real.items() if key not in tables_lack}
    assert list(ours["images"]) == list(real["images"])  # also in the published order
    compare(given, ours, exactly=0, roughly={"ego2global": 1, "cam2ego": 1, "lidar2cam": 2, "lidar2ego": 1})


def test_the_other_styles_agree_with_it(folder, real, tmp_path):
    run(InfosConfig(dataroot_path=folder, version="tables_reduced", out=tmp_path))
    for name in ("nuscenes_infos_train", "nuscenes_infos_train_sweep", "bevdetv2-nuscenes_infos_train"):
        (info,) = pickle.loads((tmp_path / f"{name}.pkl").read_bytes())["infos"]
        assert info["timestamp"] == round(real["timestamp"] * 1e6) and info["sweeps"] == []
        for camera, image in real["images"].items():
            cam = info["cams"][camera]
            assert cam["data_path"] == f"samples/{camera}/{image['img_path']}"
            assert cam["sample_data_token"] == image["sample_data_token"]
            lidar2cam = np.linalg.inv(
                np.block(
                    [
                        [cam["sensor2lidar_rotation"], cam["sensor2lidar_translation"][:, None]],
                        [np.zeros(3), np.ones(1)],
                    ]
                )
            )
            assert np.abs(lidar2cam - image["lidar2cam"]).max() < 1e-7
            assert np.array_equal(cam["cam_intrinsic"], image["cam2img"])


def test_everything_that_derives_from_boxes(folder, real, tmp_path):
    (frame,) = read_nuscenes(folder, "tables_reduced")
    write_infos(tmp_path / "x.pkl", [with_real_boxes(frame, real)], "mmdet3d_v1.1", folder, "v1.0-mini")
    (ours,) = pickle.loads((tmp_path / "x.pkl").read_bytes())["data_list"]
    assert len(real["instances"]) == 69 and sum(map(len, real["cam_instances"].values())) == 84
    boxes = ("instances", "cam_instances")
    # Pixels to a hundred-millionth; the real file rounds the projected centre and its depth to float32, and projects
    # with matrices of that precision.
    compare(
        {key: real[key] for key in boxes}, {key: ours[key] for key in boxes}, exactly=1e-10,
        roughly={"center_2d": 10, "depth": 1},
    )  # fmt: skip


def with_real_boxes(frame, real):
    """The frame with the boxes of the real file: upright in global, as nuScenes annotates them."""
    lidar2global = (frame.ego2global @ frame.lidar2ego).numpy()
    instances = real["instances"]
    poses = []
    for instance in instances:
        center, yaw = instance["bbox_3d"][:3], instance["bbox_3d"][6]
        turn = yaw
        for _ in range(20):  # the file has the yaw in the lidar frame: which turn about global z gives it?
            error = float(quaternion_yaws((np.linalg.inv(lidar2global) @ turn_about_z(turn))[None])[0]) - yaw
            turn -= (error + math.pi) % (2 * math.pi) - math.pi
        box2global = turn_about_z(turn)
        box2global[:3, 3] = (lidar2global @ np.array([*center, 1.0]))[:3]
        poses.append(np.linalg.inv(frame.ego2global.numpy()) @ box2global)
    names = [DETECTION_CLASSES[i["bbox_label_3d"]] if i["bbox_label_3d"] >= 0 else "animal" for i in instances]
    boxes = boxes_from_rows(
        np.array([i["bbox_3d"] for i in instances]), names, frame.lidar2ego, "lwh_yaw",
        np.array([i["velocity"] for i in instances]), [i["num_lidar_pts"] for i in instances],
        num_radar_points=[i["num_radar_pts"] for i in instances], ego2global=frame.ego2global,
    )  # fmt: skip
    boxes = replace(boxes, box2ego=torch.from_numpy(np.stack(poses)))
    return replace(frame, boxes=replace(boxes, attributes=attributes_of(frame, real, boxes)))


def attributes_of(frame, real, boxes):
    """The attributes that the real file names where a camera sees the box."""
    found = [""] * len(boxes)
    for camera, seen in real["cam_instances"].items():
        centers = (frame.cameras[camera].ego2cam @ boxes.box2ego)[:, :3, 3].numpy()
        for instance in seen:
            i = int(np.linalg.norm(centers - instance["bbox_3d"][:3], axis=1).argmin())
            found[i] = (*ATTRIBUTE_LABELS, "")[instance["attr_label"]]
    return tuple(found)


def turn_about_z(yaw):
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    return pose
