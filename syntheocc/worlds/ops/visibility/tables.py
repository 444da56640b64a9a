"""What the visibility operator reads: solids, ground and tiles packed relative to each image's eye."""

import torch
from torch import Tensor

from syntheocc.worlds.ground import Ground
from syntheocc.worlds.ops.visibility import COARSE, TILE, SolidTable


def solid_table(
    kind: Tensor,  # [P]
    taper: Tensor,  # [P]
    shape2world: Tensor,  # [N, P, 4, 4]
    world2shape: Tensor,  # [N, P, 4, 4]
    eyes: Tensor,  # [N, 3]
    direction: Tensor | None = None,  # [3]
) -> SolidTable:
    """Packs solids for N images; ``direction`` is that of parallel rays.

    All arguments are float64 but ``kind``; subtracting the eye is what needs the precision.
    """
    linear = world2shape[..., :3, :3]
    offset = (linear @ eyes[:, None, :, None])[..., 0] + world2shape[..., :3, 3]
    axes = shape2world[..., :3, :3]
    center = shape2world[..., :3, 3] - eyes[:, None]
    reach = axes.square().sum((-1, -2)).sqrt()
    near = (center.norm(dim=-1) if direction is None else center @ direction) - reach
    images, solids = near.shape
    near, order = near.sort(dim=1)
    extra = torch.stack([taper.expand(images, -1), near, kind.to(near).expand(images, -1), torch.zeros_like(near)], -1)
    # `near` is sorted already, the rest is not
    extra = torch.cat([_take(extra[..., :1], order), near[..., None], _take(extra[..., 2:], order)], -1)
    rows = torch.cat([_take(torch.cat([linear.flatten(2), offset], -1).float(), order), extra.float()], -1)
    bounds = _take(torch.cat([center, axes.flatten(2)], -1).float(), order)
    return SolidTable(rows.contiguous(), bounds.contiguous(), order)


def _take(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))


def ground_table(ground: Ground, eyes: Tensor) -> Tensor:
    """The ground relative to each eye [N, 3], float32 [N, 4 + 4 K] as `visible` takes it."""
    ramp, waves = ground.ramp.to(eyes), ground.waves.to(eyes)
    base = ground.base + eyes[:, :2] @ ramp - eyes[:, 2]
    phase = torch.remainder(eyes[:, :2] @ waves[:, 1:3].T + waves[:, 3], 2 * torch.pi)
    images = len(eyes)
    head = torch.cat([ramp, ground.steepest().to(eyes)[None]]).expand(images, 3)
    tail = torch.cat([waves[:, :3].expand(images, -1, -1), phase[..., None]], -1).flatten(1)
    return torch.cat([base[:, None], head, tail], 1).float()


def perspective_planes(corners: Tensor, rays: Tensor, tile: int) -> Tensor:
    """Sides of the tiles of one camera.

    Args:
        corners: float64 [Th + 1, Tw + 1, 3], rays through the tiles' corners.
        rays: float64 [H, W, 3], the pixels' unit rays; NaN where there is none.
        tile: edge of a tile in pixels.

    Returns:
        float64 [Th * Tw, 5, 4] in the camera's axes, as `RayTiles.planes`. A tile with a corner that has no ray keeps
        every solid.
    """
    height, width = rays.shape[:2]
    down, across = corners.shape[0] - 1, corners.shape[1] - 1
    a, b, c, d = corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]
    middle = a + b + c + d
    normals = torch.stack([torch.linalg.cross(p, q, dim=-1) for p, q in ((a, b), (b, c), (c, d), (d, a))], -2)
    normals = normals * torch.einsum("hwkc,hwc->hwk", normals, middle).sign()[..., None]
    normals = torch.nn.functional.normalize(normals, dim=-1)
    # By how much does a lens bend the tile's pixels over its straight sides?
    padded = rays.new_full((down * tile, across * tile, 3), torch.nan)
    padded[:height, :width] = rays
    inside = padded.reshape(down, tile, across, tile, 3).permute(0, 2, 1, 3, 4).reshape(down, across, -1, 3)
    over = -(inside @ normals.transpose(-1, -2))
    slack = over.nan_to_num(nan=0.0).flatten(2).amax(-1).clamp_min(0) + 2e-6
    open_ = ~torch.isfinite(normals).flatten(2).all(-1)
    planes = normals.new_zeros(down, across, 5, 4)
    planes[..., :4, :3] = torch.where(open_[..., None, None], 0.0, normals)
    planes[..., 4, 0] = torch.where(open_, 1e9, slack)
    return planes.reshape(-1, 5, 4)


def parallel_planes(size: int, step: float, right: Tensor, down: Tensor, tile: int) -> Tensor:
    """Sides of the tiles of a square map whose pixel (i, j) lies at ((j - (size - 1) / 2) right + ... down) * step.

    Returns float64 [T, 5, 4] as `RayTiles.planes`, in world axes about the map's eye.
    """
    tiles = -(-size // tile)
    edge = (torch.arange(tiles + 1, dtype=torch.float64, device=right.device) * tile - 0.5 - (size - 1) / 2) * step
    planes = right.new_zeros(tiles, tiles, 5, 4)
    for k, (axis, sign) in enumerate(((right, 1), (right, -1), (down, 1), (down, -1))):
        planes[..., k, :3] = sign * axis
        low = edge[:-1] if sign > 0 else -edge[1:]
        planes[..., k, 3] = -low[None, :] if k < 2 else -low[:, None]
    planes[..., 4, 0] = 1e-6
    return planes.reshape(-1, 5, 4)


def tile_counts(height: int, width: int) -> tuple[int, int, int, int]:
    """Rows and columns of tiles and of coarse tiles."""
    coarse = TILE * COARSE
    return -(-height // TILE), -(-width // TILE), -(-height // coarse), -(-width // coarse)
