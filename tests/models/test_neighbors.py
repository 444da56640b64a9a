"""Neighbour tables to batch indices: numbers to check by hand."""

import pytest
import torch

from syntheocc.models.neighbors import frame_links, previous_and_next, view_links

RING3 = torch.tensor([[2, 1], [0, 2], [1, 0]])


def test_a_ring_repeats_sample_after_sample():
    links = view_links(RING3, batch=6)
    assert links.neighbor.tolist() == [[2, 0, 1, 5, 3, 4], [1, 2, 0, 4, 5, 3]]
    assert links.weight is None and links.degree is None
    assert links.num_neighbors == 2


def test_padding_becomes_weights():
    links = view_links(torch.tensor([[1, -1], [0, 2], [-1, -1]]), batch=3)
    assert links.weight.tolist() == [[1.0, 0.5, 0.0], [0.0, 0.5, 0.0]]
    assert links.degree.tolist() == [1, 2, 0]
    assert links.neighbor[0, 0] == 1 and links.neighbor[:, 1].tolist() == [0, 2]
    assert links.neighbor.min() >= 0


def test_every_sample_its_own_table_and_guidance_repeats_them():
    tables = torch.tensor([[[1], [0]], [[0], [1]]])  # sample 0 swaps, sample 1 looks at itself
    assert view_links(tables, batch=4).neighbor.tolist() == [[1, 0, 2, 3]]
    assert view_links(tables, batch=8).neighbor.tolist() == [[1, 0, 2, 3, 5, 4, 6, 7]]
    # two frames a sample, (s0 f0) (s0 f1) (s1 f0) (s1 f1): a table for every frame
    assert view_links(tables[[0, 0, 1, 1]], batch=8).neighbor.tolist() == [[1, 0, 3, 2, 4, 5, 6, 7]]


def test_frames_keep_the_view():
    assert previous_and_next(3).tolist() == [[-1, 1], [0, 2], [1, -1]]
    links = frame_links(torch.tensor([[1], [0]]), num_views=3, batch=12)  # 2 samples x 2 frames x 3 views
    assert links.neighbor.tolist() == [[3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]]
    links = frame_links(previous_and_next(2), num_views=2, batch=4)
    assert links.degree.tolist() == [1, 1, 1, 1]
    assert links.neighbor[1, :2].tolist() == [2, 3] and links.neighbor[0, 2:].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("table", "batch", "message"),
    [
        (RING3, 4, "batch of 4"),
        (RING3.float(), 3, "int64"),
        (RING3[0], 3, r"\[V, K\]"),
        (RING3 + 1, 3, "outside -1..2"),
        (RING3 - 2, 3, "outside -1..2"),
    ],
)
def test_wrong_tables_are_named(table, batch, message):
    with pytest.raises(ValueError, match=message):
        view_links(table, batch)


def test_wrong_frames_are_named():
    with pytest.raises(ValueError, match="2 frames x 3 views"):
        frame_links(torch.tensor([[1], [0]]), num_views=3, batch=9)
    with pytest.raises(ValueError, match="int64"):
        frame_links(torch.zeros(2, 1), num_views=3, batch=6)


def test_a_ring_has_an_inverse_and_a_star_has_none():
    ring = view_links(torch.tensor([[2, 1], [0, 2], [1, 0]]), 6)
    assert ring.neighbor.tolist() == [[2, 0, 1, 5, 3, 4], [1, 2, 0, 4, 5, 3]]
    assert ring.inverse.tolist() == [[1, 2, 0, 4, 5, 3], [2, 0, 1, 5, 3, 4]]
    star = view_links(torch.tensor([[1], [0], [0]]), 3)
    assert star.inverse is None
    assert view_links(torch.tensor([[1], [-1], [0]]), 3).inverse is None, "padded"
