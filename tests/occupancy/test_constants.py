"""Constants that are kept on a device."""

import pytest
import torch

from syntheocc.occupancy.constants import constant


@pytest.mark.parametrize("values", [(1, 2), (1.0, 2.0), (True, False), [[1, 2], [3, 4]], 0.5, torch.Size([3, 4])])
def test_of_a_device_as_torch_makes_it(values):
    expected = torch.tensor(values)
    for _ in range(2):
        found = constant(values, "cpu")
        assert found.dtype == expected.dtype
        assert found.equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_like_a_tensor(dtype):
    like = torch.zeros(1, dtype=dtype)
    assert constant((1, 2), like).dtype == dtype
    assert constant((1, 2), like).equal(like.new_tensor((1, 2)))


def test_is_made_once():
    assert constant((0.4, 0.8), "cpu") is constant([0.4, 0.8], torch.device("cpu"))


def test_equal_numbers_of_another_type_are_another_constant():
    assert constant((7, 8), "cpu").dtype == torch.int64
    assert constant((7.0, 8.0), "cpu").dtype == torch.get_default_dtype()


def test_made_in_inference_mode_it_serves_training():
    with torch.inference_mode():
        kept = constant((11.0, 12.0), "cpu")
    x = torch.ones(2, requires_grad=True)
    (x * constant((11.0, 12.0), "cpu")).sum().backward()
    assert x.grad.equal(kept)
