"""Draw scene completion: voxels and skin of a prediction beside the photographs and the truth, and its surface as PLY.

    python examples/draw_completion.py 08/000000.pkl --images image_2/000000.png image_3/000000.png
    python examples/draw_completion.py output/kitti/08 --output drive.webp        # all frames, as an animation
    python examples/draw_completion.py NYU0001_0000.pkl --kind nyuv2 --images NYU0001_0000_color.jpg
    python examples/draw_completion.py 000000.npz --ply surface.ply --smooth 0    # cubes, for MeshLab or Blender

Files are those of OccDepth's and MonoScene's generate_output.py, of one or two views, and the .npz that
`syntheocc occupancy predict --published-files` writes. What no camera sees is darker, unknown voxels are left out, and
the cameras are drawn as pyramids. Nothing needs a screen.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from syntheocc.occupancy.data.completion_files import read_completion_file
from syntheocc.occupancy.pictures import (
    STREET_VIEW,
    Viewpoint,
    completion_sheet,
    save_animation,
    save_picture,
    save_ply,
    surface_mesh,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help=".pkl or .npz of a frame, or a folder of them for an animation")
    parser.add_argument("--kind", choices=("semantic_kitti", "nyuv2", "tartanair"), default="semantic_kitti")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="left and right; for a folder, theirs")
    parser.add_argument("--size", default=None, help="width x height of the pictures (default: the published input's)")
    parser.add_argument("--output", type=Path, default=Path("outputs/completion.png"))
    parser.add_argument("--ply", type=Path, help="also write the prediction's surface")
    parser.add_argument("--smooth", type=int, default=6, help="rounds of relaxation of the skin; 0: cubes")
    parser.add_argument("--no-mesh", action="store_true", help="voxels alone")
    parser.add_argument("--azimuth", type=float, help="180 is behind the car (default: behind it, or the camera)")
    parser.add_argument("--elevation", type=float, default=STREET_VIEW.elevation_deg, help="with --azimuth")
    parser.add_argument("--width", type=int, default=1440, help="of the sheet, pixels")
    return parser.parse_args(argv)


def photos(args: argparse.Namespace, frame: Path) -> dict[str, np.ndarray]:
    """The pictures of a frame: the files given, or those of its name in the folders given."""
    found = {}
    for name, place in zip(("left", "right"), args.images, strict=False):
        path = place
        if place.is_dir():
            path = next(iter(sorted(place.glob(f"{frame.stem}*.[pj][np]g"))), place / f"{frame.stem}.png")
        if not path.is_file():
            raise ValueError(f"{path}: no such picture")
        with Image.open(path) as image:
            found[name] = np.asarray(image.convert("RGB"))
    return found


def sheet(args: argparse.Namespace, path: Path) -> np.ndarray:
    size = None
    if args.size is not None:
        width, height = (int(number) for number in args.size.split("x"))
        size = (height, width)
    frame = read_completion_file(path, args.kind, size)
    if args.ply is not None and not args.file.is_dir():
        print(f"wrote {save_ply(surface_mesh(frame.prediction, smooth=args.smooth), args.ply)}")
    view = None if args.azimuth is None else Viewpoint(args.azimuth, args.elevation)
    options = {"mesh": not args.no_mesh, "width": args.width, "smooth": args.smooth}
    return completion_sheet(photos(args, path), frame.prediction, frame.truth, frame.cameras, view, **options)


def main(argv: list[str] | None = None) -> Path:
    args = parse_args(argv)
    if args.file.is_dir():
        files = sorted(path for path in args.file.iterdir() if path.suffix in (".pkl", ".npz"))
        if not files:
            raise ValueError(f"{args.file}: no .pkl or .npz in it")
        path = save_animation((sheet(args, file) for file in files), args.output.with_suffix(".webp"))
    else:
        path = save_picture(sheet(args, args.file), args.output)
    print(f"wrote {path}")
    return path


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
