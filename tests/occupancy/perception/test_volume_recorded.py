"""Models that are taught by rendering, with their passes recorded, against themselves."""

import pytest
import torch
from recorded_passes import assert_trains_alike
from rendered_scene import scene_batch

from syntheocc.occupancy.perception.occflownet import OccFlowNet
from syntheocc.occupancy.perception.occflownet.step import OccFlowNetStep
from syntheocc.occupancy.perception.splattingocc import SplattingOcc
from syntheocc.occupancy.perception.view_transform import LiftCameras
from syntheocc.occupancy.perception.volume_recorded import RecordedVolumeModel


def build(name):
    """A model without random numbers, in training mode."""
    torch.manual_seed(0)
    if name == "learned":
        model = SplattingOcc.from_preset("splattingocc_learned_tiny")
    else:
        model = OccFlowNet.from_preset("occflownet_2d_flow_tiny")
    model.trunk.depth_net.aspp.dropout = 0.0
    return model.train()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("name", "dtype"), [("occflownet", None), ("learned", None), ("occflownet", torch.bfloat16)])
def test_recorded_passes_train_alike(name, dtype, device):
    model = build(name).to(device)
    batch = scene_batch(samples=2)
    images, cameras = batch.images.to(device), LiftCameras.of_batch(batch).to(device)

    def loss_of(output):
        found = [output.raw, output.logits, output.depth_logits, *([] if output.extras is None else [output.extras])]
        return torch.stack([value.float().square().mean() for value in found]).sum()

    assert_trains_alike(
        model, RecordedVolumeModel(model, dtype), lambda network: network(images, cameras), loss_of, dtype
    )


def test_a_recorded_model_answers_in_a_step_without_generators():
    """Recorded passes draw from torch's own state: samples with generators of their own do not use them."""
    model = build("occflownet")
    step = OccFlowNetStep(model, lambda step, position, device: torch.Generator(device).manual_seed(position))
    batch, asked = scene_batch(samples=2), []

    class Recorded(RecordedVolumeModel):
        def __call__(self, images, cameras):
            asked.append(len(images))
            return super().__call__(images, cameras)

    step.recorded = Recorded(model)
    step(batch, 0, [0, 1])
    assert not asked
    step.generator_of = None
    torch.manual_seed(3)
    found = step(batch, 0, [0, 1])
    assert asked == [2]
    step.recorded = None
    torch.manual_seed(3)
    assert {k: v.item() for k, v in step(batch, 0, [0, 1]).items()} == {k: v.item() for k, v in found.items()}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_older_frames_take_no_gradients_from_the_newest(device):
    """One autocast holds both: weights that it cast without gradients must not serve the pass with them."""
    model = build("occflownet").to(device)
    batch = scene_batch(samples=2)
    with torch.autocast(device, torch.bfloat16):
        output = model(batch.images.to(device), LiftCameras.of_batch(batch).to(device))
    (output.raw.float().square().mean() + output.logits.float().square().mean()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_checkpointing_is_not_recorded():
    model = build("occflownet")
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing cannot be recorded"):
        RecordedVolumeModel(model)
