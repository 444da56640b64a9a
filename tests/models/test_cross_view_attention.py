"""Cross-view attention against the loop over views and neighbours; back-ends; the transformer block around it."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from syntheocc.models import attention as module
from syntheocc.models.attention import (
    DispatchAttnProcessor,
    MultiviewTransformerBlock,
    NeighborAttention,
    neighbor_attention_reference,
)
from syntheocc.models.neighbors import frame_links, previous_and_next, view_links

RING = torch.tensor([[(i - 1) % 4, (i + 1) % 4] for i in range(4)])
TABLES = {
    "ring": RING,
    "one neighbour": RING[:, :1],
    "three neighbours": torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]),
    "padded": torch.tensor([[1, -1, 2], [-1, 0, -1], [3, 1, 0], [-1, -1, -1]]),
    "per sample": torch.stack([RING, torch.tensor([[1, -1], [0, -1], [-1, 3], [2, 2]])]),
}


@pytest.mark.parametrize("name", TABLES)
def test_equals_the_loop_over_views_and_neighbours_gradients_included(name):
    torch.manual_seed(0)
    layer = NeighborAttention(dim=12, heads=3, head_dim=4)
    layer.double()
    table = TABLES[name]
    fast_in, slow_in = (torch.randn(8, 7, 12, dtype=torch.float64).requires_grad_() for _ in range(2))
    slow_in.data.copy_(fast_in.data)
    fast = layer(fast_in, view_links(table, 8))
    probe = torch.randn_like(fast)
    fast_grads = torch.autograd.grad((fast * probe).sum(), [fast_in, *layer.parameters()])
    slow = neighbor_attention_reference(layer, slow_in, table)
    slow_grads = torch.autograd.grad((slow * probe).sum(), [slow_in, *layer.parameters()])
    # float64 inside, but the weights of padded neighbours (1/3) are float32
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-7)
    for got, want in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_the_output_bias_counts_once_per_neighbour():
    layer = NeighborAttention(dim=4, heads=1, head_dim=4)
    nn.init.zeros_(layer.to_v.weight)
    nn.init.constant_(layer.to_out[0].bias, 0.25)
    out = layer(torch.randn(4, 2, 4), view_links(torch.tensor([[1, 2], [0, -1], [-1, -1], [0, 1]]), 4))
    assert out[:, 0, 0].tolist() == [0.5, 0.25, 0.0, 0.5]


def test_no_neighbours_at_all_gives_zeros():
    layer = NeighborAttention(dim=4, heads=1, head_dim=4)
    assert layer(torch.randn(1, 2, 4), view_links(torch.zeros(1, 0, dtype=torch.int64), 1)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_float32(dtype):
    torch.manual_seed(0)
    layer = NeighborAttention(dim=32, heads=2, head_dim=16)
    x = torch.randn(4, 9, 32)
    links = view_links(TABLES["padded"], 4)
    want = layer(x, links)
    got = layer.to(dtype)(x.to(dtype), links)
    assert got.dtype == dtype
    assert (got.float() - want).abs().max() < 0.02 * want.abs().max()


def recorded_backends(monkeypatch):
    seen = []
    original = module.dispatch_attention_fn

    def record(*args, backend=None, **kwargs):
        seen.append(backend)
        return original(*args, backend=backend, **kwargs)

    monkeypatch.setattr(module, "dispatch_attention_fn", record)
    return seen


def test_back_ends_are_honoured(monkeypatch):
    torch.manual_seed(0)
    layer = NeighborAttention(dim=8, heads=2, head_dim=4)
    x, links = torch.randn(4, 3, 8), view_links(RING, 4)
    want = layer(x, links)
    seen = recorded_backends(monkeypatch)
    layer.attention_backend = AttentionBackendName._NATIVE_MATH
    torch.testing.assert_close(layer(x, links), want)
    assert seen == [AttentionBackendName._NATIVE_MATH] * 2
    layer.attention_backend = None
    with attention_backend("_native_math"), torch.nn.attention.sdpa_kernel([]):
        torch.testing.assert_close(layer(x, links), want)  # "native" could not run: no SDPA kernel is allowed
    layer.set_use_memory_efficient_attention_xformers(True)
    assert layer.attention_backend == AttentionBackendName.XFORMERS
    layer.set_use_memory_efficient_attention_xformers(False)
    assert layer.attention_backend is None
    with pytest.raises(ValueError, match="attention_op"):
        layer.set_use_memory_efficient_attention_xformers(True, (None, None))


@pytest.mark.parametrize("text", [None, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_the_dispatching_processor_has_the_stock_processors_numbers(text, masked):
    torch.manual_seed(0)
    layer = Attention(query_dim=8, cross_attention_dim=6 if text else None, heads=2, dim_head=4)
    x = torch.randn(3, 7, 8)
    context = torch.randn(3, text, 6) if text else None
    mask = torch.zeros(3, 1, text or 7).index_fill(2, torch.tensor([1]), -10000.0) if masked else None
    layer.set_processor(AttnProcessor2_0())
    want = layer(x, context, attention_mask=mask)
    layer.set_processor(DispatchAttnProcessor())
    assert torch.equal(layer(x, context, attention_mask=mask), want)


def make_block(video=False):
    torch.manual_seed(0)
    block = BasicTransformerBlock(8, num_attention_heads=2, attention_head_dim=4, cross_attention_dim=6)
    x, text = torch.randn(4, 5, 8), torch.randn(4, 3, 6)
    want = block(x, encoder_hidden_states=text)
    MultiviewTransformerBlock.install(block, video=video)
    return block, x, text, want


def test_installing_changes_no_number_and_adds_the_released_names():
    block, x, text, want = make_block()
    got = block(x, encoder_hidden_states=text, cross_attention_kwargs={"neighbors": RING})
    assert torch.equal(got, want)
    new = {name for name in block.state_dict() if name.split(".")[0] in module.NEW_LAYERS}
    assert new == {
        "norm4.weight",
        "norm4.bias",
        "attn4.to_q.weight",
        "attn4.to_k.weight",
        "attn4.to_v.weight",
        "attn4.to_out.0.weight",
        "attn4.to_out.0.bias",
        "connector.weight",
        "connector.bias",
    }


def test_cross_view_attention_lies_between_text_attention_and_feed_forward():
    block, x, text, _ = make_block()
    nn.init.eye_(block.connector.weight)
    hidden = x + block.attn1(block.norm1(x))
    hidden = hidden + block.attn2(block.norm2(hidden), encoder_hidden_states=text)
    hidden = hidden + neighbor_attention_reference(block.attn4, block.norm4(hidden), RING)
    want = hidden + block.ff(block.norm3(hidden))
    got = block(x, encoder_hidden_states=text, cross_attention_kwargs={"neighbors": RING})
    torch.testing.assert_close(got, want)


def test_a_block_without_neighbours_says_what_it_needs():
    block, x, text, _ = make_block()
    with pytest.raises(ValueError, match="neighbors"):
        block(x, encoder_hidden_states=text)


def test_video_layers_start_silent_and_then_look_at_other_frames():
    block, x, text, want = make_block(video=True)
    pair = torch.tensor([[1], [0]])
    frames = frame_links(previous_and_next(2), num_views=2, batch=4)  # one sample, two frames, two views
    kwargs = {"neighbors": pair, "frame_neighbors": frames}
    assert torch.equal(block(x, encoder_hidden_states=text, cross_attention_kwargs=kwargs), want)
    nn.init.eye_(block.connector_temporal.weight)
    before = block(x, encoder_hidden_states=text, cross_attention_kwargs=kwargs)
    moved = x.clone()
    moved[2] += torch.randn(5, 8)  # view 0 of the second frame
    change = (block(moved, encoder_hidden_states=text, cross_attention_kwargs=kwargs) - before).abs().amax((1, 2))
    assert (change > 1e-4).tolist() == [True, False, True, False]  # view 0 in both frames, view 1 in none


def test_blocks_of_another_kind_are_refused():
    block = BasicTransformerBlock(8, 2, 4, norm_type="ada_norm", num_embeds_ada_norm=10)
    with pytest.raises(ValueError, match="ada_norm"):
        MultiviewTransformerBlock.install(block)
