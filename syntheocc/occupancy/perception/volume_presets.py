"""The trunk in its three sizes; models put their heads, losses and recipes on them.

Legend: H W network input.
"""

from dataclasses import replace

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.perception.trunk import TrunkConfig
from syntheocc.occupancy.perception.view_transform import DepthBins

__all__ = ["PUBLISHED_TRUNK", "R50_TRUNK", "SMALL_TRUNK", "TINY_TRUNK"]

PUBLISHED_TRUNK = TrunkConfig(grid=OCC3D_NUSCENES.spec)
"""Swin-B at 512 x 1408."""
R50_TRUNK = replace(PUBLISHED_TRUNK, backbone="resnet50", image_size=(256, 704))
SMALL_TRUNK = replace(
    PUBLISHED_TRUNK,
    backbone="small",
    image_size=(128, 352),
    neck_stages=(1, 3),
    neck_channels=128,
    depth_channels=128,
    aspp_channels=48,
    context_channels=16,
    encoder_channels=(16, 32, 64),
    out_channels=16,
)
"""Under 30 million parameters, trained from scratch; features of stride 8."""
TINY_TRUNK = replace(
    SMALL_TRUNK,
    grid=GridSpec((-16.0, -16.0, -1.0), (0.8, 0.8, 0.8), (40, 40, 8)),
    backbone="tiny",
    image_size=(64, 96),
    neck_channels=24,
    depth=DepthBins(1.0, 19.0, 1.0),
    depth_channels=24,
    aspp_channels=12,
    context_channels=12,
    encoder_channels=(12, 16, 24),
    encoder_blocks=(1, 1, 1),
    out_channels=12,
)
"""Runs in seconds on a CPU."""
