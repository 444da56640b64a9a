"""The occupancy label files of one key frame, in every dataset's own format.

| folder below the data root                                 | format                                    |
|------------------------------------------------------------|-------------------------------------------|
| `gts/<scene>/<sample>/labels.npz`                          | Occ3D with both masks                     |
| `occ3d_panoptic/<scene>/<sample>/labels.npz`               | the same and instances (SparseOcc)        |
| `dense_voxels_with_semantic_z-5/<lidar file>.npy`          | SyntheOcc, 0.2 m                          |
| `nuscenes_occ/samples/<lidar file>.npy`                    | SurroundOcc, 0.5 m                        |
| `nuScenes-Occupancy/scene_<scene>/occupancy/<lidar>.npy`   | OpenOccupancy, 0.2 m                      |

The sparse formats and Occ3D's `semantics` know no unseen voxels: they are free there, and Occ3D's masks tell.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from syntheocc.occupancy.accumulation.visibility import camera_mask
from syntheocc.occupancy.accumulation.voting import numbered_instances
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.occ3d import Occ3DLabels, write_occ3d
from syntheocc.occupancy.data.occupancy_files import occupancy_path, preset_of
from syntheocc.occupancy.data.voxel_rows import ZYX, write_rows
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OPENOCCUPANCY, SURROUNDOCC, SYNTHEOCC, OccupancyGrid, Preset
from syntheocc.worlds.accumulate import Accumulation
from syntheocc.worlds.labels import exact_labels
from syntheocc.worlds.taxonomy import WORLD_TAXONOMY

__all__ = ["LABEL_ROOTS", "PANOPTIC_ROOT", "write_labels"]

LABEL_ROOTS = {
    "syntheocc": ".",
    "surroundocc": "nuscenes_occ",
    "openoccupancy": "nuScenes-Occupancy",
    "occ3d": "gts",
}
PANOPTIC_ROOT = "occ3d_panoptic"
_SPARSE: dict[str, dict[str, Any]] = {
    "syntheocc": {"dtype": np.int16},
    "surroundocc": {"dtype": np.int16, "zero_is_noise": True},
    "openoccupancy": {"dtype": np.int16, "zero_is_noise": True, "columns": ZYX},
}


def write_labels(
    root: Path,
    frame: Frame,
    scene: Any,
    index: int,
    accumulation: Accumulation,
    labels: Literal["exact", "accumulated"] = "exact",
) -> None:
    """Write all label files of a key frame.

    Args:
        root: the data root.
        frame: the key frame (`timeline.key_frame`): names, tokens and cameras.
        scene: the `Scene`.
        index: which of its key frames.
        accumulation: its sweeps; Occ3D's mask_lidar always comes from them.
        labels: from the geometry, or from the sweeps.
    """

    def make(preset: Preset) -> tuple[OccupancyGrid, Tensor]:
        if labels == "exact":
            return exact_labels(scene, scene.key_times[index], preset)
        return accumulation.labels(index, preset, unseen=False)

    # SyntheOcc's grid is the inside of OpenOccupancy's.
    wide, _ = make(Preset(OPENOCCUPANCY.spec, WORLD_TAXONOMY))
    margin = round((SYNTHEOCC.spec.lower[0] - OPENOCCUPANCY.spec.lower[0]) / SYNTHEOCC.spec.voxel_size[0])
    inner = wide.labels[margin:-margin, margin:-margin].contiguous()
    grids = {
        "syntheocc": OccupancyGrid(inner, SYNTHEOCC.spec, WORLD_TAXONOMY, scene.lidar2ego),
        "openoccupancy": wide,
        "surroundocc": make(Preset(SURROUNDOCC.spec, WORLD_TAXONOMY))[0],
    }
    for kind, rows in _SPARSE.items():
        grid = grids[kind].map_to(preset_of(kind).taxonomy)
        # int16: a quarter of the usual int64's size, and the readers take any integer.
        write_rows(occupancy_path(root / LABEL_ROOTS[kind], frame, kind), grid, *preset_of(kind), **rows)
    grid, instances = make(OCC3D_NUSCENES)
    occ3d = Occ3DLabels(
        grid,
        mask_lidar=accumulation.observed(index, OCC3D_NUSCENES.spec),
        mask_camera=camera_mask(grid.occupied(), grid.spec, frame.cameras),
    )
    write_occ3d(occ3d, occupancy_path(root / LABEL_ROOTS["occ3d"], frame, "occ3d"))
    panoptic = Occ3DLabels(grid, occ3d.mask_lidar, occ3d.mask_camera, numbered_instances(instances))
    write_occ3d(panoptic, occupancy_path(root / PANOPTIC_ROOT, frame, "occ3d"))
