"""A stereo pair before a grid of 16 x 16 x 8 voxels, and small models of it."""

from dataclasses import replace

import torch

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.occdepth.batch import StereoBatch
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig
from syntheocc.occupancy.perception.occdepth.frustums import frustum_tiles
from syntheocc.occupancy.perception.view_transform import DepthBins
from syntheocc.occupancy.taxonomy import Taxonomy

SIZE = (64, 96)
SPEC = GridSpec((0.0, -3.2, -1.0), (0.4, 0.4, 0.4), (16, 16, 8))
CLASSES = Taxonomy("planes", ("free", "road", "wall"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), 0)
CONFIG = OccDepthConfig(
    grid=SPEC,
    taxonomy=CLASSES,
    project_scale=1,
    image_size=SIZE,
    backbone="tiny",
    decoder_channels=32,
    channels=8,
    depth=DepthBins(1.0, 7.0, 0.5),
    depth_channels=8,
)


def config(**changes) -> OccDepthConfig:
    return replace(CONFIG, **changes)


def scene(cfg: OccDepthConfig, batch: int = 2, wall: float = 4.0, seed: int = 0) -> StereoBatch:
    """A road and a wall across it, `wall` metres ahead, with random textures that both views show."""
    generator = torch.Generator().manual_seed(seed)
    height, width = cfg.image_size
    focal, baseline, rise = 60.0, 0.4, 1.0  # camera 1 m above the road
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    views = cfg.num_views
    matrices = torch.zeros(views, 4, 4, dtype=torch.float64)
    images = torch.zeros(views, 3, height, width)
    texture = torch.rand(2, 3, 64, 64, generator=generator)
    depth = torch.zeros(views, height, width)
    for v in range(views):
        right = baseline * v
        cam = torch.tensor([[0, -1, 0, -right], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
        matrices[v] = cam
        matrices[v, :3] = intrinsics @ cam[:3]
        y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
        a, b = (x - width / 2) / focal, (y - height / 2) / focal
        z = torch.where(b * wall > rise, rise / b.clamp_min(1e-3), torch.tensor(wall))
        side, other = a * z + right, torch.where(b * wall > rise, z, b * z)
        kind = (b * wall <= rise).long()
        place = [((value + 100) * 4).long() % 64 for value in (side, other)]
        images[v] = texture[kind, :, place[0], place[1]].permute(2, 0, 1) - 0.5
        depth[v] = z
    labels = torch.zeros(cfg.grid.shape, dtype=torch.uint8)
    upto = int(wall / cfg.grid.voxel_size[0])
    labels[: upto + 1, :, 0] = 1
    labels[upto] = 2
    labels[upto + 1 :] = 255  # nobody has seen what is behind the wall
    factor = cfg.coarse_factor
    coarse = labels[::factor, ::factor, ::factor].clone()
    origin = torch.tensor(cfg.grid.lower, dtype=torch.float64)
    tiles = frustum_tiles(matrices, origin, cfg.grid, cfg.image_size, cfg.frustum_tiles)

    def each(value):
        return value[None].repeat(batch, *[1] * value.ndim)

    return StereoBatch(
        images=each(images[:1] if cfg.virtual_view else images),
        velo2img=each(matrices),
        intrinsics=each(intrinsics.repeat(views, 1, 1)),
        origin=each(origin),
        baseline=torch.full((batch,), baseline),
        flipped=torch.zeros(batch, dtype=torch.bool),
        tokens=[f"s{i}" for i in range(batch)],
        semantics=each(labels),
        coarse=each(coarse),
        occluded=each(labels == 255),
        frustums=each(tiles),
        depth=each(depth[:1]),
    )
