"""Volumes as cameras see them: depth and classes of every cell of a raster over each image.

Legend: V views, h w cells, C classes, X Y Z voxels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.rendering.pieces import Field
from syntheocc.occupancy.rendering.volume import RenderSettings, render_rays

__all__ = ["CameraImages", "render_cameras"]


class CameraImages(NamedTuple):
    """What the cameras of a rig see.

    classes: int64 [V, h, w] most likely class of what is seen, whether it stops the ray or not. depth: [V, h, w]
    metres along the ray (Euclidean). weight_sum: [V, h, w] share of the ray that was stopped, 0 where the lens sees
    nothing.
    """

    classes: Tensor
    depth: Tensor
    weight_sum: Tensor

    def labels(self, free: int, least: float = 0.5) -> Tensor:
        """uint8 [V, h, w]: the classes, `free` where less than a share `least` of the ray was stopped."""
        return torch.where(self.weight_sum < least, free, self.classes).to(torch.uint8)


@torch.no_grad()
def render_cameras(
    density: Tensor,  # [X, Y, Z]
    semantics: Tensor,  # [X, Y, Z, C]
    rig: CameraRig,
    h: int,
    w: int,
    spec: GridSpec,
    settings: RenderSettings | None = None,
) -> CameraImages:
    """Renders one sample's volume into all cameras.

    Args:
        density: activated, of a volume that lies in ego and is not mirrored.
        semantics: logits.
        rig: the cameras, of any model; `cam2ego` takes them to the volume's frame.
        h: rows of the raster laid over each image.
        w: columns.
        spec: where the voxels lie.
        settings: of the renderer. Depth is better "normalised" here than the default "sum", in which a ray that is
            half stopped seems half as long; None does so.

    Raises:
        ValueError: a grid that does not lie in ego, or shapes that do not fit.
    """
    if spec.frame != "ego":
        raise ValueError(f"cameras stand in ego, the volume lies in the {spec.frame!r} frame; render it with rays")
    settings = settings or RenderSettings(depth="normalised")
    rays = rig.cell_rays(h, w)[:, 0].flatten(1, 2)  # [V, h * w, 3]
    poses = torch.stack([camera.cam2ego for camera in rig.values()])
    directions = torch.nn.functional.normalize(rays @ poses[:, :3, :3].transpose(1, 2), dim=-1)
    origins = poses[:, None, :3, 3].expand_as(directions)
    seen = torch.isfinite(directions).all(-1).flatten()
    start, way = (part.reshape(-1, 3)[seen].to(density.device, torch.float32) for part in (origins, directions))
    index = torch.zeros(len(way), dtype=torch.int64, device=density.device)
    found = render_rays([Field(density, semantics)], index, start, way, spec, settings)
    views = (len(poses), h, w)
    pictures = []
    for values in (found.semantics.argmax(1), found.depth, found.weight_sum):
        whole = values.new_zeros(len(seen))
        whole[seen.to(values.device)] = values
        pictures.append(whole.view(views))
    return CameraImages(*pictures)
