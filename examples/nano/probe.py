"""Before the real run: how fast are its stages on one GPU, and what do 4 and 8 latent channels give?

    python examples/nano/probe.py --output results             # about 4 minutes on one H200
    python examples/nano/probe.py --smoke --output outputs/probe

Prints frames a second and seconds of each stage of the cache, the VAE's figures on held-out frames (with a sheet of
reconstructions), and samples a second of diffusion training by layout and batch size; the same as probe.json.
"""

import argparse
import gc
import json
import time
import traceback
from pathlib import Path

import torch
from bank import Bank
from diffusion import train_diffusion
from parallel import Team, workers_for
from pictures import real_row, sheet
from tokenizer import train_tokenizer
from vae import encode_cache, reconstruct, train_vae

from syntheocc.worlds.cache import build_cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--render_seconds", type=float, default=40)
    parser.add_argument("--vae_seconds", type=float, default=45)
    parser.add_argument("--seconds", type=float, default=8, help="for each layout and batch size of the diffusion")
    parser.add_argument("--limit_seconds", type=float, default=270, help="begin nothing new after so long")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    team, size, image_size, workers, steps = Team(args.device), "nano", (400, 224), workers_for(1), None
    if args.smoke:
        args.render_seconds, size, image_size, workers, steps = 0.0, "tiny", (80, 48), 0, 2
    if team.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    report: dict = {"device": str(team.device), "torch": torch.__version__}

    def save() -> None:
        (args.output / "probe.json").write_text(json.dumps(report, indent=1))

    timings: dict[str, float] = {}
    settings = {"device": team.device, "workers": workers, "image_size": image_size}
    cache = build_cache("train", range(6000), 16, seconds=args.render_seconds, timings=timings, **settings)
    settings["workers"] = 0
    held_out = build_cache("val", range(1 if args.smoke else 8), 1, **settings)
    report["cache"] = timings | {"frames": len(cache), "frames_per_second": len(cache) / timings["total"]}
    report["cache"] |= {f"ms_per_frame_{k}": 1e3 * v / len(cache) for k, v in timings.items()}
    report["cache"]["bytes_held"] = torch.cuda.memory_allocated() if team.device.type == "cuda" else 0
    if team.device.type == "cuda":
        report["cache"]["bytes_used_on_device"] = torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0]
    team.log(f"cache {report['cache']}")
    save()

    rows = [real_row(f"real {i}", held_out.images[i]) for i in range(min(3, len(held_out)))]
    variants = {
        "4 channels": {"latent_channels": 4, "adversarial_from": None},
        "8 channels": {"latent_channels": 8, "adversarial_from": None},
        "8 channels, critic": {"latent_channels": 8, "adversarial_from": 0.4},
    }
    vae = None
    for name, variant in variants.items():
        began = time.perf_counter()
        try:
            batch = 2 if args.smoke else 16
            vae = train_vae(team, cache, args.vae_seconds, size=size, batch_size=batch, max_steps=steps, **variant)
            made, figures = reconstruct(vae, held_out.images)
            report[name] = figures | {"seconds": time.perf_counter() - began}
            rows += [real_row(name, made[i]) for i in range(min(3, len(held_out)))]
            sheet(rows, args.output / "reconstructions.png")
        except Exception:
            report[name] = traceback.format_exc()
        team.log(f"VAE {name}: {report[name]}")
        save()
    if vae is None:
        return
    began = time.perf_counter()
    bank = Bank.of(cache, encode_cache(vae, cache.images))
    report["encode_ms_per_frame"] = 1e3 * (time.perf_counter() - began) / len(cache)
    tokenizer = train_tokenizer()
    choices = [
        ("fused", 16),
        ("fused", 32),
        ("fused", 64),
        ("recorded", 32),
        ("recorded", 64),
        ("autocast", 32),
        ("compiled", 32),
    ]
    for layout, batch in choices[:1] if args.smoke else choices:
        name = f"diffusion {layout} {batch}"
        if time.perf_counter() - team.began > args.limit_seconds:
            break
        report[name] = _throughput(team, bank, tokenizer, args.seconds, size, layout, batch, steps)
        team.log(f"{name}: {report[name]}")
        save()


def _throughput(team, bank, tokenizer, seconds, size, layout, batch, steps) -> dict | str:
    """Samples a second over the last stretch of a short training, warm-up left out, and peak memory."""
    gc.collect()
    if team.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if team.device.type == "cuda" else 0
    marks: list[float] = []
    average = team.average_gradients

    def mark(parameters) -> None:
        marks.append(time.perf_counter())
        average(parameters)

    team.average_gradients = mark  # once a step
    began = time.perf_counter()
    try:
        batch = min(batch, 2) if steps else batch
        train_diffusion(team, bank, tokenizer, seconds, size=size, batch_size=batch, layout=layout, max_steps=steps)
    except Exception:
        return traceback.format_exc()
    finally:
        del team.average_gradients
    peak = (torch.cuda.max_memory_allocated() - held) / 1e9 if team.device.type == "cuda" else 0.0
    half = len(marks) // 2
    rate = batch * (len(marks) - 1 - half) / max(marks[-1] - marks[half], 1e-9)
    first = marks[0] - began
    return {"samples_per_second": rate, "steps": len(marks), "first_step_s": first, "peak_gb": peak}


if __name__ == "__main__":
    main()
