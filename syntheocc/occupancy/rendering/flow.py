"""Rays of several frames through the volume of one: what is done about objects that move.

Modes: ``"warp"`` takes samples of other frames back with the objects' boxes (`rendering.motion`, the default),
``"scatter"`` moves the voxels (`rendering.scatter`, as published), ``"filter"`` lets rays of other frames see only
classes that do not move (OccFlowNet's variant without flow), ``"none"`` does nothing about it.

Legend: R rays, B samples, F frames, C classes, X Y Z voxels. Specification: specs/occflownet_splattingocc.md 1.2, 3.6.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.rendering.compositing import RenderedRays
from syntheocc.occupancy.rendering.motion import RayWarp, warp_rays
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.occupancy.rendering.sampling import ray_jitter
from syntheocc.occupancy.rendering.scatter import FlowRows, flow_rows, scatter_voxels
from syntheocc.occupancy.rendering.volume import Field, RenderSettings, fields_of, render_rays
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = [
    "FlowMode",
    "FrameFields",
    "frame_fields",
    "render_labels",
]

FlowMode = Literal["warp", "scatter", "filter", "none"]


class FrameFields(NamedTuple):
    """What `render_rays` takes: volumes, the volume of each ray [R], where its samples are looked up instead."""

    fields: list[Field]
    which: Tensor
    warp: RayWarp | None


def frame_fields(
    density: Tensor,  # [B, X, Y, Z]
    semantics: Tensor,  # [B, X, Y, Z, C]
    rays: RayLabels,
    spec: GridSpec,
    mode: FlowMode = "warp",
    motion: BoxMotion | None = None,
    by_class: bool = True,
    hidden: Sequence[int] = (),
    rows: Sequence[FlowRows] | None = None,
) -> FrameFields:
    """The volumes that rays of several frames see.

    Args:
        density: activated, of the key frame.
        semantics: logits of the key frame.
        rays: of all samples and frames; on the volumes' device.
        spec: where the voxels lie.
        mode: see this module.
        motion: boxes in all frames but the key frame; None: nothing moves.
        by_class: of "warp": only voxels whose most likely class is one of the boxes' move, as in "scatter".
        hidden: of "filter": classes that only rays of the key frame see, the published ones being
            `perception.ray_config.FILTER_CLASSES`.
        rows: of "scatter": what moves in each sample, e.g. read from the published files; None: what motion says.

    Raises:
        ValueError: an unknown mode, volumes of different numbers of samples, or "filter" without classes.
    """
    if mode not in ("warp", "scatter", "filter", "none"):
        raise ValueError(f"flow mode must be 'warp', 'scatter', 'filter' or 'none', got {mode!r}")
    if len(density) != len(semantics):
        raise ValueError(f"density of {len(density)} samples, semantics of {len(semantics)}")
    fields = fields_of(density, semantics)
    if mode == "filter":
        if not len(hidden):
            raise ValueError("mode 'filter' hides classes from other frames: give hidden, or choose mode 'none'")
        still = ~torch.isin(semantics.detach().argmax(-1), constant(hidden, semantics.device))
        fields += fields_of(density * still, semantics)
        return FrameFields(fields, rays.samples + len(density) * ~rays.is_key, None)
    if mode == "scatter" and (rows is not None or motion is not None):
        if rows is None:
            assert motion is not None
            rows = [flow_rows(motion.of_sample(sample), spec) for sample in range(len(density))]
        return _scattered(density, semantics, rays, rows)
    if mode != "warp" or motion is None or not len(motion):
        return FrameFields(fields, rays.samples, None)
    if by_class:
        # A sample's own boxes: what it sees must not depend on what else is in the batch.
        move = torch.zeros(len(density), 1 + UNKNOWN, dtype=torch.bool, device=density.device)
        move[motion.samples.to(move.device), motion.labels.to(move.device)] = True
        for field, moves in zip(fields, move, strict=True):
            field.stays = ~moves[field.semantics.detach().argmax(-1)]
    warp = warp_rays(rays.origins, rays.directions, rays.frames, rays.samples, motion)
    return FrameFields(fields, rays.samples, warp)


def render_labels(
    density: Tensor,  # [B, X, Y, Z]
    semantics: Tensor,  # [B, X, Y, Z, C]
    rays: RayLabels,
    spec: GridSpec,
    settings: RenderSettings | None = None,
    mode: FlowMode = "warp",
    motion: BoxMotion | None = None,
    by_class: bool = True,
    hidden: Sequence[int] = (),
    rows: Sequence[FlowRows] | None = None,
    generators: torch.Generator | Sequence[torch.Generator] | None = None,
    free_margin: float | None = None,
    keep_samples: bool = False,
) -> RenderedRays:
    """Renders the rays of a batch; `frame_fields` and `render_rays` in one.

    Args:
        density: activated, of the key frame (`activate_density`).
        semantics: logits of the key frame.
        rays: labels of all samples and frames.
        spec: where the voxels lie.
        settings: of the renderer.
        mode: see this module; motion, by_class, hidden and rows belong to it.
        motion: boxes in all frames but the key frame.
        by_class: see `frame_fields`.
        hidden: see `frame_fields`.
        rows: see `frame_fields`.
        generators: one generator, or one a sample, that jitters the sampling (training); None in evaluation.
        free_margin: metres; gives `RenderedRays.front`, what stops rays more than this before their return.
        keep_samples: see `render_rays`.
    """
    settings = settings or RenderSettings()
    seen = frame_fields(density, semantics, rays, spec, mode, motion, by_class, hidden, rows)
    jitter = None if generators is None else ray_jitter(rays.samples, settings.intervals - 1, generators)
    limits = None if free_margin is None else rays.distance - free_margin
    return render_rays(
        seen.fields, seen.which, rays.origins, rays.directions, spec, settings, seen.warp, jitter, limits, keep_samples
    )


def _scattered(density: Tensor, semantics: Tensor, rays: RayLabels, rows: Sequence[FlowRows]) -> FrameFields:
    """A volume of each sample and frame; those in which nothing moves are the key frame's own."""
    if len(rows) != len(density):
        raise ValueError(f"rows of {len(rows)} samples, volumes of {len(density)}")
    frames = len(rays.frame_offsets)
    fields = [field for field in fields_of(density, semantics) for _ in range(frames)]
    for sample, moving in enumerate(rows):
        moving = moving.to(density.device)
        for frame in moving.frames.unique().tolist():
            moved = scatter_voxels(density[sample], semantics[sample], moving.select(moving.frames == frame))
            fields[sample * frames + frame] = Field(*moved)
    return FrameFields(fields, rays.samples * frames + rays.frames, None)
