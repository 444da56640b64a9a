"""``python utils/gen_depth.py``: depth pictures of KITTI trees by stereo matching or by a depth network.

They are what OccDepth's depth distribution learns from: `<output>/sequences/XX/depth/NNNNNN.png`, uint16, metres times
256, 0 for none, of the left picture. The originals offer theirs as a private download only.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from syntheocc.commands.batch import Tally, check_settings, print_summary
from syntheocc.engine.files import atomic_write_json
from syntheocc.engine.flags import flag

if TYPE_CHECKING:
    from syntheocc.occupancy.data.stereo_matching import Rectified
    from syntheocc.occupancy.perception.occdepth.depth_models import DepthModel

__all__ = ["DepthConfig", "DepthJob", "depth_jobs", "make_depth", "run"]

SETTINGS_FILE = "gen_depth.json"
# Settings that the pictures depend on.
_MATTERS = ("method", "model", "max_disparity", "block", "uniqueness")


@dataclass(kw_only=True)
class DepthConfig:
    """Write the depth pictures of a KITTI tree; run it again to go on where it stopped."""

    dataroot: Path = flag(Path("data/semantic_kitti"), "root of the tree: the folder that holds sequences/")
    sequences: tuple[str, ...] = flag(("train", "val"), "splits (train, val, test) or sequences (00, 08, ...)")
    output_root: Path | None = flag(None, "where sequences/XX/depth/ is made; empty: below the data root")
    method: Literal["sgbm", "model"] = flag("sgbm", "stereo matching, or a depth network (--model)")
    model: Path | None = flag(None, "folder of a metric depth model of transformers")
    every_frame: bool = flag(False, "of every picture; else of the frames that have voxels")
    max_disparity: int = flag(192, "sgbm: largest disparity, pixels, a multiple of 16")
    block: int = flag(5, "sgbm: edge of the compared blocks, pixels, odd")
    uniqueness: int = flag(10, "sgbm: percent by which the best match must beat the second")
    workers: int = flag(0, "sgbm: processes; 0: one a core")
    device: str = flag("auto", "model: auto (a GPU where there is one), cpu, cuda, ...")

    def __post_init__(self) -> None:
        self.dataroot = Path(self.dataroot)
        self.output_root = None if self.output_root is None else Path(self.output_root)
        self.model = None if self.model is None else Path(self.model)
        if (self.method == "model") != (self.model is not None):
            raise ValueError("--method=model and --model=FOLDER go together")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it must be 0 or more")
        if self.max_disparity < 16 or self.max_disparity % 16:
            raise ValueError(f"max_disparity is {self.max_disparity}; it must be a positive multiple of 16")
        if self.block < 1 or not self.block % 2 or not 0 <= self.uniqueness <= 100:
            raise ValueError(f"block {self.block} must be odd and uniqueness {self.uniqueness} 0 to 100")


@dataclass(frozen=True)
class DepthJob:
    """One picture to make."""

    token: str
    left: Path
    right: Path
    target: Path
    pair: "Rectified | None"
    """None for a depth network."""


def depth_jobs(config: DepthConfig) -> list[DepthJob]:
    """All pictures of the tree; calibrations are read, pictures are not, and `Tr` is not asked for.

    Raises:
        ValueError: no such tree, split or sequence, a missing or damaged calibration, or no frame.
    """
    from syntheocc.occupancy.data.kitti import STEREO, read_projections
    from syntheocc.occupancy.data.semantic_kitti_frames import chosen_sequences, frame_names
    from syntheocc.occupancy.data.stereo_matching import rectified_pair

    left, right = STEREO
    jobs = []
    for folder in chosen_sequences(config.dataroot, config.sequences):
        pair = None
        if config.method == "sgbm":
            try:
                pair = rectified_pair(*read_projections(folder / "calib.txt").values())
            except ValueError as error:
                raise ValueError(f"{folder / 'calib.txt'}: {error}") from error
        target = (folder if config.output_root is None else config.output_root / "sequences" / folder.name) / "depth"
        for name in frame_names(folder, left, config.every_frame):
            picture = f"{name}.png"
            token = f"{folder.name}_{name}"
            jobs.append(DepthJob(token, folder / left / picture, folder / right / picture, target / picture, pair))
    if not jobs:
        raise ValueError(f"{config.dataroot}: {', '.join(config.sequences)} have no frames")
    return jobs


def make_depth(job: DepthJob, settings: dict[str, Any]) -> None:
    """Match one pair and write its depth picture; ValueError naming what cannot be read."""
    from syntheocc.occupancy.data.kitti import write_depth
    from syntheocc.occupancy.data.stereo_matching import stereo_depth

    left, right = (_picture(path) for path in (job.left, job.right))
    if left.shape != right.shape:
        raise ValueError(
            f"{job.right}: {right.shape[0]} x {right.shape[1]} pixels, but the left picture has "
            f"{left.shape[0]} x {left.shape[1]}; is it of another sequence?"
        )
    assert job.pair is not None
    write_depth(stereo_depth(left, right, job.pair, **settings), job.target)


def run(config: DepthConfig) -> int:
    """Write the depth pictures; returns the exit status (1: some could not be made)."""
    from tqdm import tqdm

    jobs = depth_jobs(config)
    output = config.output_root or config.dataroot
    settings = {name: getattr(config, name) for name in _MATTERS}
    settings["model"] = None if config.model is None else config.model.name
    path = output / SETTINGS_FILE
    check_settings(path, settings, "give another --output_root")
    todo = [job for job in jobs if not job.target.is_file()]
    failed: dict[str, str] = {}
    outcomes = _by_network(_network(config), todo) if config.method == "model" else _by_matching(config, todo)
    if todo:
        atomic_write_json(path, settings)
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="depth", unit="picture") as bar:
        for token, reason in outcomes:
            if reason is not None:
                failed[token] = reason
            bar.update()
    tally = Tally(len(todo) - len(failed), len(jobs) - len(todo), dict(sorted(failed.items())))
    print_summary(tally, "the depth pictures", output)
    return tally.status


def _network(config: DepthConfig) -> "DepthModel":
    import torch

    from syntheocc.occupancy.perception.occdepth.depth_models import DepthModel

    assert config.model is not None
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    return DepthModel(config.model, device)


def _by_network(network: "DepthModel", jobs: list[DepthJob]) -> Iterator[tuple[str, str | None]]:
    """Token and what was wrong, of each picture."""
    from syntheocc.occupancy.data.kitti import write_depth

    for job in jobs:
        try:
            write_depth(network(_picture(job.left)), job.target)
        except (ValueError, OSError) as error:
            yield job.token, str(error)
        else:
            yield job.token, None


def _by_matching(config: DepthConfig, jobs: list[DepthJob]) -> Iterator[tuple[str, str | None]]:
    """Token and what was wrong, of each picture, in any order."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    settings = {name: getattr(config, name) for name in ("max_disparity", "block", "uniqueness")}
    workers = min(config.workers or os.cpu_count() or 1, max(1, len(jobs)))
    if workers == 1:
        for job in jobs:
            yield job.token, _reason(job, settings)
        return
    # spawn: a forked child would inherit torch's and OpenCV's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        running = {pool.submit(_reason, job, settings): job.token for job in jobs}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _reason(job: DepthJob, settings: dict[str, Any]) -> str | None:
    try:
        make_depth(job, settings)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _one_thread() -> None:
    try:
        import cv2
    except ImportError:  # each picture says so, with the remedy
        return
    cv2.setNumThreads(1)


def _picture(path: Path) -> Any:
    """RGB uint8 [H, W, 3]."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); copy the picture again") from error
