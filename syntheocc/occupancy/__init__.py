"""Occupancy grids, cameras, semantic multiplane images and their data: needs only torch and numpy.

The names below are the public ones; heavier modules are imported when a name is first used.
"""

from typing import TYPE_CHECKING

from syntheocc._lazy import lazy_attributes

_EXPORTS = {
    "BrownConrady": "distortion",
    "KannalaBrandt": "distortion",
    "Camera": "cameras",
    "CameraRig": "cameras",
    "NUSCENES_CAMERAS": "cameras",
    "GridSpec": "grids",
    "OccupancyGrid": "grids",
    "Preset": "grids",
    "OCC3D_NUSCENES": "grids",
    "OPENOCC_V2": "grids",
    "SURROUNDOCC": "grids",
    "OPENOCCUPANCY": "grids",
    "SYNTHEOCC": "grids",
    "SYNTHEOCC_COARSE": "grids",
    "SEMANTIC_KITTI": "grids",
    "NYUV2": "grids",
    "TARTANAIR": "grids",
    "PlaneSpec": "rendering.mpi",
    "SemanticMPI": "rendering.mpi",
    "render_mpi": "rendering.mpi",
    "Editor": "editing",
    "Recipe": "editing",
    "cast_rays": "rendering.raycast",
    "Taxonomy": "taxonomy",
    "TAXONOMIES": "taxonomy",
    "taxonomy_named": "taxonomy",
}
__all__ = [
    "BrownConrady",
    "KannalaBrandt",
    "Camera",
    "CameraRig",
    "NUSCENES_CAMERAS",
    "GridSpec",
    "OccupancyGrid",
    "Preset",
    "OCC3D_NUSCENES",
    "OPENOCC_V2",
    "SURROUNDOCC",
    "OPENOCCUPANCY",
    "SYNTHEOCC",
    "SYNTHEOCC_COARSE",
    "SEMANTIC_KITTI",
    "NYUV2",
    "TARTANAIR",
    "PlaneSpec",
    "SemanticMPI",
    "render_mpi",
    "Editor",
    "Recipe",
    "cast_rays",
    "Taxonomy",
    "TAXONOMIES",
    "taxonomy_named",
]
__getattr__, __dir__ = lazy_attributes(__name__, _EXPORTS)

if TYPE_CHECKING:
    from syntheocc.occupancy.cameras import NUSCENES_CAMERAS, Camera, CameraRig
    from syntheocc.occupancy.distortion import BrownConrady, KannalaBrandt
    from syntheocc.occupancy.editing import Editor, Recipe
    from syntheocc.occupancy.grids import (
        NYUV2,
        OCC3D_NUSCENES,
        OPENOCC_V2,
        OPENOCCUPANCY,
        SEMANTIC_KITTI,
        SURROUNDOCC,
        SYNTHEOCC,
        SYNTHEOCC_COARSE,
        TARTANAIR,
        GridSpec,
        OccupancyGrid,
        Preset,
    )
    from syntheocc.occupancy.rendering.mpi import PlaneSpec, SemanticMPI, render_mpi
    from syntheocc.occupancy.rendering.raycast import cast_rays
    from syntheocc.occupancy.taxonomy import TAXONOMIES, Taxonomy, taxonomy_named
