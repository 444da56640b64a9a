"""The training step: from a batch of the dataset to losses."""

import pytest
import torch

from syntheocc.occupancy.perception.dataset import OccupancyBatch
from syntheocc.occupancy.perception.photometric import draw_photometric
from syntheocc.occupancy.perception.sparseocc.step import SparseOccStep


@pytest.fixture
def batch(ring, scene):
    images = torch.randint(0, 256, (2, 2, 3, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    return OccupancyBatch(
        images=images.to(torch.uint8),
        ego2img=ring(2, 2, 3, 64, 96),
        tokens=["a", "b"],
        shots=[["a", "a"], ["b", "a"]],
        semantics=torch.stack([scene, scene]),
    )


def seeded(step: int, position: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(1000 * step + position)


def test_a_step_is_the_models_losses_on_the_batch(tiny, batch):
    tiny.train()
    torch.manual_seed(0)
    losses = SparseOccStep(tiny, seeded)(batch, step=3, positions=[4, 5])
    torch.manual_seed(0)
    generators = [seeded(3, position, torch.device("cpu")) for position in (4, 5)]
    expected = tiny.losses(tiny(batch.images, batch.ego2img, generators), batch.semantics)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    losses["loss"].backward()
    assert all(p.grad is not None for p in tiny.parameters())


def test_colours_change_before_the_images_are_normalised(tiny, batch):
    plain = SparseOccStep(tiny)(batch, 0, [0, 1])
    generator = torch.Generator().manual_seed(0)
    batch.photometric = draw_photometric(12, generator)
    assert SparseOccStep(tiny)(batch, 0, [0, 1])["loss"] != plain["loss"]
    # A draw that changes nothing gives the losses of the plain images.
    for name, value in (("brightness", 0.0), ("early_contrast", 1.0), ("late_contrast", 1.0), ("saturation", 1.0)):
        getattr(batch.photometric, name).fill_(value)
    batch.photometric.hue.zero_()
    batch.photometric.channels[:] = torch.arange(3)
    torch.testing.assert_close(SparseOccStep(tiny)(batch, 0, [0, 1])["loss"], plain["loss"])


def test_a_batch_without_ground_truth_is_refused(tiny, batch):
    batch.semantics = None
    with pytest.raises(ValueError, match="a, b have no ground truth"):
        SparseOccStep(tiny)(batch, 0, [0, 1])
