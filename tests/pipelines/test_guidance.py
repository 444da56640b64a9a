"""The guidance formula, by hand."""

import pytest
import torch

from syntheocc.pipelines.guidance import CONDITION, NULL, TEXT, Guidance


@pytest.mark.parametrize(
    ("text", "mpi", "branches", "expected"),
    [
        # e(-,-) = 1, e(-,mpi) = 2, e(text,mpi) = 5
        (7.5, 1.0, (CONDITION, TEXT), 2 + 7.5 * 3),
        (7.5, 3.0, (NULL, CONDITION, TEXT), 1 + 3 * 1 + 7.5 * 3),
        (1.0, 1.0, (TEXT,), 5.0),
        (0.0, 1.0, (CONDITION,), 2.0),
        (2.0, 2.0, (NULL, TEXT), 1 + 2 * 4),
        (0.0, 0.0, (NULL,), 1.0),
        (0.5, 2.0, (NULL, CONDITION, TEXT), 1 + 2 * 1 + 0.5 * 3),
    ],
)
def test_formula(text, mpi, branches, expected):
    guidance = Guidance(text=text, mpi=mpi)
    assert guidance.branches == branches
    predictions = {NULL: 1.0, CONDITION: 2.0, TEXT: 5.0}
    stacked = torch.cat([torch.full((2, 1, 1, 1), predictions[branch]) for branch in branches])
    assert guidance.combine(stacked).flatten().tolist() == [expected] * 2
    assert sum(guidance.weights.values()) == pytest.approx(1)


def test_stacking_and_needs():
    guidance = Guidance(text=7.5, mpi=2.0)
    yes, no = torch.ones(2, 1), torch.zeros(2, 1)
    assert guidance.stack(yes, no, axis=0).flatten().tolist() == [0, 0, 0, 0, 1, 1]  # text: only in the last branch
    assert guidance.stack(yes, no, axis=1).flatten().tolist() == [0, 0, 1, 1, 1, 1]  # MPI: not in the first
    assert guidance.needs_negative_text and guidance.needs_null_condition
    plain = Guidance(text=1.0)
    assert not plain.needs_negative_text and not plain.needs_null_condition
    assert plain.stack(yes, None, axis=0).shape == (2, 1)


def test_half_precision_keeps_the_difference():
    # The plain weighted sum 7.5 * 100.25 - 6.5 * 100 is off by half a unit in float16; the differences are not.
    low, high = torch.tensor([[100.0]]).half(), torch.tensor([[100.25]]).half()
    assert Guidance(7.5).combine(torch.cat([low, high])).item() == pytest.approx(101.875, abs=0.07)
