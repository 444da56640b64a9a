"""Draw an occupancy file of any of the field's formats: solid voxels in 3D or from above, alone or against another.

    python examples/draw_occupancy.py                                             # the embedded street
    python examples/draw_occupancy.py gts/scene-0103/TOKEN/labels.npz --kind occ3d
    python examples/draw_occupancy.py labels.npz --kind occ3d --azimuth 180 --elevation 25 --zoom 2.5 --target 8 0 0
    python examples/draw_occupancy.py labels.npz --kind occ3d --against predictions/TOKEN.npz
    python examples/draw_occupancy.py 000000.label --kind semantic_kitti --orthographic --output kitti.png
    python examples/draw_occupancy.py labels.npz --kind occ3d --turn 24 --output turntable.webp

`--against` takes a file with an array `pred` [X, Y, Z], as every model here and most elsewhere leave it, and draws
prediction, truth and errors. `--turn` goes once around in so many frames (.webp, .png or .gif).
"""

import argparse
import sys
from pathlib import Path

import torch

from syntheocc.engine.files import read_npz
from syntheocc.occupancy import OccupancyGrid
from syntheocc.occupancy.data.occupancy_files import OCCUPANCY_KINDS, preset_of, read_occupancy
from syntheocc.occupancy.pictures import (
    Viewpoint,
    bev_picture,
    class_legend,
    comparison_picture,
    oblique_picture,
    save_animation,
    save_picture,
    with_legend,
)
from syntheocc.worlds.street import LIDAR2EGO, example_street


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    usual = Viewpoint()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="label file (default: the embedded street)")
    parser.add_argument("--kind", choices=OCCUPANCY_KINDS, default="occ3d", help="its format (default: %(default)s)")
    parser.add_argument("--against", type=Path, help=".npz of a prediction with an array pred")
    parser.add_argument("--output", type=Path, default=Path("outputs/occupancy.png"))
    view = parser.add_argument_group("view")
    view.add_argument("--above", action="store_true", help="from above instead of in 3D")
    view.add_argument("--azimuth", type=float, default=usual.azimuth_deg, help="180 is behind the car, 90 to its left")
    view.add_argument("--elevation", type=float, default=usual.elevation_deg, help="0 level, 90 from above")
    view.add_argument("--zoom", type=float, default=usual.zoom, help="1 shows everything")
    view.add_argument("--target", type=float, nargs=3, metavar=("X", "Y", "Z"), help="middle of the picture, m in ego")
    view.add_argument("--orthographic", action="store_true", help="without perspective")
    view.add_argument("--below", type=float, help="leave out what is higher, m in ego")
    view.add_argument("--unknown", action="store_true", help="draw unknown voxels, in grey")
    view.add_argument("--size", default="1080x720", help="width x height (default: %(default)s)")
    view.add_argument("--turn", type=int, help="an animation once around, of so many frames")
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> OccupancyGrid:
    if args.file is None:
        return example_street()[0]
    if args.kind == "semantic_kitti":
        return read_occupancy(args.file, args.kind, torch.eye(4))
    # A file does not hold its pose; the nominal mounting of nuScenes' lidar turns the picture the right way.
    return read_occupancy(args.file, args.kind, None if preset_of(args.kind).spec.frame == "ego" else LIDAR2EGO)


def main(argv: list[str] | None = None) -> Path:
    args = parse_args(argv)
    width, height = (int(number) for number in args.size.split("x"))
    grid = load(args)
    fov = None if args.orthographic else Viewpoint().fov_deg
    target = None if args.target is None else tuple(args.target)

    def view(turned: float = 0.0) -> Viewpoint:
        return Viewpoint(args.azimuth + turned, args.elevation, args.zoom, fov, target)

    def solid(turned: float = 0.0):
        options = {"height": height, "width": width, "below": args.below, "unknown": args.unknown}
        options["fit"] = "grid" if args.turn else "drawn"
        return with_legend(oblique_picture(grid, view(turned), **options), class_legend(grid.taxonomy, grid))

    if args.turn:
        path = save_animation((solid(360.0 * i / args.turn) for i in range(args.turn)), args.output, seconds=0.1)
    elif args.against is not None:
        guess = read_npz(args.against, ["pred"])["pred"]
        prediction = OccupancyGrid(guess, grid.spec, grid.taxonomy, grid.grid2ego)
        where = None if args.above else view()
        picture = comparison_picture(prediction, grid, None, where, height=height, width=width, below=args.below)
        path = save_picture(picture, args.output)
    elif args.above:
        scale = max(1, height // bev_picture(grid).shape[0])
        path = save_picture(bev_picture(grid, below=args.below, scale=scale, ego=True), args.output)
    else:
        path = save_picture(solid(), args.output)
    print(f"wrote {path}")
    return path


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
