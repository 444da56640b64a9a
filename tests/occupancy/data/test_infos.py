import pickle

import numpy as np
import pytest
import torch

from syntheocc.engine.unpickling import safe_load
from syntheocc.occupancy.cameras import NUSCENES_CAMERAS
from syntheocc.occupancy.data.infos import STYLES, detect_style, read_infos
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes

HALF = 0.5**0.5
# One camera looks along ego x, the other along ego -x; a turn of the lidar by a quarter makes its y ego's x.
LIDAR2EGO = np.array([[0, 1, 0, 0.9], [-1, 0, 0, 0], [0, 0, 1, 1.8], [0, 0, 0, 1.0]])
FORWARD = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])
BACKWARD = np.array([[0, 0, -1, 0.1], [1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1.0]])
EGO2GLOBAL = np.array([[0, -1, 0, 100], [1, 0, 0, 200], [0, 0, 1, 0], [0, 0, 0, 1.0]])
INTRINSICS = np.array([[1000.0, 0, 800], [0, 1000, 450], [0, 0, 1]])


def hand_info(style):
    """One sample whose boxes and poses are typed in, in a style's own spelling."""
    cams = {}
    for name, cam2ego in (("CAM_BACK", BACKWARD), ("CAM_FRONT", FORWARD)):
        sensor2lidar = np.linalg.inv(LIDAR2EGO) @ cam2ego
        sensor2global = EGO2GLOBAL @ cam2ego
        cams[name] = {
            "data_path": f"./data/nuscenes/samples/{name}/car__{name}__1.jpg",
            "cam_intrinsic": INTRINSICS,
            "timestamp": 1_500_000_000_000_000,
            "sensor2lidar_rotation": sensor2lidar[:3, :3],
            "sensor2lidar_translation": sensor2lidar[:3, 3],
        }
        if style == "sweep":
            cams[name]["sensor2global_rotation"] = sensor2global[:3, :3].T
            cams[name]["sensor2global_translation"] = sensor2global[:3, 3]
            del cams[name]["sensor2lidar_rotation"], cams[name]["sensor2lidar_translation"]
        if style == "bevdet":
            # The camera fired 0.5 m (along ego x) before the lidar: in global that is 0.5 m less in y.
            del cams[name]["sensor2lidar_rotation"], cams[name]["sensor2lidar_translation"]
            mount = cam2ego.copy()
            mount[0, 3] += 0.5
            forward = name == "CAM_FRONT"
            cams[name] |= {
                "sensor2ego_translation": mount[:3, 3].tolist(),
                "sensor2ego_rotation": [0.5, -0.5, 0.5, -0.5] if forward else [0.5, -0.5, -0.5, 0.5],
                "ego2global_translation": [100, 199.5, 0],
                "ego2global_rotation": [HALF, 0, 0, HALF],
            }
    info = {
        "token": "abc",
        "timestamp": 1_500_000_000_000_000,
        "lidar_path": "./data/nuscenes/samples/LIDAR_TOP/car__LIDAR_TOP__1.pcd.bin",
        "sweeps": [],
        "lidar2ego_translation": [0.9, 0.0, 1.8],
        "lidar2ego_rotation": [HALF, 0, 0, -HALF],
        "ego2global_translation": [100.0, 200.0, 0.0],
        "ego2global_rotation": [HALF, 0, 0, HALF],
        "cams": cams,
        # In the lidar frame: 10 m ahead (lidar y), heading along lidar y, which is ego x.
        "gt_boxes": np.array([[1.0, 10.0, -1.0, 4.0, 2.0, 1.5, np.pi / 2]]),
        "gt_names": np.array(["car"]),
        "gt_velocity": np.array([[0.0, 3.0]]),
        "num_lidar_pts": np.array([12]),
    }
    if style == "bevdet":
        info |= {"ann_infos": ([], []), "lidar_idx": "lidartoken", "occ_path": "./data/gts/scene-0001/abc"}
    if style == "openoccupancy":
        info |= {"lidar_token": "lidartoken", "scene_token": "scenetoken", "prev": "", "next": "abd"}
    return info


def dump(path, document):
    path.write_bytes(pickle.dumps(document))
    return path


@pytest.mark.parametrize("style", ["mmdet3d_v1.0", "sweep", "bevdet", "openoccupancy"])
def test_hand_written_infos_of_each_style(tmp_path, data_root, style):
    path = dump(tmp_path / "infos.pkl", {"infos": [hand_info(style)], "metadata": {"version": "v1.0-mini"}})
    (frame,) = read_infos(path, data_root)
    frame.check_files()
    assert frame.extras["style"] == style
    assert frame.token == "abc" and frame.timestamp_us == 1_500_000_000_000_000
    assert frame.cameras.names == ("CAM_FRONT", "CAM_BACK")  # the order of NUSCENES_CAMERAS, not of the file
    assert np.allclose(frame.cameras["CAM_FRONT"].cam2ego, FORWARD, atol=1e-9)
    assert np.allclose(frame.cameras["CAM_BACK"].cam2ego, BACKWARD, atol=1e-9)
    assert np.allclose(frame.lidar2ego, LIDAR2EGO) and np.allclose(frame.ego2global, EGO2GLOBAL)
    assert frame.cameras["CAM_BACK"].intrinsics.tolist() == INTRINSICS.tolist()
    assert (frame.cameras["CAM_BACK"].height, frame.cameras["CAM_BACK"].width) == (900, 1600)
    # lidar (1, 10, -1) is ego (10 + 0.9, -1, -1 + 1.8); 3 m/s along lidar y are along ego x.
    assert frame.boxes.centers[0].tolist() == pytest.approx([10.9, -1.0, 0.8])
    assert frame.boxes.yaws[0].item() == pytest.approx(0.0)
    assert frame.boxes.sizes[0].tolist() == [4.0, 2.0, 1.5] and frame.boxes.names == ("car",)
    assert frame.boxes.velocities[0].tolist() == pytest.approx([3.0, 0.0])
    assert frame.boxes.num_lidar_points.tolist() == [12]
    if style == "openoccupancy":
        assert frame.prev is None and frame.next == "abd" and frame.extras["scene_token"] == "scenetoken"
    if style in ("openoccupancy", "bevdet"):
        assert frame.extras["lidar_token"] == "lidartoken"


def test_hand_written_v11_infos(tmp_path, data_root):
    image = {
        name: {
            "img_path": f"car__{name}__1.jpg",
            "cam2img": INTRINSICS.tolist(),
            "cam2ego": np.eye(4).tolist(),  # the mount without the motion: must not be used
            "lidar2cam": (np.linalg.inv(cam2ego) @ LIDAR2EGO).tolist(),
            "timestamp": 1_500_000_000.25,
        }
        for name, cam2ego in (("CAM_BACK", BACKWARD), ("CAM_FRONT", FORWARD))
    }
    info = {
        "token": "abc",
        "timestamp": 1_500_000_000.5,
        "ego2global": EGO2GLOBAL.tolist(),
        "images": image,
        "lidar_points": {"lidar_path": "car__LIDAR_TOP__1.pcd.bin", "lidar2ego": LIDAR2EGO.tolist()},
        "instances": [
            {"bbox_label_3d": 3, "bbox_3d": [1.0, 10.0, -1.0, 4.0, 2.0, 1.5, np.pi / 2], "velocity": [0.0, 3.0]},
            {"bbox_label_3d": -1, "bbox_3d": [0.0, 5.0, -1.0, 1.0, 1.0, 1.0, 0.0], "velocity": [np.nan, np.nan]},
        ],
    }
    document = {"metainfo": {"categories": {"car": 3}}, "data_list": [info]}
    (frame,) = read_infos(dump(tmp_path / "infos.pkl", document), data_root)
    frame.check_files()
    assert frame.extras["style"] == "mmdet3d_v1.1" and frame.timestamp_us == 1_500_000_000_500_000
    assert np.allclose(frame.cameras["CAM_FRONT"].cam2ego, FORWARD, atol=1e-9)
    assert frame.extras["camera_timestamps_us"]["CAM_BACK"] == 1_500_000_000_250_000
    assert frame.boxes.names == ("car", "other")
    assert frame.boxes.centers[0].tolist() == pytest.approx([10.9, -1.0, 0.8])
    assert frame.boxes.velocities[0].tolist() == pytest.approx([3.0, 0.0]) and frame.boxes.velocities[1].isnan().all()


def test_older_box_layouts_give_the_same_boxes(tmp_path, data_root):
    new = hand_info("mmdet3d_v1.0")
    old = hand_info("mmdet3d_v1.0")
    # Before 1.0: width before length, and -yaw - pi/2.
    old["gt_boxes"] = np.array([[1.0, 10.0, -1.0, 2.0, 4.0, 1.5, -np.pi / 2 - np.pi / 2]])
    ten = hand_info("bevdet")
    ten["gt_boxes"] = np.array([[1.0, 10.0, -1.0, 2.0, 4.0, 1.5, HALF, 0, 0, HALF]])
    nine = hand_info("mmdet3d_v1.0")
    nine["gt_boxes"] = np.concatenate([nine["gt_boxes"], nine.pop("gt_velocity")], axis=1)
    expected = read_infos(dump(tmp_path / "new.pkl", [new]), data_root)[0].boxes
    for name, info in (("old", old), ("ten", ten), ("nine", nine)):
        boxes = read_infos(dump(tmp_path / f"{name}.pkl", {"infos": [info]}), data_root)[0].boxes
        assert torch.allclose(boxes.box2ego, expected.box2ego, atol=1e-9), name
        assert torch.equal(boxes.sizes, expected.sizes) and torch.allclose(boxes.velocities, expected.velocities), name
    lonely = hand_info("mmdet3d_v1.0") | {"gt_names": np.array(["pedestrian"])}
    with pytest.raises(ValueError, match="no vehicle .* pass box_layout="):
        read_infos(dump(tmp_path / "lonely.pkl", [lonely]), data_root)
    boxes = read_infos(tmp_path / "lonely.pkl", data_root, box_layout="lwh_yaw")[0].boxes
    assert boxes.sizes[0].tolist() == [4.0, 2.0, 1.5]
    with pytest.raises(ValueError, match="box_layout 'hwl'"):
        read_infos(tmp_path / "lonely.pkl", data_root, box_layout="hwl")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("relative", [True, False])
def test_every_style_round_trips(tmp_path, make_frame, data_root, style, relative):
    given = [make_frame(1), make_frame(0)]
    write_infos(tmp_path / "infos.pkl", given, style, data_root if relative else None)
    frames = read_infos(tmp_path / "infos.pkl", data_root)
    assert [frame.token for frame in frames] == ["sample0", "sample1"]  # in time order
    frame, given = frames[1], given[0]
    frame.check_files()
    assert frame.extras["style"] == style and frame.timestamp_us == given.timestamp_us and frame.scene == given.scene
    assert frame.image_paths == given.image_paths and frame.lidar_path == given.lidar_path
    assert torch.allclose(frame.cameras.cam2ego, given.cameras.cam2ego, atol=1e-7)
    assert torch.allclose(frame.lidar2ego, given.lidar2ego) and torch.allclose(frame.ego2global, given.ego2global)
    assert torch.allclose(frame.boxes.box2ego, given.boxes.box2ego, atol=1e-7)
    assert torch.allclose(frame.boxes.velocities, given.boxes.velocities, equal_nan=True)
    assert frame.boxes.names == given.boxes.names and frame.boxes.num_lidar_points.tolist() == [7, 1]
    assert frame.extras["camera_timestamps_us"] == given.extras["camera_timestamps_us"]
    if style != "mmdet3d_v1.1":
        assert frame.caption == given.caption and frame.boxes.instance_tokens == ("car1", "walker1")
        assert frame.extras["scene_token"] == "scenetoken"


def test_every_chain_of_a_written_file_gives_the_same_camera(tmp_path, make_frame):
    """sensor2lidar, sensor2global and sensor2ego with the camera's own ego pose: other readers use any of them."""
    frame = make_frame()
    write_infos(tmp_path / "infos.pkl", [frame], "sweep")
    document = pickle.loads((tmp_path / "infos.pkl").read_bytes())
    for drop in (("sensor2global",), ("sensor2lidar",), ("sensor2global", "sensor2lidar")):
        info = dict(document["infos"][0], lidar_idx="x")
        info["cams"] = {
            name: {k: v for k, v in cam.items() if not k.startswith(drop)} for name, cam in info["cams"].items()
        }
        (read,) = read_infos(dump(tmp_path / "cut.pkl", {"infos": [info]}))
        assert torch.allclose(read.cameras.cam2ego, frame.cameras.cam2ego, atol=1e-9), drop
    cam = document["infos"][0]["cams"]["CAM_FRONT"]
    assert cam["sensor2ego_translation"] == pytest.approx([0.0, 0.0, 1.5])  # the mount, without the 0.3 m of motion


def test_missing_pictures_are_named_with_where_was_looked(tmp_path, data_root):
    (data_root / "samples" / "CAM_BACK" / "car__CAM_BACK__1.jpg").unlink()
    path = dump(tmp_path / "infos.pkl", [hand_info("mmdet3d_v1.0")])
    (frame,) = read_infos(path, data_root)
    assert [p.name for p in frame.missing_files()] == ["car__CAM_BACK__1.jpg"]
    with pytest.raises(ValueError, match="sample abc: CAM_BACK car__CAM_BACK__1.jpg was not found .looked at ") as e:
        frame.check_files()
    for place in ("data/nuscenes/samples/CAM_BACK/", str(data_root / "samples" / "CAM_BACK")):
        assert place in str(e.value)
    assert len(read_infos(path)) == 1  # no root, no files: reading alone needs neither


def test_unknown_styles_list_their_keys(tmp_path):
    for document, words in (
        ({"samples": []}, "samples"),
        (3, "int"),
        ([{"token": "a", "views": {}}], "token.*views"),
        ({"infos": [{"cams": {"CAM_FRONT": {"K": 1}}}]}, "cams.*cameras.*K"),
        ({"infos": [{"cams": [1]}]}, "cams"),
        ({"infos": [{"cams": {"CAM_FRONT": 1}}]}, "cams"),
        ({"data_list": None}, "data_list"),
        ({"data_list": [1]}, "data_list"),
    ):
        with pytest.raises(ValueError, match=f"x.pkl: no info pickle of a known style.*{words}"):
            read_infos(dump(tmp_path / "x.pkl", document))
    assert detect_style({"infos": []}) == "mmdet3d_v1.0"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda info: info.pop("lidar2ego_rotation"), "lacks 'lidar2ego_rotation', has"),
        (lambda info: info.update(ego2global_translation=None), "lacks 'ego2global_translation', has"),
        (lambda info: info.update(ego2global_translation=[1, 2]), "three finite metres"),
        (lambda info: info["cams"]["CAM_FRONT"].pop("data_path"), "CAM_FRONT: lacks 'data_path'"),
        (lambda info: info["cams"]["CAM_FRONT"].update(cam_intrinsic=np.full((3, 3), np.nan)), "CAM_FRONT: .*NaN"),
        (lambda info: info["cams"]["CAM_FRONT"].update(cam_intrinsic=[1.0, 2.0]), "CAM_FRONT: .*3x3"),
        (lambda info: info["cams"]["CAM_FRONT"].update(cam_intrinsic="fx"), "CAM_FRONT: .*numbers, got 'fx'"),
        (lambda info: info["cams"]["CAM_FRONT"].update(sensor2lidar_rotation=np.eye(2)), "2, 2"),
        (lambda info: info["cams"]["CAM_FRONT"].update(sensor2lidar_rotation=np.zeros((3, 3))), "CAM_FRONT: .*rigid"),
        (lambda info: info["cams"].update(CAM_FRONT=None), "CAM_FRONT: has None where a record"),
        (lambda info: info.update(gt_boxes=np.zeros((1, 5))), r"gt_boxes of shape \(1, 5\)"),
        (lambda info: info.update(gt_boxes=[["a"] * 7]), "gt_boxes must be .*numbers"),
        (lambda info: info.update(cams={}), "no camera"),
        (lambda info: info.update(token="../x"), "no plain name"),
    ],
)
def test_bad_infos_are_named(tmp_path, change, words):
    info = hand_info("mmdet3d_v1.0") | {"lidar_token": "x"}
    change(info)
    with pytest.raises(ValueError, match=f"x.pkl, sample 0 .*{words}"):
        read_infos(dump(tmp_path / "x.pkl", {"infos": [info]}), box_layout="lwh_yaw")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda info: info["images"]["CAM_BACK"].update(lidar2cam=np.zeros((4, 4)).tolist()), "CAM_BACK: lidar2cam"),
        (lambda info: info["images"]["CAM_BACK"].update(lidar2cam=np.eye(3).tolist()), "CAM_BACK: lidar2cam .*4x4"),
        (lambda info: info["images"]["CAM_BACK"].update(img_path=None), "CAM_BACK: lacks 'img_path'"),
        (lambda info: info["images"].update(CAM_BACK=None), "CAM_BACK: has None where a record"),
        (lambda info: info["lidar_points"].update(lidar2ego="abc"), "lidar2ego must be .*'abc'"),
        (lambda info: info["instances"][0].update(bbox_3d=[1, 2]), "a bbox_3d is x y z l w h yaw"),
        (lambda info: info["instances"][0].pop("bbox_label_3d"), "lacks 'bbox_label_3d'"),
        (lambda info: info.update(timestamp=None), "lacks 'timestamp'"),
    ],
)
def test_bad_v11_infos_are_named(tmp_path, make_frame, change, words):
    write_infos(tmp_path / "x.pkl", [make_frame()], "mmdet3d_v1.1")
    document = safe_load(tmp_path / "x.pkl")
    change(document["data_list"][0])
    with pytest.raises(ValueError, match=f"x.pkl, sample 0 .sample0.: {words}"):
        read_infos(dump(tmp_path / "x.pkl", document))


def test_unknown_velocities_and_no_boxes_are_no_error(tmp_path, make_frame):
    write_infos(tmp_path / "x.pkl", [make_frame()], "mmdet3d_v1.1")
    document = safe_load(tmp_path / "x.pkl")
    document["data_list"][0]["instances"][0]["velocity"] = None
    assert read_infos(dump(tmp_path / "x.pkl", document))[0].boxes.velocities.isnan().all()
    document["data_list"][0]["instances"] = []
    document["metainfo"] = None
    assert len(read_infos(dump(tmp_path / "x.pkl", document))[0].boxes) == 0


def test_cameras_can_be_demanded_and_writing_needs_poses(tmp_path, make_frame, six_cameras):
    path = dump(tmp_path / "x.pkl", [hand_info("mmdet3d_v1.0")])
    assert read_infos(path, cameras=["CAM_BACK"])[0].cameras.names == ("CAM_BACK",)
    with pytest.raises(ValueError, match=r"\(abc\): has no camera CAM_BACK_LEFT; it has \['CAM_BACK', 'CAM_FRONT'\]"):
        read_infos(path, cameras=["CAM_BACK", "CAM_BACK_LEFT"])
    frame = make_frame()
    with pytest.raises(ValueError, match="unknown info style 'waymo'"):
        write_infos(tmp_path / "y.pkl", [frame], "waymo")
    with pytest.raises(ValueError, match="does not lie below the data root"):
        write_infos(tmp_path / "y.pkl", [frame], data_root=tmp_path / "elsewhere")
    object.__setattr__(frame, "lidar2ego", None)
    with pytest.raises(ValueError, match="sample0 lacks lidar2ego"):
        write_infos(tmp_path / "y.pkl", [frame])
    assert not (tmp_path / "y.pkl").exists()


@pytest.mark.real_data
def test_real_pickle_and_real_tables_give_the_same_cameras(real_data):
    folder = real_data / "nuscenes_scene0061"
    (from_tables,) = read_nuscenes(folder, "tables_reduced")
    (from_infos,) = read_infos(folder / "info_mmdet3d_v1.1.pkl", folder)
    from_infos.check_files()
    assert from_infos.cameras.names == from_tables.cameras.names == NUSCENES_CAMERAS
    assert from_infos.image_paths == from_tables.image_paths and from_infos.timestamp_us == from_tables.timestamp_us
    assert float((from_infos.cameras.cam2ego - from_tables.cameras.cam2ego).abs().max()) < 1e-4
    assert len(from_infos.boxes) == 69 and set(from_infos.boxes.names) <= {
        "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian",
        "traffic_cone", "barrier", "other",
    }  # fmt: skip


@pytest.mark.real_data
def test_dropping_the_ego_motion_would_move_the_real_cameras(real_data):
    """shared/real/README.md, 4: metres between the compensated pose and the mount, camera by camera."""
    folder = real_data / "nuscenes_scene0061"
    (frame,) = read_nuscenes(folder, "tables_reduced")
    moved = {}
    for name, camera in frame.cameras.items():
        own = frame.extras["camera_ego2global"][name]
        mount = torch.linalg.inv(own) @ frame.ego2global @ camera.cam2ego
        moved[name] = float((mount - camera.cam2ego)[:3, 3].norm())
    assert 0.32 < moved["CAM_FRONT"] < 0.34 and 0.39 < moved["CAM_FRONT_LEFT"] < 0.41
    assert moved["CAM_BACK_LEFT"] < 0.01


@pytest.mark.real_data
def test_real_boxes_hold_their_lidar_points(real_data):
    """The annotation counts the returns in each box: the boxes must lie where the sweep is."""
    from syntheocc.occupancy.data.lidar import read_lidar
    from syntheocc.occupancy.transforms import transform_points

    folder = real_data / "nuscenes_scene0061"
    (frame,) = read_infos(folder / "info_mmdet3d_v1.1.pkl", folder)
    points = torch.from_numpy(read_lidar(frame.lidar_path)[:, :3].astype(np.float64))
    counted = frame.boxes.contains(transform_points(frame.lidar2ego, points)).sum(1)
    told = frame.boxes.num_lidar_points
    assert float((counted - told).abs().sum() / told.sum()) < 0.05  # boxes stand upright in the tilted lidar frame
