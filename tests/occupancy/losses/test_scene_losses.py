"""Losses on whole volumes: the golden values of specs/occdepth.md 1.3, 1.4 and 2.9, and plain references."""

import pytest
import torch

from syntheocc.occupancy import losses

TARGET = torch.tensor([0, 1, 2, 255, 0, 1, 0, 2]).view(1, 2, 2, 2)
WEIGHTS = torch.tensor([0.05, 1, 1])
# specs/occdepth.md 1.3: the tile of each voxel in two views; what both show in one tile is there once.
TILES = torch.tensor([[0, 1, 2, 3, 0, 3, 255, 255], [255, 0, 255, 2, 255, 255, 255, 1]]).view(1, 2, 2, 2, 2)


def ramp(shape, step):
    return torch.sin(step * torch.arange(float(torch.Size(shape).numel()))).view(shape)


def logits():
    return 2 * ramp((1, 3, 2, 2, 2), 0.9)


def test_the_published_losses():
    probabilities = logits().softmax(1)
    geometric, semantic = losses.scene_scal_losses(probabilities, TARGET, free=0)
    assert float(losses.scene_cross_entropy(logits(), TARGET, WEIGHTS)) == pytest.approx(1.633343, abs=1e-5)
    assert float(semantic) == pytest.approx(3.072380, abs=1e-5)
    assert float(geometric) == pytest.approx(2.530177, abs=1e-5)
    assert float(losses.frustum_proportion_loss(probabilities, TARGET, TILES, 4)) == pytest.approx(1.460259, abs=1e-5)


def test_the_published_divergence_of_each_tile():
    probabilities = logits().softmax(1)
    for tile, golden in enumerate((0.473986, 0.245833, 3.215047, 1.906168)):
        alone = torch.where(TILES == tile, 0, 255)
        assert float(losses.frustum_proportion_loss(probabilities, TARGET, alone, 1)) == pytest.approx(
            golden, abs=1e-5
        )


COARSE = torch.tensor([0, 0, 1, 1, 2, 255, 0, 1, 0, 0, 0, 0, 255, 255, 255, 255]).view(1, 4, 2, 2)


def test_the_published_relations():
    targets = losses.relation_targets(COARSE, 3, 0)
    assert targets.shape == (1, 4, 16, 2) and targets.sum((0, 2, 3)).tolist() == [4, 4, 14, 15]
    found = [[set(targets[0, r, :, j].nonzero()[:, 0].tolist()) for j in range(2)] for r in range(4)]
    assert found[0][0] == found[1][0] == {2, 3, 4, 7} and found[0][1] == found[1][1] == set()
    assert found[2] == [{0, 1, 6, 8, 9, 10, 11}, {0, 1, 6, 8, 9, 10, 11}]
    assert found[3] == [{0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11}, {2, 3, 4, 7}]
    assert losses.relation_targets(COARSE, 3, 0, relations=2).sum((0, 2, 3)).tolist() == [15, 18]
    # Logits are [R, M, N]: voxels last.
    loss = losses.relation_loss(ramp((1, 4, 2, 16), 0.37), COARSE, 3, 0)
    assert float(loss) == pytest.approx(0.923037, abs=1e-5)


@pytest.mark.parametrize("relations", [2, 4])
def test_relations_are_what_their_names_say(relations):
    """Against the loop over voxels and groups, with an odd axis whose last voxels are in no group."""
    generator = torch.Generator().manual_seed(relations)
    labels = torch.randint(0, 5, (2, 4, 3, 5), generator=generator)
    labels[labels == 4] = 255
    targets = losses.relation_targets(labels, 4, 1, relations)
    for b in range(2):
        flat = labels[b].flatten().tolist()
        for j in range(4):
            x, y, z = j // 2, 0, j % 2
            group = set(labels[b, 2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2].flatten().tolist()) - {255}
            for n, own in enumerate(flat):
                wanted = [False] * relations
                if own != 255 and relations == 2:
                    wanted = [bool(group - {own}), own in group]
                elif own != 255 and own != 1:
                    wanted = [own in group, bool(group - {own, 1}), False, 1 in group]
                elif own == 1:
                    wanted = [False, False, 1 in group, bool(group - {1})]
                assert targets[b, :, n, j].tolist() == wanted


def test_volumes_lose_what_their_rows_lose_gradients_included():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 4, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 5, (2, 4, 3, 2), generator=generator)
    labels[labels == 4] = 255  # a class without voxels, and unknown ones
    weights = torch.rand(5, generator=generator, dtype=torch.float64)
    rows, flat = values.movedim(1, -1).reshape(-1, 5), labels.flatten()
    geometric, semantic = losses.scene_scal_losses(values.softmax(1), labels, free=2)
    pairs = [
        (geometric, losses.geo_scal_loss(rows.softmax(-1), flat, 2)),
        (semantic, losses.sem_scal_loss(rows.softmax(-1), flat)),
        (losses.scene_cross_entropy(values, labels, weights), losses.weighted_cross_entropy(rows, flat, weights)),
        (losses.scene_cross_entropy(values, labels), losses.weighted_cross_entropy(rows, flat)),
    ]
    for fast, slow in pairs:
        torch.testing.assert_close(fast, slow)
        grads = [torch.autograd.grad(loss, values, retain_graph=True)[0] for loss in (fast, slow)]
        torch.testing.assert_close(*grads)


def test_the_frustum_loss_is_the_one_of_masks_gradients_included():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 4, 30, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 5, (2, 30), generator=generator)
    labels[labels == 4] = 255
    tiles = torch.randint(0, 7, (2, 1, 30), generator=generator)  # 5 tiles; 5 and 6 are nowhere
    tiles[tiles == 4] = 255  # a tile that shows nothing
    probabilities = values.softmax(1)
    divergences = []
    for tile in range(5):
        mask = (tiles[:, 0] == tile) & (labels != 255)
        if mask.any():
            mixture = probabilities.movedim(1, -1)[mask].sum(0)
            wanted = torch.bincount(labels[mask], minlength=4) / mask.sum()
            there = wanted > 0
            divergences.append((wanted[there] * (wanted[there] / (mixture / mixture.sum())[there]).log()).sum())
    assert len(divergences) == 4
    fast = losses.frustum_proportion_loss(probabilities, labels, tiles, 5)
    slow = torch.stack(divergences).mean()
    torch.testing.assert_close(fast, slow)
    grads = [torch.autograd.grad(loss, values, retain_graph=True)[0] for loss in (fast, slow)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("label", [0, 1, 255])
def test_scenes_of_one_kind_leave_finite_losses_and_gradients(label):
    """All free, all of one class, all unknown: the published forms are not numbers there."""
    sure = torch.full((1, 3, 2, 2, 2), -200.0)
    sure[:, 2] = 200.0  # nobody predicts what is there
    for values in (logits(), sure):
        values = values.clone().requires_grad_()
        labels = torch.full((1, 2, 2, 2), label)
        probabilities = values.softmax(1)
        coarse = labels.expand(1, 2, 2, 2)
        relations = values.flatten()[:16].view(1, 2, 1, 8)
        found = [
            losses.scene_cross_entropy(values, labels, WEIGHTS),
            *losses.scene_scal_losses(probabilities, labels, 0),
            losses.frustum_proportion_loss(probabilities, labels, torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8), 4),
            losses.relation_loss(relations, coarse, 3, 0),
        ]
        total = torch.stack(found).sum()
        assert bool(torch.isfinite(total))
        total.backward()
        assert bool(torch.isfinite(values.grad).all())
        if label == 255:
            assert [float(loss.detach()) for loss in found[:4]] == [0.0] * 4


def test_relations_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="make relations"):
        losses.relation_loss(torch.zeros(1, 4, 2, 15), COARSE, 3, 0)
    with pytest.raises(ValueError, match="2 or 4 relations"):
        losses.relation_targets(COARSE, 3, 0, relations=3)
