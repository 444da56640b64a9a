"""A trained perception model on disk: ``config.json`` and ``model.safetensors`` in one folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from syntheocc.engine.files import atomic_path, atomic_write_json, read_json

__all__ = ["CONFIG", "WEIGHTS", "class_in_folder", "load_weights", "read_folder", "write_folder"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"

Config = TypeVar("Config")


def write_folder(path: str | Path, class_name: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a model's folder; each file appears whole or not at all, the config last.

    Args:
        path: the folder.
        class_name: what the weights are of, e.g. "SparseOcc".
        config: plain values.
        weights: the state dict.
    """
    from safetensors.torch import save_file

    path = Path(path)
    with atomic_path(path / WEIGHTS) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, temporary)
    atomic_write_json(path / CONFIG, {"_class_name": class_name, **config})


def class_in_folder(path: str | Path) -> str:
    """What model a folder, or a hub id ``owner/name``, holds.

    Raises:
        ValueError: neither exists, or its config is missing, damaged or says nothing of a model.
    """
    file = _local(path) / CONFIG
    values = read_json(file)
    name = values.get("_class_name") if isinstance(values, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{file}: does not describe a model (no _class_name); check the folder")
    return name


def read_folder(
    path: str | Path,
    class_name: str,
    from_dict: Callable[[dict[str, Any]], Config],
    device: torch.device | str = "cpu",
) -> tuple[Config, dict[str, Tensor]]:
    """Config and weights of a folder, or of a hub id ``owner/name``.

    Args:
        path: the folder.
        class_name: what must be in it.
        from_dict: makes the config of the values that `write_folder` was given.
        device: where the weights go.

    Raises:
        ValueError: neither exists, a file is missing or damaged, or the folder holds another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = _local(path)
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or values.get("_class_name") != class_name:
        raise ValueError(f"{folder / CONFIG}: does not describe a {class_name} model; check the folder")
    try:
        config = from_dict({k: v for k, v in values.items() if not k.startswith("_")})
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    try:
        return config, load_file(folder / WEIGHTS, device=str(device))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS}: cannot be read ({error}); copy the folder again") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load all weights of a model, none missing and none left over; ValueError naming those of `source` that are."""
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(weights))
    unexpected = sorted(set(weights) - set(wanted))
    reshaped = [
        f"{name} {list(weights[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    if missing or unexpected or reshaped:
        raise ValueError(
            f"{source} does not fit this model: missing {_some(missing)}; unexpected {_some(unexpected)}; "
            f"of another shape {_some(reshaped)}"
        )
    model.load_state_dict(weights)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"


def _local(path: str | Path) -> Path:
    if Path(path).is_dir():
        return Path(path)
    # What cannot be a hub id is a wrong path; anything else would silently become a download.
    parts = str(path).split("/")
    if isinstance(path, Path) or len(parts) != 2 or not all(parts) or parts[0].startswith("."):
        raise ValueError(f"{path}: no such folder; give one that save_pretrained wrote, or a hub id owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=[CONFIG, WEIGHTS]))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: neither a folder nor a model that could be fetched from the hub ({error}); give a local folder"
        ) from error
