"""Volume rendering of benchmarks/rendering.py: the label rays of one frame set through 640,000 voxels.

The rays, the two scenes and the twenty moving boxes are those of the splatting half. A step is rendering and the
published losses, forward and backward to opacity and logits. In plain torch, chunks compute their intermediate values
again in the backward pass, so "one chunk" is the fastest that memory allows. Rows that name neither use the default.
"""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from measuring import Bench, peak_gb
from rendering_splat import CLASSES, Scene, label_rays, scenes, twenty_boxes
from sparseocc_inputs import street_labels
from torch import Tensor

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.losses.rendering import depth_loss, semantic_loss
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.volume_rays import RaySamples, volume_rays
from syntheocc.occupancy.rendering.compositing import RenderedRays
from syntheocc.occupancy.rendering.dvgo import DvgoSettings, render_dvgo
from syntheocc.occupancy.rendering.flow import FlowMode, render_labels
from syntheocc.occupancy.rendering.lookup import voxel_coordinates
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.occupancy.rendering.volume import RenderSettings, fields_of

Render = Callable[[Tensor, Tensor], RenderedRays]


def volume(bench: Bench) -> None:
    """All rows."""
    smoke, gpu = bench.args.smoke, bench.device.type == "cuda"
    spec = GridSpec((-8.0, -8.0, -1.0), 0.4, (40, 40, 16)) if smoke else OCC3D_NUSCENES.spec
    street: Any = SimpleNamespace(grid=spec, taxonomy=OCC3D_NUSCENES.taxonomy, occupied_classes=tuple(range(CLASSES)))
    labels = street_labels(street)
    # Interpreted kernels are slow beyond words; with --smoke they rehearse the run.
    kernels = has_module("triton") and (gpu or smoke and os.environ.get("TRITON_INTERPRET") == "1")
    sizes = (2 if kernels else 90,) if smoke else ((38_400, 99_000) if gpu else (3_600,))
    for number in sizes:
        rays, _ = label_rays(bench, labels, spec, number)
        motion = twenty_boxes(bench)
        for name, scene in scenes(bench, labels, spec).items():
            gradients = {}
            for what, render in ways(rays, spec, motion, kernels, gpu).items():
                if number == sizes[0] or what.startswith("importance"):
                    gradients[what] = _row(bench, f"{what}, {name}, {number} rays", scene, rays, render)
            if kernels:
                pair = (gradients["importance, torch"], gradients["importance, triton"])
                worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*pair, strict=True))
                bench.row("volume", f"triton against torch, {name}, {number} rays", relative_gradient_difference=worst)
            if kernels and number == sizes[0]:
                _kernels(bench, name, scene, rays, spec)


def ways(rays: RayLabels, spec: GridSpec, motion: BoxMotion, kernels: bool, gpu: bool) -> dict[str, Render]:
    """The renderers that are compared."""
    whole = len(rays)

    def by(
        mode: FlowMode = "none", backend: str = "triton" if kernels else "torch", keep: bool = False, **settings: Any
    ) -> Render:
        chosen = RenderSettings(backend=backend, **settings)
        return lambda density, logits: render_labels(
            density, logits, rays, spec, chosen, mode, motion, keep_samples=keep
        )

    def dvgo(settings: DvgoSettings) -> Render:
        return lambda density, logits: render_dvgo(
            fields_of(20 * density, logits), rays.samples, rays.origins, rays.directions, spec, settings
        )

    made = {"importance, triton": by(), "importance, triton, samples kept": by(keep=True)} if kernels else {}
    # A CPU would swap.
    made |= {"importance, torch, one chunk": by(backend="torch", chunk=whole)} if gpu else {}
    return made | {
        "importance, torch": by(backend="torch"),
        "importance, moving": by("warp"),
        "importance, scattered": by("scatter"),
        "importance, published": by(density="sigmoid", legacy=True),
        "uniform": by(sampling="uniform"),
        "voxel by voxel": by(sampling="exact"),
        "voxel by voxel, torch": by(sampling="exact", backend="torch"),
        "renderocc": dvgo(DvgoSettings()),
        "renderocc, published": dvgo(DvgoSettings(legacy=True)),
    }


def _row(bench: Bench, what: str, scene: Scene, labels: RayLabels, render: Render) -> tuple[Tensor, ...]:
    def loss_of(density: Tensor, logits: Tensor) -> Tensor:
        seen = render(density, logits)
        loss = 0.05 * depth_loss(seen.depth, labels.distance, labels.weights)
        return loss + semantic_loss(seen.semantics, labels.labels, labels.weights)

    def step() -> tuple[Tensor, ...]:
        leaves = [part.detach().requires_grad_() for part in (scene.opacity, scene.features)]
        return torch.autograd.grad(loss_of(*leaves), leaves)

    gradients = step()
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise ValueError(f"{what}: gradients that are not finite")
    peak = peak_gb(bench, step)
    repeats = None if bench.device.type == "cuda" else 1
    with torch.no_grad():
        forward = bench.milliseconds(lambda: loss_of(scene.opacity, scene.features), repeats)
    both = bench.milliseconds(step, repeats)
    bench.row("volume", what, forward_ms=forward, forward_backward_ms=both, peak_gb=peak)
    return gradients


def _kernels(bench: Bench, name: str, scene: Scene, labels: RayLabels, spec: GridSpec) -> None:
    """Rays in one kernel, at samples that a step would look at, and with --tune other sizes of its blocks."""
    from syntheocc.occupancy.ops.volume_rays import triton as launches

    with torch.no_grad():
        seen = render_labels(scene.opacity, scene.features, labels, spec, mode="none", keep_samples=True)
    assert seen.midpoints is not None and seen.lengths is not None
    points = labels.origins[:, None] + labels.directions[:, None] * seen.midpoints[..., None]
    samples = RaySamples(voxel_coordinates(points, spec), seen.lengths, seen.midpoints, labels.distance)
    leaves = [part[0].detach().requires_grad_() for part in (scene.opacity, scene.features)]

    def rays(backward: bool) -> Any:
        out = volume_rays(*leaves, samples, 0.4, False, "triton")
        return torch.autograd.grad(out, leaves, [torch.ones_like(part) for part in out]) if backward else out

    used = launches.FORWARD_CONFIG, launches.BACKWARD_CONFIG
    sizes = [(s, w) for s in (8, 16, 32, 64) for w in (1, 2, 4)] if getattr(bench.args, "tune", False) else []
    for config in [None, *(sizes[:1] if bench.args.smoke else sizes)]:
        launches.FORWARD_CONFIG, launches.BACKWARD_CONFIG = used if config is None else (config, config)
        forward, both = bench.milliseconds(lambda: rays(False)), bench.milliseconds(lambda: rays(True))
        what = f"kernels, {name}, " + ("as used" if config is None else f"{config[0]} samples, {config[1]} warps")
        bench.row("volume", what, forward_ms=forward, backward_ms=both - forward)
    launches.FORWARD_CONFIG, launches.BACKWARD_CONFIG = used
