import numpy as np
import pytest

from syntheocc.occupancy.ops.quad_fill import quad_fill


def square(left, top, side):
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_a_square_covers_the_centres_inside_it_and_the_last_one_stays(backend):
    quads = np.array([square(0.5, 0.5, 2), square(2.0, 1.0, 1)])
    assert quad_fill(quads, 4, 5, backend).tolist() == [
        [-1, -1, -1, -1, -1],
        [-1, 0, 1, -1, -1],  # the second one reaches from 2 (in) to 3 (out)
        [-1, 0, 0, -1, -1],
        [-1, -1, -1, -1, -1],
    ]


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_neighbours_share_no_pixel_and_leave_no_gap(backend):
    """Squares of a slanted lattice: painting them forwards or backwards gives the same picture."""
    generator = np.random.default_rng(3)
    along, across, start = generator.normal(size=(3, 2)) + [[9, 2], [-3, 8], [20, 8]]
    i, j = np.meshgrid(np.arange(4), np.arange(4), indexing="ij")

    def corner(a, b):
        return start + (i + a)[..., None] * along + (j + b)[..., None] * across

    quads = np.stack([corner(0, 0), corner(1, 0), corner(1, 1), corner(0, 1)], 2).reshape(-1, 4, 2)
    forwards = quad_fill(quads, 60, 60, backend)
    backwards = quad_fill(quads[::-1].copy(), 60, 60, backend)
    assert (forwards >= 0).sum() > 200
    assert np.array_equal(forwards, np.where(backwards >= 0, 15 - backwards, -1))
    outline = quad_fill(np.array([[quads[0, 0], quads[12, 1], quads[15, 2], quads[3, 3]]]), 60, 60, backend)
    assert np.array_equal(forwards >= 0, outline >= 0)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_numpy_paints_what_the_reference_paints(count):
    generator = np.random.default_rng(count)
    middles, turns = generator.uniform(-3, 23, (count, 1, 2)), generator.uniform(0, 7, (count, 1))
    angles = turns + np.array([0, 1.3, 3.0, 4.8])  # four points of a circle in turn: convex
    radii = generator.uniform(0, 8, (count, 1))
    quads = middles + np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1)
    quads[1::2] = quads[1::2, ::-1]  # the other orientation
    quads[2::5] = np.rint(quads[2::5])  # corners on pixels
    quads[3::5, :, 1] = 4.0  # flat
    assert np.array_equal(quad_fill(quads, 20, 21, "numpy"), quad_fill(quads, 20, 21, "reference"))


def test_what_is_no_quad_is_refused():
    with pytest.raises(ValueError, match=r"\[N, 4, 2\]"):
        quad_fill(np.zeros((2, 3, 2)), 4, 4)
    with pytest.raises(ValueError, match="not finite"):
        quad_fill(np.full((1, 4, 2), np.nan), 4, 4)
    with pytest.raises(ValueError, match="height 0"):
        quad_fill(np.zeros((1, 4, 2)), 0, 4)
    with pytest.raises(ValueError, match="backend 'gpu'"):
        quad_fill(np.zeros((1, 4, 2)), 4, 4, "gpu")
