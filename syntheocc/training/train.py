"""The training job: from settings to a trained pipeline. `train.py` runs it, alone or under any launcher."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syntheocc.engine.claim import claimed
from syntheocc.engine.ranks import Ranks
from syntheocc.engine.trackers import note, tracker_names
from syntheocc.training.config import TrainConfig

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from syntheocc.engine.samplers import EpochSampler
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.training.dataset import FrameReader
    from syntheocc.training.step import SyntheOccStep

__all__ = ["run"]


def run(config: TrainConfig) -> int:
    """Train; returns the exit status. 130: interrupted, the same command with --resume_from_checkpoint=latest goes on.

    Raises:
        ValueError: settings, data or weights that do not fit, before training begins; or what `run_loop` raises.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizer is used in forked readers
    ranks = Ranks.from_environment()
    frames, unreadable = config.read_frames()
    files = _check_conditions(config)
    _quiet_loading()
    from syntheocc.engine.checkpoints import CheckpointFolder
    from syntheocc.engine.loop import make_accelerator
    from syntheocc.engine.loop_state import checkpoint_to_resume
    from syntheocc.engine.samplers import EpochSampler
    from syntheocc.training.cbgs import ClassBalance, classes_of
    from syntheocc.training.dataset import make_clips

    clips = make_clips(frames, config.num_frames)
    order = ClassBalance([classes_of(clip) for clip in clips], config.seed) if config.use_cbgs else None
    sampler = EpochSampler(len(clips), config.seed, order, [clip[0].token for clip in clips])
    global_batch, _ = config.batch_sizes(ranks.world)
    steps = config.max_train_steps or sampler.steps(config.num_train_epochs, global_batch)
    asked = config.mixed_precision
    config = config.resolved(ranks.world, steps)
    if all(len(frame.cameras) == 1 for frame in frames):
        config.find_unused_parameters = True  # nothing looks at a neighbour
    accelerator = make_accelerator(config)
    if ranks.is_main:
        if asked not in (None, config.mixed_precision):
            note(f"no GPU: computing on the CPU, in float32 instead of {asked}")
        if config.lr_scheduler != "constant" and config.lr_warmup_steps >= steps:
            note(f"lr_warmup_steps={config.lr_warmup_steps} of {steps} steps: learning_rate is never reached")
        if unreadable:
            first = next(iter(unreadable.values()))
            note(f"{len(unreadable)} samples of the infos are left out, the first: {first}")
    tracker_names(config.report_to)
    # Before anything is loaded or encoded: a folder that cannot be written, or that another job or run has.
    with claimed(config.output_dir) if ranks.is_main else nullcontext():
        if ranks.is_main:
            checkpoints = CheckpointFolder(config.output_dir)
            checkpoints.recover()
            checkpoint_to_resume(checkpoints, config.resume_from_checkpoint)
        status = _train(config, ranks, accelerator, clips, sampler, files)
    # Not after an error: a rank that is alone with it would wait for the others.
    if ranks.world > 1:
        accelerator.end_training()
    return status


def _train(
    config: TrainConfig,
    ranks: Ranks,
    accelerator: "Accelerator",
    clips: Sequence[Sequence["Frame"]],
    sampler: "EpochSampler",
    files: dict[str, Any],
) -> int:
    """Networks, data and the loop, with settings that are complete; returns the exit status."""
    from syntheocc.engine.loop import run_loop
    from syntheocc.training.dataset import ClipDataset, collate

    repository = _make_repository(config, ranks)
    job = _Job(config, ranks, accelerator.device, files)
    if config.cache_latents:
        job.cache_latents(list({frame.token: frame for clip in clips for frame in clip}.values()))
        accelerator.wait_for_everyone()
    dataset = ClipDataset(clips, job.reader())
    if ranks.is_main:
        note(f"{len(clips)} samples of {len(dataset.cameras)} views, {job.summary()}")
    result = run_loop(
        config,
        module=job.step,
        dataset=dataset,
        collate=collate,
        sampler=sampler,
        save_model=job.save,
        validate=job.validation(clips),
        accelerator=accelerator,
    )
    if result.interrupted:
        if ranks.is_main:
            note(f"stopped after step {result.step}; --resume_from_checkpoint=latest goes on from there")
        return 130
    if ranks.is_main:
        job.write_card(len(clips), result.step)
        loss = "" if result.loss is None else f", loss {result.loss:.4f}"
        print(f"trained {result.step} steps{loss}: {config.output_dir}")
        if repository is not None:
            from syntheocc.training.model_card import push_folder

            print(f"uploaded to {push_folder(config.output_dir, repository)}")
    return 0


class _Job:
    """The networks of a run, and what is made around them."""

    def __init__(self, config: TrainConfig, ranks: Ranks, device: "torch.device", files: dict[str, Any]):
        import torch

        from syntheocc.training.acceleration import prepare_for_training, trainable_parameters
        from syntheocc.training.latents import LatentCache, fingerprint
        from syntheocc.training.networks import PipelineSaver, load_networks

        self.config, self.ranks, self.device = config, ranks, device
        self.pipe = load_networks(config, files)
        if config.enable_xformers_memory_efficient_attention:
            self.pipe.enable_xformers_memory_efficient_attention()  # says so where it stays with torch's own
        self.step = self._make_step()
        trained = trainable_parameters(self.step, config.trained)  # type: ignore[arg-type]
        self.trained = sum(parameter.numel() for parameter in trained.values())
        self.parameters = sum(parameter.numel() for parameter in self.step.parameters())
        self.factor = self.pipe.vae_scale_factor
        self._check_sizes(files)
        dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision or "no"]
        self.latents: LatentCache | None = None
        if config.cache_latents:
            name = fingerprint(self.pipe.vae, config.height, config.width, dtype)
            self.latents = LatentCache(config.latents_dir or config.output_dir / "latents", name)
        if ranks.is_main:
            saved = {"fp32": torch.float32, "fp16": torch.float16}[config.save_dtype]
            self.save: Any = PipelineSaver(self.pipe, self.step, saved)
        else:
            self.save = None  # only the main process saves
        prepare_for_training(
            self.step,
            dtype,
            channels_last=device.type == "cuda",
            gradient_checkpointing=config.gradient_checkpointing,
            compile=config.compile,
            cuda_graphs=config.cuda_graphs,
        )
        if not ranks.is_main:
            self.step.originals.clear()  # the frozen weights before rounding: only who saves needs them

    def summary(self) -> str:
        """What the job is about to do, for the screen."""
        from syntheocc.engine.batch import derive_batch

        config = self.config
        assert config.global_batch_size is not None
        plan = derive_batch(config.global_batch_size, self.ranks.world, config.micro_batch_size)
        clips = f"clips of {config.num_frames} frames, " if config.num_frames > 1 else ""
        precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
        return (
            f"{clips}{config.max_train_steps} steps of {plan.global_batch_size} samples ({plan.micro} x "
            f"{plan.accumulation} on {plan.world} processes), {precision}; {self.trained / 1e6:.1f} M of "
            f"{self.parameters / 1e6:.1f} M parameters are trained"
        )

    def reader(self, pictures: bool = False) -> "FrameReader":
        """Reads frames for training; with `pictures`, the pictures themselves even where latents are cached."""
        from syntheocc.training.dataset import FrameReader
        from syntheocc.training.latents import LatentCache

        latents: LatentCache | None = None if pictures else self.latents
        return FrameReader(self.config, self.step.condition, self.pipe.tokenizer, latents, self.factor)

    def cache_latents(self, frames: Sequence["Frame"]) -> None:
        """Encode this rank's share of the pictures that are not encoded yet."""
        from syntheocc.training.dataset import read_pictures
        from syntheocc.training.latents import encode_moments

        assert self.latents is not None and self.step.vae is not None
        vae = self.step.vae.to(self.device)

        config = self.config
        _, failed = self.latents.fill(
            self.ranks.share(frames),
            lambda frame: read_pictures(frame, config.height, config.width),
            lambda images: encode_moments(vae, images),
            readers=config.dataloader_num_workers or 1,
            show=self.ranks.is_main,
        )
        for token, reason in list(failed.items())[:20]:
            note(f"no latents of sample {token}: {reason}")
        if len(failed) > 20:
            note(f"... and of {len(failed) - 20} more")

    def validation(self, clips: Sequence[Sequence["Frame"]]) -> Any:
        """What draws the validation pictures; None where none are wanted."""
        from syntheocc.training.validation import Validation, spread

        config = self.config
        if not config.validation_steps or not config.num_validation_images:
            return None
        samples = spread(_validation_clips(config, clips), config.num_validation_images)
        return Validation(config, self.step, self.pipe, samples, self.reader(pictures=True), self.ranks)

    def write_card(self, samples: int, steps: int) -> None:
        """The README of the output folder."""
        from syntheocc.engine.files import atomic_write_text
        from syntheocc.models.controlnet_mpi import conditioning_of
        from syntheocc.training.model_card import model_card

        condition = conditioning_of(dict(self.step.controlnet.config))
        card = model_card(self.config, condition, samples, steps)
        atomic_write_text(self.config.output_dir / "README.md", card)

    def _make_step(self) -> "SyntheOccStep":
        from syntheocc.pipelines.sources import condition_spec
        from syntheocc.training.dropout import ConditionDropout
        from syntheocc.training.loss_weights import LossWeights
        from syntheocc.training.networks import noise_scheduler
        from syntheocc.training.step import SyntheOccStep

        config, pipe = self.config, self.pipe
        taxonomy = condition_spec(pipe.controlnet).taxonomy
        weights = LossWeights(
            depth=config.foreground_weights and config.depth_weights,
            progressive=config.foreground_weights and config.progressive_weights,
        )
        if taxonomy is not None:
            weights = replace(weights, foreground=tuple(taxonomy.foreground))
        empty = pipe.tokenizer(
            "", padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
        ).input_ids[0]
        return SyntheOccStep(
            pipe.unet,
            pipe.controlnet,
            pipe.vae,
            pipe.text_encoder,
            noise_scheduler(pipe),
            weights,
            ConditionDropout(config.dropped_text, config.mpi_dropout),
            empty_input_ids=empty,
            max_train_steps=config.max_train_steps or 1,
            shared_timestep=not config.per_view_timestep,
            seed=config.seed,
        )

    def _check_sizes(self, files: dict[str, Any]) -> None:
        """Raise ValueError when pictures do not fit the VAE, or MPI files the pictures and the ControlNet."""
        from syntheocc.training.dataset import check_mpi_folder

        config, spec = self.config, self.step.condition
        if config.height % self.factor or config.width % self.factor:
            raise ValueError(f"height and width must be multiples of {self.factor}, the size of the VAE's cells")
        if files:
            wanted = {
                "pixel_origin": spec.pixel_origin,
                "height": config.height // self.factor,
                "width": config.width // self.factor,
            }
            if "samples_per_cell" in files:
                wanted["samples_per_cell"] = spec.samples_per_cell
            check_mpi_folder(Path(config.dataroot_path) / str(config.mtp_path), wanted, files)


def _check_conditions(config: TrainConfig) -> dict[str, Any]:
    """Make sure that labels or MPI files are there; what the MPI files were made with, empty for labels."""
    from syntheocc.occupancy.data.samples import mpi_settings

    config.check_labels(config.condition_kind)
    if config.condition_kind != "mpi":
        return {}
    folder = Path(config.dataroot_path) / str(config.mtp_path)
    if not folder.is_dir():
        raise ValueError(
            f"no MPI files at {folder}; make them with utils/gen_mtp.py, or leave --mtp_path out (and DATA_USED "
            "unset) to have MPIs rendered from labels on the way: --occ_kind=syntheocc, occ3d, ..."
        )
    return mpi_settings(folder)


def _validation_clips(config: TrainConfig, clips: Sequence[Sequence["Frame"]]) -> Sequence[Sequence["Frame"]]:
    """The samples of the val infos; the training samples where there are none."""
    from syntheocc.occupancy.data.samples import SampleConfig
    from syntheocc.training.dataset import make_clips

    val = SampleConfig(
        dataroot_path=config.dataroot_path, info_path=config.val_info_path, gen_train_or_val="val", max_samples=None
    )
    try:
        return make_clips(val.read_frames()[0], config.num_frames)
    except ValueError:
        if config.val_info_path:
            raise
        return clips


def _make_repository(config: TrainConfig, ranks: Ranks) -> str | None:
    """The hub repository to upload to, made on the main process before training."""
    if not config.push_to_hub or not ranks.is_main:
        return None
    from syntheocc.training.model_card import check_hub

    return check_hub(config)


def _quiet_loading() -> None:
    """Leave out the bars and notices that diffusers and transformers show while they load."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
