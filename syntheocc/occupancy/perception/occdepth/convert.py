"""Released OccDepth checkpoints (PyTorch Lightning) under our names.

The names are those of specs/occdepth.md 4. Three kinds of tensors in a checkpoint have no place here, because the
published network carries them without using them: the norm behind the encoder's last convolution, the decoder's
output of stride 16, and the pooling layers of bottlenecks that do not pool. Everything else must fit, one to one.

A Lightning checkpoint also pickles its callbacks and settings by class. They are never imported: whatever is not a
tensor or plain data becomes an empty stand-in, and only the tensors are looked at.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from syntheocc.occupancy.perception.backbone_weights import read_state_dict
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig
from syntheocc.occupancy.perception.occdepth.image_encoder import ENCODERS, ImageEncoder
from syntheocc.occupancy.perception.storage import load_weights

__all__ = ["convert_state_dict", "load_encoder", "our_name", "read_released"]

# What the published network never uses, or recomputes.
_DEAD = (
    r"net_rgb\.encoder\.original_model\.bn2\..*",
    r"net_rgb\.encoder\.original_model\.(global_pool|classifier)\..*",
    r"net_rgb\.decoder\.resize_output_1_16\..*",
    r"flosp_depth\.(voxel_size|voxel_coord|voxel_num|frustum)",
    # Bottlenecks of stride 1, which are those of a `Process`.
    r"net_3d_decoder\.process_\w+\.0\.main\.\d+\.downsample[234]\..*",
    r"net_3d_decoder\.CP_mega_voxels\.resize\.1\.main\.0\.downsample[234]\..*",
)

_ENCODER, _IMAGE = r"net_rgb\.encoder\.original_model\.", "image_network.encoder."
_VOLUME, _PRIOR = r"net_3d_decoder\.", r"net_3d_decoder\.CP_mega_voxels\."
_DEPTH = r"flosp_depth\.depth_net\.(?:0\.)?"
# Pattern of a published name -> ours. Blocks of the encoder are `_encoder_block`.
_RULES: tuple[tuple[str, str], ...] = (
    (_ENCODER + r"conv_stem\.(.*)", _IMAGE + r"embeddings.convolution.\1"),
    (_ENCODER + r"bn1\.(.*)", _IMAGE + r"embeddings.batchnorm.\1"),
    (_ENCODER + r"conv_head\.(.*)", _IMAGE + r"top_conv.\1"),
    (r"net_rgb\.decoder\.conv2\.(.*)", r"image_network.decoder.bottleneck.\1"),
    (r"net_rgb\.decoder\.up(\d+)\._net\.(\d)\.(.*)", r"image_network.decoder.levels.\1.convs.\2.\3"),
    (r"net_rgb\.decoder\.resize_output_1_(\d+)\.(.*)", r"image_network.decoder.outputs.\1.\2"),
    (_DEPTH + r"reduce_conv\.(\d)\.(.*)", r"depth_net.reduce.\1.\2"),
    (_DEPTH + r"mlp\.fc1\.(.*)", r"depth_net.gate.mlp.0.\1"),
    (_DEPTH + r"mlp\.fc2\.(.*)", r"depth_net.gate.mlp.2.\1"),
    (_DEPTH + r"se\.conv_(reduce|expand)\.(.*)", r"depth_net.gate.\1.\2"),
    (_DEPTH + r"depth_conv\.(\d)\.(.*)", r"depth_net.blocks.\1.\2"),
    (_DEPTH + r"depth_pred\.(.*)", r"depth_net.depth.\1"),
    (_PRIOR + r"mega_context\.0\.(.*)", r"volume_net.relation.context.\1"),
    (_PRIOR + r"context_prior_logits\.(\d)\.0\.(.*)", r"volume_net.relation.relations.\1.\2"),
    (_PRIOR + r"aspp\.(.*)", r"volume_net.relation.aspp.\1"),
    (_PRIOR + r"resize\.0\.(.*)", r"volume_net.relation.merge.\1"),
    (_PRIOR + r"resize\.1\.main\.0\.(.*)", r"volume_net.relation.process.0.\1"),
    # SemanticKITTI's levels, and NYUv2's.
    (_VOLUME + r"process_(?:l1|1_4)\.0\.main\.(\d)\.(.*)", r"volume_net.level1.\1.\2"),
    (_VOLUME + r"process_(?:l2|1_8)\.0\.main\.(\d)\.(.*)", r"volume_net.level2.\1.\2"),
    (_VOLUME + r"process_(?:l1|1_4)\.1\.main\.(.*)", r"volume_net.level1.3.\1"),
    (_VOLUME + r"process_(?:l2|1_8)\.1\.main\.(.*)", r"volume_net.level2.3.\1"),
    (_VOLUME + r"(?:up_13_l2|up_1_16_1_8)\.main\.(\d)\.(.*)", r"volume_net.up2.\1.\2"),
    (_VOLUME + r"(?:up_12_l1|up_1_8_1_4)\.main\.(\d)\.(.*)", r"volume_net.up1.\1.\2"),
    (_VOLUME + r"up_l1_lfull\.main\.(\d)\.(.*)", r"volume_net.up0.\1.\2"),
    (_VOLUME + r"ssc_head(?:_1_4)?\.conv0\.(.*)", r"volume_net.head.conv.\1"),
    (_VOLUME + r"ssc_head(?:_1_4)?\.conv_classes\.(.*)", r"volume_net.head.classes.\1"),
    (_VOLUME + r"ssc_head(?:_1_4)?\.occ_classes\.(.*)", r"volume_net.head.occupancy.\1"),
    (_VOLUME + r"ssc_head(?:_1_4)?\.((?:conv|bn)[12]\.\d\..*)", r"volume_net.head.aspp.\1"),
)
# Parts of an encoder's block: of the first stage, which does not widen, and of the others.
_FIRST_STAGE = {
    "conv_dw": "depthwise_conv.depthwise_conv", "bn1": "depthwise_conv.depthwise_norm",
    "se.conv_reduce": "squeeze_excite.reduce", "se.conv_expand": "squeeze_excite.expand",
    "conv_pw": "projection.project_conv", "bn2": "projection.project_bn",
}  # fmt: skip
_STAGES = {
    "conv_pw": "expansion.expand_conv", "bn1": "expansion.expand_bn", "conv_dw": "depthwise_conv.depthwise_conv",
    "bn2": "depthwise_conv.depthwise_norm", "se.conv_reduce": "squeeze_excite.reduce",
    "se.conv_expand": "squeeze_excite.expand", "conv_pwl": "projection.project_conv", "bn3": "projection.project_bn",
}  # fmt: skip
# Blocks of an EfficientNet's stages at depth 1.
_REPEATS = (1, 2, 2, 3, 3, 4, 1)


def read_released(path: str | Path, config: OccDepthConfig) -> dict[str, Tensor]:
    """All weights of a released ``.ckpt`` under our names.

    Args:
        path: the file; also a plain ``state_dict`` in .pth or .safetensors.
        config: what the weights are for.

    Raises:
        ValueError: no such file, a damaged one, or tensors that have no place; names one.
    """
    converted, strange = convert_state_dict(_read(Path(path)), config)
    if strange:
        raise ValueError(f"{path}: {len(strange)} tensors have no place in OccDepth, first {strange[0]}")
    return converted


def convert_state_dict(state: Mapping[str, Tensor], config: OccDepthConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A released state dict under our names.

    Args:
        state: with or without a leading ``model.``.
        config: what the weights are for; its encoder says how blocks are counted.

    Returns:
        our name -> tensor, and their names of the tensors that have no place.
    """
    converted: dict[str, Tensor] = {}
    strange = []
    for name, value in state.items():
        plain = name.removeprefix("model.")
        if any(re.fullmatch(pattern, plain) for pattern in _DEAD):
            continue
        ours = our_name(plain, config.backbone)
        if ours is None:
            strange.append(name)
        else:
            converted[ours] = value
    return converted, strange


def load_encoder(model: nn.Module, path: str | Path) -> int:
    """Load the image encoder's weights: a classifier of timm (``tf_efficientnet_b7...``) or of transformers.

    Args:
        model: an `OccDepth`; its encoder gets the weights.
        path: .pth or .safetensors.

    Returns:
        how many tensors were loaded: all of the encoder's.

    Raises:
        ValueError: no such file, or it lacks a tensor of the encoder or has one of another shape.
    """
    encoder = model.get_submodule("image_network.encoder")
    assert isinstance(encoder, ImageEncoder)
    found: dict[str, Tensor] = {}
    for name, value in read_state_dict(path).items():
        plain = (
            name.removeprefix("efficientnet.").replace("encoder.blocks.", "blocks.").replace("encoder.top_", "top_")
        )
        ours = our_name(f"net_rgb.encoder.original_model.{plain}", encoder.name)
        found[plain if ours is None else ours.removeprefix(_IMAGE)] = value
    wanted = encoder.state_dict()
    load_weights(encoder, {name: value for name, value in found.items() if name in wanted}, str(path))
    return len(wanted)


def our_name(name: str, backbone: str) -> str | None:
    """Our name of a published tensor of a network with that encoder (`ENCODERS`); None where it has none."""
    block = re.fullmatch(_ENCODER + r"blocks\.(\d)\.(\d+)\.(.*)\.(\w+)", name)
    if block:
        return _encoder_block(int(block[1]), int(block[2]), block[3], block[4], ENCODERS[backbone][1])
    for pattern, ours in _RULES:
        match = re.fullmatch(pattern, name)
        if match:
            found = match.expand(ours)
            # Bottlenecks that pool: their layers 1 and 2, behind the pooling.
            found = re.sub(r"\.downsample([234])\.", r".down\1.", found)
            return found.replace(".downsample.", ".shortcut.")
    return None


def _encoder_block(stage: int, index: int, part: str, leaf: str, depth: float) -> str | None:
    """Our name of a tensor of block `index` of a stage, of an EfficientNet that is so many times as deep as B0."""
    repeats = [-int(-depth * number // 1) for number in _REPEATS]
    ours = (_FIRST_STAGE if stage == 0 else _STAGES).get(part)
    if ours is None or stage >= len(repeats) or index >= repeats[stage]:
        return None
    return f"{_IMAGE}blocks.{sum(repeats[:stage]) + index}.{ours}.{leaf}"


class _Nothing:
    """What a checkpoint's own classes become; takes anything and does nothing with it."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's ``state_dict``, the classes that it pickles besides left out."""
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    if path.suffix == ".safetensors" or not path.is_file():
        return read_state_dict(path)
    try:
        unknown = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip archive, or damaged: the plain reader says what is wrong
        return read_state_dict(path)
    with safe_globals([(_Nothing, name) for name in unknown]):
        return read_state_dict(path)
