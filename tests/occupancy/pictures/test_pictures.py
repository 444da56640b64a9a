import numpy as np
import pytest
import torch

from syntheocc.occupancy import GridSpec, OccupancyGrid, PlaneSpec, SemanticMPI, pictures
from syntheocc.occupancy.taxonomy import taxonomy_named
from syntheocc.occupancy.transforms import pose_from_quaternion

TAXONOMY = taxonomy_named("syntheocc")


def flat(color, height=8, width=12):
    return np.full((height, width, 3), color, dtype=np.uint8)


def test_as_picture_takes_what_models_and_files_give():
    from PIL import Image

    tensor = torch.zeros(3, 2, 4)
    tensor[0] = 1.0
    assert pictures.as_picture(tensor).shape == (2, 4, 3)
    assert pictures.as_picture(tensor)[0, 0].tolist() == [255, 0, 0]
    assert pictures.as_picture(Image.new("L", (4, 2), 7))[1, 3].tolist() == [7, 7, 7]
    assert pictures.as_picture(np.full((2, 4, 4), 9, dtype=np.uint8)).shape == (2, 4, 3)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        pictures.as_picture(np.full((2, 4, 3), 200.0))
    with pytest.raises(ValueError, match="shape"):
        pictures.as_picture(np.zeros((2, 4, 7), dtype=np.uint8))
    with pytest.raises(ValueError, match="uint8 .0..255., got int64"):  # a dark one would pass for [0, 1]
        pictures.as_picture(np.ones((2, 4, 3), dtype=np.int64))
    with pytest.raises(ValueError, match="needs pixels"):
        pictures.as_picture(np.zeros((0, 4, 3)))


def test_palette_picture_uses_the_published_colours():
    colors = pictures.palette_picture(torch.tensor([[0, 1, 11, 255]], dtype=torch.uint8), TAXONOMY)
    assert colors[0].tolist() == [[0, 0, 0], [255, 158, 0], [0, 207, 191], list(pictures.UNKNOWN_COLOR)]
    with pytest.raises(ValueError, match="class id 40"):
        pictures.palette_picture(np.array([40], dtype=np.uint8), TAXONOMY)
    with pytest.raises(ValueError, match="class id -1"):
        pictures.palette_picture(np.array([-1]), TAXONOMY)
    with pytest.raises(ValueError, match="float64"):
        pictures.palette_picture(np.array([1.0]), TAXONOMY)


def test_overlay_blends_only_where_a_label_is():
    colors = np.zeros((2, 2, 3), dtype=np.uint8)
    colors[0, 0] = (200, 0, 0)
    mixed = pictures.overlay(flat(100, 4, 4), colors, alpha=0.5)
    assert mixed[0, 0].tolist() == [150, 50, 50] and mixed[1, 1].tolist() == [150, 50, 50]
    assert mixed[0, 2].tolist() == [100, 100, 100] and mixed[3, 3].tolist() == [100, 100, 100]


def test_contact_sheet_and_strip_have_the_size_of_their_tiles():
    tiles = {f"CAM_{i}": flat(10 * i, 90, 160) for i in range(5)}
    sheet = pictures.contact_sheet(tiles, columns=3, gap=4)
    assert sheet.shape == (2 * 90 + 4, 3 * 160 + 2 * 4, 3)
    assert sheet[80, 160 * 1 + 4 + 80].tolist() == [10, 10, 10]
    assert sheet[94 + 80, 2 * 164 + 80].tolist() == list(pictures.BACKGROUND)
    assert (sheet[:20, :40] > 150).all(-1).any(), "the camera's name is not written"

    rows = {"condition": [flat(50, 9, 16)] * 2, "generated": [flat(90, 90, 160)] * 2, "real": []}
    drawn = pictures.strip(rows, names=("A", "B"))
    assert drawn.shape == (2 * 90 + 4, 2 * 160 + 4, 3)
    with pytest.raises(ValueError, match="one size"):
        pictures.tiled([[flat(1, 4, 4), flat(1, 5, 4)]])


def bev_grid(labels, grid2ego=None):
    frame = "ego" if grid2ego is None else "lidar"
    return OccupancyGrid(labels, GridSpec((0.0, 0.0, -1.0), 1.0, labels.shape, frame), TAXONOMY, grid2ego)


def test_bev_shows_the_topmost_voxel_with_forward_up_and_left_left():
    labels = np.zeros((3, 2, 2), dtype=np.uint8)
    labels[2, 1, 0] = 11  # far ahead, left
    labels[0, 0, 0] = 11  # behind, right: under a car
    labels[0, 0, 1] = 1
    picture = pictures.bev_picture(bev_grid(labels), shade=False)
    assert picture.shape == (3, 2, 3)
    assert picture[0, 0].tolist() == [0, 207, 191]
    assert picture[2, 1].tolist() == [255, 158, 0]
    assert picture[1, 0].tolist() == list(pictures.BACKGROUND)
    low = pictures.bev_picture(bev_grid(labels), shade=False, below=-0.5)
    assert low[2, 1].tolist() == [0, 207, 191]


def test_bev_turns_a_lidar_grid_so_that_forward_is_up():
    lidar2ego = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    labels = np.zeros((2, 3, 1), dtype=np.uint8)
    labels[0, 2, 0] = 11  # lidar x right, y forward: left and far ahead
    picture = pictures.bev_picture(bev_grid(labels, lidar2ego), shade=False)
    assert picture.shape == (3, 2, 3)
    assert picture[0, 0].tolist() == [0, 207, 191]


def test_bev_of_a_grid_that_hangs_upside_down_or_askew():
    labels = np.zeros((2, 2, 3), dtype=np.uint8)
    labels[0, 0] = [1, 0, 11]
    flipped = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))  # z down, y right: voxel 0 is on top
    assert pictures.bev_picture(bev_grid(labels, flipped), shade=False)[1, 0].tolist() == [255, 158, 0]
    askew = pose_from_quaternion([0, 0, 0], torch.tensor([0.8, 0.9, 0.0, 0.7]) / 1.94**0.5)
    with pytest.raises(ValueError, match="not near the ego axes"):
        pictures.bev_picture(bev_grid(labels, askew))


def test_condition_pictures_darken_with_the_plane():
    mpi = SemanticMPI(
        labels=torch.zeros(1, 256, 1, 3, dtype=torch.uint8),
        nearest=torch.tensor([[[11, 11, 0]]], dtype=torch.uint8),
        nearest_plane=torch.tensor([[[0, 255, 0]]], dtype=torch.int16),
        taxonomy=TAXONOMY,
        planes=PlaneSpec(),
        pixel_origin="center",
        names=("CAM_FRONT",),
    )
    near, far, free = pictures.condition_pictures(mpi)[0][0].tolist()
    assert near == [0, 207, 191] and far == [0, round(207 * 0.35), round(191 * 0.35)] and free == [0, 0, 0]
    with pytest.raises(ValueError, match="index it"):
        pictures.condition_pictures(SemanticMPI.stack([mpi]))


def test_saved_pictures_come_back_and_leave_nothing_else(tmp_path):
    from PIL import Image

    path = pictures.save_picture(flat((1, 2, 3)), tmp_path / "deep" / "a.png")
    assert np.asarray(Image.open(path))[0, 0].tolist() == [1, 2, 3]
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
