"""Flags of training OccDepth, beside those that every model has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from syntheocc.engine.flags import flag
from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.perception.settings import TrainConfig

__all__ = ["OccDepthTrainConfig"]


@dataclass(kw_only=True)
class OccDepthTrainConfig(TrainConfig):
    """Settings of a training run of OccDepth.

    The published environment and names are understood: ``DATA_CONFIG`` (a configuration file, by its name),
    ``DATA_LOG`` and ``logdir``, ``data_root``, ``n_gpus``, ``batch_size_per_gpu``, also written as ``name=value``.

    Raises:
        ValueError: what `TrainConfig` finds, or processes that are not as many as `n_gpus`.
    """

    preset: str = flag(
        None,
        "which of the model's presets, or a published configuration file; empty: small",
        env="$DATA_CONFIG",
        aliases=("config",),
    )
    output_dir: Path = flag(
        Path("outputs"),
        "folder of checkpoints, logs and the trained model",
        env="$DATA_LOG",
        aliases=("work_dir", "work-dir", "logdir"),
    )
    teacher: Literal["preset", "stereo", "lidar", "sensor", "none"] = flag(
        "preset", "depth that the depth distribution learns from: pictures of depth/, the lidar, a depth camera, none"
    )
    strong_augmentation: bool = flag(
        False, "also blurred, grey and partly erased pictures", aliases=("use_strong_img_aug", "use-strong-img-aug")
    )
    colours_apart: bool = flag(False, "colours of both views are changed apart, as published")
    sem_step_decay: bool = flag(
        False,
        "the semantic affinity loss counts less with every step, down to a tenth",
        aliases=("sem_step_decay_loss", "sem-step-decay-loss"),
    )
    share_batch_norms: bool = flag(True, "batch norms see the samples of all processes")
    n_gpus: int | None = flag(None, "how many processes there are meant to be; torchrun starts them")
    batch_size_per_gpu: int | None = flag(None, "samples a process, instead of --global_batch_size")

    def __post_init__(self) -> None:
        world = Ranks.from_environment().world
        if self.n_gpus is not None and self.n_gpus != world:
            raise ValueError(
                f"n_gpus={self.n_gpus}, but {world} processes run: start with torchrun --nproc_per_node {self.n_gpus} "
                "-m syntheocc.commands occupancy train occdepth ..., or leave n_gpus out"
            )
        if self.batch_size_per_gpu is not None:
            if self.batch_size_per_gpu < 1:
                raise ValueError(f"batch_size_per_gpu is {self.batch_size_per_gpu}; it must be 1 or more")
            wanted = self.batch_size_per_gpu * world
            if self.global_batch_size not in (None, wanted):
                raise ValueError(
                    f"batch_size_per_gpu={self.batch_size_per_gpu} on {world} processes makes {wanted}, but "
                    f"global_batch_size={self.global_batch_size}: give one of them"
                )
            self.global_batch_size = wanted
        super().__post_init__()
