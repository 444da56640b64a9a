"""Speed and memory of OccDepth on KITTI-sized stereo pairs: answers, their parts, training steps, losses, lifting.

    python benchmarks/occdepth.py --output occdepth.json       everything, about five minutes on an H200
    python benchmarks/occdepth.py --smoke                      every line of it, tiny, on a CPU

Weights, pictures and labels are random; the rig is that of KITTI's sequence 00. Answers are of one stereo pair, labels
included, in bfloat16 weights with folded norms; a training step is a forward and a backward pass of one sample in
bfloat16 autocast, labels at hand, without the optimizer (float32 on a CPU).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import reporting
import torch
from measuring import Bench, part_times, peak_gb
from torch import Tensor, nn

from syntheocc.occupancy.data.kitti import stereo_rig
from syntheocc.occupancy.losses import frustum_proportion_loss, relation_loss, scene_cross_entropy, scene_scal_losses
from syntheocc.occupancy.perception.occdepth.acceleration import RecordedOccDepth, prepare_for_inference
from syntheocc.occupancy.perception.occdepth.batch import StereoBatch
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig, as_published
from syntheocc.occupancy.perception.occdepth.frustums import frustum_tiles
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
from syntheocc.occupancy.perception.occdepth.lifting import lift_features
from syntheocc.occupancy.perception.occdepth.model import OccDepth
from syntheocc.occupancy.perception.occdepth.presets import preset
from syntheocc.worlds.kitti_tree import nominal_calibration

PARTS = ("answer", "training", "losses", "lifting", "compiled")
PRESETS = ("kitti_b7", "kitti_b3", "kitti_mono", "small")


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--repeats", type=int, default=10, help="calls in a group")
    parser.add_argument("--output", type=Path, help="a JSON file")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args(argv)
    args.presets = ["tiny"] if args.smoke else args.presets
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    bench = Bench(args)
    run = {"answer": answer, "training": training, "losses": losses, "lifting": lifting, "compiled": compiled}
    for part in args.parts:
        for name in args.presets if part in ("answer", "training") else args.presets[:1]:
            try:
                run[part](bench, name)
            except (RuntimeError, ValueError) as error:  # one part out of memory must not lose the others' figures
                if args.smoke:
                    raise
                bench.row(part, f"{name} FAILED", error=str(error).splitlines()[0][:300])
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
            if args.output is not None:
                written = {**reporting.run_summary(bench.device), "rows": bench.rows}
                args.output.write_text(json.dumps(written, indent=1) + "\n")
    return bench.rows


def sample(config: OccDepthConfig, device: torch.device) -> StereoBatch:
    """One sample of random pictures and labels before KITTI's rig."""
    generator = torch.Generator().manual_seed(0)
    height, width = config.image_size
    rig = list(stereo_rig(nominal_calibration((height, width)), (height, width)).values())[: config.num_views]
    matrices = torch.eye(4, dtype=torch.float64).repeat(len(rig), 1, 1)
    for matrix, camera in zip(matrices, rig, strict=True):
        matrix[:3] = camera.intrinsics @ camera.ego2cam[:3]
    intrinsics = torch.stack([camera.intrinsics for camera in rig])[None]
    origin = torch.tensor(config.grid.lower, dtype=torch.float64)
    classes = config.taxonomy.num_classes
    semantics = torch.randint(0, classes, config.grid.shape, generator=generator, dtype=torch.uint8)
    # As in the data set: most is free, some unknown.
    chance = torch.rand(config.grid.shape, generator=generator)
    semantics[chance < 0.85] = config.taxonomy.free
    semantics[chance > 0.95] = 255
    return StereoBatch(
        images=torch.randn(1, len(rig), 3, height, width, generator=generator),
        velo2img=matrices[None],
        intrinsics=intrinsics,
        origin=origin[None],
        baseline=torch.tensor([0.53]),
        flipped=torch.zeros(1, dtype=torch.bool),
        tokens=["random"],
        semantics=semantics[None],
        coarse=torch.randint(0, classes, (1, *config.coarse_shape), generator=generator, dtype=torch.uint8),
        frustums=frustum_tiles(matrices, origin, config.grid, config.image_size, config.frustum_tiles)[None],
        depth=60 * torch.rand(1, 1, height, width, generator=generator),
    ).to(device)


def made(name: str, bench: Bench, published: bool = False) -> tuple[OccDepth, StereoBatch]:
    config = preset(name).model
    model = OccDepth(as_published(config) if published else config).to(bench.device)
    return model, sample(config, bench.device)


def answer(bench: Bench, name: str) -> None:
    """One stereo pair to labels: as it is, with a fixed rig, recorded; and the time of the parts."""
    model, batch = made(name, bench)
    cameras = StereoCameras.of_batch(batch)
    fast = prepare_for_inference(model, torch.bfloat16 if bench.device.type == "cuda" else None)
    million = sum(p.numel() for p in model.parameters()) / 1e6
    with torch.no_grad():
        ms = bench.milliseconds(lambda: fast.predict(batch.images, cameras))
        lookup = fast.lookup(cameras)
        fixed = bench.milliseconds(lambda: fast.predict(batch.images, lookup))
        memory = peak_gb(bench, lambda: fast.predict(batch.images, lookup))
        figures: dict[str, Any] = {"ms": ms, "fixed_rig_ms": fixed, "peak_gb": memory, "million_parameters": million}
        if bench.device.type == "cuda":
            recorded = RecordedOccDepth(fast, cameras)
            figures["recorded_ms"] = bench.milliseconds(lambda: recorded(batch.images))
            del recorded
        bench.row("answer", f"{name}, one pair", **figures)
        watched: dict[str, nn.Module] = {
            "encoder": fast.image_network.encoder,
            "decoder": fast.image_network.decoder,
            "volume": fast.volume_net,
            "volume level 1": fast.volume_net.level1,
            "volume level 2": fast.volume_net.level2,
            "volume enlarged": fast.volume_net.up0 or fast.volume_net.up1,
            "volume head": fast.volume_net.head,
        }
        if fast.volume_net.relation is not None:
            watched["volume relations"] = fast.volume_net.relation
        if fast.depth_net is not None:
            watched["depth"] = fast.depth_net
        spent = part_times(bench, watched, lambda: fast.predict(batch.images, lookup))
        maps = fast.encode(batch.images)
        spent["lift and depth"] = bench.milliseconds(lambda: fast.lift(maps, lookup))
        spent["lookup"] = bench.milliseconds(lambda: fast.lookup(cameras))
        bench.row("answer", f"{name}, parts, ms", **spent)


def training(bench: Bench, name: str) -> None:
    """A training step of one sample, with and without recomputing blocks."""
    for recompute in (False, True):
        model, batch = made(name, bench)
        model.gradient_checkpointing_enable(recompute)
        model.train()
        cameras = StereoCameras.of_batch(batch)

        def step(model: OccDepth = model, batch: StereoBatch = batch, cameras: StereoCameras = cameras) -> None:
            model.zero_grad(set_to_none=True)
            with autocast(bench):
                output = model(batch.images, cameras)
            model.losses(output, batch)["loss"].backward()

        try:
            memory = peak_gb(bench, step)
            ms = bench.milliseconds(step, max(1, bench.repeats // 2))
            bench.row("training", f"{name}{', recomputing' if recompute else ''}", ms=ms, peak_gb=memory)
        except torch.OutOfMemoryError as error:
            bench.row("training", f"{name}{', recomputing' if recompute else ''} FAILED", error=str(error)[:200])
        del model, batch


def losses(bench: Bench, name: str) -> None:
    """Each loss on a full grid of logits, forward and backward."""
    config = preset(name).model
    batch = sample(config, bench.device)
    assert batch.semantics is not None and batch.frustums is not None and batch.coarse is not None
    classes, free = config.taxonomy.num_classes, config.taxonomy.free
    logits = torch.randn(1, classes, *config.grid.shape, device=bench.device, requires_grad=True)
    x, y, z = config.coarse_shape
    relations = torch.randn(1, 4, (x // 2) * (y // 2) * (z // 2), x * y * z, device=bench.device, requires_grad=True)
    labels, tiles, coarse = batch.semantics, batch.frustums, batch.coarse
    number = config.frustum_tiles**2
    terms = {
        "cross entropy": lambda: scene_cross_entropy(logits, labels),
        "both affinities": lambda: sum(scene_scal_losses(logits.softmax(1), labels, free)),
        "frustum proportions": lambda: frustum_proportion_loss(logits.softmax(1), labels, tiles, number),
        "relations": lambda: relation_loss(relations, coarse, classes, free),
    }
    for term, compute in terms.items():

        def both(compute: Any = compute) -> None:
            logits.grad = relations.grad = None
            compute().backward()

        ms, memory = bench.milliseconds(both), peak_gb(bench, both)
        bench.row("losses", f"{term}, forward and backward", ms=ms, peak_gb=memory)


def lifting(bench: Bench, name: str) -> None:
    """Features of two views at four scales to the volume: between pixels, and as published."""
    for published in (False, True):
        model, batch = made(name, bench, published)
        config = model.config
        lookup = model.lookup(StereoCameras.of_batch(batch))
        height, width = config.image_size
        dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
        maps: dict[int, Tensor] = {}
        for stride in config.scales:
            shape = (config.num_views, config.channels, -(-height // stride), -(-width // stride))
            values = torch.randn(shape, device=bench.device, dtype=dtype)
            values = values.contiguous(memory_format=torch.channels_last)
            maps[stride] = values[None].requires_grad_()

        def forward(maps: Any = maps, lookup: Any = lookup, config: Any = config) -> Tensor:
            return lift_features(maps, lookup.pixels, config.view_fusion)

        def both(maps: Any = maps, forward: Any = forward) -> None:
            for values in maps.values():
                values.grad = None
            forward().float().square().mean().backward()

        with torch.no_grad():
            alone = bench.milliseconds(forward)
        ms, memory = bench.milliseconds(both), peak_gb(bench, both)
        what = "nearest, cosine (published)" if published else "between pixels, similarity"
        bench.row("lifting", what, forward_ms=alone, both_ms=ms, peak_gb=memory)


def compiled(bench: Bench, name: str) -> None:
    """The answer with torch.compile; on a GPU only, the first call takes minutes."""
    if bench.device.type != "cuda":
        return
    model, batch = made(name, bench)
    fast = prepare_for_inference(model, compile="inductor")
    recorded = RecordedOccDepth(fast, StereoCameras.of_batch(batch))
    ms = bench.milliseconds(lambda: recorded(batch.images))
    bench.row("compiled", f"{name}, compiled and recorded", ms=ms)


def autocast(bench: Bench) -> torch.autocast:
    """Bfloat16 on a GPU, nothing elsewhere."""
    return torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.device.type == "cuda")


if __name__ == "__main__":
    main()
