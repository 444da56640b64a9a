"""The stages of train.py, one after another."""

import argparse
import math
import time
from pathlib import Path

import torch
from bank import Bank
from diffusers import AutoencoderKL
from diffusion import train_diffusion
from export import export, pack
from parallel import Team, workers_for
from pictures import condition_row, draw, mpi_of, real_row, sheet
from tokenizer import train_tokenizer
from vae import encode_cache, reconstruct, train_vae

from syntheocc.pipelines import SyntheOccPipeline
from syntheocc.worlds.cache import FrameCache, build_cache


def frames(team: Team, args: argparse.Namespace) -> tuple[FrameCache, FrameCache]:
    """The rank's own training frames and held-out ones."""
    workers = workers_for(team.world) if args.workers is None else args.workers
    settings = {"seed": args.seed, "device": team.device, "workers": workers, "image_size": args.image_size}
    timings: dict[str, float] = {}
    numbers = range(args.first_scene + team.rank, 6000, team.world)
    count = args.frames_per_scene
    train = build_cache("train", numbers, count, seconds=args.render_seconds, timings=timings, **settings)
    stages = ", ".join(f"{name} {value:.0f} s" for name, value in timings.items())
    total, scenes = int(team.sum(len(train))), int(team.sum(len(set(train.scenes))))
    team.log(f"{total} training frames of {scenes} scenes ({stages} on rank 0)")
    per_rank = max(1, math.ceil(args.val_scenes / team.world))
    # Few: made here, for other processes would take longer to start.
    settings["workers"] = 0
    held_out = build_cache("val", range(team.rank, per_rank * team.world, team.world), 1, **settings)
    return train, held_out


def trained_vae(
    team: Team,
    args: argparse.Namespace,
    train: FrameCache,
    held_out: FrameCache,
    init: SyntheOccPipeline | None,
) -> AutoencoderKL:
    """The VAE; kept in the work folder with the held-out frames, writes reconstructions.png."""
    vae = train_vae(
        team,
        train,
        args.vae_seconds,
        size=args.size,
        latent_channels=args.latent_channels,
        batch_size=args.vae_batch,
        learning_rate=args.vae_learning_rate,
        adversarial_from=args.adversarial_from,
        max_steps=args.max_steps,
        compile=args.vae_compile,
        seed=args.seed + args.first_scene,
        weights=None if init is None else init.vae.state_dict(),
    )
    if team.is_main:
        vae.save_pretrained(args.work / "vae")
        held_out.save(args.work / "held_out")
    made, figures = reconstruct(vae, held_out.images)
    figures = {name: team.sum(value) / team.world for name, value in figures.items()}
    team.log("VAE on held-out frames: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    if team.is_main:
        rows = []
        for i in range(min(4, len(held_out))):
            rows += [real_row(f"real {i}", held_out.images[i]), real_row("through the VAE", made[i])]
        sheet(rows, args.output / "reconstructions.png")
    return vae


def sheets(args: argparse.Namespace, folder: Path, held_out: FrameCache, device: torch.device) -> None:
    """Draw held-out frames with the exported pipeline: by their own captions, and by other weathers and lights."""
    pipe = SyntheOccPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": args.sampling_steps, "guidance_scale": args.guidance_scale}
    size = tuple(held_out.images.shape[-2:])
    rows = []
    for i in range(min(4, len(held_out))):
        mpi = mpi_of(pipe, held_out, i)
        rows += [
            condition_row(f"condition {i}", mpi, size),
            (held_out.captions[i][:60], draw(pipe, mpi, held_out.captions[i], **settings)),
            real_row("real", held_out.images[i]),
        ]
    sheet(rows, args.output / "generated.png")
    mpi = mpi_of(pipe, held_out, 0)
    rows = [condition_row("condition", mpi, size)]
    prompts = ("show a photorealistic street view image", "a street on a clear night", "a rainy street by day")
    for prompt in (*prompts, "a foggy street by day", "a rainy night street", "a street at dusk under a clear sky"):
        rows.append((prompt, draw(pipe, mpi, prompt, **settings)))
    sheet(rows, args.output / "captions.png")
    rows = [real_row("real", held_out.images[0])]
    choices = ((8, 1.0, 1.0), (12, 1.0, 1.0), (20, 1.0, 1.0), (12, 2.0, 1.0), (12, 3.0, 1.0), (12, 2.0, 1.5))
    for steps, text, condition in choices if not args.smoke else choices[:1]:
        chosen = {"num_inference_steps": steps, "guidance_scale": text, "mpi_guidance_scale": condition}
        name = f"{steps} steps, text {text}, MPI {condition}"
        rows.append((name, draw(pipe, mpi, held_out.captions[0], **chosen)))
    sheet(rows, args.output / "settings.png")


def run(args: argparse.Namespace) -> None:
    """All stages with the flags of train.py."""
    team = Team(args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    if team.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    init = None if args.init is None else SyntheOccPipeline.from_pretrained(args.init, dtype=torch.float32)
    tokenizer = train_tokenizer() if init is None else init.tokenizer
    if team.is_main:
        tokenizer.save_pretrained(args.work / "tokenizer")
    saved = args.data / f"rank{team.rank}of{team.world}"
    if args.resume:
        vae = AutoencoderKL.from_pretrained(args.work / "vae")
        bank, held_out = Bank.load(saved, team.device), FrameCache.load(args.work / "held_out", team.device)
        team.log(f"{len(bank)} frames of rank 0 read from {args.data}")
    else:
        train, held_out = frames(team, args)
        vae = trained_vae(team, args, train, held_out, init)
        bank = Bank.of(train, encode_cache(vae, train.images))
        team.log(f"latents: deviation {float(bank.latents.float().std()):.3f}")
        del train
        if args.keep_data:
            bank.save(saved)
            team.log(f"frames of rank 0 written to {args.data}")
    components = train_diffusion(
        team,
        bank,
        tokenizer,
        args.seconds,
        size=args.size,
        batch_size=args.batch,
        learning_rate=args.learning_rate,
        ema_decay=args.ema_decay,
        max_steps=args.max_steps,
        layout=args.layout,
        folder=args.work / "checkpoints",
        resume=args.work / "checkpoints" if args.resume else None,
        init=None if init is None else init.components,
        seed=args.seed + args.first_scene,
    )
    if team.is_main:
        folder = args.output / "syntheocc-nano" if args.unpacked else args.work / "syntheocc-nano"
        export(vae, components, folder, args.image_size)
        if not args.unpacked:
            pack(folder, args.output)
        team.log(f"exported {sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) / 1e6:.1f} MB")
        began = time.perf_counter()
        sheets(args, folder, held_out, team.device)
        team.log(f"sheets drawn in {time.perf_counter() - began:.0f} s")
    team.close()
