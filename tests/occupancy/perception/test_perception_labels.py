"""Ground truth from label files: masks, instances from the file and from boxes, and what is missing."""

from dataclasses import replace

import pytest
import torch

from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.occupancy.data.occ3d import Occ3DLabels, write_occ3d
from syntheocc.occupancy.data.occupancy_files import occupancy_path, write_occupancy
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OPENOCC_V2, SURROUNDOCC, OccupancyGrid
from syntheocc.occupancy.perception.labels import LabelReader
from syntheocc.occupancy.perception.settings import SourceConfig


@pytest.fixture(scope="module")
def labelled(six_cameras, tmp_path_factory):
    """A frame with one car of one voxel at (100, 100, 4), seen by the camera only in x < 150."""
    root = tmp_path_factory.mktemp("gts")
    box = torch.eye(4, dtype=torch.float64)
    boxes = Boxes(box[None], torch.ones(1, 3), ("car",))
    frame = Frame("token", "scene-1", 1, six_cameras, boxes=boxes, lidar2ego=torch.eye(4))
    semantics = torch.full(OCC3D_NUSCENES.spec.shape, 17, dtype=torch.uint8)
    semantics[100, 100, 4] = 4
    camera = torch.zeros(OCC3D_NUSCENES.spec.shape, dtype=torch.bool)
    camera[:150] = True
    instances = (semantics == 4).to(torch.uint8) * 7
    labels = Occ3DLabels(OccupancyGrid(semantics, *OCC3D_NUSCENES), mask_camera=camera, instances=instances)
    write_occ3d(labels, occupancy_path(root, frame, "occ3d"))
    return root, frame


def test_classes_masks_and_instances(labelled):
    root, frame = labelled
    plain = LabelReader(root)(frame)
    assert int((plain.semantics == 4).sum()) == 1 and plain.instances is None
    masked = LabelReader(root, mask="camera", instances="file")(frame)
    assert bool((masked.semantics[150:] == 255).all()) and int((masked.semantics[:150] == 255).sum()) == 0
    assert int(masked.instances[100, 100, 4]) == 7 and int(masked.instances.sum()) == 7
    assert LabelReader(root).preset is OCC3D_NUSCENES

    def rule(grid, boxes):
        return (grid.labels == grid.taxonomy.id_of(boxes.names[0])).int() * 3

    assert int(LabelReader(root, instances="boxes", rule=rule)(frame).instances.sum()) == 3


def test_frames_without_a_scene_are_found_by_token(labelled):
    """The published infos have no scene names."""
    root, frame = labelled
    nameless = replace(frame, scene="")
    assert torch.equal(LabelReader(root)(nameless).semantics, LabelReader(root)(frame).semantics)
    with pytest.raises(ValueError, match="other/labels.npz"):
        LabelReader(root)(replace(nameless, token="other"))
    assert LabelReader(root / "nowhere", optional=True)(nameless) is None


def test_labels_of_another_format(labelled, tmp_path):
    _, frame = labelled
    semantics = torch.zeros(SURROUNDOCC.spec.shape, dtype=torch.uint8)
    semantics[10, 20, 3] = 4
    grid = OccupancyGrid(semantics, *SURROUNDOCC, grid2ego=frame.lidar2ego)
    with_lidar = replace(frame, lidar_path=tmp_path / "sweep.pcd.bin")
    write_occupancy(grid, occupancy_path(tmp_path, with_lidar, "surroundocc"), "surroundocc")
    found = LabelReader(tmp_path, "surroundocc")(with_lidar)
    assert torch.equal(found.semantics, grid.labels) and found.instances is None


def test_what_is_missing_is_named(labelled, tmp_path):
    root, frame = labelled
    assert LabelReader(tmp_path, optional=True)(frame) is None
    with pytest.raises(ValueError, match="labels.npz"):
        LabelReader(tmp_path)(frame)
    semantics = torch.full(OPENOCC_V2.spec.shape, 16, dtype=torch.uint8)
    plain = Occ3DLabels(OccupancyGrid(semantics, *OPENOCC_V2))
    write_occ3d(plain, occupancy_path(tmp_path, frame, "openocc_v2"))
    with pytest.raises(ValueError, match="has no instances; give the panoptic copy"):
        LabelReader(tmp_path, "openocc_v2", instances="file")(frame)
    with pytest.raises(ValueError, match="has no boxes"):
        LabelReader(root, instances="boxes", rule=lambda *_: semantics)(replace(frame, boxes=None))
    for options, message in (
        (dict(kind="kitti360"), "unknown occupancy kind"),
        (dict(instances="boxes"), "needs a rule"),
        (dict(kind="surroundocc", mask="lidar"), "hold neither masks nor instances"),
    ):
        with pytest.raises(ValueError, match=message):
            LabelReader(root, **options)


def test_labels_are_looked_for_where_the_formats_put_them(tmp_path):
    config = SourceConfig(dataroot=tmp_path)
    assert config.reader().root == tmp_path / "gts", "also in messages, where there are none"
    (tmp_path / "occ3d").mkdir()
    (tmp_path / "occ3d_panoptic").mkdir()
    assert config.reader().root == tmp_path / "occ3d"
    assert config.reader(instances="file").root == tmp_path / "occ3d_panoptic"
    (tmp_path / "gts").mkdir()
    assert config.reader().root == tmp_path / "gts"
    assert SourceConfig(dataroot=tmp_path, labels="openocc_v2").reader().root == tmp_path / "openocc_v2"
    assert SourceConfig(dataroot=tmp_path, labels_root=tmp_path / "mine").reader().root == tmp_path / "mine"
