"""What is trained, and how the networks are laid out for it.

`prepare_for_training` replaces autocast: what is frozen is stored in half precision, what is trained stays in float32
and is cast on the way in, activations are half precision and channels-last throughout, and norms and gates are fused
kernels that keep little for the backward (syntheocc.models.ops). The order is

    trainable_parameters(step); prepare_for_training(step); run_loop(module=step, ...)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from syntheocc.engine.recorded import RecordedNetworks
from syntheocc.models.attention import NEW_LAYERS_VIDEO
from syntheocc.models.channels_last import to_channels_last
from syntheocc.models.master_weights import to_master_weights
from syntheocc.training.step import SyntheOccStep

Trained = Literal["crossview+controlnet", "crossframe", "all"]
Compiled = Literal["no", "blocks", "whole"]

# Distinct shapes that a compiled block may meet: four resolutions, two networks, with and without gradients.
RECOMPILE_LIMIT = 64


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
        new = step.unet.multiview_parameters()
        chosen = [parameter for name, parameter in new if _is_for_video(name) == video]
        chosen += [] if video else list(step.controlnet.parameters())
    chosen += list(step.text_encoder.parameters()) if text_encoder else []
    for parameter in chosen:
        parameter.requires_grad_(True)
    return {name: parameter for name, parameter in step.named_parameters() if parameter.requires_grad}


def prepare_for_training(
    step: SyntheOccStep,
    dtype: torch.dtype = torch.bfloat16,
    *,
    channels_last: bool = True,
    gradient_checkpointing: bool | Literal["transformers"] = False,
    compile: Compiled = "no",
    cuda_graphs: bool = False,
    **compile_options: Any,
) -> SyntheOccStep:
    """Lay the networks out for fast training, in place; call it after `trainable_parameters`.

    From here on the step computes in `dtype` whatever autocast says, so that it may be wrapped for mixed precision (by
    accelerate; float16 needs its loss scaling). The names in the state dict do not change. The frozen weights are
    rounded to `dtype`; to save the networks as they came, do it within `original_weights`.

    Args:
        step: the step.
        dtype: bfloat16 or float16; float32 leaves the numbers as they are.
        channels_last: memory format and fused modules of the inference's fast path. On a CPU it gains little.
        gradient_checkpointing: compute every block's activations again in the backward; "transformers": only those
            of the transformer blocks, which keep most and of which the attention is what costs time.
        compile: "blocks": `torch.compile` of the transformer blocks (a minute); "whole": of both networks (minutes).
        cuda_graphs: record the networks' passes at the first step and replay them (`RecordedNetworks`); on a GPU, for
            batches of one shape. Whatever replaces a parameter's memory has to come before the first step.
        **compile_options: for `torch.compile`.

    Returns:
        The step.

    Raises:
        ValueError: nothing is trained, or a dtype that is no floating type.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"training computes in float32, bfloat16 or float16, not {dtype}")
    if not any(parameter.requires_grad for parameter in step.parameters()):
        raise ValueError("nothing is trained: call trainable_parameters(step) first")
    _cast(step, dtype)
    for network in (step.unet, step.controlnet, step.vae):
        if network is not None and channels_last:
            to_channels_last(network)
    for network in (step.unet, step.controlnet):
        to_master_weights(network)
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if gradient_checkpointing == "transformers":
            for module in network.modules():
                if hasattr(module, "gradient_checkpointing") and not isinstance(module, Transformer2DModel):
                    module.gradient_checkpointing = False
    step.compute_dtype = dtype
    if cuda_graphs:
        trained = [p for network in (step.unet, step.controlnet) for p in network.parameters() if p.requires_grad]
        step.recorded = RecordedNetworks(trained)
    if compile != "no":
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        for network in (step.unet, step.controlnet):
            if compile == "whole":
                network.compile(**compile_options)
            else:
                network.compile_repeated_blocks(**compile_options)
    return step


@contextmanager
def original_weights(step: SyntheOccStep) -> Iterator[None]:
    """Within it the frozen weights are those that `prepare_for_training` met, not rounded; for saving the networks.

    The originals lie in CPU memory; do not compute within.
    """
    parameters = dict(step.named_parameters())
    rounded = {name: parameters[name].data for name in step.originals}
    try:
        for name, original in step.originals.items():
            parameters[name].data = original
        yield
    finally:
        for name, data in rounded.items():
            parameters[name].data = data


def _cast(step: SyntheOccStep, dtype: torch.dtype) -> None:
    """Frozen weights to `dtype`, trained ones to float32."""
    step.originals = {}
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif parameter.is_floating_point():
            before = parameter.data
            parameter.data = before.to(dtype)
            if name.startswith(("unet.", "controlnet.")) and not _same(parameter.data, before):
                step.originals[name] = before.cpu()


def _same(rounded: Tensor, original: Tensor) -> bool:
    return rounded.dtype == original.dtype or torch.equal(rounded.to(original.dtype), original)


def _is_for_video(name: str) -> bool:
    return not set(NEW_LAYERS_VIDEO).isdisjoint(name.split("."))
