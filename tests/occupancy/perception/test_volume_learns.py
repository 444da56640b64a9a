"""The tiny models learn a scene by heart from rays alone: free space, surfaces and classes where the rays went."""

import pytest
import torch
from rendered_scene import FREE, TINY_GRID, scene_batch, scene_labels, scene_rays
from test_volume_models import build, without_dropout

from syntheocc.occupancy.perception.view_transform import LiftCameras
from syntheocc.occupancy.rendering.rays import RayLabels


def seen_voxels(rays) -> torch.Tensor:
    """Voxels that rays go through or end in."""
    seen = torch.zeros(TINY_GRID.shape, dtype=torch.bool)
    for share in torch.linspace(0, 1, 60):
        reach = rays.distance[:, None] * share + (0.2 if share == 1 else 0.0)
        index, inside = TINY_GRID.index_of(rays.origins + rays.directions * reach)
        seen[index[inside].unbind(-1)] = True
    return seen


@pytest.mark.slow
# RenderOcc's raw densities start far from any surface: classes come later.
@pytest.mark.parametrize(
    ("name", "steps", "classes"), [("occflownet", 60, 0.75), ("splattingocc", 60, 0.75), ("renderocc", 120, 0.55)]
)
def test_a_scene_is_learnt_from_rays(name, steps, classes):
    """Acceptance test 8: free is predicted for most of what the cameras see; and 9, as far as seconds go."""
    model, step = build(name, rays_per_sample=600)
    without_dropout(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    batch, draws = scene_batch(samples=2), [scene_rays(2000, seed=seed) for seed in range(4)]
    batch.motion = None
    for index in range(steps):
        batch.rays = RayLabels.collate([draws[index % 4], draws[(index + 1) % 4]])
        loss = step(batch, index, [0, 1])["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    predicted = model.eval().predict(batch.images, LiftCameras.of_batch(batch)).semantics[0]
    labels, seen = scene_labels(), seen_voxels(draws[0])
    free, occupied = seen & (labels == FREE), seen & (labels != FREE)
    assert (predicted[free] == FREE).float().mean() > 0.7
    assert (predicted[occupied] != FREE).float().mean() > 0.7
    found = occupied & (predicted != FREE)
    assert (predicted[found] == labels[found]).float().mean() > classes
