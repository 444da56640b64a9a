"""Published weights for the backbones: the names that mmdetection and torchvision give a ResNet, mapped to ours.

| theirs                             | ours                                              |
|------------------------------------|---------------------------------------------------|
| `conv1.weight`, `bn1.*`            | `embedder.embedder.{convolution,normalization}.*` |
| `layer2.0.conv1.*`, `.bn1.*`       | `encoder.stages.1.layers.0.layer.0.*`             |
| `layer2.0.downsample.{0,1}.*`      | `encoder.stages.1.layers.0.shortcut.*`            |
| `lateral_convs.0.conv.*` (pyramid) | `lateral_convs.0.*`                               |

A detector's file has them behind `backbone.` (mmdetection) or `img_backbone.` (mmdetection3d); torchvision's have no
prefix.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.perception.backbones import ImageEncoder

__all__ = ["BackboneReport", "load_backbone_weights", "neck_name", "read_state_dict", "resnet_name"]

PREFIXES = ("backbone.", "img_backbone.", "")
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(conv|bn)(\d+)\.(\w+)")
_SHORTCUT = re.compile(r"layer(\d+)\.(\d+)\.downsample\.([01])\.(\w+)")


def resnet_name(name: str) -> str | None:
    """Our name of a ResNet's tensor, for `ImageEncoder.backbone`; None for what is no part of one (`fc.weight`)."""
    parts = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"embedder.embedder.{parts[match[1]]}.{match[2]}"
    if match := _BLOCK.fullmatch(name):
        stage, block, kind, number, what = match.groups()
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(number) - 1}.{parts[kind]}.{what}"
    if match := _SHORTCUT.fullmatch(name):
        stage, block, kind, what = match.groups()
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.shortcut.{parts[kind]}.{what}"
    return None


def neck_name(name: str) -> str | None:
    """Our name of a feature pyramid's tensor, for `ImageEncoder.neck`; None for what is no part of one."""
    match = re.fullmatch(r"((?:lateral|fpn)_convs\.\d+)\.conv\.(\w+)", name)
    return f"{match[1]}.{match[2]}" if match else None


@dataclass(frozen=True)
class BackboneReport:
    """What a weights file brought."""

    path: str
    loaded: tuple[str, ...]
    """Names in the file."""
    unmatched: tuple[str, ...]
    """Names in the file that have no place in the backbone (a detector's heads, a classifier)."""

    def __str__(self) -> str:
        text = f"{self.path}: {len(self.loaded)} tensors of the backbone"
        if self.unmatched:
            groups: dict[str, int] = {}
            for name in self.unmatched:
                groups[name.split(".")[0]] = groups.get(name.split(".")[0], 0) + 1
            text += "; not used: " + ", ".join(f"{number} of {group}" for group, number in sorted(groups.items()))
        return text


def load_backbone_weights(
    encoder: ImageEncoder, path: str | Path, frozen_stages: int = 1, norm_eval: bool = True
) -> BackboneReport:
    """Load a pretrained ResNet into an encoder's backbone and freeze it as published.

    The pyramid keeps its random weights: the published recipe loads `backbone.*` only.

    Args:
        encoder: its backbone must have the file's architecture.
        path: `.pth` (a state dict, or a checkpoint with one under `state_dict`) or `.safetensors`.
        frozen_stages: see `ImageEncoder.freeze`.
        norm_eval: see `ImageEncoder.freeze`.

    Returns:
        What was loaded and what in the file had no place; print it.

    Raises:
        ValueError: no such file, one that is damaged or holds more than tensors, or one that lacks tensors of the
            backbone or has them in other shapes; nothing is loaded then.
    """
    state = read_state_dict(path)
    wanted = encoder.backbone.state_dict()
    prefix = max(PREFIXES, key=lambda p: sum(k.startswith(p) and resnet_name(k[len(p) :]) in wanted for k in state))
    found, unmatched = {}, []
    for key, value in state.items():
        ours = resnet_name(key[len(prefix) :]) if key.startswith(prefix) else None
        if ours in wanted:
            found[ours] = (key, value)
        else:
            unmatched.append(key)
    # Old files do not count batches; nothing here depends on the counter.
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"{path}: lacks {len(missing)} of the {len(wanted)} tensors of {encoder.backbone.name} "
            f"({missing[0]}, ...) and has {', '.join(sorted(state)[:3])}, ...; is it a ResNet of another depth?"
        )
    reshaped = [
        f"{key} {list(value.shape)} instead of {list(wanted[name].shape)}"
        for name, (key, value) in found.items()
        if value.shape != wanted[name].shape
    ]
    if reshaped:
        raise ValueError(f"{path}: does not fit {encoder.backbone.name}: {'; '.join(reshaped[:3])}")
    encoder.backbone.load_state_dict({name: value for name, (_, value) in found.items()}, strict=False)
    encoder.freeze(frozen_stages, norm_eval)
    return BackboneReport(str(path), tuple(key for key, _ in found.values()), tuple(unmatched))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.safetensors` file, read without running code.

    A checkpoint's `state_dict` (or `model`) is opened, and a `module.` in front of every name dropped.

    Raises:
        ValueError: no such file, a damaged one, or one whose pickle needs more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file; without one, weights would be random")
    document: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            document = load_file(path)
        else:
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile, pickle and safetensors each raise their own
        # Not torch's own advice over a pickle, which is to run whatever it holds.
        reason = (
            "not a pickle of tensors" if isinstance(error, UnpicklingError) else (str(error).splitlines() or [""])[0]
        )
        raise ValueError(
            f"{path}: cannot be read as weights ({reason}); it is damaged, or holds more than "
            "tensors: save its state_dict alone in the environment that made it"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(document, Mapping) and isinstance(document.get(key), Mapping):
            document = document[key]
    if not isinstance(document, Mapping) or not all(isinstance(value, Tensor) for value in document.values()):
        raise ValueError(f"{path}: no state dict but {type(document).__name__}; save the model's state_dict()")
    names = {str(name): value for name, value in document.items()}
    if names and all(name.startswith("module.") for name in names):
        names = {name[len("module.") :]: value for name, value in names.items()}
    return names
