"""Sums with norms, and copies in words, against plain torch; blocks that use them against the stock ones."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional as F

from syntheocc.models import MultiviewUNet2DConditionModel
from syntheocc.models.channels_last import (
    ChannelsLastUpsample2D,
    FusedMultiviewTransformerBlock,
    FusedTransformerBlock,
    to_channels_last,
    to_contiguous,
)
from syntheocc.models.ops.add_layer_norm import add_layer_norm
from syntheocc.models.ops.add_layer_norm import reference as norm_reference
from syntheocc.models.ops.wide_copy import double_pixels, take

RING = torch.tensor([[2, 1], [0, 2], [1, 0]])


def test_sum_and_norm_by_hand():
    # 1+0, 2+1 = 1, 3: mean 2, standard deviation 1; scale 2, offset 10.
    total, normed = add_layer_norm(
        torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0]), torch.tensor([10.0, 10.0]), 0.0
    )
    assert total.tolist() == [1.0, 3.0]
    assert normed.tolist() == [8.0, 12.0]
    total, normed = add_layer_norm(torch.tensor([1.0, 3.0]), None, torch.ones(2), torch.zeros(2), 0.0)
    assert total.tolist() == [1.0, 3.0]
    assert normed.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("width", [4, 8, 3])  # the last is no whole number of words
def test_take_is_index_select(dtype, width):
    x = torch.arange(5 * 2 * width).reshape(5, 2, width).to(dtype)
    index = torch.tensor([4, 0, 0, 2])
    assert torch.equal(take(x, index), x.index_select(0, index))
    assert torch.equal(take(x.transpose(1, 2), index), x.transpose(1, 2).index_select(0, index))


def test_take_keeps_gradients():
    x = torch.randn(3, 8, requires_grad=True)
    take(x, torch.tensor([1, 1])).sum().backward()
    assert x.grad[:, 0].tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("channels", [8, 3])
def test_double_pixels_is_nearest_interpolation(channels, channels_last):
    x = torch.arange(2 * channels * 3 * 5).reshape(2, channels, 3, 5).half()
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    doubled = double_pixels(x)
    assert torch.equal(doubled, F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert doubled.is_contiguous(memory_format=torch.channels_last) == x.is_contiguous(
        memory_format=torch.channels_last
    )


def stock(size=8) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        sample_size=size,
        use_linear_projection=True,
    ).eval()


@pytest.mark.parametrize("height", [8, 7])  # 7: the upsampled map is a pixel short of double
def test_multiview_unet_in_channels_last(height):
    model = MultiviewUNet2DConditionModel.from_unet(stock()).eval()
    for _, parameter in model.multiview_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs = (torch.randn(6, 4, height, 8), torch.tensor(10), torch.randn(6, 5, 24))
    kwargs = {"cross_attention_kwargs": {"neighbors": RING}}
    with torch.no_grad():
        expected = model(*inputs, **kwargs).sample
        to_channels_last(model)
        assert any(isinstance(m, FusedMultiviewTransformerBlock) for m in model.modules())
        assert any(isinstance(m, ChannelsLastUpsample2D) for m in model.modules())
        assert torch.allclose(model(*inputs, **kwargs).sample, expected, atol=1e-5)
        to_contiguous(model)
        assert torch.equal(model(*inputs, **kwargs).sample, expected)


def test_stock_blocks_in_channels_last():
    model = stock()
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor(10), torch.randn(2, 5, 24))
    with torch.no_grad():
        expected = model(*inputs).sample
        to_channels_last(model)
        assert any(isinstance(m, FusedTransformerBlock) for m in model.modules())
        assert torch.allclose(model(*inputs).sample, expected, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 7, 320), (3, 5, 1280), (1, 3, 20)])
@pytest.mark.parametrize("residual", [True, False])
def test_sum_and_norm_kernel(shape, residual):
    generator = torch.Generator("cuda").manual_seed(0)
    draw = lambda *s: torch.randn(*s, device="cuda", generator=generator)  # noqa: E731
    x, r, weight, bias = draw(*shape) + 100, draw(*shape) if residual else None, draw(shape[-1]), draw(shape[-1])
    total, normed = add_layer_norm(x, r, weight, bias, 1e-5)
    expected = norm_reference.add_layer_norm(total.double(), None, weight.double(), bias.double(), 1e-5)
    assert torch.equal(total, x if r is None else x + r)
    assert float((normed - expected[1]).norm() / expected[1].norm()) < 1e-4
