"""Scene completion in ``syntheocc evaluate``: SemanticKITTI's ``.label`` files and NYUv2's ``.bin`` files, scored.

* semantic_kitti: ``[dataset/]sequences/XX/voxels/NNNNNN.label`` below ``--gt``; below ``--pred`` a submission's
  ``sequences/XX/predictions/NNNNNN.label``, or ``XX_NNNNNN.npz`` with an array `pred`.
* nyuv2: ``[depthbin/]NYUtest/NAME.bin`` below ``--gt`` (or the folder itself); below ``--pred`` ``NAME.npz``.

The voxels that count are the official ones: all whose class is known, which in SemanticKITTI leaves out invalid ones.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syntheocc.commands.evaluate import EvaluateConfig
    from syntheocc.commands.evaluate_samples import Sample

COMPLETION = ("semantic_kitti", "nyuv2")
_KITTI_LAYOUTS = (
    "sequences/{scene}/predictions/{frame}.label", "{scene}_{frame}.npz", "{scene}/{frame}.npz",
    "{scene}/predictions/{frame}.label",
)  # fmt: skip
_NYU_LAYOUTS = ("{frame}.npz",)


def find_completion_samples(config: "EvaluateConfig") -> "tuple[list[Sample], list[str]]":
    """The frames to score, and the tokens that have no prediction.

    Raises:
        ValueError: no labels, or (unless allowed) predictions that are missing; names the first.
    """
    from syntheocc.commands.evaluate_samples import Sample

    pred = Path(config.pred)
    if not pred.is_dir():
        layouts = ", ".join(_layouts(config))
        raise ValueError(f"predictions {pred} are not a folder; give the one that holds {layouts}")
    labels = _kitti_labels(config) if config.labels == "semantic_kitti" else _nyu_labels(config)
    samples, missing = [], []
    for token, scene, path in labels[: config.max_samples]:
        tried = [pred / layout.format(scene=scene, frame=path.stem) for layout in _layouts(config)]
        found = next((file for file in tried if file.is_file()), None)
        if found is None:
            missing.append(token)
        else:
            samples.append(Sample(token, str(found), str(path), None, None))
    if missing and (not config.allow_missing or not samples):
        raise ValueError(
            f"{pred}: {len(missing)} of {len(labels[: config.max_samples])} frames have no prediction, the first is "
            f"{missing[0]} (looked for {', '.join(_layouts(config))})"
            + ("; predict them, or score the rest with --allow_missing" if samples else "")
        )
    return samples, missing


def count_completion(sample: "Sample", config: "EvaluateConfig", metric: Any) -> None:
    """Count one frame; ValueError names what cannot be read or does not fit."""
    import torch

    from syntheocc.engine.files import read_npz
    from syntheocc.occupancy.data.frames import about
    from syntheocc.occupancy.data.kitti_submission import read_prediction
    from syntheocc.occupancy.data.nyuv2 import read_nyuv2
    from syntheocc.occupancy.data.semantic_kitti import read_semantic_kitti

    with about(f"sample {sample.token}"):
        if config.labels == "semantic_kitti":
            truth = read_semantic_kitti(sample.gt, release=config.voxel_release)
        else:
            truth = read_nyuv2(sample.gt)
        if sample.pred.endswith(".label"):
            pred = read_prediction(sample.pred)
        else:
            arrays = read_npz(sample.pred, ["pred"])
            pred = torch.from_numpy(arrays["pred"])
        with about(sample.pred):
            metric.update(pred, truth.labels, tokens=sample.token)


def _layouts(config: "EvaluateConfig") -> tuple[str, ...]:
    return _KITTI_LAYOUTS if config.labels == "semantic_kitti" else _NYU_LAYOUTS


def _kitti_labels(config: "EvaluateConfig") -> list[tuple[str, str, Path]]:
    """(token, sequence, .label) of every labelled frame of the split, in order."""
    from syntheocc.occupancy.data.semantic_kitti_frames import SEQUENCES, sequences_folder

    if config.split == "test" and not config.sequences:
        raise ValueError(
            "SemanticKITTI's test split has no public labels; pack the predictions with `syntheocc occupancy submit` "
            "and upload them"
        )
    base = sequences_folder(config.gt)
    splits = ("train", "val") if config.split == "trainval" else (config.split,)
    names = config.sequences or tuple(sorted(name for split in splits for name in SEQUENCES[split]))
    found = []
    for name in names:
        files = sorted((base / name / "voxels").glob("*.label"))
        if not files:
            raise ValueError(
                f"{base / name / 'voxels'}: no NNNNNN.label to score against; unpack data_odometry_voxels.zip there, "
                "or name the --sequences that are there"
            )
        found += [(f"{name}_{file.stem}", name, file) for file in files]
    return found


def _nyu_labels(config: "EvaluateConfig") -> list[tuple[str, str, Path]]:
    """(token, "", .bin) of every room of the split, in order."""
    root = Path(config.gt)
    splits = {"trainval": ("train", "test"), "train": ("train",)}.get(config.split, ("test",))
    for parent in (root, root / "depthbin"):
        files = [file for split in splits for file in sorted((parent / f"NYU{split}").glob("*.bin"))]
        if files:
            break
    else:
        files = sorted(root.glob("*.bin"))
    if not files:
        raise ValueError(f"{root}: no NYU{splits[0]}/NAME.bin; give the folder that nyu.zip unpacks to")
    return [(file.stem, "", file) for file in files]
