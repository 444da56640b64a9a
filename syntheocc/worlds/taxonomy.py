"""The world's own class table, and nuScenes' 32 raw lidarseg categories.

"world" is SyntheOcc's table (free = 0, then its sixteen classes) with "others" = 17 behind it, so that both Occ3D
(which has a class for what is left over) and SyntheOcc (which has none: 255) follow by `Taxonomy.mapping_to`.
"""

import numpy as np

from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, SYNTHEOCC_TAXONOMY, Taxonomy

__all__ = ["CLASS_TO_CATEGORY", "LIDARSEG_NAMES", "LIDARSEG_TO_WORLD", "OTHERS", "WORLD_TAXONOMY"]

WORLD_TAXONOMY = Taxonomy(
    name="world",
    classes=(*SYNTHEOCC_TAXONOMY.classes, "others"),
    palette=(*SYNTHEOCC_TAXONOMY.palette, (128, 128, 128)),
    free=SYNTHEOCC_TAXONOMY.free,
    foreground=SYNTHEOCC_TAXONOMY.foreground,
)
OTHERS = WORLD_TAXONOMY.id_of("others")

# The index is the raw lidarseg id (nuScenes-lidarseg's category.json).
LIDARSEG_NAMES = (
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)

# Raw id -> Occ3D's ids 0..16; specs/occflownet_splattingocc.md 1.2, personal mobility (5) with the official 0.
_LIDARSEG_TO_OCC3D = (
    0, 0, 7, 7, 7, 0, 7, 0, 0, 1, 0, 0, 8, 0, 2, 3, 3, 4, 5, 0, 0, 6, 9, 10, 11, 12, 13, 14, 15, 0, 16, 0
)  # fmt: skip

LIDARSEG_TO_WORLD = np.array(
    [WORLD_TAXONOMY.id_of(OCC3D_TAXONOMY.classes[label]) for label in _LIDARSEG_TO_OCC3D], dtype=np.uint8
)

_USUAL_CATEGORY = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "trailer": "vehicle.trailer",
    "bus": "vehicle.bus.rigid",
    "construction_vehicle": "vehicle.construction",
    "bicycle": "vehicle.bicycle",
    "motorcycle": "vehicle.motorcycle",
    "pedestrian": "human.pedestrian.adult",
    "traffic_cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
    "driveable_surface": "flat.driveable_surface",
    "other_flat": "flat.other",
    "sidewalk": "flat.sidewalk",
    "terrain": "flat.terrain",
    "manmade": "static.manmade",
    "vegetation": "static.vegetation",
    "others": "static.other",
    "free": "noise",
}

# World id -> the usual raw category, uint8 [18]; what the ground's classes (which store no category) are written as.
CLASS_TO_CATEGORY = np.array(
    [LIDARSEG_NAMES.index(_USUAL_CATEGORY[name]) for name in WORLD_TAXONOMY.classes], dtype=np.uint8
)
