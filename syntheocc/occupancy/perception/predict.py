"""Predict occupancy: ``syntheocc occupancy predict --weights=FOLDER --output_dir=FOLDER``.

Also ``python -m syntheocc.occupancy.perception.predict`` with the same flags.

One `<token>.npz` a frame: `pred` uint8 [X, Y, Z], labels of the model's class table, and of a panoptic model
`instances` int32 [X, Y, Z], 0 none. A sweep of thresholds adds `occupancy` and `free_space`, and the same by scene
(`occupancy.data.prediction_files`). What is there is not made again, so the same command goes on where it stopped;
under torchrun the processes share the frames.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from syntheocc.engine.files import atomic_write_json, atomic_write_npz, read_json, read_npz
from syntheocc.engine.flags import parse_flags
from syntheocc.engine.loading import BadSample
from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.generated import manifest_digest
from syntheocc.occupancy.data.prediction_files import write_scene_predictions
from syntheocc.occupancy.grids import Preset
from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.registry import ModelEntry, load_model
from syntheocc.occupancy.perception.settings import PredictConfig
from syntheocc.occupancy.perception.storage import CONFIG, WEIGHTS

__all__ = ["PredictConfig", "device_of", "predict", "predict_missing"]

SETTINGS, BAD_SAMPLES = "settings.json", "bad_samples.json"


def predict(config: PredictConfig) -> dict[str, str]:
    """Write the predictions that are not there yet.

    Older images come from all frames, also those beyond `max_samples`. A sample that cannot be read does not end the
    job.

    Returns:
        token -> reason of the samples that could not be read, also in bad_samples.json; the next call tries again.

    Raises:
        ValueError: no such model, no frames, none that can be read, or the folder holds predictions of another model.
    """
    ranks = Ranks.from_environment()
    entry, model = load_model(config, device_of(config.device, ranks))
    with ranks.group():
        return predict_missing(config, ranks, entry, model)


def predict_missing(config: PredictConfig, ranks: Ranks, entry: ModelEntry, model: Any) -> dict[str, str]:
    """`predict` with a model that is at hand, for a caller inside of `ranks.group()`; the same on all ranks.

    Args:
        config: the settings.
        ranks: the processes that share the frames.
        entry: the model's.
        model: on its device.
    """
    from tqdm import tqdm

    device = next(model.parameters()).device
    unlisted: dict[str, str] = {}
    wanted = len(config.frames(unreadable=unlisted))
    dataset = entry.test_data(model.config, config)
    predictor = entry.predictor(model, config, dataset)
    problem = ranks.gather(_claimed(config) if ranks.is_main else None)[0]
    if problem is not None:
        raise ValueError(problem)
    todo = [i for i in range(wanted) if not _path(config, dataset.frames[i].token).is_file()]
    ranks.gather(None)  # nobody writes before all have looked, or the shares would overlap or leave gaps
    share = _share(config, dataset.frames, todo, ranks)
    loader = DataLoader(
        Subset(dataset, share), batch_size=config.batch_size, num_workers=config.workers, collate_fn=_sorted_out
    )
    bad = dict(unlisted)
    with tqdm(total=len(share), desc="predict", unit="frame", disable=not ranks.is_main) as bar:
        for samples, unreadable in loader:
            bad |= {sample.token: sample.reason for sample in unreadable}
            bad |= _predict(config, lambda part: predictor(entry.collate(part).to(device)), samples)
            bar.update(len(samples) + len(unreadable))
    bad = {token: reason for part in ranks.gather(bad) for token, reason in part.items()}
    if ranks.is_main:
        atomic_write_json(config.output_dir / BAD_SAMPLES, bad)
    if len(bad) == wanted + len(unlisted):
        token, reason = next(iter(bad.items()))
        raise ValueError(f"none of {len(bad)} samples could be read; {token}: {reason}")
    done = [frame for frame in dataset.frames[:wanted] if frame.token not in bad]
    if len(config.threshold) > 1 and ranks.is_main:
        _write_scenes(config, done)
    if ranks.is_main:
        entry.after_prediction(model.config, config, done)
    if config.pictures or config.meshes:
        _draw(config, ranks, dataset.frames[:wanted], Preset(model.config.grid, model.config.taxonomy))
    return bad


def _write_scenes(config: PredictConfig, frames: Sequence[Frame]) -> None:
    """The sweep's scenes as OccFlowNet saves them, below a folder with the name of the weights."""
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scenes.setdefault(frame.scene or "scene", []).append(frame)
    for scene, members in scenes.items():
        found = {f.token: read_npz(_path(config, f.token), ["occupancy", "free_space"]) for f in members}
        classes = {token: torch.from_numpy(arrays["occupancy"]) for token, arrays in found.items()}
        free = {token: torch.from_numpy(arrays["free_space"]) for token, arrays in found.items()}
        write_scene_predictions(classes, free, config.output_dir, config.weights.stem, scene)


def _draw(config: PredictConfig, ranks: Ranks, frames: Sequence[Frame], preset: Preset) -> None:
    """Pictures of all predictions, beside the truth where there is any; says what could not be drawn."""
    from syntheocc.occupancy.perception.prediction_pictures import draw_predictions

    reader = config.reader(optional=True)
    what: dict[str, Any] = {"pictures": config.pictures, "meshes": config.meshes}
    undrawn = draw_predictions(config.output_dir, frames, preset, reader, ranks, **what)
    for part in ranks.gather(undrawn):
        for reason in part.values() if ranks.is_main else ():
            print(f"not drawn: {reason}", file=sys.stderr)


def device_of(name: str, ranks: Ranks) -> torch.device:
    """The device of this rank: "auto" takes a GPU where there is one, "cuda" the rank's own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{ranks.local_rank % torch.cuda.device_count()}"
    return torch.device(name)


def _share(config: PredictConfig, frames: Sequence[Frame], todo: list[int], ranks: Ranks) -> list[int]:
    """What this rank predicts; online, runs of successive frames, so that what is remembered is what is needed."""
    if not config.online:
        return ranks.share(todo)
    todo = sorted(todo, key=lambda i: (frames[i].scene or "", frames[i].timestamp_us))
    return todo[len(todo) * ranks.rank // ranks.world : len(todo) * (ranks.rank + 1) // ranks.world]


def _path(config: PredictConfig, token: str) -> Path:
    return config.output_dir / f"{token}.npz"


def _claimed(config: PredictConfig) -> str | None:
    """Note whose predictions the folder holds; says what is wrong when they are not this model's."""
    files = [config.weights] if config.weights.is_file() else [config.weights / CONFIG, config.weights / WEIGHTS]
    digest = hashlib.sha256(f"{config.preset}".encode() if config.weights.is_file() else b"")
    for file in files:
        digest.update(file.read_bytes())
    path = config.output_dir / SETTINGS
    settings: dict[str, Any] = {"model": digest.hexdigest(), "half": config.half}
    if config.threshold:
        settings["threshold"] = list(config.threshold)
    # A generated set has the original's tokens, after which the files are named.
    generated = None if config.is_tree else manifest_digest(config.dataroot)
    if generated is not None:
        settings["generated"] = generated
    if path.is_file() and read_json(path) != settings:
        return (
            f"{config.output_dir} holds predictions of another model or precision, of other thresholds or of another "
            "generated data set; give another output_dir"
        )
    if not path.is_file() and next(config.output_dir.glob("*.npz"), None) is not None:
        return f"{config.output_dir} holds .npz files of unknown origin; give another output_dir"
    try:
        atomic_write_json(path, settings)
    except OSError as error:
        return f"{config.output_dir}: nothing can be written there ({error.strerror}); give another output_dir"
    return None


def _sorted_out(samples: list[Any]) -> tuple[list[Any], list[BadSample]]:
    """What could be read, and the rest."""
    good = [sample for sample in samples if not isinstance(sample, BadSample)]
    return good, [sample for sample in samples if isinstance(sample, BadSample)]


def _predict(
    config: PredictConfig, predictor: Callable[[list[Any]], OccupancyPrediction], samples: list[Any]
) -> dict[str, str]:
    """Predict and write samples; returns token -> reason of those for which something could not be read."""
    if not samples:
        return {}
    try:
        prediction = predictor(samples)
    except ValueError as error:
        if len(samples) == 1:
            return {samples[0].tokens[0]: str(error)}
        parts = [_predict(config, predictor, [sample]) for sample in samples]
        return {token: reason for part in parts for token, reason in part.items()}
    for i, sample in enumerate(samples):
        arrays = {"pred": prediction.semantics[i].cpu().numpy()}
        for name in ("instances", "occupancy", "free_space"):
            values = getattr(prediction, name)
            if values is not None:
                arrays[name] = values[i].cpu().numpy()
        atomic_write_npz(_path(config, sample.tokens[0]), **arrays)
    return {}


def report(config: PredictConfig, bad: dict[str, str]) -> None:
    """Say what could not be read, and where the reasons are."""
    if bad:
        print(f"{len(bad)} samples could not be read; {config.output_dir / BAD_SAMPLES} says why", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status: 0, or 1 after an error."""
    config = parse_flags(PredictConfig, argv, description="Predict the occupancy of frames.")
    try:
        report(config, predict(config))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
