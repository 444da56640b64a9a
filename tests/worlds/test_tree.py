"""A written tree, read back by the modules that read the real files, against the scene it was made from."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from syntheocc.engine.files import read_json
from syntheocc.occupancy import OCC3D_NUSCENES, SYNTHEOCC, render_mpi
from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.lidar import read_lidar
from syntheocc.occupancy.data.nuscenes import TABLE_NAMES, read_tables
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes
from syntheocc.occupancy.data.occ3d import read_occ3d
from syntheocc.occupancy.data.occupancy_files import occupancy_path, read_occupancy
from syntheocc.occupancy.data.split_infos import INFO_FILES, info_file
from syntheocc.occupancy.transforms import invert_rigid, transform_points
from syntheocc.worlds.camera_images import render_view
from syntheocc.worlds.labels import exact_labels
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.table_rows import visibility_token
from syntheocc.worlds.taxonomy import LIDARSEG_NAMES, LIDARSEG_TO_WORLD, WORLD_TAXONOMY
from syntheocc.worlds.timeline import key_frame, readings
from syntheocc.worlds.tree import finish_tree, is_complete, part_path, write_scene
from syntheocc.worlds.tree_labels import LABEL_ROOTS, PANOPTIC_ROOT
from syntheocc.worlds.visibility import visible_shares

FRAMES = 2
EGO = LIDARSEG_NAMES.index("vehicle.ego")


@pytest.fixture(scope="module")
def scene():
    return make_scene(11, key_frames=FRAMES, image_size=(200, 112))


@pytest.fixture(scope="module")
def root(scene, tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "nuscenes"
    write_scene(scene, root)
    finish_tree(root)
    return root


@pytest.fixture(scope="module")
def frames(root):
    return read_nuscenes(root)


def owners(scene, root, frame):
    """A frame's returns in ego [N, 3], their categories and their actors (-1 none), as the panoptic file says."""
    token = frame.extras["lidar_token"]
    points = torch.from_numpy(read_lidar(frame.lidar_path)[:, :3].astype(np.float64))
    panoptic = np.load(root / f"panoptic/v1.0-trainval/{token}_panoptic.npz")["data"].astype(np.int64)
    return transform_points(frame.lidar2ego, points), panoptic // 1000, panoptic % 1000 - 1


class TestTables:
    def test_all_thirteen_and_all_files_are_there(self, scene, root, frames):
        tables = read_tables(root)
        assert all(tables.table(name) for name in TABLE_NAMES)
        assert len(frames) == FRAMES and all(not frame.missing_files() for frame in frames)
        assert all((root / row["filename"]).is_file() for row in tables.table("sample_data"))
        assert all((root / row["filename"]).is_file() for row in tables.table("map"))
        assert [row["index"] for row in tables.table("category")] == list(range(32))
        assert not list(root.rglob("*.tmp*"))  # nothing half-written is left

    def test_the_frames_are_the_scenes(self, scene, root, frames):
        for index, frame in enumerate(frames):
            expected = key_frame(scene, index, root)
            assert frame.token == expected.token and frame.timestamp_us == expected.timestamp_us
            assert frame.caption == scene.caption and frame.scene == scene.name
            assert torch.allclose(frame.ego2global, expected.ego2global, atol=1e-9)
            for name, camera in frame.cameras.items():
                assert torch.allclose(camera.cam2ego, expected.cameras[name].cam2ego, atol=1e-9)
                assert (camera.width, camera.height) == (200, 112)
        assert frames[0].next == frames[1].token and frames[1].prev == frames[0].token

    @pytest.mark.parametrize("style", INFO_FILES)
    def test_infos_agree_with_the_tables(self, root, frames, style):
        infos = read_infos(root / info_file(style, "train"), root)
        assert [info.token for info in infos] == [frame.token for frame in frames]
        for info, frame in zip(infos, frames, strict=True):
            assert info.extras["style"] == style
            info.check_files()
            for name, camera in frame.cameras.items():
                assert (info.cameras[name].cam2ego - camera.cam2ego).abs().max() < 1e-6
                assert (info.cameras[name].intrinsics - camera.intrinsics).abs().max() < 1e-6
                assert (info.cameras[name].width, info.cameras[name].height) == (200, 112)
            assert len(info.boxes) == len(frame.boxes)
            assert (info.boxes.centers - frame.boxes.centers).abs().max() < 1e-6

    def test_boxes_are_the_actors(self, scene, frames):
        tokens = {actor.token: i for i, actor in enumerate(scene.actors)}
        boxes = frames[1].boxes
        assert len(boxes) > 5 and len(set(boxes.instance_tokens)) == len(boxes)
        exact = scene.boxes_at(scene.key_times[1], scene.ego.pose_at(scene.key_times[1]))
        for box, size, token in zip(boxes.box2ego, boxes.sizes, boxes.instance_tokens, strict=True):
            assert torch.allclose(box, exact.box2ego[tokens[token]], atol=1e-6)
            assert size.tolist() == pytest.approx(scene.actors[tokens[token]].size)

    def test_a_box_holds_its_own_returns(self, scene, root, frames):
        """Up to what a thing moves during the sweep (50 ms), and the range noise."""
        checked = 0
        for frame, t in zip(frames, scene.key_times, strict=True):
            points, _, owner = owners(scene, root, frame)
            boxes = frame.boxes
            index = {token: i for i, token in enumerate(boxes.instance_tokens)}
            for a in np.unique(owner[owner >= 0]):
                actor = scene.actors[a]
                if actor.token not in index:  # farther than anything is annotated
                    continue
                i = index[actor.token]
                margin = 0.1 + 0.05 * float(actor.velocity_at(t).norm())
                inside = boxes.filter([i]).contains(points[torch.from_numpy(owner == a)], margin)
                assert inside.all(), (actor.category, margin)
                still = boxes.filter([i]).contains(points)
                assert int(still.sum()) == int(boxes.num_lidar_points[i])
                checked += int(inside.sum())
        assert checked > 200

    def test_lidarseg_says_what_panoptic_says(self, root, frames):
        token = frames[0].extras["lidar_token"]
        lidarseg = np.fromfile(root / f"lidarseg/v1.0-trainval/{token}_lidarseg.bin", np.uint8)
        points, category, owner = owners(None, root, frames[0])
        assert len(lidarseg) == len(points) and (lidarseg == category).all()
        things = np.isin(category, [i for i, n in enumerate(LIDARSEG_NAMES) if n.startswith(("human", "vehicle"))])
        assert (owner[things & (category != EGO)] >= 0).all() and (owner[category == EGO] < 0).all()


def nearest_agreement(scene, frame, grid, views, rig=None):
    """Share of the latent pixels in the grid whose nearest class in the MPI is the exact one; prints the confusion."""
    rig = rig or frame.cameras
    height, width = 14, 25
    labels = SYNTHEOCC.taxonomy
    mpi = render_mpi(grid, rig, height, width)
    table = np.zeros((labels.num_classes, labels.num_classes), int)
    for v, (name, camera) in enumerate(frame.cameras.items()):
        view = views[name]
        rows, columns = (torch.arange(n) * 8 + 4 for n in (height, width))  # the pixel nearest to the cell's middle
        exact, depth = (part[rows][:, columns] for part in (view.labels, view.depth))
        pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        points = camera.pixel_rays(pixels) * torch.where(torch.isfinite(depth), depth, 0.0)[..., None]
        grid2cam = camera.ego2cam @ grid.grid2ego
        _, inside = grid.spec.index_of(transform_points(invert_rigid(grid2cam), points.reshape(-1, 3)))
        known = (exact != WORLD_TAXONOMY.free) & (exact < labels.num_classes) & torch.isfinite(depth)
        keep = inside.reshape(exact.shape) & known
        np.add.at(table, (exact[keep].numpy(), mpi.nearest[v][keep].numpy()), 1)
    share = np.trace(table) / table.sum()
    if rig is frame.cameras:
        print(f"\nMPI against exact semantics, {table.sum()} latent pixels, {share:.3f} agree (rows exact):")
        for i in np.flatnonzero(table.sum(1)):
            wrong = {labels.classes[j]: int(table[i, j]) for j in np.flatnonzero(table[i]) if j != i}
            print(f"  {labels.classes[i]:22s}{table[i].sum():5d}  {table[i, i] / table[i].sum():.3f}  {wrong}")
    return share


@pytest.fixture(scope="module")
def views(scene, frames):
    """The exact maps of the second key frame's cameras."""
    fired = {r.channel: r for r in readings(scene) if r.sample == 1}
    return {
        name: render_view(scene, camera, scene.ego.pose_at(fired[name].t), fired[name].t)
        for name, camera in scene.rig.items()
    }


class TestAcrossModalities:
    def test_the_mpi_shows_what_the_cameras_see(self, scene, root, frames, views):
        frame = frames[1]
        path = occupancy_path(root / LABEL_ROOTS["syntheocc"], frame, "syntheocc")
        grid = read_occupancy(path, "syntheocc", frame.lidar2ego)
        assert nearest_agreement(scene, frame, grid, views) > 0.90

    def test_without_the_sensors_own_poses_it_does_not_fit(self, scene, root, frames, views):
        """Lidar points in the pictures: their depth against the exact maps, with and without compensation."""
        frame = frames[1]
        points, category, owner = owners(scene, root, frame)
        still = torch.from_numpy((owner < 0) & (category != EGO))
        naive = CameraRig({name: camera.moved(scene.rig[name].cam2ego) for name, camera in frame.cameras.items()})
        moved = max(float((frame.cameras[n].cam2ego - naive[n].cam2ego)[:3, 3].norm()) for n in frame.cameras.names)
        off, seen = {}, {}
        for label, rig in (("own poses", frame.cameras), ("one pose", naive)):
            errors = []
            for name, camera in rig.items():
                pixels, depth = camera.project(transform_points(camera.ego2cam, points[still]))
                near = pixels.nan_to_num(-1).round().long()
                inside = (near >= 0).all(1) & (near[:, 0] < 200) & (near[:, 1] < 112) & (depth > 0)
                exact = views[name].depth[near[inside, 1], near[inside, 0]]
                error = (depth[inside] - exact).abs()
                errors.append(error[error < 0.5])
            off[label], seen[label] = float(torch.cat(errors).median()), len(torch.cat(errors))
        print(f"\nmoved by up to {moved:.3f} m; median depth errors {off}, points that fit {seen}")
        assert moved > 0.05
        assert off["own poses"] < 0.05 and off["one pose"] > 1.25 * off["own poses"]

    def test_returns_have_the_class_of_their_pixel(self, scene, root, frames, views):
        """Away from edges (the eight pixels around are of one class), among the returns that the camera sees."""
        points, category, _ = owners(scene, root, frames[1])
        label = torch.from_numpy(LIDARSEG_TO_WORLD[category])
        agree = []
        for name, camera in frames[1].cameras.items():
            pixels, depth = camera.project(transform_points(camera.ego2cam, points))
            near = pixels.nan_to_num(-1).round().long()
            inside = (near > 0).all(1) & (near[:, 0] < 199) & (near[:, 1] < 111) & (depth > 0)
            u, v = near[inside].unbind(1)
            around = torch.stack([views[name].labels[v + i, u + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
            calm = (around == around[4]).all(0) & ((depth[inside] - views[name].depth[v, u]).abs() < 0.5)
            agree.append((label[inside] == around[4])[calm])
        agree = torch.cat(agree)
        print(f"\n{len(agree)} returns, {float(agree.float().mean()):.4f} have the class of their pixel")
        assert len(agree) > 3000 and agree.float().mean() > 0.99

    def test_occupancy_files_are_the_exact_labels(self, scene, root, frames):
        for index, frame in enumerate(frames):
            t = scene.key_times[index]
            for kind in ("surroundocc", "openoccupancy", "occ3d", "syntheocc"):
                path = occupancy_path(root / LABEL_ROOTS[kind], frame, kind)
                read = read_occupancy(path, kind, frame.lidar2ego)
                if kind in ("surroundocc", "occ3d"):
                    exact, instances = exact_labels(scene, t, (OCC3D_NUSCENES if kind == "occ3d" else read))
                    assert torch.equal(read.labels, exact.labels)
                assert torch.allclose(read.grid2ego, frame.lidar2ego if kind != "occ3d" else torch.eye(4).double())
                assert 0.005 < read.occupied().float().mean() < 0.3
            panoptic = read_occ3d(occupancy_path(root / PANOPTIC_ROOT, frame, "occ3d"))
            assert torch.equal(panoptic.instances > 0, instances > 0)
            assert panoptic.mask_lidar.any() and panoptic.mask_camera.any() and not panoptic.mask_camera.all()
            # what a return lies in was observed by the lidar
            points, category, _ = owners(scene, root, frame)
            voxel, inside = panoptic.grid.spec.index_of(points[torch.from_numpy(category != EGO)])
            assert panoptic.mask_lidar[tuple(voxel[inside].T)].all()

    def test_visibility_comes_from_the_instance_maps(self, scene, root, frames, views):
        fired = {r.channel: r for r in readings(scene) if r.sample == 1}
        shares = visible_shares(scene, {name: (view.instances, fired[name].t) for name, view in views.items()})
        tables = read_tables(root)
        rows = {row["instance_token"]: row for row in tables.annotations[frames[1].token]}
        for actor, share in zip(scene.actors, shares, strict=True):
            if actor.token in rows:
                assert rows[actor.token]["visibility_token"] == visibility_token(share)
        assert {row["visibility_token"] for row in rows.values()} >= {"1", "4"}


def test_visibility_levels():
    assert [visibility_token(share) for share in (0.0, 0.39, 0.4, 0.6, 0.79, 0.8, 1.0)] == list("1123344")


class TestReadings:
    def test_key_frames_alone(self, scene):
        fired = readings(scene)
        assert len(fired) == 7 * FRAMES and all(r.key for r in fired)
        lidar = next(r for r in fired if r.channel == "LIDAR_TOP" and r.sample == 1)
        for reading in fired:
            if reading.sample == 1:
                assert lidar.timestamp_us - 50_000 <= reading.timestamp_us <= lidar.timestamp_us

    def test_sweeps_fill_the_time_between(self, scene):
        fired = readings(scene, sweeps=True)
        for channel, number in (("LIDAR_TOP", 10), ("CAM_FRONT", 6)):
            mine = [r for r in fired if r.channel == channel]
            assert len(mine) == 1 + number
            steps = np.diff([r.timestamp_us for r in mine])
            assert (abs(steps - 500_000 / number) <= 1).all()
            # the devkit interpolates boxes between a sweep's sample and the one before
            assert [r.sample for r in mine] == [0] + [1] * number
        assert len({r.token for r in fired}) == len({r.filename for r in fired}) == len(fired)


def test_a_part_says_that_a_scene_is_complete(scene, root, tmp_path):
    assert is_complete(root, scene.name) and not is_complete(root, "scene-9999")
    part = read_json(part_path(root, scene.name))
    assert part["split"] == scene.split and len(part["rows"]["sample"]) == FRAMES
    with pytest.raises(ValueError, match="no complete scene"):
        finish_tree(tmp_path)


def test_two_scenes_share_what_is_common(scene, root, tmp_path):
    """Rows of a second scene are put beside the first one's; common rows stay single."""
    (tmp_path / "world").mkdir()
    shutil.copy(part_path(root, scene.name), tmp_path / "world")
    part = read_json(part_path(root, scene.name))
    finish_tree(tmp_path)
    one = {name: len(read_tables(tmp_path).table(name)) for name in TABLE_NAMES}
    other = replace(scene, name="scene-0777", split="val")
    from syntheocc.engine.files import atomic_write_json
    from syntheocc.worlds.table_rows import Seen, scene_rows

    seen = [[Seen(0.0, 0)] * len(scene.actors)] * FRAMES
    rows = scene_rows(other, readings(other), seen, "v1.0-trainval")
    assert rows["sample_annotation"] == []  # the lidar met nothing, so nothing is annotated
    atomic_write_json(part_path(tmp_path, other.name), {"split": "val", "rows": rows})
    frames = finish_tree(tmp_path)
    assert {frame.scene for frame in frames} == {scene.name, "scene-0777"}
    two = {name: len(read_tables(tmp_path).table(name)) for name in TABLE_NAMES}
    assert two["sample"] == 2 * one["sample"] and two["category"] == one["category"] == 32
    assert len(read_infos(tmp_path / "nuscenes_infos_val.pkl", tmp_path)) == FRAMES == len(part["rows"]["sample"])
