"""The world's own class table, and its relation to nuScenes' 32 raw lidarseg categories.

"world" is SyntheOcc's table (free = 0, then its sixteen classes) with "others" = 17 behind it, so that both Occ3D
(which has a class for what is left over) and SyntheOcc (which has none: 255) follow by `Taxonomy.mapping_to`.
"""

import numpy as np

from syntheocc.occupancy.data.lidarseg import LIDARSEG_NAMES, lidarseg_table
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

# What raw lidarseg ids are in the world's table.
LIDARSEG_TO_WORLD = np.array(
    [WORLD_TAXONOMY.id_of(OCC3D_TAXONOMY.classes[label]) for label in lidarseg_table()[: len(LIDARSEG_NAMES)]],
    dtype=np.uint8,
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
