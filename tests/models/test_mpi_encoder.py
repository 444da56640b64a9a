"""The MPI encoder: a sum to check by hand, sparse against one-hot, gradients included."""

import pytest
import torch
from torch import nn

from syntheocc.models.mpi_encoder import MPIEncoder, nearest_class


def random_labels(images=2, planes=6, height=3, width=4, classes=5, free=0, occupied=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images, planes, height, width), generator=generator, dtype=torch.uint8)
    empty = torch.rand(labels.shape, generator=generator) > occupied
    return labels.masked_fill(empty, free)


def test_nearest_class_by_hand():
    labels = torch.tensor([0, 0, 3, 0, 2, 0], dtype=torch.uint8).view(1, 6, 1, 1)
    assert nearest_class(labels, free_class=0).item() == 3
    assert nearest_class(labels, free_class=3).item() == 0
    assert nearest_class(torch.full((1, 6, 1, 1), 4, dtype=torch.uint8), free_class=4).item() == 4


def test_categorical_sums_the_vectors_of_the_occupied_planes():
    encoder = MPIEncoder("categorical", num_planes=4, num_classes=3, out_channels=1)
    with torch.no_grad():  # the vector of (plane p, class c) is 10^p * c; plane 4 is the nearest class
        encoder.plane_class_embedding.copy_(torch.tensor([10.0**p * c for p in range(5) for c in range(3)])[:, None])
    labels = torch.tensor([0, 2, 0, 1], dtype=torch.uint8).view(1, 4, 1, 1)
    assert encoder.embed_sparse(encoder.with_nearest(labels)).item() == 2 * 10 + 1 * 1000 + 2 * 10000
    free = torch.zeros(1, 4, 1, 1, dtype=torch.uint8)
    assert encoder.embed_sparse(encoder.with_nearest(free)).item() == 0


@pytest.mark.parametrize("free", [0, 4])
@pytest.mark.parametrize("occupied", [0.0, 0.2, 1.0])
def test_sparse_equals_one_hot_gradients_included(free, occupied):
    torch.manual_seed(0)
    encoder = MPIEncoder("categorical", num_planes=6, num_classes=5, free_class=free, out_channels=8)
    layers = encoder.with_nearest(random_labels(free=free, occupied=occupied))
    sparse, dense = encoder.embed_sparse(layers), encoder.embed_dense(layers)
    torch.testing.assert_close(sparse, dense)
    probe = torch.randn_like(dense)
    got, want = (torch.autograd.grad((x * probe).sum(), encoder.plane_class_embedding)[0] for x in (sparse, dense))
    torch.testing.assert_close(got, want)
    if occupied == 0.2:
        assert want.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype):
    # 256 equal vectors of 0.01: a float16 or bfloat16 running sum is off by far more than one rounding.
    encoder = MPIEncoder("categorical", num_planes=256, num_classes=2, out_channels=4).to(dtype)
    nn.init.constant_(encoder.plane_class_embedding, 0.01)
    layers = encoder.with_nearest(torch.ones(1, 256, 1, 1, dtype=torch.uint8))
    summed = encoder.embed_sparse(layers)
    exact = 257 * encoder.plane_class_embedding[0, 0].double()
    assert summed.dtype == dtype
    assert (summed.double() / exact - 1).abs().max() < torch.finfo(dtype).eps
    out = encoder(torch.ones(1, 256, 1, 1, dtype=torch.uint8))
    out.sum().backward()
    assert out.dtype == dtype and torch.isfinite(encoder.plane_class_embedding.grad).all()


def test_scalar_is_two_convolutions_on_raw_ids():
    torch.manual_seed(0)
    encoder = MPIEncoder("scalar", num_planes=6, num_classes=5, out_channels=8)
    labels = random_labels()
    raw = torch.cat([labels, nearest_class(labels, 0)[:, None]], dim=1).float()
    first, _, second = encoder.position_encoder
    want = torch.einsum("oi,nihw->nohw", first.weight[:, :, 0, 0], raw) + first.bias[:, None, None]
    want = torch.einsum("oi,nihw->nohw", second.weight[:, :, 0, 0], want.clamp(min=0)) + second.bias[:, None, None]
    for form in ((labels,), (labels, nearest_class(labels, 0)), (raw,), (raw.to(torch.uint8),)):
        torch.testing.assert_close(encoder(*form), want)
    assert sorted(encoder.state_dict()) == [
        f"position_encoder.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")
    ]


def test_categorical_starts_at_a_sensible_scale():
    torch.manual_seed(0)
    encoder = MPIEncoder("categorical", out_channels=64)
    labels = random_labels(1, 256, 16, 16, classes=17, occupied=0.022)
    std = encoder.embed_sparse(encoder.with_nearest(labels)).std()
    assert 0.7 < std < 1.3


def test_all_free_images_are_alike():
    torch.manual_seed(0)
    encoder = MPIEncoder("categorical", num_planes=6, num_classes=18, free_class=17, out_channels=8)
    out = encoder(torch.full((2, 6, 3, 3), 17, dtype=torch.uint8))
    assert (out == out[:1, :, :1, :1]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MPIEncoder("embedding"), "embedding"),
        (lambda: MPIEncoder("scalar", free_class=16), "free must be 0"),
        (lambda: MPIEncoder(num_classes=17, free_class=17), "free_class 17"),
        (lambda: MPIEncoder(num_planes=6)(torch.zeros(1, 9, 2, 2, dtype=torch.uint8)), "6 planes"),
        (lambda: MPIEncoder(num_planes=6)(torch.zeros(1, 7, 2, 2)), "integer"),
        (lambda: MPIEncoder(num_planes=6)(torch.full((1, 6, 2, 2), 17, dtype=torch.uint8)), "class id 17"),
        (lambda: MPIEncoder(num_planes=6)(torch.full((1, 6, 2, 2), 255, dtype=torch.uint8)), "class id 255"),
        (
            lambda: MPIEncoder(num_planes=6)(
                torch.zeros(1, 6, 2, 2, dtype=torch.uint8), torch.zeros(1, 3, 2, dtype=torch.uint8)
            ),
            "nearest is",
        ),
        (
            lambda: MPIEncoder(num_planes=6)(
                torch.zeros(1, 7, 2, 2, dtype=torch.uint8), torch.zeros(1, 2, 2, dtype=torch.uint8)
            ),
            "twice",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
