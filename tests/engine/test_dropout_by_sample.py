"""Dropout by sample: torch's own, with a seed a sample, whatever the batch."""

import pytest
import torch
from torch.nn import functional

from syntheocc.engine.dropout import dropout, each_sample, fold, seeds_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_each_sample_is_what_torch_drops_after_its_seed(device):
    x = torch.rand(3, 40, 8, device=device)
    expected = []
    for i, seed in enumerate((5, 6, 5)):
        torch.manual_seed(seed)
        expected.append(functional.dropout(x[i : i + 1], 0.3))
    torch.manual_seed(0)
    following = torch.rand(4, device=device)
    torch.manual_seed(0)
    got = dropout(x, 0.3, True, (5, 6, 5))
    assert got.equal(torch.cat(expected))
    assert torch.rand(4, device=device).equal(following), "torch's own state is left as it was"
    # Alone as in the batch, and 5 is not 6.
    assert dropout(x[1:2], 0.3, True, (6,)).equal(got[1:2])
    assert got[0].eq(0).equal(got[2].eq(0)) and not got[0].eq(0).equal(got[1].eq(0))


@pytest.mark.parametrize("device", DEVICES)
def test_attention_drops_by_sample_and_its_gradient_fits(device):
    query, key, value = (torch.randn(2, 4, 16, 8, device=device, requires_grad=True) for _ in range(3))

    def attend(*tensors):
        return functional.scaled_dot_product_attention(*tensors, dropout_p=0.2)

    whole = each_sample(attend, (1, 2), query, key, value)
    gradient = torch.autograd.grad(whole.square().sum(), value)[0]
    part = each_sample(attend, (2,), query[1:], key[1:], value[1:])
    assert part.equal(whole[1:])
    assert torch.autograd.grad(part.square().sum(), value)[0][1].equal(gradient[1])
    assert not each_sample(attend, (1, 3), query, key, value)[1].equal(whole[1])


def test_without_seeds_or_training_it_is_torchs_own():
    x = torch.rand(2, 50)
    torch.manual_seed(3)
    expected = functional.dropout(x, 0.5)
    torch.manual_seed(3)
    assert dropout(x, 0.5, True).equal(expected)
    assert dropout(x, 0.5, False, (1, 2)) is x and dropout(x, 0.0, True, (1, 2)) is x


def test_parts_of_a_network_draw_unrelated_numbers():
    seeds = seeds_of([torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)])
    assert seeds == (3, 4) and seeds_of(None) is None and seeds_of(torch.Generator()) is None and fold(None, 1) is None
    assert len({seed for part in range(4) for seed in fold(seeds, part)}) == 8
    with pytest.raises(ValueError, match="2 seeds for 3 samples"):
        dropout(torch.rand(3, 4), 0.5, True, seeds)
