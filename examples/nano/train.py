"""All of syntheocc-nano in one job: frames, VAE, diffusion, export, sheets to look at.

    torchrun --standalone --nproc_per_node 4 examples/nano/train.py --output results    # ~11.5 minutes on four H200
    python examples/nano/train.py --smoke --output outputs/nano-smoke                   # a minute on a CPU
    torchrun ... examples/nano/train.py --init ckp/syntheocc-nano --first_scene 3000 ...    # better, on new scenes
    torchrun ... examples/nano/train.py --resume --output results      # go on where a job with --keep_data ended

Every stage runs for the seconds that it is given. Every rank makes its own frames and keeps them, and their latents,
in the memory of its GPU. Writes below --output: the pipeline folder packed into .tar files of at most 15 MiB (or, with
--unpacked, the folder itself), PNG sheets and log.txt; below --work (kept, to resume from): tokenizer/, vae/,
checkpoints/, pipeline/.
"""

import argparse
from pathlib import Path


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--work", type=Path, help="folder to resume from (default: <output>/work)")
    parser.add_argument("--resume", action="store_true", help="keep the work folder's VAE and continue its diffusion")
    parser.add_argument("--init", type=Path, help="pipeline folder whose networks are trained further, VAE included")
    parser.add_argument("--keep_data", action="store_true", help="write the latents and conditions, for --resume")
    parser.add_argument("--data", type=Path, help="where to (default: <work>/data); gigabytes, /dev/shm is fast")
    parser.add_argument("--render_seconds", type=float, default=100, help="time to make frames")
    parser.add_argument("--vae_seconds", type=float, default=120)
    parser.add_argument("--seconds", type=float, default=390, help="time of the diffusion training")
    parser.add_argument("--frames_per_scene", type=int, default=12)
    parser.add_argument("--first_scene", type=int, default=0, help="first scene of the training split that is used")
    parser.add_argument("--val_scenes", type=int, default=12, help="held-out scenes for sheets and the VAE's figures")
    parser.add_argument("--latent_channels", type=int, default=8)
    parser.add_argument("--vae_batch", type=int, default=16, help="pictures a rank and step")
    parser.add_argument("--vae_learning_rate", type=float, default=1e-3)
    parser.add_argument("--adversarial_from", type=float, default=0.6, help="share of the VAE's time; 2: never")
    parser.add_argument("--vae_compile", action="store_true")
    parser.add_argument("--batch", type=int, default=64, help="samples of six views a rank and step")
    parser.add_argument("--learning_rate", type=float, default=8e-4)
    parser.add_argument("--ema_decay", type=float, default=0.998)
    parser.add_argument("--layout", choices=("fused", "compiled", "recorded", "autocast"), default="fused")
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


def main(argv: list[str] | None = None) -> None:
    """Parse the flags, then import the rest: the processes that make scenes import this file too."""
    args = arguments(argv)
    from chain import run

    run(args)


if __name__ == "__main__":
    main()
