"""Volume rendering of benchmarks/rendering.py: the label rays of one frame set through 640,000 voxels.

The rays, the two scenes and the twenty moving boxes are those of the splatting half. A step is rendering and the
published losses, forward and backward to opacity and logits. Chunks compute their intermediate values again in the
backward pass, so "one chunk" is the fastest that memory allows and the others are what a training step would use.
"""

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
from syntheocc.occupancy.rendering.compositing import RenderedRays
from syntheocc.occupancy.rendering.dvgo import DvgoSettings, render_dvgo
from syntheocc.occupancy.rendering.flow import FlowMode, render_labels
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.occupancy.rendering.volume import RenderSettings, fields_of

Render = Callable[[Tensor, Tensor], RenderedRays]


def volume(bench: Bench) -> None:
    """All rows."""
    smoke, gpu = bench.args.smoke, bench.device.type == "cuda"
    spec = GridSpec((-8.0, -8.0, -1.0), 0.4, (40, 40, 16)) if smoke else OCC3D_NUSCENES.spec
    street: Any = SimpleNamespace(grid=spec, taxonomy=OCC3D_NUSCENES.taxonomy, occupied_classes=tuple(range(CLASSES)))
    labels = street_labels(street)
    sizes = (90,) if smoke else ((38_400, 99_000) if gpu else (3_600,))
    for number in sizes:
        rays, _ = label_rays(bench, labels, spec, number)
        for name, scene in scenes(bench, labels, spec).items():
            for what, render in ways(rays, spec, twenty_boxes(bench), number).items():
                if number == sizes[0] or what.startswith("importance"):
                    _row(bench, f"{what}, {name}, {number} rays", scene, rays, render)


def ways(rays: RayLabels, spec: GridSpec, motion: BoxMotion, number: int) -> dict[str, Render]:
    """The renderers that are compared."""

    def by(settings: RenderSettings, mode: FlowMode = "none") -> Render:
        return lambda density, logits: render_labels(density, logits, rays, spec, settings, mode, motion)

    def dvgo(settings: DvgoSettings) -> Render:
        return lambda density, logits: render_dvgo(
            fields_of(20 * density, logits), rays.samples, rays.origins, rays.directions, spec, settings
        )

    return {
        "importance, one chunk": by(RenderSettings(chunk=number)),
        "importance": by(RenderSettings()),
        "importance, moving": by(RenderSettings(), "warp"),
        "importance, scattered": by(RenderSettings(), "scatter"),
        "importance, published": by(RenderSettings(density="sigmoid", legacy=True)),
        "uniform": by(RenderSettings(sampling="uniform")),
        "voxel by voxel": by(RenderSettings(sampling="exact")),
        "renderocc": dvgo(DvgoSettings()),
        "renderocc, published": dvgo(DvgoSettings(legacy=True)),
    }


def _row(bench: Bench, what: str, scene: Scene, labels: RayLabels, render: Render) -> None:
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
