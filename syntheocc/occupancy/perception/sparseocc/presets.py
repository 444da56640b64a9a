"""Ready-made models and the recipes they are trained with: one function each (specs/sparseocc.md 2.6, 2.10-2.12)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from syntheocc.occupancy.grids import OCC3D_NUSCENES, OPENOCC_V2, GridSpec
from syntheocc.occupancy.perception.recipes import TrainingRecipe
from syntheocc.occupancy.perception.sparseocc.config import SparseOccConfig, StageConfig
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, Taxonomy

# Voxels of each class in Occ3D's training set (specs/sparseocc.md 2.8).
_OCC3D_VOXELS = dict(
    zip(
        OCC3D_TAXONOMY.classes,
        [
            944004, 1897170, 152386, 2391677, 16957802, 724139, 189027, 2074468, 413451, 2384460, 5916653, 175883646,
            4275424, 51393615, 61411620, 105975596, 116424404, 1892500630,
        ],
        strict=True,
    )
)  # fmt: skip
# Classes whose objects are told apart; barriers and cones are not among them.
_THINGS = "car truck construction_vehicle bus trailer motorcycle bicycle pedestrian".split()


@dataclass(frozen=True, kw_only=True)
class SparseOccRecipe(TrainingRecipe):
    """How a preset is trained."""

    offset_rate: float = 0.1
    """Factor of the voxel decoder's sampling offsets."""


class SparseOccPreset(NamedTuple):
    """A model and the way to train it."""

    model: SparseOccConfig
    recipe: SparseOccRecipe


def class_frequencies(taxonomy: Taxonomy) -> tuple[float, ...] | None:
    """Occ3D's voxel counts for a table whose classes Occ3D all has; None for others (all classes weigh the same)."""
    if not set(taxonomy.classes) <= set(_OCC3D_VOXELS):
        return None
    return tuple(float(_OCC3D_VOXELS[name]) for name in taxonomy.classes)


def thing_classes(taxonomy: Taxonomy) -> tuple[int, ...]:
    """Labels of the classes whose objects nuScenes' panoptic benchmark tells apart, ascending."""
    return tuple(i for i, name in enumerate(taxonomy.classes) if name in _THINGS)


def _stages(keep_train: tuple[int, int, int], keep_test: tuple[int, int, int]) -> tuple[StageConfig, ...]:
    """The published decoder: fewer points and no attention where there are more voxels."""
    return tuple(
        StageConfig(points=p, out_points=o, keep_train=train, keep_test=test, self_attention=attention)
        for p, o, train, test, attention in zip(
            (4, 2, 1), (128, 64, 32), keep_train, keep_test, (True, True, False), strict=True
        )
    )


def r50_704x256_8f() -> SparseOccPreset:
    """Version 1.1 on Occ3D, 24 epochs (published: RayIoU 36.8)."""
    model = SparseOccConfig(
        grid=OCC3D_NUSCENES.spec,
        taxonomy=OCC3D_NUSCENES.taxonomy,
        class_frequencies=class_frequencies(OCC3D_NUSCENES.taxonomy),
        stages=_stages((4000, 16000, 64000), (2000, 8000, 32000)),
    )
    return SparseOccPreset(model, SparseOccRecipe())


def r50_704x256_8f_60e() -> SparseOccPreset:
    """The same for 60 epochs (published: RayIoU 37.7)."""
    model, recipe = r50_704x256_8f()
    return SparseOccPreset(model, replace(recipe, epochs=60, milestones=(48,)))


def r50_704x256_8f_pano() -> SparseOccPreset:
    """Panoptic occupancy on Occ3D (published: RayIoU 35.9, RayPQ 14.0)."""
    model, recipe = r50_704x256_8f()
    return SparseOccPreset(replace(model, instance_classes=thing_classes(model.taxonomy)), recipe)


def r50_704x256_8f_openocc() -> SparseOccPreset:
    """OpenOcc v2's 17 classes; published without flips and turns (its configuration could not be trained)."""
    model, recipe = r50_704x256_8f()
    taxonomy = OPENOCC_V2.taxonomy
    model = replace(model, grid=OPENOCC_V2.spec, taxonomy=taxonomy, class_frequencies=class_frequencies(taxonomy))
    return SparseOccPreset(model, replace(recipe, flip_images=False, flip_and_turn_grid=False))


def r50_704x256_8f_v1_0() -> SparseOccPreset:
    """Version 1.0, 48 epochs (published: RayIoU 35.0)."""
    model, _ = r50_704x256_8f()
    keep = (2000, 8000, 32000)
    model = replace(model, version="1.0", stages=_stages(keep, keep), mask_iterations=4, class_frequencies=None)
    recipe = SparseOccRecipe(
        epochs=48, learning_rate=2e-4, schedule="cosine", milestones=(), decay=1e-3,
        flip_images=False, flip_and_turn_grid=False,
    )  # fmt: skip
    return SparseOccPreset(model, recipe)


def r50_704x256_8f_v1_0_pano() -> SparseOccPreset:
    """Version 1.0, panoptic (published: RayIoU 34.5, RayPQ 14.0)."""
    model, recipe = r50_704x256_8f_v1_0()
    return SparseOccPreset(replace(model, instance_classes=thing_classes(model.taxonomy)), recipe)


def small() -> SparseOccPreset:
    """Under 30 million parameters on the published grid: 128 channels, 4 frames of 128x352."""
    model, recipe = r50_704x256_8f()
    model = replace(
        model,
        num_frames=4,
        image_size=(128, 352),
        backbone="small",
        embed_dims=128,
        feedforward_dims=256,
        stages=_stages((2000, 8000, 32000), (2000, 8000, 32000)),
    )
    return SparseOccPreset(model, recipe)


def small_pano() -> SparseOccPreset:
    """`small` with objects told apart."""
    model, recipe = small()
    return SparseOccPreset(replace(model, instance_classes=thing_classes(model.taxonomy)), recipe)


def nano() -> SparseOccPreset:
    """Under 2 million parameters on the published grid, a file of a few megabytes: 64 channels, one frame of 128x352.

    It keeps more voxels than the published decoder: exact labels hold 50,000 to 70,000 occupied ones.
    """
    model, recipe = small()
    stages = tuple(
        replace(stage, out_points=out, keep_train=keep, keep_test=keep)
        for stage, out, keep in zip(model.stages, (32, 32, 16), (4000, 12000, 40000), strict=True)
    )
    model = replace(
        model,
        num_frames=1,
        backbone="nano",
        embed_dims=64,
        num_heads=4,
        feedforward_dims=128,
        stages=stages,
        mask_out_points=32,
    )
    return SparseOccPreset(model, recipe)


def tiny() -> SparseOccPreset:
    """Runs in seconds on a CPU: a 32 m square of 0.8 m voxels, 2 frames of 64x96."""
    model, recipe = r50_704x256_8f()
    model = replace(
        model,
        grid=GridSpec((-16.0, -16.0, -1.0), (0.8, 0.8, 0.8), (40, 40, 8)),
        num_frames=2,
        image_size=(64, 96),
        backbone="tiny",
        embed_dims=32,
        num_groups=2,
        num_heads=4,
        feedforward_dims=64,
        stages=_stages((120, 480, 2400), (120, 480, 2000)),
        num_queries=20,
        mask_out_points=16,
    )
    return SparseOccPreset(model, replace(recipe, epochs=1, batch_size=2, warmup_steps=1))


def tiny_pano() -> SparseOccPreset:
    """`tiny` with objects told apart."""
    model, recipe = tiny()
    return SparseOccPreset(replace(model, instance_classes=thing_classes(model.taxonomy)), recipe)


PRESETS: dict[str, Callable[[], SparseOccPreset]] = {
    function.__name__: function
    for function in (
        r50_704x256_8f,
        r50_704x256_8f_60e,
        r50_704x256_8f_pano,
        r50_704x256_8f_openocc,
        r50_704x256_8f_v1_0,
        r50_704x256_8f_v1_0_pano,
        small,
        small_pano,
        nano,
        tiny,
        tiny_pano,
    )
}


def preset(name: str, **changes: Any) -> SparseOccPreset:
    """The preset of that name, fields of its model replaced by `changes`; ValueError naming those that there are."""
    if name not in PRESETS:
        raise ValueError(f"SparseOcc has no preset {name!r}; it has {', '.join(PRESETS)}")
    model, recipe = PRESETS[name]()
    return SparseOccPreset(replace(model, **changes), recipe)
