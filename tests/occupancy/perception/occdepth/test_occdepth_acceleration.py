import pytest
import torch
from recorded_passes import assert_trains_alike
from stereo_scene import config, scene
from torch import nn

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.occdepth.acceleration import (
    RecordedOccDepth,
    fold_norms,
    prepare_for_inference,
)
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
from syntheocc.occupancy.perception.occdepth.model import OccDepth
from syntheocc.occupancy.perception.occdepth.recorded import RecordedTraining


def trained(**changes):
    """A model whose norms are not the identity."""
    torch.manual_seed(1)
    model = OccDepth(config(**changes))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@torch.no_grad()
def test_folded_norms_change_no_answer():
    """Every kind of block: the halving of a volume, the enlarging, the dilated branches, the encoder."""
    model = trained(project_scale=2, grid=GridSpec((0.0, -3.2, -1.0), (0.4, 0.4, 0.4), (16, 16, 16)))
    batch = scene(model.config, 1)
    cameras = StereoCameras.of_batch(batch)
    exact = model(batch.images, cameras)
    fast = prepare_for_inference(model, dtype=None)
    folded = fast(batch.images, cameras)
    assert not [m for m in fast.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    scale = float(exact.logits.abs().max())
    torch.testing.assert_close(folded.logits, exact.logits, atol=1e-4 * scale, rtol=1e-4)
    torch.testing.assert_close(folded.depth_logits, exact.depth_logits, atol=1e-4, rtol=1e-4)
    assert [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # the model is as it was
    half = prepare_for_inference(model)
    found = half(batch.images, cameras)
    assert found.logits.dtype == torch.bfloat16
    assert float((found.logits.float() - exact.logits).abs().max()) < 0.1 * scale
    pictures = torch.randint(0, 256, batch.images.shape, dtype=torch.uint8)
    assert half.predict(pictures, cameras).semantics.shape == (1, 16, 16, 16)


def test_what_cannot_be_folded_or_recorded_is_said():
    with pytest.raises(ValueError, match=r"after model.eval\(\) only"):
        fold_norms(OccDepth(config()))
    with pytest.raises(ValueError, match="before the batch norms 1"):
        fold_norms(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval())
    model = OccDepth(config(lift="flosp", virtual_view=True)).eval()
    with pytest.raises(ValueError, match="virtual view"):
        RecordedOccDepth(model, StereoCameras.of_batch(scene(model.config)))


@pytest.mark.gpu
def test_a_recording_answers_what_the_model_answers():
    model = trained().cuda()
    batch = scene(model.config).to("cuda")
    cameras = StereoCameras.of_batch(batch)
    fast = RecordedOccDepth(prepare_for_inference(model, None), cameras)
    for shift in (0.0, 0.3):
        images = batch.images + shift
        same = fast(images).semantics == model.predict(images, cameras).semantics
        assert float(same.float().mean()) > 0.99


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("changes", "dtype"), [({}, None), ({"num_views": 1, "lift": "flosp"}, None),
                                                ({"occluded_head": True}, torch.bfloat16)])  # fmt: skip
def test_recorded_passes_train_alike(changes, dtype, device):
    torch.manual_seed(0)
    model = OccDepth(config(**changes)).to(device).train()
    batch = scene(model.config).to(device)
    cameras = StereoCameras.of_batch(batch)
    assert_trains_alike(
        model,
        RecordedTraining(model, dtype),
        lambda network: network(batch.images, cameras),
        lambda output: model.losses(output, batch)["loss"],
        dtype,
    )


def test_a_virtual_view_is_not_recorded_in_training():
    with pytest.raises(ValueError, match="virtual second view"):
        RecordedTraining(OccDepth(config(lift="flosp", virtual_view=True)))
