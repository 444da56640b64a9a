"""The settings of `train.py`: every published flag, and what is new.

The samples come from `SampleConfig`, which `infer.py` shares; optimizer, precision, checkpoints and trackers from the
engine's `LoopConfig`; here is the rest. Nothing heavy is imported, so that ``train.py --help`` answers at once.
"""

import copy
import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from syntheocc.engine.flags import flag
from syntheocc.engine.loop_config import LoopConfig, LRScheduler
from syntheocc.occupancy.data.samples import OccupancyKind, SampleConfig

__all__ = ["DEFAULT_GLOBAL_BATCH", "TrainConfig"]

# What the published recipe trains on: 8 GPUs, one sample each.
DEFAULT_GLOBAL_BATCH = 8


def _ignored() -> Any:
    return flag(None, "only inference uses it", ignored=True)


@dataclass(kw_only=True)
class TrainConfig(SampleConfig, LoopConfig):
    """Train SyntheOcc on a data set's key frames; give --resume_from_checkpoint=latest to go on where it stopped."""

    # what is trained, from where
    output_dir: Path = flag(
        Path("./ckp/train_syntheocc"),
        "folder of checkpoints, logs, validation pictures and the trained pipeline",
        env=("$OUTPUT_DIR", "./ckp/$EXP_NAME"),
    )
    pretrained_model_name_or_path: str = flag(
        "./ckp/stable-diffusion-v2-1",
        "Stable Diffusion folder or hub id to start from; or a pipeline folder of SyntheOcc, to train on",
        env="$MODEL_DIR",
    )
    controlnet_model_name_or_path: str | None = flag(
        None,
        "trained weights to go on from: a pipeline folder, a folder or hub id with controlnet/ and unet/ (such as "
        "the released ones), or a folder with a ControlNet alone",
    )
    revision: str | None = flag(None, "revision of the hub repositories")
    variant: str | None = flag(None, "variant of the base's weight files, e.g. fp16")
    tokenizer_name: str | None = flag(None, "folder or hub id of another tokenizer")
    train_modules: Literal["crossview+controlnet", "crossframe", "all"] | None = flag(
        None,
        "what is trained: as published, the ControlNet and the cross-view layers; the layers of video alone (default "
        "with --num_frames); or UNet and ControlNet whole",
    )
    save_dtype: Literal["fp32", "fp16"] = flag("fp32", "precision of the saved pipeline; resuming always has float32")

    # samples
    gen_train_or_val: Literal["train", "val", "trainval"] = flag("train", "which of the default info pickles")
    occ_kind: Literal["mpi", OccupancyKind] | None = flag(
        None,
        "the condition: labels of this format, rendered to MPIs on the training device, or mpi: files below "
        "<mtp_path>. Default: mpi where --mtp_path is given, else syntheocc",
    )
    mtp_path: str | None = flag(  # type: ignore[assignment]
        None, "folder of MPI files below the data root, as utils/gen_mtp.py writes them", env="$DATA_USED"
    )
    width: int = flag(800, "columns of a training picture")
    height: int = flag(448, "rows of a training picture")
    num_frames: int = flag(1, "key frames of a sample; more than 1: clips for cross-frame attention (the paper: 7)")
    use_cbgs: bool = flag(False, "class-balanced resampling of the samples")
    prompt: str = flag("show a photorealistic street view image", "text of pictures without a caption")
    use_captions: bool = flag(False, "use a picture's or a sample's own caption where the data has one")
    caption_path: Path | None = flag(None, "JSON file of captions by sample token or picture name")
    cache_latents: bool = flag(False, "encode the pictures once, before training, and train without the VAE")
    latents_dir: Path | None = flag(None, "where the cached latents lie; by default <output_dir>/latents")

    # condition of a new ControlNet
    encoder_kind: Literal["categorical", "scalar"] | None = flag(
        None, "MPI encoder of a new ControlNet: categorical (default), or scalar as released"
    )
    ctrl_channel: int | None = flag(None, "channels of the condition: 257 (256 planes, default) or 97 (96 groups)")
    pixel_origin: Literal["center", "corner"] | None = flag(
        None,
        "where a cell of the MPI is sampled: center (default), or corner as released; MPI files say it by themselves",
    )
    samples_per_cell: int | None = flag(None, "rays a cell of the MPI, a square number (default 1)")

    # batches and duration
    train_batch_size: int | None = flag(None, "samples that a GPU holds at a time (default 1)")
    gradient_accumulation_steps: int | None = flag(None, "batches that a GPU adds up for a step")
    global_batch_size: int | None = flag(  # type: ignore[assignment]
        None,
        "samples of one optimizer step over all GPUs, the setting that training depends on. Default: "
        "train_batch_size x gradient_accumulation_steps x GPUs where one of these is given, else 8",
    )
    micro_batch_size: int | None = dataclasses.field(default=None, init=False)  # the published name is above
    num_train_epochs: int = flag(6, "passes through the samples")
    max_train_steps: int | None = flag(None, "optimizer steps, instead of epochs")  # type: ignore[assignment]
    lr_scheduler: LRScheduler = flag(
        "constant_with_warmup", "schedule of the learning rate; 'constant' has no warm-up"
    )
    lr_warmup_steps: int = flag(500, "steps over which the learning rate rises from 0")

    # loss
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = flag(
        None, "what the network predicts; by default what the base's scheduler says"
    )
    per_view_timestep: bool = flag(False, "one timestep a view, as the original has it, instead of one a sample")
    text_dropout: float | None = flag(None, "share of the samples that are trained without text (default 0.1)")
    proportion_empty_prompts: float | None = flag(None, "published name of --text_dropout")
    mpi_dropout: float = flag(0.1, "share of the samples that are trained without MPI")
    foreground_weights: bool = flag(True, "weigh foreground by the following; False: a plain mean squared error")
    depth_weights: bool = flag(True, "far foreground counts more, 1.1 to 2.1")
    progressive_weights: bool = flag(True, "foreground counts more as training goes on, 1.2 to 2.2")

    # speed and memory
    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(
        None, "precision to compute in; by default the launcher's, else bf16 where the GPU has it"
    )
    gradient_checkpointing: bool = flag(False, "compute activations again in the backward: less memory, slower")
    compile: Literal["no", "blocks", "whole"] = flag("no", "compile the transformer blocks, or the networks whole")
    cuda_graphs: bool = flag(False, "record the networks' kernels at the first step and replay them; on a GPU")
    enable_xformers_memory_efficient_attention: bool = flag(False, "use xformers where it is installed")
    dataloader_num_workers: int | None = flag(  # type: ignore[assignment]
        None, "processes that read samples, per GPU; 0: in the training process (default 4, where there are the cores)"
    )

    # validation and reports
    checkpointing_steps: int = flag(500, "save a checkpoint every so many steps; 0: only when interrupted")
    validation_steps: int = flag(500, "draw validation pictures every so many steps; 0: never")
    num_validation_images: int = flag(4, "samples (six views each) of a validation")
    val_info_path: tuple[str, ...] = flag(
        (), "infos of the validation samples; by default the val infos where they exist, else training samples"
    )
    num_inference_steps: int = flag(20, "denoising steps of validation pictures")
    cfg_scale: float = flag(7.5, "guidance by the text in validation pictures")
    push_to_hub: bool = flag(False, "upload the trained pipeline with its model card")
    hub_model_id: str | None = flag(None, "repository to upload to; by default the name of output_dir")

    save_img_path: str | None = _ignored()
    model_path_infer: str | None = _ignored()
    curr_gpu: int | None = _ignored()

    def __post_init__(self) -> None:
        SampleConfig.__post_init__(self)
        LoopConfig.__post_init__(self)
        if self.height % 8 or self.width % 8 or self.height < 8 or self.width < 8:
            raise ValueError(f"height and width must be positive multiples of 8, got {self.height}x{self.width}")
        for name in ("num_frames", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("text_dropout", "proportion_empty_prompts", "mpi_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is a share in 0..1, got {value}")
        if None not in (self.text_dropout, self.proportion_empty_prompts) and (
            self.text_dropout != self.proportion_empty_prompts
        ):
            raise ValueError(
                f"text_dropout={self.text_dropout} and proportion_empty_prompts={self.proportion_empty_prompts} are "
                "two names of one thing; give one of them"
            )
        if self.ctrl_channel not in (None, 257, 97):
            raise ValueError(f"ctrl_channel is 257 (256 planes) or 97 (96 groups of them), got {self.ctrl_channel}")
        rays = self.samples_per_cell
        if rays is not None and (rays < 1 or math.isqrt(rays) ** 2 != rays):
            raise ValueError(f"samples_per_cell must be a square number, got {rays}")
        if self.train_modules == "crossframe" and self.num_frames == 1:
            raise ValueError("train_modules=crossframe trains the layers between frames; give --num_frames=7, say")
        if self.num_validation_images < 0 or self.num_inference_steps < 1:
            raise ValueError("num_validation_images cannot be negative, and num_inference_steps is at least 1")
        if self.occ_kind == "mpi" and self.mtp_path is None:
            raise ValueError("occ_kind=mpi reads MPI files; give their folder below the data root as --mtp_path")
        if self.push_to_hub and os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise ValueError("push_to_hub needs the hub, but HF_HUB_OFFLINE is set; unset one of them")

    @property
    def condition_kind(self) -> str:
        """Where conditions come from: "mpi" for files, else the label format that is rendered."""
        return self.occ_kind or ("mpi" if self.mtp_path else "syntheocc")

    @property
    def trained(self) -> str:
        """What is trained, the default filled in."""
        return self.train_modules or ("crossframe" if self.num_frames > 1 else "crossview+controlnet")

    @property
    def dropped_text(self) -> float:
        """Share of the samples without text, the default filled in."""
        given = [share for share in (self.text_dropout, self.proportion_empty_prompts) if share is not None]
        return given[0] if given else 0.1

    def batch_sizes(self, world: int) -> tuple[int, int]:
        """(samples of an optimizer step over all ranks, samples that a rank holds at a time).

        Raises:
            ValueError: the three sizes contradict one another on so many ranks.
        """
        micro, accumulation = self.train_batch_size, self.gradient_accumulation_steps
        if self.global_batch_size is None:
            if micro is None and accumulation is None:
                return DEFAULT_GLOBAL_BATCH, 1
            return (micro or 1) * (accumulation or 1) * world, micro or 1
        total = self.global_batch_size
        if accumulation is not None:
            micro = micro or max(1, total // (accumulation * world))
            if micro * accumulation * world != total:
                raise ValueError(
                    f"global_batch_size {total} is not {micro} x {accumulation} x {world} (samples a GPU, "
                    "gradient_accumulation_steps, GPUs); leave gradient_accumulation_steps out, it follows"
                )
        return total, micro or 1

    def resolved(self, world: int, max_train_steps: int) -> "TrainConfig":
        """The settings with what was left open filled in, as the engine's loop takes them."""
        config = copy.copy(self)
        config.global_batch_size, config.micro_batch_size = self.batch_sizes(world)
        config.max_train_steps = max_train_steps
        config.mixed_precision = self.precision()
        config.occ_kind, config.train_modules = self.condition_kind, self.trained  # type: ignore[assignment]
        config.text_dropout = self.dropped_text
        if config.dataloader_num_workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            config.dataloader_num_workers = min(4, cores // world)
        return config

    def precision(self) -> Literal["no", "fp16", "bf16"]:
        """The precision to compute in: the flag, the launcher's, or bf16 where the GPU has it.

        A CPU computes in float32 unless bf16 is asked for.
        """
        import torch

        if not torch.cuda.is_available():
            return "bf16" if self.mixed_precision == "bf16" else "no"
        launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if self.mixed_precision is not None:
            return self.mixed_precision
        if launcher in ("fp16", "bf16"):
            return launcher  # type: ignore[return-value]
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
