"""Confusion counts, mean IoU and the bootstrap, by numbers worked out by hand and by slow loops."""

import itertools

import pytest
import torch

from syntheocc.evaluation.bootstrap import Interval, Resamples
from syntheocc.evaluation.scores import class_iou, confusion, mean_iou


def test_confusion_counts_rows_of_truth_and_leaves_unknown_and_masked_pixels_out():
    truth = torch.tensor([[0, 0, 1, 1], [2, 255, 2, 0]], dtype=torch.uint8)
    seen = torch.tensor([[0, 1, 1, 1], [0, 2, 2, 2]], dtype=torch.uint8)
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[1, 3] = False
    assert confusion(seen, truth, 3, mask).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    assert confusion(seen, truth, 3).tolist() == [[1, 1, 1], [0, 2, 0], [1, 0, 1]]
    with pytest.raises(ValueError, match="one shape"):
        confusion(seen, truth[0], 3)


def test_mean_iou_is_over_the_classes_that_occur():
    # class 0: hit 1, truth 2, predicted 2 -> 1/3; class 1: 2 of 2 and 3 -> 2/3; class 2 only predicted: not counted.
    counts = torch.tensor([[1, 1, 0], [1, 2, 1], [0, 0, 0]])
    # row 1 sums to 4 and column 1 to 3: 2 / (4 + 3 - 2) = 0.4
    assert class_iou(counts)[:2].tolist() == pytest.approx([1 / 3, 0.4])
    assert torch.isnan(class_iou(counts)[2])
    assert float(mean_iou(counts)) == pytest.approx((1 / 3 + 0.4) / 2)
    assert mean_iou(torch.stack([counts, counts.T])).shape == (2,)


def test_bootstrap_agrees_with_a_loop_over_the_drawn_scenes():
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 20, (7, 3, 3), generator=generator)
    draws = Resamples(7, num_resamples=50, seed=3)
    fast = mean_iou(draws.sums(counts))
    slow = torch.stack([mean_iou(counts.sum(0)), *(mean_iou(counts[picks].sum(0)) for picks in draws.picks)])
    assert torch.allclose(fast, slow)


def test_interval_covers_what_all_possible_resamples_of_two_scenes_say():
    # Two scenes with 0 and 1: a draw has mean 0, 1/2 or 1 with 1/4, 1/2, 1/4, so the 95 % interval is [0, 1].
    draws = Resamples(2, num_resamples=4000)
    means = draws.means(torch.tensor([0.0, 1.0]))
    shares = [float((means[1:] == value).double().mean()) for value in (0, 0.5, 1)]
    exact = [sum(a + b == n for a, b in itertools.product((0, 1), repeat=2)) / 4 for n in range(3)]
    assert shares == pytest.approx(exact, abs=0.03)
    assert draws.interval(means) == Interval(0.5, 0.0, 1.0)
    # An 80 % interval of 4000 even numbers cuts a tenth off either end.
    even = torch.cat([torch.tensor([0.5]), torch.linspace(0, 1, 4001)]).double()
    assert draws.interval(even, level=0.8)[1:] == pytest.approx((0.1, 0.9))


def test_pairing_makes_a_constant_difference_certain():
    first = torch.rand(20, generator=torch.Generator().manual_seed(0)).double()
    draws = Resamples(20, 500)
    low_high = draws.interval(draws.means(first + 0.25) - draws.means(first))
    assert tuple(low_high) == pytest.approx((0.25,) * 3)
    alone = draws.interval(draws.means(first))
    assert alone.high - alone.low > 0.1


def test_scenes_without_a_number_are_left_out_of_the_mean():
    draws = Resamples(3, 10)
    assert float(draws.means(torch.tensor([1.0, float("nan"), 3.0]))[0]) == 2.0
    with pytest.raises(ValueError, match="3 scenes, got values of 2"):
        draws.sums(torch.zeros(2))
    with pytest.raises(ValueError, match="at least two scenes"):
        Resamples(1)


def test_coverage_of_the_interval_is_near_its_level():
    """Of 200 samples of 40 numbers with mean 0, the 95 % interval holds 0 in about 95 %."""
    numbers = torch.randn(200, 40, generator=torch.Generator().manual_seed(0))
    held = 0
    for i, sample in enumerate(numbers):
        draws = Resamples(40, 400, seed=i)
        interval = draws.interval(draws.means(sample))
        held += interval.low <= 0 <= interval.high
    assert 0.89 <= held / 200 <= 0.99
