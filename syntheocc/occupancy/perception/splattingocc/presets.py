"""Ready-made SplattingOccs and RenderOccs and their recipes (specs/occflownet_splattingocc.md 2.3, 4, 5.1)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.losses.class_weights import OCC3D_COUNTS
from syntheocc.occupancy.losses.voxels import frequency_weights
from syntheocc.occupancy.perception.ray_config import RayConfig, published_renderocc_rays
from syntheocc.occupancy.perception.splattingocc.config import RenderOccConfig, SplattingOccConfig
from syntheocc.occupancy.perception.trunk import TrunkConfig
from syntheocc.occupancy.perception.volume_heads import HeadConfig
from syntheocc.occupancy.perception.volume_presets import PUBLISHED_TRUNK, R50_TRUNK, SMALL_TRUNK, TINY_TRUNK
from syntheocc.occupancy.perception.volume_recipe import RenderRecipe
from syntheocc.occupancy.rendering.dvgo import DvgoSettings
from syntheocc.occupancy.rendering.gaussian import SplatSettings

_WEIGHTS = tuple(frequency_weights(OCC3D_COUNTS).tolist())
# Depth is learnt up to 52 m, which no crop to the grid's 40 m may cut off.
_RAYS = RayConfig(depth_range=(0.05, 52.0), max_distance=52.0, loss_weights=_WEIGHTS)
# The step draws the rays: depth supervision of the trunk wants all of them.
_PUBLISHED_RAYS = replace(published_renderocc_rays(), num_rays=None)
_HEADS = HeadConfig(channels=32, hidden=(64,), activation="softplus", density_outputs=2)
# Two samples a voxel of 29 % each: the raw density at which a voxel stops half of a ray.
HALF_OPAQUE = 13.8155
PUBLISHED_THRESHOLD = 8.5
# Of Gaussians, in voxels.
SCALE = 0.3


class SplattingOccPreset(NamedTuple):
    """A SplattingOcc and the way to train it."""

    model: SplattingOccConfig
    recipe: RenderRecipe


class RenderOccPreset(NamedTuple):
    """A RenderOcc and the way to train it."""

    model: RenderOccConfig
    recipe: RenderRecipe


def _splats(trunk: TrunkConfig) -> SplatSettings:
    return SplatSettings(scale=SCALE * trunk.grid.voxel_size[0])


def splattingocc() -> SplattingOccPreset:
    """Three key frames, Gaussians of 0.12 m that move with boxes; Swin-B at 512 x 1408.

    At 0.2 m (4.2) the Gaussians of a road reach so far up that rays along it meet them metres too early: the losses
    then prefer the whole scene one voxel lower to the true one (docs/splatting.md).
    """
    model = SplattingOccConfig(
        splats=_splats(PUBLISHED_TRUNK),
        trunk=PUBLISHED_TRUNK,
        heads=replace(_HEADS, density_bias=-2.0),
        taxonomy=OCC3D_NUSCENES.taxonomy,
        threshold=0.5,
    )
    rays = replace(_RAYS, frame_offsets=(-1, 0, 1))
    return SplattingOccPreset(model, RenderRecipe(rays=rays, epochs=20, batch_size=8, learning_rate=2e-4))


def splattingocc_learned() -> SplattingOccPreset:
    """With scales and offsets of the Gaussians learnt."""
    model, recipe = splattingocc()
    heads = replace(model.heads, extras=4)
    return SplattingOccPreset(replace(model, heads=heads, learn_scale=True, learn_offset=True), recipe)


def renderocc_7frame() -> RenderOccPreset:
    """Seven key frames; metric depth, centred voxels, distances for z; Swin-B at 512 x 1408."""
    model = RenderOccConfig(
        trunk=PUBLISHED_TRUNK,
        # New densities stop 14 % of a ray a voxel: at the published start of 0.0001 % nothing has a gradient yet.
        heads=replace(_HEADS, density_bias=12.0),
        taxonomy=OCC3D_NUSCENES.taxonomy,
        threshold=HALF_OPAQUE,
        rays_per_sample=38400,
    )
    return RenderOccPreset(model, RenderRecipe(rays=replace(_RAYS, dynamics="filter")))


def renderocc_7frame_legacy() -> RenderOccPreset:
    """As published: for the released weights."""
    model, recipe = renderocc_7frame()
    model = replace(
        model,
        trunk=replace(model.trunk, legacy=True),
        heads=_HEADS,
        render=DvgoSettings(legacy=True),
        threshold=PUBLISHED_THRESHOLD,
    )
    return RenderOccPreset(model, replace(recipe, rays=_PUBLISHED_RAYS))


def _short(recipe: RenderRecipe) -> RenderRecipe:
    """From scratch: a higher rate that falls, and images that are scaled and mirrored only."""
    return replace(
        recipe, epochs=24, batch_size=8, learning_rate=5e-4, schedule="cosine", decay=1e-2, max_rotation_deg=0.0
    )


def _sized(function: Callable, preset: type, size: str):
    """A preset in another size; the heads stay, but for their channels."""
    model, recipe = function()
    if size == "r50":
        return preset(replace(model, trunk=R50_TRUNK), recipe)
    if size == "small":
        heads = replace(model.heads, channels=32, hidden=(64,))
        return preset(replace(model, trunk=SMALL_TRUNK, heads=heads, rays_per_sample=4096), _short(recipe))
    heads = replace(model.heads, channels=16, hidden=(16,))
    if isinstance(model, RenderOccConfig):
        changes: dict[str, Any] = {"render": replace(model.render, far=24.0)}
    else:
        changes = {"splats": _splats(TINY_TRUNK)}
    model = replace(model, trunk=TINY_TRUNK, heads=heads, rays_per_sample=512, **changes)
    return preset(model, replace(_short(recipe), epochs=1, batch_size=2, warmup_steps=1))


def _all_sizes(preset: type, functions: tuple[Callable, ...]) -> dict[str, Callable]:
    named: dict[str, Callable] = {f.__name__: f for f in functions}
    for size in ("r50", "small", "tiny"):
        named |= {f"{f.__name__}_{size}": partial(_sized, f, preset, size) for f in functions}
    return named


SPLATTINGOCC_PRESETS: dict[str, Callable[[], SplattingOccPreset]] = _all_sizes(
    SplattingOccPreset, (splattingocc, splattingocc_learned)
)
RENDEROCC_PRESETS: dict[str, Callable[[], RenderOccPreset]] = {
    **_all_sizes(RenderOccPreset, (renderocc_7frame,)),
    "renderocc_7frame_legacy": renderocc_7frame_legacy,
}
