"""The pipeline: 3D semantic occupancy and a camera rig in, one picture a camera out.

S samples, N pictures a prompt, F frames, V views, D planes, H W pixels, h w latents (H/8, W/8 for Stable Diffusion).
Batch order is (branch sample copy frame view): views fastest, branches of the guidance outermost. B is one branch.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.utils import is_xformers_available, logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from syntheocc.models import MPIControlNetModel, MultiviewUNet2DConditionModel, previous_and_next
from syntheocc.occupancy import CameraRig, OccupancyGrid, SemanticMPI
from syntheocc.pipelines.acceleration import FastPathMixin
from syntheocc.pipelines.checks import check_call, check_callback, check_components, check_dtypes
from syntheocc.pipelines.conditions import Conditions, Edit
from syntheocc.pipelines.guidance import Guidance
from syntheocc.pipelines.loading import LoadingMixin
from syntheocc.pipelines.pipeline_output import SyntheOccPipelineOutput
from syntheocc.pipelines.prompts import encode_texts, lora_scale, repeat_embeds, spread_prompts
from syntheocc.pipelines.sources import condition_spec

logger = logging.get_logger(__name__)

Prompt = str | list[str] | list[list[str]]

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from syntheocc import SyntheOccPipeline
        >>> from syntheocc.models.presets import tiny_components
        >>> from syntheocc.worlds.street import example_street

        >>> pipe = SyntheOccPipeline(**tiny_components())  # or SyntheOccPipeline.from_pretrained(folder)
        >>> grid, rig, _ = example_street(seed=0)
        >>> result = pipe(
        ...     "a street at dusk", occupancy=grid, cameras=rig, num_inference_steps=2, height=64, width=96,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> [image.size for image in result.images[0]]
        [(96, 64), (96, 64), (96, 64), (96, 64), (96, 64), (96, 64)]
        >>> result.mpi.labels.shape
        torch.Size([1, 6, 256, 8, 12])
        ```
"""


class SyntheOccPipeline(
    LoadingMixin,
    FastPathMixin,
    DiffusionPipeline,
    StableDiffusionMixin,
    StableDiffusionLoraLoaderMixin,
    TextualInversionLoaderMixin,
):
    """Multi-camera street views from 3D semantic occupancy (SyntheOcc, arXiv 2410.00337).

    What a condition must look like (planes, pixel origin, taxonomy) is read from the ControlNet's config: grids are
    rendered with it and mapped to its taxonomy. The condition is encoded once a generation, not once a step.

    Saves and loads as any diffusers pipeline; `DiffusionPipeline.from_pretrained` finds it once `syntheocc.pipelines`
    is imported, or with `custom_pipeline="pipeline", trust_remote_code=True` when it is not.

    Args:
        vae: pictures to latents and back.
        text_encoder: CLIP text model of the base Stable Diffusion.
        tokenizer: its tokenizer.
        unet: denoiser with cross-view attention; `MultiviewUNet2DConditionModel.from_unet` makes one of a stock UNet.
        controlnet: injects the MPI; `MPIControlNetModel.from_unet` makes one of a stock UNet.
        scheduler: any diffusers scheduler with `init_noise_sigma`; UniPC when built by `from_base`.

    Raises:
        ValueError: a part is of another kind (a UNet of Stable Diffusion XL, a stock ControlNet), or widths disagree.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    #: Pictures that pass the VAE at a time. Its activations set the peak memory: of 448x800 views, 6.2 GB with 3 and
    #: 8.0 GB with 6 at Stable Diffusion size, for 3 % of the decoding time.
    decode_batch_size = 3

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: MultiviewUNet2DConditionModel,
        controlnet: MPIControlNetModel,
        scheduler: SchedulerMixin,
    ):
        super().__init__()
        check_components(vae, text_encoder, unet, controlnet, scheduler)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            controlnet=controlnet,
            scheduler=scheduler,
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    def enable_xformers_memory_efficient_attention(self, attention_op: Callable | None = None) -> None:
        """Use xformers where it can run; elsewhere keep torch's own attention and say so."""
        if is_xformers_available() and torch.cuda.is_available():
            super().enable_xformers_memory_efficient_attention(attention_op)
        else:
            lacking = "a CUDA device" if is_xformers_available() else "xformers"
            logger.warning("%s is missing: attention stays with torch's scaled_dot_product_attention", lacking)

    @property
    def guidance_scale(self) -> float:
        """Weight of the text in the generation under way."""
        return self._guidance.text

    @property
    def mpi_guidance_scale(self) -> float:
        """Weight of the MPI in the generation under way."""
        return self._guidance.mpi

    @property
    def num_timesteps(self) -> int:
        """Number of denoising steps of the generation under way."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop (by setting `pipe._interrupt = True`)."""
        return self._interrupt

    def check_inputs(self, **call: Any) -> tuple[Conditions, int, int]:
        """Check the arguments of a call (by keyword) before any work; returns the sorted conditions, H and W.

        Raises:
            ValueError: naming the argument, its value and what to give instead.
        """
        check_dtypes(self)
        return check_call(self, **call)

    def encode_prompt(
        self,
        prompt: Prompt | None,
        samples: int,
        views: int,
        frames: int = 1,
        num_images_per_prompt: int = 1,
        clip_skip: int | None = None,
        prompt_embeds: Tensor | None = None,  # [S, L, C] or [S, V, L, C]
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Text embeddings of every view of the batch, `[B, L, C]` in the UNet's dtype, on the execution device.

        Args:
            prompt: one text, one a sample or one a view; not used when `prompt_embeds` are given.
            samples: S.
            views: V.
            frames: F; the frames of a sample share its text.
            num_images_per_prompt: N.
            clip_skip: last layers of the text encoder to leave out.
            prompt_embeds: embeddings made before.
            cross_attention_kwargs: its "scale" scales the text encoder's LoRA layers.
        """
        device = self._execution_device
        if prompt_embeds is None:
            texts = spread_prompts("prompt", prompt, samples, views)
            texts = [self.maybe_convert_prompt(text, self.tokenizer) for text in texts]
            with lora_scale(self.text_encoder, cross_attention_kwargs):
                embeds = encode_texts(self.tokenizer, self.text_encoder, texts, device, clip_skip)
            prompt_embeds = embeds.unflatten(0, (samples, views))
        prompt_embeds = prompt_embeds.to(device=device, dtype=self.unet.dtype)
        return repeat_embeds(prompt_embeds, views, frames, num_images_per_prompt)

    def prepare_mpi(self, conditions: Conditions, height: int, width: int) -> SemanticMPI:
        """Render what is not rendered yet: `[U, V, D, h, w]`, the U distinct frames, on the execution device.

        height, width: of the pictures, in pixels.
        """
        spec, factor = condition_spec(self.controlnet), self.vae_scale_factor
        return SemanticMPI.stack(
            [
                source.render(spec, height // factor, width // factor, self._execution_device)
                for source in conditions.sources
            ]
        )

    def encode_mpi(self, mpi: SemanticMPI) -> Tensor:
        """What the ControlNet adds to its input: `[U, V, C, h, w]` of MPIs `[U, V, D, h, w]`. Needs no timestep."""
        embedding = self.controlnet.encode_condition(mpi.labels.flatten(0, 1), mpi.nearest.flatten(0, 1))
        return embedding.unflatten(0, mpi.labels.shape[:2])

    def encode_null(self, mpi: SemanticMPI) -> Tensor:
        """Embedding of empty space, `[1, C, h, w]` for `mpi`'s h and w: the null condition of the guidance."""
        one = replace(
            mpi,
            labels=mpi.labels[:1, :1],
            nearest=mpi.nearest[:1, :1],
            nearest_plane=mpi.nearest_plane[:1, :1],
            names=mpi.names[:1],
        )
        return self.encode_mpi(one.free_like()).flatten(0, 1)

    def prepare_latents(
        self,
        shape: tuple[int, int, int],
        height: int,
        width: int,
        dtype: torch.dtype,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """First noise `[B, C, h, w]`, scaled as the scheduler wants it.

        Args:
            shape: (S*N, F, V).
            height: H, pixels.
            width: W, pixels.
            dtype: of the result.
            generator: one for all; or one for each sample, whose noise then does not depend on the rest of the batch.
            latents: unscaled noise to use instead, `[S*N, V, C, h, w]`, `[S*N, F, V, C, h, w]` or `[B, C, h, w]`.
        """
        device = self._execution_device
        cells = (self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        if latents is None:
            latents = randn_tensor((*shape, *cells), _per(generator, shape[0]), device, dtype)
        return latents.reshape(-1, *cells).to(device=device, dtype=dtype) * self.scheduler.init_noise_sigma

    def denoise(
        self,
        latents: Tensor,  # [B, C, h, w]
        timesteps: Tensor,  # [T]
        prompt_embeds: Tensor,  # [B, L, C_text]
        negative_prompt_embeds: Tensor | None,  # [B, L, C_text]
        condition: Tensor,  # [B, C_0, h, w]
        null_condition: Tensor | None,  # [1, C_0, h, w]
        neighbors: Tensor,  # [V, K] or [S*N*F, V, K], -1 padding
        frame_neighbors: Tensor | None = None,  # [F, K], -1 padding
        guidance: Guidance = Guidance(),  # noqa: B008  (frozen)
        controlnet_conditioning_scale: float = 1.0,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        cross_attention_kwargs: dict[str, Any] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Tensor:
        """Run the scheduler over `timesteps`, all of its own or the last ones; returns clean latents `[B, C, h, w]`.

        A step is one forward pass of each network, over all branches of the guidance at once. The negative embeddings
        and the null condition may be None when no branch needs them.
        """
        self._guidance, self._num_timesteps, self._interrupt = guidance, len(timesteps), False
        branches = len(guidance.branches)
        step_kwargs = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            step_kwargs["generator"] = _per(generator, latents.shape[0])
        links = self.unet.link_views(branches * latents.shape[0], neighbors, frame_neighbors, device=latents.device)
        attention_kwargs = {**(cross_attention_kwargs or {}), **links}
        if null_condition is not None:
            null_condition = null_condition.expand_as(condition)
        condition = guidance.stack(condition, null_condition, axis=1)
        text = guidance.stack(prompt_embeds, negative_prompt_embeds, axis=0)
        step = self.make_step(latents, len(timesteps), step_kwargs, callback=callback_on_step_end is not None)
        if len(timesteps) == len(self.scheduler.timesteps) and hasattr(self.scheduler, "set_begin_index"):
            # Else the scheduler searches for the first timestep on the device, which waits for all work before it.
            self.scheduler.set_begin_index(0)

        with self.progress_bar(total=len(timesteps)) as progress_bar, self.fast_path_context():
            for i, t in enumerate(timesteps):
                if self._interrupt:
                    break
                sample = self.scheduler.scale_model_input(torch.cat([latents] * branches), t)
                begun, ended = i / len(timesteps), (i + 1) / len(timesteps)
                controlled = control_guidance_start <= begun and ended <= control_guidance_end
                scale = controlnet_conditioning_scale if controlled else 0.0
                prediction = self.predict_noise(sample, t, text, condition, attention_kwargs, scale)
                latents = step(guidance.combine(prediction), t, latents)
                if callback_on_step_end is not None:
                    before = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    shown = {name: before[name] for name in callback_on_step_end_tensor_inputs}
                    after = {**before, **(callback_on_step_end(self, i, t, shown) or {})}
                    check_callback(before, after)
                    latents = after["latents"]
                    prompt_embeds, negative_prompt_embeds = after["prompt_embeds"], after["negative_prompt_embeds"]
                    text = guidance.stack(prompt_embeds, negative_prompt_embeds, axis=0)
                progress_bar.update()
        return latents

    def decode(self, latents: Tensor, output_type: str = "pil") -> Any:
        """Latents `[..., C, h, w]` to pictures: nested lists of PIL, `[..., H, W, 3]` (np) `[..., 3, H, W]` (pt).

        "latent" returns the latents as they are. The VAE takes `decode_batch_size` pictures at a time.
        """
        if output_type == "latent":
            return latents
        lead = latents.shape[:-3]
        # A VAE may stay in float32 beside half-precision networks.
        scaled = latents.flatten(0, -4).to(self.vae.dtype) / self.vae.config.scaling_factor
        with self.fast_path_context():
            parts = [self.vae.decode(part, return_dict=False)[0] for part in scaled.split(self.decode_batch_size)]
        images = self.image_processor.postprocess(torch.cat(parts), output_type=output_type)
        return _nest(images, lead) if output_type == "pil" else images.reshape(*lead, *images.shape[1:])

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: Prompt | None = None,
        occupancy: OccupancyGrid | Sequence[OccupancyGrid] | Sequence[Sequence[OccupancyGrid]] | None = None,
        cameras: CameraRig | Sequence[CameraRig] | Sequence[Sequence[CameraRig]] | None = None,
        mpi: SemanticMPI | Sequence[SemanticMPI] | Sequence[Sequence[SemanticMPI]] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        negative_prompt: Prompt | None = None,
        num_images_per_prompt: int = 1,
        mpi_guidance_scale: float = 1.0,
        controlnet_conditioning_scale: float = 1.0,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        clip_skip: int | None = None,
        edit: Edit | Sequence[Edit | None] | None = None,
    ) -> SyntheOccPipelineOutput | tuple:
        r"""Generate the views of a rig.

        Args:
            prompt: one text for all; a list of S, one a sample; or a list of S lists of V, one a view.
            occupancy: a grid, S grids, or S lists of F grids for video. One is shared by all samples.
            cameras: the rig that looks at it, likewise; one is shared by all samples and frames.
            mpi: conditions rendered before, instead of `occupancy` (`cameras` is then optional and gives the
                neighbours; without it they form a ring in view order).
            height: H of a view in pixels, a multiple of 8. Default: of the MPI given, else of the UNet's config:
                `img_size` if it has one, else `sample_size` times 8.
            width: W, likewise.
            num_inference_steps: denoising steps.
            guidance_scale: weight of the text, see `Guidance`; 1 leaves the negative prompt out.
            negative_prompt: what to steer away from, in the forms of `prompt`; default: nothing.
            num_images_per_prompt: N, pictures a sample; they follow one another in the output.
            mpi_guidance_scale: weight of the MPI against empty space; 1 needs no third pass.
            controlnet_conditioning_scale: strength of the condition.
            control_guidance_start: fraction of the steps before the ControlNet is used.
            control_guidance_end: fraction of the steps after which it is used no more.
            generator: one, or a list of S (or S*N) that makes each sample independent of the others.
            latents: unscaled first noise, `[S*N, V, 4, h, w]`, with F before V for video, or flat `[B, 4, h, w]`.
            prompt_embeds: text embeddings instead of `prompt`, `[S, L, C]` or `[S, V, L, C]`.
            negative_prompt_embeds: likewise.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False gives a plain tuple.
            cross_attention_kwargs: for the UNet's attention, e.g. a LoRA's {"scale": 0.5}.
            callback_on_step_end: called as f(pipe, step, timestep, tensors), may return changed tensors.
            callback_on_step_end_tensor_inputs: which of "latents", "prompt_embeds", "negative_prompt_embeds" it sees.
            clip_skip: last layers of the text encoder to leave out.
            edit: a recipe of `occupancy.editing`, or its file, through which `occupancy` goes first; or a list of S.

        Examples:

        Returns:
            `SyntheOccPipelineOutput`; S*N samples in `.images` (or `.frames` for video), the conditions in `.mpi`.

        Raises:
            ValueError: before any work, naming what does not fit and what to give instead.
        """  # noqa: D414  (the decorator fills the examples in)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        conditions, height, width = self.check_inputs(
            prompt=prompt,
            occupancy=occupancy,
            cameras=cameras,
            mpi=mpi,
            edit=edit,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            mpi_guidance_scale=mpi_guidance_scale,
            controlnet_conditioning_scale=controlnet_conditioning_scale,
            control_guidance_start=control_guidance_start,
            control_guidance_end=control_guidance_end,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            clip_skip=clip_skip,
        )
        guidance = Guidance(text=guidance_scale, mpi=mpi_guidance_scale)
        samples, frames, views = conditions.num_samples, conditions.num_frames, conditions.num_views
        copies = num_images_per_prompt

        layout = (samples, views, frames, copies, clip_skip)
        text = self.encode_prompt(prompt, *layout, prompt_embeds, cross_attention_kwargs)
        negative_text = None
        if guidance.needs_negative_text:
            negative_text = self.encode_prompt(
                negative_prompt or "", *layout, negative_prompt_embeds, cross_attention_kwargs
            )
        rendered = self.prepare_mpi(conditions, height, width)
        condition = self.encode_mpi(rendered)[conditions.flat_index(copies)].flatten(0, 1)
        null_condition = self.encode_null(rendered) if guidance.needs_null_condition else None

        shape = (samples * copies, frames, views)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents = self.prepare_latents(shape, height, width, text.dtype, generator, latents)
        across_time = conditions.video and self.unet.config.cross_frame_attention
        latents = self.denoise(
            latents,
            self.scheduler.timesteps,
            text,
            negative_text,
            condition,
            null_condition,
            conditions.neighbors(copies),
            previous_and_next(frames) if across_time else None,
            guidance=guidance,
            controlnet_conditioning_scale=controlnet_conditioning_scale,
            control_guidance_start=control_guidance_start,
            control_guidance_end=control_guidance_end,
            cross_attention_kwargs=cross_attention_kwargs,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        for hook in getattr(self, "_all_hooks", []):
            # The ControlNet is outside the offloading sequence: inside, it would leave the device at every step.
            if hook.model is self.controlnet:
                hook.offload()
        latents = latents.unflatten(0, shape if conditions.video else (shape[0], views))
        pictures = self.decode(latents, output_type)
        self.maybe_free_model_hooks()
        output = SyntheOccPipelineOutput(
            images=None if conditions.video else pictures,
            frames=pictures if conditions.video else None,
            mpi=conditions.gather(rendered),
        )
        return output if return_dict else output.to_tuple()


def _per(generator: Any, count: int) -> Any:
    """A list of generators stretched to one an element of the batch; a generator or None as it is."""
    if not isinstance(generator, (list, tuple)):
        return generator
    return [one for one in generator for _ in range(count // len(generator))]


def _nest(images: list, lead: Sequence[int]) -> list:
    """A flat list as nested lists of the given lengths."""
    for length in reversed(lead[1:]):
        images = [images[i : i + length] for i in range(0, len(images), length)]
    return images
