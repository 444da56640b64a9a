"""Sweeps as each info style lists them.

`mmdet3d_v1.0`, `bevdet` and `openoccupancy` have `sweeps`: lidar firings, poses as quaternions and `sensor2lidar_*` to
the key frame's lidar. `mmdet3d_v1.1` has `lidar_sweeps`: lidar firings, poses as matrices and `lidar2sensor` from the
key frame's lidar. `sweep` (SparseOcc) has `sweeps` of another kind: one dict of all cameras for each firing,
`sensor2global_*` with the rotation TRANSPOSED. Sources: mmdetection3d's documentation of its nuScenes infos;
specs/sparseocc.md 1.2.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from syntheocc.occupancy.data.sweeps import SensorSweeps
from syntheocc.occupancy.transforms import quaternions_from_rotations

__all__ = ["camera_sweep_entries", "lidar_sweep_entries", "lidar_sweep_entries_v11", "quaternion_fields"]

Spelling = Callable[[str], str]


def quaternion_fields(prefix: str, poses: np.ndarray) -> list[dict[str, list[float]]]:
    """`<prefix>_translation` and `<prefix>_rotation` (w x y z, w >= 0) of poses [N, 4, 4]."""
    quaternions = quaternions_from_rotations(poses[:, :3, :3]).tolist()
    return [
        {f"{prefix}_translation": translation, f"{prefix}_rotation": quaternion}
        for translation, quaternion in zip(poses[:, :3, 3].tolist(), quaternions, strict=True)
    ]


def lidar_sweep_entries(sweeps: SensorSweeps, global2lidar: np.ndarray, spelled: Spelling) -> list[dict[str, Any]]:
    """Entries of mmdetection3d 1.0 and its descendants.

    Args:
        sweeps: firings before the key frame.
        global2lidar: [4, 4], of the key frame's lidar at its time.
        spelled: a file name relative to the data root -> as it is written.
    """
    sensor2lidar = global2lidar @ sweeps.sensor2global
    mounts = quaternion_fields("sensor2ego", sweeps.sensor2ego)
    poses = quaternion_fields("ego2global", sweeps.ego2global)
    return [
        {
            "data_path": spelled(sweeps.filenames[k]),
            "type": "lidar",
            "sample_data_token": sweeps.tokens[k],
            **mounts[k],
            **poses[k],
            "timestamp": int(sweeps.timestamps_us[k]),
            "sensor2lidar_rotation": sensor2lidar[k, :3, :3].copy(),
            "sensor2lidar_translation": sensor2lidar[k, :3, 3].copy(),
        }
        for k in range(len(sweeps))
    ]


def lidar_sweep_entries_v11(sweeps: SensorSweeps, lidar2global: np.ndarray, spelled: Spelling) -> list[dict[str, Any]]:
    """Entries of mmdetection3d 1.1; the arguments are those of `lidar_sweep_entries` but for the inverse pose."""
    lidar2sensor = (np.linalg.inv(sweeps.sensor2global) @ lidar2global).tolist()
    mounts, poses = sweeps.sensor2ego.tolist(), sweeps.ego2global.tolist()
    return [
        {
            "lidar_points": {
                "lidar_path": spelled(sweeps.filenames[k]),
                "lidar2ego": mounts[k],
                "ego2global": poses[k],
                # The documentation has it beside lidar_points, mmdetection3d's loader asks for it inside.
                "lidar2sensor": lidar2sensor[k],
            },
            "lidar2sensor": lidar2sensor[k],
            "timestamp": int(sweeps.timestamps_us[k]) / 1e6,
            "sample_data_token": sweeps.tokens[k],
        }
        for k in range(len(sweeps))
    ]


def camera_sweep_entries(cameras: Mapping[str, SensorSweeps], spelled: Spelling) -> list[dict[str, dict[str, Any]]]:
    """Entries of SparseOcc's sweep infos: one dict of all cameras for each firing, the newest first."""
    count = min((len(sweeps) for sweeps in cameras.values()), default=0)
    sensor2global = {name: sweeps.sensor2global for name, sweeps in cameras.items()}
    entries: list[dict[str, dict[str, Any]]] = []
    for k in range(count):
        entry = {}
        for name, sweeps in cameras.items():
            assert sweeps.intrinsics is not None, "a camera's sweeps without intrinsics"
            entry[name] = {
                "data_path": spelled(sweeps.filenames[k]),
                "timestamp": int(sweeps.timestamps_us[k]),
                "cam_intrinsic": sweeps.intrinsics[k].copy(),
                "sensor2global_rotation": sensor2global[name][k, :3, :3].T.copy(),
                "sensor2global_translation": sensor2global[name][k, :3, 3].copy(),
            }
        entries.append(entry)
    return entries
