"""Fused, channels-last modules against diffusers' own, and the kernels against plain torch."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from syntheocc.models.channels_last import FusedGroupNorm, FusedResnetBlock2D, to_channels_last, to_contiguous
from syntheocc.models.ops.geglu import reference as geglu_reference
from syntheocc.models.ops.group_norm import group_norm
from syntheocc.models.ops.group_norm import reference as norm_reference


def unet(linear: bool) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=8,
        sample_size=8,
        use_linear_projection=linear,
    ).eval()


def test_group_norm_by_hand():
    # One group of the values 1, 3, 5, 7: mean 4, variance 5; (1 - 4) / sqrt(5) = -1.3416.
    x = torch.tensor([1.0, 3.0, 5.0, 7.0]).reshape(1, 2, 1, 2)
    out = norm_reference.group_norm(x, 1, torch.ones(2), torch.zeros(2), 0.0)
    assert out.flatten().tolist() == pytest.approx([-1.34164, -0.44721, 0.44721, 1.34164], abs=1e-5)
    shifted = norm_reference.group_norm(x, 1, torch.ones(2), torch.zeros(2), 0.0, shift=torch.tensor([[0.0, 4.0]]))
    assert shifted.flatten().tolist() == pytest.approx(
        norm_reference.group_norm(
            torch.tensor([1.0, 3.0, 9.0, 11.0]).reshape(1, 2, 1, 2), 1, torch.ones(2), torch.zeros(2), 0.0
        )
        .flatten()
        .tolist()
    )
    assert geglu_reference.geglu(torch.tensor([2.0, 0.0])).tolist() == [0.0]


@pytest.mark.parametrize("linear", [True, False])
def test_the_swapped_unet_gives_the_same_numbers_and_goes_back(linear):
    model = unet(linear)
    types = [type(m) for m in model.modules()]
    keys = list(model.state_dict())
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor(10), torch.randn(2, 5, 24))
    with torch.no_grad():
        expected = model(*inputs).sample
        to_channels_last(model)
        assert any(isinstance(m, FusedResnetBlock2D) for m in model.modules())
        assert any(isinstance(m, FusedGroupNorm) for m in model.modules())
        assert list(model.state_dict()) == keys
        got = model(inputs[0].to(memory_format=torch.channels_last), *inputs[1:]).sample
    assert torch.allclose(got, expected, atol=1e-5)
    to_contiguous(model)
    assert [type(m) for m in model.modules()] == types
    assert all(p.is_contiguous() for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(*inputs).sample, expected)


def test_gradients_are_those_of_the_stock_modules():
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor(10), torch.randn(1, 5, 24))
    gradients = []
    for model in (unet(True), to_channels_last(unet(True))):
        model(*inputs).sample.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_the_swapped_vae_gives_the_same_numbers():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
    ).eval()
    z = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = vae.decode(z).sample
        got = to_channels_last(vae).decode(z.to(memory_format=torch.channels_last)).sample
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 320, 9, 17, 32), (1, 64, 7, 13, 32), (3, 96, 40, 50, 8)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_kernel(shape, shifted, silu):
    n, c, h, w, groups = shape
    generator = torch.Generator("cuda").manual_seed(0)
    draw = lambda *s: torch.randn(*s, device="cuda", generator=generator)  # noqa: E731
    # A mean far from zero: the naive E[x^2] - E[x]^2 loses all digits here.
    x = (draw(n, c, h, w) + 100).to(memory_format=torch.channels_last)
    weight, bias, shift = draw(c), draw(c), draw(n, c) if shifted else None
    got = group_norm(x, groups, weight, bias, 1e-5, shift, silu)
    double = [None if t is None else t.double() for t in (x, weight, bias, shift)]
    expected = norm_reference.group_norm(double[0], groups, double[1], double[2], 1e-5, double[3], silu)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert float((got - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("features", [1280, 1300, 20])
def test_geglu_kernel(features):
    from syntheocc.models.ops.geglu import geglu

    x = torch.randn(3, 5, 2 * features, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    assert torch.allclose(geglu(x), geglu_reference.geglu(x), atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 320, 9, 17), (1, 4, 3, 5)])
def test_residual_add_kernel(shape):
    from syntheocc.models.ops.residual_add import reference, residual_add

    generator = torch.Generator("cuda").manual_seed(0)
    x, residual = (
        torch.randn(shape, device="cuda", generator=generator).to(memory_format=torch.channels_last) for _ in range(2)
    )
    bias = torch.randn(shape[1], device="cuda", generator=generator)
    assert torch.allclose(residual_add(x, residual, bias), reference.residual_add(x, residual, bias), atol=1e-6)


@pytest.mark.gpu
def test_the_fused_block_is_the_stock_block_on_the_gpu():
    model = unet(True).cuda()
    inputs = (torch.randn(2, 4, 8, 8).cuda(), torch.tensor(10).cuda(), torch.randn(2, 5, 24).cuda())
    with torch.no_grad():
        expected = model(*inputs).sample
        got = to_channels_last(model)(inputs[0].to(memory_format=torch.channels_last), *inputs[1:]).sample
    assert float((got - expected).norm() / expected.norm()) < 1e-3
