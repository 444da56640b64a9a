"""Perception models trained on the street world in minutes, and compared. The plan is in docs/perception.md.

    torchrun --nproc_per_node 4 benchmarks/perception.py --output results
    torchrun --nproc_per_node 1 benchmarks/perception.py --arms 4f --output results
    torchrun --nproc_per_node 4 benchmarks/perception.py --model labels2d_small --output results
    python benchmarks/perception.py --smoke --output smoke      # a minute or two on a CPU, means nothing

Every arm trains on one GPU, all for the same number of steps on the same drives in the same order. `--output` gets
report.json, report.md and the curves, a folder for each arm (curve, weights in half precision, counts of every scene),
the weights of the arm that is best on development scenes, and a few predictions as npz. An arm that is finished there
is not trained again. All of it is bounded by `--seconds`.
"""

import argparse
from pathlib import Path

from run_arguments import add_run_arguments, with_workers

# The comparisons: frames a sample, and what is learnt from 2D labels.
FRAMES = "8f,4f,1f,4f_accumulated"
LABELS_2D = "trunk_3d,volume_2d_flow,splatting,renderocc,volume_2d"  # in this order two GPUs have as much to do


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--output", type=Path, required=True, help="folder of the results")
    p.add_argument("--model", default="sparseocc_small", help="a row of perception_models.MODELS")
    p.add_argument("--arms", help="rows of perception_models.ARMS, with commas; default: the model's")
    p.add_argument("--seconds", type=float, default=540, help="for everything")
    p.add_argument("--drive_seconds", type=float, default=85, help="to make training drives, workers started")
    p.add_argument(
        "--levels", help="of what is held out, with commas: val and any of perception_run.LEVELS; default: all"
    )
    p.add_argument("--scenes", type=int, default=48, help="held-out scenes of each level")
    p.add_argument("--training_scenes", type=int, help="at most so many training scenes")
    p.add_argument("--key_frames", type=int, default=20, help="of a training drive")
    p.add_argument("--exam_frames", type=int, default=12, help="key frames of a held-out drive")
    p.add_argument("--scored", default="7,11", help="its key frames that are scored, with commas")
    p.add_argument("--batch", type=int, default=8, help="samples a step")
    p.add_argument("--learning_rate", type=float, help="default: the best of --rates in a short trial")
    p.add_argument("--rates", default="1e-3,2e-3,3e-3,5e-3", help="learning rates that are tried, with commas")
    p.add_argument("--trial_steps", type=int, default=100, help="of each of them")
    p.add_argument("--train_steps", type=int, help="steps of every arm; default: as many as the time allows")
    p.add_argument("--seed", type=int, default=0, help="of the training world, the weights and the order")
    add_run_arguments(p)
    return p


def main(argv: list[str] | None = None) -> dict | None:
    args = with_workers(parser().parse_args(argv))
    if args.arms is None:
        args.arms = LABELS_2D if args.model.startswith("labels2d") else FRAMES
    from perception_run import DEVELOPMENT, LEVELS, run

    args.levels = args.levels.split(",") if args.levels else [*LEVELS]
    if unknown := set(args.levels) - set(LEVELS):
        raise SystemExit(f"unknown levels {sorted(unknown)}; known: {', '.join(LEVELS)}")
    if DEVELOPMENT not in args.levels:
        raise SystemExit(f"--levels needs {DEVELOPMENT}: the threshold is chosen there")
    args.scored = tuple(int(number) for number in args.scored.split(","))
    if args.smoke:
        args.model = f"{args.model.rpartition('_')[0]}_tiny"
        args.scenes, args.workers, args.resamples, args.batch = 2, 0, 20, 2
        args.training_scenes, args.key_frames, args.exam_frames, args.scored = 2, 2, 2, (1,)
        args.train_steps, args.seconds = args.train_steps or 4, 1e6
        args.rates, args.trial_steps = "1e-3,2e-3", 2
    args.split = "test"
    if max(args.scored) >= args.exam_frames:
        raise SystemExit(f"key frame {max(args.scored)} cannot be scored in drives of {args.exam_frames}")
    return run(args)


if __name__ == "__main__":
    main()
