"""Pictures of what perception.py predicted: cameras, labels and the arms side by side.

    python benchmarks/perception_pictures.py RESULTS/samples --output pictures

One sheet a kept scene: the six camera windows; below them from above and in 3D the exact labels, the part of them that
a camera sees, and every arm's prediction.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from syntheocc.engine.files import read_npz
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OccupancyGrid
from syntheocc.occupancy.pictures import bev_picture, labelled, oblique_picture, resized, save_picture, tiled

# SPARSEOCC_CAMERAS as they surround the car, left to right.
ORDER = (2, 0, 1, 4, 3, 5)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, help="the folder samples of a run's results")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    for path in sorted(args.samples.glob("*-scenes.npz")):
        level = path.name.removesuffix("-scenes.npz")
        truth = read_npz(path, ["images", "labels", "camera_mask"])
        arms = {
            file.stem.removeprefix(f"{level}-"): read_npz(file, ["prediction"])["prediction"]
            for file in sorted(args.samples.glob(f"{level}-*.npz"))
            if file != path
        }
        for i in range(len(truth["labels"])):
            predictions = {name: labels[i] for name, labels in arms.items()}
            picture = sheet(truth["images"][i], truth["labels"][i], truth["camera_mask"][i], predictions)
            print(save_picture(picture, args.output / f"{level}-{i}.png"))


def sheet(images: np.ndarray, labels: np.ndarray, seen: np.ndarray, predictions: dict[str, np.ndarray]) -> np.ndarray:
    """One scene: images uint8 [V, h, w, 3], labels uint8 [X, Y, Z], seen bool [X, Y, Z], predictions by arm."""
    spec, taxonomy = OCC3D_NUSCENES
    shown = {"exact": labels, "exact, seen": np.where(seen.astype(bool), labels, taxonomy.free), **predictions}
    grids = {name: OccupancyGrid(torch.from_numpy(values), spec, taxonomy) for name, values in shown.items()}
    above = [labelled(bev_picture(grid, scale=2), name) for name, grid in grids.items()]
    oblique = [oblique_picture(grid, height=300, width=400) for grid in grids.values()]
    width = len(above) * 404 - 4
    views = [images[v] for v in ORDER]
    edge = (width - 4 * (len(views) - 1)) // len(views)
    height = round(edge * images.shape[1] / images.shape[2])
    cameras = tiled([[resized(view, height, edge) for view in views]])
    strip = np.full((cameras.shape[0], width, 3), 255, np.uint8)
    strip[:, : cameras.shape[1]] = cameras[:, :width]
    return np.concatenate([strip, tiled([above]), tiled([oblique])], 0)


if __name__ == "__main__":
    main()
