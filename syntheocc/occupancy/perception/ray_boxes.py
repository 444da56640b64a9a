"""Which boxes of two key frames are the same object, and which points lie in boxes.

Legend: M boxes, n points. Specification: specs/occflownet_splattingocc.md 3.4, 3.6.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_frames import PlacedBoxes, RayFrame
from syntheocc.occupancy.rendering.rays import BoxMotion, FrameBoxes
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["MatchedBoxes", "in_target_boxes", "match_boxes", "through_boxes"]

# Pairs of a point and a box that a GPU looks at in one go.
PAIRS = 1 << 24


class MatchedBoxes(NamedTuple):
    """Objects of the flow classes in the key frame and its neighbours, all in the key frame's coordinates, on the CPU.

    motion: those that both have. appeared: those of a neighbour that the key frame lacks, where they stand in the
    neighbour. vanished: those of the key frame that a neighbour lacks, where they stand in the key frame.
    """

    motion: BoxMotion
    appeared: FrameBoxes
    vanished: FrameBoxes

    def to(self, device: torch.device | str) -> "MatchedBoxes":
        """On another device."""
        return MatchedBoxes(self.motion.to(device), self.appeared.to(device), self.vanished.to(device))


def match_boxes(frames: Sequence[RayFrame | None], config: RayConfig, grid: GridSpec) -> MatchedBoxes:
    """Match boxes by instance token between the key frame and each neighbour.

    Of the key frame's boxes those count whose class is one of `flow_classes`, that hold a lidar point (or nobody knows
    how many), and whose centre lies in the grid; of the neighbours' all of these classes.

    Args:
        frames: one for each of `config.frame_offsets`, None where the scene has none.
        config: names the classes.
        grid: of the key frame.

    Raises:
        ValueError: a frame without annotations, or boxes without instance tokens: their motion is unknown.
    """
    key = frames[config.key]
    assert key is not None
    global2key = invert_rigid(key.frame2global)
    own = _movable(key, config)
    _, inside = grid.index_of((global2key @ own.box2global)[:, :3, 3])
    counted = (inside & (own.num_points != 0)).tolist()
    row_of = {token: row for row, token in enumerate(own.instances) if token and counted[row]}
    pairs: list[tuple[int, int, int]] = []  # row of the key frame, row of its neighbours, frame
    appeared: list[tuple[int, int]] = []
    vanished: list[tuple[int, int]] = []
    others = []
    start = 0
    for t, frame in enumerate(frames):
        if frame is None or t == config.key:
            continue
        there = own if frame is key else _movable(frame, config)
        found = set()
        for i, token in enumerate(there.instances):
            row = row_of.get(token)
            if row is None or row in found:
                appeared.append((start + i, t))
            else:
                found.add(row)
                pairs.append((row, start + i, t))
        vanished += [(row, t) for row in row_of.values() if row not in found]
        start += len(there)
        others.append(there)
    at = _joined(others)
    source, target, when = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).unbind(1)
    motion = BoxMotion(
        source2ego=(global2key @ own.box2global[source]).float(),
        target2ego=(global2key @ at.box2global[target]).float(),
        sizes=own.sizes[source].float(),
        labels=own.labels[source],
        frames=when,
        samples=torch.zeros_like(when),
    )
    return MatchedBoxes(motion, _of_frames(at, appeared, global2key), _of_frames(own, vanished, global2key))


def _movable(frame: RayFrame, config: RayConfig) -> PlacedBoxes:
    """The frame's boxes of the flow classes."""
    boxes = frame.boxes
    if boxes is None:
        raise ValueError(
            "box motion is wanted, but a frame has no boxes; use data with annotations, or set dynamics to 'filter'"
        )
    if len(boxes) and not any(boxes.instances):
        raise ValueError(
            "box motion is wanted, but the boxes have no instance tokens; use OccFlowNet's infos or the JSON tables, "
            "or set dynamics to 'filter'"
        )
    keep = torch.isin(boxes.labels, torch.tensor(config.flow_classes)).nonzero()[:, 0]
    return PlacedBoxes(
        boxes.box2global[keep],
        boxes.sizes[keep],
        boxes.labels[keep],
        tuple(boxes.instances[i] for i in keep.tolist()),
        boxes.num_points[keep],
    )


def _joined(parts: Sequence[PlacedBoxes]) -> PlacedBoxes:
    if not parts:
        none = torch.zeros(0, dtype=torch.int64)
        double = torch.float64
        return PlacedBoxes(torch.zeros(0, 4, 4, dtype=double), torch.zeros(0, 3, dtype=double), none, (), none)
    return PlacedBoxes(
        torch.cat([part.box2global for part in parts]),
        torch.cat([part.sizes for part in parts]),
        torch.cat([part.labels for part in parts]),
        tuple(token for part in parts for token in part.instances),
        torch.cat([part.num_points for part in parts]),
    )


def _of_frames(boxes: PlacedBoxes, chosen: list[tuple[int, int]], global2key: Tensor) -> FrameBoxes:
    rows, when = torch.tensor(chosen, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return FrameBoxes(
        box2ego=(global2key @ boxes.box2global[rows]).float(),
        sizes=boxes.sizes[rows].float(),
        labels=boxes.labels[rows],
        frames=when,
        samples=torch.zeros_like(when),
    )


def in_target_boxes(points: Tensor, frames: Tensor, motion: BoxMotion) -> Tensor:
    """Which points lie in a padded box of their own frame, where it stands then.

    Args:
        points: [3, n] metres, key frame's coordinates.
        frames: int64 [n], as those of the boxes.
        motion: matched boxes of one sample, on the points' device.

    Returns:
        bool [n]; the faces belong to the box.
    """
    if not len(motion) or not len(frames):
        return torch.zeros_like(frames, dtype=torch.bool)
    # In units of half a box a point lies in it if none of its coordinates is beyond 1.
    scale = 2 / motion.padded_sizes[:, :, None]
    rotation = motion.target2ego[:, :3, :3].transpose(-1, -2) * scale
    offset = -(rotation @ motion.target2ego[:, :3, 3:])
    # On a GPU all pairs are cheaper than to know which frames there are.
    look = _frame_by_frame if points.device.type == "cpu" else _all_pairs
    return look(points, frames, motion.frames, rotation, offset)


def through_boxes(origins: Tensor, points: Tensor, frames: Tensor, boxes: FrameBoxes) -> Tensor:
    """Which ways from origin to point enter a box of their own frame; boxes as they are, without padding.

    Args:
        origins: [3, n] metres, key frame's coordinates.
        points: [3, n] likewise.
        frames: int64 [n], as those of the boxes.
        boxes: of one sample, on the points' device.

    Returns:
        bool [n].
    """
    through = torch.zeros_like(frames, dtype=torch.bool)
    for t in boxes.frames.unique().tolist():
        rows, own = (frames == t).nonzero()[:, 0], boxes.select(boxes.frames == t)
        there, at = origins.index_select(1, rows), points.index_select(1, rows)
        met = torch.zeros_like(rows, dtype=torch.bool)
        # A handful of objects: one after the other needs no pairs in memory.
        for pose, size in zip(own.box2ego, own.sizes, strict=True):
            met |= _meets(there, at, pose, size)
        through[rows] = met
    return through


def _meets(origins: Tensor, points: Tensor, box2ego: Tensor, size: Tensor) -> Tensor:
    """Which ways [3, n] to [3, n] are between all pairs of a box's faces at once: bool [n]."""
    rotation, half = box2ego[:3, :3].T, size[:, None] / 2
    start, end = (rotation @ place - (rotation @ box2ego[:3, 3])[:, None] for place in (origins, points))
    way = end - start
    # Parallel to a face: the way is between the planes for ever or never; so small a step finds out which.
    way = torch.where(way.abs() < 1e-9, 1e-9, way)
    one, other = (-half - start) / way, (half - start) / way
    enter, leave = torch.minimum(one, other).amax(0), torch.maximum(one, other).amin(0)
    return (enter <= leave) & (leave >= 0) & (enter <= 1)


def _frame_by_frame(points: Tensor, frames: Tensor, box_frames: Tensor, rotation: Tensor, offset: Tensor) -> Tensor:
    inside = torch.zeros_like(frames, dtype=torch.bool)
    for t in box_frames.unique().tolist():
        rows, boxes = (frames == t).nonzero()[:, 0], (box_frames == t).nonzero()[:, 0]
        beyond = _beyond(rotation[boxes], offset[boxes], points.index_select(1, rows))
        inside[rows] = beyond.amin(0) <= 1
    return inside


def _all_pairs(points: Tensor, frames: Tensor, box_frames: Tensor, rotation: Tensor, offset: Tensor) -> Tensor:
    inside = torch.zeros_like(frames, dtype=torch.bool)
    for part in torch.arange(len(frames), device=frames.device).split(max(1, PAIRS // len(box_frames))):
        within = _beyond(rotation, offset, points.index_select(1, part)) <= 1
        inside[part] = (within & (box_frames[:, None] == frames[part])).any(0)
    return inside


def _beyond(rotation: Tensor, offset: Tensor, points: Tensor) -> Tensor:
    """The largest of each point's coordinates in each box, without sign: [M, n]."""
    local = torch.addmm(offset.view(-1, 1), rotation.reshape(-1, 3), points).view(len(rotation), 3, -1).abs_()
    x, y, z = local.unbind(1)
    return torch.maximum(torch.maximum(x, y), z)
