"""``syntheocc occupancy submit | check-submission | export``: predictions to the benchmark, models to ONNX."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from syntheocc.engine.flags import flag

# The names under which a prediction's classes lie in its file.
_KEYS = ("pred", "y_pred", "semantics")


@dataclass(kw_only=True)
class SubmitConfig:
    """Pack predictions for SemanticKITTI's benchmark: a zip that the server takes, checked before it is there."""

    predictions: Path = flag(
        MISSING, "folder of XX_NNNNNN.npz, as `syntheocc occupancy predict --split test` leaves it"
    )
    dataroot: Path = flag(MISSING, "KITTI's root; its voxels/NNNNNN.bin say what is to be predicted")
    output: Path = flag(Path("submission.zip"), "the zip; a name without .zip is a folder of .label files")
    sequences: tuple[str, ...] = flag((), "sequences; empty: those of the benchmark, 11 to 21")
    description: str | None = flag(None, "text of description.txt")


@dataclass(kw_only=True)
class CheckConfig:
    """Check a submission to SemanticKITTI's benchmark; says all that is wrong with it, and exits with 2 then."""

    submission: Path = flag(MISSING, "the zip, or the folder that holds sequences/")
    dataroot: Path = flag(MISSING, "KITTI's root; its voxels/NNNNNN.bin say what is to be predicted")
    sequences: tuple[str, ...] = flag((), "sequences; empty: those of the benchmark, 11 to 21")


@dataclass(kw_only=True)
class ExportConfig:
    """Write OccDepth as an ONNX file with its weights, checked in onnxruntime against PyTorch."""

    weights: Path = flag(MISSING, "folder of a trained model, or a released .ckpt file")
    preset: str | None = flag(None, "preset that a released file was trained as", aliases=("config",))
    output: Path = flag(Path("occdepth.onnx"), "the file")
    rig_of: Path | None = flag(
        None, "a KITTI sequence's folder: keep its cameras in the file; empty: cameras are inputs"
    )
    check: bool = flag(True, "run the file in onnxruntime and compare it with PyTorch")
    tolerance: float = flag(1e-3, "largest difference of a logit in the check")


def submit(config: SubmitConfig) -> int:
    """Pack and check; returns the exit status."""
    import torch

    from syntheocc.engine.files import read_npz
    from syntheocc.occupancy.data.kitti_submission import (
        TEST_SEQUENCES,
        check_submission,
        prediction_path,
        submission_frames,
        write_prediction,
        write_submission,
    )

    wanted = submission_frames(config.dataroot, config.sequences or TEST_SEQUENCES)

    def labels(sequence: str, frame: str) -> Any:
        path = config.predictions / f"{sequence}_{frame}.npz"
        arrays = read_npz(path, [])
        key = next((key for key in _KEYS if key in arrays), None)
        if key is None:
            raise ValueError(f"{path}: lacks an array {' or '.join(_KEYS)}, has {sorted(arrays)}")
        return torch.from_numpy(arrays[key].astype("int64"))

    missing = [
        f"{s}_{f}.npz" for s, frames in wanted.items() for f in frames
        if not (config.predictions / f"{s}_{f}.npz").is_file()
    ]  # fmt: skip
    if missing:
        raise ValueError(
            f"{config.predictions}: {len(missing)} of {sum(map(len, wanted.values()))} predictions are missing, the "
            f"first is {missing[0]}; predict them with --sequences={','.join(wanted)}"
        )
    if config.output.suffix == ".zip":
        write_submission(config.output, wanted, labels, config.description)
    else:
        for sequence, frames in wanted.items():
            for frame in frames:
                write_prediction(labels(sequence, frame), prediction_path(config.output, sequence, frame))
    number = check_submission(config.output, config.dataroot, tuple(wanted))
    print(f"{config.output}: {number} predictions of {len(wanted)} sequences, as the benchmark wants them")
    return 0


def check(config: CheckConfig) -> int:
    """Check; returns the exit status."""
    from syntheocc.occupancy.data.kitti_submission import TEST_SEQUENCES, check_submission

    number = check_submission(config.submission, config.dataroot, config.sequences or TEST_SEQUENCES)
    print(f"{config.submission}: {number} predictions, nothing wrong with them")
    return 0


def export(config: ExportConfig) -> int:
    """Export and check; returns the exit status: 1 where ONNX and PyTorch differ."""
    from syntheocc.occupancy.perception.occdepth.model import OccDepth
    from syntheocc.occupancy.perception.occdepth.onnx_export import check_onnx, export_onnx, onnx_inputs
    from syntheocc.occupancy.perception.registry import load_model
    from syntheocc.occupancy.perception.settings import PredictConfig

    _, model = load_model(PredictConfig(weights=config.weights, model="occdepth", preset=config.preset, device="cpu"))
    if not isinstance(model, OccDepth):
        raise ValueError(f"{config.weights}: holds a {type(model).__name__}; only OccDepth is exported to ONNX")
    rig = None if config.rig_of is None else _rig(model, config.rig_of)
    export_onnx(model.eval(), config.output, rig)
    print(f"wrote {config.output}")
    for name, value in onnx_inputs(model, rig).items():
        print(f"  input {name}: {str(value.dtype).removeprefix('torch.')} {list(value.shape)}")
    if not config.check:
        return 0
    differences = check_onnx(model, config.output, rig)
    for name, difference in differences.items():
        print(f"  {name}: largest difference to PyTorch {difference:.3g}")
    return int(max(value for name, value in differences.items() if name != "labels") > config.tolerance)


def _rig(model: Any, folder: Path) -> Any:
    """The cameras of a KITTI sequence, for the model's input size."""
    from syntheocc.occupancy.data.kitti import STEREO, read_sequence
    from syntheocc.occupancy.perception.occdepth.dataset import StereoFrames
    from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
    from syntheocc.occupancy.perception.occdepth.indoor_sources import stereo_source

    if model.config.dataset != "semantic_kitti":
        raise ValueError(f"{folder}: only KITTI's cameras never move; {model.config.dataset} takes them as inputs")
    frames = read_sequence(folder, tuple(STEREO)[: model.config.num_views])
    sample = StereoFrames(stereo_source(model.config, frames[:1], labels=False)).sample(frames[0])
    return StereoCameras.of_batch(sample)
