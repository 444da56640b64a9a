"""What is trained."""

from typing import Literal

from torch import nn

from syntheocc.models.attention import NEW_LAYERS_VIDEO
from syntheocc.training.step import SyntheOccStep

Trained = Literal["crossview+controlnet", "crossframe", "all"]


def trainable_parameters(
    step: SyntheOccStep, which: Trained = "crossview+controlnet", text_encoder: bool = False
) -> dict[str, nn.Parameter]:
    """Let what is trained require gradients, and nothing else; returns it under its names in `step`.

    Args:
        step: whose networks.
        which: "crossview+controlnet", as published: the whole ControlNet and the UNet's cross-view layers;
            "crossframe": the UNet's layers for video, everything else frozen; "all": UNet and ControlNet.
        text_encoder: train the text encoder too.

    Raises:
        ValueError: an unknown choice, or "crossframe" with a UNet that has no such layers.
    """
    if which not in ("crossview+controlnet", "crossframe", "all"):
        raise ValueError(f"which must be 'crossview+controlnet', 'crossframe' or 'all', got {which!r}")
    if which == "crossframe" and not step.unet.config.cross_frame_attention:
        raise ValueError("this UNet has no cross-frame layers; from_unet(unet, cross_frame_attention=True) adds them")
    step.requires_grad_(False)
    if which == "all":
        chosen = [*step.unet.parameters(), *step.controlnet.parameters()]
    else:
        video = which == "crossframe"
        chosen = [parameter for name, parameter in step.unet.multiview_parameters() if _is_for_video(name) == video]
        chosen += [] if video else list(step.controlnet.parameters())
    chosen += list(step.text_encoder.parameters()) if text_encoder else []
    for parameter in chosen:
        parameter.requires_grad_(True)
    return {name: parameter for name, parameter in step.named_parameters() if parameter.requires_grad}


def _is_for_video(name: str) -> bool:
    return not set(NEW_LAYERS_VIDEO).isdisjoint(name.split("."))
