"""Ready-made OccFlowNets and their recipes: a function each (specs/occflownet_splattingocc.md 3.1, 3.3, 5.1)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.losses.class_weights import OCC3D_COUNTS, log_frequency_weights
from syntheocc.occupancy.perception.occflownet.config import OccFlowNetConfig
from syntheocc.occupancy.perception.ray_config import RayConfig, published_occflownet_rays
from syntheocc.occupancy.perception.volume_heads import HeadConfig
from syntheocc.occupancy.perception.volume_presets import PUBLISHED_TRUNK, R50_TRUNK, SMALL_TRUNK, TINY_TRUNK
from syntheocc.occupancy.perception.volume_recipe import RenderRecipe

_RAYS = RayConfig(loss_weights=tuple(log_frequency_weights(OCC3D_COUNTS).tolist()))
_PUBLISHED_RAYS = {flow: published_occflownet_rays(flow) for flow in (False, True)}


class OccFlowNetPreset(NamedTuple):
    """A model and the way to train it."""

    model: OccFlowNetConfig
    recipe: RenderRecipe


def occflownet_2d_flow() -> OccFlowNetPreset:
    """Taught by 2D labels of seven key frames, objects moved by their boxes; Swin-B at 512 x 1408."""
    model = OccFlowNetConfig(
        trunk=PUBLISHED_TRUNK,
        heads=HeadConfig(density_bias=-2.0),
        taxonomy=OCC3D_NUSCENES.taxonomy,
        threshold=0.5,
    )
    return OccFlowNetPreset(model, RenderRecipe(rays=_RAYS))


def occflownet_2d() -> OccFlowNetPreset:
    """Without motion: other frames teach nothing of what may move."""
    model, recipe = occflownet_2d_flow()
    return OccFlowNetPreset(
        replace(model, flow="filter"), replace(recipe, rays=replace(recipe.rays, dynamics="filter"))
    )


def occflownet_2d_flow_3d() -> OccFlowNetPreset:
    """With labelled voxels besides."""
    model, recipe = occflownet_2d_flow()
    return OccFlowNetPreset(replace(model, voxel_weight=1.0), recipe)


def occflownet_3d() -> OccFlowNetPreset:
    """The trunk with the same heads, taught by labelled voxels alone (and depth): what 2D labels are measured by."""
    model, recipe = occflownet_2d_flow()
    rays = replace(recipe.rays, frame_offsets=(0,), dynamics="none")
    return OccFlowNetPreset(replace(model, voxel_weight=1.0, ray_weight=0.0), replace(recipe, rays=rays))


def _published(preset: OccFlowNetPreset, threshold: float) -> OccFlowNetPreset:
    """As published: densities below one a metre, volumes shifted in the lookup, z for distance, moved voxels."""
    model, recipe = preset
    flow = "scatter" if model.flow == "warp" else model.flow
    model = replace(
        model,
        trunk=replace(model.trunk, legacy=True),
        heads=HeadConfig(),
        density="sigmoid",
        flow=flow,
        threshold=threshold,
        legacy=True,
    )
    return OccFlowNetPreset(model, replace(recipe, rays=_PUBLISHED_RAYS[flow == "scatter"]))


def occflownet_2d_legacy() -> OccFlowNetPreset:
    """The published `stbase_2d`."""
    return _published(occflownet_2d(), 0.35)


def occflownet_2d_flow_legacy() -> OccFlowNetPreset:
    """The published `stbase_2d_flow`."""
    return _published(occflownet_2d_flow(), 0.35)


def occflownet_2d_flow_3d_legacy() -> OccFlowNetPreset:
    """The published `stbase_2d_flow_3d`."""
    return _published(occflownet_2d_flow_3d(), 0.30)


def _r50(preset: OccFlowNetPreset) -> OccFlowNetPreset:
    return OccFlowNetPreset(replace(preset.model, trunk=R50_TRUNK), preset.recipe)


def _small(preset: OccFlowNetPreset) -> OccFlowNetPreset:
    model, recipe = preset
    heads = HeadConfig(channels=32, hidden=(64, 64), density_bias=-2.0)
    model = replace(model, trunk=SMALL_TRUNK, heads=heads, rays_per_sample=4096)
    # From scratch: a higher rate that falls, and images that are scaled and mirrored only.
    recipe = replace(
        recipe, epochs=24, batch_size=8, learning_rate=5e-4, schedule="cosine", decay=1e-2, max_rotation_deg=0.0
    )
    return OccFlowNetPreset(model, recipe)


def _tiny(preset: OccFlowNetPreset) -> OccFlowNetPreset:
    model, recipe = preset
    heads = HeadConfig(channels=16, hidden=(16,), density_bias=-2.0)
    model = replace(model, trunk=TINY_TRUNK, heads=heads, rays_per_sample=512, far=20.0, proposals=16, samples=24)
    return OccFlowNetPreset(model, replace(_small(preset).recipe, epochs=1, batch_size=2, warmup_steps=1))


def _sized(
    function: Callable[[], OccFlowNetPreset], change: Callable[[OccFlowNetPreset], OccFlowNetPreset]
) -> OccFlowNetPreset:
    return change(function())


_FULL = (occflownet_2d, occflownet_2d_flow, occflownet_2d_flow_3d, occflownet_3d)
PRESETS: dict[str, Callable[[], OccFlowNetPreset]] = {
    f.__name__: f for f in (*_FULL, occflownet_2d_legacy, occflownet_2d_flow_legacy, occflownet_2d_flow_3d_legacy)
}
for _size, _change in (("r50", _r50), ("small", _small), ("tiny", _tiny)):
    PRESETS |= {f"{f.__name__}_{_size}": partial(_sized, f, _change) for f in _FULL}
