"""The judge that ships with the repository reads photographs of a scene that it was not trained on."""

from pathlib import Path

import torch

from syntheocc.evaluation.judge import Judge
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY
from syntheocc.worlds.camera_images import render_shots
from syntheocc.worlds.labels import world_table
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.stream import sweep_shots

FOLDER = Path(__file__).resolve().parents[2] / "ckp" / "judge"


def test_it_is_small_and_sees_what_is_there():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 2e6
    judge = Judge.from_pretrained(FOLDER)
    scene = make_scene(123, split="val", weather="clear", light="day")
    views = render_shots(scene, sweep_shots(scene, [3.0])[:2])
    images = torch.stack([view.image for view in views]).movedim(-1, 1)
    truth = world_table(SYNTHEOCC_TAXONOMY)[torch.stack([view.labels for view in views]).int()]
    counted = truth != 255
    right = (judge.predict(images) == truth)[counted].float().mean()
    assert float(right) > 0.75
    # Upside down, roads hang over skies: it looks at places as well as at colours.
    turned = judge.predict(images.flip(-2)).flip(-2)
    assert float((turned == truth)[counted].float().mean()) < float(right)
