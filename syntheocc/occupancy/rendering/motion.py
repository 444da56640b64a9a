"""Objects that moved between frames: where a sample of another frame's ray is looked up in the key frame's volume.

Instead of moving voxels (`rendering.scatter`), which leaves holes, every sample p of a ray of another frame goes back
to where it was at key time (specs/occflownet_splattingocc.md 3.6):

(i) p in a box as it stands at the other frame's time: looked up at ``target2source @ p``, where the object is in the
volume; (ii) else p in a box as it stands at key time: the object has left, nothing is there; (iii) else at p.

Boxes are padded, and the road under a car is not to move or vanish with it. So, as in the published scattering, only
voxels of classes that boxes have move, if the volume says which those are (`Field.stays`): (i) is then what of them is
at the source, or what is at p, whichever is denser; and (ii) what of the other classes is at p. Where boxes overlap
the first row counts.

A box is convex and a ray straight, so a ray is in a box between two distances, and in a moved box it is looked up
along another straight ray. Both are found once a ray and box; the samples only compare distances.

Legend: R rays, S samples, M boxes, K boxes of the ray with the most, N points.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.rendering.rays import BoxMotion
from syntheocc.occupancy.transforms import slab_crossings

__all__ = ["RayWarp", "box_stretches", "rays_and_boxes", "turned", "warp_points", "warp_rays"]


@dataclass(eq=False)
class RayWarp:
    """Stretches of rays that are looked up elsewhere; columns beyond a ray's own are never entered.

    Args:
        enter, leave: [R, K] metres along the ray, in boxes at the ray's time; origins, directions [R, K, 3] the ray as
            the volume is looked up there.
        left_enter, left_leave: [R, L] metres, in boxes at key time.
    """

    enter: Tensor
    leave: Tensor
    origins: Tensor
    directions: Tensor
    left_enter: Tensor
    left_leave: Tensor

    def select(self, rays: Tensor) -> "RayWarp":
        """The rows of some rays (int64 indices or a bool mask)."""
        return RayWarp(*(value[rays] for value in vars(self).values()))

    def apply(
        self,
        points: Tensor,  # [R, S, 3]
        distances: Tensor,  # [R, S]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where points were at key time.

        Args:
            points: metres, on the rays.
            distances: of the points along the rays.

        Returns:
            the points [R, S, 3], moved ones where the object had them at key time; which are moved, and which lie in a
            box at key time, two bool [R, S].
        """
        # All boxes at once: a loop over them launches thousands of small kernels a training step on a GPU.
        inside = _within(distances, self.enter, self.leave)
        boxes = inside.shape[-1]
        if boxes:
            # The first box of those that a point is in.
            order = torch.arange(boxes, 0, -1, device=points.device, dtype=torch.int32)
            first = boxes - (inside * order).amax(-1).clamp_min(1).long()  # [R, S]
            moved = inside.any(-1)
            start, way = (
                torch.take_along_dim(part, first[..., None], 1) for part in (self.origins, self.directions)
            )  # [R, S, 3]
            points = torch.where(moved[..., None], start + way * distances[..., None], points)
        else:
            moved = torch.zeros_like(distances, dtype=torch.bool)
        return points, moved, _within(distances, self.left_enter, self.left_leave).any(-1)


def _within(distances: Tensor, enter: Tensor, leave: Tensor) -> Tensor:
    """Which stretches [R, K] distances [R, S] lie in: bool [R, S, K]."""
    return (distances[..., None] >= enter[:, None]) & (distances[..., None] <= leave[:, None])


def warp_rays(
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    frames: Tensor,  # [R]
    samples: Tensor,  # [R]
    motion: BoxMotion,
) -> RayWarp:
    """Finds the stretches of each ray in the boxes of its frame and sample.

    Args:
        origins: metres, key ego frame.
        directions: unit vectors.
        frames: int64, as in the boxes; rays of the key frame have no boxes and stay as they are.
        samples: int64, index in the batch.
        motion: the boxes.
    """
    boxes = motion.to(origins.device, origins.dtype)
    ray, box = rays_and_boxes(frames, samples, boxes)
    half = boxes.padded_sizes / 2
    spans = [box_stretches(pose, half, origins, directions, ray, box) for pose in (boxes.target2ego, boxes.source2ego)]
    (enter, leave), (left_enter, left_leave) = spans
    back = boxes.target2source
    start = turned(back[box, :3, :3], origins[ray]) + back[box, :3, 3]
    way = turned(back[box, :3, :3], directions[ray])
    hit, left = leave >= enter, left_leave >= left_enter
    moved = _by_ray(ray[hit], len(origins), enter[hit], leave[hit], start[hit], way[hit])
    return RayWarp(*moved, *_by_ray(ray[left], len(origins), left_enter[left], left_leave[left]))


def warp_points(
    points: Tensor,  # [N, 3]
    frames: Tensor,  # [N]
    samples: Tensor,  # [N]
    motion: BoxMotion,
) -> tuple[Tensor, Tensor, Tensor]:
    """`RayWarp.apply` point by point and box by box; `warp_rays` is what is fast.

    Args:
        points: metres, key ego frame.
        frames: int64, the frame that each point was seen in.
        samples: int64, index in the batch.
        motion: the boxes.

    Returns:
        where the points were, [N, 3]; which are moved, and which lie in a box at key time, two bool [N].
    """
    at = points.clone()
    moved, left = torch.zeros_like(frames, dtype=torch.bool), torch.zeros_like(frames, dtype=torch.bool)
    half, back = motion.padded_sizes / 2, motion.target2source
    for m in range(len(motion)):
        same = (frames == motion.frames[m]) & (samples == motion.samples[m])
        in_target, in_source = (
            same & (((points - pose[m, :3, 3]) @ pose[m, :3, :3]).abs() <= half[m]).all(1)
            for pose in (motion.target2ego, motion.source2ego)
        )
        first = in_target & ~moved
        at[first] = points[first] @ back[m, :3, :3].T + back[m, :3, 3]
        moved |= in_target
        left |= in_source
    return at, moved, left


def rays_and_boxes(frames: Tensor, samples: Tensor, boxes: BoxMotion) -> tuple[Tensor, Tensor]:
    """Pairs of a ray and a box of the same frame and sample, by ray and then by box: two int64 [P]."""
    if not len(boxes) or not len(frames):
        none = torch.zeros(0, dtype=torch.int64, device=frames.device)
        return none, none
    span = torch.maximum(frames.max(), boxes.frames.max()) + 1
    ray_key, box_key = samples * span + frames, boxes.samples * span + boxes.frames
    ordered = box_key.argsort(stable=True)
    keys = box_key[ordered].contiguous()
    first = torch.searchsorted(keys, ray_key.contiguous())
    count = torch.searchsorted(keys, ray_key.contiguous(), right=True) - first
    ray = torch.arange(len(frames), device=frames.device).repeat_interleave(count)
    offset = torch.arange(len(ray), device=frames.device) - (count.cumsum(0) - count).repeat_interleave(count)
    return ray, ordered[first[ray] + offset]


def box_stretches(
    pose: Tensor, half: Tensor, origins: Tensor, directions: Tensor, ray: Tensor, box: Tensor
) -> tuple[Tensor, Tensor]:
    """Distances [P] between which ray is in box; the second is smaller where it never is."""
    # Ego to box: the transposed rotation.
    ego2box = pose[box, :3, :3].transpose(1, 2)
    start = turned(ego2box, origins[ray] - pose[box, :3, 3])
    way = turned(ego2box, directions[ray])
    near, far = slab_crossings(start, way, -half[box], half[box])
    return near.amax(1).clamp_min(0), far.amin(1)


def turned(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrices [P, 3, 3] times vectors [P, 3], written out: autocast and TF32 would round a product's metres."""
    return (matrices * vectors[:, None]).sum(-1)


def _by_ray(ray: Tensor, rays: int, *columns: Tensor) -> list[Tensor]:
    """Values [P, ...] of pairs, by ray, as [R, K, ...]; what is left over is -1, and so no stretch of any ray."""
    count = torch.bincount(ray, minlength=rays)
    slot = torch.arange(len(ray), device=ray.device) - (count.cumsum(0) - count)[ray]
    width = int(count.max()) if rays else 0
    padded = []
    for values in columns:
        rows = values.new_full((rays, width, *values.shape[1:]), -1)
        rows[ray, slot] = values
        padded.append(rows)
    return padded
