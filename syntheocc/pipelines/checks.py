"""Everything that can be wrong with a pipeline's parts or with a call, said before any work starts."""

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch

from syntheocc.models import MPIControlNetModel, MultiviewUNet2DConditionModel
from syntheocc.pipelines.conditions import Conditions, edited_occupancy, gather_conditions
from syntheocc.pipelines.guidance import Guidance
from syntheocc.pipelines.prompts import check_embeds, count_prompts, spread_prompts
from syntheocc.pipelines.sources import MPISource, condition_spec

if TYPE_CHECKING:
    from syntheocc.pipelines.pipeline_syntheocc import SyntheOccPipeline

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_family(unet_config: Any) -> None:
    """Raise ValueError for a UNet that needs more than latents, a timestep and CLIP text (SDXL, unCLIP, LCM)."""
    for key in ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type", "time_cond_proj_dim"):
        value = unet_config.get(key)
        if value is not None:
            raise ValueError(
                f"the UNet has {key}={value!r} (Stable Diffusion XL has 'text_time'): SyntheOcc builds on the Stable "
                "Diffusion 1.x and 2.x family, whose UNets have none; give such a base, e.g. a local SD 2.1 folder"
            )


def check_components(vae: Any, text_encoder: Any, unet: Any, controlnet: Any, scheduler: Any) -> None:
    """Raise ValueError when a pipeline's parts are of another kind or do not fit each other."""
    if not isinstance(unwrap(unet), MultiviewUNet2DConditionModel):
        raise ValueError(
            f"unet is a {type(unet).__name__}; make it multi-view with MultiviewUNet2DConditionModel.from_unet(unet), "
            "or build the pipeline with SyntheOccPipeline.from_base(folder)"
        )
    if not isinstance(unwrap(controlnet), MPIControlNetModel):
        raise ValueError(
            f"controlnet is a {type(controlnet).__name__}; MPIControlNetModel.from_unet(unet) makes one for MPIs"
        )
    check_family(unet.config)
    if vae is None:
        raise ValueError("vae is None; give an AutoencoderKL or AutoencoderTiny: its factor tells the latents' size")
    if not hasattr(scheduler, "init_noise_sigma"):
        raise ValueError(
            f"scheduler is a {type(scheduler).__name__} without init_noise_sigma (flow matching): use UniPC, "
            "DDIM, DPM++, Euler, ..., e.g. UniPCMultistepScheduler.from_config(config, use_flow_sigmas=True) with "
            'prediction_type="flow_prediction" for a flow model'
        )
    widths = {"unet": unet.config.cross_attention_dim, "controlnet": controlnet.config.cross_attention_dim}
    if text_encoder is not None:
        widths["text_encoder"] = text_encoder.config.hidden_size
    if len(set(widths.values())) > 1:
        raise ValueError(
            f"text widths differ: {widths}; take all parts from one base (SD 1.5 has 768, SD 2.1 has 1024)"
        )
    channels = {
        "unet": unet.config.in_channels,
        "unet's output": unet.config.out_channels,
        "controlnet": controlnet.config.in_channels,
        "vae": vae.config.latent_channels,
    }
    if len(set(channels.values())) > 1:
        raise ValueError(f"latent channels differ: {channels}; an inpainting or depth UNet cannot be used")


def unwrap(module: Any) -> Any:
    """The module inside torch.compile's or a data-parallel wrapper."""
    module = getattr(module, "module", module)
    return getattr(module, "_orig_mod", module)


def default_size(pipe: "SyntheOccPipeline") -> tuple[int, int]:
    """(H, W) of a view in pixels where a call names none.

    `img_size` of the UNet's config when it has one (the released weights: 448, 800), else its `sample_size` (one
    number or h, w) times the VAE's factor.
    """
    config = pipe.unet.config
    if config.get("img_size"):
        height, width = config.img_size
        return int(height), int(width)
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def check_dtypes(pipe: "SyntheOccPipeline") -> None:
    """Raise ValueError unless UNet and ControlNet have one dtype."""
    if pipe.unet.dtype != pipe.controlnet.dtype:
        raise ValueError(
            f"the UNet is {pipe.unet.dtype}, the ControlNet {pipe.controlnet.dtype}: they run in one dtype, "
            "pipe.controlnet.to(pipe.unet.dtype)"
        )


def check_call(
    pipe: "SyntheOccPipeline",
    *,
    prompt: Any = None,
    occupancy: Any = None,
    cameras: Any = None,
    mpi: Any = None,
    edit: Any = None,
    negative_prompt: Any = None,
    num_images_per_prompt: int = 1,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 20,
    guidance_scale: float = 7.5,
    mpi_guidance_scale: float = 1.0,
    controlnet_conditioning_scale: float = 1.0,
    control_guidance_start: float = 0.0,
    control_guidance_end: float = 1.0,
    generator: Any = None,
    latents: Any = None,
    prompt_embeds: Any = None,
    negative_prompt_embeds: Any = None,
    output_type: str = "pil",
    callback_on_step_end_tensor_inputs: Any = ("latents",),
    clip_skip: int | None = None,
) -> tuple[Conditions, int, int]:
    """Check a call's arguments against each other and the parts; returns the conditions, H and W in pixels."""
    _check_numbers(
        num_images_per_prompt=num_images_per_prompt,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        mpi_guidance_scale=mpi_guidance_scale,
        controlnet_conditioning_scale=controlnet_conditioning_scale,
        control_guidance_start=control_guidance_start,
        control_guidance_end=control_guidance_end,
    )
    if not 0 <= control_guidance_start < control_guidance_end <= 1:
        raise ValueError(
            f"control_guidance_start={control_guidance_start} and control_guidance_end={control_guidance_end} must be "
            "fractions of the steps, 0 <= start < end <= 1"
        )
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type={output_type!r}; choose from {OUTPUT_TYPES}")
    unknown = [name for name in callback_on_step_end_tensor_inputs if name not in pipe._callback_tensor_inputs]
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs has {unknown}; known are {pipe._callback_tensor_inputs}")
    layers = None if pipe.text_encoder is None else pipe.text_encoder.config.num_hidden_layers
    if clip_skip is not None and not (isinstance(clip_skip, Integral) and layers and 0 <= clip_skip <= layers):
        raise ValueError(f"clip_skip={clip_skip}; the text encoder has {layers} layers, give 0..{layers}")

    occupancy = edited_occupancy(occupancy, edit)
    conditions = gather_conditions(occupancy, cameras, mpi, _count_samples(prompt, prompt_embeds))
    samples, views = conditions.num_samples, conditions.num_views
    guided = Guidance(guidance_scale, mpi_guidance_scale).needs_negative_text
    _check_texts(pipe, prompt, prompt_embeds, negative_prompt, negative_prompt_embeds, samples, views, guided)
    height, width = _check_size(pipe, conditions, height, width)
    spec, factor = condition_spec(pipe.controlnet), pipe.vae_scale_factor
    for source in conditions.sources:
        source.check(spec, height // factor, width // factor)
    _check_generator(generator, samples, num_images_per_prompt)
    if latents is not None:
        _check_latents(pipe, latents, conditions, samples * num_images_per_prompt, height // factor, width // factor)
    return conditions, height, width


def _check_numbers(num_images_per_prompt: int, num_inference_steps: int, **scales: float) -> None:
    counts = {"num_images_per_prompt": num_images_per_prompt, "num_inference_steps": num_inference_steps}
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 1:
            raise ValueError(f"{name}={count!r} must be a positive int")
    for name, scale in scales.items():
        if not isinstance(scale, Real) or not math.isfinite(scale):
            raise ValueError(f"{name}={scale!r} must be a finite number")


def _check_generator(generator: Any, samples: int, copies: int) -> None:
    several = isinstance(generator, (list, tuple))
    for one in generator if several else [generator]:
        if not isinstance(one, torch.Generator) and (several or one is not None):
            raise ValueError(
                f"generator={one!r} must be a torch.Generator; torch.Generator().manual_seed(0) makes one"
            )
    if several and len(generator) not in {samples, samples * copies}:
        raise ValueError(
            f"{len(generator)} generators, {samples} samples x {copies} pictures a prompt: give one, "
            f"or a list of {samples} (or of {samples * copies})"
        )


def _count_samples(prompt: Any, prompt_embeds: Any) -> int | None:
    if (prompt is None) == (prompt_embeds is None):
        given = "neither" if prompt is None else "both"
        raise ValueError(f"give `prompt` or `prompt_embeds`: got {given}")
    if prompt is not None:
        return count_prompts("prompt", prompt)
    check_embeds("prompt_embeds", prompt_embeds, None, None)
    return prompt_embeds.shape[0]


def _check_texts(pipe, prompt, prompt_embeds, negative_prompt, negative_prompt_embeds, samples, views, guided) -> None:
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("give `negative_prompt` or `negative_prompt_embeds`: got both")
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if text is not None:
            count_prompts(name, text)
            spread_prompts(name, text, samples, views)
    for name, embeds in (("prompt_embeds", prompt_embeds), ("negative_prompt_embeds", negative_prompt_embeds)):
        if embeds is not None:
            check_embeds(name, embeds, samples, views)
            if embeds.shape[-1] != pipe.unet.config.cross_attention_dim:
                raise ValueError(
                    f"`{name}` has width {embeds.shape[-1]}, the UNet expects {pipe.unet.config.cross_attention_dim}"
                )
    made = {"prompt_embeds": prompt_embeds, **({"negative_prompt_embeds": negative_prompt_embeds} if guided else {})}
    lacking = [name for name, embeds in made.items() if embeds is None]
    if lacking and (pipe.text_encoder is None or pipe.tokenizer is None):
        raise ValueError(f"the pipeline has no text encoder or no tokenizer; give {' and '.join(lacking)}")
    length = None if pipe.tokenizer is None else pipe.tokenizer.model_max_length
    tokens = [length if embeds is None else embeds.shape[-2] for embeds in made.values()]
    if len(set(tokens)) > 1:
        raise ValueError(
            f"the prompt has {tokens[0]} tokens and the negative prompt {tokens[1]}; they must agree: give "
            "`negative_prompt_embeds` as long as `prompt_embeds`"
        )


def _check_size(pipe, conditions: Conditions, height: int | None, width: int | None) -> tuple[int, int]:
    factor = pipe.vae_scale_factor
    given = next((source.mpi for source in conditions.sources if isinstance(source, MPISource)), None)
    if given is None:
        default = default_size(pipe)
    else:
        default = tuple(size * factor for size in given.nearest.shape[-2:])
    height, width = default[0] if height is None else height, default[1] if width is None else width
    for name, size in (("height", height), ("width", width)):
        if not isinstance(size, Integral) or size <= 0 or size % factor:
            below = int(size // factor * factor) if isinstance(size, Real) and size > 0 else factor
            raise ValueError(
                f"{name}={size!r} must be a positive multiple of {factor} pixels; try {max(below, factor)} or "
                f"{max(below, factor) + factor}"
            )
    return int(height), int(width)


def _check_latents(pipe, latents: Any, conditions: Conditions, samples: int, h: int, w: int) -> None:
    frames, views, channels = conditions.num_frames, conditions.num_views, pipe.unet.config.in_channels
    shapes = [(samples, frames, views, channels, h, w), (samples * frames * views, channels, h, w)]
    if not conditions.video:
        shapes[0] = (samples, views, channels, h, w)
    if not isinstance(latents, torch.Tensor) or tuple(latents.shape) not in shapes:
        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"latents are {got}; expected {shapes[0]} or {shapes[1]}")


def check_callback(before: dict[str, torch.Tensor | None], after: dict[str, torch.Tensor | None]) -> None:
    """Raise ValueError when a step's callback gave back a tensor of another shape or dtype than it was shown."""
    for name, old in before.items():
        new = after[name]
        if old is not None and (new is None or (new.shape, new.dtype) != (old.shape, old.dtype)):
            got = None if new is None else (tuple(new.shape), new.dtype)
            raise ValueError(
                f"callback_on_step_end made {name} {got}, it was {(tuple(old.shape), old.dtype)}: keep shape and "
                "dtype (a batch holds all views; embeddings of a branch are separate, nothing need be cut off)"
            )
