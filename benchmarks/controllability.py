"""Does it follow the occupancy? What is measured, and why so, is in docs/controllability.md.

    torchrun --nproc_per_node 4 benchmarks/controllability.py evaluate --model ckp/syntheocc-nano --output results
    torchrun --nproc_per_node 4 benchmarks/controllability.py arms --model ckp/syntheocc-nano --output results
    python benchmarks/controllability.py evaluate --smoke --output smoke   # a minute on a CPU, means nothing

`evaluate` writes report.json, report.md and strips of pictures, and the judge if it had to train one; `arms` a folder
for each training and a report of all. Either is bounded by `--seconds`.
"""

import argparse
from pathlib import Path

from run_arguments import add_run_arguments, with_workers


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT."""
    width, height = (int(number) for number in text.split("x"))
    return width, height


def parser() -> argparse.ArgumentParser:
    both = argparse.ArgumentParser(add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    both.add_argument("--model", default="ckp/syntheocc-nano", help='pipeline folder; "tiny" has random weights')
    both.add_argument("--output", type=Path, required=True, help="folder of the results")
    both.add_argument("--judge", type=Path, help="folder of a trained judge; without one it is trained first")
    both.add_argument("--judge_seconds", type=float, default=45, help="time to train the judge")
    both.add_argument(
        "--split",
        choices=("val", "test", "train"),
        default="val",
        help="val = development, test = final figures; train, with another --seed: new scenes of known assets",
    )
    both.add_argument("--judge_batch", type=int, default=96, help="images a step of a rank")
    both.add_argument("--cache", type=Path, help="folder (of a RAM disk) that keeps training frames for another run")
    both.add_argument("--scenes", type=int, help="held-out scenes, one frame each (default: 200; 64 for a sweep)")
    both.add_argument("--seed", type=int, default=0, help="of the world's held-out split, and of the judge")
    both.add_argument("--training_seed", type=int, default=0, help="of the world whose training scenes are used")
    both.add_argument("--render_seconds", type=float, default=40, help="time to make training frames")
    both.add_argument("--frames_per_scene", type=int, default=6, help="of training scenes")
    both.add_argument("--image_size", type=size, default=(400, 224), help="WIDTHxHEIGHT")
    both.add_argument("--steps", type=int, default=20, help="denoising steps")
    both.add_argument("--guidance_scale", type=float, default=2.0, help="weight of the text")
    both.add_argument("--mpi_guidance_scale", type=float, default=1.0, help="weight of the MPI")
    both.add_argument("--batch", type=int, default=16, help="frames drawn at a time")
    both.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the networks")
    add_run_arguments(both, resamples=2000)
    main = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = main.add_subparsers(dest="mode", required=True)
    one = modes.add_parser("evaluate", parents=[both], help="a trained pipeline")
    one.add_argument("--seconds", type=float, default=240, help="time budget")
    one.add_argument("--dose_scenes", type=int, default=100, help="scenes with changed conditions")
    one.add_argument("--edit_scenes", type=int, default=100, help="scenes with counterfactuals")
    one = modes.add_parser("sweep", parents=[both], help="sampler settings, on development scenes")
    one.add_argument("--seconds", type=float, default=200, help="time budget")
    settings = "20,1,1 20,2,1 20,4,1 20,2,1.5 20,2,2 20,2,3 12,2,1 30,2,1"
    one.add_argument("--settings", default=settings, help="steps,text guidance,MPI guidance; several with spaces")
    one = modes.add_parser("arms", parents=[both], help="the codes of the occupancy against one another")
    one.add_argument("--seconds", type=float, default=530, help="time budget")
    one.add_argument("--arms", default="", help="names with commas; default: all of docs/controllability.md")
    one.add_argument("--seeds", default="0", help="training seeds with commas")
    one.add_argument("--train_steps", type=int, help="steps of every arm; default: as many as the time allows")
    one.add_argument("--train_batch", type=int, default=48, help="samples a step")
    return main


def main(argv: list[str] | None = None) -> dict | None:
    args = with_workers(parser().parse_args(argv))
    if args.split == "train" and args.seed == args.training_seed:
        raise SystemExit("the training split is held out under another --seed than --training_seed only")
    if args.scenes is None:
        args.scenes = 64 if args.mode == "sweep" else 200
    if args.smoke:
        args.model, args.image_size, args.scenes = "tiny", (64, 32), 2
        args.steps, args.batch, args.workers, args.resamples, args.train_batch = 1, 2, 0, 50, 2
        args.judge_batch = 4
        args.dose_scenes = args.edit_scenes = 2
        args.settings = "1,1,1 1,2,2"
        if args.mode == "arms":
            args.arms = args.arms or "rgb_depth,categorical_spc4"
    if args.mode == "evaluate":
        from follow import evaluate

        return evaluate(args)
    if args.mode == "sweep":
        from sweep import sweep

        return sweep(args)
    from arms import compare

    return compare(args)


if __name__ == "__main__":
    main()
