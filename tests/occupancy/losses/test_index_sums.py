"""Sums by index: spread over copies they are what `index_add` gives, gradients included."""

import pytest
import torch

from syntheocc.occupancy.ops.index_sums import index_sums


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("copies", [None, 1, 7, 512])
def test_copies_change_nothing(copies, device):
    g = torch.Generator().manual_seed(0)
    index = torch.randint(5, (300,), generator=g).to(device)
    values = torch.randn(3, 300, generator=g, dtype=torch.float64).to(device).requires_grad_()
    weights = torch.randn(3, 6, generator=g, dtype=torch.float64).to(device)
    expected = torch.stack([values[:, index == i].sum(1) for i in range(6)], 1)
    found = index_sums(values, index, 6, copies)
    torch.testing.assert_close(found, expected)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), values)
    (ours,) = torch.autograd.grad((found * weights).sum(), values)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_whole_numbers_are_counted(dtype, copies):
    found = index_sums(torch.ones(4, dtype=dtype), torch.tensor([2, 0, 2, 2]), 3, copies)
    assert found.tolist() == [1, 0, 3] and found.dtype == dtype


@pytest.mark.parametrize("copies", [1, 3])
def test_nothing_adds_up_to_nothing(copies):
    assert index_sums(torch.zeros(2, 0), torch.zeros(0, dtype=torch.long), 3, copies).tolist() == [[0.0] * 3] * 2
