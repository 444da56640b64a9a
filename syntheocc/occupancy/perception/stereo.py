"""Depth from motion: how well the features of an earlier image fit at each depth of the current one (BEVStereo).

For every cell of the stride-4 feature map and every depth bin the point is projected into the earlier image, and the
features found there are compared: small cost, likely depth (specs/occflownet_splattingocc.md 2.2). No gradient flows.

Legend: N images, C channels, D depth bins, h w feature map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.perception.view_transform import DepthBins, feature_pixels

__all__ = ["EMPTY_COST", "cost_volume", "current2previous", "warp_pixels"]

# What a depth costs whose point the earlier image does not show.
EMPTY_COST = 5.0
# Warped values held at a time; 2^26 of them are 268 MB in float32.
_CHUNK_VALUES = 1 << 26


def current2previous(current: Tensor, previous: Tensor) -> Tensor:
    """From (u*z, v*z, z, 1) of the current image to those of an earlier one.

    Args:
        current: ego2img [..., 4, 4] of the current images.
        previous: ego2img [..., 4, 4] of the earlier ones, from the same (the current key) frame of reference.

    Returns:
        float32 [..., 4, 4]; zeros where either camera is missing.
    """
    exists = (current != 0).flatten(-2).any(-1) & (previous != 0).flatten(-2).any(-1)
    eye = torch.eye(4, dtype=torch.float64, device=current.device)
    inverse = torch.linalg.inv(torch.where(exists[..., None, None], current.double(), eye))
    return torch.where(exists[..., None, None], previous.double() @ inverse, 0.0).float()


def warp_pixels(matrix: Tensor, pixels: Tensor, depths: Tensor) -> Tensor:
    """Where pixels at depths appear in the other image.

    Args:
        matrix: [N, 4, 4] of `current2previous`.
        pixels: [h, w, 2] of the current input.
        depths: [D] metres.

    Returns:
        [N, D, h, w, 2] input pixels of the other image; NaN behind it or without it.
    """
    # Products written out: autocast would turn a matrix product's pixels into bfloat16.
    columns = matrix[:, None, None, :3, :3].unbind(-1)
    turned = pixels[..., :1] * columns[0] + pixels[..., 1:] * columns[1] + columns[2]  # [N, h, w, 3]
    places = depths[:, None, None, None] * turned[:, None] + matrix[:, None, None, None, :3, 3]
    z = places[..., 2:]
    return torch.where(z > 1e-3, places[..., :2] / z.clamp_min(1e-3), torch.nan)


@torch.no_grad()
def cost_volume(
    current: Tensor,  # [N, C, h, w]
    previous: Tensor,  # [N, C, h, w]
    matrix: Tensor,  # [N, 4, 4]
    bins: DepthBins,
    image_size: tuple[int, int],
    legacy: bool = False,
) -> Tensor:
    """The matching cost of each depth bin: sum over channels of |current - warped previous|.

    Args:
        current: features of the current images.
        previous: features of the earlier images of the same cameras.
        matrix: of `current2previous`.
        bins: the depths.
        image_size: of the network's input, H and W.
        legacy: pixels from the first to the last instead of cell centres, and emptiness told from a value of zero in
            channel C - 4 instead of from where the point lies, as published.

    Returns:
        float32 [N, D, h, w] without a gradient; `EMPTY_COST` is added where the earlier image shows nothing.
    """
    number, channels, height, width = current.shape
    pixels = feature_pixels((height, width), image_size, current.device, legacy)
    places = warp_pixels(matrix, pixels, bins.depths(current.device))
    scale = constant([image_size[1], image_size[0]], places)
    # grid_sample's -1 .. 1 spans the corners of the outer pixels, or with align_corners (published) their centres.
    grid = places / (scale - 1) * 2 - 1 if legacy else (places + 0.5) / scale * 2 - 1
    inside = (grid.abs() <= 1).all(-1)  # False for NaN
    grid = torch.where(torch.isfinite(grid), grid, 2.0).clamp(-2, 2)
    current, previous = current.float(), previous.float()
    cost = current.new_empty(number, bins.number, height, width)
    step = max(1, _CHUNK_VALUES // max(1, number * channels * height * width))
    for start in range(0, bins.number, step):
        part = slice(start, start + step)
        flat = grid[:, part].flatten(1, 2)  # [N, k * h, w, 2]
        warped = F.grid_sample(previous, flat, mode="bilinear", padding_mode="zeros", align_corners=legacy)
        warped = warped.unflatten(2, (-1, height))  # [N, C, k, h, w]
        empty = warped[:, max(0, channels - 4)] == 0 if legacy else ~inside[:, part]
        cost[:, part] = (current[:, :, None] - warped).abs().sum(1) + EMPTY_COST * empty
    return cost
