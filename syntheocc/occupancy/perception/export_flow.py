"""Write occupancy flow in OccFlowNet's format.

    python -m syntheocc.occupancy.perception.export_flow --dataroot=DATA --output_dir=DATA/flow

One `<scene>/<token>.npz` a key frame (`data.flow_files`): where the voxels of annotated objects are in the key frames
up to three before and after it. Training here needs no such files; other programs may. What is there is not made
again. Specification: specs/occflownet_splattingocc.md 3.4.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from syntheocc.engine.flags import flag, parse_flags
from syntheocc.occupancy.data.flow_files import flow_path, write_flow
from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.perception.history import ShotHistory
from syntheocc.occupancy.perception.ray_boxes import match_boxes
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_frames import RayFrame, placed_boxes
from syntheocc.occupancy.perception.settings import SourceConfig
from syntheocc.occupancy.rendering.scatter import flow_rows

__all__ = ["ExportFlowConfig", "export_flow"]

# The published tool's classes and horizon.
_RAYS = RayConfig(frame_offsets=(-3, -2, -1, 0, 1, 2, 3))


@dataclass(kw_only=True)
class ExportFlowConfig(SourceConfig):
    """Settings of an export."""

    output_dir: Path = flag(Path("data/flow"), "folder of <scene>/<token>.npz", aliases=("out-dir",))
    overwrite: bool = flag(False, "make files again that are there")

    def __post_init__(self) -> None:
        self.check_source()
        self.output_dir = Path(self.output_dir)


def export_flow(config: ExportFlowConfig) -> int:
    """Write the files that are not there yet; neighbours beyond `max_samples` count.

    Returns:
        how many were written.

    Raises:
        ValueError: no frames, or one without scene, boxes or instance tokens.
    """
    from tqdm import tqdm

    history, written = ShotHistory(config.frames(everything=True)), 0
    for frame in tqdm(config.frames(), desc="flow", unit="frame"):
        with about(f"sample {frame.token}"):
            if not frame.scene:
                raise ValueError("flow files are sorted by scene name, which the frame's source does not hold")
            path = flow_path(config.output_dir, frame.scene, frame.token)
            if path.is_file() and not config.overwrite:
                continue
            near = [history.neighbour(frame.token, offset) for offset in _RAYS.frame_offsets]
            found = [None if neighbour is None else _boxes_alone(neighbour) for neighbour in near]
            motion = match_boxes(found, _RAYS, OCC3D_NUSCENES.spec).motion
            path.parent.mkdir(parents=True, exist_ok=True)
            write_flow(flow_rows(motion, OCC3D_NUSCENES.spec), _RAYS.frame_offsets, path)
            written += 1
    return written


def _boxes_alone(frame: Frame) -> RayFrame:
    """A key frame without its points and cameras."""
    ego2global = torch.eye(4, dtype=torch.float64) if frame.ego2global is None else frame.ego2global
    none = torch.zeros(0, 4, 4, dtype=torch.float64)
    boxes = None if frame.boxes is None else placed_boxes(frame.boxes, ego2global)
    points, labels = torch.zeros(0, 3), torch.zeros(0, dtype=torch.uint8)
    return RayFrame(points, labels, ego2global, torch.zeros(3).double(), none[:, :3, :3], none, none[:, 0, :2], boxes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    config = parse_flags(ExportFlowConfig, argv, description="Write occupancy flow files.")
    try:
        written = export_flow(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{written} files written into {config.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
