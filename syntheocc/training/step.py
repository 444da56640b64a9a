"""One training step of SyntheOcc: from pictures, texts and occupancy to a loss (specs/syntheocc.md 3).

Legend: S rows (samples x frames), F frames, V views, N = S*V batch of the networks (views fastest), D planes,
L tokens, C latent channels, h w latent pixels.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from syntheocc.engine.batch import mix_seed
from syntheocc.engine.recorded import RecordedNetworks
from syntheocc.models import MPIControlNetModel, MultiviewUNet2DConditionModel
from syntheocc.models.neighbors import previous_and_next
from syntheocc.occupancy.rendering.mpi import render_mpi
from syntheocc.pipelines.acceleration import ATTENTION_ORDER
from syntheocc.pipelines.sources import condition_spec
from syntheocc.training.batch import TrainingBatch
from syntheocc.training.dropout import ConditionDropout
from syntheocc.training.loss_weights import LossWeights, foreground_table, loss_weight_map
from syntheocc.training.targets import training_target

# Texts whose embeddings are kept while the text encoder is frozen: 256 of SD 2.1's in half precision are 40 MB.
KEPT_TEXTS = 256


class Draws(NamedTuple):
    """All that is random in a step."""

    timesteps: Tensor  # int64 [N]
    noise: Tensor  # float32 [N, C, h, w]
    posterior: Tensor | None  # float32 [N, C, h, w], for the VAE's posterior; None with latents that are samples
    no_text: list[bool]  # [S]
    no_mpi: list[bool]  # [S]


class SyntheOccStep(nn.Module):
    """The networks of SyntheOcc as one module that maps a batch to its loss; what DistributedDataParallel wraps.

    What is trained is what requires gradients (`trainable_parameters`); the VAE never does. The noise, the timestep
    and the dropped conditions of a sample depend on (seed, step, its position in the global batch) only, so that the
    loss curve is the same however the batch is divided.

    Args:
        unet: the multi-view UNet.
        controlnet: the ControlNet; its config says how MPIs are rendered.
        vae: encodes the images; None where batches bring latents.
        text_encoder: CLIP's.
        noise_scheduler: with add_noise, get_velocity and a prediction type.
        weights: of the loss; the number of planes is the ControlNet's.
        dropout: of the conditions.
        empty_input_ids: int64 [L], the token ids of the empty prompt "", which dropped texts become.
        max_train_steps: over which the progressive weight rises.
        shared_timestep: one timestep for all views and frames of a sample, as inference has it; False draws one a
            view, as the original does.
        seed: of everything random.

    Raises:
        ValueError: a dropout of text without `empty_input_ids`.

    Example:
        >>> step = SyntheOccStep(unet, controlnet, vae, text_encoder, scheduler, empty_input_ids=empty,
        ...                      max_train_steps=1000)  # doctest: +SKIP
        >>> parameters = trainable_parameters(step)  # doctest: +SKIP
        >>> step(batch, step=0, positions=[0])["loss"].backward()  # doctest: +SKIP
    """

    is_foreground: Tensor

    def __init__(
        self,
        unet: MultiviewUNet2DConditionModel,
        controlnet: MPIControlNetModel,
        vae: AutoencoderKL | None,
        text_encoder: nn.Module,
        noise_scheduler: DDPMScheduler,
        weights: LossWeights = LossWeights(),  # noqa: B008 (frozen)
        dropout: ConditionDropout = ConditionDropout(),  # noqa: B008 (frozen)
        *,
        empty_input_ids: Tensor | None = None,
        max_train_steps: int,
        shared_timestep: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if dropout.text > 0 and empty_input_ids is None:
            raise ValueError('dropping text needs empty_input_ids, the token ids [L] of the prompt ""')
        self.unet = unet
        self.controlnet = controlnet
        self.vae = vae
        self.text_encoder = text_encoder
        self.noise_scheduler = noise_scheduler
        self.dropout = dropout
        self.empty_input_ids = empty_input_ids
        self.max_train_steps = max_train_steps
        self.shared_timestep = shared_timestep
        self.seed = seed
        self.compute_dtype: torch.dtype | None = None  # set by prepare_for_training
        self.originals: dict[str, Tensor] = {}  # likewise: frozen weights before they were rounded, on the CPU
        self.recorded: RecordedNetworks | None = None  # likewise
        self.condition = condition_spec(controlnet)
        self.weights = replace(weights, num_planes=self.condition.planes.num_planes)
        self.register_buffer("is_foreground", foreground_table(weights.foreground), persistent=False)
        self._texts: OrderedDict[bytes, Tensor] = OrderedDict()

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.unet.conv_in.weight.device

    def forward(
        self, batch: TrainingBatch, step: int, positions: Sequence[int], seed: int | None = None
    ) -> dict[str, Tensor]:
        """The loss of a micro batch.

        Args:
            batch: on the networks' device.
            step: number of the optimizer step, from 0.
            positions: of the samples (not rows) in the global batch.
            seed: default: the one given to the constructor.

        Returns:
            "loss", the weighted mean squared error, with gradients; without: "mse", the same unweighted.

        Raises:
            ValueError: as many positions as samples are needed.
        """
        if len(positions) != batch.samples:
            raise ValueError(f"{batch.samples} samples need as many positions in the global batch, got {positions}")
        with self._backends():
            return self._loss(batch, step, positions, self.seed if seed is None else seed)

    def _loss(self, batch: TrainingBatch, step: int, positions: Sequence[int], seed: int) -> dict[str, Tensor]:
        height, width = self.latent_size(batch)
        size = (batch.rows * batch.views, self.unet.config.in_channels, height, width)
        draws = self.draw(batch, step, positions, size, seed)
        # The condition first: its encoder waits for the device, which has least to do now. What follows is queued
        # without waiting, and while the VAE computes the CPU gets ahead of it.
        labels, nearest, nearest_plane = self.render_labels(batch)
        condition = self.encode_condition(labels, nearest, draws.no_mpi)
        latents = self.sample_latents(self.encode_images(batch), draws.posterior)
        noisy = self.noise_scheduler.add_noise(latents, draws.noise, draws.timesteps)
        target = training_target(self.noise_scheduler, latents, draws.noise, draws.timesteps)
        text = self.encode_text(batch, draws.no_text)

        prediction = self.predict(noisy, draws.timesteps, text, condition, batch)
        error = (prediction.float() - target.float()).square()
        weight = loss_weight_map(
            nearest, nearest_plane, step, self.max_train_steps, self.weights, is_foreground=self.is_foreground
        )
        return {"loss": (weight.flatten(0, 1)[:, None] * error).mean(), "mse": error.detach().mean()}

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Tensor, condition: Tensor, batch: TrainingBatch
    ) -> Tensor:
        """What ControlNet and UNet make of the noisy latents: [N, C, h, w]."""
        frames = previous_and_next(batch.frames) if batch.frames > 1 and self._has_frame_attention else None
        links = self.unet.link_views(noisy.shape[0], batch.neighbors, frames, device=noisy.device)
        noisy = noisy.to(self.compute_dtype or noisy.dtype)

        def networks(noisy: Tensor, timesteps: Tensor, text: Tensor, condition: Tensor) -> Tensor:
            down, mid = self.controlnet(
                noisy,
                timesteps,
                encoder_hidden_states=text,
                cond_embedding=condition,
                return_dict=False,
            )
            return self.unet(
                noisy,
                timesteps,
                text,
                cross_attention_kwargs=links,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
                return_dict=False,
            )[0]

        inputs = (noisy, timesteps, text, condition)
        if self.recorded is None or not self.training:
            return networks(*inputs)
        return self.recorded(networks, (batch.frames, str(batch.neighbors.tolist())), inputs)

    def latent_size(self, batch: TrainingBatch) -> tuple[int, int]:
        """(h, w) of the batch's latents."""
        height, width = batch.pixels.shape[-2:]
        if batch.images is None:
            return height, width
        if self.vae is None:
            raise ValueError("this step has no VAE: give batches latents instead of images")
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return height // factor, width // factor

    def render_labels(self, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The batch's MPIs, rendered here when it brings grids: labels, nearest class and nearest plane."""
        if batch.mpi_labels is not None:
            assert batch.nearest is not None and batch.nearest_plane is not None
            return batch.mpi_labels, batch.nearest, batch.nearest_plane
        assert batch.grids is not None and batch.rigs is not None
        height, width = self.latent_size(batch)
        spec = self.condition
        mpi = render_mpi(
            list(batch.grids),
            list(batch.rigs),
            height,
            width,
            planes=spec.planes,
            pixel_origin=spec.pixel_origin,
            samples_per_cell=spec.samples_per_cell,
            taxonomy=spec.taxonomy,
        )
        return mpi.labels, mpi.nearest, mpi.nearest_plane

    def encode_condition(self, labels: Tensor, nearest: Tensor, no_mpi: Sequence[bool]) -> Tensor:
        """The ControlNet's features of the MPIs, [N, C_0, h, w]; dropped rows are encoded as empty space.

        The loss keeps their weights all the same: they tell where things are in the picture.
        """
        if any(no_mpi):
            dropped = torch.tensor(no_mpi).to(labels.device, non_blocking=True)
            labels = labels.masked_fill(dropped[:, None, None, None, None], self.condition.free)
            nearest = nearest.masked_fill(dropped[:, None, None, None], self.condition.free)
        encoder = self.controlnet.controlnet_cond_embedding
        return encoder(labels.flatten(0, 1), nearest.flatten(0, 1), self.compute_dtype)

    @torch.no_grad()
    def encode_images(self, batch: TrainingBatch) -> Tensor:
        """The VAE's moments [N, 2C, h, w] of the images, or the batch's latents as they are, [N, C or 2C, h, w]."""
        if batch.latents is not None:
            return batch.latents.flatten(0, 1)
        assert batch.images is not None and self.vae is not None
        images = batch.images.flatten(0, 1)
        if images.dtype == torch.uint8:
            images = images.float() / 127.5 - 1
        return self.vae.encode(images.to(self.vae.dtype)).latent_dist.parameters

    def sample_latents(self, moments: Tensor, posterior: Tensor | None) -> Tensor:
        """A sample of the VAE's posterior, scaled, float32 [N, C, h, w]; latents that are samples already pass."""
        if posterior is None:
            return moments.float()
        mean, log_variance = moments.float().chunk(2, dim=1)
        assert self.vae is not None
        # The clamp is AutoencoderKL's own.
        return (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * posterior) * self.vae.config.scaling_factor

    def draw(self, batch: TrainingBatch, step: int, positions: Sequence[int], size: Sequence[int], seed: int) -> Draws:
        """Everything random, sample by sample; decisions come from the CPU, noise is made on the device."""
        rows, device = batch.views * batch.frames, self.device
        is_moments = batch.images is not None or batch.pixels.shape[2] == 2 * size[1]
        num_timesteps = self.noise_scheduler.config.num_train_timesteps
        timesteps, no_text, no_mpi = [], [], []
        noise = torch.empty(len(positions), rows, *size[1:], device=device)
        posterior = torch.empty_like(noise) if is_moments else None
        decisions, generator = torch.Generator(), torch.Generator(device)
        for i, position in enumerate(positions):
            stream = mix_seed(seed, step, position)
            decisions.manual_seed(stream)
            count = 1 if self.shared_timestep else rows
            t = torch.randint(num_timesteps, (count,), generator=decisions)
            timesteps.append(t.expand(rows))
            drop_text, drop_mpi = self.dropout.draw(decisions)
            no_text += [drop_text] * batch.frames
            no_mpi += [drop_mpi] * batch.frames
            # Never two generators with one seed: on a CPU the noise comes from the decisions' stream.
            noises = decisions if device.type == "cpu" else generator.manual_seed(stream)
            noise[i].normal_(generator=noises)
            if posterior is not None:
                posterior[i].normal_(generator=noises)
        return Draws(
            torch.cat(timesteps).to(device, non_blocking=True),
            noise.flatten(0, 1),
            None if posterior is None else posterior.flatten(0, 1),
            no_text,
            no_mpi,
        )

    def encode_text(self, batch: TrainingBatch, no_text: Sequence[bool]) -> Tensor:
        """Text embeddings of every view, [N, L, C_text]; dropped rows get the empty prompt's."""
        ids = batch.input_ids
        if any(no_text):
            assert self.empty_input_ids is not None
            dropped = torch.tensor(no_text, device=ids.device)
            ids = torch.where(dropped[:, None, None], self.empty_input_ids.to(ids.device), ids)
        texts = ids.flatten(0, 1)  # [S*V or S, L]
        if texts.is_cuda or self._trains_text:
            embeds = self._run_text_encoder(texts)
        else:
            embeds = self._look_up_texts(texts)
        embeds = embeds.unflatten(0, ids.shape[:2]).expand(-1, batch.views, -1, -1)
        return embeds.flatten(0, 1).to(self.compute_dtype or embeds.dtype)

    def _look_up_texts(self, texts: Tensor) -> Tensor:
        """Embeddings [n, L, C_text] by a frozen encoder, each text encoded once and kept."""
        keys = [row.numpy().tobytes() for row in texts]
        missing = {key: i for i, key in enumerate(keys) if key not in self._texts}
        if missing:
            with torch.no_grad():
                embeds = self._run_text_encoder(texts[list(missing.values())])
            self._texts.update(zip(missing, embeds.unbind(0), strict=True))
        for key in keys:
            self._texts.move_to_end(key)
        found = torch.stack([self._texts[key] for key in keys])
        while len(self._texts) > KEPT_TEXTS:
            self._texts.popitem(last=False)
        return found

    def _run_text_encoder(self, texts: Tensor) -> Tensor:
        texts = texts.to(self.device, non_blocking=True)
        if self._trains_text and self.compute_dtype not in (None, torch.float32):
            # Its weights are float32 and its layers transformers'; small enough for autocast.
            with torch.autocast(self.device.type, dtype=self.compute_dtype):
                return self.text_encoder(texts)[0]
        return self.text_encoder(texts)[0]

    @contextmanager
    def _backends(self) -> Iterator[None]:
        """After `prepare_for_training` the networks know their dtypes, and cuDNN's attention is tried first."""
        with ExitStack() as stack:
            if self.compute_dtype is not None:
                stack.enter_context(torch.autocast(self.device.type, enabled=False))
                if self.device.type == "cuda":
                    stack.enter_context(sdpa_kernel(ATTENTION_ORDER, set_priority=True))
            yield

    @property
    def _has_frame_attention(self) -> bool:
        return self.unet.config.cross_frame_attention

    @property
    def _trains_text(self) -> bool:
        return any(parameter.requires_grad for parameter in self.text_encoder.parameters())
