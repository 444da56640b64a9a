"""The frames of ``syntheocc loop`` on their way: generated, scored, drawn."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from syntheocc.commands.loop_pictures import Stages, loop_sheet
from syntheocc.commands.loop_scores import ARROWS, LoopScores, observed_by
from syntheocc.commands.loop_sources import LoopInput
from syntheocc.commands.loop_stages import Generator, PredictionEdits, on_preset
from syntheocc.engine.files import atomic_write_npz
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.transforms import invert_rigid, transform_points

__all__ = ["LoopWork", "progress"]

# What the grids are called on a sheet.
TITLES = {
    "label": "label",
    "prediction": "read from the images",
    "asked for": "asked for (edited)",
    "read again": "read from the generated views",
}


def progress(title: str) -> Callable[[Iterable[Any]], Any]:
    """Wraps an iteration over frames in a bar."""
    from tqdm import tqdm

    return lambda items: tqdm(items, desc=title, unit="frame")


@dataclass
class LoopWork:
    """What is known of every frame; dicts are by token.

    Args:
        folder: gets `<stage>/<token>.npz`, the views and the sheets.
        start: whether views are generated from predictions or from labels.
        edits: what is done to those before.
        generator: makes the views.
        scores: of the arrows.
        size: height and width of a view on the sheet.
        predicted: what was read from the images.
        failed: reasons of the frames that are lost; added to.
    """

    folder: Path
    start: Literal["images", "label"]
    edits: PredictionEdits
    generator: Generator
    scores: LoopScores
    size: tuple[int, int]
    predicted: dict[str, OccupancyGrid]
    failed: dict[str, str]
    asked: dict[str, OccupancyGrid] = field(default_factory=dict)
    """What the views were generated from."""
    made: dict[str, tuple[list[Any], Any]] = field(default_factory=dict)
    """The views themselves, and their conditions."""

    def generate(self, inputs: Sequence[LoopInput]) -> list[LoopInput]:
        """Generate the views of one's own frames that can be; those that cannot go into `failed`.

        Returns:
            what is left of one's own frames, and the others'.
        """
        done = []
        for one in progress("generate views")([one for one in inputs if one.own]):
            token = one.frame.token
            if token in self.failed:
                continue
            try:
                begin = one.label if self.start == "label" else self.predicted.get(token)
                if begin is None:
                    raise ValueError("it has no label to begin with; give --labels, --label or --start images")
                # What cannot be mapped is found before a minute is spent on drawing.
                on_preset(begin, self.scores.preset, self._lidar(one.frame))
                grid = self.edits(begin, one.frame)
                self.made[token] = self.generator.views(one.frame, grid)
                self.generator.write(one.frame, self.made[token][0])
                self.asked[token] = grid
                self._keep("asked_for", token, grid)
                if token in self.predicted:
                    self._keep("prediction", token, self.predicted[token])
                done.append(one)
            except ValueError as error:
                self.failed[token] = str(error)
        left = {one.frame.token for one in done}
        return [one for one in inputs if not one.own or one.frame.token in left]

    def judge(self, inputs: Sequence[LoopInput], again: dict[str, OccupancyGrid]) -> dict[str, Path]:
        """Score and draw one's own frames.

        Args:
            inputs: the frames that were generated, the others' too: rays start where the lidar stood in any of them.
            again: what was read from their views.

        Returns:
            token -> sheet.
        """
        from syntheocc.occupancy.metrics import scene_origins

        origins = scene_origins([one.frame for one in inputs])
        sheets = {}
        for one in progress("score and draw")([one for one in inputs if one.own]):
            token = one.frame.token
            if token in again:
                self._keep("read_again", token, again[token])
            sheets[token] = self._judged(one, again.get(token), origins[token])
        return sheets

    def _judged(self, one: LoopInput, again: OccupancyGrid | None, origins: torch.Tensor) -> Path:
        from syntheocc.commands.outputs import read_photos
        from syntheocc.occupancy.pictures import condition_pictures, save_picture

        frame, token = one.frame, one.frame.token
        every = {
            "label": one.label,
            "prediction": self.predicted.get(token),
            "asked for": self.asked[token],
            "read again": again,
        }
        grids = {name: grid for name, grid in every.items() if grid is not None}
        lines = self._scored(one, grids, origins)
        images, mpi = self.made[token]
        seen = self.scores.judge_views(frame, images, mpi)
        source = "label" if self.start == "label" else "prediction"
        shown = dict(grids)
        if grids["asked for"] is grids.get(source):
            del shown["asked for"]
        else:
            source = "asked for"
        if seen is not None:
            text = f"views against their condition: {100 * seen['same']:.0f} % of the cells, mIoU {seen['mIoU']:.3f}"
            lines.setdefault(source, []).append(text)
        stages = Stages(
            names=frame.cameras.names,
            photos=read_photos(frame) if frame.image_paths else [],
            condition=condition_pictures(mpi),
            views=images,
            grids={TITLES[name]: _in_colours_of(mpi.taxonomy, grid) for name, grid in shown.items()},
            scores={TITLES[name]: tuple(lines.get(name, ())) for name in shown},
        )
        return save_picture(loop_sheet(stages, self.size), self.folder / f"loop_{token}.png")

    def _scored(self, one: LoopInput, grids: dict[str, OccupancyGrid], origins: torch.Tensor) -> dict[str, list[str]]:
        """Count every arrow of a frame; name of a grid -> what there is to say of it."""
        frame, preset, lidar = one.frame, self.scores.preset, self._lidar(one.frame)
        if lidar is not None:
            origins = transform_points(invert_rigid(lidar), origins)
        placed = {name: on_preset(grid, preset, lidar) for name, grid in grids.items()}
        observed = {name: observed_by(grid, frame) for name, grid in placed.items() if name != "read again"}
        if one.label is not None and one.observed is not None and one.label.spec == preset.spec:
            observed["label"] = one.observed
        lines: dict[str, list[str]] = {}
        for arrow in ARROWS:
            name, truth = arrow.split(" / ")
            if name not in placed or truth not in placed or grids[name] is grids[truth]:
                continue
            # What the prediction was not changed in is not told twice.
            if truth == "prediction" and grids["asked for"] is grids["prediction"]:
                continue
            if name == "asked for" and grids["asked for"] is grids.get("prediction"):
                continue
            found = self.scores.compare(arrow, frame, placed[name], placed[truth], observed[truth], origins)
            whom = "what was asked for" if truth == "asked for" else f"the {truth}"
            text = f"against {whom}: mIoU {found['mIoU']:.3f}, IoU {found['IoU']:.3f}, RayIoU {found['RayIoU']:.3f}"
            lines.setdefault(name, []).append(text)
        return lines

    def _keep(self, stage: str, token: str, grid: OccupancyGrid) -> None:
        atomic_write_npz(self.folder / stage / f"{token}.npz", pred=grid.labels.numpy())

    def _lidar(self, frame: Frame) -> torch.Tensor | None:
        """grid2ego of the preset's grid; None for one in ego."""
        return None if self.scores.preset.spec.frame == "ego" else frame.lidar2ego


def _in_colours_of(taxonomy: Any, grid: OccupancyGrid) -> OccupancyGrid:
    """The grid in the condition's class table, so that a sheet has one legend; itself where there is no mapping."""
    try:
        return grid.map_to(taxonomy)
    except ValueError:
        return grid
