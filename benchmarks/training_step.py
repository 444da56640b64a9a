"""The training step that benchmarks/training.py measures: networks of a variant, a batch, and the measurements."""

import argparse
import gc
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from generation import kind_of, sd21_components, synchronize, wake_zero_layers
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.utils.flop_counter import FlopCounterMode

from syntheocc import MPIControlNetModel
from syntheocc.models.presets import tiny_components
from syntheocc.training.acceleration import prepare_for_training, trainable_parameters
from syntheocc.training.batch import TrainingBatch
from syntheocc.training.dropout import ConditionDropout
from syntheocc.training.step import SyntheOccStep
from syntheocc.worlds.street import example_street

PROMPT = "show a photorealistic street view image"
# Their gradients are compared between variants: first and last layers, and kinds of layers.
COMPARED = (
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.norm4.weight",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn4.to_q.weight",
    "unet.up_blocks.{last}.attentions.1.transformer_blocks.0.connector.weight",
    "controlnet.conv_in.weight",
    "controlnet.down_blocks.0.resnets.0.norm2.weight",
    "controlnet.down_blocks.0.resnets.0.conv1.bias",
    "controlnet.down_blocks.0.attentions.0.transformer_blocks.0.norm1.bias",
    "controlnet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
    "controlnet.mid_block.resnets.0.conv1.weight",
    "controlnet.controlnet_cond_embedding.plane_class_embedding",
)


def make_step(args: argparse.Namespace, device: torch.device, variant: str) -> tuple[SyntheOccStep, dict]:
    """Networks of one variant, and the parameters that are trained."""
    torch.manual_seed(0)
    if args.size == "sd21":
        parts = sd21_components(device, torch.float32)
        parts["controlnet"] = MPIControlNetModel.from_unet(parts["unet"], encoder_kind=args.encoder)
    else:
        parts = tiny_components(encoder_kind=args.encoder)
    wake_zero_layers(parts["unet"], parts["controlnet"])
    tokenizer = parts["tokenizer"]
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    step = SyntheOccStep(
        parts["unet"],
        parts["controlnet"],
        parts["vae"],
        parts["text_encoder"],
        schedule,
        dropout=ConditionDropout(0, 0),
        empty_input_ids=empty,
        max_train_steps=1000,
    ).to(device)
    step.tokenizer = tokenizer
    parameters = trainable_parameters(step)
    dtype = getattr(torch, args.dtype)
    if variant == "plain":
        for module in (step.unet, step.vae, step.text_encoder):
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
    else:
        prepare_for_training(
            step,
            dtype,
            gradient_checkpointing="transformers" if "transformers" in variant else "checkpoint" in variant,
            compile=next((part for part in variant.split("+") if part in ("blocks", "whole")), "no"),
            cuda_graphs="graphs" in variant,
        )
    step.train()
    gc.collect()
    return step, parameters


def make_batch(args: argparse.Namespace, step: SyntheOccStep) -> TrainingBatch:
    """What a DataLoader hands over: a street's grid and rig, six pictures, a caption, in pinned memory."""
    street = example_street(seed=0)
    generator = torch.Generator().manual_seed(0)
    ids = step.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    batch = TrainingBatch(
        input_ids=ids[None],
        neighbors=street.rig.neighbors(2),
        images=torch.randint(0, 256, (1, 6, 3, args.height, args.width), dtype=torch.uint8, generator=generator),
        grids=[street.grid],
        rigs=[street.rig],
        tokens=["street"],
    )
    return batch.pin_memory() if step.device.type == "cuda" else batch


class Marks:
    """Points of a step on the GPU's own clock (the CPU's without one): nothing waits for them."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """What runs within is one occurrence of `name`."""
        start = self._now()
        yield
        self.spans[name].append((start, self._now()))

    def around(self, name: str, function: Callable) -> Callable:
        """The function, every call of which is an occurrence of `name`."""

        def timed(*inputs: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return function(*inputs, **kwargs)

        return timed

    def milliseconds(self) -> dict[str, float]:
        """Median of every span."""
        return {
            name: statistics.median(a.elapsed_time(b) if self.cuda else 1e3 * (b - a) for a, b in spans)
            for name, spans in self.spans.items()
        }


class Trainer:
    """Networks, optimizer and batch of one variant, and its training step."""

    def __init__(self, args: argparse.Namespace, device: torch.device, variant: str):
        self.device, self.variant = device, variant
        self.dtype = getattr(torch, args.dtype)
        self.step, self.parameters = make_step(args, device, variant)
        self.batch = make_batch(args, self.step)
        self.module: nn.Module = self.step
        self.marks: Marks | None = None
        fused = variant != "plain" and device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=2e-5, weight_decay=1e-2, **({"fused": True} if fused else {})
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.count = 0

    def distribute(self) -> None:
        """Share the step with the other ranks."""
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        self.module = nn.parallel.DistributedDataParallel(
            self.step,
            device_ids=device_ids,
            bucket_cap_mb=250 if "buckets" in self.variant else None,
            gradient_as_bucket_view=True,
            static_graph=True,
            broadcast_buffers=False,
        )
        if "compress" in self.variant:
            self.module.register_comm_hook(None, bf16_compress_hook)

    def train(self) -> Tensor:
        """One step; the loss, still on the GPU."""
        marks = self.marks or Marks(torch.device("cpu"))
        batch = self.batch.to(self.device)
        if self.variant == "plain":
            self.step._texts.clear()
        with marks.span("forward"), torch.autocast(self.device.type, self.dtype, enabled=self.variant == "plain"):
            loss = self.module(batch, step=self.count, positions=[0])["loss"]
        with marks.span("backward"):
            self.scaler.scale(loss).backward()
        with marks.span("optimizer"):
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        self.count += 1
        return loss.detach()

    def measure(self, steps: int) -> dict[str, float]:
        """Seconds a step, with nobody waiting for the GPU within, and peak memory."""
        synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(steps):
                self.train()
            synchronize(self.device)
            seconds.append((time.perf_counter() - start) / steps)
        cuda = self.device.type == "cuda"
        return {
            "step_s": statistics.median(seconds),
            "best_s": min(seconds),
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else float("nan"),
            "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if cuda else float("nan"),
        }

    def phases(self, steps: int) -> dict[str, float]:
        """Milliseconds of the phases on the GPU's clock; render, condition and encode come before the networks."""
        self.marks = marks = Marks(self.device)
        parts = {"render": "render_labels", "condition": "encode_condition", "encode": "encode_images"}
        for name, method in parts.items():
            setattr(self.step, method, marks.around(name, getattr(self.step, method)))
        try:
            for _ in range(steps):
                self.train()
            synchronize(self.device)
        finally:
            self.marks = None
            for method in parts.values():
                delattr(self.step, method)
        phases = marks.milliseconds()
        phases["forward"] -= sum(phases[name] for name in parts)
        return phases

    def render_ms(self, times: int = 20) -> float:
        """Milliseconds of rendering alone, one after another."""
        batch = self.batch.to(self.device)
        self.step.render_labels(batch)
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(times):
            self.step.render_labels(batch)
        synchronize(self.device)
        return 1e3 * (time.perf_counter() - start) / times

    def first_gradients(self) -> tuple[float, dict[str, Tensor]]:
        """Loss of step 0 and some of its gradients, before anything is learnt."""
        batch = self.batch.to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.variant == "plain"):
            loss = self.module(batch, step=0, positions=[0])["loss"]
        self.scaler.scale(loss).backward()
        scale = self.scaler.get_scale()
        last = len(self.step.unet.up_blocks) - 1
        wanted = [name.format(last=last) for name in COMPARED]
        kept = {n: p.grad.float().cpu() / scale for n, p in self.parameters.items() if n in wanted}
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item(), kept

    def waits(self) -> list[str]:
        """Where in a step the CPU waits for the GPU: file:line of the call in our code or a library's."""
        if self.device.type != "cuda":
            return []
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found = [w for w in caught if "synchroniz" in str(w.message)]
        return ["/".join(Path(w.filename).parts[-3:]) + f":{w.lineno}" for w in found]

    def profile(self) -> dict[str, Any]:
        """Milliseconds of kernels a step by kind, and the longest kernels."""
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as torch_profile

        with torch_profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(2):
                self.train()
            synchronize(self.device)
        kinds: dict[str, float] = defaultdict(float)
        kernels = []
        for event in profiler.key_averages():
            milliseconds = event.device_time_total / 1e3 / 2
            kinds[kind_of(event.key)] += milliseconds
            kernels.append((milliseconds, event.count / 2, event.key[:300]))
        kernels.sort(reverse=True)
        return {"ms_a_step": dict(kinds), "kernels": kernels[:60]}


def count_flops(trainer: Trainer) -> dict[str, float]:
    """TFLOP of a step by kind."""
    by_kind: dict[str, float] = defaultdict(float)
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    for operator, flops in counter.get_flop_counts()["Global"].items():
        name = str(operator)
        kind = "attention" if "attention" in name else "convolution" if "conv" in name else "linear"
        by_kind[kind] += flops / 1e12
    return {**by_kind, "total": sum(by_kind.values())}
