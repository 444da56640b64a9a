"""Rays through one volume in one go: density lookup, transmittance, depth, mass before a limit, classes; and back.

For samples at given voxel coordinates with given intervals,

    weight_s = T_s (1 - e^(-density_s length_s)),  T_s = e^(-sum_(t < s) density_t length_t)
    stops = (sum weight, sum weight * middle, sum weight [middle < limit]),  classes = sum weight * semantics_s

with density and semantics interpolated as `ops.volume_render` does, and opacities turned into densities where the
volume holds these (`rendering.compositing.metric_density`). Gradients go to both volumes.

`reference` says it sample by sample, `triton` is the fast path on GPUs (float32). What runs everywhere else, with
objects that move and with the samples kept, is the renderer itself (`rendering.volume`), which is tested against both.

Legend: R rays, S samples, C classes, X Y Z voxels.
"""

from typing import NamedTuple

from torch import Tensor

__all__ = ["RaySamples", "volume_rays"]

# Opacities stop this far from 1, where the density of a voxel would be infinite.
ALMOST = 1e-6


class RaySamples(NamedTuple):
    """Where rays are looked at: coordinates [R, S, 3] voxels, lengths and middles [R, S] metres, limits [R] metres."""

    coordinates: Tensor
    lengths: Tensor
    middles: Tensor
    limits: Tensor


def volume_rays(
    density: Tensor,  # [X, Y, Z]
    semantics: Tensor,  # [X, Y, Z, C]
    samples: RaySamples,
    opacity_size: float,
    nearest: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Renders rays.

    Args:
        density: float32 (`reference`: or float64), 1 / metre, or opacities.
        semantics: of the same type.
        samples: likewise.
        opacity_size: metres that an opacity is for; 0: the volume holds densities.
        nearest: values of voxels instead of interpolated ones.
        backend: "reference" or "triton".

    Returns:
        stops [R, 3]: share that was stopped, its depth (a sum, in metres), its part before the limits; classes [R, C].

    Raises:
        ValueError: another backend, or one that cannot run here.
    """
    if backend == "reference":
        from syntheocc.occupancy.ops.volume_rays.reference import volume_rays_reference as run
    elif backend == "triton":
        from syntheocc.occupancy.ops.volume_rays.triton import volume_rays_triton as run
    else:
        raise ValueError(f"backend must be 'reference' or 'triton', got {backend!r}")
    return run(density, semantics, samples, opacity_size, nearest)
