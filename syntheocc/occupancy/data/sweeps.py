"""Sweeps: the firings of a sensor before a key frame, as the nuScenes tables chain them.

nuScenes' lidar turns at 20 Hz and its cameras fire at 12 Hz, while key frames come at 2 Hz: about nine lidar and five
camera firings lie between two key frames. Legend: K firings, the newest first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from syntheocc.occupancy.data.nuscenes import NuScenesTables, Row
from syntheocc.occupancy.transforms import poses_from_quaternions

__all__ = [
    "CAMERA_SWEEPS",
    "LIDAR_SWEEPS",
    "SensorSweeps",
    "camera_sweeps",
    "lidar_sweeps",
    "poses_of",
    "table_numbers",
]

# As many as the published info files list: mmdetection3d's lidar sweeps, SparseOcc's camera sweeps (its spec, 1.2).
LIDAR_SWEEPS = 10
CAMERA_SWEEPS = 5


@dataclass(frozen=True, eq=False)
class SensorSweeps:
    """Firings of one sensor, the newest first.

    Args:
        filenames: relative to the data root.
        tokens: of their `sample_data` rows.
        timestamps_us: int64 [K].
        sensor2ego: float64 [K, 4, 4], the calibrated mount.
        ego2global: float64 [K, 4, 4], where the car was when the sensor fired.
        intrinsics: float64 [K, 3, 3] pixels of a camera, None for a lidar.
    """

    filenames: tuple[str, ...]
    tokens: tuple[str, ...]
    timestamps_us: np.ndarray
    sensor2ego: np.ndarray
    ego2global: np.ndarray
    intrinsics: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> "SensorSweeps":
        """Some of them."""
        matrices = None if self.intrinsics is None else self.intrinsics[part]
        return SensorSweeps(
            self.filenames[part],
            self.tokens[part],
            self.timestamps_us[part],
            self.sensor2ego[part],
            self.ego2global[part],
            matrices,
        )

    @property
    def sensor2global(self) -> np.ndarray:
        """float64 [K, 4, 4]."""
        return self.ego2global @ self.sensor2ego


def lidar_sweeps(tables: NuScenesTables, data: Row, most: int = LIDAR_SWEEPS) -> SensorSweeps | None:
    """The `most` firings of the lidar before a key frame, as mmdetection3d lists them: on past the key frame before.

    Args:
        tables: whose `sample_data` chains are followed.
        data: the key frame's lidar row.
        most: K at most; fewer at a drive's start.

    Returns:
        None where the tables chain no firings between key frames, or none at all.
    """
    rows = _before(tables, data, most)
    return None if not rows or rows[0].get("is_key_frame") else _sweeps(tables, rows)


def camera_sweeps(
    tables: NuScenesTables, key_rows: Mapping[str, Row], most: int = CAMERA_SWEEPS
) -> dict[str, SensorSweeps]:
    """The `most` firings of every camera before a key frame; entry k of all cameras together is one sweep.

    The published rule (specs/sparseocc.md 1.2): where any camera's chain ends, the entry before is repeated.

    Args:
        tables: whose `sample_data` chains are followed.
        key_rows: camera name -> its key frame's row.
        most: K.

    Returns:
        Camera name -> K firings; empty where the tables chain none between key frames (a drive's first frame).
    """
    chains = {name: _before(tables, row, most) for name, row in key_rows.items()}
    whole = min((len(chain) for chain in chains.values()), default=0)
    if not whole or all(chain[0].get("is_key_frame") for chain in chains.values()):
        return {}
    rows = [row for chain in chains.values() for row in (chain[:whole] + chain[whole - 1 : whole] * most)[:most]]
    together = _sweeps(tables, rows)
    return {name: together[most * i : most * (i + 1)] for i, name in enumerate(chains)}


def poses_of(tables: NuScenesTables, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """`sensor2ego` and `ego2global` of `sample_data` rows, each float64 [K, 4, 4].

    Raises:
        ValueError: a row that lacks its mount or ego pose, or one that is no pose; names file and token.
    """
    out = []
    for table, key in (("calibrated_sensor", "calibrated_sensor_token"), ("ego_pose", "ego_pose_token")):
        found = [tables.get(table, tables.field("sample_data", row, key)) for row in rows]
        shifts, turns = (
            table_numbers(tables, table, found, field, width) for field, width in (("translation", 3), ("rotation", 4))
        )
        names = [f"{tables.folder / table}.json, row {row['token']!r}" for row in found]
        out.append(poses_from_quaternions(shifts, turns, names))
    return out[0], out[1]


def _before(tables: NuScenesTables, data: Row, most: int) -> list[Row]:
    """Up to `most` rows before one in its sensor's chain, the newest first."""
    rows: list[Row] = []
    at = data
    while len(rows) < most and at.get("prev"):
        at = tables.get("sample_data", at["prev"])
        rows.append(at)
    return rows


def _sweeps(tables: NuScenesTables, rows: Sequence[Row]) -> SensorSweeps:
    mounts, ego2global = poses_of(tables, rows)
    matrices = None
    calibrated = [tables.get("calibrated_sensor", row["calibrated_sensor_token"]) for row in rows]
    if calibrated[0].get("camera_intrinsic"):
        matrices = np.array([tables.field("calibrated_sensor", row, "camera_intrinsic") for row in calibrated], float)
    return SensorSweeps(
        filenames=tuple(str(tables.field("sample_data", row, "filename")) for row in rows),
        tokens=tuple(row["token"] for row in rows),
        timestamps_us=np.array([tables.field("sample_data", row, "timestamp") for row in rows], dtype=np.int64),
        sensor2ego=mounts,
        ego2global=ego2global,
        intrinsics=matrices,
    )


def table_numbers(tables: NuScenesTables, table: str, rows: Sequence[Row], field: str, width: int) -> np.ndarray:
    """A field of `width` numbers of every row of a table, float64 [N, width]; ValueError naming file and token."""
    for row in rows:
        value = tables.field(table, row, field)
        if (
            not isinstance(value, list | tuple)
            or len(value) != width
            or not all(isinstance(v, int | float) for v in value)
        ):
            raise ValueError(
                f"{tables.folder / table}.json, row {row.get('token')!r}: {field} is {width} numbers, got {value!r}"
            )
    return np.array([row[field] for row in rows], dtype=np.float64).reshape(-1, width)
