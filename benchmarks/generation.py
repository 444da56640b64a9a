"""Speed of a generation at Stable Diffusion 2.1 size: six views of 448x800, 20 UniPC steps with guidance, one GPU.

    python benchmarks/generation.py                           # all variants, about four minutes on an H200
    python benchmarks/generation.py --variants fast           # without the compile time
    python benchmarks/generation.py --size tiny --device cpu  # does the script work?

Weights are random and made on the GPU, zero layers included, so that every branch counts in the comparison. All
variants of denoise + decode start from the same noise:

* plain: the loop as one writes it first; the condition is encoded at every step, torch chooses all back-ends;
* fast: the pipeline with `enable_fast_path()`;
* fast+graph: the same with `cuda_graph=True`;
* compiled, compiled+graph: the same with `compile=True`.

Prints seconds (median), TFLOP/s, peak memory, the difference to plain, and where the time of a step goes by kind of
kernel; writes all of it as JSON with the chip, the commit and the command.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reporting
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UniPCMultistepScheduler
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from syntheocc import MPIControlNetModel, MultiviewUNet2DConditionModel, SyntheOccPipeline
from syntheocc.models.presets import caption_tokenizer, tiny_components
from syntheocc.pipelines.guidance import Guidance
from syntheocc.worlds.street import example_street

TARGETS = {"fast": 1.8, "fast+graph": 1.8, "compiled": 1.45, "compiled+graph": 1.45}
TARGET_PEAK_GB = 9.0
PROMPT = "show a photorealistic street view image"
# First match wins. Names of cuDNN, cuBLAS, flash and inductor kernels, as torch 2.11 on an H200 shows them.
KINDS = {
    "attention": ("sdpa", "flash", "fmha", "attention"),
    "layout": ("nchwtonhwc", "nhwctonchw", "transpose"),
    "convolution": ("conv", "fprop", "implicit", "winograd", "im2col"),
    "linear": ("gemm", "nvjet", "splitk", "cublas", "cutlass", "_mm"),
    "norm": ("norm", "moments", "statistics", "_normalise"),
    "copy and gather": ("copy", "cat", "index", "gather", "memcpy", "memset"),
}


def sd21_components(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """A SyntheOcc of Stable Diffusion 2.1's size with random weights, made on the device in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    tokenizer = caption_tokenizer()
    with torch.device(device):
        stock = UNet2DConditionModel(
            sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=768,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_attention_heads=16,
                num_hidden_layers=23,
                hidden_act="gelu",
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = MultiviewUNet2DConditionModel.from_unet(stock)
        controlnet = MPIControlNetModel.from_unet(stock, encoder_kind="scalar")
    torch.set_default_dtype(before)
    del stock
    scheduler = UniPCMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    parts = {"vae": vae, "text_encoder": text_encoder, "unet": unet, "controlnet": controlnet}
    return {**{k: m.to(dtype).eval() for k, m in parts.items()}, "tokenizer": tokenizer, "scheduler": scheduler}


def wake_zero_layers(*models: torch.nn.Module, seed: int = 0) -> None:
    """Give small random weights to layers that start at zero; else ControlNet and cross-view attention do nothing."""
    for model in models:
        for parameter in model.parameters():
            if not parameter.any():
                generator = torch.Generator(parameter.device).manual_seed(seed)
                torch.nn.init.normal_(parameter, std=0.01, generator=generator)


class Job:
    """One generation's inputs, and its plain and its pipeline way through the networks."""

    def __init__(self, pipe: SyntheOccPipeline, height: int, width: int, steps: int, guidance: Guidance):
        self.pipe, self.guidance, self.steps = pipe, guidance, steps
        street = example_street(seed=0)
        conditions, *_ = pipe.check_inputs(
            prompt=PROMPT, occupancy=street.grid, cameras=street.rig, height=height, width=width
        )
        self.neighbors = conditions.neighbors()
        self.mpi = pipe.prepare_mpi(conditions, height, width)
        views = conditions.num_views
        self.text = pipe.encode_prompt(PROMPT, 1, views)
        self.negative = pipe.encode_prompt("", 1, views)
        generator = torch.Generator(pipe.device).manual_seed(0)
        self.noise = pipe.prepare_latents((1, 1, views), height, width, pipe.unet.dtype, generator)

    def plain(self) -> Tensor:
        """Latents, by the loop as one writes it first."""
        pipe, latents = self.pipe, self.noise
        text = torch.cat([self.negative, self.text])
        labels, nearest = self.mpi.labels.flatten(0, 1), self.mpi.nearest.flatten(0, 1)
        labels, nearest = torch.cat([labels] * 2), torch.cat([nearest] * 2)
        pipe.scheduler.set_timesteps(self.steps, device=pipe.device)
        for t in pipe.scheduler.timesteps:
            sample = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            down, mid = pipe.controlnet(sample, t, text, labels, nearest=nearest, return_dict=False)
            noise = pipe.unet(
                sample,
                t,
                text,
                cross_attention_kwargs={"neighbors": self.neighbors},
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
                return_dict=False,
            )[0]
            unconditional, conditional = noise.chunk(2)
            noise = unconditional + self.guidance.text * (conditional - unconditional)
            latents = pipe.scheduler.step(noise, t, latents, return_dict=False)[0]
        return latents

    def plain_decode(self, latents: Tensor) -> Tensor:
        """Pictures in -1..1, all at once."""
        return self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor, return_dict=False)[0]

    def pipeline(self) -> Tensor:
        """Latents, by the pipeline's own methods, the encoding of the condition included."""
        pipe = self.pipe
        condition = pipe.encode_mpi(self.mpi).flatten(0, 1)
        pipe.scheduler.set_timesteps(self.steps, device=pipe.device)
        return pipe.denoise(
            self.noise,
            pipe.scheduler.timesteps,
            self.text,
            self.negative,
            condition,
            None,
            self.neighbors,
            guidance=self.guidance,
        )

    def pipeline_decode(self, latents: Tensor) -> Tensor:
        """Pictures in -1..1, as the pipeline decodes them."""
        return self.pipe.decode(latents, "pt") * 2 - 1


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(job: Job, denoise: Callable, decode: Callable, repeats: int) -> tuple[dict[str, float], Tensor, Tensor]:
    """Median seconds of denoising and decoding, seconds of the first call, peak memory, and the results."""
    device = job.pipe.device

    def timed(function: Callable, *inputs: Tensor) -> tuple[float, Tensor]:
        synchronize(device)
        start = time.perf_counter()
        result = function(*inputs)
        synchronize(device)
        return time.perf_counter() - start, result

    first, latents = timed(denoise)
    first_decode, images = timed(decode, latents)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        denoise_s, latents = timed(denoise)
        decode_s, images = timed(decode, latents)
        seconds.append((denoise_s, decode_s, denoise_s + decode_s))
    figures = {
        **{
            name: statistics.median(column)
            for name, column in zip(("denoise_s", "decode_s", "total_s"), zip(*seconds, strict=True), strict=True)
        },
        "first_call_s": first + first_decode,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan"),
        # A recorded step's activations live in memory that is reserved for it and count only here.
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if device.type == "cuda" else float("nan"),
    }
    return figures, latents, images


def count_flops(job: Job) -> dict[str, Any]:
    """TFLOP of one step by kind, and of the decoding; counted on the plain path. Cross-view projections count once."""

    def count(run: Callable) -> dict[str, float]:
        by_kind: dict[str, float] = defaultdict(float)
        with FlopCounterMode(display=False) as counter:
            run()
        for operator, flops in counter.get_flop_counts()["Global"].items():
            name = str(operator)
            kind = "attention" if "attention" in name else "convolution" if "conv" in name else "linear"
            by_kind[kind] += flops / 1e12
        return by_kind

    steps, job.steps = job.steps, 1
    step, decode = count(job.plain), count(lambda: job.plain_decode(job.noise))
    job.steps = steps
    return {"step": {**step, "total": sum(step.values())}, "decode": sum(decode.values())}


def profile(job: Job, denoise: Callable) -> dict[str, Any]:
    """Milliseconds of kernels a step by kind, and the longest kernels, from a denoising of two steps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    cuda = job.pipe.device.type == "cuda"
    steps, job.steps = job.steps, 2
    denoise()
    with torch_profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        denoise()
        synchronize(job.pipe.device)
    job.steps = steps
    kinds: dict[str, float] = defaultdict(float)
    kernels = []
    for event in profiler.key_averages():
        milliseconds = (event.device_time_total if cuda else event.self_cpu_time_total) / 1e3 / 2
        kinds[kind_of(event.key)] += milliseconds
        kernels.append((milliseconds, event.count / 2, event.key))
    kernels.sort(reverse=True)
    return {"ms_a_step": dict(kinds), "kernels": kernels[:40]}


def kind_of(kernel: str) -> str:
    """Kind of a CUDA kernel, by its name."""
    lower = kernel.lower()
    if lower.startswith("triton_"):
        # Inductor names a kernel after all operations it stands between: a convolution's neighbour holds its name.
        return "norm" if "norm" in lower else "copy and gather" if "index" in lower else "elementwise"
    return next((kind for kind, words in KINDS.items() if any(word in lower for word in words)), "elementwise")


def relative_l2(result: Tensor, reference: Tensor) -> float:
    return float((result.double() - reference.double()).norm() / reference.double().norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("sd21", "tiny"), default="sd21")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--variants", nargs="+", default=["plain", "fast", "fast+graph", "compiled", "compiled+graph"])
    parser.add_argument("--height", type=int, default=448)
    parser.add_argument("--width", type=int, default=800)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/generation-<device>.json)")
    parser.add_argument("--commit", help="commit to record where the checkout has no git")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.manual_seed(0)
    components = sd21_components(device, dtype) if args.size == "sd21" else tiny_components(encoder_kind="scalar")
    pipe = SyntheOccPipeline(**components).to(device, dtype)
    del components
    pipe.set_progress_bar_config(disable=True)
    wake_zero_layers(pipe.unet, pipe.controlnet)
    with torch.no_grad():
        report = run_variants(pipe, args)
    report |= {
        "benchmark": "generation",
        "chip": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "commit": args.commit or reporting.commit(),
        "command": shlex.join(["python", *sys.argv]),
        "settings": {"size": args.size, "dtype": args.dtype, "views": 6, "height": args.height, "width": args.width,
                     "steps": args.steps, "guidance_scale": 7.5},
    }  # fmt: skip
    output = args.output or Path(__file__).parent / "results" / f"generation-{device.type}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1))
    print_report(report)
    print(f"wrote {output}")


def run_variants(pipe: SyntheOccPipeline, args: argparse.Namespace) -> dict[str, Any]:
    job = Job(pipe, args.height, args.width, args.steps, Guidance())
    flops = count_flops(job)
    report: dict[str, Any] = {"tflop": flops, "rows": [], "profiles": {}, "failures": {}}
    reference = None
    for name in args.variants:
        pipe.disable_fast_path()
        ways = (job.plain, job.plain_decode) if name == "plain" else (job.pipeline, job.pipeline_decode)
        try:
            if name != "plain":
                pipe.enable_fast_path(compile="compiled" in name, cuda_graph="graph" in name)
            figures, latents, images = measure(job, *ways, args.repeats)
            row = {"variant": name, **figures, "step_ms": 1e3 * figures["denoise_s"] / args.steps}
            row["tflops"] = flops["step"]["total"] * args.steps / row["denoise_s"]
            if name == "plain":
                reference = (latents, images)
            elif reference is not None:
                row["latents_difference"] = relative_l2(latents, reference[0])
                row["images_difference"] = relative_l2(images.clamp(-1, 1), reference[1].clamp(-1, 1))
                row["speedup"] = report["rows"][0]["total_s"] / row["total_s"]
            report["rows"].append(row)
            print(
                f"{name}: {row['total_s']:.3f} s, peak {row['peak_gb']:.2f} ({row['reserved_gb']:.2f} reserved) GB",
                flush=True,
            )
            if not args.no_profile:
                report["profiles"][name] = profile(job, ways[0])
        except RuntimeError as error:
            # A variant that this torch cannot compile or record must not cost the others' figures.
            report["failures"][name] = str(error)
            print(f"{name} failed: {error}", flush=True)
    return report


def print_report(report: dict[str, Any]) -> None:
    step = report["tflop"]["step"]
    print(f"\n{report['chip']}, torch {report['torch']}, {report['settings']}")
    print("TFLOP a step: " + ", ".join(f"{kind} {value:.2f}" for kind, value in step.items())
          + f"; decode {report['tflop']['decode']:.2f}")  # fmt: skip
    print(f"{'':15}{'denoise':>9}{'decode':>8}{'total':>8}{'target':>8}{'step':>9}{'TFLOP/s':>9}{'peak':>9}{'reserved':>9}"
          f"{'first':>8}{'latents':>10}{'images':>9}{'x plain':>8}")  # fmt: skip
    for row in report["rows"]:
        target = TARGETS.get(row["variant"]) if report["settings"]["size"] == "sd21" else None
        print(
            f"{row['variant']:15}{row['denoise_s']:8.3f}s{row['decode_s']:7.3f}s{row['total_s']:7.3f}s"
            f"{'' if target is None else f'{target}s':>8}{row['step_ms']:7.1f}ms{row['tflops']:9.0f}"
            f"{row['peak_gb']:7.2f}GB{row['reserved_gb']:7.2f}GB{row['first_call_s']:7.1f}s"
            f"{row.get('latents_difference', 0):10.1e}"
            f"{row.get('images_difference', 0):9.1e}{row.get('speedup', 1):8.2f}"
        )
    for name, figures in report["profiles"].items():
        kinds = sorted(figures["ms_a_step"].items(), key=lambda item: -item[1])
        print(f"{name}, ms of kernels a step: " + ", ".join(f"{kind} {value:.1f}" for kind, value in kinds))


if __name__ == "__main__":
    main()
