"""How long six 224x400 views take, text to pictures, with a pipeline folder.

    python examples/nano/speed.py --model ckp/syntheocc-nano                      # 2 CPU threads
    python examples/nano/speed.py --model ckp/syntheocc-nano --device cuda        # float16, fast path, CUDA graphs

Loading is not counted, nor the first call, in which a GPU's kernels are compiled and recorded; the street is rendered
to MPIs each time, as for a new frame.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch

from syntheocc.pipelines import SyntheOccPipeline
from syntheocc.worlds.street import example_street


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("ckp/syntheocc-nano"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance_scale", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    on_gpu = args.device == "cuda"
    began = time.perf_counter()
    dtype = torch.float16 if on_gpu else torch.float32
    pipe = SyntheOccPipeline.from_pretrained(args.model, dtype=dtype).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    if on_gpu:
        pipe.enable_fast_path(cuda_graph=True)
        pipe.decode_batch_size = 6
    report = {"load_s": time.perf_counter() - began, "device": args.device, "torch": torch.__version__}
    report |= {"steps": args.steps, "guidance_scale": args.guidance_scale, "threads": args.threads}
    grid, rig, _ = example_street()
    seconds: list[float] = []
    busy: list[float] = []
    for _ in range(1 + args.repeats):
        began, worked = time.perf_counter(), time.process_time()
        pipe(
            "show a photorealistic street view image",
            occupancy=grid,
            cameras=rig,
            height=224,
            width=400,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            generator=torch.Generator().manual_seed(0),
        )
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
    report |= {"first_s": seconds[0], "median_s": statistics.median(seconds[1:]), "least_s": min(seconds[1:])}
    # On a busy machine with one thread this tells more: the time that the cores worked for it.
    report["least_cpu_s"] = min(busy[1:])
    report["load_average"] = os.getloadavg()[0]
    print(json.dumps(report, indent=1))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
