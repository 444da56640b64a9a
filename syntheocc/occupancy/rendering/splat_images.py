"""Gaussians painted into images as rasterisers do it: by brute force for tests, and by gsplat.

EWA splatting (Zwicker et al. 2001) with the constants of gsplat and 3DGS (specs/occflownet_splattingocc.md 4.2):
the covariance goes through the projection's Jacobian at the mean, 0.3 pixels^2 are added, alpha is capped at 0.99 and
dropped below 1/255, what is nearer in z comes first. Pixel i's centre is i + 0.5.

Legend: N Gaussians, P pixels, C features, R rays, H W pixels of an image.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.splat_rays.responses import EPS2D, MAX_ALPHA, MIN_ALPHA
from syntheocc.occupancy.rendering.compositing import RenderedRays
from syntheocc.occupancy.rendering.gaussian import Gaussians, SplatSettings
from syntheocc.occupancy.rendering.gaussian_motion import GaussianMoves
from syntheocc.occupancy.rendering.splat_views import SplatRays

__all__ = ["project_gaussians", "splat_nearest_pixels", "splat_pixels"]


def project_gaussians(
    means: Tensor,  # [N, 3]
    scales: Tensor,  # [N]
    ego2cam: Tensor,  # [4, 4]
    intrinsics: Tensor,  # [3, 3]
    height: int,
    width: int,
    eps2d: float = EPS2D,
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [N, 2] in pixels, covariances [N, 2, 2] in pixels^2 and depths z [N] in metres.

    ``J R (s^2 I) R^T J^T + eps2d I`` with the Jacobian at the mean, whose slopes x / z and y / z are clamped 0.3 half
    widths and heights beyond the image (V10, V12, V13).
    """
    rotation = ego2cam[:3, :3]
    in_camera = means @ rotation.T + ego2cam[:3, 3]
    x, y, z = in_camera.unbind(-1)
    depth = torch.where(z > 0, z, 1.0)
    focal = intrinsics[[0, 1], [0, 1]]
    centre = intrinsics[:2, 2]
    image = constant([width, height], means)
    beyond = 0.3 * 0.5 * image / focal
    low, high = -centre / focal - beyond, (image - centre) / focal + beyond
    u = torch.minimum(torch.maximum(x / depth, low[0]), high[0])
    v = torch.minimum(torch.maximum(y / depth, low[1]), high[1])
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([focal[0] / depth, zero, -focal[0] * u / depth], -1),
            torch.stack([zero, focal[1] / depth, -focal[1] * v / depth], -1),
        ],
        1,
    )
    world = (scales * scales)[:, None, None] * torch.eye(3, dtype=means.dtype, device=means.device)
    covariance = jacobian @ (rotation @ world @ rotation.T) @ jacobian.transpose(1, 2)
    covariance = covariance + eps2d * torch.eye(2, dtype=means.dtype, device=means.device)
    return in_camera[:, :2] / depth[:, None] * focal + centre, covariance, z


def splat_pixels(
    means: Tensor,  # [N, 3]
    scales: Tensor,  # [N]
    opacities: Tensor,  # [N]
    features: Tensor,  # [N, C]
    ego2cam: Tensor,  # [4, 4]
    intrinsics: Tensor,  # [3, 3]
    height: int,
    width: int,
    pixels: Tensor,  # [P, 2]
    near: float = 0.1,
    far: float = 60.0,
    eps2d: float = EPS2D,
    front_depths: Tensor | None = None,  # [P]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Brute force: every Gaussian at every pixel.

    Args:
        means: metres.
        scales: metres.
        opacities: in 0..1.
        features: what is composited.
        ego2cam: the camera.
        intrinsics: rasterisers' convention.
        height: of the image; for the clamping of the Jacobian only.
        width: likewise.
        pixels: places in the image, e.g. i + 0.5.
        near: metres of z; what is nearer is not seen.
        far: metres of z.
        eps2d: pixels^2.
        front_depths: metres of z; mass nearer than that is counted.

    Returns:
        features [P, C], weight sum [P], z times weight [P] and mass in front [P].
    """
    mean2d, covariance, z = project_gaussians(means, scales, ego2cam, intrinsics, height, width, eps2d)
    conic = torch.linalg.inv(covariance)
    delta = pixels[:, None] - mean2d  # [P, N, 2]
    power = 0.5 * torch.einsum("pni,nij,pnj->pn", delta, conic, delta)
    alpha = opacities * torch.exp(-power)
    alpha = torch.where((alpha >= MIN_ALPHA) & (z >= near) & (z <= far), alpha.clamp(max=MAX_ALPHA), 0.0)
    order = z.argsort(stable=True)
    alpha, z, features = alpha[:, order], z[order], features[order]
    left = (1 - alpha).cumprod(1)
    weight = alpha * torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], 1)
    front = torch.zeros_like(weight) if front_depths is None else weight * (z < front_depths[:, None])
    return weight @ features, weight.sum(1), weight @ z, front.sum(1)


def splat_nearest_pixels(
    gaussians: Gaussians,
    rays: SplatRays,
    settings: SplatSettings,
    moves: GaussianMoves | None,
    front_limits: Tensor | None,
    backend: str | None,
) -> RenderedRays:
    """The pixel that each ray falls into; see `rendering.gaussian.splat`. The weighted sum of distances, undivided."""
    views, dtype = rays.views, gaussians.opacity.dtype
    assert views is not None and rays.view is not None and rays.pixels is not None
    centers = rays.pixels.to(dtype).floor() + 0.5
    matrix = views.intrinsics.to(dtype)[rays.view]
    slopes = (centers - matrix[:, :2, 2]) / matrix[:, [0, 1], [0, 1]]
    # Metres of the pixel's ray in a metre of z.
    lengths = (1 + slopes.square().sum(1)).sqrt()
    size = gaussians.features.shape[-1]
    parts, rows = [], []
    for view in rays.view.unique().tolist():
        row = (rays.view == view).nonzero()[:, 0]
        flat = _flat(gaussians, int(views.samples[view]), int(views.frames[view]), moves)
        camera = views.ego2cam[view].to(dtype), views.intrinsics[view].to(dtype), views.height, views.width
        if backend == "gsplat":
            parts.append(_by_gsplat(flat, camera, centers[row], settings))
        else:
            limits = None if front_limits is None else front_limits[row].to(dtype) / lengths[row]
            parts.append(splat_pixels(*flat, *camera, centers[row], settings.near, settings.far, front_depths=limits))
        rows.append(row)
    if not rows:
        none = gaussians.opacity.flatten()[:0]
        return RenderedRays(
            none, none, gaussians.features.reshape(-1, size)[:0], None if front_limits is None else none
        )
    back = torch.cat(rows).argsort()
    seen, weight, depth, front = (torch.cat(column)[back] for column in zip(*parts, strict=True))
    has_front = front_limits is not None and backend != "gsplat"
    return RenderedRays(weight, depth * lengths, seen, front if has_front else None)


def _flat(
    gaussians: Gaussians, sample: int, frame: int, moves: GaussianMoves | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, scales, opacities and features of one sample at one frame, without what no rasteriser would paint."""
    means = gaussians.means[sample]
    if moves is not None:
        means = moves.means(means, sample, frame)
    opacity = gaussians.opacity[sample]
    scale = (
        gaussians.scale[sample] if isinstance(gaussians.scale, Tensor) else torch.full_like(opacity, gaussians.scale)
    )
    seen = opacity >= MIN_ALPHA
    return means[seen], scale[seen], opacity[seen], gaussians.features[sample][seen].to(opacity.dtype)


def _by_gsplat(
    flat: tuple[Tensor, Tensor, Tensor, Tensor],
    camera: tuple[Tensor, Tensor, int, int],
    pixels: Tensor,
    settings: SplatSettings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The image of one view by gsplat, at pixels; float32 inside. The last entry, the mass in front, is all zeros."""
    means, scales, opacities, features = flat
    ego2cam, intrinsics, height, width = camera
    if not has_module("gsplat") or means.device.type != "cuda":
        raise ValueError(
            f"backend 'gsplat' cannot run on {means.device}: it needs a CUDA device, nvcc, and the package "
            "(pip install 'syntheocc[gsplat]'); 'torch_sparse' with response='ewa' gives the same numbers"
        )
    from gsplat import rasterization

    dtype, number = means.dtype, len(means)
    unturned = constant([1.0, 0, 0, 0], means).expand(number, 4)
    image, alphas, _ = rasterization(
        means=means.float(), quats=unturned.float(), scales=scales.float()[:, None].expand(number, 3).contiguous(),
        opacities=opacities.float(), colors=features.float(), viewmats=ego2cam.float()[None],
        Ks=intrinsics.float()[None], width=width, height=height, near_plane=settings.near, far_plane=settings.far,
        eps2d=EPS2D, packed=True, render_mode="RGB+D", sh_degree=None,
    )  # fmt: skip
    u = pixels[:, 0].floor().long().clamp(0, width - 1)
    v = pixels[:, 1].floor().long().clamp(0, height - 1)
    seen, weight = image[0, v, u].to(dtype), alphas[0, v, u, 0].to(dtype)
    return seen[:, :-1], weight, seen[:, -1], torch.zeros_like(weight)
