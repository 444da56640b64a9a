"""From what the caller hands in (grids and rigs, or MPIs) to one condition a frame.

S samples, F frames, V views, D planes, h w latent size, K neighbours of a view.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.editing import Recipe
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.rendering.mpi import SemanticMPI
from syntheocc.pipelines.sources import GridSource, MPISource, Source

Edit = Recipe | str | os.PathLike


@dataclass(frozen=True)
class Conditions:
    """The frames of all samples. `index[s][f]` points into `sources`, so that what is shared is rendered once."""

    sources: tuple[Source, ...]
    index: tuple[tuple[int, ...], ...]
    video: bool

    @property
    def num_samples(self) -> int:
        """S."""
        return len(self.index)

    @property
    def num_frames(self) -> int:
        """F, 1 for pictures."""
        return len(self.index[0])

    @property
    def num_views(self) -> int:
        """V."""
        return len(self.sources[0].view_names)

    def flat_index(self, copies: int = 1) -> list[int]:
        """Source of each frame of the batch, `[S*copies*F]`."""
        return [i for frames in self.index for _ in range(copies) for i in frames]

    def neighbors(self, copies: int = 1, num: int = 2) -> Tensor:
        """Neighbour table of the batch: `[V, K]` when all rigs agree, else `[S*copies*F, V, K]`."""
        tables = [source.neighbors(num) for source in self.sources]
        if all(torch.equal(table, tables[0]) for table in tables[1:]):
            return tables[0]
        width = max(table.shape[1] for table in tables)
        tables = [torch.nn.functional.pad(table, (0, width - table.shape[1]), value=-1) for table in tables]
        return torch.stack([tables[i] for i in self.flat_index(copies)])

    def gather(self, mpi: SemanticMPI) -> SemanticMPI | list[SemanticMPI]:
        """The MPI of every sample from the distinct ones `[U, V, D, h, w]`.

        `[S, V, D, h, w]` for pictures; for video a list of S, each `[F, V, D, h, w]`.
        """
        rows = list(self.index) if self.video else [[frames[0] for frames in self.index]]
        picked = [
            replace(mpi, labels=mpi.labels[i], nearest=mpi.nearest[i], nearest_plane=mpi.nearest_plane[i])
            for i in (list(row) for row in rows)
        ]
        return picked if self.video else picked[0]


def edited_occupancy(occupancy: Any, edit: Any) -> Any:
    """`occupancy` (a grid, S of them, or S lists of F) taken through recipes: one, a file, or S of either or None.

    A grid that samples or frames share is edited once for each recipe. Raises ValueError where there is no occupancy,
    the counts disagree, or an edit cannot be made.
    """
    if edit is None:
        return occupancy
    if occupancy is None:
        raise ValueError("`edit=` changes `occupancy=`, and there is none: what is rendered already cannot be edited")
    done: dict[tuple[int, int], OccupancyGrid] = {}

    def through(value: Any, recipe: Recipe | None) -> Any:
        if isinstance(value, (list, tuple)):
            return [through(item, recipe) for item in value]
        if recipe is None or not isinstance(value, OccupancyGrid):
            return value
        key = (id(value), id(recipe))
        if key not in done:
            done[key] = recipe.apply(value)
        return done[key]

    if not isinstance(edit, (list, tuple)):
        return through(occupancy, _recipe(edit))
    values = occupancy if isinstance(occupancy, (list, tuple)) else [occupancy] * len(edit)
    if len(values) != len(edit):
        raise ValueError(f"{len(edit)} edits for {len(values)} samples; give one for all, or one (or None) a sample")
    return [through(value, _recipe(one)) for value, one in zip(values, edit, strict=True)]


def _recipe(edit: Any) -> Recipe | None:
    if edit is None or isinstance(edit, Recipe):
        return edit
    if not isinstance(edit, (str, os.PathLike)):
        raise ValueError(f"`edit` is a Recipe or the path of a recipe's JSON file, got {_show(edit)}")
    return Recipe.load(edit)


def gather_conditions(occupancy: Any, cameras: Any, mpi: Any, num_prompts: int | None) -> Conditions:
    """Sort the caller's `occupancy`, `cameras` and `mpi` into frames; `num_prompts` is S when prompts are a list.

    Each is one, a list of S or a list of S lists of F; one is shared by all samples (a rig also by all frames).
    Raises ValueError when the counts disagree, a piece is missing or of another type.
    """
    if (occupancy is None) == (mpi is None):
        given = "neither" if mpi is None else "both"
        raise ValueError(f"give `occupancy=` with `cameras=`, or `mpi=`: got {given} of occupancy and mpi")
    if occupancy is not None and cameras is None:
        raise ValueError("`occupancy=` needs `cameras=`: the rig through which the grid is seen")
    main = _nest("occupancy", occupancy, OccupancyGrid) if mpi is None else _nest("mpi", _unbatch(mpi), SemanticMPI)
    rigs = None if cameras is None else _nest("cameras", cameras, CameraRig)
    video = main.video or (rigs is not None and rigs.video)

    counts = {"prompt": num_prompts, "mpi" if mpi is not None else "occupancy": main.samples}
    counts["cameras"] = None if rigs is None else rigs.samples
    stated = {name: count for name, count in counts.items() if count is not None}
    if len(set(stated.values())) > 1:
        raise ValueError(
            f"the number of samples disagrees: {stated}; give lists of one length, or a single value to share it"
        )
    samples = next(iter(stated.values()), 1)
    frame_counts = {n.frames for n in (main, rigs) if n is not None and n.frames is not None}
    if len(frame_counts) > 1:
        raise ValueError(
            f"occupancy (or mpi) and cameras have {sorted(frame_counts)} frames a sample; they must agree"
        )
    frames = next(iter(frame_counts), 1)

    sources: dict[tuple[int, int], Source] = {}
    index = []
    for s in range(samples):
        row = []
        for f in range(frames):
            piece = main.at(s, f)
            rig: Any = None if rigs is None else rigs.at(s, f)
            key = (id(piece), id(rig))
            if key not in sources:
                sources[key] = GridSource(piece, rig) if mpi is None else MPISource(piece, rig)
            row.append(list(sources).index(key))
        index.append(tuple(row))
    conditions = Conditions(tuple(sources.values()), tuple(index), video)
    _check_rigs(conditions)
    return conditions


def _check_rigs(conditions: Conditions) -> None:
    first = conditions.sources[0].view_names
    for source in conditions.sources[1:]:
        if source.view_names != first:
            raise ValueError(
                f"all rigs of a call need the same cameras in the same order: {first} and {source.view_names}; "
                "call once for each kind of rig"
            )


def _unbatch(mpi: Any) -> Any:
    """A batched MPI as the list of its samples."""
    if isinstance(mpi, SemanticMPI) and mpi.is_batched:
        return [_unbatch(mpi[i]) for i in range(mpi.labels.shape[0])]
    if isinstance(mpi, (list, tuple)):
        return [_unbatch(item) for item in mpi]
    return mpi


@dataclass(frozen=True)
class _Nested:
    """One item, a list of S, or a list of S lists of F."""

    items: Any
    samples: int | None
    frames: int | None

    @property
    def video(self) -> bool:
        return self.frames is not None

    def at(self, sample: int, frame: int) -> Any:
        item = self.items if self.samples is None else self.items[sample]
        return item if self.frames is None else item[frame]


def _nest(name: str, value: Any, kind: type) -> _Nested:
    if isinstance(value, kind):
        return _Nested(value, None, None)
    if not isinstance(value, (list, tuple)) or len(value) == 0:
        raise ValueError(f"`{name}` must be a {kind.__name__}, a list of them or a list of lists; got {_show(value)}")
    if all(isinstance(item, kind) for item in value):
        return _Nested(value, len(value), None)
    if not all(isinstance(item, (list, tuple)) and len(item) > 0 for item in value):
        raise ValueError(f"`{name}` mixes {[_show(item) for item in value]}; give {kind.__name__} or lists of them")
    for item in value:
        for inner in item:
            if not isinstance(inner, kind):
                raise ValueError(f"`{name}` holds {_show(inner)}; expected {kind.__name__}")
    lengths = {len(item) for item in value}
    if len(lengths) > 1:
        raise ValueError(f"`{name}` has samples of {sorted(lengths)} frames; all samples need the same number")
    return _Nested(value, len(value), lengths.pop())


def _show(value: Any) -> str:
    empty = isinstance(value, (list, tuple)) and len(value) == 0
    return f"an empty {type(value).__name__}" if empty else type(value).__name__
