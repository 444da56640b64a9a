"""The weights that SyntheOcc's authors released, loaded without edits.

Their folder, in the format of diffusers 0.26, holds no more than the two networks that were trained; VAE, text
encoder, tokenizer and scheduler come from a Stable Diffusion 2.1 folder:

    controlnet/config.json                          _class_name "ControlNetModel1x1", conditioning_channels 257
    controlnet/diffusion_pytorch_model.safetensors  (or .bin)
    unet/config.json                                _class_name "UNet2DConditionModelMultiview"
    unet/diffusion_pytorch_model.safetensors        (or .bin)

All names of their state dicts are the names of ours, so that nothing is renamed: `attn4`, `norm4`, `connector` in
every transformer block, `controlnet_cond_embedding.position_encoder.0` and `.2` in the ControlNet. What their
configs leave unsaid (scalar encoder, pixel_origin "corner", 256 planes from 0.2 m) is the default of our constructors.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in the module that a saved class names)

from syntheocc.models.controlnet_mpi import MPIControlNetModel
from syntheocc.models.unet_multiview import MultiviewUNet2DConditionModel

WEIGHTS = "diffusion_pytorch_model"


def load_released(
    folder: str | Path, dtype: torch.dtype | None = None, **kwargs: Any
) -> tuple[MPIControlNetModel, MultiviewUNet2DConditionModel]:
    """Load a released checkpoint, or one of ours saved in the same layout.

    Args:
        folder: holds `controlnet/` and `unet/`.
        dtype: of the weights; default float32.
        **kwargs: further arguments of `from_pretrained`, e.g. `variant="fp16"`.

    Returns:
        (controlnet, unet) in evaluation mode.

    Raises:
        ValueError: a file is missing or damaged, a config names another class, or tensors are missing, unexpected or
            of another shape; the message names them.

    Example:
        >>> controlnet, unet = load_released("ckp/SyntheOcc", dtype=torch.float16)

    """
    folder = Path(folder)
    formats = {name: _weights_format(folder / name, kwargs.get("variant")) for name in ("controlnet", "unet")}
    networks = []
    for name, cls in (("controlnet", MPIControlNetModel), ("unet", MultiviewUNet2DConditionModel)):
        try:
            network = cls.from_pretrained(
                folder, subfolder=name, dtype=dtype, use_safetensors=formats[name], local_files_only=True, **kwargs
            )
        except OSError as error:  # diffusers' word for a truncated file and for a pickle that wants to run code
            raise ValueError(
                f"the weights in {folder / name} cannot be read: the file is damaged, or holds more than tensors "
                f"({error}); download it again"
            ) from error
        networks.append(network.eval())
    controlnet, unet = networks
    return controlnet, unet


def _weights_format(folder: Path, variant: str | None) -> bool:
    """Return whether `folder` has safetensors (True) or a .bin (False), sharded or not; complain if neither."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}/config.json is not there; a released checkpoint has controlnet/ and unet/, each with a "
            f"config.json and {WEIGHTS}.safetensors (or .bin)"
        )
    try:
        json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder}/config.json is not JSON ({error}); download it again") from error
    middle = f".{variant}" if variant else ""
    for suffix, safe in (("safetensors", True), ("bin", False)):
        names = (f"{WEIGHTS}{middle}.{suffix}", f"{WEIGHTS}.{suffix}.index{middle}.json")
        if any((folder / name).is_file() for name in names):
            return safe
    raise ValueError(f"{folder} has neither {WEIGHTS}{middle}.safetensors nor {WEIGHTS}{middle}.bin")
