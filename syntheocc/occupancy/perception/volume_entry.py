"""What the programs must know of the models that are taught by rendering."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch

from syntheocc.engine.loading import BadSample
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.generated import edited_samples
from syntheocc.occupancy.data.lidarseg import LidarReader
from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.perception.batch import OccupancyBatch
from syntheocc.occupancy.perception.dataset import OccupancyFrames, Sampling
from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.ray_store import RayReader
from syntheocc.occupancy.perception.recipes import TrainingRecipe
from syntheocc.occupancy.perception.registry import GeneratorOf, ModelEntry
from syntheocc.occupancy.perception.settings import PredictConfig, TrainConfig
from syntheocc.occupancy.perception.sources import ROUNDS, evenly_spread, test_samples, training_labels
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.occupancy.perception.view_transform import LiftCameras
from syntheocc.occupancy.perception.volume_config import VolumeConfig
from syntheocc.occupancy.perception.volume_model import VolumeModel
from syntheocc.occupancy.perception.volume_recipe import RenderRecipe
from syntheocc.occupancy.perception.volume_settings import RenderTrainConfig
from syntheocc.occupancy.perception.volume_step import VolumeStep

__all__ = ["VolumeEntry", "render_sampling"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def render_sampling(config: VolumeConfig, recipe: RenderRecipe, **settings: Any) -> Sampling:
    """Training samples as a recipe wants them: each camera with a draw of its own, grids mirrored but not turned."""
    height, width = config.image_size
    image = ImageAugmentation(
        height=height,
        width=width,
        scales=recipe.image_scales,
        flip=recipe.flip_images,
        max_rotation=recipe.max_rotation_deg * torch.pi / 180,
        per_camera=True,
    )
    return Sampling(
        num_frames=config.num_frames,
        image=image,
        training=True,
        grid_turns=recipe.flip_and_turn_grid,
        max_yaw=0.0,
        random_history=False,
        missing="current",
        photometric=False,
        **settings,
    )


class VolumeEntry(ModelEntry):
    """Learns from lidar points (and from labelled voxels where the config says so), in Occ3D's classes."""

    step_class: ClassVar[type[VolumeStep]]
    train_settings = RenderTrainConfig

    def fit(self, config: VolumeConfig, settings: TrainConfig) -> VolumeConfig:
        """The preset on the labels' grid; the classes are Occ3D's, which is what lidar points are labelled with."""
        grid, taxonomy = settings.reader().preset
        if taxonomy != OCC3D_NUSCENES.taxonomy:
            raise ValueError(
                f"{self.name} learns Occ3D's classes from lidar points; --labels={settings.labels} has others "
                f"({taxonomy.name!r})"
            )
        trunk = replace(config.trunk, grid=grid)
        if settings.frames_per_sample is not None:
            volumes = settings.frames_per_sample - int(trunk.stereo)
            if volumes < 1:
                raise ValueError(f"frames_per_sample is {settings.frames_per_sample}; stereo needs at least 2")
            trunk = replace(trunk, bev_frames=volumes)
        return replace(config, trunk=trunk)

    def training_data(self, config: VolumeConfig, recipe: TrainingRecipe, settings: TrainConfig) -> OccupancyFrames:
        """Augmented samples with rays; labelled voxels are read only where the config learns from them."""
        assert isinstance(settings, RenderTrainConfig) and isinstance(recipe, RenderRecipe)
        self._check_unedited(settings)
        lidar = LidarReader(
            settings.dataroot,
            settings.lidar_labels,
            version=settings.lidarseg_version,
            personal_mobility=settings.personal_mobility,
            allow_missing_files=settings.allow_missing_lidar,
        )
        return OccupancyFrames(
            settings.frames(),
            render_sampling(config, recipe, **settings.picture_settings()),
            config.grid,
            training_labels(settings, config) if config.voxel_weight else None,
            data_root=settings.dataroot,
            seed=settings.seed,
            rounds=max(ROUNDS, settings.epochs or 0),
            unreadable=BadSample,
            rays=RayReader(recipe.rays, lidar),
        )

    def check_extra(self, config: VolumeConfig, settings: TrainConfig, data: OccupancyFrames) -> None:
        """Lidar points with classes."""
        tried = evenly_spread(len(data.frames), 8)
        if not any(self._has_points(data, data.frames[index]) for index in tried):
            raise ValueError(
                f"none of {len(tried)} frames that were tried has a lidar sweep with classes (samples/LIDAR_TOP, "
                f"{settings.lidar_labels}/), which {self.name} learns from; link them into this root, or train "  # type: ignore[attr-defined]
                "sparseocc, which learns from labelled voxels alone"
            )

    def _check_unedited(self, settings: TrainConfig) -> None:
        """Make sure that the lidar shows what the pictures show; ValueError for a set that was edited."""
        edited = edited_samples(settings.dataroot).keys() & {frame.token for frame in settings.frames()}
        if edited:
            raise ValueError(
                f"{len(edited)} samples of {settings.dataroot} were generated from edited occupancy, such as "
                f"{min(edited)}; their lidar sweeps are the original's, and {self.name} would learn from them what "
                "the pictures do not show. Give a set without edits, or train sparseocc, which learns from the edited "
                "labels"
            )

    @staticmethod
    def _has_points(data: OccupancyFrames, frame: Frame) -> bool:
        assert data.rays is not None
        try:
            return data.rays.lidar(frame) is not None
        except ValueError:  # one file that is damaged is a bad sample later
            return False

    def step(self, model: Any, settings: TrainConfig, generator_of: GeneratorOf) -> VolumeStep:
        """Losses on rays, depth, and voxels if wanted."""
        return self.step_class(model, generator_of)

    def parameter_groups(self, model: VolumeModel, recipe: Any, learning_rate: float) -> list[dict[str, Any]]:
        """The backbone may learn slower (`backbone_rate`)."""
        return model.parameter_groups(recipe, learning_rate)

    def test_data(self, config: VolumeConfig, settings: PredictConfig) -> OccupancyFrames:
        """All frames; the current one stands in for those before a scene's start."""
        return test_samples(settings, config, BadSample, missing="current")

    def predictor(
        self, model: VolumeModel, settings: PredictConfig, data: Any
    ) -> Callable[[OccupancyBatch], OccupancyPrediction]:
        """Decides by the threshold that is stored with the weights, or by the one that the settings give; a sweep of
        several comes besides.
        """
        if settings.online:
            raise ValueError(f"{self.name} remembers no features: leave --online out")
        device = next(model.parameters()).device
        dtype = _DTYPES.get(settings.half)
        if len(settings.threshold) == 1:
            model.with_threshold(settings.threshold[0])
        sweep = settings.threshold if len(settings.threshold) > 1 else ()

        def predict(batch: OccupancyBatch) -> OccupancyPrediction:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                return model.predict(batch.images, LiftCameras.of_batch(batch), sweep)

        return predict
