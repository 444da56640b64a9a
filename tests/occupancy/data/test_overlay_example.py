"""examples/overlay_mpi.py: what it writes, on a hand-made frame and on the real ones."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.syntheocc import write_syntheocc
from syntheocc.occupancy.grids import SYNTHEOCC, OccupancyGrid


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).resolve().parents[3] / "examples" / "overlay_mpi.py"
    spec = importlib.util.spec_from_file_location("overlay_mpi", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(path):
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def test_labels_are_drawn_over_the_pictures(example, tmp_path, data_root, make_frame):
    frame = make_frame()
    write_infos(tmp_path / "infos.pkl", [frame], "openoccupancy", data_root)
    labels = torch.zeros(SYNTHEOCC.spec.shape, dtype=torch.uint8)
    labels[:, :, 16] = 11  # a road below the car, 0 m in ego
    write_syntheocc(OccupancyGrid(labels, *SYNTHEOCC, frame.lidar2ego), tmp_path / "labels.npy")
    output = tmp_path / "out" / "sheet.png"
    example.main(
        f"--infos {tmp_path}/infos.pkl --data_root {data_root} --occupancy {tmp_path}/labels.npy --rows 28 --cols 50 "
        f"--alpha 1 --output {output}".split()
    )
    sheet = picture(output)
    road = np.array(SYNTHEOCC.taxonomy.palette[11])
    assert sheet.shape == (2 * 450 + 4, 3 * 800 + 8, 3)
    assert (sheet[440, 1200] == road).all()  # the bottom of CAM_FRONT
    assert (sheet[100, 1200] == 0).all()  # its sky: the black picture
    assert (picture(output.with_name("sheet_bev.png")) == 0).mean() < 0.5
    with pytest.raises(ValueError, match="--index 1: there are 1 frames"):
        example.main(f"--infos {tmp_path}/infos.pkl --data_root {data_root} --index 1 --output {output}".split())
    frame.image_paths["CAM_BACK"].unlink()
    with pytest.raises(ValueError, match="CAM_BACK"):
        example.main(f"--infos {tmp_path}/infos.pkl --data_root {data_root} --output {output}".split())


@pytest.mark.real_data
def test_the_real_key_frame_and_the_real_occ3d_label(example, tmp_path, real_data):
    root = real_data / "nuscenes_scene0061"
    common = f"--data_root {root} --rows 56 --cols 100 --output".split()
    example.main([*common, f"{tmp_path}/key.png"])
    example.main([*common, f"{tmp_path}/occ3d.png", "--occ3d", f"{real_data}/occ3d_scene1077/labels.npz"])
    names = [f"{name}{what}.png" for name in ("key", "occ3d") for what in ("", "_3d", "_bev")]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    # Occ3D's road is magenta: the bottom of the front view.
    assert picture(tmp_path / "occ3d.png")[440, 1200].tolist()[1] == 0
