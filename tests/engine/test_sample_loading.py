import pytest
import torch

from syntheocc.engine.batch import derive_batch
from syntheocc.engine.loading import BadSample, RankBatches, ReadableSamples, batch_tokens, rank_loader, to_device
from syntheocc.engine.samplers import EpochSampler


class Letters:
    def __init__(self, text):
        self.text = text
        self.read = []

    def __len__(self):
        return len(self.text)

    def __getitem__(self, index):
        self.read.append(index)
        letter = self.text[index]
        return BadSample(f"letter-{index}", "blot") if letter == "." else letter


def test_the_next_readable_sample_takes_a_bad_ones_place():
    letters = Letters("a..d.")
    samples = ReadableSamples(letters)
    assert [samples[index][0] for index in range(5)] == ["a", "d", "d", "d", "a"]
    assert [bad.token for bad in samples[1][1]] == ["letter-1", "letter-2"] and samples[0][1] == []
    assert letters.read.count(1) == letters.read.count(2) == 1  # a torn file is opened once
    with pytest.raises(ValueError, match=r"none of the dataset's 2 samples can be read \(letter-1: blot"):
        ReadableSamples(Letters(".."))[1]


def _join(letters):
    return "".join(letters)


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_the_stream(workers):
    plan = derive_batch(4, world=2, micro_batch_size=1)
    streams = []
    for rank in range(2):
        sampler = EpochSampler(6, order=lambda epoch: range(6))
        loader = iter(rank_loader(Letters("abcde."), _join, RankBatches(sampler, plan, rank), workers=workers))
        streams.append([next(loader) for _ in range(4)])
    assert [text for text, _ in streams[0]] == ["a", "c", "e", "a"]
    assert [text for text, _ in streams[1]] == ["b", "d", "a", "b"]  # the last letter is bad: the first follows it
    assert [[bad.token for bad in bads] for _, bads in streams[1]] == [[], [], ["letter-5"], []]


def test_making_a_loader_draws_no_global_random_number():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader = rank_loader(Letters("ab"), _join, RankBatches(EpochSampler(2), derive_batch(1, 1), 0))
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_move_whatever_they_are_made_of():
    meta = torch.device("meta")

    class Own:
        tokens = ["a", "b"]

        def to(self, device):
            return f"moved to {device}"

    moved = to_device({"x": torch.ones(2), "list": [torch.ones(1), "text"], "own": Own()}, meta)
    assert moved["x"].device == moved["list"][0].device == meta
    assert moved["list"][1] == "text" and moved["own"] == "moved to meta"
    assert batch_tokens(Own()) == batch_tokens({"tokens": ("a", "b")}) == ["a", "b"] and batch_tokens([1]) == []
