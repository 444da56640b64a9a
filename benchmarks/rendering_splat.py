"""Gaussian splatting of benchmarks/rendering.py: label rays through 640,000 Gaussians, forward and backward.

Six cameras at three key frames look at pixels as a lidar would label them. Two scenes: "new" is a model's first step
(opacity 0.12 everywhere, the most Gaussians a ray), "street" what it should become. A step is `splat` with the
published losses, forward and backward to opacity and features; in "moving" twenty boxes go with their Gaussians at the
other two frames. gsplat, where it is installed, paints the same 18 images whole and at a quarter of the size.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from measuring import Bench, peak_gb
from sparseocc_inputs import HEIGHT, METRES_A_FRAME, WIDTH, camera_rig, street_labels
from torch import Tensor

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.losses.rendering import conditional_semantic_loss, free_space_loss, hit_loss, silog_loss
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.splat_rays import RayPaths
from syntheocc.occupancy.ops.splat_rays.responses import RayResponse
from syntheocc.occupancy.rendering.gaussian import Gaussians, SplatSettings, splat
from syntheocc.occupancy.rendering.gaussian_motion import GaussianMoves
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.occupancy.rendering.splat_views import SplatRays, SplatViews
from syntheocc.occupancy.transforms import rotation_z

TARGETS = {"triton_ms": 40.0, "torch_ms": 400.0, "peak_gb": 4.0}
FRAMES = (-1, 0, 1)
CLASSES = 17


class Scene(NamedTuple):
    """Gaussians' raw values and the labels that they are to explain."""

    opacity: Tensor  # [1, X, Y, Z]
    features: Tensor  # [1, X, Y, Z, C]
    spec: GridSpec


def scenes(bench: Bench, labels: Tensor, spec: GridSpec) -> dict[str, Scene]:
    """The two states of a model."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(*labels.shape, CLASSES, generator=generator)
    occupied = labels < CLASSES
    known = torch.nn.functional.one_hot(labels.long().clamp(max=CLASSES - 1), CLASSES).float()
    opacity = torch.where(occupied, 0.9, 0.02 * torch.rand(labels.shape, generator=generator))
    made = {
        "new": (torch.full(labels.shape, 0.12), noise.softmax(-1)),
        "street": (opacity, (6 * known + noise).softmax(-1)),
    }
    return {name: Scene(*(part.to(bench.device) for part in parts), spec) for name, parts in made.items()}


def label_rays(bench: Bench, labels: Tensor, spec: GridSpec, number: int) -> tuple[RayLabels, SplatViews]:
    """Rays through random pixels below the horizon to what the street holds there, and the views they are of."""
    rig = list(camera_rig().values())
    poses = torch.stack([camera.cam2ego for _ in FRAMES for camera in rig])
    for index, offset in enumerate(FRAMES):
        poses[index * len(rig) : (index + 1) * len(rig), 0, 3] += METRES_A_FRAME * offset
    matrices = torch.stack([camera.intrinsics for _ in FRAMES for camera in rig])
    times = torch.arange(len(FRAMES)).repeat_interleave(len(rig))
    views = SplatViews.from_matrices(poses, matrices, (HEIGHT, WIDTH), 1.0, torch.zeros_like(times), times)
    generator = torch.Generator().manual_seed(1)
    view = torch.arange(number) % len(poses)
    extent = torch.tensor([WIDTH, 0.6 * HEIGHT], dtype=torch.float64)
    pixels = torch.rand(number, 2, generator=generator, dtype=torch.float64) * extent
    pixels[:, 1] += 0.4 * HEIGHT
    rays = views.rays(view, pixels + 0.5)
    entry, index, hit = cast_rays(labels[0] < CLASSES, rays.origins, rays.directions, spec, distance="entry")
    seen = labels[0][index.unbind(1)].long()
    zeros = torch.zeros(number, dtype=torch.int64)
    made = RayLabels(
        rays.origins.float(), rays.directions.float(), entry.clamp(min=0.5).float(), entry.clamp(min=0.5).float(),
        torch.where(hit, seen, 0), hit.float(), rays.frames, view % len(rig), pixels.float(), zeros, FRAMES,
    )  # fmt: skip
    return made.to(bench.device), views.to(bench.device, torch.float32)


def twenty_boxes(bench: Bench) -> BoxMotion:
    """Cars on the street that drive on by a few metres and turn."""
    generator = torch.Generator().manual_seed(2)
    source, target, frames = [], [], []
    for frame in (0, 2):
        for _ in range(20):
            x, y, yaw = ((torch.rand(3, generator=generator) - 0.5) * torch.tensor([60.0, 30.0, 6.0])).tolist()
            pose, moved = rotation_z(yaw), rotation_z(yaw + 0.1)
            pose[:3, 3], moved[:3, 3] = torch.tensor([x, y, 0.6]), torch.tensor([x + 3, y + 1, 0.6])
            source.append(pose)
            target.append(moved)
            frames.append(frame)
    rows = len(frames)
    boxes = BoxMotion(
        torch.stack(source), torch.stack(target), torch.tensor([[4.6, 1.9, 1.7]], dtype=torch.float64).repeat(rows, 1),
        torch.full((rows,), 4), torch.tensor(frames), torch.zeros(rows, dtype=torch.int64),
    )  # fmt: skip
    return boxes.to(bench.device, torch.float32)


def step_of(
    scene: Scene, labels: RayLabels, rays: SplatRays, settings: SplatSettings, backend: str, motion: BoxMotion | None
) -> Callable[[], tuple[Tensor, Tensor]]:
    """One forward and backward pass: the gradients of opacity and features."""

    def step() -> tuple[Tensor, Tensor]:
        opacity, features = scene.opacity.detach().requires_grad_(), scene.features.detach().requires_grad_()
        gaussians = Gaussians(opacity, features, settings.scale, scene.spec)
        moves = None if motion is None else GaussianMoves.of(motion, None, scene.spec)
        loss = loss_of(gaussians, labels, rays, settings, backend, moves)
        first, second = torch.autograd.grad(loss, (opacity, features))
        return first, second

    return step


def loss_of(
    gaussians: Gaussians,
    labels: RayLabels,
    rays: SplatRays,
    settings: SplatSettings,
    backend: str,
    moves: GaussianMoves | None = None,
) -> Tensor:
    """The losses of the corrected design; without the free-space term for gsplat, which cannot say it."""
    limits = None if backend == "gsplat" else labels.distance - 0.8
    out = splat(gaussians, rays, settings, moves, limits, backend)
    loss = conditional_semantic_loss(out.semantics, out.weight_sum, labels.labels, labels.weights)
    loss = loss + silog_loss(out.depth, labels.distance, labels.weights, out.weight_sum > 0.05)
    loss = loss + hit_loss(out.weight_sum, labels.weights)
    return loss if out.front is None else loss + 0.5 * free_space_loss(out.front, labels.weights)


def splatting(bench: Bench) -> None:
    """All rows."""
    smoke = bench.args.smoke
    # Interpreted kernels are slow beyond words; with --smoke they rehearse the run.
    interpreted = smoke and os.environ.get("TRITON_INTERPRET") == "1"
    cells = (12, 12, 8) if interpreted else (40, 40, 16)
    spec = GridSpec((-0.2 * cells[0], -0.2 * cells[1], -1.0), 0.4, cells) if smoke else OCC3D_NUSCENES.spec
    taxonomy = OCC3D_NUSCENES.taxonomy
    street: Any = SimpleNamespace(grid=spec, taxonomy=taxonomy, occupied_classes=tuple(range(CLASSES)))
    labels = street_labels(street)
    made = scenes(bench, labels, spec)
    backends = ["torch_sparse"]
    if has_module("triton") and (bench.device.type == "cuda" or interpreted):
        backends.append("triton")
    sizes = (4 if interpreted else 90,) if smoke else (38_400, 99_000)
    if bench.device.type == "cpu" and not smoke:
        sizes = (3_600,)
    for number in sizes:
        rays_of, views = label_rays(bench, labels, spec, number)
        for name, scene in made.items():
            for motion in (None, twenty_boxes(bench)) if number == sizes[0] else (None,):
                _compare(
                    bench,
                    f"{name}, {number} rays{'' if motion is None else ', moving'}",
                    scene,
                    rays_of,
                    backends,
                    motion,
                )
        if number == sizes[0]:
            if "triton" in backends:
                for name, scene in made.items():
                    _stages(bench, name, scene, rays_of)
            _images(bench, made["street"], rays_of, views)


def _compare(
    bench: Bench, what: str, scene: Scene, labels: RayLabels, backends: list[str], motion: BoxMotion | None
) -> None:
    rays = SplatRays.from_labels(labels)
    gradients = {}
    for backend in backends:
        settings = SplatSettings()
        step = step_of(scene, labels, rays, settings, backend, motion)
        gaussians = Gaussians(scene.opacity, scene.features, settings.scale, scene.spec)
        moves = None if motion is None else GaussianMoves.of(motion, None, scene.spec)
        gradients[backend] = step()
        peak = peak_gb(bench, step)
        repeats = 1 if backend == "torch_sparse" else None
        with torch.no_grad():
            forward = bench.milliseconds(lambda: loss_of(gaussians, labels, rays, settings, backend, moves), repeats)  # noqa: B023
        both = bench.milliseconds(step, repeats)
        bench.row("splatting", f"{backend}, {what}", forward_ms=forward, forward_backward_ms=both, peak_gb=peak)
    if len(backends) == 2:
        (first, second), (one, other) = (gradients[backend] for backend in backends)
        worst = max(
            float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in ((first, one), (second, other))
        )
        bench.row("splatting", f"{' against '.join(backends)}, {what}", largest_relative_gradient_difference=worst)


def _images(bench: Bench, scene: Scene, labels: RayLabels, views: SplatViews) -> None:
    """The rasterisers' response: sparse at the label pixels, and gsplat's whole images.

    From cameras turned by a few degrees: level ones see columns of voxels at one z, which may be painted in any order.
    """
    tilt = rotation_z(0.03) @ rotation_z(0.05)[[2, 0, 1, 3]][:, [2, 0, 1, 3]]
    views = replace(views, ego2cam=tilt.to(views.ego2cam) @ views.ego2cam)
    for scale in (1.0, 0.25):
        matrices = views.intrinsics.clone()
        matrices[:, :2] *= scale
        height, width = round(HEIGHT * scale), round(WIDTH * scale)
        smaller = SplatViews(views.ego2cam, matrices, height, width, views.samples, views.frames)
        rays = SplatRays.from_labels(labels, smaller, scale, snap=True)
        settings = SplatSettings(response="ewa")
        gaussians = Gaussians(scene.opacity, scene.features, settings.scale, scene.spec)
        found = {}
        for backend in ("torch_sparse", *(["gsplat"] if has_module("gsplat") and bench.device.type == "cuda" else [])):
            what = f"{backend}, as rasterised, street, {len(labels)} pixels of {len(views)} views of {width}x{height}"
            step = step_of(scene, labels, rays, settings, backend, None)
            try:
                with torch.no_grad():
                    out = splat(gaussians, rays, settings, backend=backend)
                both = bench.milliseconds(step, 1)
            except (RuntimeError, ImportError, OSError) as error:  # gsplat compiles at its first call
                bench.row("splatting", what, error=str(error).splitlines()[0][:300])
                continue
            found[backend] = torch.cat([out.weight_sum[:, None], out.semantics], 1)
            bench.row("splatting", what, forward_backward_ms=both, peak_gb=peak_gb(bench, step))
        if len(found) == 2:
            difference = float((found["gsplat"] - found["torch_sparse"]).abs().max())
            bench.row("splatting", f"gsplat against torch_sparse, {width}x{height}", largest_difference=difference)
        elif "gsplat" not in found and not has_module("gsplat"):
            bench.row("splatting", f"gsplat, {width}x{height}", skipped="not installed")


def _stages(bench: Bench, name: str, scene: Scene, labels: RayLabels) -> None:
    """Where the kernels' time goes, and with --tune other sizes of their blocks."""
    from syntheocc.occupancy.ops.splat_rays import triton as launches

    opacity, features = scene.opacity.detach().requires_grad_(), scene.features.detach().requires_grad_()
    paths = RayPaths.straight(labels.origins, labels.directions, labels.samples, scene.spec)
    limits = labels.distance - 0.8

    def find() -> Any:
        with torch.no_grad():
            return launches._Lists(opacity, paths, scene.spec, 0.2, None, limits, None, 0.1, 60.0, RayResponse())

    def composite(backward: bool) -> Any:
        out = launches._Splat.apply(opacity, features, 0.2, None, lists)
        if not backward:
            return out
        return torch.autograd.grad(out, (opacity, features), [torch.ones_like(part) for part in out])

    lists = find()
    hits = lists.counts.float()
    bench.row("splatting", f"hits a ray, {name}", mean=float(hits.mean()), largest=int(hits.max()))
    bench.row("splatting", f"lists, {name}", ms=bench.milliseconds(find))
    choices = [(f, b) for f in (8, 16, 32) for b in (8, 16, 32)] if getattr(bench.args, "tune", False) else []
    kept = launches.HITS
    for at_once in [kept, *choices]:
        launches.HITS = at_once
        forward = bench.milliseconds(lambda: composite(False))
        both = bench.milliseconds(lambda: composite(True))
        what = f"compositing, {name}, {at_once} hits at once"
        bench.row("splatting", what, forward_ms=forward, backward_ms=both - forward)
    launches.HITS = kept
