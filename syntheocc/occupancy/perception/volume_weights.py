"""Released weights of the BEVDet family under our names: ``renderocc-7frame-12e.pth`` and the detector it began with.

The image network has mmdetection's public names (`swin_tensors`, `resnet_name`). The specification gives no names for
what follows it, only shapes (specs/occflownet_splattingocc.md 2): those layers are told by the word in their path that
says which part of the network they are in (`PARTS`), by the shape of their weights, and, among equals, by their order
in the file, which is that of the network. A layer too many or too few is an error that names it.

Two things differ besides the names: our volumes are [X, Y, Z], so 3D kernels are transposed; and mmdetection gathers
the four pixels that Swin merges in another order.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from syntheocc.occupancy.perception.backbone_weights import BackboneReport, read_state_dict, resnet_name
from syntheocc.occupancy.perception.image_encoders import Swin
from syntheocc.occupancy.perception.storage import load_weights
from syntheocc.occupancy.perception.volume_model import VolumeModel

__all__ = ["PARTS", "convert_state_dict", "load_pretrained", "read_released", "swin_tensors"]

# Our submodule and the words of which one is in the path of its layers; the first that fits counts.
PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("trunk.image_encoder.backbone", ("img_backbone",)),
    ("trunk.image_encoder.neck", ("img_neck",)),
    ("trunk.pre_process", ("pre_process",)),
    ("trunk.depth_net", ("view_transformer", "depth_net")),
    ("heads.conv", ("final_conv",)),
    ("heads.density", ("density",)),
    ("heads.semantics", ("semantic",)),
    ("trunk.volume_encoder", ("encoder",)),
)
_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Words that tell layers of one shape apart, by part: (in their path, in ours).
_TAGS = {"trunk.depth_net": ("context", "context"), "trunk.volume_encoder": ("neck", "merge")}


def read_released(path: str | Path, model: VolumeModel) -> dict[str, Tensor]:
    """All weights of a released ``.pth`` file under our names; see `convert_state_dict`."""
    converted, unmatched = convert_state_dict(read_state_dict(path), model)
    if unmatched:
        raise ValueError(f"{path}: {len(unmatched)} tensors have no place in this model, first {unmatched[0]}")
    return converted


def load_pretrained(model: VolumeModel, path: str | Path) -> BackboneReport:
    """Load what a released detector shares with a model: the image network, and other parts that fit as a whole.

    Args:
        model: gets the weights.
        path: e.g. ``bevdet-stbase-4d-stereo-512x1408-cbgs.pth``.

    Returns:
        what was loaded and what in the file had no place.

    Raises:
        ValueError: no such file, or its backbone is another one; nothing is loaded then.
    """
    state = read_state_dict(path)
    converted, unmatched = convert_state_dict(state, model, partial=True)
    if not any(name.startswith(f"{PARTS[0][0]}.") for name in converted):
        raise ValueError(f"{path}: holds no {PARTS[0][1][0]}; is it a BEVDet checkpoint?")
    load_weights(model, model.state_dict() | converted, str(path))
    return BackboneReport(str(path), tuple(k for k in state if k not in set(unmatched)), tuple(unmatched))


def convert_state_dict(
    state: Mapping[str, Tensor], model: VolumeModel, partial: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """A released state dict under our names.

    Args:
        state: in the file's order.
        model: what the weights are for.
        partial: leave out parts of the network that do not fit, but for the backbone; otherwise they are an error.

    Returns:
        our name -> tensor, and their names of tensors that have no place.

    Raises:
        ValueError: a part does not fit, naming it and a layer.
    """
    parts: dict[str, dict[str, Tensor]] = {ours: {} for ours, _ in PARTS}
    unmatched = []
    for name, value in state.items():
        part = next((ours for ours, words in PARTS if any(word in name for word in words)), None)
        if part is None:
            unmatched.append(name)
        else:
            parts[part][name] = value
    converted: dict[str, Tensor] = {}
    for ours, tensors in parts.items():
        module = model.get_submodule(ours)
        try:
            if ours == PARTS[0][0]:
                found, left = _backbone(tensors, module)
            else:
                found, left = _by_shape(tensors, module, ours)
        except ValueError:
            if not partial or ours == PARTS[0][0]:
                raise
            found, left = {}, list(tensors)
        converted |= {f"{ours}.{name}": value for name, value in found.items()}
        unmatched += left
    return converted, unmatched


def swin_tensors(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A Swin transformer in mmdetection's names (without prefix) as the tensors of `Swin`, and the names left over."""
    converted: dict[str, Tensor] = {}
    left = []
    for name, value in state.items():
        if match := re.fullmatch(r"norm(\d)\.(\w+)", name):
            converted[f"norms.stage{int(match[1]) + 1}.{match[2]}"] = value
        elif match := re.fullmatch(r"patch_embed\.(projection|norm)\.(\w+)", name):
            middle = "patch_embeddings.projection" if match[1] == "projection" else "norm"
            converted[f"embeddings.{middle}.{match[2]}"] = value
        elif match := re.fullmatch(r"stages\.(\d)\.downsample\.(norm|reduction)\.(\w+)", name):
            converted[f"encoder.layers.{match[1]}.downsample.{match[2]}.{match[3]}"] = _merged_order(value)
        elif match := re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.+)", name):
            block = f"encoder.layers.{match[1]}.blocks.{match[2]}"
            found = _swin_block(match[3], value)
            converted |= {f"{block}.{ours}": tensor for ours, tensor in found.items()}
            if not found and not match[3].endswith("relative_position_index"):
                left.append(name)
        else:
            left.append(name)
    return converted, left


def _swin_block(name: str, value: Tensor) -> dict[str, Tensor]:
    plain = {
        "attn.w_msa.proj": "attention.o_proj",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "ffn.layers.0.0": "mlp.fc1",
        "ffn.layers.1": "mlp.fc2",
    }
    if name == "attn.w_msa.relative_position_bias_table":
        return {"attention.relative_position_bias.relative_position_bias_table": value}
    layer, _, leaf = name.rpartition(".")
    if layer == "attn.w_msa.qkv":
        return {f"attention.{kind}_proj.{leaf}": part for kind, part in zip("qkv", value.chunk(3), strict=True)}
    return {f"{plain[layer]}.{leaf}": value} if layer in plain else {}


def _merged_order(value: Tensor) -> Tensor:
    """The last dimension of four merged pixels: from channel by channel, row by row, to pixel by pixel, columns first.

    mmdetection gathers by unfolding (index 4 c + 2 row + column); Swin itself, and transformers, by slicing (index
    C k + c with pixels k = (0, 0), (1, 0), (0, 1), (1, 1) of (row, column)).
    """
    return value.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2).contiguous()


def _backbone(tensors: Mapping[str, Tensor], module: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The image backbone by its names."""
    plain = {name.split("img_backbone.", 1)[1]: value for name, value in tensors.items()}
    full = {name.split("img_backbone.", 1)[1]: name for name in tensors}
    if isinstance(module, Swin):
        # A final norm of a map that is not returned has no place.
        found, left = swin_tensors(plain)
    else:
        names = {name: resnet_name(name) for name in plain}
        found = {ours: plain[name] for name, ours in names.items() if ours is not None}
        left = [name for name, ours in names.items() if ours is None]
    wanted = module.state_dict()
    missing = sorted(set(wanted) - set(found))
    if tensors and (missing or left):
        raise ValueError(
            "the file's img_backbone is another network than this model's: missing "
            f"{', '.join(missing[:3]) or 'none'}; left over {', '.join(full[name] for name in left[:3]) or 'none'}"
        )
    return found, []


@dataclass
class _Layer:
    """A module with weights: where it is, and its tensors by leaf."""

    path: str
    tensors: dict[str, Tensor]

    def key(self, tag: str | None) -> tuple[tuple[int, ...], bool, bool]:
        """What two layers must share: the weight's shape, whether there are statistics, and the tag in the path."""
        tagged = tag is not None and tag in self.path
        return tuple(self.tensors["weight"].shape), "running_mean" in self.tensors, tagged


def _layers(tensors: Mapping[str, Tensor]) -> Iterator[_Layer]:
    """Layers in order; what has no weight (frusta and other constants) is passed over."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf in _LEAVES:
            grouped.setdefault(path, {})[leaf] = value
    return (_Layer(path, leaves) for path, leaves in grouped.items() if "weight" in leaves)


def _by_shape(tensors: Mapping[str, Tensor], module: nn.Module, part: str) -> tuple[dict[str, Tensor], list[str]]:
    """A part's layers by shape, tag and order."""
    if not tensors:
        return {}, []
    their_tag, our_tag = _TAGS.get(part, (None, None))
    theirs: dict[tuple, list[_Layer]] = {}
    for layer in _layers(tensors):
        theirs.setdefault(layer.key(their_tag), []).append(layer)
    ours: dict[tuple, list[_Layer]] = {}
    for layer in _layers({f"{part}.{name}": value for name, value in module.state_dict().items()}):
        ours.setdefault(layer.key(our_tag), []).append(layer)
    for key in {**theirs, **ours}:
        have, want = theirs.get(key, []), ours.get(key, [])
        if len(have) != len(want):
            example = (have or want)[0].path
            raise ValueError(
                f"{part}: the file has {len(have)} layers of the shape and place of {example}, this model has "
                f"{len(want)}; is it another model's or another preset's file?"
            )
    converted: dict[str, Tensor] = {}
    for key, wanted in ours.items():
        for layer, found in zip(wanted, theirs[key], strict=True):
            path = layer.path[len(part) + 1 :]
            taken = _taken(layer, found)
            converted |= {f"{path}.{leaf}" if path else leaf: value for leaf, value in taken.items()}
    return converted, []


def _taken(layer: _Layer, found: _Layer) -> dict[str, Tensor]:
    taken = {}
    for leaf, like in layer.tensors.items():
        value = found.tensors.get(leaf)
        if value is None and leaf in ("bias", "num_batches_tracked"):
            value = torch.zeros_like(like)  # a layer that has none adds none
        if value is None:
            raise ValueError(f"{found.path} has no {leaf}")
        taken[leaf] = value.transpose(2, 4).contiguous() if value.ndim == 5 else value
    if extra := set(found.tensors) - set(layer.tensors):
        raise ValueError(f"{found.path} has {', '.join(sorted(extra))}, which {layer.path} lacks")
    return taken
