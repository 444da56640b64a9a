"""The whole way at once: two frames of the world are rendered, learnt by a tiny model and predicted."""

import pytest
import torch

from syntheocc.occupancy.grids import Preset
from syntheocc.occupancy.perception.cached import CachedFrames
from syntheocc.occupancy.perception.dataset import Sampling, collate
from syntheocc.occupancy.perception.sparseocc import SparseOcc
from syntheocc.occupancy.perception.sparseocc.step import SparseOccStep
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.worlds.drives import drive_of
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.splits import scene_seed


@pytest.mark.slow
def test_a_tiny_model_learns_two_frames_by_heart():
    """Of 3,500 occupied voxels it finds most and names nearly all; a constant class would find none."""
    torch.manual_seed(0)
    model = SparseOcc.from_preset("tiny")
    config = model.config
    height, width = config.image_size
    scene = make_scene(scene_seed(0, "train", 3), image_size=(96, 54), key_frames=2)
    store = drive_of(scene, Preset(config.grid, config.taxonomy))
    image = ImageAugmentation(height=height, width=width)
    sampling = Sampling(num_frames=config.num_frames, image=image, training=True, grid_turns=False, photometric=False)
    samples = CachedFrames(store, sampling, config.grid)
    batch = collate([samples[0], samples[1]])
    step = SparseOccStep(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for index in range(130):
        loss = step(batch, step=index, positions=[0, 1])["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]
    predicted = model.eval().predict(batch.images, batch.ego2img).semantics
    assert torch.equal(predicted, model.predict(batch.images, batch.ego2img).semantics)
    found, there = predicted != config.taxonomy.free, batch.semantics != config.taxonomy.free
    assert float((found & there).sum() / (found | there).sum()) > 0.6
    assert float((predicted == batch.semantics)[found & there].float().mean()) > 0.85
