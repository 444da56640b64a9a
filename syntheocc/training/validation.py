"""Validation pictures: condition, generated and real, one strip a frame, drawn with the weights as they are.

Every rank draws its share of the samples; the noise of a sample depends on the seed and its token only, so that the
strips of successive validations show one and the same attempt.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from syntheocc.engine.batch import mix_seed
from syntheocc.engine.ranks import Ranks
from syntheocc.engine.trackers import note
from syntheocc.occupancy import SemanticMPI
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.pictures import as_picture, condition_pictures, save_picture, strip
from syntheocc.pipelines import SyntheOccPipeline
from syntheocc.pipelines.acceleration import ATTENTION_ORDER
from syntheocc.pipelines.checks import check_call
from syntheocc.training.config import TrainConfig
from syntheocc.training.dataset import FrameReader, read_pictures
from syntheocc.training.step import SyntheOccStep

__all__ = ["Validation", "spread"]


class _LivePipeline(SyntheOccPipeline):
    """The pipeline on networks in training: some weights are float32 masters, computing is in half precision."""

    compute_dtype: torch.dtype = torch.float32
    decode_batch_size = 1  # beside optimizer and gradients, memory is dearer than a second a validation

    def check_inputs(self, **call: Any) -> Any:
        return check_call(self, **call)  # but not that the weights have one dtype

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().encode_prompt(*args, **kwargs).to(self.compute_dtype)

    def encode_mpi(self, mpi: SemanticMPI) -> Tensor:
        return super().encode_mpi(mpi).to(self.compute_dtype)


class Validation:
    """Draws the validation pictures; what `run_loop` calls.

    Args:
        config: the job.
        step: the networks in training.
        pipe: what the networks are parts of: its tokenizer and scheduler.
        clips: the samples to draw; clips of several frames are drawn as video.
        read: reads their conditions and captions.
        ranks: this process's place.
    """

    def __init__(
        self,
        config: TrainConfig,
        step: SyntheOccStep,
        pipe: SyntheOccPipeline,
        clips: Sequence[Sequence[Frame]],
        read: FrameReader,
        ranks: Ranks,
    ):
        self.config, self.step, self.read, self.ranks = config, step, read, ranks
        self.clips = ranks.share(clips)
        self.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # its own state
        self.tokenizer = pipe.tokenizer

    def __call__(self, step_number: int) -> dict[str, float | np.ndarray]:
        """Write `<output_dir>/validation/step-<n>/<token>.jpg`; returns this rank's strips for the trackers."""
        pipe = self._pipeline()
        folder = self.config.output_dir / "validation" / f"step-{step_number:06d}"
        strips: dict[str, float | np.ndarray] = {}
        for clip in self.clips:
            token = clip[0].token
            try:
                picture = self._draw(pipe, clip)
            except (ValueError, OSError) as error:
                note(f"validation sample {token} is left out: {error}")
                continue
            save_picture(picture, folder / f"{token}.jpg", quality=90)
            strips[f"validation/{token}"] = picture
        return strips

    def _pipeline(self) -> _LivePipeline:
        step = self.step
        pipe = _LivePipeline(
            vae=step.vae,  # type: ignore[arg-type]
            text_encoder=step.text_encoder,  # type: ignore[arg-type]
            tokenizer=self.tokenizer,
            unet=step.unet,
            controlnet=step.controlnet,
            scheduler=self.scheduler,
        )
        pipe.compute_dtype = step.compute_dtype or torch.float32
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _draw(self, pipe: SyntheOccPipeline, clip: Sequence[Frame]) -> np.ndarray:
        config, kind = self.config, self.config.condition_kind
        name = "mpi" if kind == "mpi" else "occupancy"
        conditions: list[Any] = [
            self.read.read_mpi(frame) if kind == "mpi" else config.read_grid(frame, kind)  # type: ignore[arg-type]
            for frame in clip
        ]
        photos = [read_pictures(frame, config.height, config.width).permute(0, 2, 3, 1) for frame in clip]
        video = len(clip) > 1
        seed = mix_seed(config.seed, *clip[0].token.encode())
        on_gpu = self.step.device.type == "cuda"
        with sdpa_kernel(ATTENTION_ORDER, set_priority=True) if on_gpu else nullcontext():
            output = pipe(
                [self.read.captions.of(clip[0])],
                **{name: [conditions] if video else conditions},
                cameras=[[frame.cameras for frame in clip]] if video else [clip[0].cameras],
                height=config.height,
                width=config.width,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.cfg_scale,
                generator=[torch.Generator().manual_seed(seed)],  # on the CPU: every device draws the same
            )
        strips = []
        for f, frame in enumerate(clip):
            rows = {
                "condition": condition_pictures(output.mpi[0][f] if video else output.mpi[0]),
                "generated": output.frames[0][f] if video else output.images[0],
                "real": [as_picture(photo) for photo in photos[f]],
            }
            strips.append(strip(rows, frame.cameras.names, size=(config.height, config.width)))
        return np.concatenate(strips)


def spread(samples: Sequence[Any], count: int) -> list[Any]:
    """`count` of the samples, evenly spread from the first on; all of them where there are fewer.

    Example:
        >>> spread(range(10), 3)
        [0, 3, 6]
    """
    count = min(count, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]
