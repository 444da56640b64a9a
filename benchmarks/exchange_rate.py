"""What is a generated frame worth? Perception models trained from scratch on fewer real frames and on generated ones.

    torchrun --nproc_per_node 4 benchmarks/exchange_rate.py --output results
    python benchmarks/exchange_rate.py --smoke --output smoke      # two minutes on a CPU, means nothing

Arms: 10, 30 and 100 % of the training scenes, each alone and with one or two generated frames for every real one; at
10 % also frames generated from edited and from new occupancy, and three seeds. All arms have the same network, number
of steps and exams. What is measured, and why so: docs/loop.md. `--output` gets report.json, report.md and a folder for
every arm and seed; one that is finished there is not trained again. All of it is bounded by `--seconds`.
"""

import argparse
from pathlib import Path

from controllability import size
from run_arguments import add_run_arguments, with_workers


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--output", type=Path, required=True, help="folder of the results")
    p.add_argument("--model", default="ckp/syntheocc-nano", help='pipeline folder; "tiny" has random weights')
    p.add_argument("--perception", default="nano", help="SparseOcc preset that is trained; it sees single frames")
    p.add_argument("--arms", help="with commas, e.g. 10,10+1x,30; default: all of exchange_run.ARMS")
    p.add_argument("--seeds", type=int, default=3, help="seeds of the arms at 10 %%")
    p.add_argument("--seconds", type=float, default=555, help="for everything")
    p.add_argument("--frame_seconds", type=float, default=80, help="to make training scenes, workers started")
    p.add_argument("--training_scenes", type=int, default=200, help="at most so many, all ranks together")
    p.add_argument("--frames_per_scene", type=int, default=8, help="key frames of a training scene")
    p.add_argument("--scenes", type=int, default=40, help="held-out scenes of each level")
    p.add_argument("--batch", type=int, default=8, help="samples a step")
    p.add_argument("--learning_rate", type=float, help="default: the best of --rates in a short trial")
    p.add_argument("--rates", default="1e-3,2e-3,3e-3,5e-3", help="learning rates that are tried, with commas")
    p.add_argument("--trial_steps", type=int, default=80, help="of each of them")
    p.add_argument("--train_steps", type=int, help="steps of every arm; default: as many as the time allows")
    p.add_argument("--image_size", type=size, default=(400, 224), help="WIDTHxHEIGHT of all pictures")
    p.add_argument("--steps", type=int, default=12, help="denoising steps")
    p.add_argument("--guidance_scale", type=float, default=2.0, help="weight of the text")
    p.add_argument("--mpi_guidance_scale", type=float, default=1.0, help="weight of the MPI")
    p.add_argument("--draw_batch", type=int, default=16, help="frames drawn at a time")
    p.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the generator")
    p.add_argument("--seed", type=int, default=0, help="of the training world, the weights and the order")
    add_run_arguments(p)
    return p


def main(argv: list[str] | None = None) -> dict | None:
    args = with_workers(parser().parse_args(argv))
    from exchange_run import ARMS, run

    args.arms = args.arms.split(",") if args.arms else [*ARMS]
    if unknown := set(args.arms) - set(ARMS):
        raise SystemExit(f"unknown arms {sorted(unknown)}; known: {', '.join(ARMS)}")
    args.split = "test"
    if args.smoke:
        args.arms = [name for name in args.arms if name in ("10", "10+1x edited", "10+1x new", "30+2x", "30", "100")]
        args.model, args.perception, args.image_size = "tiny", "tiny", (96, 72)
        args.scenes, args.training_scenes, args.frames_per_scene, args.seeds = 2, 1, 1, 1
        args.steps, args.workers, args.resamples, args.batch, args.draw_batch = 1, 0, 20, 2, 2
        args.train_steps, args.seconds = args.train_steps or 2, 1e6
        args.rates, args.trial_steps = "1e-3", 2
    return run(args)


if __name__ == "__main__":
    main()
