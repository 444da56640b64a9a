"""OccDepth as the programs see it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from syntheocc.engine.files import read_npz
from syntheocc.engine.loading import BadSample
from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.completion_files import write_completion_file
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.perception.occdepth.acceleration import prepare_for_inference
from syntheocc.occupancy.perception.occdepth.augmentation import StereoAugmentation
from syntheocc.occupancy.perception.occdepth.batch import StereoBatch, collate
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig
from syntheocc.occupancy.perception.occdepth.convert import load_encoder
from syntheocc.occupancy.perception.occdepth.dataset import StereoFrames
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
from syntheocc.occupancy.perception.occdepth.indoor_sources import stereo_source
from syntheocc.occupancy.perception.occdepth.model import OccDepth
from syntheocc.occupancy.perception.occdepth.presets import PRESETS, PUBLISHED, OccDepthRecipe
from syntheocc.occupancy.perception.occdepth.settings import OccDepthTrainConfig
from syntheocc.occupancy.perception.occdepth.sources import StereoSource
from syntheocc.occupancy.perception.occdepth.step import OccDepthStep
from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.registry import GeneratorOf, ModelEntry
from syntheocc.occupancy.perception.settings import PredictConfig, SourceConfig, TrainConfig
from syntheocc.occupancy.perception.shared_norms import share_batch_norms
from syntheocc.occupancy.perception.sources import ROUNDS, check_readable
from syntheocc.occupancy.perception.trees import TREES, TreeLabels

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# What each data set has of depth: that of KITTI's teacher is made by utils/gen_depth.py.
_DEPTHS: dict[str, Any] = {"semantic_kitti": "stereo", "nyuv2": "sensor", "tartanair": "sensor"}


class OccDepthEntry(ModelEntry):
    """Learns scene completion from stereo pairs, single pictures, or pictures with depth."""

    name = "occdepth"
    model_class = OccDepth
    presets = PRESETS
    published = PUBLISHED
    train_settings = OccDepthTrainConfig
    collate = staticmethod(collate)

    def fit(self, config: OccDepthConfig, settings: TrainConfig) -> OccDepthConfig:
        """The preset as it is: its grid, classes and readers are one data set's."""
        if settings.labels != config.dataset:
            raise ValueError(
                f"preset {settings.preset} is made for {config.dataset}; --labels={settings.labels} has other classes "
                f"on another grid. Presets of {settings.labels}: {', '.join(_presets_for(settings.labels)) or 'none'}"
            )
        if settings.frames_per_sample not in (None, 1):
            raise ValueError(f"frames_per_sample is {settings.frames_per_sample}; OccDepth sees one instant")
        return config

    def training_data(self, config: OccDepthConfig, recipe: Any, settings: TrainConfig) -> StereoFrames:
        """Samples with mirrored pictures and changed colours, and the depth that the config learns from."""
        assert isinstance(settings, OccDepthTrainConfig) and isinstance(recipe, OccDepthRecipe)
        depth = settings.teacher
        if depth == "preset":
            depth = _DEPTHS[config.dataset] if recipe.teacher else "none"
        if config.virtual_view:
            depth = "sensor"
        elif not config.depth_loss_weight or config.lift == "flosp":
            depth = "none"
        source = _source(config, settings, None if depth == "none" else depth, labels=True)
        data = StereoFrames(
            source,
            StereoAugmentation(
                jitter=recipe.color_jitter,
                flip=0.5 if recipe.flip_images else 0.0,
                shared=not settings.colours_apart,
                strong=settings.strong_augmentation,
            ),
            seed=settings.seed,
            rounds=max(ROUNDS, settings.epochs or 0),
            unreadable=BadSample,
        )
        check_readable(data)
        return data

    def build(self, config: OccDepthConfig, settings: TrainConfig) -> OccDepth:
        """Random weights; `backbone_weights` are those of an EfficientNet."""
        from accelerate.utils import parse_flag_from_env

        assert isinstance(settings, OccDepthTrainConfig)
        model = OccDepth(config)
        if settings.backbone_weights is not None:
            print(f"{settings.backbone_weights}: {load_encoder(model, settings.backbone_weights)} tensors loaded")
        model.gradient_checkpointing_enable(settings.gradient_checkpointing)
        if settings.share_batch_norms and Ranks.from_environment().world > 1:
            # As accelerate decides where the loop runs.
            share_batch_norms(model, not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
        return model

    def step(self, model: OccDepth, settings: TrainConfig, generator_of: GeneratorOf) -> OccDepthStep:
        """The eight losses."""
        assert isinstance(settings, OccDepthTrainConfig)
        return OccDepthStep(model, settings.max_train_steps if settings.sem_step_decay else None)

    def parameter_groups(self, model: OccDepth, recipe: Any, learning_rate: float) -> list[dict[str, Any]]:
        """All alike, but for the encoder's rate."""
        return model.parameter_groups(recipe, learning_rate)

    def test_data(self, config: OccDepthConfig, settings: PredictConfig) -> StereoFrames:
        """All frames as they are; depth for a virtual second view alone."""
        if settings.published_files and config.grid != TREES[config.dataset].spec:
            raise ValueError(
                f"--published_files are of {config.dataset}'s own voxels; the model's are {config.grid}: leave it out"
            )
        source = _source(config, settings, "sensor" if config.virtual_view else None, labels=False)
        return StereoFrames(source, unreadable=BadSample)

    def predictor(
        self, model: OccDepth, settings: PredictConfig, data: Any
    ) -> Callable[[StereoBatch], OccupancyPrediction]:
        """The most likely class of every voxel."""
        if settings.threshold:
            raise ValueError("OccDepth predicts classes, no density that a threshold could cut: leave --threshold out")
        if settings.online:
            raise ValueError("OccDepth sees one instant and remembers nothing: leave --online out")
        if settings.half != "no":
            model = prepare_for_inference(model, _DTYPES[settings.half])
        return lambda batch: model.predict(batch.images, StereoCameras.of_batch(batch), batch.depth)

    def after_prediction(self, config: OccDepthConfig, settings: PredictConfig, frames: Sequence[Frame]) -> None:
        """With `published_files`: predictions, truth and cameras as the published generate_output.py keeps them.

        A frame whose labels are damaged gets no file; which ones is said at the end.
        """
        if not settings.published_files:
            return
        from tqdm import tqdm

        labels = settings.reader(optional=True)
        assert isinstance(labels, TreeLabels)
        unwritten: list[str] = []
        for frame in tqdm(frames, desc="published files", unit="frame"):
            try:
                _write_published(config, settings, labels, frame)
            except ValueError as error:
                unwritten.append(str(error))
        for reason in unwritten:
            print(f"no published file: {reason}", file=sys.stderr)


def _write_published(config: OccDepthConfig, settings: PredictConfig, labels: TreeLabels, frame: Frame) -> None:
    pose = labels.grid2ego(frame)
    pred = read_npz(settings.output_dir / f"{frame.token}.npz", ["pred"])["pred"]
    found = labels(frame)
    truth = None if found is None else OccupancyGrid(found.semantics, *labels.preset, pose)
    rig = CameraRig(dict(list(frame.cameras.items())[: 1 if config.virtual_view else config.num_views]))
    grid = OccupancyGrid(pred, *labels.preset, pose)
    write_completion_file(_published_path(settings, labels.kind, frame), grid, rig, truth)


def _published_path(settings: PredictConfig, kind: str, frame: Frame) -> Path:
    """Where generate_output.py writes a frame, but for the suffix."""
    folder = settings.output_dir / "output" / {"semantic_kitti": "kitti", "nyuv2": "NYU"}.get(kind, kind)
    return folder / frame.scene / f"{frame.extras.get('frame', frame.token)}.npz"


def _source(config: OccDepthConfig, settings: SourceConfig, depth: Any, labels: bool) -> StereoSource:
    """The samples' source; prediction reads frames beyond `max_samples` too, whoever calls says which count."""
    more: dict[str, Any] = {}
    if config.dataset == "semantic_kitti":
        more = {
            "release": settings.voxel_release,
            "labels_root": settings.labels_root,
            "depth_root": settings.depth_root,
        }
    frames = settings.frames() if labels else settings.frames(everything=True, unreadable={})
    return stereo_source(config, frames, depth, labels, **more)


def _presets_for(dataset: str) -> list[str]:
    return [name for name, make in PRESETS.items() if make()[0].dataset == dataset] if dataset in TREES else []


ENTRY = OccDepthEntry()
