"""Labels of edited frames in the data sets' forms: another grid's voxels, Occ3D's masks, nuScenes' annotation rows.

Legend: X Y Z voxels, N boxes.
"""

import math
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.nuscenes import CATEGORY_TO_DETECTION
from syntheocc.occupancy.data.occ3d import Occ3DLabels
from syntheocc.occupancy.editing.editor import Editor
from syntheocc.occupancy.editing.state import new_token
from syntheocc.occupancy.grids import OccupancyGrid, Preset
from syntheocc.occupancy.taxonomy import UNKNOWN
from syntheocc.occupancy.transforms import invert_rigid, quaternion_from_rotation, transform_points

__all__ = ["annotation_rows", "edited_occ3d", "resampled"]


def resampled(grid: OccupancyGrid, preset: Preset, grid2ego: Any = None) -> tuple[OccupancyGrid, Tensor]:
    """The same scene in another grid and class table.

    A voxel is asked at a lattice of points, as close as the source's voxels. It takes the commonest class among the
    points that are neither free nor unknown (of equals the smallest id), where they are at least 5 % of the known
    ones: the rule by which the published coarse labels were made of fine ones (`data.downsampling`).

    Args:
        grid: the source.
        preset: the target's geometry and class table.
        grid2ego: [4, 4] of the target, where it is not in ego.

    Returns:
        The grid (free where nothing is known), and bool [X, Y, Z], where the source knows anything.
    """
    source = grid.map_to(preset.taxonomy)
    target = OccupancyGrid(torch.full(preset.spec.shape, preset.taxonomy.free, dtype=torch.uint8), *preset, grid2ego)
    per_edge = max(1, math.ceil(min(preset.spec.voxel_size) / max(grid.spec.voxel_size) - 1e-6))
    steps = (torch.arange(per_edge, dtype=torch.float64) + 0.5) / per_edge - 0.5
    size = torch.tensor(preset.spec.voxel_size, dtype=torch.float64)
    target2source = invert_rigid(grid.grid2ego) @ target.grid2ego
    centers = preset.spec.centers().reshape(-1, 3)
    labels = source.labels.cpu()
    votes = torch.zeros(len(centers), preset.taxonomy.num_classes, dtype=torch.int16)
    for shift in torch.cartesian_prod(steps, steps, steps).reshape(-1, 3):
        index, inside = grid.spec.index_of(transform_points(target2source, centers + shift * size))
        found = torch.where(inside, labels[tuple(index.T)], UNKNOWN)
        known = (found != UNKNOWN).nonzero()[:, 0]
        votes[known, found[known].long()] += 1
    total = votes.sum(1)
    votes[:, preset.taxonomy.free] = 0
    held = votes.sum(1)
    chosen = torch.where((held > 0) & (held >= 0.05 * total), votes.argmax(1), preset.taxonomy.free)
    target.labels = chosen.to(torch.uint8).reshape(preset.spec.shape)
    return target, (total > 0).reshape(preset.spec.shape)


def edited_occ3d(labels: Occ3DLabels, editor: Editor) -> Occ3DLabels:
    """An Occ3D file's arrays after an edit of its grid.

    Changed voxels count as observed by lidar and cameras, for their labels are known; what an inserted object hides
    keeps its masks. Instances: 0 where an object was, new numbers for inserted and moved ones.

    Args:
        labels: as read.
        editor: of `labels.grid`.
    """
    changed = editor.changed.cpu()
    masks = {
        name: None if mask is None else mask | changed
        for name, mask in (("mask_lidar", labels.mask_lidar), ("mask_camera", labels.mask_camera))
    }
    instances = labels.instances
    if instances is not None:
        highest, most = int(instances.max()), torch.iinfo(instances.dtype).max
        instances = torch.where(changed & (instances != 0), 0, instances)
        for i, index in enumerate(editor.voxels_of_inserted().values()):
            if highest + i + 1 > most:
                raise ValueError(
                    f"the file's {instances.dtype} instances end at {most}; none is left for inserted objects"
                )
            instances[tuple(index.T)] = highest + i + 1
    return Occ3DLabels(editor.grid.to("cpu"), **masks, instances=instances)


def annotation_rows(frame: Frame) -> list[dict[str, Any]]:
    """The boxes of a frame as rows of nuScenes' `sample_annotation` table (with `category_name`, as devkit exports).

    Point counts that are unknown are written as 0, as the tables have no other word for it.

    Raises:
        ValueError: the frame has no boxes or no ego2global.
    """
    boxes, ego2global = frame.boxes, frame.ego2global
    if boxes is None or ego2global is None:
        raise ValueError(f"sample {frame.token}: annotations need boxes and ego2global")
    category = {name: full for full, name in reversed(CATEGORY_TO_DETECTION.items())}
    rows = []
    for i, name in enumerate(boxes.names):
        pose = ego2global @ boxes.box2ego[i]
        length, width, height = boxes.sizes[i].tolist()
        instance = boxes.instance_tokens[i] or new_token(frame.token, "box", str(i))
        rows.append(
            {
                "token": new_token(frame.token, "annotation", instance),
                "sample_token": frame.token,
                "instance_token": instance,
                "category_name": category.get(name, name),
                "visibility_token": "4",
                "attribute_tokens": [],
                "translation": pose[:3, 3].tolist(),
                "size": [width, length, height],
                "rotation": quaternion_from_rotation(pose[:3, :3]).tolist(),
                "num_lidar_pts": max(int(boxes.num_lidar_points[i]), 0),
                "num_radar_pts": max(int(boxes.num_radar_points[i]), 0),
                "prev": "",
                "next": "",
            }
        )
    return rows
