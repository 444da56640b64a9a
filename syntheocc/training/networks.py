"""The networks of a training job: built or loaded in float32, and written as a pipeline that inference loads."""

import copy
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn

from syntheocc.models import MPIControlNetModel, MultiviewUNet2DConditionModel
from syntheocc.pipelines import SyntheOccPipeline
from syntheocc.training.acceleration import original_weights
from syntheocc.training.config import TrainConfig
from syntheocc.training.step import SyntheOccStep

__all__ = ["PipelineSaver", "load_networks", "noise_scheduler"]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_networks(config: TrainConfig, files: dict[str, Any] | None = None) -> SyntheOccPipeline:
    """The pipeline that training starts from, on the CPU in float32.

    Args:
        config: names the base, what to go on from, and what a new ControlNet is like.
        files: what the MPI files were made with (`mpi_settings`), which a new ControlNet then reads.

    Raises:
        ValueError: a folder is not what it should be, or the trained ControlNet reads other conditions than asked for.
    """
    generator = torch.Generator().manual_seed(config.seed)
    base = config.pretrained_model_name_or_path
    start = config.controlnet_model_name_or_path
    if start is None and (Path(base) / "model_index.json").is_file() and (Path(base) / "controlnet").is_dir():
        start = base  # the base is a SyntheOcc itself
    pipe = _fresh(config, files or {}, generator) if start is None else _continued(config, start, generator)
    if start is not None:
        _check_condition(config, pipe.controlnet, start)
    if config.num_frames > 1 and not pipe.unet.config.cross_frame_attention:
        unet = MultiviewUNet2DConditionModel.from_unet(pipe.unet, generator, cross_frame_attention=True)
        pipe.register_modules(unet=unet)
    if config.tokenizer_name is not None:
        from transformers import CLIPTokenizer

        pipe.register_modules(tokenizer=CLIPTokenizer.from_pretrained(config.tokenizer_name, revision=config.revision))
    if config.prediction_type is not None:
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=config.prediction_type)
        pipe.register_modules(scheduler=scheduler)
    # The size that a call without height and width draws.
    pipe.unet.register_to_config(img_size=(config.height, config.width))
    return pipe


def noise_scheduler(pipe: SyntheOccPipeline) -> DDPMScheduler:
    """The noise of training: the schedule and the prediction type of the pipeline's scheduler."""
    return DDPMScheduler.from_config(pipe.scheduler.config)


class PipelineSaver:
    """Writes the trained pipeline; call it with the weights that are to be saved in place.

    Frozen weights are written as they came, not as training rounded them; so make it before `prepare_for_training`.

    Args:
        pipe: of the networks that are trained.
        step: that trains them.
        dtype: of the written weights.
    """

    def __init__(self, pipe: SyntheOccPipeline, step: SyntheOccStep, dtype: torch.dtype = torch.float32):
        self.step, self.dtype = step, dtype
        self.tokenizer, self.scheduler = pipe.tokenizer, pipe.scheduler
        self.frozen = {"vae": copy.deepcopy(pipe.vae)}
        if not any(parameter.requires_grad for parameter in step.text_encoder.parameters()):
            self.frozen["text_encoder"] = copy.deepcopy(pipe.text_encoder)

    def __call__(self, folder: Path) -> None:
        """Fill `folder` with a pipeline as `SyntheOccPipeline.from_pretrained` reads it."""
        with original_weights(self.step):
            unet = _plain_copy(self.step.unet, MultiviewUNet2DConditionModel, self.dtype)
            controlnet = _plain_copy(self.step.controlnet, MPIControlNetModel, self.dtype)
        text_encoder = self.frozen.get("text_encoder", self.step.text_encoder)
        SyntheOccPipeline(
            # nn.Module.to, for diffusers' own warns of modules that would want float32 (this VAE has none)
            vae=nn.Module.to(copy.deepcopy(self.frozen["vae"]), self.dtype),
            text_encoder=nn.Module.to(copy.deepcopy(text_encoder), "cpu", self.dtype),
            tokenizer=self.tokenizer,
            unet=unet,
            controlnet=controlnet,
            scheduler=self.scheduler,
        ).save_pretrained(folder)


def _fresh(config: TrainConfig, files: dict[str, Any], generator: torch.Generator) -> SyntheOccPipeline:
    """A new ControlNet and new cross-view layers on a stock base."""
    return SyntheOccPipeline.from_base(
        config.pretrained_model_name_or_path,
        dtype=torch.float32,
        variant=config.variant,
        revision=config.revision,
        generator=generator,
        unet_kwargs={"cross_frame_attention": config.num_frames > 1},
        encoder_kind=config.encoder_kind or "categorical",
        groups=96 if config.ctrl_channel == 97 else None,
        pixel_origin=config.pixel_origin or files.get("pixel_origin", "center"),
        samples_per_cell=config.samples_per_cell or files.get("samples_per_cell", 1),
    )


def _continued(config: TrainConfig, start: str, generator: torch.Generator) -> SyntheOccPipeline:
    """Trained networks: a whole pipeline, the two networks, or a ControlNet alone."""
    folder, base = Path(start), config.pretrained_model_name_or_path
    if (folder / "model_index.json").is_file():
        return SyntheOccPipeline.from_pretrained(folder, dtype=torch.float32)
    has_networks = (folder / "controlnet").is_dir() and (folder / "unet").is_dir()
    if has_networks or (not folder.is_dir() and _HUB_ID.fullmatch(start)):
        return SyntheOccPipeline.from_original(
            base,
            folder if has_networks else start,
            dtype=torch.float32,
            variant=config.variant,
            revision=config.revision,
        )
    if (folder / "config.json").is_file():
        try:
            controlnet = MPIControlNetModel.from_pretrained(folder, dtype=torch.float32)
        except OSError as error:
            raise ValueError(f"{folder} could not be loaded as a ControlNet: {error}") from error
        fresh = SyntheOccPipeline.from_base(
            base, dtype=torch.float32, variant=config.variant, revision=config.revision, generator=generator
        )
        return SyntheOccPipeline(**{**fresh.components, "controlnet": controlnet})
    raise ValueError(
        f"{start} has no trained weights to go on from: neither a pipeline (model_index.json), nor controlnet/ and "
        "unet/, nor a ControlNet's config.json; give another --controlnet_model_name_or_path"
    )


def _check_condition(config: TrainConfig, controlnet: MPIControlNetModel, start: str) -> None:
    """Raise ValueError when flags ask for other conditions than the trained ControlNet reads."""
    has = controlnet.config
    for name, channel in (("encoder_kind",) * 2, ("pixel_origin",) * 2, ("samples_per_cell",) * 2,
                          ("ctrl_channel", "conditioning_channels")):  # fmt: skip
        asked = getattr(config, name)
        if asked is not None and asked != has[channel]:
            raise ValueError(
                f"--{name}={asked}, but the ControlNet of {start} was trained with {has[channel]}; leave --{name} out"
            )


def _plain_copy(network: Any, cls: type, dtype: torch.dtype) -> Any:
    """A network of the plain class, on the CPU in one dtype, whatever training did to the original's modules."""
    with torch.device("meta"):
        plain = cls.from_config(network.config)  # type: ignore[attr-defined]
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in network.state_dict().items()}
    plain.load_state_dict(state, assign=True)
    return plain
