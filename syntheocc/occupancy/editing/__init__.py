"""Editing of occupancy: objects in, out and elsewhere, other classes, whole situations; and recipes of all that.

    editor = Editor(grid, boxes)
    editor.insert("car", at=(12, 0), yaw_deg=180)
    editor.remove("#3")
    images = pipe(prompt, occupancy=editor.grid, cameras=rig)
    editor.recipe("oncoming car").save("recipe.json")
    images = pipe(prompt, occupancy=Recipe.load("recipe.json").apply(other_grid), cameras=rig)

| module    | holds                                                         |
|-----------|---------------------------------------------------------------|
| `editor`  | the edits, undo and redo                                      |
| `layouts` | several edits as one: cone lanes, crossings, cargo, roadworks |
| `recipes` | edits as JSON                                                 |
| `assets`  | the library of voxelised objects, and cut ones                |
| `objects` | how an object is named and which voxels are its own           |
| `ground`  | on what things stand, and what is left where they stood       |
| `checks`  | collisions, floating objects, the grid's borders              |
| `regions` | oriented boxes                                                |
| `state`   | what an editor holds between two edits                        |
"""

from syntheocc.occupancy.editing.assets import Asset, asset_names, box_asset, library_asset
from syntheocc.occupancy.editing.editor import Editor
from syntheocc.occupancy.editing.layouts import LAYOUTS
from syntheocc.occupancy.editing.recipes import EDITS, Recipe
from syntheocc.occupancy.editing.regions import Box, upright_box

__all__ = [
    "EDITS",
    "LAYOUTS",
    "Asset",
    "Box",
    "Editor",
    "Recipe",
    "asset_names",
    "box_asset",
    "library_asset",
    "upright_box",
]
