"""The models that the programs train, predict with and evaluate: what a program must know of a model, and the table.

A model is added by an entry: a module with a subclass of `ModelEntry`, an object of it called ``ENTRY``, and a line in
`_ENTRIES`. The programs know nothing else of a model.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from syntheocc.engine.loading import BadSample
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.perception.batch import collate
from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.recipes import TrainingRecipe
from syntheocc.occupancy.perception.settings import PredictConfig, TrainConfig
from syntheocc.occupancy.perception.sources import test_samples, training_labels, training_samples
from syntheocc.occupancy.perception.storage import CONFIG, WEIGHTS, class_in_folder

__all__ = ["MODELS", "ModelEntry", "load_model", "model_entry"]

# Model -> its class, as config.json has it, and the module of its entry, imported when asked for.
_ENTRIES = {
    "sparseocc": ("SparseOcc", "sparseocc.entry"),
    "occflownet": ("OccFlowNet", "occflownet.entry"),
    "splattingocc": ("SplattingOcc", "splattingocc.entry"),
    "renderocc": ("RenderOcc", "splattingocc.renderocc_entry"),
    "occdepth": ("OccDepth", "occdepth.entry"),
}
MODELS = tuple(_ENTRIES)

# (step, position in the global batch, device) -> the generator of that sample's random numbers.
GeneratorOf = Callable[[int, int, torch.device], torch.Generator]


class ModelEntry(ABC):
    """What the programs must know of a model.

    A model's config (``model.config``) has the attributes `grid`, `taxonomy`, `panoptic`, `num_frames` and
    `image_size`; the defaults below fit models that learn from labelled grids. Override what differs.
    """

    name: ClassVar[str]
    """As commands call it."""
    model_class: ClassVar[Any]
    """Made of a config; `from_pretrained(path, device)`, `from_original(path, preset)`, `save_pretrained(path)`."""
    presets: ClassVar[Mapping[str, Callable[[], tuple[Any, Any]]]]
    """Name -> function that returns (config, a `TrainingRecipe`)."""
    default_preset: ClassVar[str] = "small"
    """What a training takes when it names none."""
    published: ClassVar[Mapping[str, str]] = {}
    """Stem of a published configuration file -> preset, where they differ by more than "-" for "_"."""
    train_settings: ClassVar[type[TrainConfig]] = TrainConfig
    """A subclass has the model's own flags."""
    collate: Callable[[list[Any]], Any] = staticmethod(collate)
    """Samples to a batch with `tokens` and `to(device)`."""

    def preset_name(self, text: str) -> str:
        """The preset that a name, or the path of a published configuration file, means; ValueError naming them all."""
        stem = Path(text).stem if Path(text).suffix in (".py", ".yaml") or "/" in text else text
        plain = stem.replace("-", "_")
        for name in (stem, self.published.get(stem, ""), plain, plain.removeprefix(f"{self.name}_")):
            if name in self.presets:
                return name
        raise ValueError(f"{self.name} has no preset {text!r}; it has {', '.join(self.presets)}")

    def preset(self, name: str) -> tuple[Any, TrainingRecipe]:
        """Config and recipe of a preset."""
        config, recipe = self.presets[self.preset_name(name)]()
        return config, recipe

    @abstractmethod
    def fit(self, config: Any, settings: TrainConfig) -> Any:
        """The config for the labels and the number of frames that the settings name; ValueError if that cannot be."""

    def training_data(self, config: Any, recipe: TrainingRecipe, settings: TrainConfig) -> Any:
        """The samples: a dataset with `frames` and `order(epoch)`, that gives `BadSample` for what cannot be read."""
        return training_samples(settings, config, recipe, training_labels(settings, config), BadSample)

    def check_extra(  # noqa: B027 (labelled grids are checked for every model)
        self, config: Any, settings: TrainConfig, data: Any
    ) -> None:
        """What else an extra data root must have for this model; ValueError for one that has it not.

        Args:
            config: of the model.
            settings: of that root.
            data: its `training_data`.
        """

    def build(self, config: Any, settings: TrainConfig) -> Any:
        """The model with its first weights: `backbone_weights` and `gradient_checkpointing` are honoured."""
        model = self.model_class(config)
        if settings.backbone_weights is not None:
            print(model.load_backbone(settings.backbone_weights))
        model.gradient_checkpointing_enable(settings.gradient_checkpointing)
        return model

    @abstractmethod
    def step(self, model: Any, settings: TrainConfig, generator_of: GeneratorOf) -> nn.Module:
        """The module that the loop calls: ``module(batch, step=, positions=)`` gives "loss" and what else to log."""

    @abstractmethod
    def parameter_groups(self, model: Any, recipe: TrainingRecipe, learning_rate: float) -> list[dict[str, Any]]:
        """AdamW's groups."""

    def test_data(self, config: Any, settings: PredictConfig) -> Any:
        """The samples of all frames without ground truth: a dataset with `frames`, in their order."""
        return test_samples(settings, config, BadSample, current_only=settings.online)

    @abstractmethod
    def predictor(self, model: Any, settings: PredictConfig, data: Any) -> Callable[[Any], OccupancyPrediction]:
        """A function batch (on the model's device) -> grids.

        Args:
            model: in evaluation mode, on its device.
            settings: `half` and `online` are honoured, or refused with a ValueError.
            data: the dataset of `test_data`.
        """

    def after_prediction(  # noqa: B027 (most models have nothing more)
        self, config: Any, settings: PredictConfig, frames: Sequence[Frame]
    ) -> None:
        """What else is written when all frames are predicted; called on the main process.

        Args:
            config: of the model.
            settings: where ``<token>.npz`` lie.
            frames: those that are predicted.
        """


def model_entry(name: str) -> ModelEntry:
    """The entry of a model; ValueError naming those that there are."""
    if name not in _ENTRIES:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    return importlib.import_module(f"syntheocc.occupancy.perception.{_ENTRIES[name][1]}").ENTRY


def load_model(settings: PredictConfig, device: torch.device | str = "cpu") -> tuple[ModelEntry, Any]:
    """The entry and the model that `settings.weights` is of: a folder's kind is read from its config.

    The settings take from the model what they leave open (`SourceConfig.use`).

    Raises:
        ValueError: no such weights, of a kind that there is not, a released file without a preset, a file that does
            not fit it, or settings that do not go with the model.
    """
    entry, model = _loaded(settings, device)
    settings.use(model.config)
    return entry, model


def _loaded(settings: PredictConfig, device: torch.device | str) -> tuple[ModelEntry, Any]:
    path = settings.weights
    if path.suffix in (".pth", ".pt", ".ckpt") or path.is_file():
        entry = model_entry(settings.model)
        if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
            raise ValueError(f"{path}: a trained model is a folder; give {path.parent}")
        if settings.preset is None:
            raise ValueError(f"{path}: give --preset, the one that it was trained as: {', '.join(entry.presets)}")
        preset = entry.preset_name(settings.preset)
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        return entry, entry.model_class.from_original(path, preset).to(device)
    kind = class_in_folder(path)
    by_class = {class_name: name for name, (class_name, _) in _ENTRIES.items()}
    if kind not in by_class:
        raise ValueError(f"{path} holds a {kind}, which is none of the known models: {', '.join(by_class)}")
    entry = model_entry(by_class[kind])
    if settings.preset is not None:
        entry.preset_name(settings.preset)  # named as the published command lines do; the folder says all of it
    return entry, entry.model_class.from_pretrained(path, device)
