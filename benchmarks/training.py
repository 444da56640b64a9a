"""Speed and memory of a training step at Stable Diffusion 2.1 size: six views of 448x800, one sample a GPU.

    python benchmarks/training.py                                    # all variants on one GPU
    torchrun --standalone --nproc-per-node 2 benchmarks/training.py --variants fast   # and what a second GPU adds
    python benchmarks/training.py --smoke                            # does the script work? tiny, on the CPU

A step is: the batch to the GPU from pinned memory, MPIs rendered, images encoded by the VAE, texts looked up,
ControlNet and UNet forward, backward, gradients clipped, AdamW. Trained are the ControlNet (363 M) and the cross-view
layers (62 M of the UNet's 928 M), EMA off. Weights are random, zero layers included, so that every branch counts.
Variants:

* plain: as one writes it with diffusers: autocast, frozen weights in half precision, NCHW, foreach AdamW, the text
  encoded at every step;
* fast: `prepare_for_training`; fast+checkpoint: with gradient checkpointing; fast+checkpoint-transformers: of the
  transformer blocks only; fast+autotune: cuDNN measures its algorithms; fast+compress: gradients travel between GPUs
  as bfloat16; fast+buckets: in pieces of 250 MB instead of 25; fast+graphs: both networks recorded and replayed;
* blocks: the transformer blocks compiled; whole: both networks compiled. Compiling takes minutes.

What has to be done (FlopCounterMode, TFLOP): VAE encoder 9.3, ControlNet 2.4, UNet 10.2, backward 18.9 (gradients of
the inputs of both networks, and of the weights of what is trained) and 2.3 for the scores that attention computes
again in it: 43.1. At the 370 TFLOP/s that the denoising networks reach on an H200 (benchmarks/generation.py) this is
0.117 s, the target 0.16 s. What has to be moved: a tensor at full resolution [6, 5600, 320] is 21.5 MB, a transformer
block there keeps about 24 of them for the backward, 0.5 GB; there are five in the UNet and two in the ControlNet, as
many at each half resolution with half the bytes: 6 GB with ResNets' inputs 8. Weights: frozen ones in half precision
2.6 GB, masters, gradients and AdamW's two moments 425 M x 16 bytes = 6.8 GB, their working copy 0.85 GB. Together 18
GB. AdamW reads and writes 425 M x 28 bytes = 12 GB, 3 ms; the cast of the masters and of their gradients 5 GB, 1.3
ms.

Prints seconds a step (median), TFLOP/s, peak memory, phases, and the difference of loss and gradients to plain; writes
all of it as JSON with the chip, the commit and the command.
"""

import argparse
import gc
import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import reporting
import torch
from generation import synchronize
from training_report import print_report, print_row
from training_step import Trainer, count_flops

from syntheocc.engine.ranks import Ranks

VARIANTS = ("plain", "fast", "fast+checkpoint", "fast+checkpoint-transformers", "fast+autotune", "blocks")


def run_variant(
    args: argparse.Namespace, device: torch.device, variant: str, reference: dict | None
) -> dict[str, Any]:
    """Every figure of one variant; "gradients" are for the comparison only."""
    torch.backends.cudnn.benchmark = "autotune" in variant
    start = time.perf_counter()
    trainer = Trainer(args, device, variant)
    synchronize(device)
    row: dict[str, Any] = {"variant": variant, "build_s": time.perf_counter() - start}
    start = time.perf_counter()
    loss, gradients = trainer.first_gradients()
    synchronize(device)
    row["first_step_s"] = time.perf_counter() - start
    for _ in range(args.warm_up):
        trainer.train()
    row |= trainer.measure(args.steps)
    row["phases_ms"] = trainer.phases(args.steps)
    row["render_alone_ms"] = trainer.render_ms()
    row["waits"] = trainer.waits()
    row["trained_parameters"] = sum(p.numel() for p in trainer.parameters.values())
    row["loss"] = loss
    if reference is not None:
        differences = {
            name: (gradient - reference["gradients"][name]).norm() / reference["gradients"][name].norm()
            for name, gradient in gradients.items()
        }
        row["loss_difference"] = abs(loss - reference["loss"]) / reference["loss"]
        row["gradient_differences"] = {name: float(value) for name, value in differences.items()}
    if not args.no_profile and device.type == "cuda":
        row["profile"] = trainer.profile()
        row["tflop"] = count_flops(trainer)  # last: compiled code gives way to what counts
    row["gradients"] = gradients
    return row


def run_ranks(args: argparse.Namespace, device: torch.device, variant: str, ranks: Ranks) -> dict[str, Any]:
    """One variant alone on every GPU, and shared by all: how much of the GPUs' throughput is left."""
    import torch.distributed as dist

    trainer = Trainer(args, device, variant)
    figures = {}
    for name in ("alone", "together"):
        if name == "together":
            trainer.distribute()
        for _ in range(args.warm_up):
            trainer.train()
        dist.barrier()
        figures[name] = trainer.measure(args.steps)
    slowest = torch.tensor([figures[name]["step_s"] for name in ("alone", "together")], device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    alone, together = slowest.tolist()
    return {
        "variant": f"{variant} x{ranks.world}",
        **figures["together"],
        "step_s": together,
        "alone_s": alone,
        "alone_peak_gb": figures["alone"]["peak_gb"],
        "scaling": alone / together,
    }


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError after so many seconds: a variant that compiles too long must not cost the others' figures."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["sd21", "tiny"], default="sd21")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--encoder", default="categorical", choices=["categorical", "scalar"])
    parser.add_argument("--height", type=int, default=448)
    parser.add_argument("--width", type=int, default=800)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=10, help="a measurement; there are three")
    parser.add_argument("--warm_up", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=230, help="for all variants; late ones are left out")
    parser.add_argument("--no_profile", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and pictures, two steps")
    parser.add_argument("--output", type=Path, help="folder of the JSON file (default: benchmarks/results)")
    parser.add_argument("--commit", help="commit to record where the checkout has no git")
    args = parser.parse_args()
    if args.smoke:
        args.size, args.height, args.width, args.steps, args.warm_up = "tiny", 32, 64, 2, 1
    return args


def main() -> None:
    args = parse()
    ranks = Ranks.from_environment()
    device = torch.device(args.device, ranks.local_rank) if args.device == "cuda" else torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    if ranks.world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    report: dict[str, Any] = {
        "benchmark": "training",
        "chip": torch.cuda.get_device_name() if device.type == "cuda" else reporting.cpu_name(),
        "torch": torch.__version__,
        "commit": args.commit or reporting.commit(),
        "command": shlex.join(reporting.without(["python", *sys.argv], ("--output", "--commit"))),
        "settings": {name: getattr(args, name) for name in ("size", "dtype", "encoder", "height", "width", "steps")},
        "rows": [],
        "failures": {},
    }
    output = args.output or Path(__file__).parent / "results"
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"training-{device.type}{f'-x{ranks.world}' if ranks.world > 1 else ''}.json"
    deadline = time.monotonic() + args.seconds
    reference = None
    for variant in args.variants:
        try:
            with time_limit(deadline - time.monotonic()):
                if ranks.world > 1:
                    row = run_ranks(args, device, variant, ranks)
                else:
                    row = run_variant(args, device, variant, reference)
                    gradients = row.pop("gradients")
                    if reference is None:
                        reference = {"loss": row["loss"], "gradients": gradients}
            report["rows"].append(row)
            if ranks.rank == 0:
                print_row(row)
        except Exception as error:  # a variant that fails must not cost the others their figures
            report["failures"][variant] = f"{type(error).__name__}: {error}"
            print(f"{variant} failed", flush=True)
            traceback.print_exc()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        torch._dynamo.reset()
        if ranks.rank == 0:
            path.write_text(json.dumps(report, indent=1))
    if ranks.rank == 0:
        print_report(report)
        print(f"wrote {path}")
    if ranks.world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    main()
