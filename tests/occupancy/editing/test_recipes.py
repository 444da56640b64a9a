"""Recipes: read, checked, applied, written; what is wrong with one is said with file, edit and key."""

import inspect
import json
from pathlib import Path

import pytest
import torch

from syntheocc.occupancy.editing import EDITS, LAYOUTS, Editor, Recipe

GOOD = {
    "version": 1,
    "name": "stopped van",
    "edits": [
        {"edit": "insert", "asset": "car_van", "at": [13, 1.5], "yaw_deg": 180, "name": "van"},
        {"edit": "remove", "object": {"class": "car", "near": [8, -2]}},
        {"edit": "cone_lane", "start": [-14, -3], "end": [-8, -3]},
        {"edit": "repaint", "object": "van", "to": "truck"},
    ],
}


def test_a_recipe_makes_its_edits_and_survives_a_file(street, boxes, tmp_path):
    path = tmp_path / "van.json"
    path.write_text(json.dumps(GOOD))
    recipe = Recipe.load(path)
    editor = recipe.edit(street, boxes, "token")
    assert editor.boxes.names == ("pedestrian", "truck", *["traffic_cone"] * 4)
    assert torch.equal(recipe.apply(Editor(street, boxes)).labels, editor.grid.labels)
    # Without boxes the car is found as a connected piece: the same voxels.
    assert torch.equal(recipe.apply(street).labels, editor.grid.labels)
    again = Recipe.load(editor.recipe("stopped van").save(tmp_path / "again.json"))
    assert torch.equal(again.edit(street, boxes).grid.labels, editor.grid.labels) and again.name == "stopped van"
    assert again.to_json()["edits"][1] == GOOD["edits"][1]
    elsewhere = recipe.edit(street, boxes, "another").boxes
    assert elsewhere.instance_tokens[1] != editor.boxes.instance_tokens[1], "an instance of another frame"


def test_a_cut_object_travels_in_the_recipe(street, boxes, tmp_path):
    theirs = Editor(street, boxes).cut("#1", "their_pedestrian")
    editor = Editor(street, boxes)
    editor.insert(theirs, at=(4.0, 5.2), yaw_deg=45)
    path = editor.recipe().save(tmp_path / "cut.json")
    assert list(json.loads(path.read_text())["assets"]) == ["their_pedestrian"]
    assert torch.equal(Recipe.load(path).apply(street).labels, editor.grid.labels)
    # In a layout too: a row of what was cut.
    LAYOUTS["cone_lane"](editor, start=(-14, -3), end=(-10, -3), asset=theirs)
    assert editor.edits[1]["asset"] == "their_pedestrian" and editor.edits[1]["start"] == [-14, -3]
    path = editor.recipe().save(tmp_path / "row.json")
    assert torch.equal(Recipe.load(path).apply(street).labels, editor.grid.labels)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, "version is 2; this package reads 1"),
        ({"edit": []}, "no key 'edit'; did you mean 'edits'"),
        ({"edits": {}}, "a recipe is a JSON object"),
        ({"name": 3}, "name must be text"),
        ({"edits": [{"edit": "inserts"}]}, "edit 1: no edit is called 'inserts'; there are insert, move"),
        ({"edits": [{"edit": "insert", "asset": "car"}]}, "edit 1: edit insert lacks at"),
        ({"edits": [{"edit": "insert", "asset": "car", "at": [1, 2], "yaw": 3}]}, "'yaw'; did you mean 'yaw_deg'"),
        ({"edits": [{"edit": "insert", "asset": "car", "at": "1,2"}]}, "at is a list of numbers"),
        ({"edits": [{"edit": "insert", "asset": "car", "at": [1, 2], "z": "0"}]}, "z is a number"),
        ({"edits": [{"edit": "insert", "asset": "car", "at": [1, 2], "z": None}]}, "z is null; leave it out"),
        ({"edits": [{"edit": "insert", "asset": 4, "at": [1, 2]}]}, "asset is text"),
        ({"edits": [{"edit": "lost_cargo", "at": [1, 2], "pieces": 1.5}]}, "pieces is a whole number"),
        ({"edits": [{"edit": "remove", "object": {"klass": "car"}}]}, "an object is told by class and near"),
        ({"edits": [{"edit": "remove", "object": "car@1"}]}, "near is 2 numbers?|near is 2 finite numbers"),
        ({"edits": [{"edit": "remove", "object": "x", "allow": "empty"}]}, "allow is a list of words"),
        ({"edits": [{"edit": "repaint", "to": "bus", "region": {"center": [0, 0, 0]}}]}, "center and size"),
        ({"assets": {"x": {"size": [1, 1, 1]}}}, "asset 'x' has"),
        ({"assets": []}, "assets is an object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(change, message, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=message) as error:
        Recipe.load(path)
    assert str(path) in str(error.value)


def test_errors_name_file_edit_and_object(street, boxes, tmp_path):
    path = tmp_path / "far.json"
    edits = [{"edit": "insert", "asset": "car", "at": [60, 0], "name": "far"}]
    path.write_text(json.dumps({"version": 1, "edits": edits}))
    with pytest.raises(ValueError, match=r"far.json, edit 1 \(insert\): far \(car\) at \(60, 0\) reaches out"):
        Recipe.load(path).apply(street)
    path.write_text(json.dumps({"version": 1, "edits": [{"edit": "remove", "object": "#9"}]}))
    with pytest.raises(ValueError, match=r"far.json, edit 1 \(remove\): no object '#9'"):
        Recipe.load(path).edit(street, boxes)
    path.write_text("{")
    with pytest.raises(ValueError, match="far.json: not a JSON document"):
        Recipe.load(path)
    with pytest.raises(ValueError, match="for frame other, not for token"):
        Recipe((), frame="other").edit(street, boxes, "token")


def test_the_examples_can_be_made_on_the_embedded_street():
    from syntheocc.worlds.street import example_street

    street = example_street()
    paths = sorted((Path(__file__).parents[3] / "examples" / "edits").glob("*.json"))
    assert len(paths) >= 6
    for path in paths:
        assert bool(Recipe.load(path).edit(street.grid, street.boxes).changed.any()), path


def test_every_edit_of_the_list_exists_and_explains_itself():
    assert set(LAYOUTS) < set(EDITS) and len(EDITS) == 9
    for name, layout in LAYOUTS.items():
        parameters = list(inspect.signature(layout).parameters.values())
        assert parameters[0].name == "editor" and all(one.kind is one.KEYWORD_ONLY for one in parameters[1:]), name
        assert all(f"{one.name}:" in inspect.getdoc(layout) for one in parameters), name
