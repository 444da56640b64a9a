"""Losses against numbers worked out by hand and the vectors of specs/sparseocc.md 2.8."""

import math

import pytest
import torch

from syntheocc.occupancy import losses
from syntheocc.occupancy.losses.focal import pairwise_focal_cost

LOGITS = torch.tensor([[2.0, 0, -1], [0, 1, 0], [0.5, 0.5, 1], [-1, 0, 2], [1, 1, 1]])
LABELS = torch.tensor([0, 1, 1, 2, 2], dtype=torch.uint8)
FREE = 2


def test_lovasz_of_two_entries_by_hand():
    """Class 0: errors .4 (its own entry) and .3; Jaccard 1 after the worst, so .4*1 + .3*0. Class 1 is the same."""
    probabilities = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    # class 0: errors .4, .3 -> .4 * 1 + .3 * 0; class 1: errors .4 (a stranger), .3 -> union 2: .4 * .5 + .3 * .5
    class0, class1 = 0.4, 0.4 * 0.5 + 0.3 * 0.5
    assert losses.lovasz_softmax(probabilities, torch.tensor([0, 1])) == pytest.approx((class0 + class1) / 2)


def test_voxel_losses_of_the_specification():
    probabilities = LOGITS.softmax(-1)
    assert losses.lovasz_softmax(probabilities, LABELS) == pytest.approx(0.43644070625305176, abs=1e-5)
    assert losses.geo_scal_loss(probabilities, LABELS, FREE) == pytest.approx(1.1048152446746826, abs=1e-5)
    assert losses.sem_scal_loss(probabilities, LABELS) == pytest.approx(1.3179737329483032, abs=1e-5)
    weighted = losses.weighted_cross_entropy(LOGITS, LABELS, torch.tensor([0.3, 0.2, 0.5]))
    assert weighted == pytest.approx(0.6202042698860168, abs=1e-5)


def test_unknown_labels_teach_lovasz_nothing_unless_asked_to():
    """The published loss counts them against every class; ours is that of the set without them."""
    labels = LABELS.clone()
    labels[2] = 255
    probabilities = LOGITS.softmax(-1)
    dropped = losses.lovasz_softmax(probabilities[[0, 1, 3, 4]], LABELS[[0, 1, 3, 4]])
    assert losses.lovasz_softmax(probabilities, labels) == dropped
    found = {
        tuple(round(float(losses.lovasz_softmax(probabilities, labels_of(i), ignore)), 6) for ignore in (None, 255))
        for i in range(5)
    }
    assert (0.394055, 0.370886) in found


def labels_of(unknown: int) -> torch.Tensor:
    labels = LABELS.clone()
    labels[unknown] = 255
    return labels


def test_scal_of_a_class_by_hand():
    """p = .8, .4 for t = 1, 0: precision .8/1.2, recall .8, specificity .6."""
    loss = losses.scal_loss(torch.tensor([0.8, 0.4]), torch.tensor([True, False]))
    assert loss == pytest.approx(-math.log(0.8 / 1.2) - math.log(0.8) - math.log(0.6))


@pytest.mark.parametrize("labels", [[255] * 5, [FREE] * 5, [0] * 5])
def test_unknown_free_and_uniform_samples_leave_finite_losses_and_gradients(labels):
    logits = LOGITS.clone().requires_grad_()
    target = torch.tensor(labels, dtype=torch.uint8)
    probabilities = logits.softmax(-1)
    total = (
        losses.lovasz_softmax(probabilities, target)
        + losses.geo_scal_loss(probabilities, target, FREE)
        + losses.sem_scal_loss(probabilities, target)
        + losses.weighted_cross_entropy(logits, target)
        + losses.class_balanced_bce(logits[:, 0], target, FREE)
    )
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(logits.grad).all()
    assert (total.item() == 0) == (labels[0] == 255)


def test_absent_classes_count_in_no_mean():
    """A fourth class that no entry has changes nothing, whatever is predicted for it."""
    probabilities = torch.cat([LOGITS.softmax(-1), torch.full((5, 1), 0.3)], 1)
    three, four = LOGITS.softmax(-1), probabilities
    for loss in (losses.lovasz_softmax, losses.sem_scal_loss):
        torch.testing.assert_close(loss(four, LABELS), loss(three, LABELS))


def test_a_class_that_is_nowhere_predicted_costs_much_but_not_infinity():
    probability = torch.zeros(3, requires_grad=True)
    loss = losses.scal_loss(probability, torch.tensor([True, False, False]))
    loss.backward()
    assert 20 < loss.item() < 60 and torch.isfinite(probability.grad).all()


def test_class_balanced_bce_of_v1_0():
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0, -2.0, 1.0])
    labels = torch.tensor([4, 17, 11, 17, 17, 4], dtype=torch.uint8)
    assert losses.class_balanced_bce(logits, labels, free=17) == pytest.approx(1.0719507932662964, abs=1e-6)


def test_focal_loss_by_hand_and_its_extremes():
    """At p = .5 a positive costs alpha * .25 * ln 2."""
    loss = losses.sigmoid_focal_loss(torch.zeros(2), torch.tensor([1, 0]))
    expected = torch.tensor([0.25, 0.75]) * 0.25 * math.log(2)
    torch.testing.assert_close(loss, expected)
    extreme = losses.sigmoid_focal_loss(torch.tensor([-80.0, 80.0]), torch.tensor([1, 0]))
    torch.testing.assert_close(extreme, torch.tensor([20.0, 60.0]))


def test_pairwise_mask_losses_are_the_losses_of_every_pair():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, generator=generator)
    segments = (torch.rand(2, 7, generator=generator) > 0.5).float()
    for pairwise, single in (
        (losses.pairwise_mask_bce, losses.mask_bce),
        (losses.pairwise_mask_dice, losses.mask_dice),
    ):
        for m in range(2):
            torch.testing.assert_close(pairwise(logits, segments)[:, m], single(logits, segments[[m]].expand(3, -1)))


def test_pairwise_focal_cost_stays_finite_for_certain_logits():
    assert torch.isfinite(pairwise_focal_cost(torch.tensor([[90.0, -90.0]]), torch.tensor([0, 1]))).all()


def test_frequency_weights_and_their_errors():
    assert losses.frequency_weights([944004, 1892500630])[0] == pytest.approx(0.0726855872, abs=1e-9)
    with pytest.raises(ValueError, match="at least 2"):
        losses.frequency_weights([0, 10])


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[3\]"):
        losses.lovasz_softmax(torch.zeros(2, 3), torch.zeros(3))
