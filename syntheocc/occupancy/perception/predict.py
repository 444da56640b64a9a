"""Predict occupancy: ``python -m syntheocc.occupancy.perception.predict --weights=FOLDER --output_dir=FOLDER``.

One `<token>.npz` a frame: `pred` uint8 [X, Y, Z], labels of the model's class table, and of a panoptic model
`instances` int32 [X, Y, Z], 0 none. What is there is not made again, so the same command goes on where it stopped;
under torchrun the processes share the frames.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset

from syntheocc.engine.files import atomic_write_json, atomic_write_npz, read_json
from syntheocc.engine.flags import flag, parse_flags
from syntheocc.engine.loading import BadSample
from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.perception.batch import OccupancyBatch, collate
from syntheocc.occupancy.perception.sources import SourceConfig, make_dataset
from syntheocc.occupancy.perception.sparseocc import SparseOcc

__all__ = ["PredictConfig", "predict"]

SETTINGS, BAD_SAMPLES = "settings.json", "bad_samples.json"


@dataclass(kw_only=True)
class PredictConfig(SourceConfig):
    """Settings of a prediction.

    Raises:
        ValueError: a number below its range, or a device that is not there.
    """

    weights: Path = flag(Path("outputs"), "folder of a trained model, as training leaves it")
    output_dir: Path = flag(Path("predictions"), "folder of <token>.npz")
    batch_size: int = flag(1, "samples at a time")
    workers: int = flag(0, "processes that read samples; 0: in this process")
    device: str = flag("auto", "cpu, cuda, cuda:1, ...; auto: a GPU where there is one")

    def __post_init__(self) -> None:
        self.check_source()
        self.weights, self.output_dir = Path(self.weights), Path(self.output_dir)
        if self.batch_size < 1 or self.workers < 0:
            raise ValueError(f"batch_size {self.batch_size} and workers {self.workers} must be 1 and 0 or more")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device}, but torch finds no GPU; give cpu")


def predict(config: PredictConfig) -> dict[str, str]:
    """Write the predictions that are not there yet.

    Older images come from all frames, also those beyond `max_samples`.

    Returns:
        token -> reason of the samples that could not be read, also in bad_samples.json; the next call tries again.

    Raises:
        ValueError: no such model, no frames, none that can be read, or the folder holds predictions of another model.
    """
    ranks = Ranks.from_environment()
    device = _device(config.device, ranks)
    model = SparseOcc.from_pretrained(config.weights, device)
    wanted = len(config.frames())
    dataset = make_dataset(
        config.frames(everything=True),
        model.config,
        None,
        training=False,
        data_root=config.dataroot,
        unreadable=BadSample,
    )
    bad: dict[str, str] = {}
    with ranks.group():
        problem = ranks.gather(_claimed(config) if ranks.is_main else None)[0]
        if problem is not None:
            raise ValueError(problem)
        todo = [i for i in range(wanted) if not _path(config, dataset.frames[i].token).is_file()]
        ranks.gather(None)  # nobody writes before all have looked, or the shares would overlap or leave gaps
        loader = DataLoader(
            Subset(dataset, ranks.share(todo)),
            batch_size=config.batch_size,
            num_workers=config.workers,
            collate_fn=_readable,
        )
        for batch, unreadable in loader:
            bad |= {sample.token: sample.reason for sample in unreadable}
            if batch is not None:
                _write(config, model, batch.to(device))
        bad = {token: reason for part in ranks.gather(bad) for token, reason in part.items()}
        if ranks.is_main:
            atomic_write_json(config.output_dir / BAD_SAMPLES, bad)
    if len(bad) == wanted:
        token, reason = next(iter(bad.items()))
        raise ValueError(f"none of {wanted} samples could be read; {token}: {reason}")
    return bad


def _device(name: str, ranks: Ranks) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{ranks.local_rank % torch.cuda.device_count()}"
    return torch.device(name)


def _path(config: PredictConfig, token: str) -> Path:
    return config.output_dir / f"{token}.npz"


def _claimed(config: PredictConfig) -> str | None:
    """Note whose predictions the folder holds; says what is wrong when they are not this model's."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        path = config.weights / name
        digest.update(path.read_bytes() if path.is_file() else str(config.weights).encode())
    path, settings = config.output_dir / SETTINGS, {"model": digest.hexdigest()}
    if path.is_file() and read_json(path) != settings:
        return f"{config.output_dir} holds predictions of another model; give another output_dir"
    if not path.is_file() and next(config.output_dir.glob("*.npz"), None) is not None:
        return f"{config.output_dir} holds .npz files of unknown origin; give another output_dir"
    atomic_write_json(path, settings)
    return None


def _readable(samples: list[OccupancyBatch | BadSample]) -> tuple[OccupancyBatch | None, list[BadSample]]:
    """The batch of what could be read (None if nothing could), and the rest."""
    good = [sample for sample in samples if not isinstance(sample, BadSample)]
    return collate(good) if good else None, [sample for sample in samples if isinstance(sample, BadSample)]


def _write(config: PredictConfig, model: SparseOcc, batch: OccupancyBatch) -> None:
    prediction = model.predict(batch.images, batch.ego2img)
    for i, token in enumerate(batch.tokens):
        arrays = {"pred": prediction.semantics[i].cpu().numpy()}
        if prediction.instances is not None:
            arrays["instances"] = prediction.instances[i].cpu().numpy()
        atomic_write_npz(_path(config, token), **arrays)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status: 0, or 1 after an error."""
    config = parse_flags(PredictConfig, argv, description="Predict the occupancy of frames.")
    try:
        bad = predict(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if bad:
        print(f"{len(bad)} samples could not be read; {config.output_dir / BAD_SAMPLES} says why", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
