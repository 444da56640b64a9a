"""Which frames ``syntheocc evaluate`` scores: labels, predictions, poses and boxes brought together by token."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from syntheocc.commands.evaluate import EvaluateConfig
    from syntheocc.occupancy.data.frames import Frame

# Metrics that cast rays need the drive's poses.
ON_RAYS = ("rayiou", "raypq", "flow")
LABEL_FOLDERS = {"occ3d": ("gts", "occ3d_panoptic", "occ3d"), "openocc_v2": ("openocc_v2",)}
INFO_FILES = (
    "nuscenes_infos_{}.pkl", "nuscenes_occ_infos_{}.pkl", "nuscenes_infos_{}_sweep.pkl",
    "bevdetv2-nuscenes_infos_{}.pkl", "bevdetv3-nuscenes_infos_{}.pkl",
)  # fmt: skip
# Where predictions lie below their folder.
LAYOUTS = ("{token}.npz", "{scene}/{token}.npz", "{scene}/{token}/pred.npz", "{scene}/{token}/labels.npz")


class Sample(NamedTuple):
    """One frame to score; plain values, since it goes to another process."""

    token: str
    pred: str
    gt: str
    origins: list | None
    boxes: tuple | None


def find_samples(config: "EvaluateConfig") -> tuple[list[Sample], list[str]]:
    """The frames to score, and the tokens that have no prediction.

    Raises:
        ValueError: no labels, no frames, no poses, or (unless allowed) predictions that are missing; names tokens.
    """
    pred = Path(config.pred)
    if not pred.is_dir():
        raise ValueError(f"predictions {pred} are not a folder; give the one that holds <token>.npz")
    labels = _label_files(config)
    frames = _frames(config, labels)
    unlisted: list[str] = []
    if frames is None:
        # mIoU needs no poses: without infos, what has a prediction is what is scored; the rest is only reported.
        there = {token: _prediction(pred, token, path.parent.parent.name) for token, path in labels.items()}
        tokens = [token for token, path in there.items() if path is not None]
        unlisted = [token for token, path in there.items() if path is None]
    else:
        tokens = [frame.token for frame in frames]
    tokens = tokens[: config.max_samples]
    if not tokens:
        raise ValueError(f"{pred}: holds no prediction of the {len(labels)} labelled frames; check its file names")
    unlabelled = [token for token in tokens if token not in labels]
    if config.allow_missing and frames is not None:
        # JSON tables list all samples; those that have neither a label nor a prediction are just not scored.
        scenes = {frame.token: frame.scene or "unknown" for frame in frames}
        unlisted = [token for token in unlabelled if _prediction(pred, token, scenes[token]) is None]
        neither = set(unlisted)
        if len(neither) < len(tokens):
            tokens = [token for token in tokens if token not in neither]
            unlabelled = [token for token in unlabelled if token not in neither]
    if unlabelled:
        raise ValueError(
            f"{len(unlabelled)} of {len(tokens)} frames have no labels.npz, the first is sample {unlabelled[0]}; "
            "give their folder as --occ_path"
        )
    found = {token: _prediction(pred, token, labels[token].parent.parent.name) for token in tokens}
    missing = [token for token, path in found.items() if path is None]
    if missing and not config.allow_missing:
        raise ValueError(
            f"{pred}: {len(missing)} of {len(tokens)} frames have no prediction, the first is sample {missing[0]} "
            f"(looked for {', '.join(LAYOUTS)}); predict them, or score the rest with --allow_missing"
        )
    if len(missing) == len(tokens):
        raise ValueError(
            f"{pred}: none of the {len(tokens)} frames has a prediction, the first is sample {missing[0]} (looked for "
            f"{', '.join(LAYOUTS)})"
        )
    origins: Mapping[str, Any] = {}
    boxes: dict[str, tuple] = {}
    if frames is not None and set(config.names) & set(ON_RAYS):
        from syntheocc.occupancy.metrics import scene_origins

        # All frames of a scene have a part in it, scored or not.
        origins = scene_origins(frames)
    if frames is not None and "raypq" in config.names:
        boxes = {
            frame.token: (frame.boxes.box2ego.tolist(), frame.boxes.sizes.tolist(), frame.boxes.names)
            for frame in frames
            if frame.boxes is not None
        }
    samples = [
        Sample(
            token,
            str(path),
            str(labels[token]),
            origins[token].tolist() if token in origins else None,
            boxes.get(token),
        )
        for token, path in found.items()
        if path is not None
    ]
    return samples, missing + unlisted


def _label_files(config: "EvaluateConfig") -> dict[str, Path]:
    """Token -> its labels.npz; token and scene are told by the path."""
    names = LABEL_FOLDERS[config.labels]
    tried = [Path(config.occ_path)] if config.occ_path else [Path(config.gt) / name for name in names]
    if not config.occ_path:
        tried.append(Path(config.gt))
    if "raypq" in config.names and not config.occ_path and config.labels == "occ3d":
        tried.insert(0, Path(config.gt) / "occ3d_panoptic")
    for root in tried:
        if root.is_dir():
            files = {path.parent.name: path for path in sorted(root.glob("*/*/labels.npz"))}
            if files:
                return files
    raise ValueError(
        f"no {config.labels} labels: looked for <scene>/<token>/labels.npz below {', '.join(map(str, tried))}; give "
        "the folder of the scenes as --occ_path"
    )


def _frames(config: "EvaluateConfig", labels: Mapping[str, Path]) -> "list[Frame] | None":
    """The key frames to score, their scenes told by the label files; None where nothing lists them or needs to."""
    from syntheocc.occupancy.data.infos import read_infos
    from syntheocc.occupancy.data.nuscenes import NuScenesTables
    from syntheocc.occupancy.data.nuscenes_frames import frames_from_tables

    splits = ("train", "val") if config.split == "trainval" else (config.split,)
    paths = list(config.info_path)
    for split in splits if not paths else ():
        candidates = [Path(config.gt) / name.format(split) for name in INFO_FILES]
        there = [str(path) for path in candidates if path.is_file()]
        if not there and set(config.names) & set(ON_RAYS):
            raise ValueError(
                f"{config.metrics} needs the poses of the drive: none of {', '.join(map(str, candidates))} is there; "
                "give an info pickle (mmdetection3d, BEVDet, SparseOcc, OpenOccupancy) or the folder of nuScenes' "
                "JSON tables as --info_path"
            )
        if not there:
            return None
        paths.append(there[0])
    frames: dict[str, Frame] = {}
    unreadable: dict[str, str] = {}
    for path in paths:
        if Path(path).is_dir():
            found = frames_from_tables(NuScenesTables(path, config.gt), unreadable=unreadable)
        else:
            found = read_infos(path, config.gt, unreadable=unreadable)
        frames |= {frame.token: frame for frame in found}
    if unreadable:
        token, reason = next(iter(unreadable.items()))
        raise ValueError(f"{len(unreadable)} samples cannot be read, the first is {token}: {reason}")
    if not frames:
        raise ValueError(f"{', '.join(map(str, paths))}: no samples in it")
    return [
        replace(frame, scene=labels[token].parent.parent.name) if token in labels else frame
        for token, frame in frames.items()
    ]


def _prediction(folder: Path, token: str, scene: str) -> Path | None:
    for layout in LAYOUTS:
        path = folder / layout.format(token=token, scene=scene)
        if path.is_file():
            return path
    return None
