"""The networks of OccDepth against the architecture probes and parameter counts of specs/occdepth.md 2.1 to 2.8."""

import pytest
import torch
from torch import nn

from syntheocc.occupancy.perception.occdepth.depth_net import DepthNet, pixel_size
from syntheocc.occupancy.perception.occdepth.image_encoder import ImageDecoder, ImageNetwork, SamePadding
from syntheocc.occupancy.perception.occdepth.relation import RelationPrior
from syntheocc.occupancy.perception.occdepth.volume_blocks import (
    ASPP3D,
    Blocks,
    Bottleneck3D,
    Downsample3D,
    Upsample3D,
    process,
)
from syntheocc.occupancy.perception.occdepth.volume_net import VolumeHead, VolumeNet


def ramp(shape, step):
    return torch.sin(step * torch.arange(float(torch.Size(shape).numel()))).view(shape)


def filled(module, weight):
    """All weights alike, biases of 0.01, in evaluation mode."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
            nn.init.constant_(part.weight, weight)
            if part.bias is not None:
                nn.init.constant_(part.bias, 0.01)
    return module.eval()


def check(found, shape, total, largest, first=(), last=None):
    assert tuple(found.shape) == shape
    assert float(found.double().sum()) == pytest.approx(total, rel=3e-6, abs=1e-4)
    assert float(found.abs().max()) == pytest.approx(largest, rel=1e-5, abs=1e-6)
    for value, golden in zip(found.flatten()[:3].tolist(), first, strict=False):
        assert value == pytest.approx(golden, rel=1e-5, abs=1e-6)
    if last is not None:
        assert float(found.flatten()[-1]) == pytest.approx(last, rel=1e-5, abs=1e-6)


@torch.no_grad()
def test_the_probes_of_blocks():
    x = ramp((1, 8, 4, 6, 8), 0.13)
    same = (1, 8, 4, 6, 8)
    found = filled(Bottleneck3D(8, 2, 8, dilation=2), 0.05)(x)
    check(found, same, 502.6545, 1.02501, (0.000878, 0.130502, 0.258364), 0)
    check(filled(Blocks(*process(8)), 0.05)(x), same, 528.3894, 1.076191, (0.002913, 0.133824, 0.263270), 0.000957)
    check(filled(Downsample3D(8), 0.05)(x), (1, 16, 2, 3, 4), 39.7058, 0.297678, (0, 0.069763, 0.147788), 0)
    check(filled(Upsample3D(8, 4), 0.05)(x), (1, 4, 8, 12, 16), 1994.5233, 2.568335, (0, 0, 0), 0)
    x = ramp((1, 4, 4, 6, 8), 0.13)
    check(filled(ASPP3D(4), 0.05)(x), (1, 4, 4, 6, 8), 3780.8476, 14.803117, (2.707705, 4.359662, 5.769260), 0)


@torch.no_grad()
def test_the_probes_of_heads():
    x = ramp((1, 4, 4, 6, 8), 0.13)
    first = (43.061794, 75.666328, 94.568443)
    plain, nothing, _ = filled(VolumeHead(4, 5), 0.05)(x)
    check(plain, (1, 5, 4, 6, 8), 100570.7376, 265.241302, first, 10.629189)
    assert nothing is None
    classes, occupancy, _ = filled(VolumeHead(4, 5, cascade=True), 0.05)(x)
    check(classes, (1, 5, 4, 6, 8), 101450.677, 266.590973, (43.461819, 76.266365, 95.168480), 11.029182)
    check(occupancy, (1, 2, 4, 6, 8), 40228.295, 265.241302, first, 10.629189)


@torch.no_grad()
def test_the_probes_of_the_relation_prior():
    x, logits = filled(RelationPrior(8, (4, 4, 2), 4), 0.02)(ramp((1, 8, 4, 4, 2), 0.13))
    check(x, (1, 8, 4, 4, 2), 647.8324, 2.582993, (2.463365, 2.466573, 2.477476), 2.525995)
    check(logits, (1, 4, 4, 32), 43.3132, 0.117560, (0.047813, 0.049538, 0.057355), 0.081798)
    x, logits = filled(RelationPrior(8, (5, 3, 5), 4), 0.02)(ramp((1, 8, 5, 3, 5), 0.13))
    check(x, (1, 8, 5, 3, 5), 2732.9323, 4.60395, (4.523917, 4.546101, 4.560718), 4.560026)
    check(logits, (1, 4, 4, 75), 91.7143, 0.093338, (0.068470,), 0.079129)


@torch.no_grad()
def test_the_probes_of_the_volume_networks():
    kitti = filled(VolumeNet(8, (16, 16, 8), 5, upsample=True, relations=4, cascade=True), 0.02)
    found = kitti(ramp((1, 8, 16, 16, 8), 0.013))
    first = (724.7708, 1303.1925, 1599.5280)
    check(found.classes, (1, 5, 32, 32, 16), 6.135187e8, 18857.2969, first, 79.61087)
    check(found.relations, (1, 4, 4, 32), 444.8437, 1.238856)
    rooms = filled(VolumeNet(8, (12, 8, 12), 5, upsample=False, relations=4), 0.02)
    found = rooms(ramp((1, 8, 12, 8, 12), 0.013))
    first = (4990.437, 8812.2139, 10610.0928)
    check(found.classes, (1, 5, 12, 8, 12), 1.5606055e8, 68954.3281, first, 1720.7751)
    assert found.occupancy is None


@torch.no_grad()
def test_the_probe_of_the_depth_network():
    intrinsics = torch.tensor([[[700.0, 0, 0], [0, 710.0, 0], [0, 0, 1]]])
    assert float(pixel_size(intrinsics)) == pytest.approx(2.006128, abs=1e-6)
    assert float(pixel_size(torch.zeros(1, 3, 3))) == 0  # no such camera
    net = filled(DepthNet(4, 8, 6), 0.02)
    found = net(ramp((1, 4, 5, 7), 0.13), intrinsics)
    check(found, (1, 6, 5, 7), 8.9951, 0.075717, (0.032288, 0.047501, 0.054548), 0.014838)


@torch.no_grad()
def test_the_probe_of_the_image_decoder():
    shapes = ((3, 64, 96), (24, 32, 48), (32, 16, 24), (48, 8, 12), (136, 4, 6), (1536, 2, 3))
    picture, *maps = (ramp((1, *shape), 0.013) for shape in shapes)
    with torch.device("meta"):
        decoder = ImageDecoder((24, 32, 48, 136, 1536), 1536, 8, (1, 2, 4, 8, 16))
    found = filled(decoder.to_empty(device="cpu").apply(_reset_norm), 0.002)(picture, maps)
    golden = {
        16: ((4, 6), 898.9021, 7.141725),
        8: ((8, 12), 152252.155, 321.2794),
        4: ((16, 24), 7179924.58, 3784.410),
        2: ((32, 48), 86618826.0, 11260.73),
        1: ((64, 96), 261450470.5, 8398.487),
    }
    assert set(found) == set(golden)
    for stride, (size, total, largest) in golden.items():
        # Sums over 1536 float32 channels: another order of the summands is another fifth digit.
        assert tuple(found[stride].shape) == (1, 8, *size)
        assert float(found[stride].double().sum()) == pytest.approx(total, rel=1e-5)
        assert float(found[stride].abs().max()) == pytest.approx(largest, rel=1e-5)
    first = found[16].flatten()[[0, 1, 2, -1]].tolist()
    assert first == pytest.approx([2.449641, 3.951180, 4.486395, 2.411802], rel=1e-5)


def _reset_norm(module):
    if isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()


@pytest.mark.parametrize("backbone, channels, encoder, decoder", [
    ("efficientnet_b3", 32, 10_696_232, 24_813_712),
    ("efficientnet_b4", 100, 17_548_616, 33_876_972),
    ("efficientnet_b5", 32, 28_340_784, None),
    ("efficientnet_b7", 64, 63_786_960, 68_882_640),
])  # fmt: skip
def test_image_networks_have_the_published_size(backbone, channels, encoder, decoder):
    """But for two parts that the published networks carry without using them."""
    with torch.device("meta"):
        network = ImageNetwork(backbone, channels, (1, 2, 4, 8))
    top = network.encoder.channels[-1]
    last_norm, map_of_stride_16 = 2 * top, channels * (top // 2 + 1)
    assert _count(network.encoder) + last_norm == encoder
    if decoder is not None:
        assert _count(network.decoder) + map_of_stride_16 == decoder


def test_maps_of_a_kitti_picture_have_the_published_shapes():
    """TensorFlow's padding: every map is the ceiling of half the one before (transformers' own gives 92 x 305)."""
    with torch.device("meta"):
        network = ImageNetwork("efficientnet_b7", 64, (1, 2, 4, 8)).eval()
        pictures = torch.zeros(1, 3, 370, 1220)
    maps = [tuple(m.shape[1:]) for m in network.encoder(pictures)]
    assert maps == [(32, 185, 610), (48, 93, 305), (80, 47, 153), (224, 24, 77), (2560, 12, 39)]
    found = {stride: tuple(m.shape[1:]) for stride, m in network(pictures).items()}
    assert found == {1: (64, 370, 1220), 2: (64, 185, 610), 4: (64, 93, 305), 8: (64, 47, 153)}


def test_padding_and_norms_are_tensorflows():
    network = ImageNetwork("tiny", 8, (1,))
    norms = [m for m in network.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all((norm.momentum, norm.eps) == (0.1, 1e-3) for norm in norms)
    padded = SamePadding(3, 2)(torch.ones(1, 1, 4, 5))  # an even height: all at the bottom; an odd width: both sides
    assert padded[0, 0].tolist() == [[0, 1, 1, 1, 1, 1, 0]] * 4 + [[0] * 7]
    strided = [m for m in network.encoder.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert len(strided) == 5 and all(conv.padding in ("valid", (0, 0), 0) for conv in strided)


def test_a_volume_that_cannot_be_halved_twice_is_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        VolumeNet(8, (16, 16, 6), 5)
    with pytest.raises(ValueError, match="there is no image encoder 'b9'"):
        ImageNetwork("b9", 8, (1,))


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())
