"""Generated views of many frames: a pipeline, a sampler setting, and a seed for every frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syntheocc import SyntheOccPipeline
from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.rendering.mpi import SemanticMPI


@dataclass
class Drawer:
    """Draws views with one sampler setting.

    Args:
        pipe: on its device.
        steps: denoising steps.
        guidance_scale: weight of the text.
        mpi_guidance_scale: weight of the MPI.
        batch: frames at a time.
    """

    pipe: SyntheOccPipeline
    steps: int = 20
    guidance_scale: float = 2.0
    mpi_guidance_scale: float = 1.0
    batch: int = 16

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.pipe.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """In which they compute."""
        return self.pipe.unet.dtype

    def draw(
        self, mpis: Sequence[SemanticMPI], rigs: Sequence[CameraRig], captions: Sequence[str], seeds: Sequence[int]
    ) -> Tensor:
        """Views uint8 [S, V, 3, H, W] of S conditions; each depends on its own seed only, not on its batch."""
        parts = []
        for start in range(0, len(mpis), self.batch):
            part = slice(start, start + self.batch)
            result = self.pipe(
                list(captions[part]),
                mpi=[mpi.to(self.device) for mpi in mpis[part]],
                cameras=list(rigs[part]),
                num_inference_steps=self.steps,
                guidance_scale=self.guidance_scale,
                mpi_guidance_scale=self.mpi_guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                output_type="pt",
            )
            parts.append(to_bytes(result.images))
        return torch.cat(parts)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """What the VAE makes of images uint8 [N, 3, H, W]: encoded, not sampled, decoded."""
        vae = self.pipe.vae
        parts = []
        for part in images.split(6 * self.batch):
            latents = vae.encode((part.float() / 127.5 - 1).to(vae.dtype)).latent_dist.mode()
            parts.append(to_bytes(vae.decode(latents).sample.float() / 2 + 0.5))
        return torch.cat(parts)


def to_bytes(images: Tensor) -> Tensor:
    """Floats in [0, 1] as uint8."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def load_pipeline(folder: Any, device: torch.device, dtype: torch.dtype) -> SyntheOccPipeline:
    """A pipeline folder on a device; "tiny" gives random weights, for smoke runs."""
    if str(folder) == "tiny":
        from syntheocc.models.presets import tiny_components

        pipe = SyntheOccPipeline(**tiny_components(0))
    else:
        pipe = SyntheOccPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    # Decoding six views at a time would leave a large GPU idle.
    pipe.decode_batch_size = 48 if device.type == "cuda" else 6
    pipe.to(device)
    for module in pipe.components.values():
        # transformers keeps the dtype of the file, diffusers makes it float32.
        if isinstance(module, torch.nn.Module) and next(module.parameters()).dtype != dtype:
            module.to(dtype)
    return pipe
