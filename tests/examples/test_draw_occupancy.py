"""examples/draw_occupancy.py: a file of any format, from any side."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from syntheocc.occupancy import OCC3D_NUSCENES, OccupancyGrid
from syntheocc.occupancy.data.occ3d import write_occ3d

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "draw_occupancy.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("draw_occupancy", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_label_file_is_drawn_in_3d_from_above_against_a_prediction_and_all_around(example, tmp_path):
    labels = np.full(OCC3D_NUSCENES.spec.shape, 17, np.uint8)
    labels[:, :, 0] = 11
    labels[120:131, 100:105, 1:5] = 4
    file = tmp_path / "labels.npz"
    write_occ3d(OccupancyGrid(labels, *OCC3D_NUSCENES), file)
    np.savez(tmp_path / "guess.npz", pred=np.roll(labels, 3, 1))

    def draw(name, *flags):
        path = example.main([str(file), "--size", "200x120", "--output", str(tmp_path / name), *flags])
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB")), getattr(picture, "n_frames", 1)

    solid, _ = draw("solid.png")
    other, _ = draw("other.png", "--azimuth", "180", "--zoom", "2", "--target", "8", "0", "0", "--orthographic")
    assert solid.shape[:2] > (120, 200) and solid.shape == other.shape and (solid != other).any()
    above, _ = draw("above.png", "--above")
    assert above.shape == (200, 200, 3)
    compared, _ = draw("compared.png", "--against", str(tmp_path / "guess.npz"))
    assert compared.shape[1] == 3 * 200 + 8
    assert draw("around.gif", "--turn", "3")[1] == 3
