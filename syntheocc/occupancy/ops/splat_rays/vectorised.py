"""Splatting in plain torch: candidates from the lattice, opacity first, then sorted and composited a chunk at a time.

What a ray meets is found without gradients and kept as two integers a hit (path and voxel, in the order of the ray).
The backward pass computes alphas and weights again from those, so that nothing of the size of hits times features
outlives its chunk. Sums of logarithms over a chunk are float64. Legend: N hits, R rays, S paths, C features.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.splat_rays import RayPaths
from syntheocc.occupancy.ops.splat_rays.lattice import Walk, cross_lattice, window_size
from syntheocc.occupancy.ops.splat_rays.responses import MAX_ALPHA, MIN_ALPHA, Response

# Rays of a chunk, and (layer, voxel) candidates looked at in one go: what keeps a CPU's caches and a GPU's memory.
CHUNK_RAYS = {"cpu": 1024, "cuda": 8192}
BLOCK_CANDIDATES = {"cpu": 1 << 18, "cuda": 1 << 23}


class _Hits(NamedTuple):
    """Of the rays first..last (exclusive): everything they meet, ray by ray, near to far."""

    first: int
    last: int
    path: Tensor  # int32 [N]
    voxel: Tensor  # int64 [N], flat over all samples


class _Voxels(NamedTuple):
    """The Gaussians, flat over all samples [B X Y Z]."""

    opacity: Tensor
    features: Tensor
    scale: float | Tensor
    offsets: Tensor | None


class _Scene(NamedTuple):
    """The rays, and what does not change between the chunks of a call."""

    front_limits: Tensor | None
    owners: Tensor | None
    paths: RayPaths
    spec: GridSpec
    near: float
    far: float
    response: Response


def splat_rays_torch(
    opacity: Tensor,
    features: Tensor,
    paths: RayPaths,
    spec: GridSpec,
    scale: float | Tensor,
    offsets: Tensor | None,
    front_limits: Tensor | None,
    owners: Tensor | None,
    near: float,
    far: float,
    response: Response,
    chunk_rays: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.splat_rays.splat_rays`; `chunk_rays` bounds memory (for tests)."""
    scene = _Scene(front_limits, owners, paths, spec, near, far, response)
    chunk = chunk_rays or CHUNK_RAYS.get(opacity.device.type, CHUNK_RAYS["cuda"])
    return _Splat.apply(
        opacity.reshape(-1),
        features.reshape(-1, features.shape[-1]),
        scale.reshape(-1) if isinstance(scale, Tensor) else scale,
        None if offsets is None else offsets.reshape(-1, 3),
        scene,
        chunk,
    )


class _Splat(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        opacity: Tensor,
        features: Tensor,
        scale: float | Tensor,
        offsets: Tensor | None,
        scene: _Scene,
        chunk: int,
    ) -> tuple[Tensor, ...]:
        voxels = _Voxels(opacity, features, scale, offsets)
        number = scene.paths.num_rays
        out = features.new_zeros(number, features.shape[1])
        sums = features.new_zeros(3, number)
        kept = []
        for hits in _all_hits(scene, voxels, chunk):
            ray = scene.paths.rays[hits.path]
            weight, distance = _weights(scene, voxels, hits, ray)
            out.index_add_(0, ray, weight[:, None] * features[hits.voxel])
            sums[0].index_add_(0, ray, weight)
            sums[1].index_add_(0, ray, weight * distance)
            if scene.front_limits is not None:
                sums[2].index_add_(0, ray, weight * (distance < scene.front_limits[ray]))
            kept.append(hits)
        ctx.save_for_backward(opacity, features, scale if isinstance(scale, Tensor) else None, offsets)
        ctx.scene, ctx.scale = scene, None if isinstance(scale, Tensor) else scale
        ctx.hits = kept
        return out, sums[0], sums[1], sums[2]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor, *grads: Tensor) -> tuple[Tensor | float | None, ...]:
        opacity, features, scale, offsets = ctx.saved_tensors
        scene: _Scene = ctx.scene
        voxels = _Voxels(opacity, features, ctx.scale if scale is None else scale, offsets)
        inputs = {"opacity": opacity, "scale": scale, "offsets": offsets}
        wanted = dict(zip(("opacity", "features", "scale", "offsets"), ctx.needs_input_grad[:4], strict=True))
        sums = {
            name: torch.zeros_like(tensor) for name, tensor in inputs.items() if tensor is not None and wanted[name]
        }
        grad_features = torch.zeros_like(features) if wanted["features"] else None
        for hits in ctx.hits:
            ray = scene.paths.rays[hits.path]
            leaves = {name: inputs[name][hits.voxel].detach().requires_grad_() for name in sums}
            with torch.enable_grad():
                weight, distance = _weights(scene, voxels, hits, ray, leaves)
            grad = grad_out[ray]
            if grad_features is not None:
                grad_features.index_add_(0, hits.voxel, weight.detach()[:, None] * grad)
            if not leaves:
                continue
            # Of the weights, and of the distances (which offsets move).
            upon = (grad * features[hits.voxel]).sum(1) + grads[0][ray] + grads[1][ray] * distance.detach()
            if scene.front_limits is not None:
                upon += grads[2][ray] * (distance.detach() < scene.front_limits[ray])
            outputs, seeds = [weight], [upon]
            if distance.requires_grad:
                outputs.append(distance)
                seeds.append(weight.detach() * grads[1][ray])
            found = torch.autograd.grad(outputs, list(leaves.values()), seeds, allow_unused=True)
            for name, part in zip(leaves, found, strict=True):
                if part is not None:
                    sums[name].index_add_(0, hits.voxel, part)
        return sums.get("opacity"), grad_features, sums.get("scale"), sums.get("offsets"), None, None


def _weights(
    scene: _Scene, voxels: _Voxels, hits: _Hits, ray: Tensor, leaves: dict[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Compositing weights [N] and distances [N] of sorted hits; `leaves` replace what is gathered from the voxels."""
    alpha, distance = _respond(scene, voxels, hits.path, hits.voxel, leaves or {})
    blocked = torch.log1p(-alpha.clamp(max=MAX_ALPHA)).double()
    before = blocked.cumsum(0) - blocked
    # The sum at each ray's first hit is that of the rays before it.
    begins = torch.ones_like(ray, dtype=torch.bool)
    begins[1:] = ray[1:] != ray[:-1]
    opening = begins.nonzero()[:, 0]
    before = before - before[opening][begins.cumsum(0) - 1]
    return alpha.clamp(max=MAX_ALPHA) * before.exp().to(alpha.dtype), distance


def _respond(
    scene: _Scene, voxels: _Voxels, path: Tensor, voxel: Tensor, leaves: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Uncapped alpha and distance of pairs."""
    shape, dtype = scene.spec.shape, scene.paths.origins.dtype
    cell = voxel % (shape[0] * shape[1] * shape[2])
    index = torch.stack([cell // (shape[1] * shape[2]), cell // shape[2] % shape[1], cell % shape[2]], -1)
    size, lower = (
        constant(scene.spec.voxel_size, scene.paths.origins),
        constant(scene.spec.lower, scene.paths.origins),
    )
    mean = lower + (index.to(dtype) + 0.5) * size
    if voxels.offsets is not None:
        mean = mean + (leaves["offsets"] if "offsets" in leaves else voxels.offsets[voxel])
    scale = voxels.scale
    if isinstance(scale, Tensor):
        scale = leaves["scale"] if "scale" in leaves else scale[voxel]
    opacity = leaves["opacity"] if "opacity" in leaves else voxels.opacity[voxel]
    return scene.response(mean - scene.paths.origins[path], scene.paths.directions[path], opacity, scale, path)


def _all_hits(scene: _Scene, voxels: _Voxels, chunk: int) -> Iterator[_Hits]:
    """What every ray meets, in chunks of rays."""
    paths = scene.paths
    if not len(paths) or not voxels.opacity.numel():
        return
    max_scale = float(voxels.scale.max()) if isinstance(voxels.scale, Tensor) else voxels.scale
    if isinstance(voxels.scale, Tensor) and not (float(voxels.scale.min()) > 0 and max_scale < float("inf")):
        raise ValueError(f"scale must be positive metres, got {float(voxels.scale.min())} to {max_scale}")
    max_offset = 0.0 if voxels.offsets is None else float(voxels.offsets.abs().max())
    reach = scene.response.reach(max_scale, scene.far)
    walk = cross_lattice(paths, scene.spec, reach, max_offset, scene.near, scene.far)
    window = window_size(scene.spec, reach, max_offset)
    edges = torch.arange(0, paths.num_rays + chunk, chunk, device=paths.rays.device)
    cuts = torch.searchsorted(paths.rays.contiguous(), edges).tolist()
    for number, (first, last) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
        pairs = list(_candidates(scene, voxels, walk, window, reach + max_offset * 3**0.5, first, last))
        if not pairs:
            continue
        path, voxel, distance = (torch.cat(column) for column in zip(*pairs, strict=True))
        # One key for ray and distance: 1e5 of rays times metres leaves float64 1e-11 m.
        base = paths.rays[path] - number * chunk
        key = base.double() * (2 * scene.far + 1) + distance.double()
        order = key.argsort()
        if bool((key[order].diff() == 0).any()):
            # Level rays meet voxels at equal distances: those come by path and voxel, in all implementations.
            order = (path * len(voxels.opacity) + voxel).argsort()
            order = order[key[order].argsort(stable=True)]
        yield _Hits(number * chunk, min(paths.num_rays, (number + 1) * chunk), path[order].int(), voxel[order])


def _candidates(
    scene: _Scene, voxels: _Voxels, walk: Walk, window: int, radius: float, first: int, last: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Hits (path, voxel, distance) of the paths first..last, a block of layers at a time, unsorted."""
    device, spec = voxels.opacity.device, scene.spec
    counts = walk.count[first:last]
    path_all = torch.repeat_interleave(torch.arange(first, last, device=device), counts)
    begin = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    layer_all = walk.first[path_all] + torch.arange(len(path_all), device=device) - begin
    strides = constant([spec.shape[1] * spec.shape[2], spec.shape[2], 1], device)
    size = constant(spec.voxel_size, scene.paths.origins)
    side = torch.arange(window, device=device)
    number = spec.shape[0] * spec.shape[1] * spec.shape[2]
    block = max(1, BLOCK_CANDIDATES.get(device.type, BLOCK_CANDIDATES["cuda"]) // window**2)
    for path, layer in zip(path_all.split(block), layer_all.split(block), strict=True):
        axes = walk.axes[path]
        lower, upper = scene.paths.bounds[path].gather(2, axes[:, None].expand(-1, 2, -1)).unbind(1)
        position = layer.to(walk.start_b.dtype)
        at_b = walk.start_b[path] + position * walk.slope_b[path]
        at_c = walk.start_c[path] + position * walk.slope_c[path]
        b = (at_b - walk.half_b[path]).ceil().long()[:, None] + side
        c = (at_c - walk.half_c[path]).ceil().long()[:, None] + side
        across_b = (b - at_b[:, None]) * size[axes[:, 1]][:, None]
        across_c = (c - at_c[:, None]) * size[axes[:, 2]][:, None]
        along = (across_b * walk.lateral_b[path][:, None])[:, :, None] + (across_c * walk.lateral_c[path][:, None])[
            :, None
        ]
        away = across_b.square()[:, :, None] + across_c.square()[:, None] - along.square()
        inside_b = (b >= lower[:, 1:2]) & (b <= upper[:, 1:2])
        inside_c = (c >= lower[:, 2:]) & (c <= upper[:, 2:])
        fits = inside_b[:, :, None] & inside_c[:, None] & (away <= (radius + 1e-3) ** 2)
        row, column_b, column_c = fits.nonzero(as_tuple=True)
        stride = strides[axes]
        cell = layer * stride[:, 0]
        voxel = cell[row] + b[row, column_b] * stride[row, 1] + c[row, column_c] * stride[row, 2]
        which = path[row]
        keep = torch.ones_like(which, dtype=torch.bool)
        if scene.owners is not None:
            table = scene.paths.tables[which]
            owner = scene.owners.reshape(-1)[table.clamp(min=0) * number + voxel]
            keep = (table < 0) | (owner == scene.paths.owners[which])
        voxel = voxel + scene.paths.volumes[which] * number
        keep = (keep & (voxels.opacity[voxel] >= MIN_ALPHA)).nonzero()[:, 0]
        which, voxel = which[keep], voxel[keep]
        alpha, distance = _respond(scene, voxels, which, voxel, {})
        met = ((alpha >= MIN_ALPHA) & (distance >= scene.near) & (distance <= scene.far)).nonzero()[:, 0]
        yield which[met], voxel[met], distance[met]
