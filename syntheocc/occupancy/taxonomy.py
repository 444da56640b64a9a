"""Class tables of the occupancy datasets, their palettes, and the mappings between them.

A taxonomy is an ordered tuple of class names; a label is an index into it. 255 means "unknown" in every taxonomy and
is never a class. Sources: specs/syntheocc.md 1.1 (SyntheOcc order and palette), specs/sparseocc.md 1.1 (Occ3D, OpenOcc
v2 and the Occ3D colour map), specs/occdepth.md 1.3, 1.7, 1.8 and 3 (SemanticKITTI, NYUv2, TartanAir).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

UNKNOWN = 255

# nuScenes' own names, in the order that SyntheOcc numbers them from 1.
_SYNTHEOCC_CLASSES = (
    "car truck trailer bus construction_vehicle bicycle motorcycle pedestrian traffic_cone barrier "
    "driveable_surface other_flat sidewalk terrain manmade vegetation"
).split()
# The alphabetical order of Occ3D, SurroundOcc and OpenOccupancy, from 1.
_NUSCENES_CLASSES = (
    "barrier bicycle bus car construction_vehicle motorcycle pedestrian traffic_cone trailer truck "
    "driveable_surface other_flat sidewalk terrain manmade vegetation"
).split()
_FOREGROUND = frozenset(_SYNTHEOCC_CLASSES[:10])
_NUSCENES_COLORS = dict(
    zip(
        _SYNTHEOCC_CLASSES,
        [
            (255, 158, 0), (255, 99, 71), (255, 140, 0), (255, 69, 0), (233, 150, 70), (220, 20, 60), (255, 61, 99),
            (0, 0, 230), (47, 79, 79), (112, 128, 144), (0, 207, 191), (175, 0, 75), (75, 0, 75), (112, 180, 60),
            (222, 184, 135), (0, 175, 0),
        ],
        strict=True,
    )
)  # fmt: skip

# Where two tables name the same thing differently, or one is finer: source name -> names to try in the target.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "person": ("pedestrian",),
    "pedestrian": ("person",),
    # KITTI's riders sit on their vehicle; nuScenes boxes a cycle together with its rider.
    "bicyclist": ("bicycle",),
    "motorcyclist": ("motorcycle",),
    "road": ("driveable_surface",),
    "driveable_surface": ("road",),
    "parking": ("driveable_surface",),
    "other_ground": ("other_flat",),
    "other_flat": ("other_ground",),
    "building": ("manmade",),
    "manmade": ("building",),
    "fence": ("manmade",),
    "pole": ("manmade",),
    "traffic_sign": ("manmade",),
    "trunk": ("vegetation",),
    # SemanticKITTI gathers buses, rail cars and what is left over here; buses are the largest share.
    "other_vehicle": ("bus",),
    "bus": ("other_vehicle",),
    "trailer": ("other_vehicle",),
    "construction_vehicle": ("other_vehicle",),
    "traffic_cone": ("unknown",),
    "barrier": ("fence",),
    # Occ3D's class 0 gathers what the sixteen classes leave over; the other street tables have no word for it.
    "others": ("unknown",),
    "rug": ("floor",),
    "screen": ("tvs",),
    "clock": ("objs",),
    "bonsai": ("objs",),
}


@dataclass(frozen=True)
class Taxonomy:
    """An ordered class table.

    Args:
        name: the table's name, e.g. ``"occ3d"``.
        classes: class names; the index is the label. The free (empty) class is one of them.
        palette: one RGB triple (0..255) a class.
        free: the label of empty space.
        foreground: labels of the objects (SyntheOcc's ten detection classes), which thin-object rules prefer.

    Raises:
        ValueError: names and palette differ in length, a name occurs twice, a colour is no RGB triple in 0..255, or an
            id lies outside the table.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    free: int
    foreground: tuple[int, ...] = ()

    UNKNOWN: ClassVar[int] = UNKNOWN

    def __post_init__(self):
        # Tables read from JSON come as lists; tuples keep a taxonomy hashable.
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "palette", tuple(tuple(color) for color in self.palette))
        object.__setattr__(self, "foreground", tuple(self.foreground))
        if not all(len(color) == 3 and all(0 <= value <= 255 for value in color) for color in self.palette):
            raise ValueError(f"taxonomy {self.name!r}: colours are RGB triples in 0..255, got {self.palette}")
        if len(self.classes) != len(self.palette):
            raise ValueError(f"taxonomy {self.name!r}: {len(self.classes)} classes but {len(self.palette)} colours")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"taxonomy {self.name!r}: a class name occurs twice in {self.classes}")
        if len(self.classes) > UNKNOWN:
            raise ValueError(f"taxonomy {self.name!r}: {len(self.classes)} classes; uint8 labels allow {UNKNOWN}")
        bad = [i for i in (self.free, *self.foreground) if not 0 <= i < len(self.classes)]
        if bad:
            raise ValueError(f"taxonomy {self.name!r}: ids {bad} lie outside its {len(self.classes)} classes")

    @property
    def num_classes(self) -> int:
        """Number of classes, free included."""
        return len(self.classes)

    def id_of(self, name: str) -> int:
        """The label of a class name; ValueError with the known names otherwise."""
        if name not in self.classes:
            raise ValueError(f"taxonomy {self.name!r} has no class {name!r}; it has {', '.join(self.classes)}")
        return self.classes.index(name)

    def label_of(self, name: str) -> int:
        """The label of a class or of what this table calls it (a ``pedestrian`` is SemanticKITTI's ``person``).

        Raises:
            ValueError: the table has neither the class nor a near-synonym; the message lists what it has.
        """
        found = next((word for word in (name, *_SYNONYMS.get(name, ())) if word in self.classes), None)
        return self.id_of(name if found is None else found)

    def colors(self) -> np.ndarray:
        """Lookup table uint8 [256, 3] from label to RGB; ids outside the table are mid grey."""
        table = np.full((256, 3), 128, dtype=np.uint8)
        table[: self.num_classes] = self.palette
        return table

    def mapping_to(self, other: "Taxonomy") -> np.ndarray:
        """Lookup table uint8 [256] from this table's labels to another's.

        Free goes to free, 255 stays 255, equal names to each other, and near-synonyms by a fixed rule (a KITTI
        ``building`` is a nuScenes ``manmade``). A class the target has no word for becomes 255 where the rule says
        unknown (Occ3D's ``others``).

        Raises:
            ValueError: a class has neither a namesake nor a rule, e.g. from a street table to an indoor one.
        """
        table = np.full(256, UNKNOWN, dtype=np.uint8)
        missing = []
        for label, name in enumerate(self.classes):
            if label == self.free:
                table[label] = other.free
                continue
            for candidate in (name, *_SYNONYMS.get(name, ())):
                if candidate == "unknown":
                    break
                if candidate in other.classes:
                    table[label] = other.classes.index(candidate)
                    break
            else:
                missing.append(name)
        if missing:
            raise ValueError(
                f"no rule maps {', '.join(missing)} from taxonomy {self.name!r} to {other.name!r}; "
                f"relabel these voxels first, or give a grid whose classes are among {', '.join(other.classes)}"
            )
        return table


def _street(name: str, classes: list[str], free: int, palette: dict[str, tuple[int, int, int]]) -> Taxonomy:
    return Taxonomy(
        name=name,
        classes=tuple(classes),
        palette=tuple(palette[c] for c in classes),
        free=free,
        foreground=tuple(i for i, c in enumerate(classes) if c in _FOREGROUND),
    )


_NUSCENES_PALETTE = _NUSCENES_COLORS | {"free": (0, 0, 0), "others": (128, 128, 128)}

# specs/sparseocc.md, colour map of ids 0..17
_OCC3D_CLASSES = ["others", *_NUSCENES_CLASSES, "free"]
_OCC3D_PALETTE = dict(
    zip(
        _OCC3D_CLASSES,
        [
            (0, 0, 0), (255, 120, 50), (255, 192, 203), (255, 255, 0), (0, 150, 245), (0, 255, 255), (200, 180, 0),
            (255, 0, 0), (255, 240, 150), (135, 60, 0), (160, 32, 240), (255, 0, 255), (175, 0, 75), (75, 0, 75),
            (150, 240, 80), (230, 230, 250), (0, 175, 0), (255, 255, 255),
        ],
        strict=True,
    )
)  # fmt: skip

SYNTHEOCC_TAXONOMY = _street("syntheocc", ["free", *_SYNTHEOCC_CLASSES], 0, _NUSCENES_PALETTE)
OCC3D_TAXONOMY = _street("occ3d", _OCC3D_CLASSES, 17, _OCC3D_PALETTE)
OPENOCC_V2_TAXONOMY = _street("openocc_v2", [*_SYNTHEOCC_CLASSES, "free"], 16, _OCC3D_PALETTE)
SURROUNDOCC_TAXONOMY = _street("surroundocc", ["free", *_NUSCENES_CLASSES], 0, _NUSCENES_PALETTE)
OPENOCCUPANCY_TAXONOMY = _street("openoccupancy", ["free", *_NUSCENES_CLASSES], 0, _NUSCENES_PALETTE)

SEMANTIC_KITTI_TAXONOMY = Taxonomy(
    name="semantic_kitti",
    classes=tuple(
        (
            "free car bicycle motorcycle truck other_vehicle person bicyclist motorcyclist road parking sidewalk "
            "other_ground building fence vegetation trunk terrain pole traffic_sign"
        ).split()
    ),
    palette=(
        (0, 0, 0), (100, 150, 245), (100, 230, 245), (30, 60, 150), (80, 30, 180), (100, 80, 250), (255, 30, 30),
        (255, 40, 200), (150, 30, 90), (255, 0, 255), (255, 150, 255), (75, 0, 75), (175, 0, 75), (255, 200, 0),
        (255, 120, 50), (0, 175, 0), (135, 60, 0), (150, 240, 80), (255, 240, 150), (255, 0, 0),
    ),
    free=0,
    foreground=tuple(range(1, 9)),
)  # fmt: skip

NYUV2_TAXONOMY = Taxonomy(
    name="nyuv2",
    classes=tuple("free ceiling floor wall window chair bed sofa table tvs furn objs".split()),
    palette=(
        (22, 191, 206), (214, 38, 40), (43, 160, 43), (158, 216, 229), (114, 158, 206), (204, 204, 91),
        (255, 186, 119), (147, 102, 188), (30, 119, 181), (188, 188, 33), (255, 127, 12), (196, 175, 214),
    ),
    free=0,
    foreground=tuple(range(5, 12)),
)  # fmt: skip

TARTANAIR_TAXONOMY = Taxonomy(
    name="tartanair",
    classes=tuple("free ceiling floor wall window chair rug sofa screen tvs furn clock bonsai objs".split()),
    # The NYU colours for the classes that the two tables share; the four others are ours, the source has none.
    palette=(
        (22, 191, 206), (214, 38, 40), (43, 160, 43), (158, 216, 229), (114, 158, 206), (204, 204, 91),
        (140, 86, 75), (147, 102, 188), (23, 190, 150), (188, 188, 33), (255, 127, 12), (227, 119, 194),
        (44, 110, 73), (196, 175, 214),
    ),
    free=0,
    foreground=tuple(range(5, 14)),
)  # fmt: skip

TAXONOMIES: dict[str, Taxonomy] = {
    t.name: t
    for t in (
        SYNTHEOCC_TAXONOMY,
        OCC3D_TAXONOMY,
        OPENOCC_V2_TAXONOMY,
        SURROUNDOCC_TAXONOMY,
        OPENOCCUPANCY_TAXONOMY,
        SEMANTIC_KITTI_TAXONOMY,
        NYUV2_TAXONOMY,
        TARTANAIR_TAXONOMY,
    )
}


def taxonomy_named(name: str) -> Taxonomy:
    """The taxonomy of that name; ValueError with the known names otherwise."""
    if name not in TAXONOMIES:
        raise ValueError(f"no taxonomy is named {name!r}; known: {', '.join(TAXONOMIES)}")
    return TAXONOMIES[name]
