"""A second view that no camera took: the first one's features, moved by the disparity of a depth picture (NYUv2).

A point that the second camera, ``baseline`` to the right, shows at column x is in the first picture at
x + fx * baseline / depth; its features are those found there. Taking the depth at x of the *first* picture makes it an
approximation near edges of depth, as published.

Published, the features also land half a cell off, every sample is moved by the first one's depth, holes of the depth
picture smear into their surroundings, and a mirrored picture moves in the wrong direction (specs/occdepth.md 1.7).
Here a feature is a cell's centre, depths are the sample's own, and the direction is that of the cameras.

Legend: B samples, C channels, H W picture, h w feature map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["NYU_BASELINE", "beside", "second_view"]

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


def second_view(
    features: Tensor,  # [B, C, h, w]
    depth: Tensor,  # [B, H, W]
    shift: Tensor,  # [B]
    stride: int,
    legacy: bool = False,
) -> Tensor:
    """The features as the second camera would see them: [B, C, h, w].

    Args:
        features: of the first view.
        depth: metres along its optical axis; cells without one (all 0) stay where they are.
        shift: pixels that a point at 1 m depth moves by from the second view to the first
            (`StereoCameras.ray_shift`); ``fx * baseline``, or minus that where the picture is mirrored.
        stride: of the map, pixels.
        legacy: as the released weights saw it, see above.
    """
    height, width = features.shape[-2:]
    shift = shift.float()[:, None, None] / stride  # cells at 1 m
    if legacy:
        metres = F.interpolate(depth[:1, None].float(), (height, width), mode="bilinear", align_corners=False)[:, 0]
        moved = torch.nan_to_num(shift[:1].abs() / metres, nan=0.0, posinf=0.0).expand(len(features), -1, -1)
    else:
        # Over a slanted surface it is the inverse depth that is linear; pixels without a depth have no weight.
        valid = depth > 0
        inverse = torch.where(valid, 1.0 / torch.where(valid, depth, 1.0), 0.0).float()
        mean, weight = F.interpolate(torch.stack([inverse, valid.float()], 1), (height, width), mode="area").unbind(1)
        moved = torch.where(weight > 0, shift * mean / weight.clamp_min(1e-6), 0.0)
    half = 0.0 if legacy else 0.5
    x = torch.arange(width, device=features.device, dtype=torch.float32) + half + moved
    y = torch.arange(height, device=features.device, dtype=torch.float32)[:, None].expand_as(moved) + half
    grid = torch.stack([x * (2 / width) - 1, y * (2 / height) - 1], -1)
    # In float32: half precision has fewer steps than the map has columns.
    warped = F.grid_sample(features.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return warped.to(features.dtype)
