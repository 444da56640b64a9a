"""A scene for the tiny models that are taught by rendering: images, cameras, voxels, and rays cast into them."""

import torch

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.perception.batch import OccupancyBatch
from syntheocc.occupancy.perception.transforms import GridTransform, transform_labels
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels

TINY_GRID = GridSpec((-16.0, -16.0, -1.0), (0.8, 0.8, 0.8), (40, 40, 8))
FREE = OCC3D_NUSCENES.taxonomy.free
SIZE = (64, 96)


def scene_labels() -> torch.Tensor:
    """A road, sidewalks, walls around and two cars."""
    labels = torch.full(TINY_GRID.shape, FREE, dtype=torch.uint8)
    labels[:, :, 0] = 13
    labels[:, 14:26, 0] = 11
    labels[26:31, 17:20, 1:3] = 4
    labels[8:13, 21:24, 1:3] = 4
    labels[[0, -1], :, 1:6] = 15
    labels[:, [0, -1], 1:6] = 15
    return labels


def ring(shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Intrinsics [3, 3, 3] and cam2ego [3, 4, 4] of three level cameras 120 degrees wide apart."""
    k = torch.tensor([[40.0, 0, 47.5], [0, 40.0, 31.5], [0, 0, 1]], dtype=torch.float64)
    poses = []
    for yaw in torch.tensor([0.0, 120.0, 240.0], dtype=torch.float64).deg2rad():
        pose = torch.eye(4, dtype=torch.float64)
        c, s = yaw.cos(), yaw.sin()
        pose[:3, :3] = torch.stack([torch.stack([s, 0 * s, c]), torch.stack([-c, 0 * s, s]), torch.tensor([0, -1, 0])])
        pose[:3, 3] = torch.tensor([shift, 0.0, 1.3])
        poses.append(pose)
    return k.expand(3, 3, 3), torch.stack(poses)


def scene_rays(number: int = 1500, frame_offsets=(-1, 0, 1), seed: int = 0) -> RayLabels:
    """Rays of random pixels of the current and of two other frames, to what they hit."""
    g = torch.Generator().manual_seed(seed)
    frames = torch.randint(len(frame_offsets), (number,), generator=g)
    cameras = torch.randint(3, (number,), generator=g)
    pixels = torch.rand(number, 2, generator=g, dtype=torch.float64) * torch.tensor([95.0, 63.0])
    k, poses = ring()
    shift = torch.tensor(frame_offsets, dtype=torch.float64)[frames] * 0.8
    inverse = torch.linalg.inv(k[0])
    local = torch.cat([pixels, torch.ones(number, 1)], 1) @ inverse.T
    directions = torch.nn.functional.normalize((poses[cameras, :3, :3] @ local[..., None])[..., 0], dim=-1)
    origins = poses[cameras, :3, 3] + torch.stack([shift, 0 * shift, 0 * shift], 1)
    labels = scene_labels()
    distance, index, hit = cast_rays(labels != FREE, origins, directions, TINY_GRID, distance="entry")
    keep = hit & (distance > 0.1) & (distance < 19)
    z = distance * torch.nn.functional.normalize(local, dim=-1)[:, 2]
    rays = RayLabels(
        origins=origins.float(),
        directions=directions.float(),
        distance=distance.float(),
        depth=z.float(),
        labels=labels[index.unbind(-1)].long(),
        weights=torch.ones(number),
        frames=frames,
        cameras=cameras,
        pixels=pixels.float(),
        samples=torch.zeros_like(frames),
        frame_offsets=frame_offsets,
    )
    return rays.select(keep)


def parked_and_moving() -> BoxMotion:
    """The first car, 1.6 m further ahead in the next frame and as much further back in the one before."""
    center = torch.tensor([6.8, -1.2, 0.6])
    poses = []
    for shift in (-1.6, 1.6):
        pose = torch.eye(4)
        pose[:3, 3] = center + torch.tensor([shift, 0.0, 0.0])
        poses.append(pose)
    source = torch.eye(4)
    source[:3, 3] = center
    return BoxMotion(
        source2ego=source.expand(2, 4, 4).clone(),
        target2ego=torch.stack(poses),
        sizes=torch.tensor([[3.6, 2.0, 1.2]]).expand(2, 3).clone(),
        labels=torch.full((2,), 4),
        frames=torch.tensor([0, 2]),
        samples=torch.zeros(2, dtype=torch.int64),
    )


def scene_batch(turn: GridTransform | None = None, samples: int = 1, seed: int = 0) -> OccupancyBatch:
    """Samples of the scene with random images, three frames each 0.8 m apart; the grid mirrored by `turn`."""
    turn = turn or GridTransform()
    matrices = []
    for t in range(3):
        k, poses = ring(-0.8 * t)
        whole = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
        whole[:, :3, :3] = k
        matrices.append(whole @ torch.linalg.inv(poses) @ torch.linalg.inv(turn.matrix()))
    ego2img = torch.stack(matrices).float()[None]
    images = torch.randint(0, 256, (1, 3, 3, 3, *SIZE), generator=torch.Generator().manual_seed(seed))
    rays = scene_rays(seed=seed)
    motion = parked_and_moving()
    return OccupancyBatch(
        images=images.to(torch.uint8).expand(samples, *images.shape[1:]),
        ego2img=ego2img.expand(samples, *ego2img.shape[1:]),
        tokens=[f"s{i}" for i in range(samples)],
        shots=[["c", "b", "a"]] * samples,
        semantics=transform_labels(scene_labels(), TINY_GRID, turn).expand(samples, *TINY_GRID.shape),
        intrinsics=ring()[0].float().expand(samples, 3, 3, 3, 3),
        image_transforms=torch.eye(4).expand(samples, 3, 3, 4, 4),
        grid_transforms=turn.matrix().float().expand(samples, 4, 4),
        rays=RayLabels.collate([rays] * samples),
        motion=BoxMotion.collate([motion] * samples),
    )
