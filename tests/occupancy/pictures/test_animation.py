import numpy as np
import pytest
from PIL import Image

from syntheocc.occupancy import OCC3D_NUSCENES, OccupancyGrid
from syntheocc.occupancy.pictures import ERROR_COLORS, Viewpoint, comparison_picture, save_animation


def frames(count=3):
    return [np.full((16, 24, 3), 60 * i + 20, np.uint8) for i in range(count)]


@pytest.mark.parametrize("suffix", [".webp", ".png", ".gif"])
def test_animations_load_back_frame_by_frame(tmp_path, suffix):
    path = save_animation(frames(), tmp_path / "deep" / f"scene{suffix}", seconds=0.5)
    with Image.open(path) as animation:
        assert animation.n_frames == 3 and animation.size == (24, 16)
        for i, frame in enumerate(frames()):
            animation.seek(i)
            animation.load()
            assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - frame).max() <= 3
            assert animation.info["duration"] == 500
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_animation_appears_whole_or_not_at_all(tmp_path):
    def interrupted():
        yield frames()[0]
        raise RuntimeError("interrupted")

    old = save_animation(frames(2), tmp_path / "a.webp").read_bytes()
    with pytest.raises(RuntimeError):
        save_animation(interrupted(), tmp_path / "a.webp")
    with pytest.raises(TypeError):
        save_animation(frames(3), tmp_path / "a.webp", quality="no number")
    assert (tmp_path / "a.webp").read_bytes() == old and len(list(tmp_path.iterdir())) == 1
    for wrong, path, said in (
        ([], "a.gif", "at least one"),
        ([frames()[0], np.zeros((4, 4, 3), np.uint8)], "a.gif", "one size"),
        (frames(), "a.mp4", ".mp4"),
    ):
        with pytest.raises(ValueError, match=said):
            save_animation(wrong, tmp_path / path)
    with pytest.raises(ValueError, match="seconds"):
        save_animation(frames(), tmp_path / "a.gif", seconds=0)


@pytest.mark.parametrize("view", [None, Viewpoint(180, 40)])
def test_prediction_truth_and_errors_stand_side_by_side(view):
    taxonomy = OCC3D_NUSCENES.taxonomy
    truth = np.full(OCC3D_NUSCENES.spec.shape, taxonomy.free, np.uint8)
    truth[:, :, 0] = taxonomy.id_of("driveable_surface")
    guess = truth.copy()
    guess[100:140, 40:60, 1:9] = taxonomy.id_of("car")  # left: invented
    truth[100:140, 140:160, 1:9] = taxonomy.id_of("bus")  # right of it: missed
    picture = comparison_picture(
        OccupancyGrid(guess, *OCC3D_NUSCENES), OccupancyGrid(truth, *OCC3D_NUSCENES), view=view, height=200, width=240
    )
    wide = 240 if view else 200
    assert picture.shape[1] == 3 * wide + 8 and picture.shape[0] > 210
    tiles = [picture[:200, i * (wide + 4) :][:, :wide].astype(int) for i in range(3)]

    def share(tile, color):
        hue = np.array(color) / max(color)
        bright = tile.max(-1, keepdims=True).clip(1)
        return (np.abs(tile / bright - hue).max(-1) < 0.04).mean()

    car, bus = (taxonomy.palette[taxonomy.id_of(name)] for name in ("car", "bus"))
    assert [share(tile, car) > 0.01 for tile in tiles] == [True, False, False]
    assert [share(tile, bus) > 0.01 for tile in tiles] == [False, True, False]
    for name in ("missed", "invented"):
        assert share(tiles[2], ERROR_COLORS[name]) > 0.01
        assert (picture[200:] == ERROR_COLORS[name]).all(-1).any(), "the legend lacks it"
    nowhere = comparison_picture(
        OccupancyGrid(guess, *OCC3D_NUSCENES),
        OccupancyGrid(truth, *OCC3D_NUSCENES),
        np.zeros(OCC3D_NUSCENES.spec.shape, bool),
        view,
        height=200,
        width=240,
    )
    assert share(nowhere[:200, 2 * (wide + 4) :].astype(int), ERROR_COLORS["missed"]) == 0
