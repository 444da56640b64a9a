"""Released state dicts under our names: synthetic ones, in mmdetection's and BEVDet's way of naming and nesting.

The specification names `img_backbone` and `img_neck` only through mmdetection; the other paths below are examples.
"""

import re
from dataclasses import replace

import pytest
import torch
from rendered_scene import scene_batch
from test_backbones import published_state
from torch.nn.functional import unfold

from syntheocc.occupancy.perception.occflownet import OccFlowNet
from syntheocc.occupancy.perception.splattingocc import RenderOcc
from syntheocc.occupancy.perception.view_transform import LiftCameras
from syntheocc.occupancy.perception.volume_weights import convert_state_dict, swin_tensors

# Ours -> theirs.
NAMES = [
    (r"^trunk\.image_encoder\.neck\.layers\.", "img_neck.conv."),
    (r"^trunk\.depth_net\.reduce", "img_view_transformer.depth_net.reduce_conv"),
    (r"^trunk\.depth_net\.camera_norm", "img_view_transformer.depth_net.bn"),
    (r"^trunk\.depth_net\.(context|depth)_gate\.mlp\.0", r"img_view_transformer.depth_net.\1_mlp.fc1"),
    (r"^trunk\.depth_net\.(context|depth)_gate\.mlp\.2", r"img_view_transformer.depth_net.\1_mlp.fc2"),
    (r"^trunk\.depth_net\.(context|depth)_gate\.(reduce|expand)", r"img_view_transformer.depth_net.\1_se.conv_\2"),
    (r"^trunk\.depth_net\.context\.", "img_view_transformer.depth_net.context_conv."),
    (r"^trunk\.depth_net\.stereo\.layers", "img_view_transformer.depth_net.cost_volume_net"),
    (r"^trunk\.depth_net\.depth_blocks\.(\d)\.shortcut", r"img_view_transformer.depth_net.depth_conv.\1.downsample"),
    (r"^trunk\.depth_net\.depth_blocks\.", "img_view_transformer.depth_net.depth_conv."),
    (r"^trunk\.depth_net\.aspp\.branches\.(\d)\.0", r"img_view_transformer.depth_net.depth_conv.3.aspp\1.atrous_conv"),
    (r"^trunk\.depth_net\.aspp\.branches\.(\d)\.1", r"img_view_transformer.depth_net.depth_conv.3.aspp\1.bn"),
    (r"^trunk\.depth_net\.aspp\.", "img_view_transformer.depth_net.depth_conv.3."),
    (r"^trunk\.depth_net\.depth\.", "img_view_transformer.depth_net.depth_conv.4."),
    (r"^trunk\.pre_process\.", "pre_process_net.layers.0.0."),
    (r"^trunk\.volume_encoder\.levels\.", "img_bev_encoder_backbone.layers."),
    (r"^trunk\.volume_encoder\.merge_norm\.", "img_bev_encoder_neck.conv.bn."),
    (r"^trunk\.volume_encoder\.merge\.", "img_bev_encoder_neck.conv.conv."),
    (r"^heads\.conv\.", "final_conv.conv."),
    (r"^heads\.density\.", "density_mlp."),
    (r"^heads\.semantics\.", "semantic_mlp."),
]
SWIN = [
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.projection"),
    (r"embeddings\.norm", "patch_embed.norm"),
    (r"encoder\.layers\.(\d)\.blocks", r"stages.\1.blocks"),
    (r"encoder\.layers\.(\d)\.downsample", r"stages.\1.downsample"),
    (r"attention\.o_proj", "attn.w_msa.proj"),
    (r"attention\.relative_position_bias\.", "attn.w_msa."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"mlp\.fc1", "ffn.layers.0.0"),
    (r"mlp\.fc2", "ffn.layers.1"),
    (r"norms\.stage(\d)", lambda m: f"norm{int(m[1]) - 1}"),
]


def unmerged(value):
    """Swin's own order of merged pixels to mmdetection's: by hand, index by index."""
    channels = value.shape[-1] // 4
    out = torch.empty_like(value)
    for c in range(channels):
        for k, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
            out[..., 4 * c + 2 * row + column] = value[..., channels * k + c]
    return out


def released_swin(state):
    """Tensors of our `Swin` as mmdetection saves them."""
    out = {}
    for name, value in state.items():
        match = re.fullmatch(r"encoder\.layers\.(\d)\.blocks\.(\d+)\.attention\.([qkv])_proj\.(\w+)", name)
        if match:
            stage, block, kind, leaf = match.groups()
            if kind == "q":
                parts = [state[name.replace("q_proj", f"{k}_proj")] for k in "qkv"]
                out[f"stages.{stage}.blocks.{block}.attn.w_msa.qkv.{leaf}"] = torch.cat(parts)
            continue
        value = unmerged(value) if ".downsample." in name and value.shape[-1] % 4 == 0 else value
        for pattern, replacement in SWIN:
            name = re.sub(pattern, replacement, name)
        out[name] = value
        if name.endswith("relative_position_bias_table"):
            out[name.replace("bias_table", "index")] = torch.zeros(4, 4, dtype=torch.int64)
    return out


def released(model):
    """A model's weights as a released file would have them."""
    prefix = "trunk.image_encoder.backbone."
    state = model.state_dict()
    backbone = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    out = {f"img_backbone.{k}": v for k, v in released_swin(backbone).items()}
    for name, value in state.items():
        if name.startswith(prefix):
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        out[name] = value.transpose(2, 4) if value.ndim == 5 else value
    return out


def with_swin(model_class, preset):
    """A tiny model on a Swin, with statistics and biases that are not those of a new one."""
    config = model_class.presets[preset]()[0]
    config = replace(config, trunk=replace(config.trunk, backbone="swin_nano", neck_stages=(2, 3)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).eval()
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point and value.ndim == 1 and not name.startswith("_"):
                value.add_(0.2 * torch.rand(value.shape))
    return model


@pytest.mark.parametrize(
    ("model_class", "preset"), [(RenderOcc, "renderocc_7frame_tiny"), (OccFlowNet, "occflownet_2d_tiny")]
)
def test_every_tensor_finds_its_place(model_class, preset):
    model = with_swin(model_class, preset)
    state = released(model)
    assert not set(state) & set(model.state_dict())
    converted, unmatched = convert_state_dict(state, model)
    ours = model.state_dict()
    assert unmatched == [] and set(converted) == set(ours)
    for name, value in ours.items():
        assert torch.equal(converted[name], value), name


def test_the_published_size():
    """Without memory; a few shapes worked out by hand from the specification (2.1 to 2.3)."""
    with torch.device("meta"):
        model = RenderOcc.from_preset("renderocc_7frame_legacy")
        state = released(model)
    expected = {
        "img_backbone.stages.2.blocks.17.attn.w_msa.qkv.weight": (1536, 512),
        "img_backbone.stages.0.downsample.reduction.weight": (256, 512),
        "img_backbone.norm3.weight": (1024,),
        "img_neck.conv.0.weight": (512, 1536, 3, 3),
        "img_view_transformer.depth_net.depth_conv.0.conv1.weight": (512, 600, 3, 3),
        "img_bev_encoder_backbone.layers.0.0.conv1.weight": (32, 64, 3, 3, 3),
        "img_bev_encoder_neck.conv.conv.weight": (32, 224, 1, 1, 1),
        "final_conv.conv.weight": (32, 32, 3, 3, 3),
        "density_mlp.2.weight": (2, 64),
        "semantic_mlp.2.weight": (17, 64),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    converted, unmatched = convert_state_dict(state, model)
    assert unmatched == [] and set(converted) == set(model.state_dict())


def test_merged_pixels_come_in_the_order_that_mmdetection_unfolds_them():
    """The layer itself: norm and reduction over unfolded pixels, with released weights, give our layer's result."""
    model = with_swin(OccFlowNet, "occflownet_2d_tiny")
    backbone = model.trunk.image_encoder.backbone
    merging = backbone.encoder.layers[0].downsample
    state = released_swin(backbone.state_dict())
    theirs = {k.removeprefix("stages.0.downsample."): v for k, v in state.items() if k.startswith("stages.0.down")}
    x = torch.randn(1, 8, 6, 4, generator=torch.Generator().manual_seed(0))
    unfolded = unfold(x, 2, stride=2).transpose(1, 2)
    normed = torch.nn.functional.layer_norm(unfolded, (32,), theirs["norm.weight"], theirs["norm.bias"])
    expected = normed @ theirs["reduction.weight"].T
    got = merging(x.flatten(2).transpose(1, 2), (6, 4))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert not torch.equal(theirs["norm.weight"], merging.norm.weight)
    converted, left = swin_tensors(state)
    assert left == [] and torch.equal(converted["encoder.layers.0.downsample.norm.weight"], merging.norm.weight)


def test_a_released_checkpoint_gives_the_same_predictions(tmp_path, monkeypatch):
    model = with_swin(RenderOcc, "renderocc_7frame_tiny")
    path = tmp_path / "renderocc-7frame-12e.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": released(model)}, path)
    loaded = RenderOcc.from_original(path, "renderocc_7frame_tiny", trunk=model.config.trunk)
    assert loaded.config.bgr and not loaded.training
    batch = scene_batch()
    cameras = LiftCameras.of_batch(batch)
    output = loaded(batch.images, cameras)
    expected = model(loaded.normalise(batch.images), cameras)
    assert torch.equal(output.raw, expected.raw) and torch.equal(output.logits, expected.logits)


def test_a_detector_gives_what_it_shares(tmp_path):
    """Its backbone, neck and depth network; its 2D encoder and its heads have no place."""
    model = with_swin(OccFlowNet, "occflownet_2d_tiny")
    state = {k: v for k, v in released(model).items() if k.startswith(("img_backbone", "img_neck", "img_view"))}
    state["img_bev_encoder_backbone.layers.0.0.conv1.weight"] = torch.zeros(8, 8, 3, 3)
    state["pts_bbox_head.shared_conv.conv.weight"] = torch.zeros(8, 8, 3, 3)
    path = tmp_path / "bevdet-stbase-4d-stereo-512x1408-cbgs.pth"
    torch.save({"state_dict": state}, path)
    fresh = OccFlowNet(model.config)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    report = fresh.load_backbone(path)
    assert set(report.unmatched) == {
        "img_bev_encoder_backbone.layers.0.0.conv1.weight", "pts_bbox_head.shared_conv.conv.weight",
    }  # fmt: skip
    assert "not used" in str(report) and fresh.config.bgr
    for name, value in fresh.state_dict().items():
        shared = name.startswith(("trunk.image_encoder", "trunk.depth_net"))
        assert torch.equal(value, model.state_dict()[name] if shared else before[name]), name


def test_files_of_other_models_are_named(tmp_path):
    model = with_swin(RenderOcc, "renderocc_7frame_tiny")
    state = released(model)

    def loading(changed):
        path = tmp_path / "w.pth"
        torch.save(changed, path)
        return RenderOcc.from_original(path, "renderocc_7frame_tiny", trunk=model.config.trunk)

    cases = [
        ({k: v for k, v in state.items() if "blocks.1" not in k}, "missing encoder.layers.2.blocks.1"),
        (state | {"img_backbone.head.weight": torch.zeros(3)}, "left over img_backbone.head"),
        (state | {"img_neck.extra.weight": torch.zeros(3, 3)}, "0 layers|1 layers"),
        ({k: v for k, v in state.items() if "final_conv" not in k}, "missing heads.conv"),
        (state | {"pts_bbox_head.weight": torch.zeros(3)}, "first pts_bbox_head.weight"),
        ({k: v for k, v in state.items() if "density" not in k}, "missing heads.density"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match=message):
            loading(changed)
    with pytest.raises(ValueError, match="no such weights file"):
        RenderOcc.from_original(tmp_path / "none.pth", "renderocc_7frame_tiny")
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="holds no img_backbone"):
        model.load_backbone(tmp_path / "none.pth")


def test_a_resnet_is_known_by_its_names(tmp_path):
    model = OccFlowNet.from_preset("occflownet_2d_tiny")
    state = published_state(model.trunk.image_encoder.backbone, prefix="img_backbone.")
    torch.save(state, tmp_path / "w.pth")
    report = model.load_backbone(tmp_path / "w.pth")
    assert len(report.loaded) == len(state) and not report.unmatched
    stem = model.trunk.image_encoder.backbone.embedder.embedder.convolution.weight
    assert torch.equal(stem, state["img_backbone.conv1.weight"])
