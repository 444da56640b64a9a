"""A small stock UNet that the tests of the networks start from."""

import pytest
import torch
from diffusers import UNet2DConditionModel


@pytest.fixture(scope="session")
def stock_unet():
    """A function that makes a small UNet2DConditionModel, the same one every time; keyword arguments change it."""

    def make(**changes):
        torch.manual_seed(0)
        config = {
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": (2, 4),
            "norm_num_groups": 4,
            "cross_attention_dim": 12,
            "use_linear_projection": True,
            "sample_size": 8,
        }
        return UNet2DConditionModel(**{**config, **changes}).eval()

    return make
