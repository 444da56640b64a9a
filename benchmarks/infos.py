"""How long `syntheocc infos` takes on tables of nuScenes' full size, and how much memory.

    python benchmarks/infos.py --output benchmarks/results/infos.json
    python benchmarks/infos.py --scenes 20

The tables are invented, in the shape and number of v1.0-trainval's: 850 scenes, 34,149 key frames, 12 sensors (a lidar
at 20 Hz, six cameras at 12 Hz, five radars at 13 Hz) and 34 annotated objects a key frame, about 2.6 million readings
and 1.2 million annotations. Sensor files are not needed and do not exist.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from reporting import run_summary

from syntheocc.occupancy.cameras import NUSCENES_CAMERAS
from syntheocc.occupancy.data.nuscenes_splits import official_scenes

FULL_SCENES, FULL_SAMPLES = 850, 34_149
RATES = {
    "LIDAR_TOP": 10,
    **{name: 6 for name in NUSCENES_CAMERAS},
    **{f"RADAR_{place}": 6 for place in ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK_LEFT", "BACK_RIGHT")},
}  # firings a key frame, itself among them; radars 6.5 on average
OBJECTS = 34


def token(*parts: int) -> str:
    """32 hex digits that no other parts give."""
    number = 0
    for part in parts:
        number = number * 1_000_003 + part + 1
    return f"{(number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % (1 << 128):032x}"


class _Table:
    """A table that is written row by row, laid out as nuScenes' own."""

    def __init__(self, folder: Path, name: str):
        self.file = open(folder / f"{name}.json", "w")
        self.rows = 0
        self.file.write("[\n")

    def put(self, **row: Any) -> None:
        self.file.write((",\n" if self.rows else "") + json.dumps(row, indent=0))
        self.rows += 1

    def close(self) -> None:
        self.file.write("\n]")
        self.file.close()


def write_tables(folder: Path, scenes: int, seed: int = 0) -> dict[str, int]:
    """Invented tables of `scenes` scenes; returns table -> number of rows."""
    folder.mkdir(parents=True)
    names = (
        "sample_data ego_pose sample_annotation sample scene instance calibrated_sensor sensor category attribute log"
    )
    tables = {name: _Table(folder, name) for name in [*names.split(), "log"]}
    generator = random.Random(seed)
    channels = list(RATES)
    for i, channel in enumerate(channels):
        tables["sensor"].put(token=token(1, i), channel=channel, modality=channel.split("_")[0].lower())
    tables["category"].put(token=token(2), name="vehicle.car", description="")
    tables["attribute"].put(token=token(3), name="vehicle.moving", description="")
    scene_names = sorted(official_scenes("train") + official_scenes("val"))
    for scene in range(scenes):
        _write_scene(
            tables, generator, scene, scene_names[scene], 41 if scene < FULL_SAMPLES - 40 * FULL_SCENES else 40
        )
    for table in tables.values():
        table.close()
    return {name: table.rows for name, table in tables.items()}


def _write_scene(tables: dict[str, _Table], generator: random.Random, scene: int, name: str, frames: int) -> None:
    start = 1_500_000_000_000_000 + scene * 100_000_000
    samples = [token(4, scene, k) for k in range(frames)]
    log = token(5, scene)
    tables["log"].put(token=log, logfile=f"n015-{scene}", vehicle="n015", date_captured="", location="")
    tables["scene"].put(
        token=token(6, scene), log_token=log, nbr_samples=frames, first_sample_token=samples[0],
        last_sample_token=samples[-1], name=name, description="A street, cars",
    )  # fmt: skip
    for k, sample in enumerate(samples):
        tables["sample"].put(
            token=sample, timestamp=start + 500_000 * k, scene_token=token(6, scene), prev=samples[k - 1] if k else "",
            next=samples[k + 1] if k + 1 < frames else "",
        )  # fmt: skip
    for c, (channel, rate) in enumerate(RATES.items()):
        camera = channel.startswith("CAM")
        mount = token(7, scene, c)
        tables["calibrated_sensor"].put(
            token=mount, sensor_token=token(1, c), translation=[1.7, 0.0123456789, 1.5], rotation=_turn(generator),
            camera_intrinsic=[[1266.417203046554, 0.0, 816.2670], [0.0, 1266.4, 491.5], [0, 0, 1]] if camera else [],
        )  # fmt: skip
        readings = [(k, j) for k in range(frames) for j in range(rate if k else 1)]
        tokens = [token(8, scene, c, i) for i in range(len(readings))]
        for i, (k, j) in enumerate(readings):
            key = j == (rate if k else 1) - 1
            stamp = start + 500_000 * k - (0 if key else 500_000 * (rate - 1 - j) // rate)
            place = f"{'samples' if key else 'sweeps'}/{channel}"
            tables["ego_pose"].put(
                token=tokens[i], timestamp=stamp, rotation=_turn(generator),
                translation=[411.30393 + k, 1180.89037 + j / rate, 0.0],
            )  # fmt: skip
            tables["sample_data"].put(
                token=tokens[i], sample_token=samples[k], ego_pose_token=tokens[i], calibrated_sensor_token=mount,
                timestamp=stamp, fileformat="jpg" if camera else "pcd", is_key_frame=key, height=900 * camera,
                width=1600 * camera, filename=f"{place}/n015-2018-07-24-11-22-45+0800__{channel}__{stamp}.jpg",
                prev=tokens[i - 1] if i else "", next=tokens[i + 1] if i + 1 < len(tokens) else "",
            )  # fmt: skip
    for n in range(OBJECTS):
        instance, annotations = token(9, scene, n), [token(10, scene, n, k) for k in range(frames)]
        tables["instance"].put(
            token=instance, category_token=token(2), nbr_annotations=frames, first_annotation_token=annotations[0],
            last_annotation_token=annotations[-1],
        )  # fmt: skip
        where = (generator.uniform(-60, 60), generator.uniform(-60, 60))
        for k in range(frames):
            tables["sample_annotation"].put(
                token=annotations[k], sample_token=samples[k], instance_token=instance, visibility_token="4",
                attribute_tokens=[token(3)], translation=[411.3 + where[0] + k, 1180.9 + where[1], 0.8],
                size=[1.9, 4.5, 1.6], rotation=[0.8, 0.0, 0.0, 0.6], num_lidar_pts=7, num_radar_pts=0,
                prev=annotations[k - 1] if k else "", next=annotations[k + 1] if k + 1 < frames else "",
            )  # fmt: skip


def _turn(generator: random.Random) -> list[float]:
    yaw = generator.uniform(0, 0.5)
    return [(1 - yaw * yaw) ** 0.5, 0.0, 0.0, yaw]


def run_command(root: Path, out: Path, styles: list[str]) -> dict[str, Any]:
    """Run the command in a process of its own; seconds, peak memory and bytes written."""
    command = [sys.executable, "-m", "syntheocc.commands", "infos", "--dataroot-path", str(root), "--out", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--styles", *styles], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"syntheocc infos failed with status {os.waitstatus_to_exitcode(status)}")
    return {
        "styles": styles,
        "seconds": seconds,
        "peak_gb": usage.ru_maxrss / 1e6,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "written_mb": sum(path.stat().st_size for path in out.glob("*.pkl")) / 1e6,
    }


def chosen_styles(text: str) -> Iterator[list[str]]:
    """The runs of a comma-separated list: `all`, or styles that are written by one command (joined with +)."""
    from syntheocc.commands.infos import ALL_STYLES

    for part in text.split(","):
        yield list(ALL_STYLES) if part == "all" else part.split("+")


def main() -> None:
    """Invent the tables, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=FULL_SCENES, help="scenes of the tables, at most 850")
    parser.add_argument("--runs", default="mmdet3d_v1.0,all", help="what each run writes: a style, a+b, or all")
    parser.add_argument("--work", help="folder of the tables and pickles; by default a temporary one")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    args = parser.parse_args()
    if not 1 <= args.scenes <= FULL_SCENES:
        raise SystemExit(f"--scenes must lie in 1..{FULL_SCENES}, got {args.scenes}")
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        root = Path(folder)
        rows = write_tables(root / "v1.0-trainval", args.scenes)
        size = sum(path.stat().st_size for path in (root / "v1.0-trainval").iterdir()) / 1e6
        print(f"tables: {rows['sample']} key frames, {rows['sample_data']} readings, "
              f"{rows['sample_annotation']} annotations, {size:.0f} MB")  # fmt: skip
        runs = []
        for i, styles in enumerate(chosen_styles(args.runs)):
            runs.append(run_command(root, root / f"out{i}", styles))
            r = runs[-1]
            print(f"{'+'.join(styles):60s} {r['seconds']:7.1f} s  processor {r['processor_seconds']:7.1f} s  "
                  f"peak {r['peak_gb']:5.2f} GB  {r['written_mb']:7.0f} MB written")  # fmt: skip
    if args.output:
        document = {**run_summary(torch.device("cpu"), ("--output", "--work")), "rows": rows, "table_mb": size}
        args.output.write_text(json.dumps({**document, "processors": os.cpu_count(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
