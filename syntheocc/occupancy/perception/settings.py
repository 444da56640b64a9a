"""Settings of training, prediction and evaluation as flags; light, so that a command line is read at once.

Where the originals' programs had another name for a flag, it is an alias: ``--config`` (a preset's name, or the path
of the published configuration file), ``--work_dir``, ``--work-dir``, ``--resume-from``, ``--eval``.
"""

from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from syntheocc.engine.flags import flag
from syntheocc.engine.loop_config import LoopConfig, LRScheduler

if TYPE_CHECKING:
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.perception.labels import LabelReader
    from syntheocc.occupancy.perception.trees import TreeLabels

__all__ = ["METRICS", "EvaluateConfig", "Labels", "PredictConfig", "SourceConfig", "TrainConfig", "labels_with"]

METRICS = ("miou", "rayiou", "raypq", "ssc")
Labels = Literal["occ3d", "openocc_v2", "surroundocc", "openoccupancy", "semantic_kitti", "nyuv2", "tartanair"]
Split = Literal["train", "val", "test"]
VoxelRelease = Literal["detect", "current", "before_2020_08_24"]
_WORK_DIR = ("work_dir", "work-dir")
_OF_THE_PRESET = "empty: the preset's"


@dataclass(kw_only=True)
class SourceConfig:
    """Frames and their labels; the settings that training, prediction and evaluation share."""

    dataroot: Path = flag(
        Path("data/nuscenes"),
        "data root: the folder that holds samples/, or of KITTI sequences/, of NYUv2 NYUtrain/, of TartanAir office/",
        aliases=("data_root", "data-root"),
    )
    info_path: tuple[str, ...] = flag(
        (), "info pickles; empty: all frames of the JSON tables below --dataroot, of every split"
    )
    labels: Labels = flag("occ3d", "format of the labels")
    labels_root: Path | None = flag(None, "folder of the labels; empty: their usual place below --dataroot")
    split: Split | None = flag(
        None, "of KITTI, NYUv2 and TartanAir; empty: train, and in predictions and evaluations val"
    )
    sequences: tuple[str, ...] = flag((), "sequences of KITTI, instead of a split")
    voxel_release: VoxelRelease = flag("detect", "of SemanticKITTI's voxels; those of before 2020-08-24 are put right")
    depth_root: Path | None = flag(
        None,
        "tree with depth/ beside the sequences; empty: --dataroot",
        aliases=("data_stereo_depth_root", "data-stereo-depth-root"),
    )
    max_samples: int | None = flag(None, "use the first so many frames only")
    allow_missing_files: bool = flag(
        False, "a picture that does not exist is a missing camera, not an unreadable sample"
    )

    _usual_split: ClassVar[Split] = "train"

    decoder: Literal["pillow", "turbojpeg"] = flag("pillow", "decodes JPEGs; turbojpeg is the package simplejpeg")
    draft: bool = flag(True, "decode JPEGs at the scale that is needed, instead of in full")

    def picture_settings(self) -> dict[str, Any]:
        """How pictures are read, as fields of `Sampling`."""
        return {name: getattr(self, name) for name in ("allow_missing_files", "decoder", "draft")}

    def check_source(self) -> None:
        """Paths given as text become paths; ValueError for a number of frames below one."""
        self.dataroot = Path(self.dataroot)
        self.labels_root = None if self.labels_root is None else Path(self.labels_root)
        self.depth_root = None if self.depth_root is None else Path(self.depth_root)
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples is {self.max_samples}; it must be 1 or more")

    def use(self, model: Any) -> None:
        """Settings that are left out become those that a model's config asks for.

        Raises:
            ValueError: settings of other data sets than the labels'.
        """
        from syntheocc.occupancy.perception.trees import TREES

        if self.labels is None:
            self.labels = labels_with(model.taxonomy)
        if self.labels not in TREES and (self.split or self.sequences):
            raise ValueError(f"--split and --sequences are of {', '.join(TREES)}; {self.labels} labels have neither")
        self.__dict__["_model"] = model

    @property
    def is_tree(self) -> bool:
        """Whether frames are those of a data set of scene completion (`trees`), not of nuScenes."""
        from syntheocc.occupancy.perception.trees import TREES

        return self.labels in TREES

    def frames(self, everything: bool = False, unreadable: dict[str, str] | None = None) -> "list[Frame]":
        """The key frames; read once.

        Args:
            everything: without the limit of `max_samples`.
            unreadable: where entries that are no valid frame go (token -> reason), for a job that does without them;
                left out, they are errors.

        Raises:
            ValueError: a pickle or a table is missing or damaged, or lists no frame.
        """
        if "_found" not in self.__dict__:
            self.__dict__["_found"] = self._read()
        frames, bad = self.__dict__["_found"]
        if bad and unreadable is None:
            raise ValueError(f"{len(bad)} entries are no valid frames, the first is {next(iter(bad.values()))}")
        if unreadable is not None:
            unreadable |= bad
        return frames if everything else frames[: self.max_samples]

    def _read(self) -> "tuple[list[Frame], dict[str, str]]":
        from syntheocc.occupancy.data.infos import read_infos
        from syntheocc.occupancy.data.nuscenes import read_tables
        from syntheocc.occupancy.data.nuscenes_frames import frames_from_tables
        from syntheocc.occupancy.perception.trees import tree_frames

        bad: dict[str, str] = {}
        if self.is_tree:
            split = self.split or self._usual_split
            views = getattr(self.__dict__.get("_model"), "num_views", 2)
            return tree_frames(self.labels, self.dataroot, split, self.sequences, views, self.labels_root), bad
        if self.info_path:
            listed = [read_infos(path, self.dataroot, unreadable=bad) for path in self.info_path]
            frames = [frame for part in listed for frame in part]
        else:
            frames = frames_from_tables(read_tables(self.dataroot), unreadable=bad)
        if not frames:
            reason = f"; {next(iter(bad.values()))}" if bad else ""
            raise ValueError(f"{', '.join(self.info_path) or self.dataroot}: no frames{reason}")
        return frames, bad

    def reader(self, **settings: Any) -> "LabelReader | TreeLabels":
        """The reader of the labels; `settings` are `LabelReader`'s (instances, mask, ...)."""
        from syntheocc.occupancy.data.samples import usual_label_root
        from syntheocc.occupancy.perception.labels import LabelReader
        from syntheocc.occupancy.perception.trees import TreeLabels

        if self.is_tree:
            # What other formats choose from (masks, objects) these labels have not.
            grid = self.__dict__["_model"].grid
            optional = bool(settings.get("optional"))
            return TreeLabels(self.labels, grid, self.labels_root, self.voxel_release, optional)
        root, kind = self.labels_root, self.labels or "occ3d"  # empty before a model has said what it is
        if root is None:
            root = usual_label_root(self.dataroot, kind)  # type: ignore[arg-type]
            # The published trainers keep them below the format's name, and the panoptic copies beside.
            panoptic = self.dataroot / f"{kind}_panoptic"
            if settings.get("instances") == "file" and panoptic.is_dir():
                root = panoptic
            elif not root.is_dir() and (self.dataroot / kind).is_dir():
                root = self.dataroot / kind
        return LabelReader(root, kind, **settings)


@dataclass(kw_only=True)
class TrainConfig(SourceConfig, LoopConfig):
    """Settings of a training run.

    What is left out comes from the preset's recipe, and is filled in here: a run of a preset alone is the published
    one. A model with flags of its own has a subclass of this.

    Raises:
        ValueError: a value is out of its range, or a model or a preset that there is not.
    """

    labels: Labels = flag(None, f"format of the labels; {_OF_THE_PRESET}")
    model: str = flag("sparseocc", "which model")
    preset: str = flag(None, "which of the model's presets; empty: its small one", aliases=("config",))
    frames_per_sample: int | None = flag(None, f"frames the model sees, the current one included; {_OF_THE_PRESET}")
    backbone_weights: Path | None = flag(None, "a detector's or classifier's weights for the ResNet; empty: random")
    label_mask: Literal["camera", "lidar", "none"] = flag("camera", "learn from voxels that this sensor observed")
    instances: Literal["file", "boxes"] = flag("boxes", "whence object ids come, for panoptic presets")
    gradient_checkpointing: bool = flag(False, "less memory, more time")
    extra_dataroot: tuple[Path, ...] = flag(
        (),
        "more data roots to train on, e.g. generated ones (docs/loop.md); validated is on --dataroot alone",
        repeated=True,
    )
    extra_info_path: tuple[str, ...] = flag(
        (),
        "info pickle of each extra root; empty: those of --info_path by their names, or the tables below it",
        repeated=True,
    )
    extra_labels_root: tuple[Path, ...] = flag(
        (), "folder of each extra root's labels; empty: their usual place below it", repeated=True
    )
    extra_repeat: tuple[float, ...] = flag(
        (),
        "how often an epoch has each frame of an extra root, 0.5: every second time; for all or one each; empty: 1",
        repeated=True,
    )
    extra_share: tuple[float, ...] = flag(
        (),
        "instead of extra_repeat: which share of the samples comes from each extra root, e.g. 0.5",
        repeated=True,
    )
    validation_info_path: tuple[str, ...] = flag((), "info pickles of held-out frames, for --validation_steps")
    validation_sequences: tuple[str, ...] = flag((), "sequences of KITTI held out; empty: those of the split val")
    validation_samples: int | None = flag(None, "validate on so many of them, evenly spread; empty: on all")

    output_dir: Path = flag(Path("outputs"), "folder of checkpoints, logs and the trained model", aliases=_WORK_DIR)
    resume_from_checkpoint: str | None = flag(
        None, "'latest', a checkpoint's name or path", aliases=("resume-from", "resume_from")
    )
    epochs: int | None = flag(None, f"train for so many epochs; {_OF_THE_PRESET}")
    max_train_steps: int = flag(None, "train for so many optimizer steps instead of epochs")
    global_batch_size: int = flag(None, f"samples of one optimizer step, over all GPUs; {_OF_THE_PRESET}")
    learning_rate: float = flag(None, f"learning rate after warm-up; {_OF_THE_PRESET}")
    lr_scheduler: LRScheduler = flag(None, f"schedule of the learning rate; {_OF_THE_PRESET}")
    lr_warmup_steps: int = flag(None, f"steps over which the learning rate rises; {_OF_THE_PRESET}")
    lr_warmup_start: float = flag(None, f"share of the learning rate at which it begins to rise; {_OF_THE_PRESET}")
    lr_decay: float = flag(None, f"factor of schedule 'step'; {_OF_THE_PRESET}")
    lr_end: float = flag(None, f"share of the learning rate at which schedules end; {_OF_THE_PRESET}")
    lr_milestones: tuple[int, ...] = flag((), f"steps after which 'step' drops the learning rate; {_OF_THE_PRESET}")
    adam_weight_decay: float = flag(None, f"weight decay of AdamW; {_OF_THE_PRESET}")
    max_grad_norm: float = flag(None, f"gradients are clipped to this norm; 0: not clipped; {_OF_THE_PRESET}")

    def __post_init__(self) -> None:
        from syntheocc.occupancy.perception.registry import model_entry

        entry = model_entry(self.model)
        self.preset = entry.preset_name(self.preset or entry.default_preset)
        model, recipe = entry.preset(self.preset)
        self.use(model)
        if self.max_train_steps is None and self.epochs is None:
            self.epochs = recipe.epochs
        elif self.max_train_steps is not None and self.epochs is not None:
            raise ValueError(f"epochs={self.epochs} and max_train_steps={self.max_train_steps}: give one of them")
        # A schedule that was asked for keeps the engine's numbers, not those of the recipe's own schedule.
        unsaid = {field.name: field.default for field in fields(LoopConfig)}
        wanted = recipe.loop_settings()
        if self.lr_scheduler not in (None, recipe.schedule):
            wanted = {name: value for name, value in wanted.items() if name not in ("lr_end", "lr_decay")}
        for name, value in (unsaid | wanted).items():
            if getattr(self, name) is None and name != "max_train_steps":
                setattr(self, name, value)
        super().__post_init__()
        self.check_source()
        self._check_extra()
        self.backbone_weights = None if self.backbone_weights is None else Path(self.backbone_weights)
        if self.validation_steps and not self.validation_info_path and not self.is_tree:
            raise ValueError("validation_steps needs validation_info_path, the info pickles of held-out frames")
        for name in ("epochs", "frames_per_sample", "validation_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")

    def _check_extra(self) -> None:
        self.extra_dataroot = tuple(Path(root) for root in self.extra_dataroot)
        self.extra_labels_root = tuple(Path(root) for root in self.extra_labels_root)
        number = len(self.extra_dataroot)
        for name in ("extra_info_path", "extra_labels_root", "extra_repeat", "extra_share"):
            values = getattr(self, name)
            if values and len(values) != number and not (name == "extra_repeat" and number and len(values) == 1):
                raise ValueError(
                    f"{name} has {len(values)} values ({', '.join(map(str, values))}) for {number} extra_dataroot; "
                    "give one for each"
                )
        if self.extra_repeat and self.extra_share:
            raise ValueError(
                f"extra_repeat={self.extra_repeat} and extra_share={self.extra_share} both say how much is drawn from "
                "the extra data roots: give one of them"
            )
        if any(not 0.0 < times < float("inf") for times in self.extra_repeat):
            raise ValueError(f"extra_repeat is above 0, got {self.extra_repeat}")
        # As written: 0.7, 0.2 and 0.1 are one, though their sum as floats is a little less.
        whole = sum(Fraction(str(share)) for share in self.extra_share if 0.0 < share < 1.0)
        if any(not 0.0 < share < 1.0 for share in self.extra_share) or whole >= 1:
            raise ValueError(
                f"extra_share is above 0, and below 1 in all (the rest comes from dataroot), got {self.extra_share}"
            )


def labels_with(taxonomy: Any) -> Any:
    """The format whose labels have a class table; Occ3D's where none has it."""
    from syntheocc.occupancy.data.occupancy_files import preset_of
    from syntheocc.occupancy.perception.trees import TREES

    presets = {name: TREES[name] if name in TREES else preset_of(name) for name in get_args(Labels)}
    return next((name for name, preset in presets.items() if preset.taxonomy == taxonomy), "occ3d")


@dataclass(kw_only=True)
class PredictConfig(SourceConfig):
    """Settings of a prediction.

    Raises:
        ValueError: a number below its range, or a device that is not there.
    """

    _usual_split: ClassVar[Split] = "val"

    labels: Labels = flag(None, "format of the labels; empty: that of the model's classes")
    weights: Path = flag(
        Path("outputs"), "folder of a trained model, as training leaves it; or a released .pth or .ckpt file"
    )
    model: str = flag("sparseocc", "which model a released file is of; a folder says it itself")
    preset: str | None = flag(None, "preset that a released file was trained as", aliases=("config",))
    output_dir: Path = flag(
        Path("predictions"), "folder of <token>.npz", aliases=(*_WORK_DIR, "save-occ-path", "save_occ_path")
    )
    batch_size: int = flag(1, "samples at a time")
    workers: int = flag(0, "processes that read samples; 0: in this process")
    device: str = flag("auto", "cpu, cuda, cuda:1, ...; auto: a GPU where there is one")
    half: Literal["no", "fp16", "bf16"] = flag("no", "precision of the weights; the half ones are for GPUs")
    threshold: tuple[float, ...] = flag(
        (), "of models that predict a density: decide by this, not by the stored one; several: mIoU of each besides"
    )
    online: bool = flag(False, "each image goes through the network once and its features are remembered")
    pictures: bool = flag(False, "also draw every prediction, and every scene as an animation, into pictures/")
    meshes: bool = flag(False, "also write every prediction's surface as meshes/<token>.ply")
    published_files: bool = flag(
        False, "of OccDepth: also write what its generate_output.py pickles, as output/<data set>/<frame>.npz"
    )

    def __post_init__(self) -> None:
        import torch

        self.check_source()
        self.weights, self.output_dir = Path(self.weights), Path(self.output_dir)
        if self.batch_size < 1 or self.workers < 0:
            raise ValueError(f"batch_size {self.batch_size} and workers {self.workers} must be 1 and 0 or more")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device}, but torch finds no GPU; give cpu")
        try:
            number = None if self.device == "auto" else torch.device(self.device).index
        except RuntimeError as error:
            raise ValueError(f"device is {self.device!r}; give auto, cpu, cuda or cuda:1") from error
        if self.device.startswith("cuda") and (number or 0) >= torch.cuda.device_count():
            raise ValueError(f"device is {self.device}, but torch finds {torch.cuda.device_count()} GPUs, from cuda:0")


@dataclass(kw_only=True)
class EvaluateConfig(PredictConfig):
    """Settings of an evaluation.

    Raises:
        ValueError: a metric that there is not; see also `PredictConfig`.
    """

    metrics: tuple[str, ...] = flag(
        (),
        f"which of {', '.join(METRICS)}; empty: miou,rayiou, or ssc of KITTI, NYUv2 and TartanAir",
        aliases=("eval",),
    )
    mask: Literal["camera", "lidar", "none"] = flag("camera", "mIoU counts voxels that this sensor observed")
    allow_unreadable: bool = flag(False, "score without the samples that cannot be read, instead of refusing")
    store_threshold: bool = flag(
        False, "keep the --threshold of the best mIoU in the weights' config; score training scenes that were held out"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.store_threshold and (len(self.threshold) < 2 or not self.weights.is_dir()):
            raise ValueError(
                f"store_threshold chooses among several --threshold (got {len(self.threshold)}) and keeps the best in "
                f"a folder of --weights (got {self.weights})"
            )
        names = (name.strip().lower() for text in self.metrics for name in text.split(","))
        self.metrics = tuple(dict.fromkeys(name for name in names if name))
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown:
            raise ValueError(f"metrics are some of {', '.join(METRICS)}; got {','.join(self.metrics)}")

    def use(self, model: Any) -> None:
        """As of every program; also the metrics that go with the labels."""
        super().use(model)
        self.metrics = self.metrics or (("ssc",) if self.is_tree else ("miou", "rayiou"))
        if self.store_threshold and "miou" not in self.metrics:
            raise ValueError(f"store_threshold goes by mIoU, which --metrics={','.join(self.metrics)} leaves out")
        if self.is_tree != (self.metrics == ("ssc",)):
            raise ValueError(
                f"--metrics={','.join(self.metrics)} with {self.labels} labels: ssc is the metric of KITTI, NYUv2 and "
                "TartanAir, and the only one; the others have no ssc"
            )
