"""Speed and memory of SparseOcc: the model online and its parts, a training step, the sampling operator, the loader.

    python benchmarks/sparseocc.py --device cuda --output DIR     everything, about five minutes on an H200
    python benchmarks/sparseocc.py --smoke                        every line of it, tiny, on a CPU

Weights and images are random, cameras those of nuScenes, the history of eight frames is full. "Online" is one frame's
six new images through the image network, the other seven frames' maps remembered, to the labelled grid on the device.
Times on a GPU are of many calls between two synchronisations; a part's time is from CUDA events around its module.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reporting
import torch
from measuring import Bench, part_times, peak_gb
from sparseocc_inputs import projections, street_labels
from sparseocc_loader import loader
from sparseocc_sampling import sampling
from torch import nn

from syntheocc.occupancy.perception.sparseocc import SparseOcc
from syntheocc.occupancy.perception.sparseocc.acceleration import prepare_for_inference
from syntheocc.occupancy.perception.sparseocc.temporal import OnlinePredictor

TARGETS = {"frames_per_second": 60.0, "training_gb": 12.0, "sampling_forward_ms": 1.07}
# A recording that fails can leave the device unusable, so it comes last.
PARTS = ("sampling", "model", "training", "loader", "graph")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", help="default: r50_704x256_8f, with --smoke tiny")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=20, help="calls in a group")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--compile", action="store_true", help="also the compiled model (minutes)")
    parser.add_argument("--tune", action="store_true", help="also other tile sizes of the sampling kernels")
    parser.add_argument("--output", type=Path, help="folder for sparseocc-<device>.json")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    args.preset = args.preset or ("tiny" if args.smoke else "r50_704x256_8f")
    torch.manual_seed(0)
    bench = Bench(args)
    run = {"sampling": sampling, "model": model, "training": training, "loader": loader, "graph": graph}
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
        "preset": args.preset,
        "targets": TARGETS,
        "rows": bench.rows,
    }
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        path = args.output / f"sparseocc-{bench.device.type}.json"
        path.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{summary['device']}, torch {summary['torch']}, preset {args.preset}")


def model(bench: Bench) -> None:
    """Frames a second of the model online, images on the device, and the time of every part."""
    net = SparseOcc.from_preset(bench.args.preset).to(bench.device).eval()
    bench.row("model", "parameters", millions=sum(p.numel() for p in net.parameters()) / 1e6)
    variants: dict[str, Callable[[], SparseOcc]] = {
        "float32": lambda: prepare_for_inference(net, None),
        "bfloat16": lambda: prepare_for_inference(net),
    }
    if bench.args.compile:
        variants["bfloat16, compiled"] = lambda: prepare_for_inference(net, compile="inductor")
    for name, make in variants.items():
        fast = make()
        drive = _Drive(bench, fast)
        started = time.perf_counter()
        drive.step()
        bench.synchronize()
        first = time.perf_counter() - started
        ms = bench.milliseconds(drive.step)
        memory = peak_gb(bench, drive.step)
        bench.row("model", f"online, {name}", ms=ms, frames_per_second=1e3 / ms, first_s=first, peak_gb=memory)
        if name == "bfloat16":
            _model_parts(bench, fast, drive.step, ms)
            offline = bench.milliseconds(lambda: fast.predict(drive.all_images, drive.ego2img), 3)  # noqa: B023
            bench.row("model", "offline (all images), bfloat16", ms=offline, frames_per_second=1e3 / offline)


class _Drive:
    """A drive through `OnlinePredictor`, one new frame a step, images on the device."""

    def __init__(self, bench: Bench, net: SparseOcc, cuda_graph: bool = False):
        config = net.config
        self.frames, self.index = config.num_frames, 0
        size = (16, 6, 3, *config.image_size)
        self.images = torch.randint(0, 256, size, dtype=torch.uint8).permute(0, 1, 3, 4, 2).contiguous()
        self.images = self.images.permute(0, 1, 4, 2, 3).to(bench.device)
        self.ego2img = projections(config).to(bench.device)
        self.all_images = self.images[[i % 16 for i in range(self.frames)]][None]
        self.online = OnlinePredictor(net, cuda_graph=cuda_graph)
        for _ in range(self.frames):
            self.step()

    def step(self) -> Any:
        token = self.index
        self.index += 1
        history = [max(0, token - age) for age in range(self.frames)]
        return self.online([history], {token: self.images[token % 16]}, self.ego2img)


def graph(bench: Bench) -> None:
    """The same work recorded once and replayed: what is left when nothing waits for Python."""
    if bench.device.type != "cuda":
        return
    net = prepare_for_inference(SparseOcc.from_preset(bench.args.preset).to(bench.device))
    drive = _Drive(bench, net, cuda_graph=True)
    ms = bench.milliseconds(drive.step)
    memory = peak_gb(bench, drive.step)
    bench.row("graph", "online, bfloat16, recorded", ms=ms, frames_per_second=1e3 / ms, peak_gb=memory)


def _model_parts(bench: Bench, net: SparseOcc, step: Callable[[], Any], total: float) -> None:
    watched: dict[str, nn.Module] = {"image network": net.image_encoder.backbone, "pyramid": net.image_encoder.neck}
    for i, stage in enumerate(net.head.voxel_decoder.stages):
        watched |= {f"voxel stage {i}, {name}": child for name, child in stage.named_children()}
    watched |= {f"mask decoder, {name}": child for name, child in net.head.mask_decoder.named_children()}
    spent = part_times(bench, watched, step)
    for name, ms in spent.items():
        bench.row("model", f"part: {name}", ms=ms)
    bench.row("model", "part: everything else", ms=total - sum(spent.values()))


def training(bench: Bench) -> None:
    """A step of the published recipe, mixed precision, frozen batch statistics, a generator a sample as in training.

    Beside it two samples a step, and both with dropout from torch's own state: what drawing by sample costs.
    """
    for batch, by_sample, checkpointing in (
        (1, True, True), (1, True, False), (1, False, False), (2, True, False), (2, False, False),
    ):  # fmt: skip
        _train(bench, batch, by_sample, checkpointing)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def _train(bench: Bench, batch: int, by_sample: bool, checkpointing: bool) -> None:
    net = SparseOcc.from_preset(bench.args.preset, frozen_stages=1).to(bench.device).train()
    net.gradient_checkpointing_enable(checkpointing)
    config = net.config
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=bench.device.type == "cuda")
    size = (batch, config.num_frames, 6, 3, *config.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, device=bench.device)
    ego2img = projections(config).to(bench.device).expand(batch, -1, -1, -1, -1)
    labels = street_labels(config).to(bench.device).expand(batch, -1, -1, -1)
    instances = (labels != config.taxonomy.free).int() if config.panoptic else None

    def step() -> None:
        generators = [torch.Generator(bench.device).manual_seed(i) for i in range(batch)] if by_sample else None
        with torch.autocast(bench.device.type, torch.bfloat16):
            losses = net.losses(net(images, ego2img, generators), labels, instances)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(trained, 35.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    resident = torch.cuda.memory_allocated() / 1e9 if bench.device.type == "cuda" else None
    peak = peak_gb(bench, step)
    ms = bench.milliseconds(step, 3)
    what = f"step, bfloat16 autocast, checkpointing {'on' if checkpointing else 'off'}"
    what += f", {batch} samples" * (batch > 1) + ", dropout of the batch" * (not by_sample)
    bench.row("training", what, ms=ms, peak_gb=peak, weights_and_optimizer_gb=resident)


if __name__ == "__main__":
    main()
