"""Splatting's kernels: find what a ray meets, sort it, composite it, and back. A program is a warp with one ray.

A hit is an int32: ``local path << shift | voxel`` (the voxel's number in its sample), so that equal distances sort by
path and voxel as in the reference. Everything else about a hit is computed again from that where it is needed: a ray
meets some hundred Gaussians, and their numbers are all that is worth keeping. See `triton` for the launches.
"""

import triton
import triton.language as tl

# Rows of the table that describes a path to `find_hits`.
FLOAT_COLUMNS = (
    "start_b", "slope_b", "half_b", "start_c", "slope_c", "half_c", "along_a", "along_b", "along_c",
    "size_b", "size_c", "time_zero", "time_step",
)  # fmt: skip
INT_COLUMNS = (
    "first", "count", "stride_a", "stride_b", "stride_c", "lower_b", "upper_b", "lower_c", "upper_c",
    "axis_a", "axis_b", "axis_c", "volume", "table", "owner",
)  # fmt: skip


@triton.jit
def find_hits(
    floats_ptr, ints_ptr, path_begin_ptr, opacity_ptr, scale_ptr, offsets_ptr, owners_ptr, codes_ptr, counts_ptr,
    first_ray, cells, shift, scale, radius, near, far, capacity, settle, stop_log,
    HAS_SCALE: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_OWNERS: tl.constexpr,
    WINDOW: tl.constexpr, LAYERS: tl.constexpr, LANES: tl.constexpr,
    FLOATS: tl.constexpr, INTS: tl.constexpr, MAX_ALPHA: tl.constexpr, MIN_ALPHA: tl.constexpr,
):  # fmt: skip
    """Lists the hits of a ray, layer by layer; counts those beyond the list's capacity too."""
    row = tl.program_id(0)
    path = tl.load(path_begin_ptr + first_ray + row)
    path_begin = path
    path_end = tl.load(path_begin_ptr + first_ray + row + 1)
    lane = tl.arange(0, LANES)
    ahead = lane // (WINDOW * WINDOW)
    side_b = lane // WINDOW % WINDOW
    side_c = lane % WINDOW
    real = ahead < LAYERS
    found = 0
    codes = codes_ptr + row.to(tl.int64) * capacity
    while path < path_end:
        number = path.to(tl.int64)
        f = floats_ptr + number * FLOATS
        start_b, slope_b, half_b = tl.load(f), tl.load(f + 1), tl.load(f + 2)
        start_c, slope_c, half_c = tl.load(f + 3), tl.load(f + 4), tl.load(f + 5)
        along_a, along_b, along_c = tl.load(f + 6), tl.load(f + 7), tl.load(f + 8)
        size_b, size_c, time_zero, time_step = tl.load(f + 9), tl.load(f + 10), tl.load(f + 11), tl.load(f + 12)
        i = ints_ptr + number * INTS
        first, count = tl.load(i), tl.load(i + 1)
        stride_a, stride_b, stride_c = tl.load(i + 2), tl.load(i + 3), tl.load(i + 4)
        lower_b, upper_b, lower_c, upper_c = tl.load(i + 5), tl.load(i + 6), tl.load(i + 7), tl.load(i + 8)
        axis_a, axis_b, axis_c = tl.load(i + 9), tl.load(i + 10), tl.load(i + 11)
        base = tl.load(i + 12).to(tl.int64) * cells
        table, owner = tl.load(i + 13), tl.load(i + 14)
        code_base = (path - path_begin) << shift
        forward = time_step > 0
        # Logarithms of what the layers let through: all before the last block, the last block, this one.
        settled, recent, current = 0.0, 0.0, 0.0
        done = 0
        in_block = 0
        while (done < count) & (settled > stop_log):
            step = done + ahead
            layer = tl.where(forward, first + step, first + count - 1 - step)
            place = layer.to(tl.float32)
            at_b = start_b + place * slope_b
            at_c = start_c + place * slope_c
            b = tl.ceil(at_b - half_b).to(tl.int32) + side_b
            c = tl.ceil(at_c - half_c).to(tl.int32) + side_c
            across_b = (b.to(tl.float32) - at_b) * size_b
            across_c = (c.to(tl.float32) - at_c) * size_c
            along = across_b * along_b + across_c * along_c
            away = across_b * across_b + across_c * across_c - along * along
            live = real & (step < count) & (away <= radius * radius)
            live = live & (b >= lower_b) & (b <= upper_b) & (c >= lower_c) & (c <= upper_c)
            cell = layer * stride_a + b * stride_b + c * stride_c
            if HAS_OWNERS:
                mine = tl.load(owners_ptr + table.to(tl.int64) * cells + cell, mask=live & (table >= 0), other=0)
                live = live & ((table < 0) | (mine.to(tl.int32) == owner))
            opacity = tl.load(opacity_ptr + base + cell, mask=live, other=0.0)
            live = live & (opacity >= MIN_ALPHA)
            if HAS_OFFSETS:
                at = offsets_ptr + (base + cell) * 3
                off_a = tl.load(at + axis_a, mask=live, other=0.0)
                across_b += tl.load(at + axis_b, mask=live, other=0.0)
                across_c += tl.load(at + axis_c, mask=live, other=0.0)
                along = off_a * along_a + across_b * along_b + across_c * along_c
                away = off_a * off_a + across_b * across_b + across_c * across_c - along * along
            if HAS_SCALE:
                each = tl.load(scale_ptr + base + cell, mask=live, other=1.0)
                alpha = opacity * tl.exp(-away / (2 * each * each))
            else:
                alpha = opacity * tl.exp(-away / (2 * scale * scale))
            time = time_zero + place * time_step + along
            live = live & (alpha >= MIN_ALPHA) & (time >= near) & (time <= far)
            ones = live.to(tl.int32)
            slot = found + tl.cumsum(ones, 0) - ones
            tl.store(codes + slot, code_base + cell, mask=live & (slot < capacity))
            found += tl.sum(ones, 0)
            current += tl.sum(tl.where(live, tl.log(1 - tl.minimum(alpha, MAX_ALPHA)), 0.0), 0)
            done += LAYERS
            in_block += LAYERS
            if in_block >= settle:
                # Two blocks on, nothing can lie before what was met up to here.
                settled += recent
                recent = current
                current = 0.0
                in_block = 0
        path += 1
    tl.store(counts_ptr + first_ray + row, found)


@triton.jit
def _means(
    code, live, path_begin, rays_ptr, offsets_ptr, cells, size_y, size_z, shift,
    lower_x, lower_y, lower_z, edge_x, edge_y, edge_z,
    HAS_OFFSETS: tl.constexpr, MULTI: tl.constexpr,
):  # fmt: skip
    """Flat voxel, direction, distance along the ray and the vector from the ray to the mean, of hits.

    A row of `rays_ptr` [S, 7] is origin, direction and (as a float's bits would not do, an exact small number) the
    sample of a path.
    """
    cell = code & ((1 << shift) - 1)
    if MULTI:
        path = path_begin + (code >> shift)
    else:
        path = path_begin + code * 0
    at = rays_ptr + path.to(tl.int64) * 7
    ox = tl.load(at, mask=live, other=0.0)
    oy = tl.load(at + 1, mask=live, other=0.0)
    oz = tl.load(at + 2, mask=live, other=0.0)
    dx = tl.load(at + 3, mask=live, other=0.0)
    dy = tl.load(at + 4, mask=live, other=0.0)
    dz = tl.load(at + 5, mask=live, other=0.0)
    voxel = tl.load(at + 6, mask=live, other=0.0).to(tl.int64) * cells + cell
    x = cell // (size_y * size_z)
    y = cell // size_z % size_y
    z = cell % size_z
    mx = lower_x + (x.to(tl.float32) + 0.5) * edge_x - ox
    my = lower_y + (y.to(tl.float32) + 0.5) * edge_y - oy
    mz = lower_z + (z.to(tl.float32) + 0.5) * edge_z - oz
    if HAS_OFFSETS:
        mx += tl.load(offsets_ptr + voxel * 3, mask=live, other=0.0)
        my += tl.load(offsets_ptr + voxel * 3 + 1, mask=live, other=0.0)
        mz += tl.load(offsets_ptr + voxel * 3 + 2, mask=live, other=0.0)
    time = mx * dx + my * dy + mz * dz
    return voxel, dx, dy, dz, time, mx - time * dx, my - time * dy, mz - time * dz


@triton.jit
def sort_hits(
    order_ptr, path_begin_ptr, rays_ptr, offsets_ptr, codes_ptr, counts_ptr,
    first_ray, cells, size_y, size_z, shift, lower_x, lower_y, lower_z, edge_x, edge_y, edge_z, capacity,
    HAS_OFFSETS: tl.constexpr, MULTI: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Puts the hits of one ray in the order of distance, path and voxel."""
    row = tl.load(order_ptr + tl.program_id(0))
    count = tl.load(counts_ptr + first_ray + row)
    slot = tl.arange(0, BLOCK)
    live = slot < count
    codes = codes_ptr + row.to(tl.int64) * capacity + slot
    code = tl.load(codes, mask=live, other=0)
    path_begin = tl.load(path_begin_ptr + first_ray + row)
    _, _, _, _, time, _, _, _ = _means(
        code, live, path_begin, rays_ptr, offsets_ptr, cells, size_y, size_z, shift,
        lower_x, lower_y, lower_z, edge_x, edge_y, edge_z, HAS_OFFSETS, MULTI,
    )  # fmt: skip
    # Positive floats sort as their bits; what is not there goes last.
    bits = tl.maximum(time, 0.0).to(tl.int32, bitcast=True)
    bits = tl.where(live, bits, 0x7FFFFFFF)
    key = (bits.to(tl.int64) << 32) | code.to(tl.int64)
    key = tl.sort(key, 0)
    tl.store(codes, (key & 0xFFFFFFFF).to(tl.int32), mask=live)


@triton.jit
def composite(
    path_begin_ptr, rays_ptr, opacity_ptr, features_ptr, scale_ptr, offsets_ptr, limits_ptr, codes_ptr, counts_ptr,
    out_ptr, sums_ptr, num_rays,
    first_ray, cells, size_y, size_z, shift, lower_x, lower_y, lower_z, edge_x, edge_y, edge_z, capacity, scale,
    HAS_SCALE: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LIMITS: tl.constexpr, MULTI: tl.constexpr,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, HITS: tl.constexpr, MAX_ALPHA: tl.constexpr,
):  # fmt: skip
    """Sums over the sorted hits of one ray; rows of `sums_ptr`: weight, depth, front, log of what is left."""
    row = tl.program_id(0)
    ray = first_ray + row
    count = tl.load(counts_ptr + ray)
    path_begin = tl.load(path_begin_ptr + ray)
    codes = codes_ptr + row.to(tl.int64) * capacity
    lane = tl.arange(0, HITS)
    channel = tl.arange(0, CHANNELS)
    limit = 0.0
    if HAS_LIMITS:
        limit = tl.load(limits_ptr + ray)
    seen = tl.zeros([HITS, CHANNELS], tl.float32)
    total = tl.zeros([HITS], tl.float32)
    depth = tl.zeros([HITS], tl.float32)
    front = tl.zeros([HITS], tl.float32)
    passed = 0.0
    begin = 0
    while begin < count:
        live = begin + lane < count
        code = tl.load(codes + begin + lane, mask=live, other=0)
        voxel, _, _, _, time, ax, ay, az = _means(
            code, live, path_begin, rays_ptr, offsets_ptr, cells, size_y, size_z, shift,
            lower_x, lower_y, lower_z, edge_x, edge_y, edge_z, HAS_OFFSETS, MULTI,
        )  # fmt: skip
        each = scale
        if HAS_SCALE:
            each = tl.load(scale_ptr + voxel, mask=live, other=1.0)
        opacity = tl.load(opacity_ptr + voxel, mask=live, other=0.0)
        alpha = tl.minimum(opacity * tl.exp(-(ax * ax + ay * ay + az * az) / (2 * each * each)), MAX_ALPHA)
        blocked = tl.log(1 - alpha)
        weight = alpha * tl.exp(passed + tl.cumsum(blocked, 0) - blocked)
        passed += tl.sum(blocked, 0)
        total += weight
        depth += weight * time
        if HAS_LIMITS:
            front += tl.where(time < limit, weight, 0.0)
        at = features_ptr + voxel[:, None] * SIZE + channel[None, :]
        shown = tl.load(at, mask=live[:, None] & (channel < SIZE)[None, :], other=0.0)
        seen += weight[:, None] * shown
        begin += HITS
    tl.store(out_ptr + ray.to(tl.int64) * SIZE + channel, tl.sum(seen, 0), mask=channel < SIZE)
    tl.store(sums_ptr + ray, tl.sum(total, 0))
    tl.store(sums_ptr + num_rays + ray, tl.sum(depth, 0))
    tl.store(sums_ptr + 2 * num_rays + ray, tl.sum(front, 0))
    tl.store(sums_ptr + 3 * num_rays + ray, passed)


@triton.jit
def composite_backward(
    path_begin_ptr, rays_ptr, opacity_ptr, features_ptr, scale_ptr, offsets_ptr, limits_ptr, codes_ptr, counts_ptr,
    sums_ptr, grad_out_ptr, grad_weight_ptr, grad_depth_ptr, grad_front_ptr,
    grad_opacity_ptr, grad_features_ptr, grad_scale_ptr, grad_offsets_ptr, num_rays,
    first_ray, cells, size_y, size_z, shift, lower_x, lower_y, lower_z, edge_x, edge_y, edge_z, capacity, scale,
    HAS_SCALE: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LIMITS: tl.constexpr, MULTI: tl.constexpr,
    WANT_FEATURES: tl.constexpr, WANT_SCALE: tl.constexpr, WANT_OFFSETS: tl.constexpr,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, HITS: tl.constexpr, MAX_ALPHA: tl.constexpr,
):  # fmt: skip
    """From far to near, so that what lies behind a hit is a sum of what was seen, not a difference of large numbers.

    With u the gradient of a weight, ``dL/dalpha_i = T_i u_i - (sum_{j>i} w_j u_j) / (1 - alpha_i)``.
    """
    row = tl.program_id(0)
    ray = first_ray + row
    count = tl.load(counts_ptr + ray)
    path_begin = tl.load(path_begin_ptr + ray)
    codes = codes_ptr + row.to(tl.int64) * capacity
    lane = tl.arange(0, HITS)
    channel = tl.arange(0, CHANNELS)
    known = channel < SIZE
    limit = 0.0
    upon_front = 0.0
    if HAS_LIMITS:
        limit = tl.load(limits_ptr + ray)
        upon_front = tl.load(grad_front_ptr + ray)
    upon_out = tl.load(grad_out_ptr + ray.to(tl.int64) * SIZE + channel, mask=known, other=0.0)
    upon_weight = tl.load(grad_weight_ptr + ray)
    upon_depth = tl.load(grad_depth_ptr + ray)
    left = tl.load(sums_ptr + 3 * num_rays + ray)  # log of what is left after the hits from here on
    behind = 0.0
    begin = (count - 1) // HITS * HITS
    while begin >= 0:
        live = begin + lane < count
        code = tl.load(codes + begin + lane, mask=live, other=0)
        voxel, dx, dy, dz, time, ax, ay, az = _means(
            code, live, path_begin, rays_ptr, offsets_ptr, cells, size_y, size_z, shift,
            lower_x, lower_y, lower_z, edge_x, edge_y, edge_z, HAS_OFFSETS, MULTI,
        )  # fmt: skip
        each = scale
        if HAS_SCALE:
            each = tl.load(scale_ptr + voxel, mask=live, other=1.0)
        opacity = tl.load(opacity_ptr + voxel, mask=live, other=0.0)
        away = ax * ax + ay * ay + az * az
        fall = tl.exp(-away / (2 * each * each))
        free = live & (opacity * fall < MAX_ALPHA)
        alpha = tl.minimum(opacity * fall, MAX_ALPHA)
        blocked = tl.log(1 - alpha)
        passing = tl.exp(left - tl.cumsum(blocked, 0, reverse=True))
        left -= tl.sum(blocked, 0)
        weight = alpha * passing
        at = voxel[:, None] * SIZE + channel[None, :]
        inside = live[:, None] & known[None, :]
        shown = tl.load(features_ptr + at, mask=inside, other=0.0)
        upon = tl.sum(shown * upon_out[None, :], 1) + upon_weight + upon_depth * time
        if HAS_LIMITS:
            upon += tl.where(time < limit, upon_front, 0.0)
        mass = tl.where(live, weight * upon, 0.0)
        after = behind + tl.cumsum(mass, 0, reverse=True) - mass
        behind += tl.sum(mass, 0)
        if WANT_FEATURES:
            tl.atomic_add(grad_features_ptr + at, weight[:, None] * upon_out[None, :], mask=inside, sem="relaxed")
        slope = tl.where(free, passing * upon - after / (1 - alpha), 0.0)
        tl.atomic_add(grad_opacity_ptr + voxel, slope * fall, mask=free, sem="relaxed")
        if WANT_SCALE:
            grad = slope * alpha * away / (each * each * each)
            tl.atomic_add(grad_scale_ptr + voxel, grad, mask=free, sem="relaxed")
        if WANT_OFFSETS:
            pull = -slope * alpha / (each * each)
            push = weight * upon_depth
            tl.atomic_add(grad_offsets_ptr + voxel * 3, pull * ax + push * dx, mask=live, sem="relaxed")
            tl.atomic_add(grad_offsets_ptr + voxel * 3 + 1, pull * ay + push * dy, mask=live, sem="relaxed")
            tl.atomic_add(grad_offsets_ptr + voxel * 3 + 2, pull * az + push * dz, mask=live, sem="relaxed")
        begin -= HITS
