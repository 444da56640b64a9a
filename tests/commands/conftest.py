"""A data set of three samples, small enough to be written anew for every test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from warm_start import run_program

from syntheocc.occupancy import SYNTHEOCC_COARSE, OccupancyGrid
from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.occupancy_files import occupancy_path, write_occupancy
from syntheocc.worlds.street import LIDAR2EGO, nominal_rig

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class TinyDataset:
    """A data root with pictures, coarse labels and an info pickle."""

    root: Path
    info: Path
    frames: list[Frame]

    def label_path(self, i: int) -> Path:
        return occupancy_path(self.root, self.frames[i], "syntheocc_coarse")


def coarse_grid(i: int) -> OccupancyGrid:
    """A road, and a car ahead that moves with the sample."""
    labels = np.zeros(SYNTHEOCC_COARSE.spec.shape, dtype=np.uint8)
    labels[:, :, 5] = 11
    labels[99:102, 120 + 10 * i : 128 + 10 * i, 6:9] = 1
    return OccupancyGrid(labels, *SYNTHEOCC_COARSE, grid2ego=torch.from_numpy(LIDAR2EGO))


def write_dataset(root: Path, samples: int = 3) -> TinyDataset:
    from PIL import Image

    frames = []
    for i in range(samples):
        stamp = 1_532_402_927_000_000 + 500_000 * i
        rig = nominal_rig()
        paths = {name: root / "samples" / name / f"n000__{name}__{stamp}.jpg" for name in rig.names}
        for j, path in enumerate(paths.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1600, 900), (40 * i, 30 * j, 120)).save(path)
        lidar = root / "samples" / "LIDAR_TOP" / f"n000__LIDAR_TOP__{stamp}.pcd.bin"
        lidar.parent.mkdir(parents=True, exist_ok=True)
        lidar.write_bytes(b"")
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = 11.0 + 5 * i
        frames.append(
            Frame(
                token=f"token{i}",
                scene="scene-0001",
                timestamp_us=stamp,
                cameras=rig,
                image_paths=paths,
                lidar_path=lidar,
                lidar2ego=torch.from_numpy(LIDAR2EGO),
                ego2global=torch.eye(4, dtype=torch.float64),
                boxes=Boxes(pose[None], torch.tensor([[4.0, 1.5, 1.5]]), ("car",)),
            )
        )
        write_occupancy(coarse_grid(i), occupancy_path(root, frames[-1], "syntheocc_coarse"), "syntheocc_coarse")
    info = root / "infos_tiny.pkl"
    write_infos(info, frames, style="mmdet3d_v1.1", data_root=root)
    return TinyDataset(root, info, frames)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Networks of 16 channels lose more by threads waiting for each other than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_dataset(tmp_path) -> TinyDataset:
    return write_dataset(tmp_path / "nuscenes")


@pytest.fixture
def launch():
    """Run a script of the repository: alone, or by torchrun with `ranks` processes on the CPU."""
    return lambda script, *flags, **how: run_program(ROOT / script, *flags, **how)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A pipeline folder with real, very small networks."""
    from syntheocc.models.presets import tiny_components
    from syntheocc.pipelines import SyntheOccPipeline

    folder = tmp_path_factory.mktemp("tiny-model")
    SyntheOccPipeline(**tiny_components(seed=0, pixel_origin="corner")).save_pretrained(folder)
    return folder
