"""Kernel distance and nearest neighbours against slow loops and by hand."""

import pytest
import torch

from syntheocc.evaluation.kernel_distance import kernel_distance, polynomial_mmd
from syntheocc.evaluation.nearest import nearest_condition, nearest_image, thumbnails


def mmd_by_loops(x, y):
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    xs = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    ys = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    xy = [kernel(a, b) for a in x for b in y]
    return sum(xs) / len(xs) + sum(ys) / len(ys) - 2 * sum(xy) / len(xy)


def test_mmd_by_hand_and_by_loops():
    # One feature: k(a, b) = (ab + 1)^3. Sets {0, 0} and {1, 1}: 1 + 8 - 2 * 1 = 7.
    assert float(polynomial_mmd(torch.zeros(2, 1), torch.ones(2, 1))) == 7
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=random), torch.randn(4, 3, generator=random)
    assert float(polynomial_mmd(x, y)) == pytest.approx(mmd_by_loops(x, y), rel=1e-6)
    with pytest.raises(ValueError, match="at least two images"):
        polynomial_mmd(x[:1], y)


def test_kernel_distance_sees_a_shift_and_its_floor_does_not():
    random = torch.Generator().manual_seed(0)
    scenes = torch.arange(40).repeat_interleave(6)
    real = torch.randn(240, 8, generator=random)
    same = torch.randn(240, 8, generator=random)
    result = kernel_distance(real, same, scenes)
    assert abs(result.generated) < 0.05 and abs(result.floor) < 0.05
    far = kernel_distance(real, same + 1, scenes)
    assert far.generated > 1 and far.floor == result.floor
    # The images themselves, "generated", are no nearer than other real ones: halves never share a scene.
    copied = kernel_distance(real, real, scenes)
    assert copied.generated == pytest.approx(copied.floor)


def test_nearest_image_finds_copies_and_measures_the_rest():
    bank = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    distance, index = nearest_image(torch.tensor([[0.0, 1.0], [1.0, 0.8]]), bank, chunk=1)
    assert index.tolist() == [2, 1]
    assert distance.tolist() == pytest.approx([0.0, (0.2**2 / 2) ** 0.5])
    picture = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(1, 3, 1, 1)
    small = thumbnails(picture, (2, 2))
    assert (small[0, :4] * 255).tolist() == pytest.approx([2.5, 4.5, 10.5, 12.5])


def test_nearest_condition_counts_equal_cells():
    bank = torch.tensor([[[[1, 1], [2, 2]]], [[[1, 1], [0, 0]]], [[[3, 3], [3, 3]]]], dtype=torch.uint8)
    queries = torch.tensor([[[[1, 1], [2, 0]]], [[[3, 0], [0, 0]]]], dtype=torch.uint8)
    share, index = nearest_condition(queries, bank, chunk=2)
    assert share.tolist() == [0.75, 0.5] and index.tolist() == [0, 1]
    random = torch.Generator().manual_seed(0)
    many = torch.randint(0, 3, (17, 2, 3, 4), generator=random, dtype=torch.uint8)
    asked = torch.randint(0, 3, (5, 2, 3, 4), generator=random, dtype=torch.uint8)
    share, index = nearest_condition(asked, many, chunk=4)
    slow = torch.tensor([[float((q == m).float().mean()) for m in many] for q in asked])
    assert torch.allclose(share, slow.max(1).values) and torch.equal(index, slow.argmax(1))
