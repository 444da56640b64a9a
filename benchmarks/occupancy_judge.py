"""A second judge: does a perception model read out of generated views the occupancy that they were generated from?

    torchrun --nproc_per_node 4 benchmarks/occupancy_judge.py --output results
    python benchmarks/occupancy_judge.py --smoke --output smoke      # a minute on a CPU, means nothing

SparseOcc, trained on real renders only, reads real, VAE-reconstructed and generated views of held-out scenes, and the
floors of controllability.py; the 2D judge of that program reads the same views. What is measured, and why so:
docs/loop.md. `--output` gets report.json, report.md and sheets of the frames on which the two judges disagree most.
All of it is bounded by `--seconds`.
"""

import argparse
from pathlib import Path

from controllability import size
from run_arguments import add_run_arguments, with_workers


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--output", type=Path, required=True, help="folder of the results")
    p.add_argument("--weights", default="ckp/sparseocc-nano", help="folder of a trained SparseOcc")
    p.add_argument("--model", default="ckp/syntheocc-nano", help='pipeline folder; "tiny" has random weights')
    p.add_argument("--judge", type=Path, default=Path("ckp/judge"), help="folder of the 2D judge")
    p.add_argument("--split", choices=("val", "test", "train"), default="val", help="val = development, test = final")
    p.add_argument("--scenes", type=int, default=200, help="held-out scenes, one scored frame each")
    p.add_argument("--seed", type=int, default=0, help="of the world's held-out split")
    p.add_argument("--training_seed", type=int, default=0, help="of the world whose training frames are a floor")
    p.add_argument("--thresholds", default="0.01,0.05,0.1,0.2,0.3,0.5", help="voxel_threshold is one of these")
    p.add_argument("--tuning_scenes", type=int, default=24, help="training-family scenes on which it is chosen")
    p.add_argument("--seconds", type=float, default=540, help="for everything")
    p.add_argument("--render_seconds", type=float, default=40, help="time to make training frames (a floor)")
    p.add_argument("--frames_per_scene", type=int, default=6, help="of training scenes")
    p.add_argument("--image_size", type=size, default=(400, 224), help="WIDTHxHEIGHT of the views")
    p.add_argument("--steps", type=int, default=20, help="denoising steps")
    p.add_argument("--guidance_scale", type=float, default=2.0, help="weight of the text")
    p.add_argument("--mpi_guidance_scale", type=float, default=1.0, help="weight of the MPI")
    p.add_argument("--batch", type=int, default=16, help="frames drawn at a time")
    p.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the generator")
    p.add_argument("--sheets", type=int, default=4, help="frames drawn for each direction of disagreement")
    add_run_arguments(p, resamples=2000)
    return p


def main(argv: list[str] | None = None) -> dict | None:
    args = with_workers(parser().parse_args(argv))
    args.cache, args.judge_batch, args.judge_seconds = None, 4, 5
    if args.split == "train" and args.seed == args.training_seed:
        raise SystemExit("the training split is held out under another --seed than --training_seed only")
    if args.smoke:
        args.model, args.weights, args.judge = "tiny", "tiny", None
        args.image_size, args.scenes, args.tuning_scenes, args.sheets = (64, 32), 2, 1, 1
        args.steps, args.batch, args.workers, args.resamples, args.thresholds = 1, 2, 0, 50, "0.01,0.1"
    from occupancy_judge_run import run

    return run(args)


if __name__ == "__main__":
    main()
