"""Every lidar sweep of a scene with its pose: key sweeps and those between, from the tables or from infos.

The tables list them all (`sample_data`, 20 Hz). Infos of mmdetection3d 1.0's style carry up to ten earlier ones with
each key frame; other infos know the key sweeps alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.data.locate import ImageLocator
from syntheocc.occupancy.data.nuscenes import NuScenesTables
from syntheocc.occupancy.data.sweeps import poses_of
from syntheocc.occupancy.transforms import pose_from_quaternion

__all__ = ["LIDAR", "SweepFile", "sweeps_of_frames", "sweeps_of_tables"]

LIDAR = "LIDAR_TOP"


@dataclass(frozen=True, eq=False)
class SweepFile:
    """One sweep.

    Args:
        path: its file.
        timestamp_us: its stamp.
        lidar2ego, ego2global: float64 [4, 4] at that time.
        sample: the key frame's token that it is the key sweep of; "" for a sweep between key frames.
    """

    path: Path
    timestamp_us: int
    lidar2ego: Tensor
    ego2global: Tensor
    sample: str = ""

    @property
    def lidar2global(self) -> Tensor:
        """Float64 [4, 4]."""
        return self.ego2global @ self.lidar2ego


def sweeps_of_tables(tables: NuScenesTables, channel: str = LIDAR) -> dict[str, list[SweepFile]]:
    """Scene token -> its sweeps in time order.

    Raises:
        ValueError: a table, a row or a field that is needed and missing, or a pose that is none.
    """
    locate = ImageLocator(tables.root)
    rows = [row for row in tables.table("sample_data") if tables.channel_of(row) == channel]
    mounts, poses = (torch.from_numpy(pose) for pose in poses_of(tables, rows))
    found: dict[str, list[SweepFile]] = {}
    for row, mount, pose in zip(rows, mounts, poses, strict=True):
        sample = tables.field("sample_data", row, "sample_token")
        path, _ = locate(str(tables.field("sample_data", row, "filename")), channel)
        key = bool(tables.field("sample_data", row, "is_key_frame"))
        scene = tables.get("sample", sample).get("scene_token", "")
        stamp = int(tables.field("sample_data", row, "timestamp"))
        # Copies: a view would keep all poses alive, and take them along to another process.
        sweep = SweepFile(path, stamp, mount.clone(), pose.clone(), sample if key else "")
        found.setdefault(scene, []).append(sweep)
    return {scene: sorted(sweeps, key=lambda sweep: sweep.timestamp_us) for scene, sweeps in found.items()}


def sweeps_of_frames(frames: Sequence[Frame], root: Path | None = None) -> list[SweepFile]:
    """The sweeps that the key frames of one scene name, in time order, each once.

    Args:
        frames: key frames; those without sweep or pose are passed over.
        root: data root for the paths of sweeps between key frames, which were perhaps written elsewhere.

    Raises:
        ValueError: an entry of an info's `sweeps` whose pose is none.
    """
    locate = ImageLocator(root)
    found: dict[int, SweepFile] = {}
    for frame in frames:
        if frame.lidar_path is None or frame.lidar2ego is None or frame.ego2global is None:
            continue
        for entry in frame.extras.get("sweeps") or ():
            # SparseOcc's infos list the cameras' sweeps under the same key.
            if isinstance(entry, dict) and "data_path" in entry and "ego2global_translation" in entry:
                with about(f"sample {frame.token}, its sweep {entry['data_path']}"):
                    sweep = _sweep_of_info(entry, locate)
                found.setdefault(sweep.timestamp_us, sweep)
    for frame in frames:
        if frame.lidar_path is not None and frame.lidar2ego is not None and frame.ego2global is not None:
            found[frame.timestamp_us] = SweepFile(
                frame.lidar_path, frame.timestamp_us, frame.lidar2ego, frame.ego2global, frame.token
            )
    return [found[stamp] for stamp in sorted(found)]


def _sweep_of_info(entry: dict[str, Any], locate: ImageLocator) -> SweepFile:
    stamp = entry["timestamp"]
    return SweepFile(
        locate(str(entry["data_path"]), LIDAR)[0],
        int(stamp) if float(stamp) > 1e12 else round(float(stamp) * 1e6),
        pose_from_quaternion(entry["sensor2ego_translation"], entry["sensor2ego_rotation"]),
        pose_from_quaternion(entry["ego2global_translation"], entry["ego2global_rotation"]),
    )
