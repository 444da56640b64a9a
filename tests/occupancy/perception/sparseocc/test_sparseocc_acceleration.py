"""The model for fast prediction against the model it was made from."""

import pytest
import torch
from recorded_passes import assert_trains_alike

from syntheocc.occupancy.perception.sparseocc import SparseOcc
from syntheocc.occupancy.perception.sparseocc.acceleration import RecordedSparseOcc, prepare_for_inference
from syntheocc.occupancy.perception.sparseocc.temporal import OnlinePredictor


@pytest.fixture(scope="module")
def trained():
    """A tiny model whose batch norms have statistics, images, and projections of cameras that see the grid."""
    torch.manual_seed(0)
    model = SparseOcc.from_preset("tiny")
    height, width = model.config.image_size
    images = torch.randint(0, 256, (1, 2, 2, 3, height, width), dtype=torch.uint8)
    ahead = torch.tensor([[48.0, -60, 0, 0], [32, 0, -60, 60], [1, 0, 0, 0], [0, 0, 0, 1]])
    behind = ahead @ torch.diag(torch.tensor([-1.0, -1, 1, 1]))
    ego2img = torch.stack([ahead, behind]).expand(1, 2, -1, -1, -1)
    for _ in range(3):
        model.train()(images, ego2img)
    return model.eval(), images, ego2img


@torch.no_grad()
def last(model, images, ego2img):
    return model(images, ego2img).predictions[-1]


def test_folded_norms_change_nothing(trained):
    model, images, ego2img = trained
    fast = prepare_for_inference(model, dtype=None)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fast.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert all(not p.requires_grad for p in fast.parameters()) and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(
        last(fast, images, ego2img).class_logits, last(model, images, ego2img).class_logits, rtol=1e-3, atol=1e-3
    )


def test_half_precision_predicts_grids(trained):
    model, images, ego2img = trained
    fast = prepare_for_inference(model)
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    got, expected = last(fast, images, ego2img), last(model, images, ego2img)
    # Voxels that score alike are kept or not by their last bits, so single queries of an untrained net differ more.
    assert float((got.class_logits.float() - expected.class_logits).abs().mean()) < 0.4
    grids = fast.predict(images, ego2img)
    assert torch.equal(grids.semantics, fast.predict(images, ego2img).semantics)


def test_compiled_models_predict_the_same(trained):
    model, images, ego2img = trained
    fast = prepare_for_inference(model, dtype=None, compile="aot_eager")
    torch.testing.assert_close(
        last(fast, images, ego2img).class_logits, last(model, images, ego2img).class_logits, rtol=1e-3, atol=1e-3
    )


@pytest.mark.gpu
def test_recorded_predictions_are_the_launched_ones(trained):
    model, images, ego2img = trained
    fast = prepare_for_inference(model).to("cuda")
    plain, recorded = OnlinePredictor(fast), OnlinePredictor(fast, cuda_graph=True)
    buffer, matrices = torch.empty_like(images[0, 0], device="cuda"), ego2img.to("cuda").clone()
    for step in range(4):
        # The same tensors with new values: a recording must not take them for the old ones.
        buffer.copy_(images[0, step % 2].roll(step, -1))
        matrices[:, :, :, 0, 3] += step
        history = [[step, *([step - 1] if step else [])]]
        expected = plain(history, {step: buffer}, matrices)
        assert torch.equal(recorded(history, {step: buffer}, matrices).semantics, expected.semantics)
    assert len(recorded._recordings) == 2
    recorded.clear()
    assert not recorded._recordings and len(recorded) == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("version", "dtype"), [("1.0", None), ("1.1", None), ("1.1", torch.bfloat16)])
def test_recorded_passes_train_alike(trained, version, dtype, device):
    """The same losses and gradients in every step, also after the weights have changed in place."""
    _, images, ego2img = trained
    images, ego2img = images.to(device), ego2img.to(device)
    torch.manual_seed(1)
    # Without points drawn at random, the mask decoder's iterations, and without dropout both ways are comparable.
    model = SparseOcc.from_preset("tiny", version=version, mask_iterations=0, dropout=0.0).to(device).train()
    semantics = torch.randint(0, 18, (1, *model.config.grid.shape), device=device, dtype=torch.uint8)
    assert_trains_alike(
        model,
        RecordedSparseOcc(model, dtype),
        lambda network: network(images, ego2img),
        lambda output: model.losses(output, semantics)["loss"],
        dtype,
    )
