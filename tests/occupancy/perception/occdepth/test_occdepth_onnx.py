"""ONNX files of OccDepth in onnxruntime against PyTorch: weights and relation prior are in them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from kitti_scene import write_planes

from syntheocc.commands import main
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.occdepth.config import as_published
from syntheocc.occupancy.perception.occdepth.model import OccDepth
from syntheocc.occupancy.perception.occdepth.onnx_export import check_onnx, export_onnx, onnx_inputs
from syntheocc.occupancy.perception.occdepth.presets import preset

pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")

# The exporter takes most of a minute for an EfficientNet; what is special here is behind it.
NARROW = {"grid": GridSpec((0.0, -6.4, -2.0), (0.8, 0.8, 0.8), (16, 16, 8), "lidar"), "image_size": (32, 64)}


def trained(config):
    """Weights as after some training: norms that have seen something, and no bias at zero."""
    torch.manual_seed(0)
    model = OccDepth(config).eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.uniform_(-0.1, 0.1)
    return model


def close(differences):
    return differences["labels"] < 1e-3 and max(v for k, v in differences.items() if k != "labels") < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True], ids=["corrected", "legacy"])
def test_tiny_with_cameras_as_inputs(legacy, tmp_path):
    config = replace(preset("tiny").model, **NARROW)
    model = trained(as_published(config) if legacy else config)
    path = export_onnx(model, tmp_path / "tiny.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.onnx"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images", "velo2img", "intrinsics", "origin"]
    names = [o.name for o in session.get_outputs()]
    assert names == ["labels", "logits", "occupancy_logits", "relation_logits", "depth_logits"]
    differences = check_onnx(model, path)
    assert set(differences) == set(names) and close(differences)
    # The cameras count: moved ones give another answer.
    inputs = {name: value.numpy() for name, value in onnx_inputs(model).items()}
    before = session.run(["logits"], inputs)[0]
    inputs["velo2img"] = inputs["velo2img"] @ np.array([[1, 0, 0, 1.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert np.abs(session.run(["logits"], inputs)[0] - before).max() > 1e-3
    # And so does the relation prior: without its last layer's weights the answer is another one.
    with torch.no_grad():
        model.volume_net.relation.merge.weight.zero_()
    assert not close(check_onnx(model, path))


@pytest.mark.slow
def test_small_for_one_rig_by_command(tmp_path, capsys):
    """The preset small as it is, with the cameras of a KITTI sequence kept in the file."""
    folder = write_planes(tmp_path / "kitti", "00")
    trained(preset("small").model).save_pretrained(tmp_path / "model")
    job = ["occupancy", "export", "--weights", str(tmp_path / "model"), "--output", str(tmp_path / "small.onnx")]
    assert main([*job, "--rig-of", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "input images: uint8 [1, 2, 3, 184, 608]" in said and "velo2img" not in said
    assert "relation_logits: largest difference to PyTorch" in said


def test_what_cannot_be_exported_is_refused(tmp_path):
    model = OccDepth.from_preset("tiny")
    with pytest.raises(ValueError, match=r"needs model.eval\(\)"):
        export_onnx(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="ONNX files end in .onnx"):
        export_onnx(model.eval(), tmp_path / "model.pb")
    assert main(["occupancy", "export", "--weights", str(tmp_path / "nowhere")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_those_of_the_config():
    inputs = onnx_inputs(OccDepth.from_preset("tiny"))
    assert {name: (str(v.dtype), list(v.shape)) for name, v in inputs.items()} == {
        "images": ("torch.uint8", [1, 2, 3, 64, 208]),
        "velo2img": ("torch.float64", [1, 2, 4, 4]),
        "intrinsics": ("torch.float64", [1, 2, 3, 3]),
        "origin": ("torch.float64", [1, 3]),
    }
    room = preset("nyu_b4", backbone="tiny", channels=4, decoder_channels=32, image_size=(96, 128)).model
    assert list(onnx_inputs(OccDepth(room))) == ["images", "depth", "velo2img", "intrinsics", "origin"]
