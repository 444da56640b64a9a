"""Draw an MPI's nearest classes over the photographs of its frame: do the labels lie where the objects are?

    python examples/overlay_mpi.py                                  # the real key frame of SYNTHEOCC_REAL_DATA
    python examples/overlay_mpi.py --infos nuscenes_infos_val.pkl --data_root data/nuscenes --index 10
    python examples/overlay_mpi.py --occ3d labels.npz               # an Occ3D label seen by the same rig

The key frame goes reader -> builder (lidar and boxes) -> render_mpi -> overlay; one sheet of all views is written to
outputs/, with the grid from above and in 3D beside it. An Occ3D label belongs to another frame, so it is shown as
palette views, without photographs. Sheets made of nuScenes photographs are research-licensed: keep them out of the
repository.
"""

import argparse
import os
import time
from pathlib import Path

import torch

from syntheocc.occupancy import OccupancyGrid, PlaneSpec, render_mpi
from syntheocc.occupancy.building import build_occupancy
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.lidar import read_lidar
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes
from syntheocc.occupancy.data.occ3d import read_occ3d
from syntheocc.occupancy.data.occupancy_files import OCCUPANCY_KINDS, preset_of, read_occupancy
from syntheocc.occupancy.pictures import (
    bev_picture,
    condition_pictures,
    contact_sheet,
    oblique_picture,
    overlay,
    save_picture,
)

REPOSITORY = Path(__file__).resolve().parents[1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    real = Path(os.environ.get("SYNTHEOCC_REAL_DATA", REPOSITORY.parent / "shared" / "real")) / "nuscenes_scene0061"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_argument_group("frame")
    source.add_argument("--infos", type=Path, help="info pickle of any style (default: the real key frame's)")
    source.add_argument("--version", help="folder of JSON tables below the data root, read instead of an info pickle")
    source.add_argument(
        "--data_root", type=Path, default=real, help="folder that holds samples/ (default: %(default)s)"
    )
    source.add_argument("--index", type=int, default=0, help="which frame, in time order")
    source.add_argument("--occupancy", type=Path, help="label file of the frame (default: built from lidar and boxes)")
    source.add_argument("--kind", choices=OCCUPANCY_KINDS, default="syntheocc", help="format of --occupancy")
    source.add_argument("--occ3d", type=Path, help="an Occ3D labels.npz of any frame, seen by this frame's rig")
    drawing = parser.add_argument_group("drawing")
    drawing.add_argument("--rows", type=int, default=224, help="rows of the MPI (56 is the latent size)")
    drawing.add_argument("--cols", type=int, default=400, help="columns of the MPI (100 is the latent size)")
    drawing.add_argument("--pixel_origin", choices=("center", "corner"), default="center")
    drawing.add_argument("--alpha", type=float, default=0.5, help="weight of the labels")
    drawing.add_argument("--output", type=Path, default=REPOSITORY / "outputs" / "overlay_mpi.png")
    return parser.parse_args(argv)


def load_frame(args: argparse.Namespace) -> Frame:
    if args.version is not None:
        frames = read_nuscenes(args.data_root, args.version)
    else:
        frames = read_infos(args.infos or args.data_root / "info_mmdet3d_v1.1.pkl", args.data_root)
    if not 0 <= args.index < len(frames):
        raise ValueError(f"--index {args.index}: there are {len(frames)} frames")
    return frames[args.index]


def load_grid(args: argparse.Namespace, frame: Frame) -> OccupancyGrid:
    if args.occupancy is not None:
        return read_occupancy(args.occupancy, args.kind, frame.lidar2ego)
    started = time.perf_counter()
    grid = build_occupancy(read_lidar(frame.lidar_path), frame.boxes, frame.lidar2ego, *preset_of(args.kind))
    print(f"built {grid} in {time.perf_counter() - started:.1f} s")
    return grid


def draw(args: argparse.Namespace, frame: Frame) -> list[Path]:
    """Write the sheet of views and the grid from above and in 3D; returns their paths."""
    from PIL import Image

    photographs = args.occ3d is None
    grid = load_grid(args, frame) if photographs else read_occ3d(args.occ3d).grid
    mpi = render_mpi(grid, frame.cameras, args.rows, args.cols, PlaneSpec(), args.pixel_origin)
    views = condition_pictures(mpi, shade=not photographs)
    empty = mpi.nearest == mpi.taxonomy.free
    tiles = {}
    for name, colors, blank in zip(mpi.names, views, empty, strict=True):
        # Some palettes paint free space white.
        colors = colors * (~blank).to(torch.uint8).numpy()[..., None]
        if photographs:
            with Image.open(frame.image_paths[name]) as photograph:
                colors = overlay(photograph, colors, args.alpha, mask=(~blank).numpy())
        tiles[name] = colors
    above, solid = (args.output.with_name(f"{args.output.stem}_{what}{args.output.suffix}") for what in ("bev", "3d"))
    return [
        save_picture(contact_sheet(tiles, size=(450, 800), nearest=not photographs), args.output),
        save_picture(bev_picture(grid), above),
        save_picture(oblique_picture(grid), solid),
    ]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    frame = load_frame(args)
    if args.occ3d is None:
        frame.check_files(lidar=args.occupancy is None)
    for path in draw(args, frame):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
