"""Speed of 2D labels made of lidar points: 7 key frames of 34,000 points, 6 cameras, boxes that move the objects.

    python benchmarks/rays.py --threads 2 --output DIR            a CPU, as a loader's worker does it; about a minute
    python benchmarks/rays.py --device cuda --output DIR          the same points in a GPU's memory
    python benchmarks/rays.py --parts truth --scenes 8            how true the labels are; a few minutes, any machine
    python benchmarks/rays.py --smoke                             every line of it, tiny

Frames come from the procedural world: 1600 x 900 cameras, a lidar with as many azimuths as give nuScenes' points.
"files" is what reading them costs beside it. "in plain loops" is `ray_reference`: the same labels in float64, one
camera after the other, every point against every box. Ratios are of the same run.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import Bench
from rays_truth import truth
from reporting import run_summary

from syntheocc.engine.files import atomic_write_bytes, atomic_write_npz
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.lidar import write_lidar
from syntheocc.occupancy.data.lidarseg import LidarReader
from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.perception.history import ShotCamera
from syntheocc.occupancy.perception.ray_boxes import match_boxes
from syntheocc.occupancy.perception.ray_config import (
    RayConfig,
    published_occflownet_rays,
    published_renderocc_rays,
)
from syntheocc.occupancy.perception.ray_frames import InputWindow, RayFrame, ray_frame
from syntheocc.occupancy.perception.ray_labels import build_rays
from syntheocc.occupancy.perception.ray_reference import reference_rays
from syntheocc.occupancy.perception.ray_store import StoredLidar
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.worlds.lidar import LidarModel, scan
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.timeline import key_frame

TARGETS = {"ms_a_sample_on_two_cpu_cores": 60}
SPEC = OCC3D_NUSCENES.spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", choices=("speed", "truth"), default=("speed",))
    parser.add_argument("--scenes", type=int, default=8, help="of the world's validation split, for the truth")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on a CPU")
    parser.add_argument("--repeats", type=int, default=5, help="calls in a group")
    parser.add_argument("--output", type=Path, help="folder for rays-<device>.json")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    if "speed" in args.parts:
        speed(bench)
    if "truth" in args.parts:
        truth(bench)
    summary = {**run_summary(bench.device), "threads": args.threads, "targets": TARGETS, "rows": bench.rows}
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        name = f"rays-{bench.device.type}.json" if "speed" in args.parts else "rays-truth.json"
        (args.output / name).write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{summary['device']}, {args.threads} threads, torch {summary['torch']}")


def speed(bench: Bench) -> None:
    """Reading, and making labels of what was read."""
    with tempfile.TemporaryDirectory() as folder:
        drive = write_drive(Path(folder), azimuths=60 if bench.args.smoke else 1220)
        frames = [read(LidarReader(folder), frame) for frame in drive]
        counts = [len(frame.points) for frame in frames]
        bench.row("input", "points of 7 frames", each=sum(counts) / len(counts), boxes=len(frames[0].boxes or ()))
        for kind in ("lidarseg", "panoptic"):
            reader = LidarReader(folder, kind)
            milliseconds = bench.milliseconds(lambda reader=reader: read_all(reader, drive))
            bench.row("files", f"sweeps and {kind} of 7 frames", ms=milliseconds)
    labels(bench, frames)


def write_drive(root: Path, azimuths: int) -> list[Frame]:
    """Seven key frames with sweeps and point classes on disk; no pictures."""
    scene = make_scene(3, image_size=None, key_frames=7)
    frames = []
    for index, t in enumerate(scene.key_times):
        sweep, frame = scan(scene, t, LidarModel(azimuths=azimuths)), key_frame(scene, index, root)
        write_lidar(sweep.points.numpy(), frame.lidar_path)
        category, stem = sweep.category.numpy(), f"v1.0-trainval/{frame.extras['lidar_token']}"
        atomic_write_bytes(root / f"lidarseg/{stem}_lidarseg.bin", category.tobytes())
        panoptic = (category.astype(np.int64) * 1000 + sweep.instance.numpy()).astype("u2")
        atomic_write_npz(root / f"panoptic/{stem}_panoptic.npz", data=panoptic)
        frames.append(frame)
    return frames


def read(reader: LidarReader, frame: Frame) -> RayFrame:
    """A frame as a dataset reads it, but for its pictures."""
    ego = frame.ego2global
    assert ego is not None
    cameras = [ShotCamera(Path(n), c.intrinsics, ego @ c.cam2ego, (900, 1600)) for n, c in frame.cameras.items()]
    return ray_frame(frame, reader, cameras, ego)


def read_all(reader: LidarReader, drive: Sequence[Frame]) -> list[RayFrame]:
    return [read(reader, frame) for frame in drive]


def labels(bench: Bench, frames: list[RayFrame]) -> None:
    """Rays of one sample."""
    image = ImageAugmentation(height=512, width=1408)
    window = InputWindow(image.for_test(900, 1600).matrix().expand(6, 4, 4), 512, 1408)
    generator = torch.Generator().manual_seed(0)
    settings = {
        "default": RayConfig(),
        "from the lidar": RayConfig(ray_origin="lidar"),
        "no boxes": RayConfig(dynamics="filter"),
        "published OccFlowNet": published_occflownet_rays(),
        "published RenderOcc, 38,400 drawn": published_renderocc_rays(),
    }
    on_device = frames
    if bench.device.type != "cpu":
        store = StoredLidar.of(frames, (900, 1600), bench.device)
        on_device = [store.frame(i, f.frame2global, f.intrinsics, f.cam2global) for i, f in enumerate(frames)]
    for name, config in settings.items():
        build = lambda config=config: build_rays(on_device, config, SPEC, window, generator).rays  # noqa: E731
        milliseconds = bench.milliseconds(build)
        bench.row("labels", name, ms=milliseconds, rays=len(build()))
    milliseconds = bench.milliseconds(lambda: match_boxes(frames, RayConfig(), SPEC))
    bench.row("labels", "matching boxes alone (part of the default)", ms=milliseconds)
    if bench.device.type == "cpu":
        against_loops(bench, frames, window, bench.rows)


def against_loops(bench: Bench, frames: list[RayFrame], window: InputWindow, rows: list[dict]) -> None:
    """The same labels in plain loops, and that they are the same."""
    for name, config in (("default", RayConfig()), ("no boxes", RayConfig(dynamics="filter"))):
        slow: Callable = lambda config=config: reference_rays(frames, config, SPEC, window)  # noqa: E731
        milliseconds = bench.milliseconds(slow, repeats=1)
        fast = next(row["ms"] for row in rows if row["part"] == "labels" and row["what"] == name)
        one, other = build_rays(frames, config, SPEC, window).rays, slow()
        same = len(one) == len(other) and torch.equal(one.labels, other.labels)
        bench.row("labels", f"{name}, in plain loops", ms=milliseconds, ratio=milliseconds / fast, same_rays=same)


if __name__ == "__main__":
    main()
