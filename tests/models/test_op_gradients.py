"""Backward passes of the fused ops: kernels against plain torch on a GPU, copies and casts anywhere."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from syntheocc.models.master_weights import from_master_weights, to_master_weights
from syntheocc.models.ops.add_layer_norm import add_layer_norm
from syntheocc.models.ops.add_layer_norm import reference as layer_norm_reference
from syntheocc.models.ops.geglu import geglu
from syntheocc.models.ops.geglu import reference as geglu_reference
from syntheocc.models.ops.group_norm import group_norm
from syntheocc.models.ops.group_norm import reference as group_norm_reference
from syntheocc.models.ops.launch import cdiv, next_power_of_2
from syntheocc.models.ops.plane_embedding import plane_embedding
from syntheocc.models.ops.plane_embedding import reference as plane_embedding_reference
from syntheocc.models.ops.residual_add import reference as residual_reference
from syntheocc.models.ops.residual_add import residual_add
from syntheocc.models.ops.wide_copy import double_pixels, take

LAST = torch.channels_last


def results_and_gradients(function, inputs, seed=1):
    """Outputs and the inputs' gradients for random output gradients."""
    inputs = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator(outputs[0].device).manual_seed(seed)
    gradients = [torch.randn(o.shape, generator=generator, device=o.device, dtype=o.dtype) for o in outputs]
    torch.autograd.backward(outputs, gradients)
    return [*outputs, *(t.grad for t in inputs if t is not None)]


def assert_same(fast, slow, inputs, tolerance):
    pairs = zip(results_and_gradients(fast, inputs), results_and_gradients(slow, inputs), strict=True)
    for i, (a, b) in enumerate(pairs):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (a.float() - b.float()).norm() <= tolerance * b.float().norm(), f"output or gradient {i}"


KINDS = [(torch.float32, torch.float32, 1e-5), (torch.bfloat16, torch.float32, 1e-2)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, weight_dtype, tolerance", KINDS)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("channels, size", [(320, (56, 100)), (96, (7, 13))])
def test_group_norm(dtype, weight_dtype, tolerance, silu, shifted, channels, size):
    torch.manual_seed(0)
    x = (torch.randn(2, channels, *size, device="cuda") + 0.5).to(dtype).to(memory_format=LAST)
    weight, bias = torch.randn(2, channels, device="cuda", dtype=weight_dtype)
    shift = torch.randn(2, channels, device="cuda", dtype=dtype) if shifted else None
    assert_same(
        lambda x, w, b, s: group_norm(x, 32, w, b, 1e-5, s, silu),
        lambda x, w, b, s: group_norm_reference.group_norm(x.float(), 32, w, b, 1e-5, s, silu).to(dtype),
        [x, weight, bias, shift],
        tolerance,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, weight_dtype, tolerance", KINDS)
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("channels", [320, 1280, 80])
def test_add_layer_norm(dtype, weight_dtype, tolerance, has_residual, channels):
    torch.manual_seed(0)
    x, residual = torch.randn(2, 3, 701, channels, device="cuda").to(dtype)
    weight, bias = torch.randn(2, channels, device="cuda", dtype=weight_dtype)

    def slow(x, r, w, b):
        total = x if r is None else x + r
        return total, layer_norm_reference.add_layer_norm(total.float(), None, w, b, 1e-5)[1].to(dtype)

    inputs = [x, residual if has_residual else None, weight, bias]
    assert_same(lambda x, r, w, b: add_layer_norm(x, r, w, b, 1e-5), slow, inputs, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, weight_dtype, tolerance", KINDS)
def test_geglu_and_residual_add(dtype, weight_dtype, tolerance):
    torch.manual_seed(0)
    x = torch.randn(2, 701, 2 * 1280, device="cuda").to(dtype)
    assert_same(geglu, lambda x: geglu_reference.geglu(x.float()).to(dtype), [x], tolerance)
    x, residual = (torch.randn(2, 320, 14, 25, device="cuda").to(dtype).to(memory_format=LAST) for _ in range(2))
    bias = torch.randn(320, device="cuda", dtype=weight_dtype)
    slow = lambda x, r, b: residual_reference.residual_add(x.float(), r.float(), b).to(dtype)  # noqa: E731
    assert_same(residual_add, slow, [x, residual, bias], tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, _, tolerance", KINDS)
@pytest.mark.parametrize("free", [0, 16])
def test_plane_embedding(dtype, _, tolerance, free):
    torch.manual_seed(0)
    labels = torch.randint(0, 17, (2, 257, 14, 25), device="cuda", dtype=torch.uint8)
    labels[torch.rand(labels.shape, device="cuda") < 0.97] = free
    table = torch.randn(257, 17, 320, device="cuda")
    assert_same(
        lambda t: plane_embedding(labels, t, free, dtype),
        lambda t: plane_embedding_reference.plane_embedding(labels, t, free, torch.float32).to(dtype),
        [table],
        tolerance,
    )
    labels[0, 3, 2, 1] = 200
    assert plane_embedding(labels, table.requires_grad_(), free, dtype)[0, :, 2, 1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [8, 3])
def test_copies_in_words_have_torchs_gradients(dtype, channels):
    torch.manual_seed(0)
    x = torch.randn(2, channels, 3, 5).to(dtype).to(memory_format=LAST)
    one = torch.randn(2, 1, 1, channels).to(dtype).expand(2, 1, 1, channels).permute(0, 3, 1, 2)
    for pixels in (x, one):
        assert_same(double_pixels, lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), [pixels], 1e-3)
    tokens, index = torch.randn(3, 4, channels).to(dtype), torch.tensor([2, 0, 2, 2])
    assert_same(lambda x: take(x, index), lambda x: x.index_select(0, index), [tokens], 1e-3)
    index, inverse = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])
    assert_same(lambda x: take(x, index, inverse), lambda x: x.index_select(0, index), [tokens], 1e-3)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1, stride=2)
        self.point = nn.Conv2d(8, 8, 1)
        self.group = nn.GroupNorm(2, 8)
        self.linear = nn.Linear(8, 6, bias=False)
        self.layer = nn.LayerNorm(6)

    def forward(self, x):
        return self.layer(self.linear(self.group(self.point(self.conv(x))).permute(0, 2, 3, 1)))


def test_masters_are_cast_on_the_way_in():
    torch.manual_seed(0)
    model = Layers().to(memory_format=LAST)
    frozen = Layers()
    frozen.linear.requires_grad_(False)
    types = [type(m) for m in model.modules()]
    x = torch.randn(2, 4, 6, 6)
    expected = model(x)
    to_master_weights(model)
    assert all(type(m).__name__ == f"Master{t.__name__}" for m, t in zip(model.children(), types[1:], strict=True))
    assert torch.equal(model(x), expected), "in float32 nothing changes"
    out = model(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), expected, atol=0.1)
    out.float().square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.stride() == parameter.stride()
    assert [type(m) for m in from_master_weights(model).modules()] == types
    assert type(to_master_weights(frozen).linear) is nn.Linear, "a frozen layer is cast once and for all"


def test_launch_arithmetic():
    assert [cdiv(a, 4) for a in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    assert [next_power_of_2(n) for n in (1, 2, 3, 4, 5, 320, 512)] == [1, 2, 4, 4, 8, 512, 512]
