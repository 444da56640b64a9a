"""Released checkpoints: names and shapes as the specification lists them, read without running what else they hold."""

import math
import pickle

import pytest
import torch
from released_names import released_shapes

from syntheocc.occupancy.perception.occdepth.config import as_published
from syntheocc.occupancy.perception.occdepth.convert import convert_state_dict, load_encoder, our_name, read_released
from syntheocc.occupancy.perception.occdepth.model import OccDepth
from syntheocc.occupancy.perception.occdepth.presets import preset

BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "voxel_size", "voxel_coord", "voxel_num")
# Preset -> what its checkpoint holds, and its parameters by part, dead ones included (specs/occdepth.md 2.1-2.7).
RELEASED = {
    "kitti_b7_legacy": (
        {"backbone": "efficientnet_b7", "channels": 64, "classes": 20, "crp": (512, 4), "cascade": True, "depth": 104},
        {"net_rgb.encoder": 63786960, "net_rgb.decoder": 68882640, "flosp_depth": 1023592, "CP_mega": 15358848},
        150.6e6,
    ),
    "kitti_b3_legacy": (
        {"backbone": "efficientnet_b3", "channels": 32, "classes": 20, "crp": (512, 4), "cascade": True, "depth": 104},
        {"net_rgb.encoder": 10696232, "net_rgb.decoder": 24813712, "flosp_depth": 986728},
        40.9e6,
    ),
    "kitti_mono_legacy": (
        {"backbone": "efficientnet_b3", "channels": 24, "classes": 20, "depth": 104},
        {"net_rgb.encoder": 10696232, "net_rgb.decoder": 24801768, "net_3d_decoder": 220300},
        None,
    ),
    "nyu_b4_legacy": (
        {"backbone": "efficientnet_b4", "channels": 100, "classes": 12, "nyu": True},
        {"net_rgb.encoder": 17548616, "net_rgb.decoder": 33876972, "net_3d_decoder": 4996000},
        56.4e6,
    ),
    "nyu_b7_legacy": (
        {"backbone": "efficientnet_b7", "channels": 200, "classes": 12, "crp": (196, 4), "nyu": True},
        {"net_rgb.decoder": 69220600, "CP_mega": 145440000, "net_3d_decoder": 165340000},
        298e6,
    ),
}
TINY = {
    "backbone": "tiny", "channels": 8, "classes": 20, "crp": (64, 4), "cascade": True, "depth": 26, "width": 32,
    "mid": 8, "full": False,
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_every_tensor_of_a_release_has_its_place(name):
    what, parts, total = RELEASED[name]
    shapes = released_shapes(**what)
    sizes = {key: math.prod(shape) for key, shape in shapes.items() if not key.endswith(BUFFERS)}
    for part, number in parts.items():
        # Exact where the specification is, else to the digits that it gives.
        assert sum(size for key, size in sizes.items() if part in key) == pytest.approx(
            number, rel=1e-3 if number % 100 == 0 else 0
        )
    if total is not None:
        assert sum(sizes.values()) == pytest.approx(total, rel=2e-3)
    with torch.device("meta"):
        config = preset(name).model
        wanted = {key: tuple(value.shape) for key, value in OccDepth(config).state_dict().items()}
        found, strange = convert_state_dict({key: torch.empty(shape) for key, shape in shapes.items()}, config)
    assert strange == []
    assert {key: tuple(value.shape) for key, value in found.items()} == wanted


@pytest.fixture
def released():
    """A state dict of the released names for the network of the preset tiny, of random numbers."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=generator) if shape else torch.tensor(7)
        for name, shape in released_shapes(**TINY).items()
    }


def changes():
    published = as_published(preset("tiny").model)
    return {name: getattr(published, name) for name in ("sampling", "view_fusion", "depth_spacing", "depth_fusion")}


def test_a_checkpoint_is_loaded(released, tmp_path):
    torch.save({"epoch": 3, "state_dict": released, "hyper_parameters": {"n_classes": 20}}, tmp_path / "last.ckpt")
    model = OccDepth.from_original(tmp_path / "last.ckpt", "tiny", **changes())
    assert not model.training
    for theirs, ours in (
        (
            "net_rgb.encoder.original_model.blocks.1.0.conv_pwl.weight",
            "encoder.blocks.1.projection.project_conv.weight",
        ),
        ("net_rgb.decoder.up8._net.3.bias", "decoder.levels.8.convs.3.bias"),
        ("net_rgb.decoder.resize_output_1_4.weight", "decoder.outputs.4.weight"),
        ("flosp_depth.depth_net.0.depth_conv.2.bn1.running_var", "depth_net.blocks.2.bn1.running_var"),
        ("net_3d_decoder.process_l1.1.main.downsample3.1.weight", "level1.3.down3.1.weight"),
        ("net_3d_decoder.process_l2.1.main.downsample.2.bias", "level2.3.shortcut.2.bias"),
        ("net_3d_decoder.CP_mega_voxels.context_prior_logits.2.0.bias", "relation.relations.2.bias"),
        ("net_3d_decoder.ssc_head.bn2.1.weight", "head.aspp.bn2.1.weight"),
        ("net_3d_decoder.ssc_head.occ_classes.weight", "head.occupancy.weight"),
    ):
        found = next(value for name, value in model.state_dict().items() if name.endswith(ours))
        assert torch.equal(found, released[theirs]), theirs


class Callback:
    """Something of Lightning's that a checkpoint pickles; touched, it would say so."""

    made = []

    def __init__(self, number):
        self.made.append(number)
        self.number = number

    def __reduce__(self):
        return Callback, (self.number,)


def test_what_else_a_checkpoint_holds_is_not_run(released, tmp_path):
    saved = {"callbacks": {Callback: {"best": 1.0}}, "settings": Callback(1), "state_dict": released}
    Callback.made.clear()
    torch.save(saved, tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    found = read_released(tmp_path / "last.ckpt", as_published(preset("tiny").model))
    assert Callback.made == [] and len(found) == len(OccDepth.from_preset("tiny", **changes()).state_dict())


def test_what_does_not_fit_is_named(released, tmp_path):
    torch.save({"state_dict": released | {"net_rgb.extra.weight": torch.zeros(1)}}, tmp_path / "more.ckpt")
    with pytest.raises(ValueError, match="more.ckpt: 1 tensors have no place in OccDepth, first net_rgb.extra.weight"):
        OccDepth.from_original(tmp_path / "more.ckpt", "tiny", **changes())
    del released["net_rgb.decoder.conv2.bias"]
    torch.save({"state_dict": released}, tmp_path / "less.ckpt")
    with pytest.raises(ValueError, match="less.ckpt does not fit.*missing image_network.decoder.bottleneck.bias"):
        OccDepth.from_original(tmp_path / "less.ckpt", "tiny", **changes())
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "less.ckpt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut.ckpt: cannot be read as weights"):
        OccDepth.from_original(tmp_path / "cut.ckpt", "tiny")
    with pytest.raises(ValueError, match="no such weights file"):
        OccDepth.from_original(tmp_path / "none.ckpt", "tiny")


@pytest.mark.parametrize("name", ["nyu_b4", "nyu_b7", "kitti_b7_flosp", "kitti_b3"])
def test_released_weights_are_not_loaded_into_a_corrected_network(name):
    """The first three have the very tensors of a release, and would predict something else with them."""
    with pytest.raises(ValueError, match=f"occdepth.ckpt: .* give the preset {name}_legacy"):
        OccDepth.from_original("occdepth.ckpt", name)


def test_blocks_are_counted_by_the_encoder():
    name = "net_rgb.encoder.original_model.blocks.2.0.conv_dw.weight"
    # Stages 0 and 1 hold 2 + 3 blocks of a B3 and 4 + 7 of a B7.
    assert our_name(name, "efficientnet_b3") == "image_network.encoder.blocks.5.depthwise_conv.depthwise_conv.weight"
    assert our_name(name, "efficientnet_b7") == "image_network.encoder.blocks.11.depthwise_conv.depthwise_conv.weight"
    assert our_name(name.replace("2.0", "2.9"), "efficientnet_b3") is None


def test_an_encoder_comes_from_a_classifier(released, tmp_path):
    """timm's names, a classifier's head included, and transformers' own."""
    top = "net_rgb.encoder.original_model."
    timm = {name.removeprefix(top): value for name, value in released.items() if name.startswith(top)}
    torch.save(timm | {"classifier.weight": torch.zeros(1000, 320)}, tmp_path / "timm.pth")
    model, other = OccDepth.from_preset("tiny"), OccDepth.from_preset("tiny")
    assert load_encoder(model, tmp_path / "timm.pth") == len(model.image_network.encoder.state_dict())
    assert torch.equal(model.image_network.encoder.embeddings.convolution.weight, timm["conv_stem.weight"])
    theirs = {
        f"efficientnet.{name if name.startswith('embeddings') else f'encoder.{name}'}": value
        for name, value in model.image_network.encoder.state_dict().items()
    }
    torch.save(theirs, tmp_path / "transformers.pth")
    load_encoder(other, tmp_path / "transformers.pth")
    for name, value in model.image_network.encoder.state_dict().items():
        assert torch.equal(value, other.image_network.encoder.state_dict()[name]), name
    del timm["conv_head.weight"]
    torch.save(timm, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="cut.pth does not fit this model: missing top_conv.weight"):
        load_encoder(model, tmp_path / "cut.pth")
