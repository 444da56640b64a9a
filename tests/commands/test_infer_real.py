"""The real key frame of scene-0061, from its lidar sweep, and a real Occ3D label through the same rig, to pictures."""

import shutil

import pytest
from PIL import Image

from syntheocc.commands.generate import GenerateConfig, run
from syntheocc.engine.files import read_json
from syntheocc.occupancy import NUSCENES_CAMERAS


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["lidar", "occ3d"])
def test_a_real_key_frame_becomes_six_files_and_a_strip(real_data, tiny_model, tmp_path, kind, monkeypatch):
    root = real_data / "nuscenes_scene0061"
    token = "ca9a282c9e77460f8360f564131a8af5"
    if kind == "occ3d":  # the label of another scene of the same car, put where this sample's would lie
        label = tmp_path / "gts" / "scene-0061" / token / "labels.npz"
        label.parent.mkdir(parents=True)
        shutil.copy(real_data / "occ3d_scene1077" / "labels.npz", label)
    job = GenerateConfig(
        dataroot_path=root,
        info_path=(str(root / "tables_reduced"),),
        occ_kind=kind,
        occ_path=tmp_path / "gts" if kind == "occ3d" else None,
        model_path_infer=str(tiny_model),
        save_img_path=tmp_path / "out",
        height=64,
        width=96,
        num_inference_steps=1,
    )
    if kind == "occ3d":
        # Its own lidar tells that the label is not this frame's; here the label's form is what counts.
        assert run(job) == 1
        (reason,) = read_json(tmp_path / "out" / "manifest.json")["failed"].values()
        assert f"the labels do not belong to sample {token}" in reason
        monkeypatch.setattr("syntheocc.occupancy.data.belonging.LEAST_AGREEMENT", 0.0)
    assert run(job) == 0
    (sample,) = read_json(tmp_path / "out" / "manifest.json")["samples"]
    assert sample["token"] == token and tuple(sample["views"]) == NUSCENES_CAMERAS
    for name, view in sample["views"].items():
        assert (root / "samples" / view).is_file(), "a view has the real picture's name"
        with Image.open(tmp_path / "out" / view) as image:
            assert image.size == (1600, 900), name
    with Image.open(tmp_path / "out" / "strips" / f"{token}.jpg") as strip:
        assert strip.size == (6 * 96 + 5 * 4, 3 * 64 + 2 * 4)
        # the road lies at the bottom of the front view's condition (turquoise), in both labels
        red, green, blue = strip.getpixel((100 + 48, 60))
        assert green > 120 and blue > 120 and red < 80
