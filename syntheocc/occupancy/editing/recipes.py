"""Edits as JSON: a versioned list that any frame can be taken through.

    {
      "version": 1,
      "name": "stopped truck",
      "edits": [
        {"edit": "insert", "asset": "truck", "at": [14, 0], "name": "stopped"},
        {"edit": "remove", "object": {"class": "car", "near": [7, -3]}},
        {"edit": "cone_lane", "start": [6, -1.8], "end": [12, -1.8]}
      ]
    }

`frame` (a token) ties a recipe to one frame; `assets` holds what was cut from other frames. Unknown keys are errors.
The keys of an edit are the arguments of the function of that name (a method of `Editor`, or a layout); `class` stands
for `class_name`, `from` for `from_classes`.
"""

import difflib
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syntheocc.engine.files import atomic_write_json, read_json
from syntheocc.occupancy.data.frames import Boxes, about
from syntheocc.occupancy.editing.assets import Asset, asset_from_json, asset_to_json
from syntheocc.occupancy.editing.editor import Editor
from syntheocc.occupancy.editing.layouts import LAYOUTS
from syntheocc.occupancy.editing.objects import parse_selector
from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["EDITS", "VERSION", "Recipe"]

VERSION = 1
_METHODS: dict[str, Callable] = {
    name: getattr(Editor, name) for name in ("insert", "move", "rotate", "remove", "repaint")
}
EDITS = (*_METHODS, *LAYOUTS)
_KEYS = {"class_name": "class", "from_classes": "from"}
_TOP = {"version", "name", "description", "frame", "edits", "assets"}


@dataclass(frozen=True, eq=False)
class Recipe:
    """A list of edits.

    Args:
        edits: dicts as in the file.
        name: a few words; file names are made of it.
        description: a sentence.
        frame: token of the only frame that it is for; "" for any.
        assets: name -> asset, beside the library's.
        source: where it comes from, for messages.

    Raises:
        ValueError: an unknown edit or key, one that is missing, or a value of another kind.

    Example:
        >>> from syntheocc.worlds.street import example_street
        >>> recipe = Recipe(edits=({"edit": "insert", "asset": "car", "at": [9.0, 0.0]},))
        >>> grid = recipe.apply(example_street().grid)
    """

    edits: tuple[Mapping[str, Any], ...]
    name: str = ""
    description: str = ""
    frame: str = ""
    assets: Mapping[str, Asset] = field(default_factory=dict)
    source: str = "recipe"

    def __post_init__(self):
        for i, edit in enumerate(self.edits):
            with about(f"{self.source}, edit {i + 1}"):
                _check(edit)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Recipe":
        """Read a recipe; ValueError that names the file, the edit and what is wrong with it."""
        return cls.from_json(read_json(path), str(path))

    @classmethod
    def from_json(cls, document: Any, source: str = "recipe") -> "Recipe":
        """A recipe of a JSON document."""
        if not isinstance(document, Mapping) or not isinstance(document.get("edits"), list):
            raise ValueError(f"{source}: a recipe is a JSON object with version and edits (a list)")
        with about(source):
            _known(document, _TOP, "recipe")
            if document.get("version") != VERSION:
                raise ValueError(f"version is {document.get('version')!r}; this package reads {VERSION}")
            texts = {key: document.get(key, "") for key in ("name", "description", "frame")}
            wrong = [key for key, value in texts.items() if not isinstance(value, str)]
            if wrong:
                raise ValueError(f"{', '.join(wrong)} must be text")
            assets = document.get("assets", {})
            if not isinstance(assets, Mapping):
                raise ValueError("assets is an object of names and assets")
            made = {name: asset_from_json(name, value) for name, value in assets.items()}
        return cls(tuple(document["edits"]), **texts, assets=made, source=source)

    def to_json(self) -> dict[str, Any]:
        """The document, ready for JSON."""
        document: dict[str, Any] = {"version": VERSION}
        document |= {key: getattr(self, key) for key in ("name", "description", "frame") if getattr(self, key)}
        document["edits"] = [dict(edit) for edit in self.edits]
        if self.assets:
            document["assets"] = {name: asset_to_json(asset) for name, asset in self.assets.items()}
        return document

    def save(self, path: str | os.PathLike) -> Path:
        """Write the recipe; the file appears by rename."""
        atomic_write_json(path, self.to_json())
        return Path(path)

    def apply(self, frame: OccupancyGrid | Editor) -> OccupancyGrid:
        """The edited grid, ready for a pipeline: `pipe(prompt, occupancy=recipe.apply(frame), cameras=rig)`.

        Args:
            frame: a grid, or an `Editor` of a frame (its boxes tell objects apart; it is not changed).

        Raises:
            ValueError: see `edit`.
        """
        if isinstance(frame, Editor):
            return self.edit(frame.grid, frame.boxes, frame.token).grid
        return self.edit(frame).grid

    def edit(self, grid: OccupancyGrid, boxes: Boxes | None = None, token: str = "") -> Editor:
        """Make the edits; the editor has grid, boxes, mask and history.

        Args:
            grid: the frame's occupancy.
            boxes: its boxes, None unknown.
            token: its token.

        Raises:
            ValueError: the recipe is for another frame, or an edit that cannot be made; the message names the recipe,
                the edit and the object.
        """
        if self.frame and token and self.frame != token:
            raise ValueError(f"{self.source}: it is for frame {self.frame}, not for {token}")
        editor = Editor(grid, boxes, token)
        for i, edit in enumerate(self.edits):
            with about(f"{self.source}, edit {i + 1} ({edit['edit']})"):
                arguments = {_argument(key): value for key, value in edit.items() if key != "edit"}
                if isinstance(arguments.get("asset"), str) and arguments["asset"] in self.assets:
                    arguments["asset"] = self.assets[arguments["asset"]]
                (_METHODS | LAYOUTS)[edit["edit"]](editor, **arguments)
        return editor


def _argument(key: str) -> str:
    return next((name for name, written in _KEYS.items() if written == key), key)


def _known(values: Mapping, known: typing.Collection[str], what: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what} has no key {key!r}{hint}; it has {', '.join(sorted(known))}")


def _check(edit: Any) -> None:
    """Raise ValueError unless keys and kinds of values are those of the edit's function."""
    if not isinstance(edit, Mapping) or edit.get("edit") not in EDITS:
        kind = edit.get("edit") if isinstance(edit, Mapping) else edit
        raise ValueError(f"no edit is called {kind!r}; there are {', '.join(EDITS)}")
    function = (_METHODS | LAYOUTS)[edit["edit"]]
    parameters = list(inspect.signature(function).parameters.values())[1:]  # the first is the editor
    known = {_KEYS.get(one.name, one.name): one for one in parameters}
    _known(edit, {"edit", *known}, f"edit {edit['edit']}")
    missing = [key for key, one in known.items() if one.default is inspect.Parameter.empty and key not in edit]
    if missing:
        raise ValueError(f"edit {edit['edit']} lacks {', '.join(missing)}")
    for key, one in known.items():
        if key in edit:
            _check_value(key, edit[key], one.annotation)


def _check_value(key: str, value: Any, hint: Any) -> None:
    if value is None or key in ("object", "region"):
        if value is None:
            raise ValueError(f"{key} is null; leave it out")
        parse_selector(value)
        return
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if int in kinds or float in kinds:
        whole = int in kinds
        if not _is_number(value) or (whole and not isinstance(value, int)):
            raise ValueError(f"{key} is a {'whole ' if whole else ''}number, got {value!r}")
    elif key in ("allow", "from"):
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ValueError(f"{key} is a list of words, got {value!r}")
    elif str in kinds:
        if not isinstance(value, str):
            raise ValueError(f"{key} is text, got {value!r}")
    else:
        numbers = isinstance(value, Sequence) and not isinstance(value, str)
        if not numbers or not all(map(_is_number, value)):
            raise ValueError(f"{key} is a list of numbers, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e9 < value < 1e9
