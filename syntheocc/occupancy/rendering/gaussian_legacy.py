"""SplattingOcc as it was published: its Gaussians and its cameras, so that tests can show what was wrong with them.

Nothing here trains a model of ours. The published forward pass (specs/occflownet_splattingocc.md 4.1) is
`rendering.gaussian` with the `LEGACY` settings, without `grid_transforms`, seen by `legacy_views`:

* splats of 0.1 m (1.8 % opaque at a voxel's corner, V15), opacities up to 0.1 masked away, raw logits composited;
* a mirrored volume seen by cameras that are not (V14);
* cameras without a principal point (V13), whose smaller images are the middle of the picture, not all of it;
* every voxel occupied, because no sigmoid is below `LEGACY_THRESHOLD`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from syntheocc.occupancy.rendering.gaussian import SplatSettings
from syntheocc.occupancy.rendering.splat_views import SplatViews
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["LEGACY", "LEGACY_THRESHOLD", "legacy_label_map", "legacy_views"]

# The rasteriser culls below z = 0.2 m and knows no far plane: 100 m is beyond every voxel of the grid.
LEGACY = SplatSettings(
    scale=0.1, feature="logit", response="ewa", near=0.2, far=100.0, depth="sum", hard_mask=0.1
)  # fmt: skip
LEGACY_THRESHOLD = 0.0


def legacy_views(
    cam2ego: Tensor,  # [V, 4, 4]
    intrinsics: Tensor,  # [V, 3, 3]
    render_size: tuple[int, int],
    samples: Tensor | None = None,
    frames: Tensor | None = None,
) -> SplatViews:
    """The published cameras: the field of view of `render_size` (height, width) at the full image's focal length."""
    height, width = render_size
    matrix = torch.zeros_like(intrinsics)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = intrinsics[:, 0, 0], intrinsics[:, 1, 1], 1
    matrix[:, 0, 2], matrix[:, 1, 2] = width / 2, height / 2
    none = torch.zeros(len(cam2ego), dtype=torch.int64, device=cam2ego.device)
    return SplatViews(
        invert_rigid(cam2ego), matrix, height, width,
        none if samples is None else samples, none if frames is None else frames,
    )  # fmt: skip


def legacy_label_map(
    labels: Tensor,  # [H, W]
    render_size: tuple[int, int],
    swapped: bool = False,
) -> Tensor:
    """A label image resized to the painted one by its nearest pixels; `swapped` as the older heads asked for it."""
    height, width = render_size
    size = (width, height) if swapped else (height, width)
    return F.interpolate(labels[None, None].double(), size=size, mode="nearest")[0, 0].to(labels.dtype)
