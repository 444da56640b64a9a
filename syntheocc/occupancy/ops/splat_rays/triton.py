"""Splatting in Triton: lists of hits a ray, sorted where they are, then one compositing pass each way.

    find_hits   a warp walks a ray and lists the voxels it meets (int32); the list of the longest ray sets the pitch
    sort_hits   a warp sorts the list of one ray in registers; rays of like lengths go together
    composite   some hits at a time; features are read for hits alone
    backward    the same lists from far to near, gradients added with atomics: they differ in the last bits from run
                to run, the forward pass does not

The device is waited for twice: for the longest list, and for the largest scale and offset where those are learned.
Rays go through in chunks whose lists fit `LIST_BYTES`. Legend: R rays, S paths, C features.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.splat_rays import RayPaths
from syntheocc.occupancy.ops.splat_rays.lattice import SLACK, cross_lattice, window_size
from syntheocc.occupancy.ops.splat_rays.responses import MAX_ALPHA, MIN_ALPHA, Response
from syntheocc.occupancy.ops.splat_rays.triton_kernels import (
    FLOAT_COLUMNS,
    INT_COLUMNS,
    composite,
    composite_backward,
    find_hits,
    sort_hits,
)

# A ray is left once no more than this share of it is: 50 m of what it misses is half a millimetre of depth.
STOP = 1e-5
LIST_BYTES = 1 << 30
# The first guess of a list's length; a scene that needs more is walked again.
CAPACITY = 512
# Hits that compositing looks at together, forward and backward: 16 x 32 features are a warp's registers (32 spill).
HITS = (16, 16)
# Lists up to these lengths are sorted by a program of so many warps; longer ones, which are rare, by torch.
SORTS = ((32, 1), (128, 1), (256, 1), (512, 2), (1024, 4))


@dataclass(frozen=True, eq=False)
class _Scene:
    """What does not change between the launches of a call."""

    spec: GridSpec
    path_begin: Tensor  # int32 [R + 1]
    rays: Tensor  # float32 [S, 7] origin, direction, sample
    limits: Tensor | None
    scale: float
    multi: bool
    shift: int
    num_rays: int

    def geometry(self, capacity: int) -> tuple:
        """The arguments by which all kernels find a hit's mean."""
        x, y, z = self.spec.shape
        return x * y * z, y, z, self.shift, *self.spec.lower, *self.spec.voxel_size, capacity


def splat_rays_triton(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.splat_rays.splat_rays`."""
    opacity, features = opacity.contiguous(), features.contiguous()
    scale = scale.contiguous() if isinstance(scale, Tensor) else scale
    offsets = None if offsets is None else offsets.contiguous()
    with torch.no_grad():
        lists = _Lists(opacity, paths, spec, scale, offsets, front_limits, owners, near, far, response)
    return _Splat.apply(opacity, features, scale, offsets, lists)


class _Lists:
    """The sorted hits of all rays: per chunk of rays (first ray, number, codes [number, capacity])."""

    def __init__(
        self,
        opacity: Tensor,
        paths: RayPaths,
        spec: GridSpec,
        scale: float | Tensor,
        offsets: Tensor | None,
        front_limits: Tensor | None,
        owners: Tensor | None,
        near: float,
        far: float,
        response: Response,
    ):
        cells = spec.shape[0] * spec.shape[1] * spec.shape[2]
        begin = torch.searchsorted(paths.rays, torch.arange(paths.num_rays + 1, device=paths.rays.device))
        max_scale, max_offset, most = _largest(scale, offsets, begin)
        shift = max(1, (cells - 1).bit_length())
        if most > 1 << (31 - shift):
            raise ValueError(f"{most} paths of one ray through {cells} voxels are too many for 32-bit hits")
        rays = torch.cat([paths.origins, paths.directions, paths.volumes[:, None].to(paths.origins)], 1).contiguous()
        self.scene = _Scene(
            spec, begin.int(), rays, None if front_limits is None else front_limits.contiguous(),
            0.0 if isinstance(scale, Tensor) else scale, most > 1, shift, paths.num_rays,
        )  # fmt: skip
        self.counts = torch.zeros(paths.num_rays, dtype=torch.int32, device=opacity.device)
        self.chunks: list[tuple[int, int, Tensor]] = []
        if not paths.num_rays:
            return
        reach = response.reach(max_scale, far)
        window = window_size(spec, reach, max_offset)
        layers = max(1, 64 // window**2)
        floats, ints = _path_tables(paths, spec, reach, max_offset, near, far)
        settle = -(-2 * (reach + max_offset) // min(spec.voxel_size))
        log_stop = float(torch.tensor(STOP).log())
        owners = None if owners is None else owners.contiguous()

        def find(first: int, number: int, capacity: int) -> Tensor:
            codes = torch.empty(number, capacity, dtype=torch.int32, device=opacity.device)
            find_hits[(number,)](
                floats, ints, self.scene.path_begin, opacity, scale if isinstance(scale, Tensor) else opacity,
                opacity if offsets is None else offsets, opacity if owners is None else owners, codes, self.counts,
                first, cells, shift, self.scene.scale, reach + max_offset * 3**0.5 + SLACK, near, far, capacity,
                int(settle), log_stop,
                HAS_SCALE=isinstance(scale, Tensor), HAS_OFFSETS=offsets is not None, HAS_OWNERS=owners is not None,
                WINDOW=window, LAYERS=layers, LANES=triton.next_power_of_2(layers * window**2),
                FLOATS=len(FLOAT_COLUMNS), INTS=len(INT_COLUMNS), MAX_ALPHA=MAX_ALPHA, MIN_ALPHA=MIN_ALPHA,
                num_warps=1,
            )  # fmt: skip
            return codes

        capacity, first = CAPACITY, 0
        while first < paths.num_rays:
            number = min(paths.num_rays - first, max(1, LIST_BYTES // (4 * capacity)))
            codes = find(first, number, capacity)
            lengths, order = self.counts[first : first + number].sort()
            edges = torch.tensor([0, *(length for length, _ in SORTS)], dtype=torch.int32, device=opacity.device)
            *cuts, longest = torch.cat([torch.searchsorted(lengths, edges, right=True), lengths[-1:].long()]).tolist()
            if longest > capacity:  # never so long that one ray would not fit
                capacity = max(triton.next_power_of_2(longest), CAPACITY)
                continue
            self._sort(first, codes, order.int(), cuts, offsets)
            self.chunks.append((first, number, codes))
            first += number

    def _sort(self, first: int, codes: Tensor, order: Tensor, cuts: list[int], offsets: Tensor | None) -> None:
        any_offsets = codes if offsets is None else offsets
        scene, capacity = self.scene, codes.shape[1]
        for (block, warps), begin, end in zip(SORTS, cuts[:-1], cuts[1:], strict=True):
            if end > begin:
                sort_hits[(end - begin,)](
                    order[begin:end], scene.path_begin, scene.rays, any_offsets, codes, self.counts,
                    first, *scene.geometry(capacity),
                    HAS_OFFSETS=offsets is not None, MULTI=scene.multi, BLOCK=block, num_warps=warps,
                )  # fmt: skip
        for row in order[cuts[-1] :].split(4096):
            codes[row.long()] = self._sorted_by_torch(first, codes[row.long()], row.long(), offsets)

    def _sorted_by_torch(self, first: int, codes: Tensor, row: Tensor, offsets: Tensor | None) -> Tensor:
        scene, spec = self.scene, self.scene.spec
        live = torch.arange(codes.shape[1], device=codes.device) < self.counts[first + row][:, None]
        codes = torch.where(live, codes, 0)
        cell = (codes & ((1 << scene.shift) - 1)).long()
        path = scene.path_begin[first + row].long()[:, None] + (codes >> scene.shift)
        index = torch.stack([cell // (spec.shape[1] * spec.shape[2]), cell // spec.shape[2] % spec.shape[1]], -1)
        index = torch.cat([index, (cell % spec.shape[2])[..., None]], -1)
        rays = scene.rays[path]
        mean = constant(spec.lower, rays) + (index + 0.5) * constant(spec.voxel_size, rays) - rays[..., :3]
        if offsets is not None:
            voxel = rays[..., 6].long() * (spec.shape[0] * spec.shape[1] * spec.shape[2]) + cell
            mean = mean + offsets.reshape(-1, 3)[voxel]
        bits = (mean * rays[..., 3:6]).sum(-1).float().clamp(min=0).view(torch.int32).long()
        key = (torch.where(live, bits, 0x7FFFFFFF) << 32) | codes.long()
        return (key.sort(1).values & 0xFFFFFFFF).int()


class _Splat(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        opacity: Tensor,
        features: Tensor,
        scale: float | Tensor,
        offsets: Tensor | None,
        lists: _Lists,
    ) -> tuple[Tensor, ...]:
        number, size = lists.scene.num_rays, features.shape[-1]
        out, sums = features.new_zeros(number, size), features.new_zeros(4, number)
        tensor = isinstance(scale, Tensor)
        for first, rays, codes in lists.chunks:
            composite[(rays,)](
                lists.scene.path_begin, lists.scene.rays, opacity, features, scale if tensor else opacity,
                opacity if offsets is None else offsets,
                opacity if lists.scene.limits is None else lists.scene.limits, codes, lists.counts, out, sums, number,
                first, *lists.scene.geometry(codes.shape[1]), lists.scene.scale,
                **_constants(lists, tensor, offsets, size, HITS[0]),
            )  # fmt: skip
        ctx.save_for_backward(opacity, features, scale if tensor else None, offsets, sums)
        ctx.lists = lists
        return out, sums[0].clone(), sums[1].clone(), sums[2].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        opacity, features, scale, offsets, sums = ctx.saved_tensors
        lists, size = ctx.lists, features.shape[-1]
        _, want_features, want_scale, want_offsets = ctx.needs_input_grad[:4]
        grad_opacity = torch.zeros_like(opacity)
        # Any pointer will do for what nobody asks for.
        grad_features = torch.zeros_like(features) if want_features else grad_opacity
        grad_scale = torch.zeros_like(scale) if want_scale else grad_opacity
        grad_offsets = torch.zeros_like(offsets) if want_offsets else grad_opacity
        grad_out, grads = grad_out.contiguous(), tuple(grad.contiguous() for grad in grads)
        for first, rays, codes in lists.chunks:
            composite_backward[(rays,)](
                lists.scene.path_begin, lists.scene.rays, opacity, features, opacity if scale is None else scale,
                opacity if offsets is None else offsets,
                opacity if lists.scene.limits is None else lists.scene.limits, codes, lists.counts, sums,
                grad_out, *grads, grad_opacity, grad_features, grad_scale, grad_offsets, lists.scene.num_rays,
                first, *lists.scene.geometry(codes.shape[1]), lists.scene.scale,
                WANT_FEATURES=want_features, WANT_SCALE=want_scale, WANT_OFFSETS=want_offsets,
                **_constants(lists, scale is not None, offsets, size, HITS[1]),
            )  # fmt: skip
        return (
            grad_opacity,
            grad_features if want_features else None,
            grad_scale if want_scale else None,
            grad_offsets if want_offsets else None,
            None,
        )


def _constants(lists: _Lists, has_scale: bool, offsets: Tensor | None, size: int, hits: int) -> dict[str, Any]:
    return {
        "HAS_SCALE": has_scale,
        "HAS_OFFSETS": offsets is not None,
        "HAS_LIMITS": lists.scene.limits is not None,
        "MULTI": lists.scene.multi,
        "SIZE": size,
        "CHANNELS": triton.next_power_of_2(size),
        "HITS": hits,
        "MAX_ALPHA": MAX_ALPHA,
        "num_warps": 1,
    }


def _largest(scale: float | Tensor, offsets: Tensor | None, path_begin: Tensor) -> tuple[float, float, int]:
    """Largest scale and offset in metres and the most paths of a ray, waiting for the device at most once."""
    most = path_begin.diff().amax() if len(path_begin) > 1 else path_begin.new_zeros(())
    columns = [most.float()]
    columns += [scale.amin(), scale.amax()] if isinstance(scale, Tensor) else []
    columns += [] if offsets is None else [offsets.abs().amax()]
    values = torch.stack([column.float() for column in columns]).tolist()
    max_scale = values[2] if isinstance(scale, Tensor) else scale
    if isinstance(scale, Tensor) and not (values[1] > 0 and max_scale < float("inf")):
        raise ValueError(f"scale must be positive metres, got {values[1]} to {max_scale}")
    return max_scale, 0.0 if offsets is None else values[-1], int(values[0])


def _path_tables(
    paths: RayPaths, spec: GridSpec, reach: float, max_offset: float, near: float, far: float
) -> tuple[Tensor, Tensor]:
    """One row a path for `find_hits`: float32 and int32."""
    walk = cross_lattice(paths, spec, reach, max_offset, near, far)
    device = paths.origins.device
    size = constant(spec.voxel_size, paths.origins)
    strides = constant([spec.shape[1] * spec.shape[2], spec.shape[2], 1], device)[walk.axes]
    metric, edges = paths.directions.gather(1, walk.axes), size[walk.axes]
    origin = paths.origins.gather(1, walk.axes) - constant(spec.lower, paths.origins)[walk.axes]
    lower, upper = paths.bounds.gather(2, walk.axes[:, None].expand(-1, 2, -1)).unbind(1)
    step = edges[:, 0] / metric[:, 0]  # metres along the ray between layers
    floats = {
        "start_b": walk.start_b, "slope_b": walk.slope_b, "half_b": walk.half_b,
        "start_c": walk.start_c, "slope_c": walk.slope_c, "half_c": walk.half_c,
        "along_a": metric[:, 0], "along_b": metric[:, 1], "along_c": metric[:, 2],
        "size_b": edges[:, 1], "size_c": edges[:, 2],
        "time_zero": 0.5 * step - origin[:, 0] / metric[:, 0], "time_step": step,
    }  # fmt: skip
    ints = {
        "first": walk.first, "count": walk.count,
        "stride_a": strides[:, 0], "stride_b": strides[:, 1], "stride_c": strides[:, 2],
        "lower_b": lower[:, 1], "upper_b": upper[:, 1], "lower_c": lower[:, 2], "upper_c": upper[:, 2],
        "axis_a": walk.axes[:, 0], "axis_b": walk.axes[:, 1], "axis_c": walk.axes[:, 2],
        "volume": paths.volumes, "table": paths.tables, "owner": paths.owners,
    }  # fmt: skip
    return (
        torch.stack([floats[name] for name in FLOAT_COLUMNS], 1),
        torch.stack([ints[name] for name in INT_COLUMNS], 1).int(),
    )
