"""The world's make-up: what is counted, and class shares within a factor of two of the real ones."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.grids import OCC3D_NUSCENES, SYNTHEOCC_COARSE, OccupancyGrid
from syntheocc.worlds.labels import exact_grid
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.statistics import class_shares, distances_of, histogram, occ3d_shares


def test_shares_of_a_known_grid():
    labels = torch.full((200, 200, 16), 17, dtype=torch.uint8)
    labels[0, 0, :3], labels[5, 5, 0] = 4, 11
    labels[9, 9, 9] = 255
    shares = class_shares([OccupancyGrid(labels, *OCC3D_NUSCENES)])
    assert shares.shape == (17,) and shares[4] == 0.75 and shares[11] == 0.25 and shares.sum() == 1
    assert occ3d_shares()[11] == pytest.approx(0.3197, abs=1e-4) and len(occ3d_shares()) == 17
    coarse = OccupancyGrid(torch.zeros(200, 200, 16, dtype=torch.uint8), *SYNTHEOCC_COARSE, grid2ego=torch.eye(4))
    with pytest.raises(ValueError, match="taxonomy 'occ3d'"):
        class_shares([coarse])


def test_distances_and_histograms_by_hand():
    pose = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    pose[0, :3, 3] = torch.tensor([3.0, 4.0, 9.0])
    boxes = Boxes(pose, torch.ones(2, 3), ("car", "animal"))
    assert distances_of(boxes)["car"].tolist() == [5.0] and len(distances_of(boxes)["bus"]) == 0
    assert histogram(np.array([1.0, 2.0, 3.0, 12.0]), np.array([0, 2.5, 10])).tolist() == [2 / 3, 1 / 3]


def test_the_printout(tmp_path, capsys):
    path = Path(__file__).resolve().parents[2] / "examples" / "world_statistics.py"
    main = runpy.run_path(str(path))["main"]
    shares = main(["--scenes", "1", "--frames", "1", "--seed", "3", "--real_data", str(tmp_path)])
    printed = capsys.readouterr().out
    assert sum(shares.values()) == pytest.approx(1) and shares["driveable_surface"] > 0.1
    assert "distance of objects" in printed and "a real f" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 12])
def test_class_shares_are_the_real_ones_within_a_factor_of_two(first):
    grids = []
    for seed in range(first, first + 12):
        scene = make_scene(seed)
        grids += [exact_grid(scene, t, OCC3D_NUSCENES) for t in (0.0, 3.0, 6.0, 9.0)]
    ratio = class_shares(grids) / occ3d_shares()
    names = OCC3D_NUSCENES.taxonomy.classes
    wrong = {name: round(float(r), 2) for name, r in zip(names, ratio, strict=False) if not 0.5 < r < 2}
    assert not wrong, f"classes whose share is off by more than a factor of two: {wrong}"
