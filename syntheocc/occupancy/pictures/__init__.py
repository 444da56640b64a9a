"""Pictures of grids, labels, conditions and results: the one place that draws them.

A *picture* here is a numpy array, uint8 [H, W, 3], RGB. Everything that can be drawn (a PIL image, a torch tensor in
[0, 1], a float array) becomes one through :func:`as_picture`. Pillow is imported only where text, resampling or files
are needed, so that this package costs the lightweight one nothing.

| module           | draws                                                             |
|------------------|-------------------------------------------------------------------|
| `basics`         | palette views, blending, resampling, files                        |
| `sheets`         | titles, legends, contact sheets, strips                           |
| `colors`         | what a grid's voxels look like: classes, instances, errors        |
| `above`          | bird's-eye views                                                  |
| `oblique`        | solid voxels in 3D (`viewpoint`: from where, `faces`: what shows) |
| `camera_views`   | the grid in the cameras, over the photographs                     |
| `mesh`           | the surface as a mesh, also in files                              |
| `mesh_view`      | the surface as a smooth skin in 3D                                |
| `wires`          | where cameras stand and what they see                             |
| `completion`     | scene completion: pictures, prediction, truth                     |
| `rendered_views` | rendered depth and classes, beside the lidar's                    |
| `comparison`     | prediction, ground truth, errors                                  |
| `animation`      | a scene frame by frame                                            |
| `tracks`         | instances that keep their colour over a scene                     |
"""

from syntheocc.occupancy.pictures.above import bev_picture
from syntheocc.occupancy.pictures.animation import save_animation
from syntheocc.occupancy.pictures.basics import (
    BACKGROUND,
    UNKNOWN_COLOR,
    as_picture,
    condition_pictures,
    overlay,
    palette_picture,
    resized,
    save_picture,
    shaded,
)
from syntheocc.occupancy.pictures.camera_views import camera_overlays
from syntheocc.occupancy.pictures.colors import (
    ERROR_COLORS,
    VoxelColors,
    class_colors,
    error_colors,
    instance_color,
    panoptic_colors,
)
from syntheocc.occupancy.pictures.comparison import comparison_picture
from syntheocc.occupancy.pictures.completion import STREET_VIEW, completion_colors, completion_sheet
from syntheocc.occupancy.pictures.mesh import Mesh, save_ply, surface_mesh
from syntheocc.occupancy.pictures.mesh_view import mesh_picture
from syntheocc.occupancy.pictures.oblique import oblique_picture
from syntheocc.occupancy.pictures.rendered_views import depth_picture, rendered_views
from syntheocc.occupancy.pictures.sheets import (
    class_legend,
    contact_sheet,
    labelled,
    legend,
    strip,
    tiled,
    with_legend,
)
from syntheocc.occupancy.pictures.tracks import InstanceTracks
from syntheocc.occupancy.pictures.viewpoint import Viewpoint
from syntheocc.occupancy.pictures.wires import camera_wires, seen_by

__all__ = [
    "BACKGROUND",
    "ERROR_COLORS",
    "InstanceTracks",
    "Mesh",
    "STREET_VIEW",
    "UNKNOWN_COLOR",
    "Viewpoint",
    "VoxelColors",
    "as_picture",
    "bev_picture",
    "camera_overlays",
    "camera_wires",
    "class_colors",
    "class_legend",
    "comparison_picture",
    "completion_colors",
    "completion_sheet",
    "condition_pictures",
    "contact_sheet",
    "depth_picture",
    "error_colors",
    "instance_color",
    "labelled",
    "legend",
    "mesh_picture",
    "oblique_picture",
    "overlay",
    "palette_picture",
    "panoptic_colors",
    "rendered_views",
    "resized",
    "save_animation",
    "save_picture",
    "save_ply",
    "seen_by",
    "shaded",
    "strip",
    "surface_mesh",
    "tiled",
    "with_legend",
]
