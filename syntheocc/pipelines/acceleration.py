"""The fast path: the same pictures up to half-precision rounding, sooner. Opt-in, `pipe.enable_fast_path()`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from syntheocc.engine.graphs import RecordedCall, signature, weight_addresses
from syntheocc.models import MPIControlNetModel, MultiviewUNet2DConditionModel, NeighborLinks
from syntheocc.models.channels_last import to_channels_last, to_contiguous
from syntheocc.pipelines.solver import LinearSolver, is_linear

# cuDNN's kernel reaches 430 TFLOP/s on an H200 at these shapes, the flash kernel 312; what it refuses falls through.
ATTENTION_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class FastPathMixin:
    """`enable_fast_path`, `disable_fast_path`, and how the networks run in a denoising step."""

    unet: MultiviewUNet2DConditionModel
    controlnet: MPIControlNetModel
    vae: AutoencoderKL
    scheduler: Any

    _fast_path = False
    _compiled = False
    _recordings: dict[tuple, RecordedCall] | None = None
    _recorded_weights: int | None = None
    _recordable = False

    def enable_fast_path(self, compile: bool = False, cuda_graph: bool = False, **compile_options: Any) -> None:
        """Run faster on a GPU; the results stay equal up to rounding, and `disable_fast_path` takes it back.

        UNet, ControlNet and VAE go to channels-last memory with fused norms, gates and copies; attention tries cuDNN's
        kernel first; UniPC becomes a table of weights (not while a callback may change the latents). The networks'
        weights are converted in place; saving and loading are not affected. The first generation compiles the kernels.

        Args:
            compile: also compile UNet and ControlNet with `torch.compile`. The first generation then takes a minute or
                two; another number of views or another picture size compiles again.
            cuda_graph: record the networks of a step once and replay them: takes the CPU out of the loop, keeps the
                step's activations in GPU memory (1.5 GB at Stable Diffusion size). Weights may be changed in place,
                but after any other change to the networks (FreeU, attention back-ends, processors) call this again.
                Not used while a LoRA is loaded or models are off-loaded.
            **compile_options: for `torch.compile`.

        Example:
            >>> pipe.to("cuda", torch.float16)  # doctest: +SKIP
            >>> pipe.enable_fast_path(cuda_graph=True)  # doctest: +SKIP
        """
        self.disable_fast_path()
        for model in (self.unet, self.controlnet, self.vae):
            to_channels_last(model)
        self._compiled = compile
        if compile:
            # Not the VAE: its fused eager form is as fast, and compiling it takes half a minute.
            self.unet.compile(**compile_options)
            self.controlnet.compile(**compile_options)
        self._recordings = {} if cuda_graph else None
        self._fast_path = True

    def disable_fast_path(self) -> None:
        """Back to the plain path: diffusers' own modules, NCHW, torch's choice of attention, nothing compiled."""
        if not self._fast_path:
            return
        if self._compiled:
            for model in (self.unet, self.controlnet):
                model._compiled_call_impl = None
            self._compiled = False
        for model in (self.unet, self.controlnet, self.vae):
            to_contiguous(model)
        self._recordings = None
        self._fast_path = False

    @contextmanager
    def fast_path_context(self) -> Iterator[None]:
        """Back-ends while the networks run; changes nothing unless the fast path is on."""
        with ExitStack() as stack:
            if self._fast_path:
                stack.enter_context(sdpa_kernel(ATTENTION_ORDER, set_priority=True))
            if self._recordings is not None:
                addresses = weight_addresses(self.unet, self.controlnet)
                if addresses != self._recorded_weights:
                    self._recordings.clear()
                    self._recorded_weights = addresses
                self._recordable = not any(_has_hooks(model) for model in (self.unet, self.controlnet))
            yield

    def predict_noise(
        self,
        sample: Tensor,  # [branches*B, C, h, w]
        timestep: Tensor,
        text: Tensor,  # [branches*B, L, C_text]
        condition: Tensor,  # [branches*B, C_0, h, w]
        attention_kwargs: dict[str, Any],
        conditioning_scale: float = 1.0,
    ) -> Tensor:
        """One pass of ControlNet and UNet over all branches; scale 0 leaves the ControlNet out.

        A replayed recording with `enable_fast_path(cuda_graph=True)`. Returns `[branches*B, C, h, w]`.
        """
        recordings = self._recordings
        if recordings is None or not self._may_record(sample, attention_kwargs):
            return self._run_networks(sample, timestep, text, condition, attention_kwargs, conditioning_scale)
        tensors = [sample, timestep, text, condition]
        for links in attention_kwargs.values():
            tensors.extend(links)

        def run(sample: Tensor, timestep: Tensor, text: Tensor, condition: Tensor, *flat: Any) -> Tensor:
            width = len(NeighborLinks._fields)
            linked = {
                name: NeighborLinks(*flat[k * width : (k + 1) * width]) for k, name in enumerate(attention_kwargs)
            }
            return self._run_networks(sample, timestep, text, condition, linked, conditioning_scale)

        key = (signature(tensors), tuple(attention_kwargs), conditioning_scale)
        if key not in recordings:
            recordings[key] = RecordedCall(run, tensors)
        return recordings[key](tensors)

    def make_step(
        self, latents: Tensor, num_steps: int, step_kwargs: dict[str, Any], callback: bool
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The scheduler's step as a function of (prediction, timestep, latents), for one run that starts at `latents`.

        num_steps: of the run; callback: whether somebody else may change the latents between steps.
        """
        whole_run = num_steps == len(self.scheduler.timesteps)
        if self._fast_path and whole_run and not callback and is_linear(self.scheduler):
            solver = LinearSolver(self.scheduler, latents)
            return lambda prediction, timestep, latents: solver.step(prediction)
        return lambda prediction, timestep, latents: self.scheduler.step(
            prediction, timestep, latents, **step_kwargs, return_dict=False
        )[0]

    def _may_record(self, sample: Tensor, attention_kwargs: dict[str, Any]) -> bool:
        if not self._recordable or not sample.is_cuda or torch.is_grad_enabled():
            return False
        return all(isinstance(value, NeighborLinks) for value in attention_kwargs.values())

    def _run_networks(self, sample, timestep, text, condition, attention_kwargs, conditioning_scale) -> Tensor:
        residuals = {}
        if conditioning_scale != 0:
            down, mid = self.controlnet(
                sample,
                timestep,
                encoder_hidden_states=text,
                cond_embedding=condition,
                conditioning_scale=conditioning_scale,
                return_dict=False,
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return self.unet(
            sample, timestep, text, cross_attention_kwargs=attention_kwargs, return_dict=False, **residuals
        )[0]


def _has_hooks(model: torch.nn.Module) -> bool:
    """Whether a LoRA is loaded, or hooks (off-loading, casting, caching) move or change weights on the way."""
    if getattr(model, "peft_config", None):
        return True
    return any(hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook") for module in model.modules())
