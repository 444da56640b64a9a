"""What both networks share: configs that survive subclassing, weights copied by name, and strict loading."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


def takes_arguments_of(parent_init: Callable) -> Callable[[Callable], Callable]:
    """Decorate a subclass's `__init__(self, *args, own..., **kwargs)` to spell out the parent's arguments.

    diffusers reads a class's config keys off this signature; with bare *args and **kwargs the config would be lost,
    and from_pretrained would build the parent's default network.
    """

    def spell_out(own_init: Callable) -> Callable:
        parameters = dict(inspect.signature(parent_init).parameters)
        for name, parameter in inspect.signature(own_init).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                parameters[name] = parameter.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        own_init.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        return own_init

    return spell_out


def config_for(cls: type, config: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Return the entries of another model's `config` that `cls` has too, overridden by `own`.

    Raises:
        ValueError: `own` names something that `cls` does not take.

    """
    known = set(inspect.signature(cls).parameters)
    if unknown := sorted(set(own) - known):
        raise ValueError(f"{cls.__name__} has no argument {unknown}")
    shared = {key: value for key, value in config.items() if key in known and not key.startswith("_")}
    return {**shared, **own}


def copy_weights(source: nn.Module, target: nn.Module, new: Callable[[str], bool]) -> None:
    """Copy into `target` every tensor of its state dict that `source` has under the same name.

    Args:
        source: where the weights come from; it may hold more than is needed.
        target: changed in place.
        new: tells by name which tensors of `target` may be missing from `source`.

    Raises:
        ValueError: a tensor that is not new is missing or has another shape.

    """
    have, want = source.state_dict(), target.state_dict()
    missing = [name for name in want if name not in have and not new(name)]
    reshaped = [name for name in want if name in have and have[name].shape != want[name].shape]
    if missing or reshaped:
        raise ValueError(
            f"{type(source).__name__} does not fit {type(target).__name__}: {_names('missing', missing)}; "
            f"{_names('of another shape', reshaped)}"
        )
    target.load_state_dict({name: have[name] for name in want if name in have}, strict=False)


@contextmanager
def initialised_by(generator: torch.Generator | None) -> Iterator[None]:
    """Let the layers made inside draw their weights from `generator`; None: from torch's global generator.

    torch's modules know only the global one: it is seeded from `generator` for the while, and then put back.
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        yield


def place_like(model: nn.Module, other: ModelMixin) -> None:
    """Move `model` to the device and dtype of `other`."""
    nn.Module.to(model, device=other.device, dtype=other.dtype)


class StrictLoadingMixin(ModelMixin):
    """`from_pretrained` that refuses anything but a complete folder of this very class.

    diffusers warns about missing tensors and leaves those layers uninitialised (whatever the memory held, NaN
    included). A stock model is therefore never loaded this way: `from_unet` adds new layers properly.
    """

    _accepted_class_names: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a folder or hub id as ModelMixin.from_pretrained does, with all its arguments.

        Raises:
            ValueError: the config names another class, or tensors are missing, unexpected or of another shape.

        """
        config_kwargs = {key: kwargs[key] for key in _CONFIG_KWARGS if key in kwargs}
        config = cls.load_config(pretrained_model_name_or_path, **config_kwargs)
        found = config.get("_class_name")
        where = "/".join(str(part) for part in (pretrained_model_name_or_path, kwargs.get("subfolder")) if part)
        if found not in cls._accepted_class_names:
            raise ValueError(
                f"{where}/config.json is of class {found}, not one of {cls._accepted_class_names}: its folder lacks "
                f"the layers that {cls.__name__} adds. Load the stock UNet and call {cls.__name__}.from_unet(unet)"
            )
        output_loading_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        problems = {
            label: sorted(str(key) for key in info.get(f"{label}_keys") or ())
            for label in ("missing", "unexpected", "mismatched")
        }
        if any(problems.values()):
            raise ValueError(
                f"the weights in {where} do not fit their config.json: "
                + "; ".join(_names(label, names) for label, names in problems.items())
            )
        return (model, info) if output_loading_info else model


_CONFIG_KWARGS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


def _names(label: str, names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} {label}" + (f" ({', '.join(names[:limit])}{more})" if names else "")
