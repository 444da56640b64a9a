import itertools

import pytest

from syntheocc.engine.samplers import EpochSampler


def taken(sampler, size, count):
    return list(itertools.islice(sampler.batches(size), count))


def test_batches_straddle_epochs_and_drop_nothing():
    sampler = EpochSampler(3, order=lambda epoch: [2, 0, 1])
    assert taken(sampler, 2, 3) == [[2, 0], [1, 2], [0, 1]]
    assert taken(sampler, 7, 1) == [[2, 0, 1, 2, 0, 1, 2]]
    assert sampler.state_dict() == {"epoch": 0, "position": 0}  # reading ahead does not move it


def test_every_epoch_is_a_permutation_of_its_own():
    sampler = EpochSampler(50, seed=3)
    epochs = [sampler.indices(epoch) for epoch in range(3)]
    assert all(sorted(indices) == list(range(50)) for indices in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert EpochSampler(50, seed=3).indices(1) == epochs[1] and EpochSampler(50, seed=4).indices(1) != epochs[1]


@pytest.mark.parametrize("order", [None, lambda epoch: [epoch % 7, 3, 3] * (epoch + 1)], ids=["shuffle", "resampled"])
@pytest.mark.parametrize("done", [0, 1, 3, 4, 9])
def test_a_resumed_stream_goes_on_where_it_stood(order, done):
    whole = taken(EpochSampler(7, 1, order), 3, 15)
    sampler = EpochSampler(7, 1, order)
    for _ in range(done):
        sampler.advance(3)
    resumed = EpochSampler(7, 1, order)
    resumed.load_state_dict(sampler.state_dict())
    assert taken(resumed, 3, 15 - done) == whole[done:]


def test_steps_of_epochs():
    assert EpochSampler(10).steps(3, global_batch_size=4) == 8  # 30 samples: 7 batches and a half
    assert EpochSampler(10, order=lambda epoch: [0] * (epoch + 1)).steps(3, 2) == 3  # 1 + 2 + 3 samples


def test_orders_and_positions_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="0 samples"):
        EpochSampler(0)
    with pytest.raises(ValueError, match=r"epoch 0 has indices 0\.\.3; the dataset has samples 0\.\.2"):
        EpochSampler(3, order=lambda epoch: [0, 3]).indices(0)
    with pytest.raises(ValueError, match="epoch 0 is empty"):
        EpochSampler(3, order=lambda epoch: []).indices(0)
    with pytest.raises(ValueError, match="position 3 does not exist in an epoch of 3.*another dataset"):
        EpochSampler(3).load_state_dict({"epoch": 0, "position": 3})
