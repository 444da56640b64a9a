"""Training state on disk without pickles: tensors in a safetensors file, everything else in a JSON file beside it.

Nothing in a checkpoint can run code when it is read, and a person can look into it. Floats survive JSON exactly
(Python writes the shortest text that reads back as the same double).
"""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from syntheocc.engine.files import atomic_write_json, read_json

_MARK = "$"  # begins the name of what JSON cannot spell: {"$tensor": name}, {"$tuple": [...]}, ...


def save_state(folder: Path, name: str, state: Mapping[str, Any]) -> None:
    """Write `<name>.safetensors` and `<name>.json` into a folder.

    Args:
        folder: exists already.
        name: of the two files, without suffix.
        state: nested dicts, lists and tuples of tensors, strings, numbers, booleans and None.

    Raises:
        ValueError: something else is in there; the message says where.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = _encode(state, name, tensors)
    save_file(_unshared(tensors), str(folder / f"{name}.safetensors"))
    atomic_write_json(folder / f"{name}.json", tree, indent=1)


def load_state(folder: Path, name: str) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; tensors come back on the CPU.

    Raises:
        ValueError: a file is missing, damaged, or not of this kind.
    """
    tensors = load_tensors(folder / f"{name}.safetensors")
    tree = read_json(folder / f"{name}.json")
    try:
        return _decode(tree, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / name}.json: does not fit its safetensors file ({error}); copy the checkpoint again"
        ) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors; tensors that share memory are written twice."""
    from safetensors.torch import save_file

    save_file(_unshared(tensors), str(path))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU. A missing or damaged file is a ValueError that names it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path}: no such file; is this a checkpoint of this project's training loop?")
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); it is damaged, copy it again") from error


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """What training changes in a module: parameters with `requires_grad`, and the persistent buffers.

    Frozen weights are not in it; they come from where they came from at the start. Names are those of an
    uncompiled module, so that a checkpoint does not depend on `torch.compile`.
    """
    frozen = {name for name, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return {
        plain_name(name): value
        for name, value in module.state_dict(keep_vars=True).items()
        if name not in frozen and isinstance(value, Tensor)
    }


@torch.no_grad()
def load_trainable(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give a module the values of :func:`trainable_state`, in place.

    Raises:
        ValueError: names or shapes are not those of the module's trained parameters; `source` is named.
    """
    current = trainable_state(module)
    if set(current) != set(tensors):
        missing, unknown = sorted(set(current) - set(tensors)), sorted(set(tensors) - set(current))
        raise ValueError(
            f"{source}: other parameters were trained: it lacks {len(missing)} (first {missing[:2]}) and has "
            f"{len(unknown)} unknown (first {unknown[:2]}); resume with the settings of the first run"
        )
    for name, value in current.items():
        if tensors[name].shape != value.shape:
            raise ValueError(
                f"{source}: {name} is {list(tensors[name].shape)}, the model's {list(value.shape)}; resume with the "
                "settings of the first run"
            )
        value.copy_(tensors[name])


def plain_name(name: str) -> str:
    """A parameter's name without what `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")


def named_optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Any]:
    """The optimizer's state by parameter name. Its settings (learning rate, betas) are the job's, not state."""
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return {order[index]: dict(values) for index, values in optimizer.state_dict()["state"].items()}


def load_named_optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], state: Mapping[str, Any]
) -> None:
    """Continue from :func:`named_optimizer_state` with the optimizer's present settings.

    Raises:
        ValueError: the state is of other parameters.
    """
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    unknown = sorted(set(state) - set(order))
    if unknown:
        raise ValueError(
            f"the optimizer's state is of other parameters (first {unknown[:2]}); resume with the settings of the "
            "first run"
        )
    indexed = {index: state[name] for index, name in enumerate(order) if name in state}
    optimizer.load_state_dict({"state": indexed, "param_groups": optimizer.state_dict()["param_groups"]})
    # Files know no memory format, and fused optimizers go through parameter and moments in memory order.
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def random_state() -> dict[str, Any]:
    """The states of python's, numpy's, torch's and the current CUDA device's global generators."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators where :func:`random_state` found them."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed python's, numpy's and torch's global generators (CUDA's too)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that own their memory, as safetensors wants them."""
    result, seen = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        if address in seen:
            value = value.clone()
        seen.add(address)
        result[name] = value
    return result


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value
        return {f"{_MARK}tensor": path}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {f"{_MARK}float": repr(value)}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {f"{_MARK}tuple": items}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith(_MARK) for key in value):
            return {key: _encode(item, f"{path}.{key}", tensors) for key, item in value.items()}
        pairs = [[_key(key, path), _encode(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        return {f"{_MARK}items": pairs}
    raise ValueError(f"{path}: a {type(value).__name__} cannot be stored; give tensors, numbers, text and containers")


def _key(key: Any, path: str) -> Any:
    """A dict's key that JSON keeps apart from others: text or an integer."""
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise ValueError(f"{path}: the key {key!r} cannot be stored; keys are text or integers")
    return key


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (key, inner), *_ = value.items()
        if key == f"{_MARK}tensor":
            return tensors[inner]
        if key == f"{_MARK}tuple":
            return tuple(_decode(item, tensors) for item in inner)
        if key == f"{_MARK}float":
            return float(inner)
        if key == f"{_MARK}items":
            return {key: _decode(item, tensors) for key, item in inner}
    return {key: _decode(item, tensors) for key, item in value.items()}
