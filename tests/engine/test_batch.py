import itertools

import pytest
import torch

from syntheocc.engine.batch import BatchPlan, derive_batch, mix_seed, sample_generator


def test_accumulation_follows_from_the_global_batch():
    assert derive_batch(8, world=1) == BatchPlan(micro=8, accumulation=1, world=1)
    assert derive_batch(8, world=4) == BatchPlan(micro=2, accumulation=1, world=4)
    assert derive_batch(8, world=2, micro_batch_size=1) == BatchPlan(micro=1, accumulation=4, world=2)


@pytest.mark.parametrize("world, micro", [(1, None), (1, 2), (2, 1), (2, 3), (4, None), (4, 3)])
def test_every_position_is_trained_on_once(world, micro):
    plan = derive_batch(24, world, micro)
    parts = [plan.positions(rank, m) for rank, m in itertools.product(range(world), range(plan.accumulation))]
    assert sorted(position for part in parts for position in part) == list(range(24))
    assert plan.global_batch_size == 24


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((8, 3), "global_batch_size 8 is no multiple of 3 ranks; give 6 or 9"),
        ((8, 2, 3), "8 is no multiple of 2 ranks x micro_batch_size 3 = 6; give 6 or 12"),
        ((1, 4), "1 is no multiple of 4 ranks; give 4,"),
        ((0, 1), "global_batch_size is 0"),
        ((8, 0), "ranks is 0"),
        ((8, 1, 0), "micro_batch_size is 0"),
    ],
)
def test_batches_that_do_not_divide_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        derive_batch(*arguments)


def test_a_samples_numbers_depend_on_seed_step_and_position_alone():
    def draw(*key):
        return torch.randn(4, generator=sample_generator(*key))

    torch.manual_seed(1)
    first = draw(0, 5, 3)
    torch.manual_seed(2)
    assert torch.equal(first, draw(0, 5, 3))
    keys = list(itertools.product(range(2), range(8), range(8)))
    assert len({tuple(draw(*key).tolist()) for key in keys}) == len(keys)
    noise = torch.stack([draw(0, step, position) for step in range(64) for position in range(64)])
    # 16384 standard normal numbers: the mean's standard error is 0.008, neighbouring draws are uncorrelated
    assert noise.mean().abs() < 0.03 and (noise.std() - 1).abs() < 0.03
    assert (noise[1:] * noise[:-1]).mean().abs() < 0.03


def test_mixed_seeds_are_63_bits_and_tell_the_order_apart():
    assert mix_seed(1, 2) != mix_seed(2, 1) != mix_seed(2, 1, 0)
    assert all(0 <= mix_seed(number, -number) < 2**63 for number in range(100))
