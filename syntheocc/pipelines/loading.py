"""Components from a stock Stable Diffusion folder, alone or with the weights that SyntheOcc's authors released."""

import inspect
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UniPCMultistepScheduler
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from syntheocc.models import MPIControlNetModel, MultiviewUNet2DConditionModel, load_released
from syntheocc.pipelines.checks import check_family
from syntheocc.pipelines.shim import write_shim

HUB_KWARGS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
#: What a base must hold besides the UNet, and the file by which a local folder is recognised as complete.
BASE_PARTS = {
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
#: What diffusers and transformers raise for files that are not there, damaged, or pickles that want code.
UNREADABLE = (OSError, json.JSONDecodeError, SafetensorError, pickle.UnpicklingError)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class LoadingMixin:
    """Constructors from other people's folders, and saving; DiffusionPipeline comes after it in a class's bases."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Load a folder that `save_pretrained` wrote, or a hub id, with all arguments of diffusers' pipelines.

        Raises:
            ValueError: it is a stock folder, or cannot be loaded; the message says what to give or call instead.
        """
        where = pretrained_model_name_or_path
        if Path(where).is_dir() and not (Path(where) / "controlnet").is_dir() and "controlnet" not in kwargs:
            raise ValueError(
                f"{where} has no controlnet/: it is no SyntheOcc pipeline. {cls.__name__}.from_base(folder) makes one "
                "of a stock Stable Diffusion folder"
            )
        try:
            return super().from_pretrained(where, **kwargs)  # type: ignore[misc]
        except UNREADABLE as error:
            raise ValueError(
                f"{where} could not be loaded: {error}\nGive a local folder that {cls.__name__}.save_pretrained "
                "wrote; for a stock Stable Diffusion folder use from_base, for the released weights from_original"
            ) from error

    @classmethod
    def from_base(cls, base: str | os.PathLike, **kwargs: Any) -> Self:
        """Build a fresh pipeline on a stock Stable Diffusion folder or hub id (SD 1.5, 2.1, ...).

        The new layers are zero where they join the base, so before training it draws what the base draws.

        Args:
            base: folder or id with `vae`, `text_encoder`, `tokenizer`, `unet` and `scheduler`.
            **kwargs: `dtype`, `variant`, `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`;
                `generator`, which initialises the new layers (default: torch's global one); `unet_kwargs`, a dict for
                `MultiviewUNet2DConditionModel.from_unet`; all else goes to `MPIControlNetModel.from_unet`
                (encoder_kind, num_planes, pixel_origin, taxonomy, ...).

        Raises:
            ValueError: the base cannot be loaded (the message says what to give instead), or is of another family.
        """
        return cls(**load_base(base, **kwargs))

    @classmethod
    def from_original(cls, base: str | os.PathLike, checkpoint: str | os.PathLike, **kwargs: Any) -> Self:
        """Build the pipeline from weights as SyntheOcc's authors released them.

        Args:
            base: Stable Diffusion 2.1 folder or id with VAE, text encoder, tokenizer and scheduler config.
            checkpoint: folder or hub id with the released `controlnet/` and `unet/`.
            **kwargs: `dtype`, `variant` (of the base), `revision`, `cache_dir`, `token`, `local_files_only`.

        Raises:
            ValueError: one of the two cannot be loaded; the message says what to give instead.
        """
        return cls(**load_original(base, checkpoint, **kwargs))

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save all components, and a `pipeline.py` through which diffusers finds this class with nothing imported."""
        write_shim(save_directory)
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]


def load_base(
    base: str | os.PathLike,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    unet_kwargs: dict[str, Any] | None = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Components of a fresh pipeline on a stock base; see `LoadingMixin.from_base`."""
    hub = {key: kwargs.pop(key) for key in HUB_KWARGS if key in kwargs}
    known = list(inspect.signature(MPIControlNetModel.from_unet).parameters)[1:]
    if unknown := sorted(set(kwargs) - set(known)):
        raise ValueError(f"from_base has no argument {unknown}; besides its own it takes {known}")
    check_base(base, (*BASE_PARTS, "unet"))
    config = _fetch(base, UNet2DConditionModel.load_config, subfolder="unet", **hub)
    if config.get("_class_name") in MultiviewUNet2DConditionModel._accepted_class_names:
        raise ValueError(
            f"unet/ of {base} is multi-view already, a fresh pipeline would lose its cross-view layers: load it with "
            "from_pretrained, or give the stock base it was made from"
        )
    check_family(config)
    components = _load_frozen(base, dtype, variant, hub)
    stock = _fetch(base, UNet2DConditionModel.from_pretrained, subfolder="unet", dtype=dtype, variant=variant, **hub)
    components["unet"] = MultiviewUNet2DConditionModel.from_unet(stock, generator, **(unet_kwargs or {})).eval()
    components["controlnet"] = MPIControlNetModel.from_unet(stock, generator=generator, **kwargs).eval()
    return components


def load_original(
    base: str | os.PathLike,
    checkpoint: str | os.PathLike,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    **hub: Any,
) -> dict[str, Any]:
    """Components from a base's frozen parts and a released checkpoint; see `LoadingMixin.from_original`."""
    unknown = sorted(set(hub) - set(HUB_KWARGS))
    if unknown:
        raise ValueError(f"from_original has no argument {unknown}; it takes dtype, variant and {HUB_KWARGS}")
    check_base(base, tuple(BASE_PARTS))
    controlnet, unet = load_released(_checkpoint_folder(checkpoint, hub), dtype=dtype)
    components = _load_frozen(base, dtype, variant, hub)
    return {**components, "unet": unet, "controlnet": controlnet}


def check_base(base: str | os.PathLike, parts: tuple[str, ...]) -> None:
    """Raise ValueError, naming what to give, unless `base` is a complete local folder or could be a hub id."""
    folder = Path(base)
    if folder.is_dir():
        known = {**BASE_PARTS, "unet": "config.json"}
        missing = [f"{part}/{known[part]}" for part in parts if not (folder / part / known[part]).is_file()]
        if missing:
            raise ValueError(f"{folder} is no Stable Diffusion folder: {missing} not there. {_remedy()}")
    elif not _HUB_ID.fullmatch(str(base)):
        raise ValueError(f"{base} is not a folder, and no hub id either. {_remedy()}")


def _load_frozen(base: str | os.PathLike, dtype: Any, variant: str | None, hub: dict[str, Any]) -> dict[str, Any]:
    """VAE, text encoder, tokenizer, and UniPC with the noise schedule of the base's scheduler."""
    weights = {"dtype": dtype, "variant": variant, **hub}
    return {
        "vae": _fetch(base, AutoencoderKL.from_pretrained, subfolder="vae", **weights),
        "text_encoder": _fetch(base, CLIPTextModel.from_pretrained, subfolder="text_encoder", **weights),
        "tokenizer": _fetch(base, CLIPTokenizer.from_pretrained, subfolder="tokenizer", **hub),
        "scheduler": _fetch(base, UniPCMultistepScheduler.from_pretrained, subfolder="scheduler", **hub),
    }


def _fetch(base: str | os.PathLike, load: Callable, **kwargs: Any) -> Any:
    """Call a `from_pretrained`; what fails is said with the remedy."""
    try:
        return load(base, **{key: value for key, value in kwargs.items() if value is not None})
    except UNREADABLE as error:
        raise ValueError(f"{kwargs['subfolder']}/ of {base} could not be loaded: {error}\n{_remedy()}") from error


def _checkpoint_folder(checkpoint: str | os.PathLike, hub: dict[str, Any]) -> Path:
    """A local folder as it is; a hub id downloaded."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    remedy = "give the local folder that holds the released controlnet/ and unet/ (hub id: lilelife/SyntheOcc)"
    if not _HUB_ID.fullmatch(str(checkpoint)):
        raise ValueError(f"{checkpoint} is not a folder, and no hub id either; {remedy}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(checkpoint), allow_patterns=["controlnet/*", "unet/*"], **hub))
    except OSError as error:
        raise ValueError(f"{checkpoint} could not be downloaded: {error}\n{remedy}") from error


def _remedy() -> str:
    return (
        "Give a local folder of a Stable Diffusion 1.x or 2.x model in diffusers format, with vae/, text_encoder/, "
        "tokenizer/, scheduler/ and unet/: a copy of SD 2.1 (its repository stabilityai/stable-diffusion-2-1 has "
        "left the hub) or of SD 1.5, e.g. --pretrained_model_name_or_path /models/stable-diffusion-2-1."
    )
