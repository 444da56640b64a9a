"""Constants that are kept on a device."""

import pytest
import torch

from syntheocc.occupancy.constants import constant, passing_constant


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


def test_what_passes_makes_room_for_others_and_what_stays_does_not():
    """A recorded graph reads a constant at the address that it had."""
    kept, passing = constant((0.123, 0.456), "cpu"), passing_constant((0.123, 0.456), "cpu")
    for number in range(4100):
        passing_constant((float(number), 0.5), "cpu")
        constant((float(number % 50), 0.25), "cpu")
    assert constant((0.123, 0.456), "cpu") is kept
    again = passing_constant((0.123, 0.456), "cpu")
    assert again is not passing and again.equal(passing)


def test_what_stands_for_a_tensor_is_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert type(constant((0.321, 0.654), "cpu")) is not torch.Tensor
    assert constant((0.321, 0.654), "cpu").tolist() == pytest.approx([0.321, 0.654])
