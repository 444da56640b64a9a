"""The stages of ``syntheocc loop``: images -> occupancy -> edited occupancy -> views -> occupancy.

Legend: V views, X Y Z voxels.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.grids import OccupancyGrid, Preset
from syntheocc.occupancy.perception.settings import PredictConfig
from syntheocc.occupancy.taxonomy import UNKNOWN

if TYPE_CHECKING:
    from syntheocc.occupancy.editing import Recipe
    from syntheocc.pipelines import SyntheOccPipeline
    from syntheocc.training.captions import Captions

__all__ = ["Generator", "Perceiver", "PredictionEdits", "default_perception", "on_preset"]

CHECKPOINTS = Path(__file__).resolve().parents[2] / "ckp"
# The first that is there; trained on the street world.
EMBEDDED = ("sparseocc-nano", "sparseocc-small")


def default_perception() -> Path:
    """The perception model that comes with the repository.

    Raises:
        ValueError: there is none; the message says what to give instead.
    """
    for name in EMBEDDED:
        if (CHECKPOINTS / name / "config.json").is_file():
            return CHECKPOINTS / name
    raise ValueError(
        f"no perception model at {CHECKPOINTS / EMBEDDED[0]}; give the folder of a trained one as --perception "
        "(syntheocc world --out data/world --scenes 40; syntheocc occupancy train sparseocc --preset small --dataroot "
        "data/world --output-dir out/small); --start label --no-read-again needs none"
    )


@dataclass(kw_only=True)
class _Given(PredictConfig):
    """Settings of a prediction on frames that are at hand."""

    given: Sequence[Frame] = ()

    def frames(self, everything: bool = False, unreadable: dict[str, str] | None = None) -> list[Frame]:
        """The frames."""
        return list(self.given)


class Perceiver:
    """A perception model: frames to grids.

    Args:
        weights: folder of a trained model, of any kind that `syntheocc occupancy` trains.
        device: where it computes.
        confidence: below which a voxel is free, in place of the model's own: SparseOcc's class score, or the density
            threshold of the models that render.

    Raises:
        ValueError: no model there.
    """

    def __init__(self, weights: Path, device: torch.device | str = "cpu", confidence: float | None = None):
        from syntheocc.occupancy.perception.registry import load_model

        self.weights, self.device, self.confidence = Path(weights), torch.device(device), confidence
        self.entry, self.model = load_model(self._settings(()), self.device)
        if confidence is not None and hasattr(self.model.config, "voxel_threshold"):
            # Objects told apart have a rule of their own; a threshold is a question to the classes.
            self.model.config = replace(self.model.config, voxel_threshold=confidence, instance_classes=())

    @property
    def preset(self) -> Preset:
        """Grid and class table of the predictions."""
        return Preset(self.model.config.grid, self.model.config.taxonomy)

    def check_rig(self, frame: Frame) -> None:
        """Make sure that a frame has the cameras that the published models are trained with, each with its picture.

        Raises:
            ValueError: names what is missing.
        """
        from syntheocc.occupancy.perception.dataset import SPARSEOCC_CAMERAS

        absent = [name for name in SPARSEOCC_CAMERAS if name not in frame.image_paths]
        if absent:
            raise ValueError(
                f"sample {frame.token}: {', '.join(absent)} has no picture; the rig has "
                f"{', '.join(frame.cameras.names)}, but a perception model reads the six cameras that it was trained "
                "with. Give a frame of such a rig"
            )

    def predict(
        self,
        frames: Sequence[Frame],
        progress: Callable[[Sequence[int]], Any] = iter,
        only: Collection[str] | None = None,
    ) -> tuple[dict[str, OccupancyGrid], dict[str, str]]:
        """Grids of all frames; each one's older images are those of the frames before it in the list's own scenes.

        Args:
            frames: with pictures; a frame without an older one repeats itself, as at the start of a drive.
            progress: wraps the iteration.
            only: tokens of the frames that are wanted, the others are there for their older images; None: all.

        Returns:
            token -> grid on the CPU, and token -> reason of the frames that cannot be read.
        """
        from syntheocc.engine.loading import BadSample

        settings = self._settings(frames)
        data = self.entry.test_data(self.model.config, settings)
        predictor = self.entry.predictor(self.model, settings, data)
        grids: dict[str, OccupancyGrid] = {}
        bad: dict[str, str] = {}
        wanted = [i for i, frame in enumerate(data.frames) if only is None or frame.token in only]
        for i in progress(wanted):
            frame, sample = data.frames[i], data[i]
            if isinstance(sample, BadSample):
                bad[frame.token] = sample.reason
                continue
            found = predictor(self.entry.collate([sample]).to(self.device))
            labels = found.semantics[0].cpu()
            grid2ego = None if found.spec.frame == "ego" else frame.lidar2ego
            grids[frame.token] = OccupancyGrid(labels, found.spec, found.taxonomy, grid2ego)
        return grids, bad

    def _settings(self, frames: Sequence[Frame]) -> _Given:
        threshold: tuple[float, ...] = ()
        if self.confidence is not None and hasattr(self, "model"):
            # SparseOcc has a threshold of its own, set above; the models that render take it with the settings.
            threshold = () if hasattr(self.model.config, "voxel_threshold") else (self.confidence,)
        here = Path(".")  # the frames know where their pictures are
        return _Given(weights=self.weights, given=frames, dataroot=here, device=str(self.device), threshold=threshold)


@dataclass(frozen=True, kw_only=True)
class PredictionEdits:
    """What is done to a grid before views are generated from it.

    Args:
        close_holes: close holes of up to twice so many voxels; 0: none.
        recipe: edits of objects (`occupancy.editing`).
    """

    close_holes: int = 0
    recipe: "Recipe | None" = None

    def __post_init__(self):
        if self.close_holes < 0:
            raise ValueError(f"close_holes is a number of voxels, 0 or more, got {self.close_holes}")

    def __call__(self, grid: OccupancyGrid, frame: Frame) -> OccupancyGrid:
        """The edited grid; the grid itself where nothing is to be done."""
        if self.close_holes:
            grid = closed(grid, self.close_holes)
        if self.recipe is not None:
            grid = self.recipe.edit(grid, frame.boxes, frame.token).grid
        return grid


def closed(grid: OccupancyGrid, steps: int) -> OccupancyGrid:
    """Close holes by morphology; a filled voxel takes the class that most of its neighbours have.

    Args:
        grid: on the CPU.
        steps: half the width of the widest hole, voxels.
    """
    from syntheocc.occupancy.accumulation.filling import close_surfaces
    from syntheocc.occupancy.accumulation.visibility import RayPasses

    labels = grid.labels.clone()
    solid = torch.ones(256, dtype=torch.bool)
    solid[[grid.taxonomy.free, UNKNOWN]] = False
    # A prediction has no rays that would say where nothing can be.
    passes, objects = RayPasses.none(grid.spec), torch.zeros(grid.spec.shape, dtype=torch.int32)
    close_surfaces(labels, objects, passes, grid.taxonomy.free, solid, steps)
    return OccupancyGrid(labels, grid.spec, grid.taxonomy, grid.grid2ego)


def on_preset(grid: OccupancyGrid, preset: Preset, grid2ego: Any = None) -> OccupancyGrid:
    """A grid in another geometry and class table (`editing.export.resampled`), unknown where the grid does not reach.

    Args:
        grid: on the CPU.
        preset: what is wanted.
        grid2ego: where the wanted grid lies, for grids that are not in ego.

    Raises:
        ValueError: the class table cannot be mapped.
    """
    from syntheocc.occupancy.editing.export import resampled

    grid = grid.map_to(preset.taxonomy)
    target = torch.eye(4, dtype=torch.float64) if grid2ego is None else torch.as_tensor(grid2ego, dtype=torch.float64)
    if grid.spec == preset.spec and torch.allclose(grid.grid2ego, target):
        return grid
    found, known = resampled(grid, preset, grid2ego)
    labels = torch.where(known, found.labels, torch.tensor(UNKNOWN, dtype=torch.uint8))
    return OccupancyGrid(labels, preset.spec, preset.taxonomy, target)


@dataclass
class Generator:
    """A pipeline with its sampler settings: grids to views, and frames that have them.

    Args:
        pipe: on its device.
        captions: the texts of frames.
        folder: where views are written, `<folder>/<CAM>/<original picture's name>`.
        seed: of the noise; a frame's own depends on its token too.
        settings: more arguments of the pipeline's call: size, steps, guidance.
    """

    pipe: "SyntheOccPipeline"
    captions: "Captions"
    folder: Path
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def views(self, frame: Frame, grid: OccupancyGrid) -> tuple[list[Any], Any]:
        """Generate a frame's views.

        Returns:
            PIL images [V] in the rig's order, and the `SemanticMPI` [V, D, h, w] that they were generated from.

        Raises:
            ValueError: no camera sees the grid, or its class table has no mapping to the network's.
        """
        from syntheocc.commands.generate_sample import sample_seed
        from syntheocc.occupancy.data.belonging import check_sees

        check_sees(grid, frame.cameras, frame.token)
        output = self.pipe(
            [self.captions.of(frame)],
            occupancy=grid,
            cameras=frame.cameras,
            generator=[torch.Generator().manual_seed(sample_seed(self.seed, frame.token))],
            **self.settings,
        )
        return output.images[0], output.mpi[0]

    def placed(self, frame: Frame) -> Frame:
        """The frame with its generated views for pictures, written or not, and without the original's sweeps."""
        from syntheocc.commands.outputs import OutputFolder

        named, outputs = self._named(frame), OutputFolder(self.folder)
        extras = {key: value for key, value in frame.extras.items() if key != "sweeps"}
        paths = {name: outputs.view_path(named, name) for name in frame.cameras.names}
        return replace(frame, image_paths=paths, extras=extras)

    def write(self, frame: Frame, images: Sequence[Any]) -> Frame:
        """Write views in the originals' size; the frame that has them for pictures."""
        from syntheocc.commands.outputs import OutputFolder

        OutputFolder(self.folder).write_views(self._named(frame), images)
        return self.placed(frame)

    def _named(self, frame: Frame) -> Frame:
        """The frame with a picture's name for every camera."""
        paths = {name: frame.image_paths.get(name, Path(f"{frame.token}.jpg")) for name in frame.cameras.names}
        return replace(frame, image_paths=paths)
