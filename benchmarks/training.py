"""Speed and memory of a training step at Stable Diffusion 2.1 size: six views of 448x800, one sample a GPU.

    python benchmarks/training.py                                    # all variants on one GPU
    torchrun --standalone --nproc-per-node 2 benchmarks/training.py --variants fast   # and what a second GPU adds
    python benchmarks/training.py --smoke                            # does the script work? tiny, on the CPU

A step is: the batch to the GPU from pinned memory, MPIs rendered, images encoded by the VAE, texts looked up,
ControlNet and UNet forward, backward, gradients clipped, AdamW. Trained are the ControlNet (363 M) and the cross-view
layers (62 M of the UNet's 928 M), EMA off. Weights are random, zero layers included, so that every branch counts.
Variants:

* plain: as one writes it with diffusers: autocast, frozen weights in half precision, NCHW, foreach AdamW, the text
  encoded at every step;
* fast: `prepare_for_training`; fast+checkpoint: with gradient checkpointing; fast+checkpoint-transformers: of the
  transformer blocks only; fast+autotune: cuDNN measures its algorithms; fast+compress: gradients travel between GPUs
  as bfloat16; fast+buckets: in pieces of 250 MB instead of 25; fast+graphs: both networks recorded and replayed;
* blocks: the transformer blocks compiled; whole: both networks compiled. Compiling takes minutes.

What has to be done (FlopCounterMode, TFLOP): VAE encoder 9.3, ControlNet 2.4, UNet 10.2, backward 18.9 (gradients of
the inputs of both networks, and of the weights of what is trained) and 2.3 for the scores that attention computes
again in it: 43.1. At the 370 TFLOP/s that the denoising networks reach on an H200 (benchmarks/generation.py) this is
0.117 s, the target 0.16 s. What has to be moved: a tensor at full resolution [6, 5600, 320] is 21.5 MB, a transformer
block there keeps about 24 of them for the backward, 0.5 GB; there are five in the UNet and two in the ControlNet, as
many at each half resolution with half the bytes: 6 GB with ResNets' inputs 8. Weights: frozen ones in half precision
2.6 GB, masters, gradients and AdamW's two moments 425 M x 16 bytes = 6.8 GB, their working copy 0.85 GB. Together 18
GB. AdamW reads and writes 425 M x 28 bytes = 12 GB, 3 ms; the cast of the masters and of their gradients 5 GB, 1.3
ms.

Prints seconds a step (median), TFLOP/s, peak memory, phases, and the difference of loss and gradients to plain; writes
all of it as JSON with the chip, the commit and the command.
"""

import argparse
import gc
import json
import os
import shlex
import signal
import statistics
import sys
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import reporting
import torch
from diffusers import DDPMScheduler
from generation import kind_of, sd21_components, synchronize, wake_zero_layers
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.utils.flop_counter import FlopCounterMode

from syntheocc import MPIControlNetModel
from syntheocc.engine.ranks import Ranks
from syntheocc.models.presets import tiny_components
from syntheocc.training.acceleration import prepare_for_training, trainable_parameters
from syntheocc.training.batch import TrainingBatch
from syntheocc.training.dropout import ConditionDropout
from syntheocc.training.step import SyntheOccStep
from syntheocc.worlds.street import example_street

VARIANTS = ("plain", "fast", "fast+checkpoint", "fast+checkpoint-transformers", "fast+autotune", "blocks")
TARGET_SECONDS, TARGET_PEAK_GB, TARGET_CHECKPOINT_GB = 0.16, 20.0, 14.0
TARGET_RENDER_SHARE, TARGET_SCALING = 0.01, 0.95
PROMPT = "show a photorealistic street view image"
PHASES = ("render", "condition", "encode", "forward", "backward", "optimizer")
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


def run_variant(
    args: argparse.Namespace, device: torch.device, variant: str, reference: dict | None
) -> dict[str, Any]:
    """Every figure of one variant; "gradients" are for the comparison only."""
    torch.backends.cudnn.benchmark = "autotune" in variant
    start = time.perf_counter()
    trainer = Trainer(args, device, variant)
    synchronize(device)
    row: dict[str, Any] = {"variant": variant, "build_s": time.perf_counter() - start}
    start = time.perf_counter()
    loss, gradients = trainer.first_gradients()
    synchronize(device)
    row["first_step_s"] = time.perf_counter() - start
    for _ in range(args.warm_up):
        trainer.train()
    row |= trainer.measure(args.steps)
    row["phases_ms"] = trainer.phases(args.steps)
    row["render_alone_ms"] = trainer.render_ms()
    row["waits"] = trainer.waits()
    row["trained_parameters"] = sum(p.numel() for p in trainer.parameters.values())
    row["loss"] = loss
    if reference is not None:
        differences = {
            name: (gradient - reference["gradients"][name]).norm() / reference["gradients"][name].norm()
            for name, gradient in gradients.items()
        }
        row["loss_difference"] = abs(loss - reference["loss"]) / reference["loss"]
        row["gradient_differences"] = {name: float(value) for name, value in differences.items()}
    if not args.no_profile and device.type == "cuda":
        row["profile"] = trainer.profile()
        row["tflop"] = count_flops(trainer)  # last: compiled code gives way to what counts
    row["gradients"] = gradients
    return row


def run_ranks(args: argparse.Namespace, device: torch.device, variant: str, ranks: Ranks) -> dict[str, Any]:
    """One variant alone on every GPU, and shared by all: how much of the GPUs' throughput is left."""
    import torch.distributed as dist

    trainer = Trainer(args, device, variant)
    figures = {}
    for name in ("alone", "together"):
        if name == "together":
            trainer.distribute()
        for _ in range(args.warm_up):
            trainer.train()
        dist.barrier()
        figures[name] = trainer.measure(args.steps)
    slowest = torch.tensor([figures[name]["step_s"] for name in ("alone", "together")], device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    alone, together = slowest.tolist()
    return {
        "variant": f"{variant} x{ranks.world}",
        **figures["together"],
        "step_s": together,
        "alone_s": alone,
        "alone_peak_gb": figures["alone"]["peak_gb"],
        "scaling": alone / together,
    }


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError after so many seconds: a variant that compiles too long must not cost the others' figures."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def print_row(row: dict[str, Any]) -> None:
    print(f"{row['variant']}: {row['step_s']:.4f} s a step, peak {row['peak_gb']:.2f} GB", flush=True)


def print_report(report: dict[str, Any]) -> None:
    print(f"\n{report['chip']}, torch {report['torch']}, {report['settings']}")
    print(f"{'':30}{'step':>9}{'best':>9}{'peak':>9}{'reserved':>10}{'TFLOP/s':>9}{'first':>8}"
          + "".join(f"{name:>11}" for name in PHASES) + f"{'render*':>9}{'loss':>9}{'gradient':>9}")  # fmt: skip
    for row in report["rows"]:
        if "scaling" in row:
            continue
        flops = row.get("tflop", {}).get("total", float("nan"))
        gradient = max(row.get("gradient_differences", {"": float("nan")}).values())
        print(
            f"{row['variant']:30}{row['step_s']:8.4f}s{row['best_s']:8.4f}s{row['peak_gb']:7.2f}GB"
            f"{row['reserved_gb']:8.2f}GB{flops / row['step_s']:9.0f}{row['first_step_s']:7.1f}s"
            + "".join(f"{row['phases_ms'][name]:9.2f}ms" for name in PHASES)
            + f"{row['render_alone_ms']:7.2f}ms{row.get('loss_difference', float('nan')):9.1e}{gradient:9.1e}"
        )
    for row in report["rows"]:
        if "scaling" in row:
            print(
                f"{row['variant']:30}{row['step_s']:8.4f}s, alone {row['alone_s']:.4f}s: {100 * row['scaling']:.1f} % "
                f"of the GPUs' throughput (target {100 * TARGET_SCALING:.0f}), peak {row['peak_gb']:.2f} GB"
            )
            continue
        print(f"{row['variant']}: the CPU waits {len(row['waits'])} times a step {sorted(set(row['waits']))}")
        if "profile" in row:
            kinds = sorted(row["profile"]["ms_a_step"].items(), key=lambda item: -item[1])
            print(f"{row['variant']}, ms of kernels: " + ", ".join(f"{kind} {value:.1f}" for kind, value in kinds))
    print(f"targets: {TARGET_SECONDS} s, {TARGET_PEAK_GB:.0f} GB ({TARGET_CHECKPOINT_GB:.0f} GB with checkpointing), "
          f"render {100 * TARGET_RENDER_SHARE:.0f} %. render*: alone, without the rest of the step")  # fmt: skip
    for name, message in report["failures"].items():
        print(f"{name} failed: {message.splitlines()[-1] if message else message}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["sd21", "tiny"], default="sd21")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--encoder", default="categorical", choices=["categorical", "scalar"])
    parser.add_argument("--height", type=int, default=448)
    parser.add_argument("--width", type=int, default=800)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=10, help="a measurement; there are three")
    parser.add_argument("--warm_up", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=230, help="for all variants; late ones are left out")
    parser.add_argument("--no_profile", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and pictures, two steps")
    parser.add_argument("--output", type=Path, help="folder of the JSON file (default: benchmarks/results)")
    parser.add_argument("--commit", help="commit to record where the checkout has no git")
    args = parser.parse_args()
    if args.smoke:
        args.size, args.height, args.width, args.steps, args.warm_up = "tiny", 32, 64, 2, 1
    return args


def main() -> None:
    args = parse()
    ranks = Ranks.from_environment()
    device = torch.device(args.device, ranks.local_rank) if args.device == "cuda" else torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    if ranks.world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    report: dict[str, Any] = {
        "benchmark": "training",
        "chip": torch.cuda.get_device_name() if device.type == "cuda" else reporting.cpu_name(),
        "torch": torch.__version__,
        "commit": args.commit or reporting.commit(),
        "command": shlex.join(reporting.without(["python", *sys.argv], ("--output", "--commit"))),
        "settings": {name: getattr(args, name) for name in ("size", "dtype", "encoder", "height", "width", "steps")},
        "rows": [],
        "failures": {},
    }
    output = args.output or Path(__file__).parent / "results"
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"training-{device.type}{f'-x{ranks.world}' if ranks.world > 1 else ''}.json"
    deadline = time.monotonic() + args.seconds
    reference = None
    for variant in args.variants:
        try:
            with time_limit(deadline - time.monotonic()):
                if ranks.world > 1:
                    row = run_ranks(args, device, variant, ranks)
                else:
                    row = run_variant(args, device, variant, reference)
                    gradients = row.pop("gradients")
                    if reference is None:
                        reference = {"loss": row["loss"], "gradients": gradients}
            report["rows"].append(row)
            if ranks.rank == 0:
                print_row(row)
        except Exception as error:  # a variant that fails must not cost the others their figures
            report["failures"][variant] = f"{type(error).__name__}: {error}"
            print(f"{variant} failed", flush=True)
            traceback.print_exc()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        torch._dynamo.reset()
        if ranks.rank == 0:
            path.write_text(json.dumps(report, indent=1))
    if ranks.rank == 0:
        print_report(report)
        print(f"wrote {path}")
    if ranks.world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    main()
