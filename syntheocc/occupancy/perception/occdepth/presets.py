"""Ready-made models and the recipes they are trained with: one function each (specs/occdepth.md 2.10, 4).

Those named ``_legacy`` compute as the published code does, mistakes included: they are what released weights are
loaded into. The others are the same networks with the mistakes corrected (`config.LEGACY` lists them).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from syntheocc.occupancy.grids import NYUV2, SEMANTIC_KITTI, TARTANAIR, GridSpec
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig, as_published
from syntheocc.occupancy.perception.recipes import TrainingRecipe
from syntheocc.occupancy.perception.view_transform import DepthBins

__all__ = ["KITTI_VOXELS", "PRESETS", "PUBLISHED", "OccDepthPreset", "OccDepthRecipe", "log_weights", "preset"]

# Voxels of each class in SemanticKITTI's training set (specs/occdepth.md 1.1).
KITTI_VOXELS = (
    5.41773033e9, 1.57835390e7, 1.25136e5, 1.18809e5, 6.46799e5, 8.21951e5, 2.62978e5, 2.83696e5, 2.04750e5,
    6.16887030e7, 4.50296100e6, 4.48836500e7, 2.26992300e6, 5.68402180e7, 1.57196520e7, 1.58442623e8, 2.06162300e6,
    3.69705220e7, 1.15198800e6, 3.34146e5,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OccDepthRecipe(TrainingRecipe):
    """How a preset is trained; the defaults are those of the published SemanticKITTI runs."""

    epochs: int = 30
    batch_size: int = 4
    learning_rate: float = 2e-4
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (18, 24)
    decay: float = 0.4
    warmup_steps: int = 0
    warmup_ratio: float = 1.0
    max_grad_norm: float = 35.0
    backbone_rate: float = 1.0
    flip_and_turn_grid: bool = False
    color_jitter: float = 0.4
    """Largest relative change of brightness, contrast and saturation."""
    teacher: bool = True
    """Whether the depth distribution learns from a stereo teacher's depth pictures, where the config wants depth."""


class OccDepthPreset(NamedTuple):
    """A model and the way to train it."""

    model: OccDepthConfig
    recipe: OccDepthRecipe


def log_weights(counts: tuple[float, ...]) -> tuple[float, ...]:
    """Weights of the cross entropy, ``1 / ln(count + 0.001)`` of each class's voxels."""
    return tuple(1 / math.log(count + 0.001) for count in counts)


def kitti_b7() -> OccDepthPreset:
    """SemanticKITTI, the paper's size: EfficientNet-B7, 64 channels (published: hidden test IoU 45.10, mIoU 15.90)."""
    model = OccDepthConfig(
        grid=SEMANTIC_KITTI.spec,
        taxonomy=SEMANTIC_KITTI.taxonomy,
        class_weights=log_weights(KITTI_VOXELS),
        occupancy_weights=log_weights((KITTI_VOXELS[0], sum(KITTI_VOXELS[1:]))),  # type: ignore[arg-type]
    )
    return OccDepthPreset(model, OccDepthRecipe())


def kitti_b7_legacy() -> OccDepthPreset:
    """`kitti_b7` as published."""
    return _legacy(kitti_b7())


def kitti_b3() -> OccDepthPreset:
    """SemanticKITTI for a smaller card: EfficientNet-B3, 32 channels, no gradient through the right picture."""
    model, recipe = kitti_b7()
    return OccDepthPreset(replace(model, backbone="efficientnet_b3", channels=32, detach_second_view=True), recipe)


def kitti_b3_legacy() -> OccDepthPreset:
    """`kitti_b3` as published: what the released weights are (published: IoU 41.60, mIoU 12.84)."""
    return _legacy(kitti_b3())


def kitti_b7_flosp() -> OccDepthPreset:
    """`kitti_b7` without depth: features are lifted along whole rays."""
    model, recipe = kitti_b7()
    return OccDepthPreset(replace(model, lift="flosp"), recipe)


def kitti_b7_flosp_legacy() -> OccDepthPreset:
    """`kitti_b7_flosp` as published."""
    return _legacy(kitti_b7_flosp())


def kitti_mono() -> OccDepthPreset:
    """One picture, EfficientNet-B3, 24 channels; depth without a teacher, no relation prior, no cascade."""
    model, recipe = kitti_b7()
    model = replace(
        model, backbone="efficientnet_b3", channels=24, num_views=1, relation_prior=False, cascade=False,
        occupancy_weights=None, depth_loss_weight=0.0,
    )  # fmt: skip
    return OccDepthPreset(model, replace(recipe, teacher=False))


def kitti_mono_legacy() -> OccDepthPreset:
    """`kitti_mono` as published."""
    return _legacy(kitti_mono())


def nyu_b4() -> OccDepthPreset:
    """NYUv2: EfficientNet-B4, 100 channels, a virtual second view made with the Kinect's depth, as at test time."""
    model = OccDepthConfig(
        grid=NYUV2.spec,
        taxonomy=NYUV2.taxonomy,
        dataset="nyuv2",
        project_scale=1,
        virtual_view=True,
        image_size=(480, 640),
        backbone="efficientnet_b4",
        channels=100,
        lift="flosp",
        depth=DepthBins(0.0, 10.0, 0.08),
        relation_prior=False,
        cascade=False,
        class_weights=(0.05,) + (1.0,) * 11,
        depth_loss_weight=0.0,
    )
    return OccDepthPreset(model, OccDepthRecipe(teacher=False))


def nyu_b4_legacy() -> OccDepthPreset:
    """`nyu_b4` as published: what the released weights are (published: IoU 49.23, mIoU 29.34)."""
    return _legacy(nyu_b4())


def nyu_b7() -> OccDepthPreset:
    """NYUv2, the paper's size: EfficientNet-B7, 200 channels, relation prior (published: IoU 50.3, mIoU 30.9)."""
    model, recipe = nyu_b4()
    return OccDepthPreset(replace(model, backbone="efficientnet_b7", channels=200, relation_prior=True), recipe)


def nyu_b7_legacy() -> OccDepthPreset:
    """`nyu_b7` as published."""
    return _legacy(nyu_b7())


def tartanair() -> OccDepthPreset:
    """SemanticTartanAir, stereo: the branch that the published code lacks, at the size of `kitti_b3`.

    The labels are the visible surface, so depth says where it is: the lift with depth is what pays here.
    """
    model, recipe = kitti_b3()
    model = replace(
        model,
        grid=TARTANAIR.spec,
        taxonomy=TARTANAIR.taxonomy,
        dataset="tartanair",
        project_scale=1,
        image_size=(480, 640),
        depth=DepthBins(0.1, 12.1, 0.1),
        class_weights=(0.05,) + (1.0,) * 13,
        occupancy_weights=(0.05, 2.0),
    )
    return OccDepthPreset(model, replace(recipe, milestones=(20,), decay=0.1))


def small() -> OccDepthPreset:
    """SemanticKITTI in minutes on one GPU, and for the procedural world: half the pictures' size, 16 channels."""
    model, recipe = kitti_b7()
    model = replace(
        model, image_size=(184, 608), backbone="small", channels=16, decoder_channels=256, depth_channels=32,
        project_scale=2,
    )  # fmt: skip
    return OccDepthPreset(model, replace(recipe, learning_rate=1e-3, warmup_steps=50, warmup_ratio=0.1))


def small_mono() -> OccDepthPreset:
    """`small` with the left picture alone."""
    model, recipe = small()
    return OccDepthPreset(replace(model, num_views=1), recipe)


def small_flosp() -> OccDepthPreset:
    """`small` without depth awareness."""
    model, recipe = small()
    return OccDepthPreset(replace(model, lift="flosp", depth_loss_weight=0.0), replace(recipe, teacher=False))


def small_mono_flosp() -> OccDepthPreset:
    """`small` with the left picture alone and without depth awareness: MonoScene's way."""
    model, recipe = small_flosp()
    return OccDepthPreset(replace(model, num_views=1), recipe)


def tiny() -> OccDepthPreset:
    """Runs in seconds on a CPU: SemanticKITTI's volume in 64 x 64 x 8 voxels, pictures of 64 x 208."""
    model, recipe = small()
    coarse = GridSpec((0.0, -25.6, -2.0), (0.8, 0.8, 0.8), (64, 64, 8), "lidar")
    model = replace(
        model, grid=coarse, project_scale=1, image_size=(64, 208), backbone="tiny", channels=8, decoder_channels=32,
        depth=DepthBins(2.0, 54.0, 2.0), depth_channels=8,
    )  # fmt: skip
    return OccDepthPreset(model, replace(recipe, epochs=1, batch_size=2, warmup_steps=1, learning_rate=2e-3))


def _legacy(made: OccDepthPreset) -> OccDepthPreset:
    """The published computation; NYUv2's network sees its grid as its files have it, [x, up, y]."""
    model = as_published(made.model)
    return made._replace(model=replace(model, axes=(0, 2, 1)) if model.dataset == "nyuv2" else model)


PRESETS: dict[str, Callable[[], OccDepthPreset]] = {
    function.__name__: function
    for function in (
        kitti_b7,
        kitti_b7_legacy,
        kitti_b3,
        kitti_b3_legacy,
        kitti_b7_flosp,
        kitti_b7_flosp_legacy,
        kitti_mono,
        kitti_mono_legacy,
        nyu_b4,
        nyu_b4_legacy,
        nyu_b7,
        nyu_b7_legacy,
        tartanair,
        small,
        small_mono,
        small_flosp,
        small_mono_flosp,
        tiny,
    )
}

# Stem of a published configuration file -> its network as published.
PUBLISHED = {
    "multicam_flospdepth_crp_stereodepth_cascadecls_a100": "kitti_b7_legacy",
    "multicam_flospdepth_crp_stereodepth_cascadecls_2080ti": "kitti_b3_legacy",
    "multicam_flosp_crp_cascadecls_a100": "kitti_b7_flosp_legacy",
    "flospdepth_2080ti": "kitti_mono_legacy",
    "multicam_flosp_crp_stereodepth_cascadecls_2080ti": "nyu_b4_legacy",
    "multicam_flospdepth_crp_stereodepth_cascadecls_v100": "nyu_b7_legacy",
}


def preset(name: str, **changes: Any) -> OccDepthPreset:
    """The preset of that name, fields of its model replaced by `changes`; ValueError naming those that there are."""
    if name not in PRESETS:
        raise ValueError(f"OccDepth has no preset {name!r}; it has {', '.join(PRESETS)}")
    model, recipe = PRESETS[name]()
    return OccDepthPreset(replace(model, **changes), recipe)
