"""Released state dicts under our names: every tensor finds its place, whatever the head's layers are called."""

import re

import pytest
import torch

from syntheocc.occupancy.perception.registry import load_model
from syntheocc.occupancy.perception.settings import PredictConfig
from syntheocc.occupancy.perception.sparseocc import PRESETS, SparseOcc, preset
from syntheocc.occupancy.perception.sparseocc.convert import convert_state_dict

# Ours -> mmdetection's way of naming and nesting. The image network's names are its public ones.
IMAGE = [
    (r"image_encoder\.neck\.(\w+)\.(\d+)", r"img_neck.\1.\2.conv"),
    (r"image_encoder\.backbone\.embedder\.embedder\.convolution", r"img_backbone.conv1"),
    (r"image_encoder\.backbone\.embedder\.embedder\.normalization", r"img_backbone.bn1"),
]
HEAD = [
    (r"head\.voxel_decoder\.stages\.(\d)\.(split)", r"pts_bbox_head.transformer.voxel_decoder.lift_heads.\1.0"),
    (r"head\.voxel_decoder\.stages\.(\d)\.(\w+_head)", r"pts_bbox_head.transformer.voxel_decoder.\2s.\1"),
    (r"head\.voxel_decoder\.stages\.(\d)", r"pts_bbox_head.transformer.voxel_decoder.decoder_layers.\1"),
    (r"head\.mask_decoder\.query_(\w+)", r"pts_bbox_head.transformer.decoder.query_\1"),
    (r"head\.mask_decoder", r"pts_bbox_head.transformer.decoder.decoder_layer"),
    (r"self_attention\.qkv\.(\w+)", r"self_attn.attention.attn.in_proj_\1"),
    (r"self_attention\.out\.", r"self_attn.attention.attn.out_proj."),
    (r"self_attention\.tau", r"self_attn.gen_tau"),
    (r"feed_forward\.up", r"ffn.layers.0.0"),
    (r"feed_forward\.down", r"ffn.layers.1"),
    (r"norm_attention", r"norm1"),
    (r"norm_mixing", r"norm2"),
    (r"norm_feed_forward", r"norm3"),
]
# The same layers under other names and in another nesting.
OTHER = [
    (r"head\.voxel_decoder\.stages\.(\d)\.split", r"head.heads.grow.\1"),
    (r"head\.voxel_decoder\.stages\.(\d)\.class_head", r"head.heads.semantic.\1"),
    (r"head\.voxel_decoder\.stages\.(\d)\.occupancy_head", r"head.heads.occupied.\1"),
    (r"head\.voxel_decoder\.stages\.(\d)", r"head.coarse_to_fine.\1"),
    (r"head\.mask_decoder\.query_positions", r"head.masks.embed_pos"),
    (r"head\.mask_decoder\.query_features", r"head.masks.embed"),
    (r"head\.mask_decoder", r"head.masks.block"),
    (r"self_attention\.qkv\.(\w+)", r"attend.in_proj_\1"),
    (r"self_attention\.out\.", r"attend.out_proj."),
    (r"self_attention\.tau", r"range"),
    (r"position_encoder", r"where"),
    (r"norm_attention", r"post_norms.0"),
    (r"norm_mixing", r"post_norms.1"),
    (r"norm_feed_forward", r"post_norms.2"),
    (r"parameter_generator", r"dynamic"),
    (r"sampling_offset", r"delta"),
]


def theirs(name: str, rules) -> str:
    """A name of ours as the released files would spell it."""
    block = re.fullmatch(
        r"image_encoder\.backbone\.encoder\.stages\.(\d)\.layers\.(\d+)\.(layer\.(\d)|shortcut)\.(\w+)\.(\w+)", name
    )
    if block:
        stage, layer, kind, number, part, leaf = block.groups()
        if kind == "shortcut":
            middle = f"downsample.{0 if part == 'convolution' else 1}"
        else:
            middle = f"{'conv' if part == 'convolution' else 'bn'}{int(number) + 1}"
        return f"img_backbone.layer{int(stage) + 1}.{layer}.{middle}.{leaf}"
    for pattern, replacement in (*IMAGE, *rules):
        name = re.sub(pattern, replacement, name)
    return name


def released(model: SparseOcc, rules) -> dict[str, torch.Tensor]:
    return {theirs(name, rules): value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("rules", [HEAD, OTHER], ids=["mmdetection", "other"])
@pytest.mark.parametrize(
    "name", ["r50_704x256_8f", "r50_704x256_8f_pano", "r50_704x256_8f_openocc", "r50_704x256_8f_v1_0"]
)
def test_every_released_tensor_finds_its_place(name, rules):
    """At the published size, without memory: the tensors are only shapes."""
    with torch.device("meta"):
        model = SparseOcc.from_preset(name)
    ours, state = model.state_dict(), released(model, rules)
    assert not set(ours) & set(state)
    converted = convert_state_dict(state, model.config)
    assert set(converted) == set(ours)
    for key in ours:
        assert converted[key] is state[theirs(key, rules)], key


def test_shapes_of_a_released_state_dict():
    """A few shapes worked out by hand from the specification (2.5 to 2.7)."""
    with torch.device("meta"):
        state = released(SparseOcc.from_preset("r50_704x256_8f"), HEAD)
    voxels, masks = "pts_bbox_head.transformer.voxel_decoder.", "pts_bbox_head.transformer.decoder."
    expected = {
        "img_backbone.conv1.weight": (64, 3, 7, 7),
        "img_backbone.layer4.2.bn3.running_var": (2048,),
        "img_neck.lateral_convs.3.conv.weight": (256, 2048, 1, 1),
        "img_neck.fpn_convs.0.conv.weight": (256, 256, 3, 3),
        voxels + "decoder_layers.0.mixing.parameter_generator.weight": (32768, 256),
        voxels + "decoder_layers.1.mixing.parameter_generator.weight": (20480, 256),
        voxels + "decoder_layers.2.mixing.parameter_generator.weight": (17408, 256),
        voxels + "decoder_layers.2.mixing.out_proj.weight": (256, 8192),
        voxels + "decoder_layers.1.sampling.sampling_offset.weight": (24, 256),
        voxels + "decoder_layers.0.self_attn.gen_tau.bias": (8,),
        voxels + "lift_heads.1.0.weight": (2048, 256),
        voxels + "class_heads.2.bias": (18,),
        masks + "query_features.weight": (100, 256),
        masks + "decoder_layer.sampling.offset.bias": (48,),
        masks + "decoder_layer.class_head.weight": (17, 256),
    }
    assert {key: tuple(state[key].shape) for key in expected} == expected
    assert not any(key.startswith(voxels + "decoder_layers.2.self_attn") for key in state)


@pytest.fixture
def checkpoint(tmp_path):
    """A small model's weights as a released training checkpoint, and the model."""
    model = SparseOcc.from_preset("tiny", embed_dims=48, legacy=True).eval()
    path = tmp_path / "latest.pth"
    meta = {"epoch": 24, "config": "model = dict()", "CLASSES": ["car"]}
    state = {f"module.{key}": value for key, value in released(model, HEAD).items()}
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}}}, path)
    return path, model


def test_a_released_checkpoint_gives_the_same_predictions(checkpoint, ring):
    path, model = checkpoint
    images = torch.randn(1, 2, 3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    loaded = SparseOcc.from_original(path, "tiny", embed_dims=48)
    assert loaded.config.legacy and not loaded.training
    inputs = images, ring(1, 2, 3, 64, 96)
    assert torch.equal(loaded(*inputs).predictions[-1].mask_logits, model(*inputs).predictions[-1].mask_logits)
    norms = [m for m in loaded.train().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)


def test_programs_load_a_released_checkpoint_by_the_preset_that_is_named(checkpoint, tmp_path, monkeypatch):
    path, model = checkpoint
    monkeypatch.setitem(PRESETS, "wide", lambda: preset("tiny", embed_dims=48))
    entry, loaded = load_model(PredictConfig(weights=path, preset="wide", device="cpu"))
    assert entry.name == "sparseocc" and loaded.config.legacy
    weights = loaded.state_dict()
    assert [n for n, value in model.state_dict().items() if not value.equal(weights[n])] == []
    loaded.save_pretrained(tmp_path / "folder")
    assert load_model(PredictConfig(weights=tmp_path / "folder", device="cpu"))[1].config == loaded.config
    (tmp_path / "folder" / "config.json").write_text('{"_class_name": "SparseNet"}')
    with pytest.raises(ValueError, match="holds a SparseNet, which is none of the known models: SparseOcc"):
        load_model(PredictConfig(weights=tmp_path / "folder", device="cpu"))


def test_a_checkpoint_of_another_preset_or_with_leftovers_is_refused(checkpoint, tmp_path):
    path, _ = checkpoint
    with pytest.raises(ValueError, match="0 tables of 20 queries of 32 channels"):
        SparseOcc.from_original(path, "tiny")
    with pytest.raises(ValueError, match="no such weights file"):
        SparseOcc.from_original(tmp_path / "absent.pth", "tiny")
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    state["module.pts_bbox_head.extra.weight"] = torch.zeros(3, 3)
    torch.save(content, path)
    with pytest.raises(ValueError, match="lacks: pts_bbox_head.extra"):
        SparseOcc.from_original(path, "tiny", embed_dims=48)
    del state["module.pts_bbox_head.extra.weight"], state["module.img_backbone.bn1.weight"]
    torch.save(content, path)
    with pytest.raises(ValueError, match="missing image_encoder.backbone.embedder"):
        SparseOcc.from_original(path, "tiny", embed_dims=48)
    state["module.img_backbone.fc.weight"] = torch.zeros(3, 3)
    torch.save(content, path)
    with pytest.raises(ValueError, match="fc.weight is no part"):
        SparseOcc.from_original(path, "tiny", embed_dims=48)


def test_a_detectors_backbone_brings_the_frozen_recipe_which_survives_saving(tmp_path):
    donor, model = SparseOcc.from_preset("tiny"), SparseOcc.from_preset("tiny")
    assert all(p.requires_grad for p in model.parameters())
    state = {k.replace("img_", ""): v for k, v in released(donor, HEAD).items() if k.startswith("img_backbone.")}
    torch.save({"state_dict": {**state, "roi_head.fc.weight": torch.zeros(2)}}, tmp_path / "detector.pth")
    report = model.load_backbone(tmp_path / "detector.pth")
    assert report.unmatched == ("roi_head.fc.weight",)
    ours, theirs_ = model.image_encoder.backbone.state_dict(), donor.image_encoder.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs_[name]) for name in ours)
    model.save_pretrained(tmp_path / "model")
    for trained in (model, SparseOcc.from_pretrained(tmp_path / "model")):
        backbone = trained.train().image_encoder.backbone
        assert not any(p.requires_grad for p in backbone.embedder.parameters())
        assert not any(p.requires_grad for p in backbone.stages[0].parameters())
        assert all(p.requires_grad for p in backbone.stages[1].parameters())
        assert not any(m.training for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
