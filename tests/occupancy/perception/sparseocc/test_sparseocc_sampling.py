"""Sampled features: which group's scale weights are used, which voxels of a mask are looked at."""

import torch

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.sparseocc.sampling import (
    ImageFeatures,
    MaskGuidedSampling,
    VoxelSampling,
    _draw,
    _spread,
)


def constant_levels(levels: int, frames: int, groups: int):
    """Maps that hold the number of their level everywhere, one view."""
    return [torch.full((1, frames, 1, 4, 6, 2 * groups), float(level)) for level in range(levels)]


def centred_camera(frames: int) -> torch.Tensor:
    """Shows every point with z = 1 in the middle of a 2x2 image."""
    matrix = torch.zeros(4, 4)
    matrix[0, 3] = matrix[1, 3] = matrix[2, 3] = matrix[3, 3] = 1.0
    return matrix.expand(1, frames, 1, 4, 4)


def test_scale_weights_stay_with_their_group_and_legacy_takes_the_published_ones(vectors):
    """Each group looks at the level of its own number; what comes back names the group whose weights were used."""
    frames, groups = 8, 4
    maps = constant_levels(groups, frames, groups)
    logits = torch.full((1, 1, groups, 1, groups), -1e4)
    logits[0, 0, range(groups), 0, range(groups)] = 1e4
    points = torch.zeros(1, 1, groups, 1, 3)
    used = {}
    for legacy in (False, True):
        images = ImageFeatures(maps, centred_camera(frames), (2, 2), legacy=legacy)
        sampled = images.sample(points, logits)  # [1, 1, G, T, c]
        assert sampled.shape == (1, 1, groups, frames, 2)
        used[legacy] = sampled[0, 0, :, :, 0].T.long().tolist()
    assert used[False] == [list(range(groups))] * frames
    assert used[True] == vectors["J_bgt"]["used"]


def test_draws_come_from_the_mask_and_cover_it():
    corners = torch.arange(10)[:, None].expand(-1, 3)[None] + 100
    active = torch.zeros(1, 2, 10, dtype=torch.bool)
    active[0, 0, [2, 5, 9]] = True
    generator = torch.Generator().manual_seed(0)
    drawn = _draw(active, corners, torch.rand(1, 2, 300, 4, generator=generator), (50, 20, 10))
    values, counts = drawn[0, 0, :, 0].unique(return_counts=True)
    assert values.tolist() == [102, 105, 109] and (counts > 70).all()
    # A query without a mask looks anywhere in the grid, not only at its corner.
    assert (drawn[0, 1] >= 0).all() and (drawn[0, 1] < torch.tensor([50, 20, 10])).all()
    assert (drawn[0, 1].float().mean(0) - torch.tensor([24.5, 9.5, 4.5])).abs().max() < 3


def test_even_draws_visit_every_voxel_of_a_small_mask_equally():
    corners = torch.arange(6)[:, None].expand(-1, 3)[None]
    active = torch.tensor([[[True, False, True, True, False, True]]])
    drawn = _draw(active, corners, _spread(16, torch.device("cpu")).expand(1, 1, -1, -1), (6, 6, 6))
    assert drawn[0, 0, :, 0].tolist() == [0] * 4 + [2] * 4 + [3] * 4 + [5] * 4


def test_evaluation_repeats_itself_and_training_follows_its_generator(ring):
    sampler = MaskGuidedSampling(8, num_groups=2, num_points=3, num_levels=2)
    from syntheocc.occupancy.perception.sparseocc.presets import preset

    spec = preset("tiny").model.grid
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 2, 3, 8, 12, 8, generator=generator), torch.randn(1, 2, 3, 4, 6, 8, generator=generator)]
    images = ImageFeatures(maps, ring(1, 2, 3, 64, 96), (64, 96))
    corners = torch.randint(0, 8, (1, 50, 3), generator=generator) * torch.tensor([5, 5, 1])
    active = torch.rand(1, 4, 50, generator=generator) > 0.5
    queries = torch.randn(1, 4, 8, generator=generator)

    def sample(seed):
        seeded = torch.Generator().manual_seed(seed)
        return sampler(queries, active, corners, spec, images, seeded)

    sampler.eval()
    assert sample(0).shape == (1, 4, 2, 6, 4)
    assert torch.equal(sample(0), sample(1))
    sampler.train()
    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))


def ramp(height: int, width: int) -> torch.Tensor:
    """A map [1, 1, 1, h, w, 2] whose channels are u and v themselves."""
    v, u = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([u, v], -1)[None, None, None]


def from_above() -> torch.Tensor:
    """u = x / 10 and v = y / 10 for every height (image of 100 x 100 pixels)."""
    matrix = torch.tensor([[10.0, 0, 0, 0], [0, 10.0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
    return matrix.expand(1, 1, 1, 4, 4)


GRID = GridSpec((0.0, 0.0, 0.0), (0.5, 0.25, 1.0), (16, 16, 2))
ABOVE = ImageFeatures([ramp(11, 11), ramp(6, 21)], from_above(), (100, 100))


def test_voxels_without_offset_are_sampled_at_their_centre_and_offsets_are_in_edges():
    """The voxel at (4, 8, 0) of edge 4: centre (4 + 2) * 0.5 m = 3 m, (8 + 2) * 0.25 m = 2.5 m."""
    sampler = VoxelSampling(2, num_groups=1, num_points=2, num_levels=2)
    torch.nn.init.zeros_(sampler.sampling_offset.bias)
    sampler.sampling_offset.bias.data[3:5] = torch.tensor([0.25, -0.5])  # the second point: +0.5 m, -0.5 m
    found = sampler(torch.zeros(1, 1, 2), torch.tensor([[[4, 8, 0]]]), 4, GRID, ABOVE)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([[0.3, 0.25], [0.35, 0.2]]))


def test_mask_points_lie_at_voxel_centres_and_legacy_ones_at_corners():
    """The full-resolution voxel (4, 8, 0): centre (2.25, 2.125) m, corner (2, 2) m."""
    for legacy, expected in ((False, [0.225, 0.2125]), (True, [0.2, 0.2])):
        sampler = MaskGuidedSampling(2, num_groups=1, num_points=1, num_levels=2, legacy=legacy).eval()
        active = torch.tensor([[[False, True]]])
        corners = torch.tensor([[[0, 0, 0], [4, 8, 0]]])
        found = sampler(torch.zeros(1, 1, 2), active, corners, GRID, ABOVE)
        torch.testing.assert_close(found[0, 0, 0, 0], torch.tensor(expected))
