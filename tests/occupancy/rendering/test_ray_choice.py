"""Weighted draws without replacement."""

import pytest
import torch

from syntheocc.occupancy.rendering.ray_choice import choose_rays


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_all_that_can_be_drawn_are_where_there_are_few():
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5])
    assert choose_rays(weights, 9, generator()).tolist() == [0, 2, 3]
    assert choose_rays(weights, 3, generator()).tolist() == [0, 2, 3]
    assert choose_rays(torch.zeros(4), 2, generator()).tolist() == []
    assert choose_rays(torch.zeros(0), 2, generator()).tolist() == []
    assert choose_rays(weights, 0, generator()).tolist() == []


def test_no_ray_twice_and_none_of_weight_zero():
    weights = torch.rand(1000, generator=generator()) * (torch.arange(1000) % 3 != 0)
    chosen = choose_rays(weights, 400, generator(1))
    assert len(chosen.unique()) == 400 and (weights[chosen] > 0).all() and (chosen.diff() > 0).all()
    assert torch.equal(chosen, choose_rays(weights, 400, generator(1)))
    assert not torch.equal(chosen, choose_rays(weights, 400, generator(2)))


def test_how_often_each_pair_is_drawn():
    """Weights 1, 2, 5 without replacement: P(0 and 1) = 1/8 * 2/7 + 2/8 * 1/6, and so on."""
    weights, source = torch.tensor([1.0, 2.0, 5.0]), generator(3)
    counts = torch.zeros(3)
    for _ in range(4000):
        counts[3 - int(choose_rays(weights, 2, source).sum())] += 1  # which one is left out: 2, 1, 0 of sums 1, 2, 3
    pair = lambda a, b: a / 8 * b / (8 - a) + b / 8 * a / (8 - b)  # noqa: E731
    expected = torch.tensor([pair(2, 5), pair(1, 5), pair(1, 2)])
    assert float((counts / 4000 - expected).abs().max()) < 0.025


def test_the_published_weights():
    """A bicycle's ray weighs 933 times a common one's: with 38,400 of 100,000, all of the few bicycles are there."""
    weights = torch.ones(100_000)
    weights[::1000] = 933.3
    chosen = choose_rays(weights, 38_400, generator())
    assert int((chosen % 1000 == 0).sum()) == 100


def test_what_is_no_choice():
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        choose_rays(torch.ones(2, 2), 1, generator())
    with pytest.raises(ValueError, match="-1"):
        choose_rays(torch.ones(2), -1, generator())
