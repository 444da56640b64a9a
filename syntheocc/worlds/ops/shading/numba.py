"""The colours of `syntheocc.worlds.shading` and `lighting.sky_color`, compiled by numba for the CPU.

One pass a pixel instead of some four hundred operators over lists of pixels; line by line the torch functions, whose
names the comments give. float64 inside: a pixel is scalar code, so that float32 would gain nothing.
"""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.ops.threads import run_in_threads
from syntheocc.worlds.lighting import Lighting
from syntheocc.worlds.materials import BASE, EMISSION, LAYER, OFFSET, PATTERNS, ROUGHNESS, SCALE, SECOND, VARIANTS
from syntheocc.worlds.ops.visibility import GROUND, KIND, TAPER
from syntheocc.worlds.shading import PUDDLES, Surroundings
from syntheocc.worlds.shadows import _STEEPEST
from syntheocc.worlds.textures import LEVELS, SIDE, layer_of

_WINDOWS = PATTERNS.index("windows")
_CLOUDS = layer_of("noise", 1)
_SUN_DIRECTION, _SUN, _ZENITH, _HORIZON, _FOG, _CLOUD, _FOG_M, _WET, _LAMPS = 0, 3, 6, 9, 12, 15, 16, 17, 18
_LIT_BIAS = 0.04
# `LightMaps.openness`: places about a point (radius in metres, cosine, sine, weight).
_PLACES = np.array(
    [
        (radius, math.cos(angle), math.sin(angle), 0.25 / count)
        for ring, radius in enumerate((0.0, 0.45, 1.3, 3.0))
        for count in (1 if ring == 0 else 4,)
        for k in range(count)
        for angle in (2 * math.pi * (k + 0.5 * (ring % 2)) / count + 0.3,)
    ]
)


def colors_numba(around: Surroundings, field: Tensor, distance: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Radiance float32 [N, H, W, 3], labels uint8 and instances int32 [N, H, W]; see `camera_images._colors`."""
    images, height, width, _ = field.shape
    radiance = torch.zeros((images, height, width, 3))
    labels = torch.zeros((images, height, width), dtype=torch.uint8)
    instances = torch.zeros((images, height, width), dtype=torch.int32)
    geometry, ground = around.geometry, around.geometry.ground
    light = _packed(around.light)
    for n in range(images):
        ego = around.ego2world[n]
        lamp = ego[:3, 3] + 3.6 * ego[:3, 0] + 0.7 * ego[:3, 2] - around.eyes[n]
        run_in_threads(
            _rows,
            height,
            *(value.contiguous().numpy() for value in (field[n], distance[n], row[n])),
            *(value.contiguous().numpy() for value in (around.solids.rows[n], around.solids.order[n], geometry.half)),
            *(value.numpy() for value in (geometry.materials, geometry.labels, geometry.instances, geometry.table)),
            *(value.contiguous().numpy() for value in (ground.labels, ground.materials, ground.ramp, ground.waves)),
            np.array([*ground.origin, ground.resolution]),
            around.eyes[n].numpy(),
            *(value.contiguous().numpy() for value in (around.sun.depth[n], around.sun.axes, around.sun.eye[n])),
            around.sun.step,
            *(
                v.contiguous().numpy()
                for v in (around.overhead.depth[n], around.overhead.axes, around.overhead.eye[n])
            ),
            around.overhead.step,
            around.atlas.texels.numpy(),
            around.atlas.starts.numpy(),
            light,
            torch.stack([ego[:3, 0], ego[:3, 2], lamp]).contiguous().numpy(),
            float(around.pixel_angle[n]),
            radiance[n].numpy(),
            labels[n].numpy(),
            instances[n].numpy(),
        )
    return radiance, labels, instances


def _packed(light: Lighting) -> np.ndarray:
    return np.array(
        [*light.sun_direction, *light.sun, *light.zenith, *light.horizon, *light.fog]
        + [light.clouds, light.fog_m, light.wet, light.lamps]
    )


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _clip(value, low, high):
    return low if value < low else (high if value > high else value)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _texel(texels, starts, layer, u, v, level):
    """`Atlas.sample`: mix, gain and the two shifts of hue."""
    step = int(_clip(np.rint(level), 0.0, LEVELS - 1.0))
    side = SIDE >> step
    x, y = (u - math.floor(u)) * side - 0.5, (v - math.floor(v)) * side - 0.5
    left, top = int(math.floor(x)), int(math.floor(y))
    fx, fy = x - left, y - top
    mask = side - 1
    start = starts[step] + layer * side * side
    a = start + (top & mask) * side
    b = start + ((top + 1) & mask) * side
    i, j = left & mask, (left + 1) & mask
    w0, w1, w2, w3 = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
    mix = w0 * texels[a + i, 0] + w1 * texels[a + j, 0] + w2 * texels[b + i, 0] + w3 * texels[b + j, 0]
    gain = w0 * texels[a + i, 1] + w1 * texels[a + j, 1] + w2 * texels[b + i, 1] + w3 * texels[b + j, 1]
    warm = w0 * texels[a + i, 2] + w1 * texels[a + j, 2] + w2 * texels[b + i, 2] + w3 * texels[b + j, 2]
    green = w0 * texels[a + i, 3] + w1 * texels[a + j, 3] + w2 * texels[b + i, 3] + w3 * texels[b + j, 3]
    return mix / 255, gain / 127.5, warm / 127.5 - 1, green / 127.5 - 1


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _at(depth, column, row):
    size = depth.shape[0]
    if column < 0 or row < 0 or column >= size or row >= size:
        return np.inf
    return depth[row, column]


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _place(px, py, pz, depth, axes, eye, step):
    x, y, z = px - eye[0], py - eye[1], pz - eye[2]
    middle = (depth.shape[0] - 1) / 2
    column = (axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z) / step + middle
    row = (axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z) / step + middle
    return column, row, axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _lit(px, py, pz, normal, depth, axes, eye, step):
    """`LightMaps.lit`."""
    x, y, away = _place(px, py, pz, depth, axes, eye, step)
    if not (x > -2 and y > -2 and x < depth.shape[0] + 1 and y < depth.shape[0] + 1):
        return 1.0
    i, j = int(math.floor(x)), int(math.floor(y))
    fx, fy = x - i, y - j
    along = axes[2, 0] * normal[0] + axes[2, 1] * normal[1] + axes[2, 2] * normal[2]
    along = min(along, -1e-3) if along < 0 else max(along, 1e-3)
    sx = -(axes[0, 0] * normal[0] + axes[0, 1] * normal[1] + axes[0, 2] * normal[2]) / along
    sy = -(axes[1, 0] * normal[0] + axes[1, 1] * normal[1] + axes[1, 2] * normal[2]) / along
    sx, sy = _clip(sx, -_STEEPEST, _STEEPEST) * step, _clip(sy, -_STEEPEST, _STEEPEST) * step
    limit = away - _LIT_BIAS - sx * fx - sy * fy
    free = 0.0
    free += (1 - fx) * (1 - fy) if _at(depth, i, j) >= limit else 0.0
    free += fx * (1 - fy) if _at(depth, i + 1, j) >= limit + sx else 0.0
    free += (1 - fx) * fy if _at(depth, i, j + 1) >= limit + sy else 0.0
    free += fx * fy if _at(depth, i + 1, j + 1) >= limit + sx + sy else 0.0
    return free


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _openness(px, py, pz, depth, axes, eye, step):
    """`LightMaps.openness`."""
    x, y, away = _place(px, py, pz, depth, axes, eye, step)
    reach, size = 3.0 / step + 1, depth.shape[0]
    if not (x > -reach and y > -reach and x < size + reach and y < size + reach):
        return 1.0
    hidden = 0.0
    for k in range(len(_PLACES)):
        radius = _PLACES[k, 0]
        column = int(np.rint(x + _PLACES[k, 1] * radius / step))
        row = int(np.rint(y + _PLACES[k, 2] * radius / step))
        rise = away - _at(depth, column, row)
        hidden += _PLACES[k, 3] * _clip((rise - 0.25) / (0.5 + radius), 0.0, 1.0)
    return 1 - hidden


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _sky(dx, dy, dz, light, texels, starts, detailed, out):
    """`lighting.sky_color`."""
    up = max(dz, 0.0)
    share = 1 - (1 - up) ** 3.5
    cosine = max(dx * light[0] + dy * light[1] + dz * light[2], 0.0)
    clouds, fog_m = light[_CLOUD], light[_FOG_M]
    glow = (0.10 * cosine**6 + 0.25 * cosine**60) * (1 - 0.8 * clouds)
    fine = cover = disc = 0.0
    if detailed:
        x, y = dx / (up + 0.12), dy / (up + 0.12)
        coarse = _texel(texels, starts, _CLOUDS, x * 0.11, y * 0.11, 0.0)[0]
        fine = _texel(texels, starts, _CLOUDS, x * 0.37 + 0.3, y * 0.37, 1.0)[0]
        cover = _clip(0.65 * coarse + 0.35 * fine - 0.75 + 0.75 * clouds, 0.0, 0.5) * 2 * _clip(up * 6, 0.0, 1.0)
        disc = _clip((cosine - 0.9990) * 2500, 0.0, 1.0) * (1 - clouds)
    haze = math.exp(-up * (0.35 * fog_m / 60 + 0.4)) * 0.9 if fog_m < 500 else (1 - up) ** 12 * 0.3
    for c in range(3):
        sun, horizon = light[_SUN + c], light[_HORIZON + c]
        color = horizon + share * (light[_ZENITH + c] - horizon) + glow * sun
        if detailed:
            bright = horizon * (0.9 + 0.35 * fine) + 0.12 * sun * (1 - clouds)
            color += 0.85 * cover * (bright - color) + disc * 6 * sun
        out[c] = color + haze * (light[_FOG + c] - color)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _solid_surface(r, half, px, py, pz, normal):
    """`surface_of_solids`: u and v in metres; the normal is written."""
    x = r[0] * px + r[1] * py + r[2] * pz + r[9]
    y = r[3] * px + r[4] * py + r[5] * pz + r[10]
    z = r[6] * px + r[7] * py + r[8] * pz + r[11]
    ax, ay, az = abs(x), abs(y), abs(z)
    axis = 0 if ax >= ay and ax >= az else (1 if ay >= az else 2)
    u = (y + 1) * half[1] if axis == 0 else (x + 1) * half[0]
    v = (y + 1) * half[1] if axis == 2 else (z + 1) * half[2]
    kind = int(r[KIND])
    nx, ny, nz = x, y, z
    if kind == 0:
        nx = np.sign(x) if axis == 0 else 0.0
        ny = np.sign(y) if axis == 1 else 0.0
        nz = np.sign(z) if axis == 2 else 0.0
    elif kind == 2:
        slope = r[TAPER] / 2
        radius = 1 - slope - slope * z
        if abs(1 - az) < abs(math.hypot(x, y) - radius):
            nx, ny, nz = 0.0, 0.0, np.sign(z)
        else:
            nz = slope * radius
        if az < 0.9999:
            u, v = math.atan2(y, x) * half[0], (z + 1) * half[2]
    a = r[0] * nx + r[3] * ny + r[6] * nz
    b = r[1] * nx + r[4] * ny + r[7] * nz
    c = r[2] * nx + r[5] * ny + r[8] * nz
    length = max(math.sqrt(a * a + b * b + c * c), 1e-12)
    normal[0], normal[1], normal[2] = a / length, b / length, c / length
    return u, v


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _rows(
    first, last, field, distance, row, rows, order, half, materials, solid_labels, solid_instances, table,
    ground_labels, ground_materials, ramp, waves, raster, eye, sun, sun_axes, sun_eye, sun_step,
    over, over_axes, over_eye, over_step, texels, starts, light, ego, pixel_angle, radiance, labels, instances,
):  # fmt: skip
    normal, sky, color, out = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
    wet, lamps = light[_WET], light[_LAMPS]
    high = max(light[2], 0.0)
    for i in range(first, last):
        for j in range(distance.shape[1]):
            dx, dy, dz = float(field[i, j, 0]), float(field[i, j, 1]), float(field[i, j, 2])
            if dx != dx:
                continue
            what, away = row[i, j], float(distance[i, j])
            if what == -1:
                _sky(dx, dy, dz, light, texels, starts, True, out)
                for c in range(3):
                    radiance[i, j, c] = out[c]
                continue
            px, py, pz = dx * away, dy * away, dz * away
            on_ground = what == GROUND
            if on_ground:
                u, v = px + eye[0], py + eye[1]
                sx, sy = ramp[0], ramp[1]
                for k in range(len(waves)):
                    swing = waves[k, 0] * math.cos(waves[k, 1] * u + waves[k, 2] * v + waves[k, 3])
                    sx += swing * waves[k, 1]
                    sy += swing * waves[k, 2]
                length = math.sqrt(sx * sx + sy * sy + 1)
                normal[0], normal[1], normal[2] = -sx / length, -sy / length, 1 / length
                ci = int(_clip(math.floor((u - raster[0]) / raster[2]), 0.0, ground_labels.shape[0] - 1.0))
                cj = int(_clip(math.floor((v - raster[1]) / raster[2]), 0.0, ground_labels.shape[1] - 1.0))
                material = int(ground_materials[ci, cj])
                labels[i, j] = ground_labels[ci, cj]
            else:
                solid = order[what]
                u, v = _solid_surface(rows[what], half[solid], px, py, pz, normal)
                material = int(materials[solid])
                labels[i, j] = solid_labels[solid]
                instances[i, j] = solid_instances[solid]
            m = table[material]
            facing = -(normal[0] * dx + normal[1] * dy + normal[2] * dz)
            if facing < 0:
                facing = -facing
                normal[0], normal[1], normal[2] = -normal[0], -normal[1], -normal[2]
            footprint = away * pixel_angle / math.sqrt(max(facing, 0.08))
            su, sv = u * m[SCALE] + m[OFFSET], v * m[SCALE] + m[OFFSET + 1]
            level = math.log2(max(footprint * m[SCALE] * SIDE, 1e-6))
            layer = int(m[LAYER])
            mix, gain, warm, green = _texel(texels, starts, layer, su, sv, level)
            for c in range(3):
                color[c] = (m[BASE + c] + mix * (m[SECOND + c] - m[BASE + c])) * gain
            color[0] *= 1 + warm
            color[1] *= 1 + green
            color[2] *= 1 - 0.5 * (warm + green)
            rough = float(m[ROUGHNESS])
            pane = mix if layer // VARIANTS == _WINDOWS else 0.0
            rough -= max(rough - 0.12, 0.0) * pane
            if wet > 0 and on_ground:
                water = _texel(texels, starts, PUDDLES, u / 9, v / 9, max(level - 2, 0.0))[0]
                water = wet * (0.45 + 0.55 * _clip((water - 0.35) * 4, 0.0, 1.0))
                for c in range(3):
                    color[c] *= 1 - 0.45 * water
                rough *= 1 - 0.85 * water
            elif wet > 0:
                rough *= 0.8
            cosine = max(normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2], 0.0)
            lift = 0.06 + 0.0015 * away
            lx, ly, lz = px + normal[0] * lift, py + normal[1] * lift, pz + normal[2] * lift
            lit = _lit(lx, ly, lz, normal, sun, sun_axes, sun_eye, sun_step) * cosine if cosine > 0 else 0.0
            open_ = _openness(lx, ly, lz, over, over_axes, over_eye, over_step)
            up = 0.5 + 0.5 * normal[2]
            mx, my, mz = dx + 2 * facing * normal[0], dy + 2 * facing * normal[1], dz + 2 * facing * normal[2]
            gloss = max(1 - rough, 0.0)
            strength = _clip(gloss**2 * (0.05 + 0.95 * (1 - facing) ** 5) + 0.06 * gloss * pane, 0.0, 0.9)
            _sky(mx, my, mz, light, texels, starts, False, sky)
            below = _clip(0.5 - 4 * mz, 0.0, 1.0)
            shine = max(mx * light[0] + my * light[1] + mz * light[2], 0.0) ** 60 * gloss**2 * 1.2 * min(lit, 0.5)
            if lit <= 0.02:
                shine = 0.0
            lamp = street = glow = 0.0
            if lamps > 0:
                wx, wy, wz = px - ego[2, 0], py - ego[2, 1], pz - ego[2, 2]
                far = max(math.sqrt(wx * wx + wy * wy + wz * wz), 0.5)
                wx, wy, wz = wx / far, wy / far, wz / far
                angle = wx * ego[0, 0] + wy * ego[0, 1] + wz * ego[0, 2]
                rise = wx * ego[1, 0] + wy * ego[1, 1] + wz * ego[1, 2]
                core = _clip((angle - 0.80) / 0.2, 0.0, 1.0) ** 2 + 0.25 * _clip((angle - 0.3) / 0.5, 0.0, 1.0)
                core *= 1 - _clip((rise - 0.02) / 0.06, 0.0, 0.92)
                onto = _clip(-(normal[0] * wx + normal[1] * wy + normal[2] * wz), 0.0, 1.0)
                lamp = 14 * core * (0.15 + onto) / (8 + far**1.7)
                street = 0.055 * math.exp(-max(pz + 1.0, 0.0) / 6) * (0.4 + 0.6 * max(normal[2], 0.0))
                number = int(math.floor(su * 4)) * 73856093 + int(math.floor(sv * 4)) * 19349663 + 811
                glow = pane * 0.5 * gain if number % 1009 > 720 else 0.0
            left = math.exp(-away / light[_FOG_M])
            for c in range(3):
                heaven = light[_HORIZON + c] + 0.55 * (light[_ZENITH + c] - light[_HORIZON + c])
                bounce = 0.22 * (heaven + light[_SUN + c] * high * 0.5)
                ambient = (bounce + up * (heaven - bounce)) * (0.25 + 0.75 * open_)
                value = color[c] * (lit * light[_SUN + c] * 0.42 + ambient * 0.85)
                mirror = (sky[c] + below * (bounce * 0.6 - sky[c])) * (0.35 + 0.65 * open_)
                value += strength * (mirror - value)
                value += shine * light[_SUN + c] + color[c] * m[EMISSION] * (0.25 + 3 * lamps)
                if lamps > 0:
                    beam = 1.0 if c == 0 else (0.96 if c == 1 else 0.88)
                    orange = 1.0 if c == 0 else (0.80 if c == 1 else 0.55)
                    home = 1.0 if c == 0 else (0.72 if c == 1 else 0.38)
                    value += lamps * (color[c] * (lamp * beam + street * orange) + glow * home)
                radiance[i, j, c] = light[_FOG + c] + left * (value - light[_FOG + c])
