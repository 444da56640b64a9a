"""Rays grouped by the volume that they go through and cut into chunks, for every renderer of volumes.

Legend: R rays, C classes, X Y Z voxels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.rendering.compositing import RenderedRays

__all__ = ["Field", "check_rays", "fields_of", "render_in_pieces"]


@dataclass(eq=False)
class Field:
    """A volume that rays are rendered through.

    Args:
        density: [X, Y, Z] activated, see `activate_density`.
        semantics: [X, Y, Z, C] what is composited, logits in general.
        stays: bool [X, Y, Z] voxels of classes that do not move with boxes (`rendering.motion`); None: all may.
    """

    density: Tensor
    semantics: Tensor
    stays: Tensor | None = None


def fields_of(density: Tensor, semantics: Tensor) -> list[Field]:
    """The volumes of a batch, density [B, X, Y, Z] and semantics [B, X, Y, Z, C]."""
    return [Field(*pair) for pair in zip(density, semantics, strict=True)]


def check_rays(
    fields: Sequence[Field],
    index: Tensor,
    origins: Tensor,
    directions: Tensor,
    spec: GridSpec,
    rows: Mapping[str, Tensor | None],
) -> None:
    """Checks what renderers are given; `rows` are further tensors with a row for each ray.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    if not fields:
        raise ValueError("no field to render")
    for field in fields:
        if tuple(field.density.shape) != spec.shape or tuple(field.semantics.shape[:3]) != spec.shape:
            raise ValueError(
                f"a field is density [X, Y, Z] and semantics [X, Y, Z, C] of the grid's shape {spec.shape}, got "
                f"{tuple(field.density.shape)} and {tuple(field.semantics.shape)}"
            )
        if field.semantics.ndim != 4 or field.semantics.shape[3] != fields[0].semantics.shape[3]:
            raise ValueError(f"semantics are [X, Y, Z, C], as many classes each, got {tuple(field.semantics.shape)}")
    for name, value, width in (("index", index, ()), ("origins", origins, (3,)), ("directions", directions, (3,))):
        if tuple(value.shape) != (len(index), *width):
            raise ValueError(f"{name} must be {(len(index), *width)}, got {tuple(value.shape)}")
    for name, row in {"index": index, "origins": origins, "directions": directions, **rows}.items():
        if row is None:
            continue
        if len(row) != len(index):
            raise ValueError(f"{name} must have a row for each of {len(index)} rays, got {len(row)}")
        if row.device != fields[0].density.device:
            raise ValueError(f"{name} is on {row.device}, the fields on {fields[0].density.device}")


def render_in_pieces(
    fields: Sequence[Field],
    index: Tensor,  # [R]
    chunk: int,
    piece: Callable[[Field, Tensor], Callable[[Tensor, Tensor], RenderedRays]],
    front: bool,
    keep: bool,
    recompute: bool = True,
) -> RenderedRays:
    """Groups rays by field, cuts them into chunks, and renders these in float32 at least.

    Args:
        fields: the volumes.
        index: int64, the field of each ray.
        chunk: rays at a time.
        piece: makes, of a field and the numbers of some rays, what renders these from density and semantics; it is
            called once a chunk, without autocast.
        front: whether `RenderedRays.front` is asked for (what a set without rays cannot tell).
        keep: whether the samples are, likewise.
        recompute: where there are several chunks, compute what is in between again in the backward pass.
    """
    dtype = torch.float64 if fields[0].density.dtype == torch.float64 else torch.float32
    with torch.autocast(index.device.type, enabled=False):
        fields = [Field(f.density.to(dtype), f.semantics.to(dtype), f.stays) for f in fields]
        pieces = _pieces(index, len(fields), chunk)
        again = recompute and len(pieces) > 1 and torch.is_grad_enabled()
        parts = []
        for number, rays in pieces:
            field = fields[number]
            render = piece(field, rays)
            parts.append(_recomputed(render, field) if again else render(field.density, field.semantics))
        if not parts:
            return _nothing(fields[0], front, keep)
        back = torch.empty_like(index)
        back[torch.cat([rays for _, rays in pieces])] = torch.arange(len(index), device=index.device)
        return RenderedRays.cat(parts).select(back)


def _recomputed(render: Callable[[Tensor, Tensor], RenderedRays], field: Field) -> RenderedRays:
    def call(density: Tensor, semantics: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(vars(render(density, semantics)).values())

    values = checkpoint(call, field.density, field.semantics, use_reentrant=False, preserve_rng_state=False)
    return RenderedRays(*values)


def _pieces(index: Tensor, fields: int, chunk: int) -> list[tuple[int, Tensor]]:
    """Fields and the rays through them, at most `chunk` at a time."""
    if not len(index):
        return []
    if fields == 1:
        return [(0, rays) for rays in torch.arange(len(index), device=index.device).split(chunk)]
    counts = torch.bincount(index, minlength=fields).tolist()
    groups = index.argsort(stable=True).split(counts)
    return [(field, rays) for field, group in enumerate(groups) if len(group) for rays in group.split(chunk)]


def _nothing(field: Field, front: bool, keep: bool) -> RenderedRays:
    """The result without rays; still depends on the volumes, so that a distributed backward pass does not hang."""
    none = field.density.flatten()[:0]
    wide = none[:, None] if keep else None
    return RenderedRays(none, none, field.semantics.flatten(0, 2)[:0], none if front else None, wide, wide, wide)
