"""Speed of the metrics: 200 x 200 x 16 grids, 8 ray origins a frame, prediction and ground truth (224,640 rays).

    python benchmarks/metrics.py                                   the CPU, 2 threads
    python benchmarks/metrics.py --device cuda                     a GPU: transfers from pinned host memory included
    python benchmarks/metrics.py --check                           every fast path against the slow reference first
    python benchmarks/metrics.py --frames 6019                     also the memory over a whole validation set

Frames are grids of the procedural street world, ray origins lie along its drives; predictions are the ground truth
shifted by a voxel, with holes, noise and confused classes. Every update gets another frame. A frame on a
GPU begins with uint8 labels in pinned memory and ends with counts on the device; the clock stops when the device has
done all of them. mIoU is set beside the time to read a frame's label file.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import reporting
import torch
from torch import Tensor

from syntheocc.occupancy.data.occ3d import Occ3DLabels, read_occ3d, write_occ3d
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OccupancyGrid
from syntheocc.occupancy.metrics import OccupancyIoU, RayIoU, lidar_rays, ray_origins
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.ray_confusion import ray_confusion
from syntheocc.occupancy.ops.raycast import traverse
from syntheocc.worlds.labels import exact_grid
from syntheocc.worlds.scene import make_scene

TARGET_MS = {"cuda": 1.0, "cpu": 600.0}
ORIGINS = 8
FREE = OCC3D_NUSCENES.taxonomy.free


class Frames:
    """Grids and origins of a few frames: pred and gt uint8 [B, X, Y, Z], origins a list of float64 [8, 3]."""

    def __init__(self, scenes: int, per_scene: int):
        generator = torch.Generator().manual_seed(0)
        truth, self.origins = [], []
        for seed in range(scenes):
            scene = make_scene(seed, image_size=(64, 36), key_frames=20)
            for k in range(per_scene):
                t = 9.0 * (k + 0.5) / per_scene
                truth.append(exact_grid(scene, t, OCC3D_NUSCENES).labels)
                # A pose each tenth of a second, so that there are more than eight within reach at any speed.
                stops = [_stop(scene, t)] + [_stop(scene, 0.1 * i) for i in range(90)]
                self.origins.append(ray_origins(stops, 0))
        self.gt = torch.stack(truth)
        self.pred = _imagined(self.gt, generator)

    def __len__(self) -> int:
        return len(self.gt)


def _stop(scene, t: float) -> SimpleNamespace:
    return SimpleNamespace(
        token=f"{t:.1f}", timestamp_us=round(1e6 * t), lidar2ego=scene.lidar2ego, ego2global=scene.ego.pose_at(t)
    )


def _imagined(gt: Tensor, generator: torch.Generator) -> Tensor:
    """The truth a voxel to the side, 5 % of its voxels missing, 10 % of other classes, 1 in 1000 free ones filled."""
    chance = torch.rand(gt.shape, generator=generator)
    any_class = torch.randint(0, FREE, gt.shape, generator=generator, dtype=torch.uint8)
    pred = gt.roll(1, 1)
    pred = torch.where((pred != FREE) & (chance < 0.10), any_class, pred)
    pred = torch.where(chance > 0.95, FREE, pred)
    return torch.where((gt == FREE) & (chance < 0.001), any_class, pred).to(torch.uint8)


def check(frames: Frames, device: torch.device) -> list[str]:
    """Compare the device's path with the slow reference, bit by bit; stops where they differ."""
    generator = torch.Generator().manual_seed(1)
    lines = []
    shape = (40, 50, 16)
    random = torch.where(
        torch.rand((3, *shape), generator=generator) < 0.02,
        torch.randint(0, FREE, (3, *shape), generator=generator),
        FREE,
    ).to(torch.uint8)
    random[0, :, :, 3] = 255
    # Rays from the lattice along its axes and diagonals, where ties decide; from outside; and anywhere.
    starts = torch.rand(3, 6000, 3, generator=generator, dtype=torch.float64) * torch.tensor([60.0, 70, 26]) - 10
    ways = torch.randn(3, 6000, 3, generator=generator, dtype=torch.float64)
    starts[:, :2000] = starts[:, :2000].round()
    ways[:, 1000:3000] = ways[:, 1000:3000].round()
    ways[(ways == 0).all(-1)] = 1.0
    ways = ways / (ways * ways).sum(-1, keepdim=True).sqrt()
    slow = traverse(random, starts, ways, "reference", FREE)
    for backend in [None] if device.type == "cuda" else ["torch"] + ["numba"] * has_module("numba"):
        fast = traverse(random.to(device), starts.to(device), ways.to(device), backend, FREE)
        same = [torch.equal(a, b.cpu()) for a, b in zip(slow, fast, strict=True)]
        lines.append(f"18,000 rays on lattices and off them: exit, voxel, hit equal {same}")
        if not all(same):
            raise SystemExit("\n".join(lines))
    metric = RayIoU()
    directions = lidar_rays().double()
    street = (frames.pred[:2], frames.gt[:2], torch.cat(frames.origins[:2]), 8)
    noise = torch.where(torch.rand((2, 200, 200, 16), generator=generator) < 0.003, 4, FREE).to(torch.uint8)
    noise[0, 90:110] = 255
    anywhere = torch.rand(16, 3, generator=generator, dtype=torch.float64) - torch.tensor([0.5, 0.5, 0.3])
    anywhere *= torch.tensor([90.0, 90.0, 10.0])
    for name, (pred, gt, origins, each) in {"street": street, "noise": (noise.roll(1, 1), noise, anywhere, 8)}.items():
        owner = torch.arange(2, dtype=torch.int32).repeat_interleave(each)
        slow = ray_confusion(pred, gt, origins, owner, directions, metric.rules, "torch")
        arguments = [v.to(device) for v in (pred, gt, origins, owner, directions)]
        fast = ray_confusion(*arguments, metric.rules)
        equal = torch.equal(slow, fast.cpu()) and bool(slow.any())
        lines.append(
            f"counts of {len(origins) * len(directions):,} rays, {name}: {int(slow.sum()):,} kept, equal {equal}"
        )
        if not equal:
            raise SystemExit("\n".join(lines))
    return lines


def time_updates(frames: Frames, device: torch.device, batch: int, repeats: int, backend: str | None = None) -> dict:
    """Milliseconds a frame of `RayIoU.update`, from labels in host memory."""
    metric = RayIoU(backend=backend)
    pinned = device.type == "cuda"
    pred, gt = (v.pin_memory() if pinned else v for v in (frames.pred, frames.gt))
    pieces = [
        (pred[k : k + batch], gt[k : k + batch], frames.origins[k : k + batch])
        for k in range(0, len(frames) - batch + 1, batch)
    ]

    def one(k: int) -> None:
        a, b, origins = pieces[k % len(pieces)]
        metric.update(a.to(device, non_blocking=True), b.to(device, non_blocking=True), origins)

    started = time.perf_counter()
    one(0)
    _wait(device)
    first = 1e3 * (time.perf_counter() - started)
    calls = max(1, (200 if pinned else 4) // batch)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for k in range(calls):
            one(k + 1)
        _wait(device)
        times.append(1e3 * (time.perf_counter() - started) / calls / batch)
    return {"ms": statistics.median(times), "low": min(times), "high": max(times), "first_ms": first}


def time_kernel(frames: Frames, device: torch.device, batch: int, repeats: int) -> dict:
    """Milliseconds a frame of the counting alone, inputs on the device: CUDA events around many calls."""
    metric = RayIoU()
    pred, gt = frames.pred[:batch].to(device), frames.gt[:batch].to(device)
    origins = torch.cat(frames.origins[:batch]).to(device)
    owner = torch.arange(batch, dtype=torch.int32).repeat_interleave(ORIGINS).to(device)
    directions = metric.directions(device)
    ray_confusion(pred, gt, origins, owner, directions, metric.rules)
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(20):
            ray_confusion(pred, gt, origins, owner, directions, metric.rules)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 20 / batch)
    return {"ms": statistics.median(times), "low": min(times), "high": max(times), "first_ms": float("nan")}


def time_miou(frames: Frames, repeats: int) -> tuple[dict, dict]:
    """Milliseconds a frame of reading label files, and of `OccupancyIoU.update` with the camera mask."""
    metric = OccupancyIoU()
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for k, labels in enumerate(frames.gt):
            mask = torch.zeros(labels.shape, dtype=torch.bool)
            mask[30:170, 40:150] = labels[30:170, 40:150].roll(1, 0) != labels[30:170, 40:150]
            mask[60:140, 60:140] = True
            paths.append(Path(folder) / f"{k}.npz")
            write_occ3d(Occ3DLabels(OccupancyGrid(labels, *OCC3D_NUSCENES), mask, mask), paths[-1])
        reading, counting = [], []
        for _ in range(repeats):
            started = time.perf_counter()
            read = [read_occ3d(path) for path in paths]
            reading.append(1e3 * (time.perf_counter() - started) / len(paths))
            started = time.perf_counter()
            for labels, pred in zip(read, frames.pred, strict=True):
                metric.update(pred, labels.grid, labels.mask_camera)
            counting.append(1e3 * (time.perf_counter() - started) / len(paths))
    row = lambda t: {"ms": statistics.median(t), "low": min(t), "high": max(t), "first_ms": float("nan")}  # noqa: E731
    return row(reading), row(counting)


def memory(frames: Frames, device: torch.device, count: int) -> dict:
    """Resident (and on a GPU, device) megabytes after a tenth of the frames and after all of them."""
    metric = RayIoU()
    marks = []
    started = time.perf_counter()
    for k in range(count):
        i = k % len(frames)
        metric.update(frames.pred[i].to(device), frames.gt[i].to(device), [frames.origins[i]])
        if k + 1 in (max(1, count // 10), count):
            _wait(device)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            marks.append((peak, torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else 0.0))
    return {
        "frames": count,
        "seconds": time.perf_counter() - started,
        "peak_mb_after_a_tenth": marks[0],
        "peak_mb_after_all": marks[-1],
        "RayIoU": metric.compute()["RayIoU"],
        "state_bytes": sum(v.numel() * 8 for v in metric.state.values()),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--scenes", type=int, default=4, help="scenes of the street world")
    parser.add_argument("--per-scene", type=int, default=4, help="frames of each")
    parser.add_argument("--repeats", type=int, default=7, help="timed repetitions; the median counts")
    parser.add_argument("--frames", type=int, default=0, help="run this many frames and report the memory")
    parser.add_argument("--check", action="store_true", help="compare with the slow reference first")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/metrics-<device>.json)")
    parser.add_argument("--commit", help="commit to record where the checkout has no git")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    frames = Frames(args.scenes, args.per_scene)
    checks = check(frames, device) if args.check else []
    print("\n".join(checks))

    rows: dict[str, dict] = {}
    if device.type == "cuda":
        rows["RayIoU.update, a frame a call, with transfers"] = time_updates(frames, device, 1, args.repeats)
        rows["RayIoU.update, 4 frames a call, with transfers"] = time_updates(frames, device, 4, args.repeats)
        rows["counting alone, a frame a call"] = time_kernel(frames, device, 1, args.repeats)
        rows["counting alone, 4 frames a call"] = time_kernel(frames, device, 4, args.repeats)
    else:
        if has_module("numba"):
            rows["RayIoU.update (numba)"] = time_updates(frames, device, 1, args.repeats, "numba")
        rows["RayIoU.update (torch only)"] = time_updates(frames, device, 1, args.repeats, "torch")
        rows["reading labels.npz"], rows["OccupancyIoU.update"] = time_miou(frames, args.repeats)
    kept = memory(frames, device, args.frames) if args.frames else None

    headline = next(iter(rows.values()))
    report = {
        "benchmark": "metrics",
        "machine": platform.machine(),
        "chip": torch.cuda.get_device_name() if device.type == "cuda" else reporting.cpu_name(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "commit": args.commit or reporting.commit(),
        "command": shlex.join(["python", *reporting.without(sys.argv, ("--output", "--commit"))]),
        "rays_a_frame": 2 * ORIGINS * len(lidar_rays()),
        "occupied_share": float((frames.gt != FREE).float().mean()),
        "checks": checks,
        "target_ms": TARGET_MS[device.type],
        "target_met": headline["ms"] <= TARGET_MS[device.type],
        "rows": [{"what": name, **{k: v for k, v in row.items() if v == v}} for name, row in rows.items()],
        "memory": kept,
    }
    print(f"{report['chip']}, torch {report['torch']}, {len(frames)} frames, {report['rays_a_frame']:,} rays a frame")
    print(f"{'what':<50}{'ms/frame':>10}{'spread':>18}{'first call ms':>15}")
    for name, row in rows.items():
        print(f"{name:<50}{row['ms']:>10.4g}{row['low']:>10.4g}..{row['high']:<8.4g}{row['first_ms']:>13.4g}")
    if kept:
        print(f"memory: {kept}")
    print(f"target {report['target_ms']} ms a frame: {'met' if report['target_met'] else 'MISSED'}")
    output = args.output or Path(__file__).parent / "results" / f"metrics-{device.type}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
