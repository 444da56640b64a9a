"""Data of OccDepth: what a sample costs, where its time goes, and how good stereo depth is.

    python benchmarks/occdepth_data.py --output results/occdepth-data-cpu.json          one core; the world's own files
    python benchmarks/occdepth_data.py --real ../shared/real                            with real files besides
    python benchmarks/occdepth_data.py --device cuda --parts projection                 vox2pix on the GPU
    python benchmarks/occdepth_data.py --smoke                                          tiny, means nothing

Parts: `samples` (training samples of each data set at the published sizes, one process; the aim is 150 ms a sample),
`steps` (what one is made of, and what the published way would compute again in each), `projection` (vox2pix and tiles
on the device), `depth` (semi-global matching against exact depth of the street world, and against a lidar), `voxels`
(our voxels of a scan against the official file). Whatever is rendered is rendered once, into `--cache`.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Bench
from PIL import Image
from reporting import run_summary

from syntheocc.engine.files import atomic_write_image, atomic_write_json, atomic_write_npy
from syntheocc.occupancy.data import kitti, nyuv2
from syntheocc.occupancy.data.downsampling import downsample_labels
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.semantic_kitti import (
    read_point_labels,
    read_semantic_kitti,
    read_voxel_bits,
    voxelize_scan,
)
from syntheocc.occupancy.data.semantic_kitti_frames import completion_frames
from syntheocc.occupancy.data.stereo_matching import rectified_pair, stereo_depth
from syntheocc.occupancy.data.stereo_pairs import read_stereo_pair
from syntheocc.occupancy.data.tartanair import write_poses
from syntheocc.occupancy.data.tartanair_frames import read_tartanair_frames
from syntheocc.occupancy.perception.occdepth.augmentation import StereoAugmentation
from syntheocc.occupancy.perception.occdepth.batch import NO_TILE, StereoBatch
from syntheocc.occupancy.perception.occdepth.dataset import StereoFrames
from syntheocc.occupancy.perception.occdepth.frustums import frustum_tiles
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras, project_voxels
from syntheocc.occupancy.perception.occdepth.indoor_sources import stereo_source
from syntheocc.occupancy.perception.occdepth.presets import preset
from syntheocc.occupancy.perception.occdepth.sources import KittiSource

PARTS = ("samples", "steps", "projection", "depth", "voxels")
BINS = ((2, 10), (10, 20), (20, 54))  # metres


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    p.add_argument("--real", type=Path, help="folder of the real sample files")
    p.add_argument("--cache", type=Path, help="where the world's files are kept; empty: made anew")
    p.add_argument("--output", type=Path, help="JSON file of the figures")
    p.add_argument("--device", default="cpu")
    p.add_argument("--repeats", type=int, default=10)
    p.add_argument("--smoke", action="store_true")
    return p


def make_world(root: Path, smoke: bool) -> None:
    """A KITTI sequence of two frames and a room, unless they are there."""
    from syntheocc.worlds.kitti_tree import write_kitti_sequence
    from syntheocc.worlds.rooms import write_rooms
    from syntheocc.worlds.scene import make_scene

    size = (94, 310) if smoke else (376, 1241)
    write_kitti_sequence(make_scene(5, key_frames=3), root / "kitti", "00", size=size, frames=[0, 1])
    write_rooms(root / "nyu", train=1, test=0)
    make_office(root / "tartanair" / "office" / "Easy" / "P000")


def make_office(folder: Path) -> None:
    """A TartanAir frame of waves: what it costs to read depends on the number of its pixels alone."""
    rows, columns = np.mgrid[:480, :640]
    depth = (3 + 2 * np.sin(columns / 90) + 1.5 * np.cos(rows / 70)).astype(np.float32)
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    for side in ("left", "right"):
        atomic_write_image(folder / f"image_{side}" / f"000000_{side}.png", noise)
    atomic_write_npy(folder / "depth_left" / "000000_left_depth.npy", depth)
    atomic_write_npy(folder / "seg_left" / "000000_left_seg.npy", noise[..., 0])
    write_poses(torch.eye(4, dtype=torch.float64)[None], folder / "pose_left.txt")


def sample_costs(bench: Bench, root: Path) -> None:
    """Milliseconds of a training sample, the first of a recording and the others."""
    kitti_model = preset("kitti_b7").model
    if bench.args.smoke:
        kitti_model = replace(kitti_model, image_size=(90, 304))
    frames = completion_frames(root / "kitti", "train")
    augmentation = StereoAugmentation()
    for name, config, depth in (
        ("KITTI, stereo depth", kitti_model, "stereo"),
        ("KITTI, lidar depth", kitti_model, "lidar"),
        ("KITTI, one view, no depth", replace(kitti_model, num_views=1), None),
    ):
        data = StereoFrames(stereo_source(config, frames, depth=depth), augmentation, rounds=1000)
        cost(bench, name, data)
    rooms = nyuv2.read_nyuv2_frames(root / "nyu")
    nyu = replace(preset("nyu_b7").model, frustum_loss=True)
    cost(
        bench,
        "NYUv2, virtual view",
        StereoFrames(stereo_source(nyu, rooms, depth="sensor"), augmentation, rounds=1000),
    )
    office = stereo_source(preset("tartanair").model, read_tartanair_frames(root / "tartanair"), depth="sensor")
    cost(bench, "TartanAir, voxels voted", StereoFrames(office, augmentation, rounds=1000))
    if bench.args.real is not None:
        pair = real_frames(bench.args.real)
        data = StereoFrames(KittiSource(pair, kitti_model, "lidar", labels=False), augmentation, rounds=1000)
        cost(bench, "real KITTI pair, lidar depth, no labels", data)


def cost(bench: Bench, name: str, data: StereoFrames) -> None:
    started = time.perf_counter()
    data[0]
    first = 1e3 * (time.perf_counter() - started)
    indices = iter(range(1, len(data)))
    bench.row("samples", name, first_ms=first, **both_times(bench, lambda: data[next(indices)]))


def both_times(bench: Bench, call: Callable[[], Any], repeats: int | None = None) -> dict[str, float]:
    """Milliseconds that pass, and those of this process on a CPU: on a shared machine only the latter count."""
    before, calls = time.process_time(), 0

    def counted() -> None:
        nonlocal calls
        calls += 1
        call()

    passed = bench.milliseconds(counted, repeats)
    return {"ms": passed, "cpu_ms": 1e3 * (time.process_time() - before) / calls}


def step_costs(bench: Bench, root: Path) -> None:
    """What a KITTI sample is made of, and what is not made again."""
    config = preset("kitti_b7").model
    if bench.args.smoke:
        config = replace(config, image_size=(90, 304))
    frames = completion_frames(root / "kitti", "train")
    source = stereo_source(config, frames, depth="stereo")
    data = StereoFrames(source)
    frame = frames[0]
    assert frame.occupancy_path is not None
    labels = read_semantic_kitti(frame.occupancy_path).labels.numpy()
    draw = StereoAugmentation(flip=0.0).draw(2, torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], Any]] = {
        "two pictures, decoded, jittered, normalised": lambda: data._images(source.views(frame), draw),
        "labels and invalid mask": lambda: read_semantic_kitti(frame.occupancy_path),  # type: ignore[arg-type]
        "1/8 labels": lambda: downsample_labels(labels, 8),
        "depth picture": lambda: source.depths(frame),
        "a whole sample": lambda: data[0],
    }
    for name, call in calls.items():
        bench.row("steps", name, **both_times(bench, call))
    sample = data[0]
    for name, call in {
        "not again: tiles of two million voxels": lambda: tiles_of(sample, config),
        "not at all: 64 masks a frame from the tiles": lambda: masks_of(sample),
    }.items():
        bench.row("steps", name, **both_times(bench, call, repeats=1))


def tiles_of(sample: StereoBatch, config: Any) -> torch.Tensor:
    return frustum_tiles(sample.velo2img[0], sample.origin[0], config.grid, config.image_size, config.frustum_tiles)


def masks_of(sample: StereoBatch) -> list[torch.Tensor]:
    """The published form: a mask and a histogram of classes for each tile."""
    assert sample.frustums is not None and sample.semantics is not None and sample.known is not None
    tiles, known = sample.frustums[0], sample.known[0]
    made = []
    for tile in range(64):
        mask = (tiles == tile).any(0) & known
        made += [mask, torch.bincount(sample.semantics[0][mask].int(), minlength=20)]
    return made


def projection_costs(bench: Bench, root: Path) -> None:
    """Vox2pix and tiles where the model runs."""
    config = preset("kitti_b7").model
    frames = completion_frames(root / "kitti", "train")
    size = (90, 304) if bench.args.smoke else config.image_size
    model = replace(config, image_size=size)
    sample = StereoFrames(stereo_source(model, frames, labels=False))[0].to(bench.device)
    cameras = StereoCameras.of_batch(sample)
    bench.row(
        "projection",
        "vox2pix, half resolution",
        ms=bench.milliseconds(lambda: project_voxels(cameras, model.volume_grid)),
    )
    bench.row(
        "projection", "vox2pix, full resolution", ms=bench.milliseconds(lambda: project_voxels(cameras, model.grid))
    )
    bench.row("projection", "tiles, full resolution", ms=bench.milliseconds(lambda: tiles_of(sample, model)))
    shown = float((tiles_of(sample, model) != NO_TILE).float().mean())
    bench.row("projection", "share of voxels and views with a tile", share=shown)


def depth_quality(bench: Bench, root: Path) -> None:
    """Semi-global matching: how much it covers, and its errors in pixels and metres."""
    folder = root / "kitti" / "sequences" / "00"
    for frame in completion_frames(root / "kitti", "train"):
        exact = kitti.read_depth(folder / "depth" / f"{frame.extras['frame']}.png")
        judge(bench, f"world {frame.token} against exact depth", frame, folder / "calib.txt", exact)
    if bench.args.real is None:
        return
    for frame, calib in zip(real_frames(bench.args.real), real_calibrations(bench.args.real), strict=True):
        scan = KittiSource([frame], preset("kitti_b7").model, "lidar", labels=False).depths(frame)[0]
        judge(bench, f"real {frame.token} against its lidar", frame, calib, scan)


def judge(bench: Bench, name: str, frame: Frame, calib: Path, truth: np.ndarray) -> None:
    pair = rectified_pair(*kitti.read_projections(calib).values())
    left, right = (np.asarray(Image.open(path).convert("RGB")) for path in frame.image_paths.values())
    started = time.perf_counter()
    depth = stereo_depth(left, right, pair)
    spent = time.perf_counter() - started
    labelled = (truth > 2) & (truth < 54)
    both = labelled & (depth > 0)
    off = pair.focal * pair.baseline * np.abs(1 / depth[both] - 1 / truth[both])
    metres = np.abs(depth - truth)
    figures = {f"median_m_{low}_{high}": float(np.median(metres[part])) for low, high in BINS
               if (part := both & (truth >= low) & (truth < high)).any()}  # fmt: skip
    bench.row(
        "depth", name, seconds=spent, covered=float(both.sum() / labelled.sum()), median_px=float(np.median(off)),
        within_1px=float((off < 1).mean()), within_3px=float((off < 3).mean()), **figures,
    )  # fmt: skip


def voxel_agreement(bench: Bench) -> None:
    """IoU of our voxels of a real scan and the official file, as stored and put right."""
    if bench.args.real is None:
        return
    folder = bench.args.real / "semantickitti" / "sequences" / "00"
    for scan in sorted((folder / "velodyne").glob("*.bin")):
        raw, _ = read_point_labels(folder / "labels" / f"{scan.stem}.label")
        own = voxelize_scan(kitti.read_scan(scan), raw)
        ious = {}
        for what, release in (("as_stored", "current"), ("repaired", "detect")):
            stored = read_voxel_bits(folder / "voxels" / scan.name, release).numpy()
            ious[what] = float((own & stored).sum() / (own | stored).sum())
        bench.row("voxels", f"real 00_{scan.stem}", **ious)


def real_frames(real: Path) -> list[Frame]:
    folder = real / "kitti_object_stereo"
    pair = read_stereo_pair(*(folder / name for name in ("left.png", "right.png", "calib.txt", "lidar.bin")), "object")
    return [pair, *completion_frames(real / "semantickitti", ["00"])]


def real_calibrations(real: Path) -> list[Path]:
    odometry = real / "semantickitti" / "sequences" / "00" / "calib.txt"
    return [real / "kitti_object_stereo" / "calib.txt", odometry, odometry]


def main() -> None:
    args = parser().parse_args()
    bench = Bench(args)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the real files' old release
    with tempfile.TemporaryDirectory() as temporary:
        root = args.cache or Path(temporary)
        if set(args.parts) - {"voxels"}:
            make_world(root, args.smoke)
        if "samples" in args.parts:
            sample_costs(bench, root)
        if "steps" in args.parts:
            step_costs(bench, root)
        if "projection" in args.parts:
            projection_costs(bench, root)
        if "depth" in args.parts:
            depth_quality(bench, root)
        if "voxels" in args.parts:
            voxel_agreement(bench)
    if args.output is not None:
        private = ("--output", "--real", "--cache")
        atomic_write_json(args.output, {**run_summary(bench.device, private), "rows": bench.rows})


if __name__ == "__main__":
    main()
