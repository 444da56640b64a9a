"""Stereo pairs of the street world in KITTI's format for occdepth_models.py: made by workers, held on the GPU.

The same scenes, sensors, labels and unknown voxels as `worlds.kitti_tree` writes, without the files. Augmentation is
exact: the pictures mirrored (with their projection), the grid mirrored left to right; nothing is resampled.

Legend: N frames, V views, B samples, h w picture, X Y Z voxels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from perception_data import gathered
from torch import Tensor

from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.perception.occdepth.batch import StereoBatch
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig
from syntheocc.occupancy.perception.occdepth.frustums import frustum_tiles
from syntheocc.occupancy.taxonomy import UNKNOWN

# Seconds after which a voxel that nobody has seen stays unknown.
HORIZON = 7.0


@dataclass(frozen=True)
class StereoOrder:
    """What is to be made of each scene of a split."""

    split: str
    seed: int
    key_frames: int
    """Length of the drive, two a second."""
    frames: tuple[int, ...]
    """The key frames that are made."""
    image_size: tuple[int, int]
    """Height and width."""
    factor: int
    """Edge of a voxel that is learnt, in voxels of SemanticKITTI."""
    coarse_factor: int
    """Edge of a voxel of the relation prior's labels, in those."""
    device: str


def make_pairs(order: StereoOrder, number: int) -> dict[str, Tensor]:
    """Frames of scene `number`, tensors on the CPU.

    Returns:
        images uint8 [F, V, h, w, 3]; velo2img float64 [F, V, 4, 4]; intrinsics float64 [F, V, 3, 3]; depth float16
        [F, h, w] metres of the left picture, 0 in the sky; labels uint8 [F, X, Y, Z]; coarse uint8 [F, x, y, z].
    """
    from syntheocc.occupancy.data import kitti
    from syntheocc.occupancy.data.downsampling import downsample_labels
    from syntheocc.occupancy.transforms import invert_rigid, transform_points
    from syntheocc.worlds.camera_images import Shot, render_shots
    from syntheocc.worlds.kitti_labels import kitti_grid, seen_from
    from syntheocc.worlds.kitti_tree import kitti_view, nominal_calibration
    from syntheocc.worlds.scene import make_scene
    from syntheocc.worlds.splits import scene_seed

    device = torch.device(order.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches on the current device
    seed = scene_seed(order.seed, order.split, number)
    scene = make_scene(seed, split=order.split, key_frames=order.key_frames)
    calibration = nominal_calibration(order.image_size, scene.seed)
    rig = kitti.stereo_rig(calibration, order.image_size)
    view = kitti_view(scene, rig)
    times = [view.key_times[index] for index in order.frames]
    shots = [Shot(camera, view.ego.pose_at(t), t) for t in times for camera in view.rig.values()]
    views = render_shots(view, shots, device)
    intrinsics = torch.stack([camera.intrinsics for camera in rig.values()])
    projection = torch.eye(4, dtype=torch.float64).repeat(len(rig), 1, 1)
    projection[:, :3] = intrinsics @ torch.stack([camera.ego2cam for camera in rig.values()])[:, :3]
    labels, coarse = [], []
    for t in times:
        grid = kitti_grid(view, t)
        occupied, found = grid.labels != grid.taxonomy.free, grid.labels.clone()
        world2velodyne = invert_rigid(view.ego.pose_at(t) @ view.lidar2ego)
        seen = seen_from(occupied, grid.spec, torch.zeros(3, dtype=torch.float64))
        last = min(t + HORIZON, view.key_times[-1])
        for later in (t + (last - t) / 2, last) if last > t else ():
            eye = transform_points(world2velodyne, (view.ego.pose_at(later) @ view.lidar2ego)[None, :3, 3])[0]
            seen |= seen_from(occupied, grid.spec, eye)
        found[~seen] = UNKNOWN
        found = downsample_labels(found.numpy(), order.factor) if order.factor > 1 else found.numpy()
        labels.append(torch.from_numpy(found))
        coarse.append(torch.from_numpy(downsample_labels(found, order.coarse_factor)))
    depth = torch.stack([one.depth for one in views[:: len(rig)]]).cpu()
    frames = len(times)
    return {
        "images": torch.stack([one.image for one in views]).unflatten(0, (frames, -1)).cpu(),
        "velo2img": projection.expand(frames, -1, -1, -1).clone(),
        "intrinsics": intrinsics.expand(frames, -1, -1, -1).clone(),
        "depth": torch.where(torch.isfinite(depth) & (depth < 1000), depth, 0.0).half(),
        "labels": torch.stack(labels),
        "coarse": torch.stack(coarse),
    }


@dataclass(eq=False)
class StereoPairs:
    """Frames on one device."""

    images: Tensor
    """uint8 [N, V, h, w, 3]."""
    velo2img: Tensor
    intrinsics: Tensor
    depth: Tensor
    labels: Tensor
    coarse: Tensor
    config: OccDepthConfig
    """Grid and tiles of the batches."""
    per_scene: int
    """Frames of each scene, which follow one another."""

    @classmethod
    def of_all(
        cls, made: list[dict[str, Tensor]], order: StereoOrder, config: OccDepthConfig, ranks: Ranks, device: Any
    ) -> "StereoPairs":
        """The frames of all ranks on each of them."""
        names = ("images", "velo2img", "intrinsics", "depth", "labels", "coarse")
        parts = {name: gathered(made, name, ranks, device) for name in names}
        return cls(**parts, config=config, per_scene=len(order.frames))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor, frames: int = 1, kind: str = "", flips: Tensor | None = None) -> StereoBatch:
        """Samples, with labels.

        Args:
            rows: int64 [B] on the CPU.
            frames: 1.
            kind: of no meaning: there is one kind of labels.
            flips: bool [B, 3] on the CPU: mirror the pictures, nothing, the grid's y.
        """
        device, batch, config = self.images.device, len(rows), self.config
        index = rows.to(device)
        images = self.images[index].permute(0, 1, 4, 2, 3)
        matrix, depth = self.velo2img[index], self.depth[index].float()
        labels, coarse = self.labels[index], self.coarse[index]
        flipped = torch.zeros(batch, dtype=torch.bool, device=device)
        if flips is not None:
            width = images.shape[-1]
            mirror = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
            mirror[flips[:, 0], 0, 0], mirror[flips[:, 0], 0, 2] = -1.0, width - 1.0
            turned = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
            turned[flips[:, 2], 1, 1] = -1.0  # the grid reaches as far to the left as to the right
            matrix = mirror.to(device)[:, None] @ matrix @ turned.to(device)[:, None]
            flipped, over = flips[:, 0].to(device), flips[:, 2].to(device)[:, None, None, None]
            images = torch.where(flipped[:, None, None, None, None], images.flip(-1), images)
            depth = torch.where(flipped[:, None, None], depth.flip(-1), depth)
            labels, coarse = (torch.where(over, values.flip(2), values) for values in (labels, coarse))
        origin = torch.tensor(config.grid.lower, dtype=torch.float64, device=device)
        tiles = [frustum_tiles(one, origin, config.grid, config.image_size, config.frustum_tiles) for one in matrix]
        return StereoBatch(
            images=images,
            velo2img=matrix,
            intrinsics=self.intrinsics[index],
            origin=origin.expand(batch, 3),
            baseline=torch.full((batch,), 0.53, device=device),
            flipped=flipped,
            tokens=[f"row {row}" for row in rows.tolist()],
            semantics=labels,
            coarse=coarse,
            frustums=torch.stack(tiles),
            depth=depth[:, None],
        )
