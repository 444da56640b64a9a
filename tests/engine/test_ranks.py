"""A process's place in a job: every sample once, whatever the number of ranks."""

import pytest
from warm_start import start_ranks

from syntheocc.engine.ranks import Ranks


def test_a_process_alone_is_the_main_one():
    ranks = Ranks.from_environment({})
    assert ranks == Ranks(0, 1, 0) and ranks.is_main
    with ranks.group() as same:
        assert same is ranks and ranks.gather({"a": 1}) == [{"a": 1}]


def test_the_launchers_variables_are_read():
    ranks = Ranks.from_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert ranks == Ranks(5, 8, 1) and not ranks.is_main
    for rank in ("8", "-1"):
        with pytest.raises(ValueError, match=f"RANK={rank} is not below WORLD_SIZE=8"):
            Ranks.from_environment({"RANK": rank, "WORLD_SIZE": "8"})


@pytest.mark.parametrize("world", [1, 3, 8, 20])
def test_no_sample_is_lost_or_done_twice(world):
    parts = [Ranks(rank, world).share(range(10)) for rank in range(world)]
    assert sorted(sum(parts, [])) == list(range(10))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def _gather(rank, store):
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    with Ranks.from_environment().group() as ranks:
        assert ranks.gather(f"from {rank}") == ["from 0", "from 1"]


def test_every_rank_gets_every_value():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start_ranks(_gather, (port,), 2)
