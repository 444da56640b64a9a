"""Condition dropout: shares, independence, and one answer for one seed."""

import pytest
import torch

from syntheocc.training.dropout import ConditionDropout


def test_shares_and_independence():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([ConditionDropout(text=0.3, mpi=0.2).draw(generator) for _ in range(20_000)]).float()
    # Three standard deviations of a share of 20,000 draws are at most 0.011.
    assert drawn.mean(0).tolist() == pytest.approx([0.3, 0.2], abs=0.011)
    assert drawn.prod(1).mean().item() == pytest.approx(0.3 * 0.2, abs=0.006), "both go together more often by chance"


def test_the_ends():
    generator = torch.Generator().manual_seed(0)
    assert all(ConditionDropout(0, 0).draw(generator) == (False, False) for _ in range(100))
    assert all(ConditionDropout(1, 1).draw(generator) == (True, True) for _ in range(100))


def test_one_seed_one_answer_whatever_the_other_share():
    texts = [
        [ConditionDropout(0.5, mpi).draw(generator)[0] for _ in range(50)]
        for mpi in (0.0, 0.7)
        if (generator := torch.Generator().manual_seed(3))
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("shares", [(-0.1, 0.0), (0.0, 1.1)])
def test_shares_outside_0_1_are_refused(shares):
    with pytest.raises(ValueError, match="0..1"):
        ConditionDropout(*shares)
