"""The second view that NYUv2 has not: what a camera beside the real one would see, by the sensor's depth.

A point that the virtual camera, ``baseline`` to the right, shows at column x is in the real picture at x + f b / d.
Its features are those found there; taking d at x of the *real* picture makes this an approximation near edges of
depth, as published. In a mirrored picture the shift goes the other way. Source: specs/occdepth.md 1.7.

Legend: B samples, C channels, H W pictures, h w feature map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["NYU_BASELINE", "beside", "virtual_features"]

# Metres between the real and the virtual camera.
NYU_BASELINE = 0.1


def beside(world2img: Tensor, intrinsics: Tensor, baseline: float = NYU_BASELINE) -> Tensor:
    """The projection of a camera ``baseline`` metres to the right.

    Args:
        world2img: float64 [..., 4, 4] of the real camera, before any flip.
        intrinsics: float64 [..., 3, 3].
        baseline: metres.
    """
    moved = world2img.clone()
    # K [I | (-b, 0, 0)]: the homogeneous column, whatever the depth.
    moved[..., :3, 3] -= baseline * intrinsics[..., :, 0]
    return moved


def virtual_features(
    features: Tensor,  # [B, C, h, w]
    depth: Tensor,  # [B, H, W]
    focal_baseline: Tensor,  # [B]
    flipped: Tensor,  # bool [B]
    legacy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Features of the virtual view at one scale.

    Args:
        features: of the real view, any scale: s = W / w.
        depth: metres of the real (as fed, maybe mirrored) picture; 0 none.
        focal_baseline: f * b of each sample, pixels of the picture times metres.
        flipped: mirrored samples (`StereoBatch.flipped`).
        legacy: as the released weights saw it: everything half a cell to the upper left, the first sample's depth and
            focal length for all, the shift of an unmirrored picture always, holes smeared into their surroundings.

    Returns:
        features [B, C, h, w], and bool [B, h, w]: cells whose depth is known; the others are not shifted.
    """
    height, width = features.shape[-2:]
    scale = depth.shape[-1] / width
    if legacy:
        metres = _resized(depth[:1, None].float(), (height, width))[:, 0]
        shift = torch.nan_to_num(focal_baseline[:1, None, None] / scale / metres, nan=0.0, posinf=0.0)
        shift = shift.expand(len(features), -1, -1)
        seen = torch.ones(len(features), height, width, dtype=torch.bool, device=depth.device)
        half = 0.0
    else:
        # Disparity is what is linear over a slanted surface; holes have no weight.
        valid = depth > 0
        inverse = torch.where(valid, 1.0 / torch.where(valid, depth, 1.0), 0.0).float()
        both = _resized(torch.stack([inverse, valid.float()], 1), (height, width))
        seen = both[:, 1] > 0
        disparity = both[:, 0] / both[:, 1].clamp_min(1e-12) * focal_baseline[:, None, None] / scale
        sign = torch.where(flipped, -1.0, 1.0)[:, None, None]
        shift = torch.where(seen, sign * disparity, 0.0)
        half = 0.5
    columns = torch.arange(width, device=depth.device) + half + shift
    rows = (torch.arange(height, device=depth.device) + half)[:, None].expand_as(columns[0])
    grid = torch.stack([columns / width, (rows / height).expand_as(columns)], -1).float() * 2 - 1
    # In float32: half precision has fewer steps than the map has columns.
    warped = F.grid_sample(features.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return warped.to(features.dtype), seen


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values, size, mode="bilinear", align_corners=False)
