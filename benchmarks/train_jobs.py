"""Whole jobs of `train.py` on this machine: do they train the same model, however they are run?

    python benchmarks/train_jobs.py --output jobs             # Stable Diffusion 2.1 size, all GPUs
    python benchmarks/train_jobs.py --output jobs --smoke     # does the script work? tiny, on the CPU

A small street world is written, a base of random weights too, and `train.py` is started on them in these ways, each
with the same global batch, seed and number of steps:

* alone: one process;
* ranks: one process a GPU (two on a CPU);
* stopped: like ranks, ended by SIGTERM after a third of the steps, then resumed by one process;
* small: one process, latents cached beforehand, gradient checkpointing;
* fp16: one process in float16 with loss scaling.

Prints, for each, seconds (loading, training, a validation strip and saving), the largest relative difference of its
loss curve from that of alone (runs that sum in another order differ by rounding), and whether the trained pipeline
loads. Writes them as JSON, with the chip, the commit and the command, and keeps the logs and the strips.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import reporting
import torch
from generation import sd21_components, wake_zero_layers

from syntheocc.commands import quiet_loading
from syntheocc.commands.world import WorldConfig
from syntheocc.commands.world import run as make_world
from syntheocc.engine.files import atomic_write_json
from syntheocc.engine.trackers import read_log
from syntheocc.models.presets import tiny_components
from syntheocc.pipelines import SyntheOccPipeline

ROOT = Path(__file__).resolve().parents[1]
MODES = ("alone", "ranks", "stopped", "small", "fp16")


def make_inputs(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """A world and a base; returns the flags that all jobs share."""
    size = (48, 32) if args.smoke else (800, 448)
    world = WorldConfig(
        out=work / "world", scenes=2, val_scenes=1, key_frames=2 if args.smoke else 4, size=f"{size[0]}x{size[1]}"
    )
    if make_world(world) != 0:
        raise SystemExit("the world could not be written")
    base = work / "base"
    if not (base / "model_index.json").is_file():
        torch.manual_seed(0)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        parts = tiny_components() if args.smoke else sd21_components(device, torch.float32)
        wake_zero_layers(parts["unet"], parts["controlnet"])  # so that everything that is trained counts
        SyntheOccPipeline(**parts).to(torch.float16).save_pretrained(base)
    return {
        "dataroot_path": world.out,
        "pretrained_model_name_or_path": base,
        "width": size[0],
        "height": size[1],
        "max_train_steps": args.steps,
        "global_batch_size": args.global_batch_size,
        "learning_rate": 1e-4,
        "lr_warmup_steps": 2,
        "use_captions": True,
        "save_dtype": "fp16",
        "checkpointing_steps": 0,
        "validation_steps": args.steps,
        "num_validation_images": 1,
    }


def command(ranks: int, flags: dict[str, Any]) -> list[str]:
    """`train.py` alone or on several ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, str(ROOT / "train.py"), *(f"--{key}={value}" for key, value in flags.items())]


def start(ranks: int, flags: dict[str, Any], stop_after: int | None = None) -> float:
    """Run a job to its end, or to SIGTERM after a step; returns seconds."""
    out = Path(flags["output_dir"])
    out.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "TQDM_MININTERVAL": "30"}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environ.setdefault("OMP_NUM_THREADS", "1" if ranks > 1 else "4")
    begun = time.monotonic()
    with open(out / "output.txt", "a") as log:
        job = subprocess.Popen(command(ranks, flags), stdout=log, stderr=subprocess.STDOUT, env=environ)
        while job.poll() is None:
            if stop_after is not None and len(losses(out)) >= stop_after:
                job.send_signal(signal.SIGTERM)
                stop_after = None
            time.sleep(0.05)
    return time.monotonic() - begun


def losses(folder: Path) -> dict[int, float]:
    """Step -> loss, as far as it is written."""
    path = folder / "log.jsonl"
    return {line["step"]: line["loss"] for line in read_log(path)} if path.is_file() else {}


def run_mode(mode: str, args: argparse.Namespace, shared: dict[str, Any], out: Path) -> dict[str, Any]:
    """One way to run the job; returns its row."""
    gpus = torch.cuda.device_count()
    ranks = (gpus or 2) if mode in ("ranks", "stopped") else 1
    flags = {**shared, "output_dir": out, "mixed_precision": "bf16" if gpus else "no"}
    if mode == "small":
        flags |= {"cache_latents": True, "gradient_checkpointing": True}
    if mode == "fp16" and gpus:
        flags["mixed_precision"] = "fp16"
    stopped_at = None
    if mode == "stopped":
        seconds = start(ranks, flags, stop_after=max(1, args.steps // 3))
        stopped_at = len(losses(out))
        seconds += start(1, {**flags, "resume_from_checkpoint": "latest"})
    else:
        seconds = start(ranks, flags)
    row: dict[str, Any] = {"mode": mode, "ranks": ranks, "seconds": round(seconds, 1), "stopped_at": stopped_at}
    row["curve"] = losses(out)
    try:
        SyntheOccPipeline.from_pretrained(out, dtype=torch.float16)
        row["loads"] = True
    except ValueError as error:
        row |= {"loads": False, "error": str(error), "output": (out / "output.txt").read_text()[-2000:]}
    # gigabytes that nobody reads again: what is kept are logs and strips
    for entry in out.iterdir():
        if entry.is_dir() and entry.name != "validation":
            shutil.rmtree(entry)
    return row


def compare(rows: list[dict[str, Any]], steps: int) -> None:
    """Add to every row how far its curve is from the first one's."""
    reference = rows[0]["curve"]
    for row in rows:
        curve = row["curve"]
        whole = len(reference) == steps and list(curve) == list(reference) and None not in curve.values()
        differences = [abs(curve[step] / reference[step] - 1) for step in reference] if whole else []
        row["difference"] = max(differences) if differences else None


def main() -> None:
    """Run all modes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--work", type=Path, help="folder of the world and the base; default: within --output")
    parser.add_argument("--modes", default=",".join(MODES), help="which, with commas; alone has to come first")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--global_batch_size", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=560, help="no mode is started that would pass this")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and pictures")
    args = parser.parse_args()
    begun = time.monotonic()
    quiet_loading()
    work = args.work or args.output / "work"
    shared = make_inputs(args, work)
    print(f"world and base: {time.monotonic() - begun:.0f} s", flush=True)
    rows: list[dict[str, Any]] = []
    for mode in args.modes.split(","):
        longest = max((row["seconds"] for row in rows), default=0.0) * (2 if mode == "stopped" else 1)
        if time.monotonic() - begun + longest > args.seconds:
            print(f"{mode}: left out, {args.seconds:.0f} s would not do", flush=True)
            continue
        rows.append(run_mode(mode, args, shared, args.output / mode))
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "curve"}), flush=True)
        compare(rows, args.steps)
        chip = torch.cuda.get_device_name() if torch.cuda.is_available() else reporting.cpu_name()
        report = {
            "chip": chip,
            "gpus": torch.cuda.device_count(),
            "commit": reporting.commit(),
            "command": shlex.join(["python", *reporting.without(sys.argv, ("--output", "--work"))]),
            "rows": rows,
        }
        atomic_write_json(args.output / "train_jobs.json", report)
    if args.work is None:
        shutil.rmtree(work)
    print(f"\n{'job':8} {'ranks':>5} {'seconds':>8} {'stopped at':>10} {'curve differs by':>17} {'loads':>6}")
    for row in rows:
        far = "no whole curve" if row["difference"] is None else f"{row['difference']:.1e}"
        print(
            f"{row['mode']:8} {row['ranks']:5} {row['seconds']:8} {row['stopped_at'] or '':>10} {far:>17} "
            f"{'yes' if row['loads'] else 'NO':>6}"
        )


if __name__ == "__main__":
    main()
