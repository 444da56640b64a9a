"""Speed of drawing occupancy on the CPU: solid voxels in 3D, from above, in six cameras, comparisons, files.

    python benchmarks/pictures.py                2 threads
    python benchmarks/pictures.py --check        every pixel's face against a ray through it first

Grids are exact frames of the procedural street world, another one at every repetition; the yardstick of the 3D view is
a ray cast through each of its pixels (`trace_faces`, with numba where it is installed). Pictures are 1080 x 720,
computed at twice that size. Wall time, and beside it the processor's time, which other work on the machine does not
stretch as much.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import OCC3D_NUSCENES, SYNTHEOCC, GridSpec, OccupancyGrid, Preset
from syntheocc.occupancy.pictures import (
    Viewpoint,
    bev_picture,
    camera_overlays,
    class_colors,
    class_legend,
    comparison_picture,
    contact_sheet,
    oblique_picture,
    panoptic_colors,
    save_animation,
    save_picture,
    with_legend,
)
from syntheocc.occupancy.pictures.faces import facing_faces, paint_faces, trace_faces
from syntheocc.worlds.labels import exact_labels
from syntheocc.worlds.scene import make_scene

Call = Callable[[int], Any]
TARGET_MS = 500.0
HEIGHT, WIDTH, SUPERSAMPLE = 720, 1080, 2
# KITTI's grid, hung from ego so that the street's frames fill it.
KITTI = Preset(GridSpec((0.0, -25.6, -0.4), (0.2, 0.2, 0.2), (256, 256, 32)), OCC3D_NUSCENES.taxonomy)
PRESETS = {"200x200x16, 0.4 m": OCC3D_NUSCENES, "256x256x32, 0.2 m": KITTI, "500x500x40, 0.2 m": SYNTHEOCC}


def timed(call: Call, repeats: int) -> dict[str, float]:
    """Milliseconds of ``call(i)``: the first, then median, least and most of `repeats`, and the processor's median."""
    started = time.perf_counter()
    call(0)
    first = 1e3 * (time.perf_counter() - started)
    walls, busy = [], []
    for i in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        call(i + 1)
        walls.append(1e3 * (time.perf_counter() - wall))
        busy.append(1e3 * (time.process_time() - processor))
    return {
        "ms": statistics.median(walls),
        "low": min(walls),
        "high": max(walls),
        "cpu_ms": statistics.median(busy),
        "first_ms": first,
    }


def fitted(grid: OccupancyGrid, size: tuple[int, int]):
    """The usual view of a grid, fitted as `oblique_picture` fits it."""
    spec = grid.spec
    ends = np.stack(np.meshgrid(*zip(spec.lower, spec.upper, strict=True), indexing="ij"), -1).reshape(-1, 3)
    pose = grid.grid2ego.numpy()
    return Viewpoint().fitted(ends @ pose[:3, :3].T + pose[:3, 3], *size)


def traced(grid: OccupancyGrid, size: tuple[int, int]):
    return trace_faces(class_colors(grid).drawn, grid.spec, grid.grid2ego.numpy(), fitted(grid, size), *size)


def check(grid: OccupancyGrid, size: tuple[int, int]) -> str:
    """Share of pixels whose painted face is the one that a ray through the pixel meets."""
    drawn, pose, view = class_colors(grid).drawn, grid.grid2ego.numpy(), fitted(grid, size)
    faces = facing_faces(drawn, grid.spec, pose, view)
    number = paint_faces(faces, grid.spec, pose, view, *size)
    hits = traced(grid, size)
    same = np.append(faces.side, -1)[number] == hits.side
    same &= (number < 0) | (np.append(faces.voxel, [[0, 0, 0]], 0)[number] == hits.voxel).all(-1)
    return f"{same.sum()} of {same.size} pixels alike"


def others(frames: list[tuple[OccupancyGrid, torch.Tensor]], rig: CameraRig, folder: Path) -> dict[str, Call]:
    """What else is drawn of such grids: name -> call(i)."""
    grids, count = [grid for grid, _ in frames], len(frames)
    photos = {camera: np.full((360, 640, 3), 90, np.uint8) for camera in rig.names}
    solids = [with_legend(oblique_picture(grid), class_legend(grid.taxonomy)) for grid in grids]
    sheets = [contact_sheet(camera_overlays(grid, rig, photos)) for grid in grids]
    close = Viewpoint(zoom=4, target=(5.0, 0.0, 0.0))

    def grid(i: int) -> OccupancyGrid:
        return grids[i % count]

    return {
        "oblique_picture, orthographic": lambda i: oblique_picture(grid(i), Viewpoint(fov_deg=None)),
        "oblique_picture, zoom 4": lambda i: oblique_picture(grid(i), close),
        "oblique_picture, panoptic_colors": lambda i: oblique_picture(
            grid(i), colors=panoptic_colors(*frames[i % count])
        ),
        "bev_picture, 800 x 800, with the car": lambda i: bev_picture(grid(i), scale=4, ego=True),
        "camera_overlays, 6 x 640 x 360, a ray for 2 x 2": lambda i: camera_overlays(grid(i), rig, photos),
        "comparison_picture, 3 x 640 x 480": lambda i: comparison_picture(grid(i), grid(i + 1)),
        "writing the 3D view as PNG": lambda i: save_picture(solids[i % count], folder / "a.png", compress_level=3),
        "writing the cameras as PNG": lambda i: save_picture(sheets[i % count], folder / "b.png", compress_level=3),
        f"writing a WebP of {count} frames of 1080 x 774": lambda i: save_animation(solids, folder / "a.webp"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each row")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--check", action="store_true", help="compare the painting with rays first")
    parser.add_argument("--smoke", action="store_true", help="every line of it once, on one grid: no figures")
    parser.add_argument("--commit", help="what the report names as commit, where there is no git")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/pictures-cpu.json)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.repeats = 1 if args.smoke else args.repeats
    seeds, key_frames, presets = (1, 2, list(PRESETS.items())[:1]) if args.smoke else (2, 3, list(PRESETS.items()))
    scenes = [make_scene(seed, image_size=(640, 360), key_frames=key_frames) for seed in range(seeds)]
    moments = [(scene, t) for scene in scenes for t in scene.key_times]
    size = (HEIGHT * SUPERSAMPLE, WIDTH * SUPERSAMPLE)
    rows: dict[str, dict[str, float]] = {}
    checks: dict[str, str] = {}

    def row(name: str, call: Call, repeats: int = args.repeats) -> None:
        rows[name] = timed(call, repeats)
        print(f"{name:<50}{rows[name]['ms']:>9.4g} ms  (processor {rows[name]['cpu_ms']:.4g} ms)", flush=True)

    for name, preset in presets:
        some = moments if preset is OCC3D_NUSCENES else moments[::2]
        frames = [exact_labels(scene, t, preset) for scene, t in some]
        grids = [grid for grid, _ in frames]
        if args.check:
            checks[name] = check(grids[0], size)
            print(f"{name}: {checks[name]}", flush=True)
        row(f"oblique_picture, {name}", lambda i, g=grids: oblique_picture(g[i % len(g)]))
        few = max(1, args.repeats // 5)
        row(f"a ray a pixel, {name}", lambda i, g=grids: traced(g[i % len(g)], size), few)
        if preset is OCC3D_NUSCENES:
            with tempfile.TemporaryDirectory() as folder:
                for title, call in others(frames, scenes[0].rig, Path(folder)).items():
                    row(title, call)
    headline = next(iter(rows.values()))
    report = {
        "benchmark": "pictures",
        "machine": platform.machine(),
        "chip": reporting.cpu_name(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "commit": args.commit or reporting.commit(),
        "command": shlex.join(["python", *reporting.without(sys.argv, ("--output", "--commit"))]),
        "picture": [WIDTH, HEIGHT, SUPERSAMPLE],
        "checks": checks,
        "target_ms": TARGET_MS,
        "target_met": headline["ms"] <= TARGET_MS,
        "rows": [{"what": name, **figures} for name, figures in rows.items()],
    }
    print(f"target {TARGET_MS:g} ms a 3D view of 200x200x16: {'met' if report['target_met'] else 'MISSED'}")
    output = args.output or Path(__file__).parent / "results" / "pictures-cpu.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
