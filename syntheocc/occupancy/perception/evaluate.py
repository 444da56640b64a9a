"""Predict and score: ``syntheocc occupancy eval --weights=FOLDER --output_dir=FOLDER``.

Also ``python -m syntheocc.occupancy.perception.evaluate`` with the same flags.

Prints and writes (results.json, results.txt in `output_dir`) mIoU and RayIoU, and RayPQ of a panoptic model. Counts
are integers and the test-time model draws nothing: two evaluations of the same weights on one CPU agree exactly.
"""

import sys
from collections.abc import Sequence

from syntheocc.engine.files import atomic_write_json, atomic_write_text, read_json
from syntheocc.engine.flags import parse_flags
from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.metrics import MetricResult
from syntheocc.occupancy.perception.predict import device_of, predict_missing
from syntheocc.occupancy.perception.registry import load_model
from syntheocc.occupancy.perception.scoring import Scoring
from syntheocc.occupancy.perception.settings import EvaluateConfig
from syntheocc.occupancy.perception.storage import CONFIG

__all__ = ["EvaluateConfig", "evaluate"]


def evaluate(config: EvaluateConfig) -> dict[str, MetricResult]:
    """Predict what is missing, then score all of it; under torchrun the processes share both.

    Returns:
        metric -> result, on the main process; empty on the others.

    Raises:
        ValueError: samples or labels that cannot be read (unless `allow_unreadable`), labels of another grid than the
            model's, RayPQ of a model that tells no objects apart.
    """
    ranks = Ranks.from_environment()
    device = device_of(config.device, ranks)
    entry, model = load_model(config, device)
    scoring = Scoring(config, model.config, device)
    with ranks.group():
        bad = predict_missing(config, ranks, entry, model)
        _refuse(config, bad)
        frames = [frame for frame in config.frames(unreadable={}) if frame.token not in bad]
        # Rays start where the scene's lidar stood in any of its frames, not only in those scored.
        unscored = _count(scoring, ranks.share(frames), config.frames(everything=True, unreadable={}), ranks)
        parts = ranks.gather((scoring.state(), unscored))
    bad |= {token: reason for _, part in parts for token, reason in part.items()}
    _refuse(config, bad)
    if not ranks.is_main:
        return {}
    results = scoring.results([state for state, _ in parts])
    text = "\n\n".join(result.table() for result in results.values())
    scored = len(frames) - sum(len(part) for _, part in parts)
    note = f"{scored} frames" + (f"; {len(bad)} unreadable ones were left out" if bad else "")
    atomic_write_text(config.output_dir / "results.txt", f"{text}\n\n{note}\n")
    scores = {name: result.to_json() for name, result in results.items()}
    atomic_write_json(
        config.output_dir / "results.json", {"frames": scored, "unreadable": sorted(bad), "metrics": scores}
    )
    if config.store_threshold:
        _store(config, results)
    return results


def _store(config: EvaluateConfig, results: dict[str, MetricResult]) -> None:
    """Keep the threshold of the best mIoU with the weights."""
    found = {threshold: results[f"miou@{threshold:g}"]["mIoU"] for threshold in config.threshold}
    best = max(found, key=lambda threshold: found[threshold])
    file = config.weights / CONFIG
    values = read_json(file)
    atomic_write_json(file, {**values, "threshold": best})
    print(f"{file}: threshold {values['threshold']:g} -> {best:g} (mIoU {found[best]:.4f})")


def _refuse(config: EvaluateConfig, bad: dict[str, str]) -> None:
    if bad and not config.allow_unreadable:
        token, reason = next(iter(bad.items()))
        raise ValueError(f"{len(bad)} samples cannot be read, first {token}: {reason}; or give --allow_unreadable")


def _count(scoring: Scoring, share: Sequence[Frame], everything: Sequence[Frame], ranks: Ranks) -> dict[str, str]:
    """Count a rank's frames; returns token -> reason of those that could not be counted."""
    from tqdm import tqdm

    bad: dict[str, str] = {}
    origins = scoring.origins(everything)
    for frame in tqdm(share, desc="score", unit="frame", disable=not ranks.is_main):
        try:
            scoring.count(frame, origins.get(frame.token))
        except ValueError as error:
            bad[frame.token] = str(error)
    return bad


def report(config: EvaluateConfig, results: dict[str, MetricResult]) -> None:
    """Print the tables, on the process that scored."""
    if results:
        print((config.output_dir / "results.txt").read_text(encoding="utf-8"), end="")


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status: 0, or 1 after an error."""
    config = parse_flags(EvaluateConfig, argv, description="Predict the occupancy of frames and score it.")
    try:
        report(config, evaluate(config))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
