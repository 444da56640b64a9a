"""All of syntheocc-nano in one job: frames, VAE, diffusion, export, sheets to look at.

    torchrun --standalone --nproc_per_node 4 examples/nano/train.py --output results    # ~9 minutes on four H200
    python examples/nano/train.py --smoke --output outputs/nano-smoke                   # a minute on a CPU
    torchrun ... examples/nano/train.py --resume --output results      # go on where a job with --keep_data ended

Every stage runs for the seconds that it is given. Every rank makes its own frames and keeps them, and their latents,
in the memory of its GPU. Writes below --output: the pipeline folder packed into .tar files of at most 15 MiB (or, with
--unpacked, the folder itself), PNG sheets and log.txt; below --work (kept, to resume from): tokenizer/, vae/,
checkpoints/, pipeline/.
"""

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


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--work", type=Path, help="folder to resume from (default: <output>/work)")
    parser.add_argument("--resume", action="store_true", help="keep the work folder's VAE and continue its diffusion")
    parser.add_argument("--keep_data", action="store_true", help="write the latents and conditions, for --resume")
    parser.add_argument("--data", type=Path, help="where to (default: <work>/data); gigabytes, /dev/shm is fast")
    parser.add_argument("--render_seconds", type=float, default=90, help="time to make frames")
    parser.add_argument("--vae_seconds", type=float, default=110)
    parser.add_argument("--seconds", type=float, default=290, help="time of the diffusion training")
    parser.add_argument("--frames_per_scene", type=int, default=16)
    parser.add_argument("--first_scene", type=int, default=0, help="first scene of the training split that is used")
    parser.add_argument("--val_scenes", type=int, default=12, help="held-out scenes for sheets and the VAE's figures")
    parser.add_argument("--latent_channels", type=int, default=8)
    parser.add_argument("--vae_batch", type=int, default=8, help="pictures a rank and step")
    parser.add_argument("--vae_learning_rate", type=float, default=8e-4)
    parser.add_argument("--adversarial_from", type=float, default=0.55, help="share of the VAE's time; 2: never")
    parser.add_argument("--vae_compile", action="store_true")
    parser.add_argument("--batch", type=int, default=32, help="samples of six views a rank and step")
    parser.add_argument("--learning_rate", type=float, default=8e-4)
    parser.add_argument("--ema_decay", type=float, default=0.998)
    parser.add_argument("--layout", choices=("fused", "compiled", "autocast"), default="fused")
    parser.add_argument("--sampling_steps", type=int, default=12)
    parser.add_argument("--guidance_scale", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes a rank that make scenes (default: cores / ranks - 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--unpacked", action="store_true", help="leave the pipeline as a folder")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    args = parser.parse_args(argv)
    args.work = args.work or args.output / "work"
    args.data = args.data or args.work / "data"
    args.size, args.image_size, args.max_steps = "nano", (400, 224), None
    if args.smoke:
        args.size, args.image_size, args.max_steps = "tiny", (80, 48), 3
        args.frames_per_scene, args.val_scenes, args.batch, args.vae_batch = 2, 1, 2, 2
        args.render_seconds, args.vae_seconds, args.seconds, args.sampling_steps = 0.0, 60.0, 60.0, 2
        args.workers = 0 if args.workers is None else args.workers
    return args


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


def trained_vae(team: Team, args: argparse.Namespace, train: FrameCache, held_out: FrameCache) -> AutoencoderKL:
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
        seed=args.seed,
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


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    team = Team(args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    if team.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    tokenizer = train_tokenizer()
    if team.is_main:
        tokenizer.save_pretrained(args.work / "tokenizer")
    saved = args.data / f"rank{team.rank}of{team.world}"
    if args.resume:
        vae = AutoencoderKL.from_pretrained(args.work / "vae")
        bank, held_out = Bank.load(saved, team.device), FrameCache.load(args.work / "held_out", team.device)
        team.log(f"{len(bank)} frames of rank 0 read from {args.data}")
    else:
        train, held_out = frames(team, args)
        vae = trained_vae(team, args, train, held_out)
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
        seed=args.seed,
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


if __name__ == "__main__":
    main()
