"""What the procedural street world is made of, beside what is known of nuScenes.

    python examples/world_statistics.py --scenes 12
    python examples/world_statistics.py --scenes 6 --visible        # also renders: how much of each object is seen

Prints shares of the classes' voxels (exact Occ3D labels, beside the published training set's counts and, where
SYNTHEOCC_REAL_DATA has it, one real label file), a histogram of the objects' distances (beside the real key frame's),
and with --visible a histogram of visible fractions in the bins of nuScenes' visibility levels. About three seconds a
scene on one CPU core, labels included.
"""

import argparse
import os
from pathlib import Path

import numpy as np

from syntheocc.occupancy.data.frames import DETECTION_CLASSES
from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.occ3d import read_occ3d
from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.worlds.camera_images import Shot, render_shots
from syntheocc.worlds.labels import exact_grid
from syntheocc.worlds.lidar import camera_time
from syntheocc.worlds.scene import Scene, make_scene
from syntheocc.worlds.statistics import class_shares, distances_of, histogram, occ3d_shares
from syntheocc.worlds.visibility import visible_shares

REPOSITORY = Path(__file__).resolve().parents[1]
DISTANCES = np.array([0, 10, 20, 30, 40, 50, 60, 80])
VISIBLE = np.array([0, 0.4, 0.6, 0.8, 1.0001])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first scene; the next have the next seeds")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="families they are made of")
    parser.add_argument("--frames", type=int, default=3, help="key frames that are counted in each scene")
    parser.add_argument("--visible", action="store_true", help="render each counted frame and print visible fractions")
    real = Path(os.environ.get("SYNTHEOCC_REAL_DATA", REPOSITORY.parent / "shared" / "real"))
    parser.add_argument("--real_data", type=Path, default=real, help="real sample files, if there are any")
    return parser.parse_args(argv)


def visible_of(scene: Scene, t: float) -> np.ndarray:
    """Visible shares of the actors that show in a picture of a key frame."""
    moments = {name: camera_time(t, camera) for name, camera in scene.rig.items()}
    shots = [Shot(scene.rig[name], scene.ego.pose_at(at), at) for name, at in moments.items()]
    views = dict(zip(moments, render_shots(scene, shots, "cpu"), strict=True))
    shares = visible_shares(scene, {name: (views[name].instances.cpu(), at) for name, at in moments.items()})
    return shares[shares > 0]


def bars(title: str, edges: np.ndarray, columns: dict[str, np.ndarray], unit: str) -> None:
    """A table of histograms side by side."""
    print(f"\n{title:24s}" + "".join(f"{name:>14s}" for name in columns))
    for i in range(len(edges) - 1):
        row = "".join(f"{shares[i]:14.3f}" for shares in columns.values())
        print(f"{edges[i]:>9.4g} to {min(edges[i + 1], 1e9):<7.4g}{unit:4s}{row}")


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = parse_args(argv)
    grids, distances, visible = [], [], []
    speeds, counts = [], {name: 0 for name in DETECTION_CLASSES}
    for seed in range(args.seed, args.seed + args.scenes):
        scene = make_scene(seed, args.split)
        picked = np.linspace(0, len(scene.key_times) - 1, args.frames).round().astype(int)
        print(f"{scene.name}: {len(scene.static)} still solids, {len(scene.actors)} actors; {scene.caption}")
        for t in (scene.key_times[i] for i in picked):
            grids.append(exact_grid(scene, t, OCC3D_NUSCENES))
            of_class = distances_of(scene.boxes_at(t, scene.ego.pose_at(t)))
            distances.append(np.concatenate(list(of_class.values())))
            speeds.append(float(scene.ego.velocity_at(t).norm()))
            counts = {name: counts[name] + len(of_class[name]) for name in counts}
            if args.visible:
                visible.append(visible_of(scene, t))
    shares, published = class_shares(grids), occ3d_shares()
    occupied = sum(int(grid.occupied().sum()) for grid in grids) / len(grids)
    label_file = args.real_data / "occ3d_scene1077" / "labels.npz"
    real = class_shares([read_occ3d(label_file).grid]) if label_file.is_file() else None
    print(f"\n{len(grids)} frames, {occupied:.0f} occupied voxels each; ego {min(speeds):.1f}..{max(speeds):.1f} m/s")
    print(
        f"{'share of voxels':24s}{'world':>10s}{'Occ3D train':>14s}{'ratio':>8s}"
        + ("" if real is None else "  a real file")
    )
    for i, name in enumerate(OCC3D_NUSCENES.taxonomy.classes[: len(published)]):
        row = f"{name:24s}{shares[i]:10.5f}{published[i]:14.5f}{shares[i] / published[i]:8.2f}"
        print(row + ("" if real is None else f"{real[i]:13.5f}"))
    columns = {"world": histogram(np.concatenate(distances), DISTANCES)}
    infos = args.real_data / "nuscenes_scene0061" / "info_mmdet3d_v1.1.pkl"
    if infos.is_file():
        boxes = read_infos(infos, infos.parent)[0].boxes
        columns["a real frame"] = histogram(np.concatenate(list(distances_of(boxes).values())), DISTANCES)
    bars("distance of objects", DISTANCES, columns, " m")
    print("\nobjects a frame: " + ", ".join(f"{name} {count / len(grids):.1f}" for name, count in counts.items()))
    if visible:
        bars("visible fraction", VISIBLE, {"world": histogram(np.concatenate(visible), VISIBLE)}, "")
    return {name: float(share) for name, share in zip(OCC3D_NUSCENES.taxonomy.classes, shares, strict=False)}


if __name__ == "__main__":
    main()
