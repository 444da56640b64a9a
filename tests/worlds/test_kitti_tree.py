import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from syntheocc.occupancy.data import kitti
from syntheocc.occupancy.data import semantic_kitti as sk
from syntheocc.occupancy.data.occupancy_files import occupancy_path, read_occupancy
from syntheocc.occupancy.data.semantic_kitti_frames import completion_frames
from syntheocc.occupancy.data.stereo_matching import rectified_pair, stereo_depth
from syntheocc.occupancy.grids import SEMANTIC_KITTI, GridSpec
from syntheocc.occupancy.perception.occdepth.dataset import StereoFrames
from syntheocc.occupancy.perception.occdepth.indoor_sources import stereo_source
from syntheocc.occupancy.perception.occdepth.presets import preset
from syntheocc.occupancy.rendering.mpi import render_mpi
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.occupancy.taxonomy import SEMANTIC_KITTI_TAXONOMY
from syntheocc.occupancy.transforms import invert_rigid, transform_points
from syntheocc.worlds.camera_images import render_view
from syntheocc.worlds.intersect import first_hit
from syntheocc.worlds.kitti_labels import kitti_classes, kitti_grid, seen_from
from syntheocc.worlds.kitti_tree import kitti_view, nominal_calibration, sequence_names, write_kitti_sequence
from syntheocc.worlds.labels import world_table
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.solids import Solids
from syntheocc.worlds.velodyne import HDL64E_DEG, velodyne_scan

SIZE = (188, 620)
POINTS = {"azimuths": 401, "beams_deg": HDL64E_DEG[::2]}


@pytest.fixture(scope="module")
def scene():
    return make_scene(5, key_frames=3)


@pytest.fixture(scope="module")
def root(scene, tmp_path_factory):
    root = tmp_path_factory.mktemp("kitti")
    write_kitti_sequence(scene, root, "08", size=SIZE, frames=[0, 1], **POINTS)
    return root


@pytest.fixture(scope="module")
def frames(root):
    return kitti.read_sequence(root / "sequences" / "08")


def test_sequences_follow_the_split():
    assert sequence_names(["train", "val", "train", "test"]) == ["00", "08", "01", "11"]
    assert sequence_names(["train"] * 10)[-2:] == ["09", "10"]
    with pytest.raises(ValueError, match="1 val sequences, but 2 scenes"):
        sequence_names(["val", "val"])
    with pytest.raises(ValueError, match="got 'all'"):
        sequence_names(["all"])


def test_the_nominal_calibration_is_like_sequence_00():
    calibration = nominal_calibration()
    left, right = calibration.lidar2cam("P2"), calibration.lidar2cam("P3")
    assert float((left - right)[0, 3]) == pytest.approx(0.5333, abs=1e-4)
    assert calibration.projections["P2"][2, 3] != 0 != calibration.projections["P3"][1, 3]
    assert calibration.projections["P2"][0, 3] == pytest.approx(45.38, abs=0.1)
    jittered = nominal_calibration(seed=1).lidar2cam0
    assert 1e-4 < float((jittered - calibration.lidar2cam0).abs().max()) < 0.05
    assert torch.equal(jittered, nominal_calibration(seed=1).lidar2cam0)


def test_the_readers_of_real_files_read_the_tree(root, frames, scene):
    assert [frame.token for frame in frames] == ["08_000000", "08_000005"]
    for frame in frames:
        frame.check_files()
        path = occupancy_path(root, frame, "semantic_kitti")
        assert path == frame.occupancy_path
        assert sk.detect_release(path.with_suffix(".bin"), frame.lidar_path) == "current"
        grid = read_occupancy(path, "semantic_kitti", frame.lidar2ego)
        assert {9, 11, 13, 15, 17} <= set(grid.labels.unique().tolist())
        semantic, instance = sk.read_point_labels(frame.extras["point_labels"])
        assert len(semantic) == len(instance) == len(kitti.read_scan(frame.lidar_path))
    assert len(kitti.read_poses(root / "sequences" / "08" / "poses.txt")) == 11
    assert frames[1].timestamp_us == 500_000
    # The ego car's own way, in the first velodyne's frame.
    velodyne2ego = kitti_view(scene, frames[0].cameras).lidar2ego
    ways = [scene.ego.pose_at(t) @ velodyne2ego for t in (0.0, 0.5)]
    assert torch.allclose(frames[1].ego2global, invert_rigid(ways[0]) @ ways[1], atol=1e-9)


def test_points_lie_on_their_pictures_depth(root, frames):
    frame = frames[1]
    camera = frame.cameras["image_2"]
    depth = torch.from_numpy(kitti.read_depth(root / "sequences" / "08" / "depth" / "000005.png"))
    points = torch.from_numpy(kitti.read_scan(frame.lidar_path)[:, :3]).double()
    pixels, z = camera.project(transform_points(camera.ego2cam, points))
    pixels = pixels.round().nan_to_num(-1).long()
    kept = (z > 0) & (z < 40) & ((pixels >= 0) & (pixels < torch.tensor(SIZE[::-1]))).all(-1)
    error = (depth[pixels[kept, 1], pixels[kept, 0]] - z[kept]).abs()
    assert int(kept.sum()) > 500
    assert float((error < 0.5).double().mean()) > 0.85 and float(error[error < 0.5].median()) < 0.06


def test_the_tree_is_occdepths_data(root, frames):
    """Samples of the tree are what its files say, without a word of warning about old voxels."""
    config = replace(preset("small").model, image_size=(176, 608))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = stereo_source(config, completion_frames(root, "val"), depth="stereo")
    sample = StereoFrames(source)[1]
    assert sample.tokens == ["08_000005"] and float(sample.baseline) == pytest.approx(0.532, abs=2e-3)
    grid = read_occupancy(frames[1].occupancy_path, "semantic_kitti", frames[1].lidar2ego)
    assert torch.equal(sample.semantics[0], grid.labels) and sample.coarse.shape == (1, 32, 32, 4)
    # Occupied voxels that the left picture shows lie at the picture's depth or behind it.
    occupied = grid.occupied()
    centres = torch.cat([grid.spec.centers()[occupied], torch.ones(int(occupied.sum()), 1)], 1)
    seen = centres.double() @ sample.velo2img[0, 0].T
    u, v = (seen[:, :2] / seen[:, 2:3]).round().long().unbind(1)
    inside = (seen[:, 2] > 2) & (seen[:, 2] < 20) & (u >= 0) & (u < 608) & (v >= 0) & (v < 176)
    behind = seen[inside, 2] - sample.depth[0, 0][v[inside], u[inside]]
    near = seen[inside, 2] < 10
    assert inside.sum() > 5000 and float((behind > -0.6).double().mean()) > 0.98
    assert float((behind[near].abs() < 0.3).double().mean()) > 0.9


def test_stereo_matching_agrees_with_the_exact_depth(root, frames):
    from PIL import Image

    pair = rectified_pair(*kitti.read_projections(root / "sequences" / "08" / "calib.txt").values())
    left, right = (np.asarray(Image.open(path).convert("RGB")) for path in frames[0].image_paths.values())
    depth = stereo_depth(left, right, pair, max_disparity=96)
    exact = kitti.read_depth(root / "sequences" / "08" / "depth" / "000000.png")
    both = (depth > 0) & (exact > 2) & (exact < 54)
    off = pair.focal * pair.baseline * (1 / depth[both] - 1 / exact[both])  # pixels
    assert both.mean() > 0.4 and abs(np.median(off)) < 0.1
    assert np.median(np.abs(off)) < 0.6 and (np.abs(off) < 3).mean() > 0.85


def test_the_pair_is_shifted_by_its_disparity(root, frames):
    """A pixel of the left picture with its depth lands on the same brightness in the right one."""
    from PIL import Image

    left, right = (
        np.asarray(Image.open(frames[0].image_paths[name]).convert("L"), np.float64) for name in kitti.STEREO
    )
    depth = torch.from_numpy(kitti.read_depth(root / "sequences" / "08" / "depth" / "000000.png")).double()
    near = (depth > 4) & (depth < 12)
    rows, columns = torch.nonzero(near, as_tuple=True)
    a, b = frames[0].cameras.values()
    points = a.pixel_rays(torch.stack([columns, rows], 1)) * depth[rows, columns, None]
    pixels, _ = b.project(transform_points(b.ego2cam @ a.cam2ego, points))
    pixels = pixels.round().long()
    inside = ((pixels >= 0) & (pixels < torch.tensor(SIZE[::-1]))).all(-1)
    rows, columns, pixels = rows[inside].numpy(), columns[inside].numpy(), pixels[inside].numpy()
    assert len(rows) > 2000 and (columns - pixels[:, 0]).mean() > 10
    matched = np.corrcoef(left[rows, columns], right[pixels[:, 1], pixels[:, 0]])[0, 1]
    same_place = np.corrcoef(left[rows, columns], right[rows, columns])[0, 1]
    assert matched > 0.6 and matched > same_place


def test_points_and_voxels_agree(root, frames):
    """Of the scan's voxels that hold a label most hold that of their points."""
    voxels = sk.read_semantic_kitti_voxels(frames[0].occupancy_path)
    points = kitti.read_scan(frames[0].lidar_path)
    classes = torch.from_numpy(sk.classes_of_raw(sk.read_point_labels(frames[0].extras["point_labels"])[0]))
    index, inside = SEMANTIC_KITTI.spec.index_of(points[:, :3])
    labels = voxels.grid.labels[tuple(index[inside].T)]
    classes = classes[inside]
    both = (labels > 0) & (labels < 255)
    assert float(both.double().mean()) > 0.6
    # The rest are mostly curbs: 0.13 m of sidewalk in a voxel of 0.2 m that the road passes through.
    assert float((labels[both] == classes[both]).double().mean()) > 0.95
    # What the scan hit was seen; what was seen from here is not occluded. (Cones have no class: invalid too.)
    assert float((voxels.scan & voxels.invalid).sum() / voxels.scan.sum()) < 0.02
    assert not bool((voxels.scan & voxels.occluded).any())
    assert float((voxels.invalid & ~voxels.occluded).double().mean()) < 1e-3
    assert 0.05 < float(voxels.invalid.double().mean()) < 0.6


def test_the_mpi_of_the_voxels_agrees_with_the_picture(scene, frames):
    """Of the cells whose surface lies in the grid the nearest class is the picture's own in more than 90 %."""
    rig, t, step = frames[1].cameras, 0.5, 4
    view = kitti_view(scene, rig)
    grid = kitti_grid(view, t)
    names = grid.taxonomy.id_of
    h, w = SIZE[0] // step, SIZE[1] // step
    nearest = render_mpi(grid, rig.select(["image_2"]), h, w).nearest[0]
    # The picture's labels are the world's, which has no poles and trunks.
    nearest = torch.where(nearest == names("pole"), names("building"), nearest.int())
    nearest = torch.where(nearest == names("trunk"), names("vegetation"), nearest)
    shot = render_view(view, view.rig["image_2"], view.ego.pose_at(t), t)
    v, u = torch.meshgrid(torch.arange(2, SIZE[0], step), torch.arange(2, SIZE[1], step), indexing="ij")
    labels = world_table(grid.taxonomy)[shot.labels[v, u].int()].int()
    depth = shot.depth[v, u].double().nan_to_num(posinf=1e4)
    camera = rig["image_2"]
    points = transform_points(camera.cam2ego, camera.pixel_rays(torch.stack([u, v], -1)) * depth[..., None])
    inside = grid.spec.index_of(points)[1] & (labels != 255) & (depth < 50)
    assert int(inside.sum()) > 2000
    assert float((nearest == labels)[inside].double().mean()) > 0.9


def test_the_same_seed_gives_the_same_bytes_and_done_frames_stay(root, scene, tmp_path):
    folder = write_kitti_sequence(make_scene(5, key_frames=3), tmp_path, "08", size=SIZE, frames=[0], **POINTS)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (root / "sequences" / "08" / path.relative_to(folder)).read_bytes(), path.name
    before = (folder / "velodyne" / "000000.bin").stat().st_mtime_ns
    write_kitti_sequence(scene, tmp_path, "08", size=SIZE, frames=[0], **POINTS)
    assert (folder / "velodyne" / "000000.bin").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"key frames 0..2, not \[3\]"):
        write_kitti_sequence(scene, tmp_path, "08", frames=[3])


def test_scans_meet_what_first_hit_meets(scene):
    """Cutting the turn into sectors loses no solid."""
    view = kitti_view(scene, kitti.stereo_rig(nominal_calibration(SIZE), SIZE))
    pose = view.ego.pose_at(0.3) @ view.lidar2ego
    scan = velodyne_scan(view, 0.3, pose, beams_deg=(0.0, -3.0, -10.0), azimuths=500, noise=0.0)
    directions = torch.from_numpy(scan.points[:, :3]).double()
    distance, index, _ = first_hit(
        view.primitives_at(0.3), view.ground, pose[:3, 3].expand(len(directions), 3), directions @ pose[:3, :3].T
    )
    # Rounding a direction to float32 may move a ray off an edge.
    assert (index.clamp_min(-1).numpy() == np.where(scan.solid < 0, -1, scan.solid)).mean() > 0.995
    assert float((distance - directions.norm(dim=1)).abs().median()) < 1e-4
    assert 0 <= scan.points[:, 3].min() and scan.points[:, 3].max() <= 1


def test_slim_cylinders_are_poles_and_trunks():
    solids = Solids("manmade")
    solids.cylinder((0, 0, 2), 0.1, 4.0, 0)
    solids.cylinder((0, 0, 2), 0.1, 4.0, 0, axis="x")
    solids.cylinder((0, 0, 2), 2.0, 4.0, 0)
    solids.use("vegetation").cylinder((0, 0, 2), 0.3, 4.0, 0)
    solids.ellipsoid((0, 0, 2), (0.2, 0.2, 2), 0)
    solids.use("driveable_surface").box((0, 0, 0), (1, 1, 1), 0)
    solids.use("traffic_cone").box((0, 0, 0), (1, 1, 1), 0)
    classes = kitti_classes(solids.primitives())
    names = [SEMANTIC_KITTI_TAXONOMY.classes[i] if i < 255 else "unknown" for i in classes.tolist()]
    assert names == "pole building building trunk vegetation road unknown".split()


def test_what_is_seen_from_a_point():
    spec = GridSpec((0.0, 0.0, 0.0), 1.0, (8, 6, 4), "lidar")
    occupied = torch.zeros(spec.shape, dtype=torch.bool)
    assert bool(seen_from(occupied, spec, torch.tensor([-3.0, 2.5, 1.5]).double()).all())
    occupied[4] = True  # a wall across the grid
    seen = seen_from(occupied, spec, torch.tensor([0.5, 2.5, 1.5]).double())
    assert bool(seen[:5].all()) and not bool(seen[5:].any())
    # Against every voxel's own ray, in a grid with scattered obstacles.
    occupied = torch.rand(spec.shape, generator=torch.Generator().manual_seed(0)) < 0.1
    eye = torch.tensor([0.3, 2.6, 1.4]).double()
    occupied[0, 2, 1] = False
    way = spec.centers().reshape(-1, 3) - eye
    distance, _, hit = cast_rays(occupied, eye, way, spec, distance="entry")
    clear = (~hit | (distance > way.norm(dim=1))).reshape(spec.shape)
    seen = seen_from(occupied, spec, eye)
    assert float((seen | ~clear)[~occupied].double().mean()) > 0.97
