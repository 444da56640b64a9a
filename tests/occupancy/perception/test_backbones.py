"""Backbones: sizes, the published names and recipe, checkpointing, folding."""

import re

import pytest
import torch
from torch import nn

from syntheocc.occupancy.perception.backbone_weights import (
    load_backbone_weights,
    neck_name,
    read_state_dict,
    resnet_name,
)
from syntheocc.occupancy.perception.backbones import FeaturePyramid, ImageEncoder, ResNet, fold_batch_norms


def number_of(module, trained_only=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)


def published_names(depths=(3, 4, 6, 3), convolutions=3):
    """Tensor names of a ResNet as mmdetection and torchvision write them, without shapes."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", *[f"bn1.{what}" for what in norm]]
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            at = f"layer{stage}.{block}"
            for i in range(1, convolutions + 1):
                names += [f"{at}.conv{i}.weight", *[f"{at}.bn{i}.{what}" for what in norm]]
            if block == 0 and (convolutions == 3 or stage > 1):
                names += [f"{at}.downsample.0.weight", *[f"{at}.downsample.1.{what}" for what in norm]]
    return names


def published_state(backbone, prefix="backbone."):
    """A ResNet's state dict under the published names, with statistics that are not those of a new one."""
    g = torch.Generator().manual_seed(0)
    ours = backbone.state_dict()
    state = {}
    for name in published_names(convolutions=2, depths=(1, 1, 1, 1)):
        like = ours[resnet_name(name)]
        state[prefix + name] = like.clone() if like.dtype == torch.int64 else torch.rand(like.shape, generator=g) + 0.1
    return state


@pytest.fixture(scope="module")
def resnet50():
    return ResNet("resnet50")


def test_resnet50_has_the_published_parameters_and_names(resnet50):
    assert number_of(resnet50) == 23_508_032
    assert {resnet_name(name) for name in published_names()} == set(resnet50.state_dict())
    assert resnet_name("fc.weight") is None and resnet_name("rpn_head.conv1.weight") is None
    neck = FeaturePyramid(resnet50.channels, 256)
    assert number_of(neck) == 3_344_384
    names = {
        f"{kind}_convs.{i}.conv.{what}" for kind in ("lateral", "fpn") for i in range(4) for what in ("weight", "bias")
    }
    assert {neck_name(name) for name in names} == set(neck.state_dict()) and neck_name("fpn_convs.0.bn.weight") is None


def test_the_stride_is_in_the_three_by_three_convolution(resnet50):
    for stage in resnet50.stages[1:]:
        assert [layer.convolution.stride[0] for layer in stage.layers[0].layer] == [1, 2, 1]


def test_resnet18_has_the_published_names():
    network = ResNet("resnet18")
    assert {resnet_name(name) for name in published_names((2, 2, 2, 2), 2)} == set(network.state_dict())
    assert number_of(network) == 11_176_512


def test_maps_have_the_strides_of_the_pyramid_and_are_channels_last():
    encoder = ImageEncoder("tiny", dims=16)
    maps = encoder(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 16, 24), (2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    # Sizes that are no multiple of 32: every level is half the finer one, rounded up.
    assert [tuple(m.shape[2:]) for m in encoder(torch.rand(1, 3, 50, 70))] == [(13, 18), (7, 9), (4, 5), (2, 3)]
    assert len(ImageEncoder("tiny", dims=16, num_levels=2)(torch.rand(2, 3, 32, 32))) == 2
    with pytest.raises(ValueError, match="1 to 4 levels, not 5"):
        ImageEncoder("tiny", num_levels=5)
    with pytest.raises(ValueError, match="no backbone 'vgg16'; there are resnet18"):
        ImageEncoder("vgg16")


def test_the_pyramid_by_hand():
    """Two levels of one channel, all lateral weights 1: the coarse value is added to its four fine pixels."""
    neck = FeaturePyramid((1, 1), 1)
    for conv in (*neck.lateral_convs, *neck.fpn_convs):
        nn.init.zeros_(conv.weight)
        conv.weight.data[..., conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1.0
    neck.fpn_convs[1].bias.data.fill_(0.5)
    fine, coarse = neck([torch.arange(8.0).view(1, 1, 2, 4), torch.tensor([[10.0, 20.0]]).view(1, 1, 1, 2)])
    assert fine.flatten().tolist() == [10, 11, 22, 23, 14, 15, 26, 27] and coarse.flatten().tolist() == [10.5, 20.5]


@pytest.mark.parametrize("prefix", ["backbone.", "img_backbone.", ""])
@pytest.mark.parametrize("wrapped", [True, False])
def test_published_weights_are_loaded_and_frozen(tmp_path, prefix, wrapped):
    encoder = ImageEncoder("tiny", dims=8)
    neck = {name: value.clone() for name, value in encoder.neck.state_dict().items()}
    state = published_state(encoder.backbone, prefix)
    extra = {"roi_head.fc.weight": torch.zeros(3), "neck.lateral_convs.0.conv.weight": torch.zeros(8, 8, 1, 1)}
    torch.save({"meta": {"epoch": 1}, "state_dict": state | extra} if wrapped else state | extra, tmp_path / "w.pth")
    report = load_backbone_weights(encoder, tmp_path / "w.pth")
    assert len(report.loaded) == len(state) and set(report.unmatched) == set(extra)
    assert "not used: 1 of neck, 1 of roi_head" in str(report)
    for name, value in state.items():
        assert torch.equal(encoder.backbone.state_dict()[resnet_name(name[len(prefix) :])], value)
    assert all(torch.equal(value, neck[name]) for name, value in encoder.neck.state_dict().items())
    # The recipe: stem and first stage fixed, no statistics move, the other norms' affine parameters train.
    encoder.train()
    encoder(torch.rand(2, 3, 32, 32))[0].sum().backward()
    for name, parameter in encoder.named_parameters():
        fixed = name.startswith(("backbone.embedder", "backbone.encoder.stages.0."))
        assert parameter.requires_grad != fixed
    assert all(torch.equal(encoder.backbone.state_dict()[resnet_name(n[len(prefix) :])], v) for n, v in state.items())


def test_the_published_recipe_freezes_225344_parameters(resnet50):
    encoder = ImageEncoder("tiny")
    encoder.backbone = resnet50
    encoder.freeze()
    assert number_of(encoder) - number_of(encoder, trained_only=True) == 225_344
    with pytest.raises(ValueError, match="5 stages cannot be frozen"):
        encoder.freeze(5)


def test_without_pretrained_weights_everything_trains():
    encoder = ImageEncoder("tiny", dims=8).train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    sum(m.sum() for m in encoder(torch.rand(2, 3, 32, 32))).backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert not any(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


def test_weights_that_do_not_fit_are_errors_and_change_nothing(tmp_path):
    encoder = ImageEncoder("tiny", dims=8)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = published_state(encoder.backbone)
    cases = {
        "no such weights file": None,
        "cannot be read as weights": b"not a zip file",
        "lacks 2 of the": {
            k: v for k, v in state.items() if not k.startswith("backbone.layer3.0.conv1") and k != "backbone.bn1.bias"
        },
        re.escape("layer2.0.conv1.weight [3] instead of"): state | {"backbone.layer2.0.conv1.weight": torch.zeros(3)},
        "no state dict but": {"state_dict": {"a": "text"}},
    }
    for i, (message, content) in enumerate(cases.items()):
        path = tmp_path / f"{i}.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_backbone_weights(encoder, path)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(p.requires_grad for p in encoder.parameters())


def test_state_dicts_of_wrapped_models_and_safetensors(tmp_path):
    from safetensors.torch import save_file

    save_file({"module.a": torch.ones(2), "module.b.c": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert set(read_state_dict(tmp_path / "w.safetensors")) == {"a", "b.c"}


@pytest.mark.parametrize("frozen", [True, False])
def test_checkpointing_changes_neither_gradients_nor_statistics(frozen):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    encoder = ImageEncoder("tiny", dims=8)
    start = {name: value.clone() for name, value in encoder.state_dict().items()}
    if frozen:
        encoder.freeze()
    results = []
    for enabled in (False, True):
        encoder.load_state_dict(start)
        encoder.zero_grad()
        encoder.train()
        encoder.gradient_checkpointing_enable(enabled)
        sum(m.square().mean() for m in encoder(images)).backward()
        grads = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        results.append((grads, [b.clone() for b in encoder.buffers()]))
    for one, other in zip(*results, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_folded_norms_compute_the_same():
    torch.manual_seed(0)
    encoder = ImageEncoder("tiny", dims=8).train()
    for _ in range(3):
        encoder(torch.rand(4, 3, 32, 32))  # statistics that are not 0 and 1
    with pytest.raises(ValueError, match="after model.eval"):
        fold_batch_norms(encoder)
    encoder.eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder(images)
        fold_batch_norms(encoder)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
        for one, other in zip(expected, encoder(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
