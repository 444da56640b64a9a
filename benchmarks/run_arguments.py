"""Arguments that the longer comparisons share, and what they default to."""

import argparse
import os


def add_run_arguments(parser: argparse.ArgumentParser, resamples: int = 1000) -> None:
    """How a comparison runs, whatever it compares."""
    p = parser
    p.add_argument("--resamples", type=int, default=resamples, help="of the bootstrap")
    p.add_argument("--workers", type=int, help="processes a rank that make scenes (default: cores / ranks - 1)")
    p.add_argument("--threads", type=int, default=2, help="CPU threads of a rank")
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    p.add_argument("--commit", help="commit to record where the checkout has no git")
    p.add_argument("--smoke", action="store_true", help="tiny sizes, random weights: does the program run?")


def with_workers(args: argparse.Namespace) -> argparse.Namespace:
    """The parsed arguments, `workers` filled in: the cores that a rank has, but for the rank itself."""
    if args.workers is None:
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        args.workers = max(1, (os.cpu_count() or 1) // ranks - 1)
    return args
