"""Speed of the semantic-MPI lookup: six cameras, 256 planes, 56 x 100 cells, a 500 x 500 x 40 grid, all three outputs.

    python benchmarks/mpi.py                       the CPU, 2 threads
    python benchmarks/mpi.py --device cuda         a GPU, amortised over batches of 8 frames

The scene is `syntheocc.worlds.street.example_street` (the printed share of non-empty cells; random grids would be
unlike any street). Every repetition takes another set of inputs, so that no run finds the last one's voxels in a
cache; a rig's matrices are stacked on its first use and kept with it. On a GPU, times are from CUDA events around
many calls. The first call's extra time, which is compilation, is listed apart. Extra memory is the peak beyond the
resident inputs, outputs included. The yardstick is plain vectorised torch in the same run and on the same rays: the
faster of a frame at once and a view at a time.
"""

import argparse
import ctypes
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import reporting
import torch

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.ops.mpi_lookup import LookupPlanes, choose_backend, mpi_lookup
from syntheocc.occupancy.ops.mpi_lookup.vectorised import mpi_lookup_torch
from syntheocc.occupancy.rendering.mpi import PlaneSpec, _grid_rays, render_mpi
from syntheocc.occupancy.transforms import rotation_z
from syntheocc.worlds.street import example_street

ROWS, COLUMNS = 56, 100
CELLS = (ROWS, COLUMNS, "center", 1)
TARGET_MS = {"cuda": 0.10, "cpu": 60.0}
TARGET_MB = 100.0


class Inputs:
    """One set of frames: grids and rigs, and the rays for the timings of the bare operator."""

    def __init__(self, first_seed: int, frames: int, device: torch.device):
        streets = [example_street(seed) for seed in range(first_seed, first_seed + frames)]
        self.grids: list[OccupancyGrid] = [street.grid.to(device) for street in streets]
        # A car that weaves down the street: every frame sees the grid from another pose.
        self.rigs = [_moved(street.rig, k) for k, street in enumerate(streets, start=first_seed)]
        self.labels = torch.stack([grid.labels for grid in self.grids])
        self.origins, self.directions = _grid_rays(self.grids, self.rigs, CELLS, device)


def _plain_frame(labels: torch.Tensor, origins: torch.Tensor, directions: torch.Tensor, planes: LookupPlanes):
    """What one writes first: every sample of the frame in one tensor. [X, Y, Z], [V, 3] and [V, 1, h, w, 3] voxels."""
    depths = planes.near + planes.step * torch.arange(planes.num_planes, device=labels.device)
    index = (origins[:, None, None, None] + directions * depths[:, None, None, None]).floor().int()  # [V, D, h, w, 3]
    inside = ((index >= 0) & (index < torch.tensor(labels.shape, device=labels.device))).all(-1)
    x, y, z = index.mul_(inside[..., None]).unbind(-1)
    layers = labels[x, y, z] * inside
    plane = (layers != 0).byte().argmax(1)
    return layers, layers.gather(1, plane[:, None])[:, 0], plane.to(torch.int16)


def _moved(rig: CameraRig, k: int) -> CameraRig:
    pose = rotation_z(0.1 * math.sin(k))
    pose[:3, 3] = torch.tensor([0.7 * (k % 8) - 2.5, 0.3 * math.cos(k), 0.0])
    return CameraRig({name: camera.moved(pose @ camera.cam2ego) for name, camera in rig.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--frames", type=int, help="frames a call (default: 1 on a CPU, 8 on a GPU)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=15, help="timed repetitions; the median counts")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/mpi-<device>.json)")
    parser.add_argument("--commit", help="commit to record where the checkout has no git")
    parser.add_argument("--tune", action="store_true", help="also time other tile shapes of the GPU kernel")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    frames = args.frames or (8 if device.type == "cuda" else 1)
    sets = [Inputs(k * frames, frames, device) for k in range(3)]
    planes = LookupPlanes(0.2, 0.2, 256, 256)
    time_calls = _time_cuda if device.type == "cuda" else _time_cpu

    def bare(inputs: Inputs):
        return mpi_lookup(inputs.labels, inputs.origins, inputs.directions, planes, 0)

    def plain(dtype: torch.dtype) -> Callable:
        return lambda i: mpi_lookup_torch(i.labels, i.origins, i.directions, planes, 0, dtype=dtype)

    def at_once(inputs: Inputs):
        return [
            _plain_frame(labels, *rays, planes)
            for labels, *rays in zip(inputs.labels, inputs.origins.float(), inputs.directions.float(), strict=True)
        ]

    def whole(inputs: Inputs):
        return render_mpi(inputs.grids, inputs.rigs, ROWS, COLUMNS)

    def grouped(inputs: Inputs):
        return render_mpi(inputs.grids, inputs.rigs, ROWS, COLUMNS, PlaneSpec(groups=96))

    def supersampled(inputs: Inputs):
        return render_mpi(inputs.grids, inputs.rigs, ROWS, COLUMNS, samples_per_cell=4)

    backend = choose_backend(device)
    variants: dict[str, Callable] = {
        "render_mpi": whole,
        f"lookup only ({backend})": bare,
        "render_mpi, 96 groups": grouped,
        "render_mpi, samples_per_cell=4": supersampled,
        "plain torch, float32, a frame at once": at_once,
        "plain torch, float32, a view at a time": plain(torch.float32),
        "plain torch, float64, a view at a time": plain(torch.float64),
    }
    started = time.perf_counter()
    mpi = whole(sets[0])
    if device.type == "cuda":
        torch.cuda.synchronize()
    compiling = 1e3 * (time.perf_counter() - started)
    filled = float((mpi.labels != mpi.taxonomy.free).float().mean())
    exact = plain(torch.float64)(sets[0])
    differing = float((exact[0] != mpi.labels).float().mean())
    rows = []
    for name, call in variants.items():
        row = {"variant": name, **time_calls(call, sets, frames, args.repeats)}
        row["extra_mb"] = _extra_memory(call, sets[0], device, frames)
        rows.append(row)
    rows[0]["first_ms"] = compiling
    if args.tune:
        rows += _tune(sets, planes, frames, args.repeats)
    yardstick = min(row["ms"] for row in rows if row["variant"].startswith("plain torch, float32"))
    for row in rows:
        row["speedup"] = yardstick / row["ms"]

    headline = rows[0]
    report = {
        "benchmark": "mpi",
        "machine": platform.machine(),
        "chip": torch.cuda.get_device_name() if device.type == "cuda" else reporting.cpu_name(),
        "threads": None if device.type == "cuda" else args.threads,
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "commit": args.commit or reporting.commit(),
        "command": shlex.join(["python", *reporting.without(sys.argv, ("--output", "--commit"))]),
        "frames_per_call": frames,
        "non_empty_share": filled,
        "share_differing_from_plain_float64": differing,
        "target_ms": TARGET_MS[device.type],
        "target_met": headline["ms"] <= TARGET_MS[device.type] and (headline["extra_mb"] or 0) <= TARGET_MB,
        "rows": rows,
    }
    print(
        f"{report['chip']}, torch {report['torch']}, {frames} frame(s) a call, {100 * filled:.1f} % of cells non-empty"
    )
    print(f"{'variant':<42}{'ms/frame':>10}{'spread':>16}{'first call ms':>15}{'extra MB/frame':>16}{'x plain':>9}")
    for row in rows:
        spread = f"{row['low']:.4g}..{row['high']:.4g}"
        memory = "-" if row["extra_mb"] is None else f"{row['extra_mb']:.1f}"
        print(
            f"{row['variant']:<42}{row['ms']:>10.4g}{spread:>16}{row['first_ms']:>15.4g}{memory:>16}{row['speedup']:>9.3g}"
        )
    print(
        f"target {report['target_ms']} ms a frame: {'met' if report['target_met'] else 'MISSED'}; "
        f"cells that differ from plain float64: {differing:.2e}"
    )
    output = args.output or Path(__file__).parent / "results" / f"mpi-{device.type}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {output}")


def _time_cuda(call: Callable, sets: list[Inputs], frames: int, repeats: int) -> dict[str, float]:
    """Milliseconds a frame: median of CUDA-event times around ten calls each."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    call(sets[0])
    torch.cuda.synchronize()
    first = 1e3 * (time.perf_counter() - started)
    times = []
    for repeat in range(repeats + 1):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for k in range(10):
            call(sets[k % len(sets)])
        stop.record()
        stop.synchronize()
        if repeat:
            times.append(start.elapsed_time(stop) / 10 / frames)
    return {"ms": statistics.median(times), "low": min(times), "high": max(times), "first_ms": first}


def _time_cpu(call: Callable, sets: list[Inputs], frames: int, repeats: int) -> dict[str, float]:
    """Milliseconds a frame: median of single calls."""
    started = time.perf_counter()
    call(sets[0])
    first = 1e3 * (time.perf_counter() - started)
    times = []
    for repeat in range(repeats):
        started = time.perf_counter()
        call(sets[(repeat + 1) % len(sets)])
        times.append(1e3 * (time.perf_counter() - started) / frames)
    return {"ms": statistics.median(times), "low": min(times), "high": max(times), "first_ms": first}


def _extra_memory(call: Callable, inputs: Inputs, device: torch.device, frames: int) -> float | None:
    """Peak megabytes a frame beyond what was there before the call; None where the system does not say."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(inputs)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6 / frames
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    # What earlier calls freed must go back to the system first, or the call would find its memory there (glibc only).
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    # Linux: 5 resets the peak of the resident set.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident(status, "VmRSS")
    call(inputs)
    return (_resident(status, "VmHWM") - before) / 1e3 / frames


def _resident(status: Path, field: str) -> float:
    """Kilobytes of one field of a Linux status file."""
    return float(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1]) * 1.024


def _tune(sets: list[Inputs], planes: LookupPlanes, frames: int, repeats: int) -> list[dict]:
    """The GPU kernel with other tile shapes (rows, columns, planes a block, warps)."""
    from syntheocc.occupancy.ops.mpi_lookup.triton import mpi_lookup_triton

    rows = []
    for config in [
        (4, 8, 16, 4), (4, 8, 32, 4), (4, 8, 8, 4), (4, 8, 8, 2), (4, 8, 16, 2), (4, 16, 8, 4), (4, 16, 16, 4),
        (2, 16, 16, 4), (2, 16, 32, 4), (2, 16, 8, 2), (2, 32, 8, 4), (2, 32, 16, 4), (8, 8, 16, 4), (8, 8, 16, 8),
        (8, 4, 16, 4), (32, 1, 16, 4), (1, 128, 4, 4),
    ]:  # fmt: skip

        def call(inputs: Inputs, config=config):
            return mpi_lookup_triton(inputs.labels, inputs.origins, inputs.directions, planes, 0, config=config)

        row = {"variant": f"kernel, tile {config}", **_time_cuda(call, sets, frames, repeats)}
        rows.append(row | {"extra_mb": None})
    return rows


if __name__ == "__main__":
    main()
