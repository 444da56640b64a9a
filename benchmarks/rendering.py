"""Speed and memory of learning occupancy from rays: volume rendering and Gaussian splatting, forward and backward.

    python benchmarks/rendering.py --device cuda --output DIR     everything, about five minutes on an H200
    python benchmarks/rendering.py --smoke                        every line of it, tiny, on a CPU

One frame set is what a training step of one sample sees: 38,400 label rays of six cameras at three key frames, 640,000
voxels, 17 classes. Times on a GPU are of many calls between two synchronisations; peak_gb is all that torch allocated
at once, the volumes included.
"""

import argparse
import json
import platform
import shlex
import sys
from pathlib import Path

import reporting
import torch
from measuring import Bench
from rendering_splat import TARGETS, splatting
from rendering_volume import volume

PARTS = ("volume", "splatting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=10, help="calls in a group")
    parser.add_argument("--tune", action="store_true", help="also other sizes of the kernels' blocks")
    parser.add_argument("--output", type=Path, help="folder for rendering-<device>.json")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    bench = Bench(args)
    run = {"volume": volume, "splatting": splatting}
    for part in args.parts:
        try:
            run[part](bench)
        except (RuntimeError, ValueError) as error:  # one part out of memory must not lose the figures of the others
            if args.smoke:
                raise
            bench.row(part, "FAILED", error=str(error).splitlines()[0][:300])
    summary = {
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else reporting.cpu_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": reporting.commit(),
        "command": "python " + shlex.join(reporting.without(sys.argv, ("--output",))),
        "targets": TARGETS,
        "rows": bench.rows,
    }
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / f"rendering-{bench.device.type}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{summary['device']}, torch {summary['torch']}")


if __name__ == "__main__":
    main()
