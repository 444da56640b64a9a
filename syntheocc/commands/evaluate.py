"""``syntheocc evaluate``: score a folder of predictions against Occ3D, OpenOcc v2, SemanticKITTI or NYUv2 labels.

Also ``python -m syntheocc.commands.evaluate``, which needs torch, numpy and tqdm. Frames are counted in parts of
`PART` by worker processes (and by ranks, under torchrun); what a part counted is written down, and the same command
goes on from there. Counts are integers, so however the parts are shared the figures are the same.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from syntheocc.commands.evaluate_completion import COMPLETION, count_completion, find_completion_samples
from syntheocc.commands.evaluate_samples import Sample, find_samples
from syntheocc.engine.flags import flag

METRICS = ("miou", "rayiou", "raypq", "flow", "ssc")
PART = 32
# What a prediction's labels are called in its file.
KEYS = ("pred", "semantics")


@dataclass(kw_only=True)
class EvaluateConfig:
    """Score a folder of predictions; run it again to go on where it stopped."""

    pred: Path = flag(
        MISSING, "folder of <token>.npz (key pred or semantics; raypq: instances; flow: flow), or of KITTI's .label"
    )
    gt: Path = flag(Path("data/nuscenes"), "data root with the labels (gts, occ3d, ...) and the info pickles")
    metrics: str | None = flag(
        None, f"which of {', '.join(METRICS)}, with commas; by default miou,rayiou, of semantic_kitti and nyuv2 ssc"
    )
    labels: Literal["occ3d", "openocc_v2", "semantic_kitti", "nyuv2"] = flag("occ3d", "whose labels and class table")
    mask: Literal["camera", "lidar", "none"] = flag(
        "camera", "voxels that mIoU counts: seen by the cameras, the lidar"
    )
    split: Literal["train", "val", "trainval", "test"] = flag("val", "which info pickle below --gt")
    sequences: tuple[str, ...] = flag((), "sequences of semantic_kitti, instead of those of --split")
    voxel_release: Literal["current", "before_2020_08_24", "detect"] = flag(
        "current", "which release the voxels of semantic_kitti are; detect compares them with velodyne/"
    )
    info_path: tuple[str, ...] = flag((), "info pickles or folders of JSON tables, instead of those below --gt")
    occ_path: Path | None = flag(None, "folder <scene>/<token>/labels.npz, instead of the one below --gt")
    out: Path | None = flag(None, "folder of results and of what is counted so far (default: <pred>_evaluation)")
    allow_missing: bool = flag(False, "score the frames that have a prediction, instead of refusing")
    workers: int | None = flag(None, "processes; by default as many as there are processors")
    device: str = flag("cpu", "cpu or cuda: where rays are cast (reading is what takes the time)")
    max_samples: int | None = flag(None, "stop after this many samples")

    def __post_init__(self):
        if self.metrics is None:
            self.metrics = "ssc" if self.labels in COMPLETION else "miou,rayiou"
        unknown = [name for name in self.names if name not in METRICS]
        if unknown or not self.names:
            raise ValueError(f"--metrics are some of {', '.join(METRICS)}; got {self.metrics!r}")
        if (self.labels in COMPLETION) != (self.names == ["ssc"]):
            raise ValueError(
                f"--labels={self.labels} with --metrics={self.metrics}: {' and '.join(COMPLETION)} are scored by ssc, "
                "and by it alone; the others have no ssc"
            )
        if "flow" in self.names and self.labels != "openocc_v2":
            raise ValueError("flow is labelled in OpenOcc v2 only; give --labels=openocc_v2")
        if self.device != "cpu" and self.device.split(":")[0] != "cuda":
            raise ValueError(f"--device must be cpu or cuda, got {self.device!r}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"--max_samples must be at least 1, got {self.max_samples}")

    @property
    def names(self) -> list[str]:
        """The metrics, in the order asked for."""
        return list(dict.fromkeys(name.strip() for name in (self.metrics or "").split(",") if name.strip()))

    @property
    def folder(self) -> Path:
        """Where results go."""
        pred = Path(self.pred)
        return Path(self.out) if self.out else pred.with_name(f"{pred.name}_evaluation")

    def settings(self) -> dict[str, Any]:
        """What the counts of a part depend on, besides its files."""
        settings = {"metrics": sorted(self.names), "labels": self.labels, "mask": self.mask}
        return settings | ({"voxel_release": self.voxel_release} if self.labels == "semantic_kitti" else {})


def run(config: EvaluateConfig) -> int:
    """Score the predictions; prints tables, writes `results.json` and `results.txt`; returns the exit status."""
    from syntheocc.engine.files import atomic_write_json, atomic_write_text
    from syntheocc.engine.ranks import Ranks

    # The command line's class is made on the fly and cannot be sent to a worker.
    config = EvaluateConfig(**{field.name: getattr(config, field.name) for field in fields(EvaluateConfig)})
    ranks = Ranks.from_environment()
    samples, missing = find_completion_samples(config) if config.labels in COMPLETION else find_samples(config)
    parts = [samples[k : k + PART] for k in range(0, len(samples), PART)]
    folder = config.folder / "parts"
    files = [folder / f"part-{k:05d}.json" for k in range(len(parts))]
    definitions = {name: metric.definition for name, metric in make_metrics(config).items()}
    stamps = [_stamp(config, definitions, part) for part in parts]
    with ranks.group():
        todo = [
            (config, part, str(path), stamp)
            for part, path, stamp in ranks.share(list(zip(parts, files, stamps, strict=True)))
            if _counted(path, stamp) is None
        ]
        problem = None
        try:
            _count_all(todo, config, ranks)
        except ValueError as error:
            problem = str(error)
        problems = [p for p in ranks.gather(problem) if p]
        if problems:
            raise ValueError(problems[0])
        if not ranks.is_main:
            return 0
        metrics = make_metrics(config)
        nameless = 0
        for path, stamp in zip(files, stamps, strict=True):
            counted = _counted(path, stamp)
            if counted is None:
                raise ValueError(f"{path} was not written; do all processes see the same {config.folder}?")
            nameless += counted["without_instances"]
            for name, metric in metrics.items():
                metric.load_state_dict(_unpacked(counted["states"][name]), add=True)
    results = {name: metric.compute() for name, metric in metrics.items()}
    text = "\n\n".join(result.table() for result in results.values())
    notes = [f"{len(samples)} frames"]
    if missing:
        notes.append(f"{len(missing)} frames without prediction were left out, the first is {missing[0]}")
    if nameless:
        notes.append(f"{nameless} predictions hold no instances: each of their classes is one segment")
    text += "\n\n" + "; ".join(notes) + "\n"
    atomic_write_text(config.folder / "results.txt", text)
    atomic_write_json(
        config.folder / "results.json",
        {
            "pred": str(config.pred),
            "gt": str(config.gt),
            "frames": len(samples),
            "missing": missing,
            "predictions_without_instances": nameless,
            "metrics": {name: result.to_json() for name, result in results.items()},
        },
    )
    print(text + f"wrote {config.folder / 'results.json'} and results.txt")
    return 0


def make_metrics(config: EvaluateConfig) -> dict[str, Any]:
    """The accumulators of a job, by name."""
    from syntheocc.occupancy.data.occupancy_files import preset_of
    from syntheocc.occupancy.metrics import OccupancyFlow, OccupancyIoU, RayIoU, RayPQ, SSCIoU

    if config.labels in COMPLETION:
        return {"ssc": SSCIoU.semantic_kitti() if config.labels == "semantic_kitti" else SSCIoU.nyuv2()}
    spec, taxonomy = preset_of(config.labels)
    mask = None if config.mask == "none" else config.mask
    makers = {
        "miou": lambda: OccupancyIoU(taxonomy, mask=mask),
        "rayiou": lambda: RayIoU(taxonomy, spec),
        "raypq": lambda: RayPQ(taxonomy, spec),
        "flow": lambda: OccupancyFlow(taxonomy, spec),
    }
    return {name: makers[name]() for name in config.names}


def _stamp(config: EvaluateConfig, definitions: Mapping[str, Any], part: Sequence[Sample]) -> str:
    """Changes with whatever a part's counts depend on: version, settings, frames, origins, files."""
    from syntheocc import __version__

    state: list[Any] = [__version__, config.settings(), definitions]
    for sample in part:
        files = [os.stat(path) for path in (sample.pred, sample.gt)]
        state.append(
            [sample.token, sample.pred, sample.origins, sample.boxes, [[f.st_size, f.st_mtime_ns] for f in files]]
        )
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _counted(path: Path, stamp: str) -> dict[str, Any] | None:
    """What a part counted before, if it was the same part."""
    from syntheocc.engine.files import read_json

    if not path.is_file():
        return None
    try:
        counted = read_json(path)
    except ValueError:
        return None
    return counted if isinstance(counted, dict) and counted.get("stamp") == stamp else None


def _count_all(todo: Sequence[tuple], config: EvaluateConfig, ranks: Any) -> None:
    """Count the parts that are left, in worker processes, under a progress bar of frames."""
    from tqdm import tqdm

    if not todo:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(config.workers or max(1, cores // ranks.world), len(todo))
    title = "evaluating" if ranks.world == 1 else f"evaluating (rank 0 of {ranks.world})"
    with tqdm(total=sum(len(job[1]) for job in todo), desc=title, unit="frame", disable=not ranks.is_main) as bar:
        for count in _results(todo, workers, ranks.local_rank):
            bar.update(count)


def _results(todo: Sequence[tuple], workers: int, local_rank: int) -> Iterable[int]:
    if workers == 1:
        yield from (count_part(job, local_rank) for job in todo)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    # Spawned: a process that has used a GPU or numba's threads cannot be forked. No multiprocessing.Pool: it waits
    # forever for the part of a worker that was killed.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker, (local_rank,)) as pool:
        running = [pool.submit(count_part, job) for job in todo]
        try:
            for done in as_completed(running):
                yield done.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process was killed, perhaps for want of memory; what is counted stays, and the same command "
                f"goes on from there (with fewer --workers than {workers}, if memory was short)"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_LOCAL_RANK = 0


def _begin_worker(local_rank: int) -> None:
    import multiprocessing
    import threading

    import torch

    global _LOCAL_RANK
    _LOCAL_RANK = local_rank
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    """Ends this worker when its parent was killed, of which an executor tells it nothing: it would stay forever."""
    parent.join()
    os._exit(1)


def count_part(job: tuple, local_rank: int | None = None) -> int:
    """Count one part and write it down; returns its number of frames. ValueError names the sample that is bad."""
    import torch

    from syntheocc.engine.files import atomic_write_json

    config, part, path, stamp = job
    device = config.device
    if device == "cuda":
        rank = _LOCAL_RANK if local_rank is None else local_rank
        device = f"cuda:{rank % max(torch.cuda.device_count(), 1)}"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device} was asked for, but this torch finds no GPU; give --device=cpu")
    metrics = make_metrics(config)
    nameless = sum(_count(sample, config, metrics, torch.device(device)) for sample in part)
    states = {name: _packed(metric.state_dict()) for name, metric in metrics.items()}
    atomic_write_json(path, {"stamp": stamp, "without_instances": nameless, "states": states}, indent=None)
    return len(part)


def _packed(saved: dict[str, Any]) -> dict[str, Any]:
    state = {name: {"shape": list(v.shape), "values": v.flatten().tolist()} for name, v in saved["state"].items()}
    return saved | {"state": state}


def _unpacked(saved: dict[str, Any]) -> dict[str, Any]:
    import torch

    state = {name: torch.tensor(v["values"], dtype=torch.int64).view(v["shape"]) for name, v in saved["state"].items()}
    return saved | {"state": state}


def _count(sample: Sample, config: EvaluateConfig, metrics: Mapping[str, Any], device: Any) -> bool:
    """Count one frame; returns whether its prediction lacks the instances that raypq would use."""
    from syntheocc.engine.files import read_npz
    from syntheocc.occupancy import OccupancyGrid
    from syntheocc.occupancy.data.frames import about
    from syntheocc.occupancy.data.occ3d import read_occ3d
    from syntheocc.occupancy.data.occupancy_files import preset_of

    if config.labels in COMPLETION:
        count_completion(sample, config, metrics["ssc"])
        return False
    preset = preset_of(config.labels)
    with about(f"sample {sample.token}"):
        truth = read_occ3d(sample.gt, preset)
        arrays = read_npz(sample.pred, [])
        key = next((key for key in KEYS if key in arrays), None)
        if key is None:
            raise ValueError(f"{sample.pred}: lacks an array {' or '.join(KEYS)}, has {sorted(arrays)}")
        with about(sample.pred):
            pred = OccupancyGrid(arrays[key], *preset)
        flows = []
        if "flow" in metrics:
            for path in (sample.pred, sample.gt):
                flows.append(read_npz(path, ["flow"])["flow"])
    on_device = (pred.to(device), truth.grid.to(device))
    token, origins = sample.token, [sample.origins]
    for name, metric in metrics.items():
        if name == "miou":
            mask = None if config.mask == "none" else getattr(truth, f"mask_{config.mask}")
            if mask is None and config.mask != "none":
                raise ValueError(f"sample {token}: {sample.gt} holds no mask_{config.mask}; give another --mask")
            metric.update(pred, truth.grid, mask, token)
        elif name == "rayiou":
            metric.update(*on_device, origins, token)
        elif name == "raypq":
            metric.update(*on_device, arrays.get("instances"), _true_instances(sample, truth), origins, token)
        else:
            metric.update(*on_device, *flows, origins, token)
    return "raypq" in metrics and "instances" not in arrays


def _true_instances(sample: Sample, truth: Any) -> Any:
    """Instances of the ground truth: those of the label file, else made from the boxes."""
    import torch

    from syntheocc.occupancy.data.frames import Boxes
    from syntheocc.occupancy.metrics import panoptic_instances

    if truth.instances is not None:
        return truth.instances
    if sample.boxes is None:
        raise ValueError(
            f"sample {sample.token}: {sample.gt} holds no instances and the infos no boxes, from which to make them"
        )
    box2ego, sizes, names = sample.boxes
    boxes = Boxes(
        torch.tensor(box2ego, dtype=torch.float64).reshape(-1, 4, 4),
        torch.tensor(sizes, dtype=torch.float64).reshape(-1, 3),
        tuple(names),
    )
    return panoptic_instances(truth.grid, boxes)


if __name__ == "__main__":
    from syntheocc.commands import exit_status
    from syntheocc.engine.flags import parse_flags

    sys.exit(exit_status(run, parse_flags(EvaluateConfig, description=__doc__)))
