"""Predict and score: ``syntheocc occupancy eval --weights=FOLDER --output_dir=FOLDER``.

Also ``python -m syntheocc.occupancy.perception.evaluate`` with the same flags.

Prints and writes (results.json, results.txt in `output_dir`) mIoU and RayIoU, and RayPQ of a panoptic model. Counts
are integers and the test-time model draws nothing: two evaluations of the same weights on one CPU agree exactly.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from syntheocc.engine.files import atomic_write_json, atomic_write_text, read_npz
from syntheocc.engine.flags import parse_flags
from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.metrics import (
    Accumulator,
    MetricResult,
    OccupancyIoU,
    RayIoU,
    RayPQ,
    panoptic_instances,
    scene_origins,
)
from syntheocc.occupancy.perception.predict import predict
from syntheocc.occupancy.perception.registry import load_model
from syntheocc.occupancy.perception.settings import EvaluateConfig
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["EvaluateConfig", "evaluate"]


def evaluate(config: EvaluateConfig) -> dict[str, MetricResult]:
    """Predict what is missing, then score all of it; under torchrun the main process scores.

    Returns:
        metric -> result, on the main process; empty on the others.

    Raises:
        ValueError: samples that cannot be read (unless `allow_unreadable`), labels that are missing or of another grid
            than the model's, RayPQ of a model that tells no objects apart.
    """
    loaded = load_model(config)
    model = loaded[1].config
    mask = None if config.mask == "none" else config.mask
    labels = config.reader()
    if labels.preset != (model.grid, model.taxonomy):
        raise ValueError(f"{config.weights} predicts another grid or other classes than {config.labels} labels have")
    if "raypq" in config.metrics and not model.panoptic:
        raise ValueError(f"{config.weights} tells no objects apart, so it has no RayPQ; leave raypq out")
    bad = predict(config, loaded)
    if not Ranks.from_environment().is_main:
        return {}
    if bad and not config.allow_unreadable:
        token, reason = next(iter(bad.items()))
        raise ValueError(f"{len(bad)} samples cannot be read, first {token}: {reason}; or give --allow_unreadable")

    frames = [frame for frame in config.frames() if frame.token not in bad]
    by_rays = any(name != "miou" for name in config.metrics)
    # Rays start where the scene's lidar stood in any of its frames, not only in those scored.
    origins = scene_origins(config.frames(everything=True)) if by_rays else {}
    observed = config.reader(mask=mask)
    metrics: dict[str, Any] = {
        "miou": OccupancyIoU(model.taxonomy, mask),
        "rayiou": RayIoU(model.taxonomy, model.grid),
        "raypq": RayPQ(model.taxonomy, model.grid),
    }
    chosen: dict[str, Accumulator] = {name: metrics[name] for name in dict.fromkeys(config.metrics)}
    for frame in frames:
        arrays = read_npz(config.output_dir / f"{frame.token}.npz", ["pred"])
        pred, token = torch.from_numpy(arrays["pred"]), frame.token
        found = labels(frame)
        assert found is not None  # the reader is not an optional one
        truth = found.semantics
        if "miou" in chosen:
            seen = observed(frame) if mask else None
            kept = None if seen is None else seen.semantics != UNKNOWN
            metrics["miou"].update(pred, truth, kept, tokens=token)
        if "rayiou" in chosen:
            metrics["rayiou"].update(pred, truth, [origins[token]], token)
        if "raypq" in chosen:
            if frame.boxes is None:
                raise ValueError(f"sample {token}: has no boxes to tell its objects apart")
            objects = panoptic_instances(OccupancyGrid(truth, model.grid, model.taxonomy), frame.boxes)
            metrics["raypq"].update(pred, truth, arrays.get("instances"), objects, [origins[token]], token)
    results = {name: metric.compute() for name, metric in chosen.items()}
    text = "\n\n".join(result.table() for result in results.values())
    note = f"{len(frames)} frames" + (f"; {len(bad)} unreadable ones were left out" if bad else "")
    atomic_write_text(config.output_dir / "results.txt", f"{text}\n\n{note}\n")
    scores = {name: result.to_json() for name, result in results.items()}
    atomic_write_json(
        config.output_dir / "results.json", {"frames": len(frames), "unreadable": sorted(bad), "metrics": scores}
    )
    return results


def report(config: EvaluateConfig, results: dict[str, MetricResult]) -> None:
    """Print the tables, on the process that scored."""
    if results:
        print((config.output_dir / "results.txt").read_text(encoding="utf-8"), end="")


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status: 0, or 1 after an error."""
    config = parse_flags(EvaluateConfig, argv, description="Predict the occupancy of frames and score it.")
    try:
        report(config, evaluate(config))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
