"""Texts of pictures."""

import json

import pytest

from syntheocc.training.captions import Captions


def test_one_prompt_for_all_unless_captions_are_wanted(street):
    frame = street.frames[0]
    assert Captions("a prompt").of(frame) == ["a prompt"] * 6
    assert Captions("a prompt", use_captions=True).of(frame) == ["a street in scene-0000"] * 6


def test_a_file_knows_samples_cameras_and_pictures(street, tmp_path):
    first, second, third = street.frames[:3]
    front = second.image_paths["CAM_FRONT"].name
    written = {
        first.token: "a rainy night",
        second.token: {"CAM_BACK": "an empty road", "CAM_FRONT": "not this"},
        front: "a red bus",
    }
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(written))
    captions = Captions.from_file("a prompt", False, path)
    assert captions.of(first) == ["a rainy night"] * 6
    assert captions.of(second) == ["a prompt", "a red bus", "a prompt", "a prompt", "an empty road", "a prompt"]
    assert captions.of(third) == ["a prompt"] * 6


@pytest.mark.parametrize("text", ["[]", '{"token": 3}', '{"token": {"CAM_FRONT": null}}', "{"])
def test_files_that_hold_no_captions(text, tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="captions.json"):
        Captions.from_file("a prompt", False, path)
