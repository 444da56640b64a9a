"""Labels of a street that is known to the centimetre, and what happens when its files are damaged."""

import json
import shutil

import numpy as np
import pytest
import torch
from built_street import BETWEEN, SIZE, SPEED, VERSION, cars_at, ego_at, write_street

from syntheocc.commands import main
from syntheocc.commands.build import BuildConfig
from syntheocc.occupancy import OCC3D_NUSCENES
from syntheocc.occupancy.accumulation.frames import BuildRules
from syntheocc.occupancy.accumulation.point_classes import RuleClasses
from syntheocc.occupancy.accumulation.scene import read_scene
from syntheocc.occupancy.accumulation.sources import class_source, point_classes, read_sources
from syntheocc.occupancy.data.grid_files import read_grid_file
from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.occ3d import read_occ3d
from syntheocc.occupancy.data.occupancy_files import occupancy_path, read_occupancy
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.transforms import invert_rigid, transform_points

SPEC = GridSpec((-16.0, -16.0, -1.2), 0.4, (80, 80, 12))
CAR, ROAD, MANMADE, FREE = (OCC3D_NUSCENES.taxonomy.id_of(n) for n in ("car", "driveable_surface", "manmade", "free"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("street")
    write_street(folder)
    return folder


@pytest.fixture(scope="module")
def scene(root):
    files, unreadable, tables = read_sources(root)
    assert not unreadable and len(files) == 1
    assert class_source(root, "auto", tables) == "lidarseg"
    return read_scene(files[0].frames, files[0].sweeps, point_classes(root, "lidarseg", tables)), files[0].frames


def near_boxes(t, margin):
    """Voxels [X, Y, Z] whose centre lies in a car's box or `margin` metres around it."""
    inside = torch.zeros(SPEC.shape, dtype=torch.bool)
    for car in invert_rigid(ego_at(t)) @ cars_at(t):
        local = transform_points(invert_rigid(car), SPEC.centers().reshape(-1, 3)).reshape(*SPEC.shape, 3)
        inside |= (local.abs() <= SIZE / 2 + margin).all(-1)
    return inside


def test_every_sweep_is_found_with_its_pose(scene, root):
    made, _ = scene
    assert [bool(f.sample) for f in made.files] == [True, False, False] * 2 + [True]
    third = made.files[1]
    assert third.path.parent == root / "sweeps/LIDAR_TOP" and len(made.files) == 3 + 2 * BETWEEN
    assert torch.allclose(third.ego2global, ego_at(0.5 / 3), atol=1e-6)


def test_a_driving_car_is_in_one_place_and_leaves_no_trail(scene):
    made, frames = scene
    for k in (0, 1, 2):
        labels = made.labels(frames[k], SPEC).grid.labels
        assert not (labels == CAR)[~near_boxes(0.5 * k, 0.31)].any()
        inside = near_boxes(0.5 * k, -0.3)
        # Filled and mirrored: the inside is solid but for what lies below the lowest returns.
        assert (labels == CAR)[inside].float().mean() > 0.8
        assert not ((labels == FREE) & inside).any()


def test_wall_road_free_and_unknown(scene):
    made, frames = scene
    found = made.labels(frames[1], SPEC)
    labels, (x, y, z) = found.grid.labels, SPEC.centers().unbind(-1)
    wall = (labels == MANMADE).nonzero()
    # y = 8 is the lower face of voxel 60; a few returns without class at the wall's foot take its class
    assert wall[:, 1].min() >= 59 and (wall[:, 1] == 60).float().mean() > 0.98 and len(wall) > 300
    road = labels == ROAD
    assert set(road.nonzero()[:, 2].tolist()) <= {2, 3}  # z = 0 is the face between voxels 2 and 3
    around = (x.abs() < 12) & (y.abs() < 7) & ~near_boxes(0.5, 0.5)
    columns = road.any(2)[around[:, :, 0]]
    assert columns.float().mean() > 0.95  # stripes and the car's own place are filled
    above = around & (z > 0.6) & (z < 1.4)
    assert (labels[above] == FREE).float().mean() > 0.9 and not (labels[above] == ROAD).any()
    assert (labels[:, 62:] == 255).all() and not found.mask_lidar[:, 62:].any()
    assert torch.equal(found.mask_lidar, labels != 255)
    assert not (found.mask_camera & ~found.mask_lidar).any()
    assert found.mask_camera[tuple(wall.T)].float().mean() > 0.5


def test_without_filling_only_returns_are_occupied(scene):
    made, frames = scene
    bare = BuildRules(ground_reach=0, close=0, fill_objects=False, mirror_objects=False)
    thin, full = (made.labels(frames[1], SPEC, rules).grid for rules in (bare, BuildRules()))
    assert not (thin.occupied() & ~full.occupied()).any()
    assert thin.occupied().sum() < 0.8 * full.occupied().sum()
    # What rays crossed stays free, but for ground that they crossed above its surface.
    added = full.occupied() & (thin.labels == FREE)
    assert (
        (full.labels[added] == ROAD).all()
        or not added.any()
        or (full.labels[added & ~near_boxes(0.5, 0.5)] == ROAD).all()
    )


def test_classes_by_rules_where_there_is_no_lidarseg(root, scene):
    _, frames = scene
    files, _, _ = read_sources(root)
    made = read_scene(frames, files[0].sweeps, RuleClasses())
    by_rule, by_file = (s.labels(frames[1], SPEC).grid.labels for s in (made, scene[0]))
    both = (by_rule != FREE) & (by_rule != 255) & (by_file != FREE) & (by_file != 255)
    assert (by_rule == by_file)[both].float().mean() > 0.93
    assert (by_rule == MANMADE).sum() > 300 and (by_rule == CAR).sum() > 50


def run(*arguments):
    return main(["occupancy", "build", "--workers", "1", *map(str, arguments)])


def test_files_of_every_kind_are_read_back(root, scene, tmp_path):
    kinds = ["occ3d", "occ3d_panoptic", "syntheocc_coarse", "surroundocc", "grid"]
    grid = ["--voxel-size", 0.5, "--extent", *(-10, -10, -1, 10, 10, 3), "--frame", "lidar"]
    assert run("--dataroot", root, "--output-dir", tmp_path, "--max-samples", 2, "--kinds", *kinds, *grid) == 0
    _, frames = scene
    occ3d = read_occ3d(occupancy_path(tmp_path / "gts", frames[1], "occ3d"))
    panoptic = read_occ3d(occupancy_path(tmp_path / "occ3d_panoptic", frames[1], "occ3d"))
    assert occ3d.mask_lidar.any() and not (occ3d.grid.labels == 255).any()
    assert torch.equal(panoptic.grid.labels, occ3d.grid.labels)
    assert panoptic.instances.unique().tolist() == [0, 1, 2]
    assert (occ3d.grid.labels[panoptic.instances > 0] == CAR).all()
    for kind, folder in (("syntheocc_coarse", "."), ("surroundocc", "nuscenes_occ")):
        found = read_occupancy(occupancy_path(tmp_path / folder, frames[1], kind), kind, frames[1].lidar2ego)
        assert {found.taxonomy.classes[i] for i in found.labels.unique() if i != 255} == {
            "free", "car", "driveable_surface", "manmade"
        }  # fmt: skip
    small = read_grid_file(tmp_path / "grids/street/sample1.npz")
    assert small.spec.shape == (40, 40, 8) and torch.equal(small.grid2ego, frames[1].lidar2ego)
    assert (small.labels == 255).any() and (small.labels == CAR).any()


def test_it_goes_on_where_it_stopped(root, tmp_path, capsys):
    assert run("--dataroot", root, "--output-dir", tmp_path, "--max-samples", 1) == 0
    first = next(tmp_path.glob("gts/*/*/labels.npz"))
    made = first.stat().st_mtime_ns
    assert run("--dataroot", root, "--output-dir", tmp_path, "--max-samples", 2) == 0
    assert "of 1 sample to" in capsys.readouterr().out.splitlines()[-1] and first.stat().st_mtime_ns == made
    assert run("--dataroot", root, "--output-dir", tmp_path, "--close", 0.8) == 2
    assert "close: 0.4 there, 0.8 now" in capsys.readouterr().err


def test_damaged_files_are_named_and_left_out(root, tmp_path, capsys):
    """A truncated sweep, a missing lidarseg file, a key sweep that is no sweep, a box where nothing is."""
    broken = tmp_path / "data"
    shutil.copytree(root, broken)
    between = broken / "sweeps/LIDAR_TOP/between1-1.pcd.bin"
    between.write_bytes(between.read_bytes()[:-7])
    (broken / f"lidarseg/{VERSION}/lidar1_lidarseg.bin").unlink()
    (broken / "samples/LIDAR_TOP/sweep2.pcd.bin").write_bytes(b"")
    rows = json.loads((broken / VERSION / "sample_annotation.json").read_text())
    for row in rows:
        if row["instance_token"] == "parked":
            row["translation"][2] += 30.0
    (broken / VERSION / "sample_annotation.json").write_text(json.dumps(rows))
    assert run("--dataroot", broken, "--output-dir", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "of 3 samples" in said
    for part in (
        "between1-1.pcd.bin", "is truncated", "built without this sweep", "lidar1_lidarseg.bin", "neighbours' classes",
        "sweep2.pcd.bin", "object parked: car: no return in its box", "classes from lidarseg",
    ):  # fmt: skip
        assert part in said, part
    report = json.loads((tmp_path / "out/build_problems.json").read_text())
    assert len(report["left out"]) == 4 and report["failed"] == {}
    assert len(list((tmp_path / "out/gts").glob("*/*/labels.npz"))) == 3


def test_a_scene_without_any_sweep_fails_alone(root, tmp_path, capsys):
    broken = tmp_path / "data"
    shutil.copytree(root, broken)
    shutil.rmtree(broken / "sweeps")
    for path in (broken / "samples/LIDAR_TOP").iterdir():
        path.unlink()
    assert run("--dataroot", broken, "--output-dir", tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert "3 failed" in said and "none of its scene's sweeps could be read" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ("syntheocc", "syntheocc_coarse")}, "same file names"),
        ({"voxel_size": 0.3}, "no whole number of voxels"),
        ({"sweeps": -1}, "--sweeps cannot be negative"),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"vertices": "/nowhere"}, "--vertices /nowhere is not a folder"),
        ({"vertices_classes": "mine"}, "no taxonomy is named 'mine'"),
        ({"kinds": ()}, "names no label files"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(ValueError, match=message):
        BuildConfig(**settings)


def test_a_scene_that_there_is_not(root, tmp_path, capsys):
    assert run("--dataroot", root, "--output-dir", tmp_path, "--scenes", "elsewhere") == 2
    assert "no scene is named elsewhere; there are street" in capsys.readouterr().err
    assert run("--dataroot", root, "--output-dir", tmp_path, "--classes", "panoptic") == 2
    assert "holds no v1.0-*/ with panoptic files" in capsys.readouterr().err


class TestVertices:
    """A plane of vertices stands in for a mesh."""

    @pytest.fixture
    def plane(self):
        x, y = np.meshgrid(np.arange(-5, 5, 0.1), np.arange(-5, 5, 0.1))
        return np.stack([x.ravel(), y.ravel(), np.full(x.size, -1.75)], 1)

    def build(self, root, folder, out, *more):
        grid = ["--kinds", "grid", "--voxel-size", 0.5, "--extent", *(-10, -10, -3, 10, 10, 3), "--frame", "lidar"]
        command = ["--dataroot", root, "--output-dir", out, "--max-samples", 1, "--vertices", folder, *grid, *more]
        return run(*command)

    def test_their_own_classes_count(self, root, plane, tmp_path):
        np.save(tmp_path / "sweep0.pcd.bin.npy", np.column_stack([plane, np.full(len(plane), MANMADE)]))
        assert self.build(root, tmp_path, tmp_path / "out") == 0
        grid = read_grid_file(tmp_path / "out/grids/street/sample0.npz")
        assert torch.equal(grid.occupied().nonzero()[:, 2].unique(), torch.tensor([2]))
        assert (grid.labels[grid.occupied()] == MANMADE).all() and grid.occupied().sum() == 400
        assert (grid.labels == FREE).any() and (grid.labels == 255).any()

    def test_else_those_of_the_nearest_returns(self, root, plane, tmp_path):
        np.save(tmp_path / "sample0.npy", plane)
        assert self.build(root, tmp_path, tmp_path / "out") == 0
        grid = read_grid_file(tmp_path / "out/grids/street/sample0.npz")
        assert (grid.labels == ROAD).sum() > 150

    def test_a_frame_without_vertices_fails_alone(self, root, tmp_path, capsys):
        assert self.build(root, tmp_path, tmp_path / "out") == 1
        assert "holds no vertices of sample sample0" in capsys.readouterr().out


def test_the_driving_car_is_where_its_boxes_say_between_key_frames(scene):
    made, _ = scene
    driving = next(track for track in made.tracks if track.token == "driving")
    assert driving.speeds() == pytest.approx([SPEED] * 3)
    own = made.cloud.objects[made.tracks.index(driving)]
    assert (own.abs() <= SIZE / 2 + 0.11).all() and len(own) > 100


def test_infos_alone_give_the_same_labels_as_the_tables(root, tmp_path):
    """mmdetection3d 1.0's infos list ten sweeps before each key frame, here all there are."""
    (tmp_path / "split.json").write_text(json.dumps({"train": ["street"]}))
    infos = ["--dataroot-path", root, "--out", tmp_path, "--styles", "mmdet3d_v1.0", "--split-file"]
    assert main(["infos", *map(str, infos), str(tmp_path / "split.json")]) == 0
    pickle = next(tmp_path.glob("*.pkl"))
    without = tmp_path / "data"
    shutil.copytree(root, without, ignore=shutil.ignore_patterns(VERSION))
    few = ["--max-samples", 1, "--kinds", "grid", "--classes", "rules"]
    assert run("--dataroot", without, "--info-path", pickle, "--output-dir", tmp_path / "a", *few) == 0
    assert run("--dataroot", root, "--output-dir", tmp_path / "b", *few) == 0
    a, b = (read_grid_file(next((tmp_path / name / "grids").glob("**/sample0.npz"))) for name in "ab")
    assert (a.labels == b.labels).float().mean() > 0.9999


@pytest.mark.slow
def test_two_processes_write_what_one_does(root, tmp_path):
    assert run("--dataroot", root, "--output-dir", tmp_path / "one") == 0
    assert (
        main(["occupancy", "build", "--dataroot", str(root), "--output-dir", str(tmp_path / "two"), "--workers=2"])
        == 0
    )
    files = sorted((tmp_path / "one/gts").glob("*/*/labels.npz"))
    assert len(files) == 3
    for path in files:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.real_data
def test_the_real_key_frame(real_data, tmp_path, capsys):
    """One sweep, boxes without tokens, no lidarseg: boxes with returns are occupied, the road is where cars stand."""
    data = real_data / "nuscenes_scene0061"
    info = data / "info_mmdet3d_v1.1.pkl"
    source = ["--dataroot", data, "--version", "tables_reduced", "--info-path", info, "--output-dir", tmp_path]
    assert run(*source, "--kinds", "occ3d", "surroundocc") == 0
    said = capsys.readouterr().out
    assert "classes from rules" in said and "pedestrian: no return in its box" in said
    frame = read_infos(info, data)[0]
    labels = read_occ3d(tmp_path / "gts/scene-0061" / frame.token / "labels.npz")
    grid, spec = labels.grid, labels.grid.spec
    index, inside = spec.index_of(frame.boxes.centers)
    for i in range(len(frame.boxes)):
        near = frame.boxes.centers[i].norm() < 30
        if inside[i] and near and frame.boxes.num_lidar_points[i] > 50 and frame.boxes.names[i] in ("car", "truck"):
            assert grid.labels[tuple(index[i])] == grid.taxonomy.id_of(frame.boxes.names[i])
    columns = (grid.labels == ROAD).any(2)[100:150, 97:103]
    assert columns.float().mean() > 0.95  # twenty metres of lane ahead
    assert labels.mask_lidar.float().mean() > 0.1 and not (labels.mask_camera & ~labels.mask_lidar).any()
    coarse = read_occupancy(
        occupancy_path(tmp_path / "nuscenes_occ", frame, "surroundocc"), "surroundocc", frame.lidar2ego
    )
    assert {"truck", "barrier", "pedestrian"} <= {
        coarse.taxonomy.classes[i] for i in coarse.labels.unique() if i < 255
    }
