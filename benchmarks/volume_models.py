"""Speed and memory of OccFlowNet, SplattingOcc and RenderOcc: lift-splat pooling, the trunk, training steps, answers.

    python benchmarks/volume_models.py --output volume_models.json     everything, about four minutes on an H200
    python benchmarks/volume_models.py --smoke                         every line of it, tiny, on a CPU

Weights and images are random; cameras, rays and boxes are those of the rendering benchmarks. A step is a forward and a
backward pass on one GPU in bfloat16 autocast (float32 on a CPU), labels at hand, without the optimizer.
"""

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import reporting
import torch
from measuring import Bench, peak_gb
from perception_labels2d import cameras_of
from rendering_splat import label_rays, twenty_boxes
from sparseocc_inputs import projections, street_labels
from torch import Tensor

from syntheocc.occupancy.ops.bev_pool import bev_pool
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.perception.batch import OccupancyBatch
from syntheocc.occupancy.perception.registry import model_entry
from syntheocc.occupancy.perception.trunk import OccupancyTrunk
from syntheocc.occupancy.perception.view_transform import (
    LiftCameras,
    feature_pixels,
    image_to_grid,
    lift_points,
    voxel_numbers,
)
from syntheocc.occupancy.perception.volume_model import VolumeModel
from syntheocc.occupancy.perception.volume_presets import PUBLISHED_TRUNK, R50_TRUNK, SMALL_TRUNK, TINY_TRUNK
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels

PARTS = ("pool", "trunk", "step")
MODELS = (
    ("occflownet", "occflownet_3d"),
    ("occflownet", "occflownet_2d"),
    ("occflownet", "occflownet_2d_flow"),
    ("splattingocc", "splattingocc"),
    ("renderocc", "renderocc_7frame"),
)
VIEWS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=5, help="calls in a group")
    parser.add_argument("--output", type=Path, help="a JSON file")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    bench = Bench(args)
    run = {"pool": pool, "trunk": trunk, "step": step}
    for part in args.parts:
        try:
            run[part](bench)
        except (RuntimeError, ValueError) as error:  # one part out of memory must not lose the others' figures
            if args.smoke:
                raise
            bench.row(part, "FAILED", error=str(error).splitlines()[0][:300])
    if args.output is not None:
        summary = {
            "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else reporting.cpu_name(),
            "torch": torch.__version__,
            "commit": reporting.commit(),
            "command": "python " + shlex.join(reporting.without(sys.argv, ("--output",))),
            "rows": bench.rows,
        }
        args.output.write_text(json.dumps(summary, indent=1) + "\n")


def cameras(config: Any, batch: int, device: torch.device) -> LiftCameras:
    """The calibration of the benchmarks' rig, T frames."""
    ego2img = projections(SimpleNamespace(num_frames=config.num_frames, image_size=config.image_size))
    ego2img = ego2img.reshape(1, config.num_frames, VIEWS, 4, 4).to(device)
    return cameras_of(ego2img.expand(batch, -1, -1, -1, -1), 0, config.image_size[1])


def pool(bench: Bench) -> None:
    """One frame's points into voxels, forward and backward: Triton beside plain torch."""
    config = TINY_TRUNK if bench.args.smoke else PUBLISHED_TRUNK
    size = (config.image_size[0] // 16, config.image_size[1] // 16)
    rig = cameras(config, 1, bench.device)
    points = lift_points(image_to_grid(rig.ego2img[0, 0]), feature_pixels(size, config.image_size, bench.device),
                         config.depth.depths(bench.device))  # fmt: skip
    voxels = voxel_numbers(points, config.grid)
    number = config.grid.shape[0] * config.grid.shape[1] * config.grid.shape[2]
    depth = torch.rand(voxels.shape, device=bench.device).softmax(1).requires_grad_()
    context = torch.randn(VIEWS, config.context_channels, *size, device=bench.device, requires_grad=True)
    kernels = bench.device.type == "cuda" and has_module("triton")
    for backend in ("torch", "triton") if kernels else ("torch",):

        def forward(backend: str = backend) -> Tensor:
            return bev_pool(depth, context, voxels, number, backend)

        def both(forward: Any = forward) -> None:
            depth.grad = context.grad = None
            forward().square().sum().backward()

        with torch.no_grad():
            alone = bench.milliseconds(forward)
        ms, memory = bench.milliseconds(both), peak_gb(bench, both)
        bench.row("pool", f"{voxels.numel()} points, {backend}", forward_ms=alone, both_ms=ms, peak_gb=memory)


def trunk(bench: Bench) -> None:
    """Forward and training step of the trunk, one sample."""
    sizes = (
        {"tiny": TINY_TRUNK} if bench.args.smoke else {"small": SMALL_TRUNK, "r50": R50_TRUNK, "swin": PUBLISHED_TRUNK}
    )
    for name, config in sizes.items():
        network = OccupancyTrunk(config).to(bench.device)
        network.gradient_checkpointing_enable(name == "swin")
        images = torch.randn(1, config.num_frames, VIEWS, 3, *config.image_size, device=bench.device)
        rig = cameras(config, 1, bench.device)

        def training(network: OccupancyTrunk = network, images: Tensor = images, rig: LiftCameras = rig) -> None:
            network.zero_grad(set_to_none=True)
            with autocast(bench):
                network(images, rig).volume.float().square().mean().backward()

        def answer(network: OccupancyTrunk = network, images: Tensor = images, rig: LiftCameras = rig) -> None:
            with torch.no_grad(), autocast(bench):
                network(images, rig)

        ms, memory = bench.milliseconds(training), peak_gb(bench, training)
        network.eval()
        forward = bench.milliseconds(answer)
        bench.row("trunk", f"{name}, one sample", forward_ms=forward, training_ms=ms, peak_gb=memory)


def step(bench: Bench) -> None:
    """A training step of the small models, eight samples."""
    size, number = ("tiny", 2) if bench.args.smoke else ("small", 8)
    for name, preset in MODELS:
        entry: Any = model_entry(name)
        config, _ = entry.preset(f"{preset}_{size}")
        model: VolumeModel = entry.model_class(config).to(bench.device)
        batch = samples(bench, config, number)
        module = entry.step_class(model).to(bench.device)

        def training(module: Any = module, batch: OccupancyBatch = batch) -> None:
            module.zero_grad(set_to_none=True)
            with autocast(bench):
                module(batch, 0, range(len(batch.tokens)))["loss"].backward()

        ms, memory = bench.milliseconds(training), peak_gb(bench, training)
        model.eval()
        rig = LiftCameras.of_batch(batch)

        def answer(model: VolumeModel = model, batch: OccupancyBatch = batch, rig: LiftCameras = rig) -> None:
            with autocast(bench):
                model.predict(batch.images, rig)

        bench.row(
            "step", f"{preset}_{size}, {number} samples", training_ms=ms, answer_ms=bench.milliseconds(answer),
            millions=sum(p.numel() for p in model.parameters()) / 1e6, peak_gb=memory,
        )  # fmt: skip


def samples(bench: Bench, config: Any, number: int) -> OccupancyBatch:
    """One sample repeated: random images, rays of three frames into the benchmarks' street, twenty boxes."""
    grid = config.grid
    street = SimpleNamespace(grid=grid, taxonomy=config.taxonomy, occupied_classes=tuple(range(17)))
    labels = street_labels(street)
    rays, _ = label_rays(bench, labels, grid, 90 if bench.args.smoke else 8192)
    rig = cameras(config, number, bench.device)
    shape = (number, config.num_frames, VIEWS, 3, *config.image_size)
    return OccupancyBatch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device),
        ego2img=rig.ego2img,
        tokens=[str(i) for i in range(number)],
        shots=[[str(i)] for i in range(number)],
        semantics=labels.expand(number, -1, -1, -1).to(bench.device),
        intrinsics=rig.intrinsics,
        image_transforms=rig.image_transforms,
        grid_transforms=rig.grid_transforms,
        rays=RayLabels.collate([replace(rays)] * number),
        motion=BoxMotion.collate([twenty_boxes(bench)] * number),
    )


def autocast(bench: Bench) -> Any:
    return torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.device.type == "cuda")


if __name__ == "__main__":
    main()
