import pytest
import torch

from syntheocc.occupancy import SYNTHEOCC_COARSE, PlaneSpec
from syntheocc.worlds.splits import plan_scenes, scene_seed
from syntheocc.worlds.stream import WorldStream

SMALL = {
    "batch_size": 2,
    "image_size": (40, 24),
    "mpi_size": (5, 3),
    "planes": PlaneSpec(num_planes=64, step=0.8),
    "preset": SYNTHEOCC_COARSE,
    "pool": 1,
    "scene_batches": 2,
    "num_scenes": 1,
}


@pytest.fixture(scope="module")
def stream():
    return WorldStream(seed=4, **SMALL)


@pytest.fixture(scope="module")
def batch(stream):
    return stream.batch(0)


def test_shapes_and_contents(batch):
    assert batch.images.shape == (2, 6, 3, 24, 40) and batch.images.dtype == torch.uint8
    assert batch.images.float().std() > 5
    assert batch.mpi.labels.shape == (2, 6, 64, 3, 5) and (batch.mpi.nearest != 0).any()
    assert [len(part) for part in (batch.grids, batch.rigs, batch.captions, batch.scenes)] == [2] * 4
    assert all(caption and isinstance(caption, str) for caption in batch.captions)
    assert batch.grids[0].spec == SYNTHEOCC_COARSE.spec and batch.grids[0].occupied().any()
    times = [t for _, t in batch.scenes]
    assert times[0] != times[1] and all(0 <= t <= 9.5 for t in times)


def test_any_batch_can_be_asked_for_again(stream, batch):
    second = stream.batch(1)
    assert not torch.equal(second.images, batch.images)
    again = WorldStream(seed=4, **SMALL).batch(1)
    assert torch.equal(again.images, second.images) and torch.equal(again.mpi.labels, second.mpi.labels)
    assert again.scenes == second.scenes


def test_nothing_is_rendered_that_is_not_asked_for(batch):
    plain = WorldStream(seed=4, **{**SMALL, "mpi_size": None}).batch(0)
    assert plain.mpi is None and torch.equal(plain.images, batch.images)


@pytest.mark.parametrize("name", ["batch_size", "pool", "scene_batches", "num_scenes"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        WorldStream(**{**SMALL, name: 0})


class TestPlan:
    def test_names_are_those_of_the_official_splits(self):
        plan = plan_scenes(3, 2, 1)
        assert [(s.name, s.split) for s in plan] == [
            ("scene-0001", "train"), ("scene-0002", "train"), ("scene-0004", "train"),
            ("scene-0003", "val"), ("scene-0012", "val"), ("scene-0077", "test"),
        ]  # fmt: skip
        counts = [len(plan_scenes(*numbers)) for numbers in ((700, 0, 0), (0, 150, 0), (0, 0, 150))]
        assert counts == [700, 150, 150]
        assert plan_scenes(701)[-1].name == "scene-2000" and plan_scenes(700)[-1].name == "scene-1110"

    def test_a_larger_world_holds_the_smaller_one(self):
        small, large = plan_scenes(3, 1, 0, seed=5), plan_scenes(9, 4, 2, seed=5)
        assert set(small) <= set(large)
        assert len({s.name for s in large}) == len({s.seed for s in large}) == 15
        assert not {s.seed for s in plan_scenes(3, 1, 0, seed=6)} & {s.seed for s in large}
        assert small[0].seed == scene_seed(5, "train", 0)

    def test_too_many_or_too_few(self):
        with pytest.raises(ValueError, match="negative, got -1"):
            plan_scenes(-1)
        with pytest.raises(ValueError, match="7000 train scenes"):
            plan_scenes(7000)
