"""A contact sheet of one frame of the procedural street world: does it look like a street?

    python examples/world_sheet.py --seed 3
    python examples/world_sheet.py --seed 3 --weather rain --light night --size 1600x900 --output outputs/rain.png

Six views as the cameras take them (each at its own instant), exact depth, exact classes, the condition that a
generator would be given (the MPI's nearest class), the lidar sweep in the cameras, and the occupancy from above.
About half a minute with numba on two CPU cores, most of it compiling; `--device cuda` renders on a GPU.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from syntheocc.occupancy import CameraRig, PlaneSpec, render_mpi
from syntheocc.occupancy.grids import SYNTHEOCC
from syntheocc.occupancy.pictures import (
    bev_picture,
    condition_pictures,
    labelled,
    palette_picture,
    resized,
    save_picture,
    tiled,
)
from syntheocc.occupancy.transforms import invert_rigid, transform_points
from syntheocc.worlds.camera_images import Shot, View, render_shots
from syntheocc.worlds.labels import exact_grid
from syntheocc.worlds.lidar import camera_time, scan
from syntheocc.worlds.scene import Scene, make_scene
from syntheocc.worlds.taxonomy import LIDARSEG_TO_WORLD, WORLD_TAXONOMY


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which scene")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="families it is made of")
    parser.add_argument("--weather", choices=("clear", "overcast", "rain", "fog"), help="default: the scene's own")
    parser.add_argument("--light", choices=("day", "dusk", "night"), help="default: the scene's own")
    parser.add_argument("--frame", type=int, default=4, help="key frame of the scene")
    parser.add_argument("--size", default="400x224", help="width x height of the views (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--photos_only", action="store_true", help="only the six photographs, full size")
    parser.add_argument("--output", type=Path, default=Path("outputs/world_sheet.png"))
    return parser.parse_args(argv)


def photograph(scene: Scene, t: float, device: str) -> tuple[dict[str, View], CameraRig]:
    """Every camera at the instant at which the lidar crosses its axis, and the rig in ego at time t."""
    shots = {}
    for name, camera in scene.rig.items():
        moment = camera_time(t, camera)
        shots[name] = Shot(camera, scene.ego.pose_at(moment), moment)
    views = dict(zip(shots, render_shots(scene, list(shots.values()), device), strict=True))
    world2ego = invert_rigid(scene.ego.pose_at(t))
    rig = CameraRig(
        {name: shot.camera.moved(world2ego @ shot.ego2global @ shot.camera.cam2ego) for name, shot in shots.items()}
    )
    return {name: View(*(part.cpu() for part in view)) for name, view in views.items()}, rig


def depth_picture(depth: torch.Tensor) -> np.ndarray:
    """Near is bright, in logarithmic steps from 1 to 100 m; the sky is black."""
    near = 1 - (depth.clamp(1, 100).log() / np.log(100)).numpy()
    colors = np.stack([near, near**1.6 * 0.9 + 0.05, 0.25 + 0.5 * near], -1)
    return np.where(torch.isfinite(depth)[..., None], colors, 0)


def lidar_picture(view: View, points_cam: torch.Tensor, colors: np.ndarray, camera) -> np.ndarray:
    """The sweep's points, coloured by class, on the darkened photograph."""
    picture = (view.image.numpy() * 0.35).astype(np.uint8)
    pixels, depth = camera.project(points_cam)
    inside = (depth > 0.5) & (pixels >= 0).all(-1) & (pixels < torch.tensor([camera.width, camera.height])).all(-1)
    column, row = pixels[inside].long().unbind(-1)
    picture[row, column] = colors[inside.numpy()]
    return picture


def main(argv: list[str] | None = None) -> Path:
    args = parse_args(argv)
    width, height = (int(number) for number in args.size.split("x"))
    chosen = {name: value for name in ("weather", "light") if (value := getattr(args, name)) is not None}
    scene = make_scene(args.seed, args.split, image_size=(width, height), **chosen)
    t = scene.key_times[args.frame]
    started = time.perf_counter()
    views, rig = photograph(scene, t, args.device)
    print(f"{scene.name}: {scene.caption}; {len(scene.static)} still solids, {len(scene.actors)} actors")
    print(f"six {width}x{height} images in {time.perf_counter() - started:.2f} s (the first call compiles)")
    names = list(views)
    photos = [labelled(views[name].image, name) for name in names]
    if args.photos_only:
        return save_picture(tiled([photos[:3], photos[3:]]), args.output)
    grid = exact_grid(scene, t, SYNTHEOCC)
    mpi = render_mpi(grid, rig, 56, 100, PlaneSpec())
    sweep = scan(scene, t)
    points_ego = transform_points(scene.lidar2ego, sweep.points[:, :3].double())
    classes = torch.as_tensor(LIDARSEG_TO_WORLD)[sweep.category.long()]
    colors = palette_picture(classes[None], WORLD_TAXONOMY)[0]
    conditions = dict(zip(names, condition_pictures(mpi), strict=True))
    rows = [photos[:3], photos[3:]]
    for title, draw in (
        ("depth", lambda name: depth_picture(views[name].depth)),
        ("class", lambda name: palette_picture(views[name].labels, WORLD_TAXONOMY)),
        ("MPI", lambda name: conditions[name]),
        ("lidar", lambda name: lidar_picture(
            views[name], transform_points(rig[name].ego2cam, points_ego), colors, rig[name]
        )),
    ):  # fmt: skip
        tiles = [labelled(resized(draw(name), height, width, nearest=title != "depth"), title) for name in names]
        rows += [tiles[:3], tiles[3:]]
    sheet = tiled(rows)
    above = resized(bev_picture(grid, below=2.0), sheet.shape[0], sheet.shape[0], nearest=True)
    path = save_picture(np.concatenate([sheet, above], axis=1), args.output)
    print(f"wrote {path}")
    return path


if __name__ == "__main__":
    main()
