import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kitti_scene import left_camera, render, write_planes
from warm_start import run_program

from syntheocc.commands import exit_status
from syntheocc.commands.depth import DepthConfig, run
from syntheocc.engine.flags import parse_flags
from syntheocc.occupancy.data import kitti

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """Two sequences; the second has a frame without voxels."""
    root = tmp_path / "kitti"
    write_planes(root, "00", labels=False)
    folder = write_planes(root, "08", names=["000000", "000001"], labels=False)
    (folder / "voxels").mkdir()
    (folder / "voxels" / "000000.bin").touch()
    return root


def config(tree, tmp_path, **settings):
    return DepthConfig(dataroot=tree, output_root=tmp_path / "out", max_disparity=48, workers=1, **settings)


def test_depth_is_written_in_the_published_layout(tree, tmp_path, capsys):
    assert run(config(tree, tmp_path)) == 0
    out = tmp_path / "out"
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    names = ["00/depth/000000.png", "00/depth/000005.png", "08/depth/000000.png"]
    assert found == [f"sequences/{name}" for name in names]
    depth = kitti.read_depth(out / "sequences/08/depth/000000.png")
    _, exact = render(left_camera())
    known = (depth > 0) & (exact > 0)
    assert known.mean() > 0.95 and np.median(np.abs(depth - exact)[known]) < 0.2
    assert "3 samples" in capsys.readouterr().out
    # Run again: what is missing.
    changed = (out / "sequences/00/depth/000005.png").stat().st_mtime_ns
    (out / "sequences/00/depth/000000.png").unlink()
    assert run(config(tree, tmp_path, every_frame=True)) == 0
    assert "2 samples to" in (said := capsys.readouterr().out) and "2 were there already" in said
    assert (out / "sequences/08/depth/000001.png").is_file()
    assert (out / "sequences/00/depth/000005.png").stat().st_mtime_ns == changed
    with pytest.raises(ValueError, match="holds results of other settings .block: 5 there, 3 now.*output_root"):
        run(config(tree, tmp_path, block=3))


def test_a_calibration_without_the_velodyne_is_enough(tree, tmp_path):
    path = tree / "sequences/00/calib.txt"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:4]))
    assert run(config(tree, tmp_path, sequences=("00",))) == 0
    path.write_text("\n".join(rows[:3]))
    with pytest.raises(ValueError, match="00/calib.txt: no row P3"):
        run(config(tree, tmp_path, sequences=("00",)))


def test_bad_frames_are_listed_and_the_rest_is_made(tree, tmp_path, capsys):
    (tree / "sequences/00/image_3/000000.png").unlink()
    (tree / "sequences/08/image_2/000000.png").write_bytes(b"\x89PNG nothing")
    assert run(config(tree, tmp_path)) == 1
    said = capsys.readouterr().out
    assert "2 failed" in said and "00_000000: " in said and "image_3/000000.png: cannot be read" in said
    assert "08_000000: " in said
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["000005.png"]


def test_settings_that_do_not_fit(tree, tmp_path, capsys):
    with pytest.raises(ValueError, match="go together"):
        DepthConfig(method="model")
    with pytest.raises(ValueError, match="max_disparity is 40"):
        DepthConfig(max_disparity=40)
    with pytest.raises(ValueError, match="has no sequence of '21', it has 00, 08"):
        run(config(tree, tmp_path, sequences=("21",)))
    with pytest.raises(ValueError, match="neither sequences/ nor dataset/sequences/"):
        run(config(tmp_path / "nowhere", tmp_path))
    assert exit_status(run, config(tmp_path / "nowhere", tmp_path)) == 2
    assert "give KITTI's root folder" in capsys.readouterr().err


def depth_network(folder, **changes):
    """A tiny metric depth network as transformers saves it."""
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    torch.manual_seed(0)
    small = GLPNConfig(
        num_encoder_blocks=4, depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8,
        max_depth=80, **changes
    )  # fmt: skip
    GLPNForDepthEstimation(small).save_pretrained(folder)
    GLPNImageProcessor(size_divisor=32).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_depth_network_in_a_folder(tree, tmp_path):
    network = depth_network(tmp_path / "network")
    assert run(config(tree, tmp_path, method="model", model=network, device="cpu")) == 0
    depth = kitti.read_depth(tmp_path / "out/sequences/00/depth/000000.png")
    assert depth.shape == (94, 310) and 0 < depth.min() and depth.max() <= 80
    assert json.loads((tmp_path / "out" / "gen_depth.json").read_text())["model"] == "network"
    with pytest.raises(ValueError, match="method: 'model' there, 'sgbm' now"):
        run(config(tree, tmp_path))
    with pytest.raises(ValueError, match="no such folder; give one that holds a depth model"):
        run(config(tree, tmp_path / "b", method="model", model=tmp_path / "nowhere", device="cpu"))
    for kind, words in (("dpt", "a dpt of relative depth, which has no metres"), ("none", "cannot be loaded")):
        (network / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ValueError, match=words):
            run(config(tree, tmp_path / "b", method="model", model=network, device="cpu"))
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_the_script_shares_the_work(tree, tmp_path):
    command = [ROOT / "utils" / "gen_depth.py", f"--dataroot={tree}", "--workers=2", "--max_disparity=48"]
    made = run_program(*command, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tree / "sequences/08/depth/000000.png").is_file() and "3 samples" in made.stdout
    assert parse_flags(DepthConfig, ["--sequences=08", "--every_frame"]).every_frame
