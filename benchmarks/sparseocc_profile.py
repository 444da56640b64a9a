"""Where a training step of SparseOcc spends its time, on the device and on the host.

    python benchmarks/sparseocc_profile.py --preset small --batch 8        # one GPU, a minute
    python benchmarks/sparseocc_profile.py --preset tiny --batch 2         # a CPU

Prints seconds a step, the host's seconds of forward, losses and backward, the operations that take most of the
device's time, and the Python functions that take most of the host's. Random weights and images, labels of a street.
"""

import argparse
import cProfile
import pstats
import time

import torch
from sparseocc_inputs import projections, street_labels
from torch import nn
from torch.profiler import ProfilerActivity, profile

from syntheocc.occupancy.perception.sparseocc import SparseOcc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, help="default: the preset's")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=25, help="of each table")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    net = SparseOcc.from_preset(args.preset, **({"num_frames": args.frames} if args.frames else {}))
    net.to(device).train()
    config = net.config
    size = (args.batch, config.num_frames, 6, 3, *config.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
    ego2img = projections(config).to(device).expand(args.batch, -1, -1, -1, -1).contiguous()
    labels = street_labels(config).to(device).expand(args.batch, -1, -1, -1).contiguous()
    instances = (labels != config.taxonomy.free).int() if config.panoptic else None
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=device.type == "cuda")
    spent: list[tuple[float, float, float]] = []

    def step() -> None:
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = net(images, ego2img)
            forward = time.perf_counter()
            loss = net.losses(output, labels, instances)["loss"]
        losses = time.perf_counter()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 35.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent.append((forward - began, losses - forward, time.perf_counter() - losses))

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    wait()
    spent.clear()
    began = time.perf_counter()
    for _ in range(args.steps):
        step()
    wait()
    print(f"{(time.perf_counter() - began) / args.steps:.4f} s a step of {args.batch} samples")
    means = [sum(part) / len(spent) for part in zip(*spent, strict=True)]
    print("host: forward {:.4f} s, losses {:.4f} s (they wait for the matching), backward {:.4f} s".format(*means))
    if device.type == "cuda":
        print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        step()
        wait()
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiled.key_averages().table(sort_by=order, row_limit=args.rows, max_name_column_width=70))
    functions = cProfile.Profile()
    functions.enable()
    for _ in range(3):
        step()
    functions.disable()
    pstats.Stats(functions).sort_stats("tottime").print_stats(args.rows)


if __name__ == "__main__":
    main()
