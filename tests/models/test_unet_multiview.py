"""The multi-view UNet: equal to the stock UNet until trained, saved and loaded whole, checkpointed, compiled."""

import pytest
import torch
from torch import nn

from syntheocc.models.attention import DispatchAttnProcessor, MultiviewTransformerBlock, NeighborAttention
from syntheocc.models.neighbors import previous_and_next
from syntheocc.models.unet_multiview import MultiviewUNet2DConditionModel

VIEWS = 3
RING = torch.tensor([[2, 1], [0, 2], [1, 0]])
NEIGHBORS = {"cross_attention_kwargs": {"neighbors": RING}}


def inputs(samples=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    batch = samples * VIEWS
    return {
        "sample": torch.randn(batch, 4, 6, 10, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(batch, 5, 12, generator=generator),
    }


@pytest.fixture(scope="module")
def trained(stock_unet):
    """A multi-view UNet whose connectors are no longer zero."""
    unet = MultiviewUNet2DConditionModel.from_unet(stock_unet()).eval()
    torch.manual_seed(2)
    for _, parameter in unet.multiview_parameters():
        nn.init.normal_(parameter, std=0.2)
    return unet


@pytest.mark.parametrize("linear", [True, False])
@torch.no_grad()
def test_from_unet_gives_exactly_the_stock_output(stock_unet, linear):
    stock = stock_unet(use_linear_projection=linear)
    unet = MultiviewUNet2DConditionModel.from_unet(stock).eval()
    assert torch.equal(unet(**inputs(), **NEIGHBORS).sample, stock(**inputs()).sample)
    with_video = MultiviewUNet2DConditionModel.from_unet(unet, cross_frame_attention=True)
    kwargs = {"neighbors": RING, "frame_neighbors": previous_and_next(2)}
    assert torch.equal(with_video(**inputs(), cross_attention_kwargs=kwargs).sample, stock(**inputs()).sample)


@torch.no_grad()
def test_a_view_feels_its_neighbours_and_no_other_sample(trained):
    base = inputs()
    moved = {**base, "sample": base["sample"].clone()}
    moved["sample"][0] += 1  # view 0 of sample 0
    two_in_a_row = {"cross_attention_kwargs": {"neighbors": torch.tensor([[1], [2], [-1]])}}
    change = (trained(**moved, **two_in_a_row).sample - trained(**base, **two_in_a_row).sample).abs().amax((1, 2, 3))
    assert (change > 0).tolist() == [True, False, False, False, False, False]  # nobody looks at view 0
    change = (trained(**moved, **NEIGHBORS).sample - trained(**base, **NEIGHBORS).sample).abs().amax((1, 2, 3))
    assert (change > 0).tolist() == [True, True, True, False, False, False]


@torch.no_grad()
def test_links_made_once_give_the_same_as_tables(trained):
    links = trained.link_views(6, RING)
    assert torch.equal(
        trained(**inputs(), cross_attention_kwargs=links).sample, trained(**inputs(), **NEIGHBORS).sample
    )
    padded = torch.cat([RING, torch.full((VIEWS, 1), -1)], dim=1)  # a padded column changes nothing
    torch.testing.assert_close(
        trained(**inputs(), cross_attention_kwargs={"neighbors": padded}).sample,
        trained(**inputs(), **NEIGHBORS).sample,
    )


def test_new_parameters_are_what_the_stock_unet_lacks(stock_unet, trained):
    names = {name for name, _ in trained.multiview_parameters()}
    assert names == set(trained.state_dict()) - set(stock_unet().state_dict())
    assert len(names) == 9 * sum(isinstance(m, MultiviewTransformerBlock) for m in trained.modules())


@torch.no_grad()
def test_save_and_load(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = MultiviewUNet2DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs(), **NEIGHBORS).sample, trained(**inputs(), **NEIGHBORS).sample)
    assert loaded.config.block_out_channels == [8, 16] and loaded.config.cross_frame_attention is False


def test_stock_and_incomplete_folders_are_refused(stock_unet, trained, tmp_path):
    stock_unet().save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match="from_unet"):
        MultiviewUNet2DConditionModel.from_pretrained(tmp_path / "stock")
    state = {name: tensor for name, tensor in trained.state_dict().items() if not name.endswith("connector.weight")}
    trained.save_pretrained(tmp_path / "partial", state_dict=state)
    (tmp_path / "partial" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, tmp_path / "partial" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"4 missing .*connector\.weight"):
        MultiviewUNet2DConditionModel.from_pretrained(tmp_path / "partial", use_safetensors=False)


def test_gradient_checkpointing_gives_the_same_gradients(trained):
    def gradients():
        trained.zero_grad()
        trained(**inputs(), **NEIGHBORS).sample.square().mean().backward()
        return {name: parameter.grad.clone() for name, parameter in trained.named_parameters()}

    plain = gradients()
    trained.enable_gradient_checkpointing()
    trained.train()
    checkpointed = gradients()
    trained.eval().disable_gradient_checkpointing()
    trained.zero_grad(set_to_none=True)
    for name, want in plain.items():
        torch.testing.assert_close(checkpointed[name], want, msg=name)


@torch.no_grad()
def test_other_processors_and_fused_projections_leave_cross_view_attention_alone(stock_unet):
    unet = MultiviewUNet2DConditionModel.from_unet(stock_unet()).eval()
    for _, parameter in unet.multiview_parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(3))
    want = unet(**inputs(), **NEIGHBORS).sample
    assert not any("attn4" in name for name in unet.attn_processors)
    assert all(isinstance(processor, DispatchAttnProcessor) for processor in unet.attn_processors.values())
    unet.set_attention_slice("max")
    torch.testing.assert_close(unet(**inputs(), **NEIGHBORS).sample, want)
    unet.set_default_attn_processor()
    unet.fuse_qkv_projections()
    torch.testing.assert_close(unet(**inputs(), **NEIGHBORS).sample, want)
    assert not any("attn4" in name and "qkv" in name for name in unet.state_dict())


@torch.no_grad()
def test_attention_back_ends_reach_every_attention(trained):
    want = trained(**inputs(), **NEIGHBORS).sample
    layers = [module for module in trained.modules() if isinstance(module, NeighborAttention)]
    trained.set_attention_backend("_native_math")
    try:
        assert {layer.attention_backend.value for layer in layers} == {"_native_math"}
        assert {p._attention_backend.value for p in trained.attn_processors.values()} == {"_native_math"}
        with torch.nn.attention.sdpa_kernel([]):  # the default back-end would have no kernel left
            torch.testing.assert_close(trained(**inputs(), **NEIGHBORS).sample, want)
    finally:
        trained.set_attention_backend("native")  # the active back-end is global to diffusers
        trained.reset_attention_backend()
    assert {layer.attention_backend for layer in layers} == {None}


def test_what_is_missing_or_does_not_fit_is_named(stock_unet, trained):
    with pytest.raises(ValueError, match="neighbors"):
        trained(**inputs())
    with pytest.raises(ValueError, match="batch of 6"):
        trained(**inputs(), cross_attention_kwargs={"neighbors": torch.tensor([[1], [2], [3], [0]])})
    with pytest.raises(ValueError, match="no cross-frame attention"):
        trained(**inputs(), cross_attention_kwargs={"neighbors": RING, "frame_neighbors": previous_and_next(2)})
    with pytest.raises(ValueError, match="neighboring_attn_type"):
        MultiviewUNet2DConditionModel.from_unet(stock_unet(), neighboring_attn_type="concat")
    with pytest.raises(ValueError, match="views"):
        MultiviewUNet2DConditionModel.from_unet(stock_unet(), views=6)
    with pytest.raises(ValueError, match="no transformer block"):
        plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        MultiviewUNet2DConditionModel.from_unet(stock_unet(**plain, mid_block_type=None))


@torch.no_grad()
def test_lora_reaches_the_cross_view_layers(stock_unet):
    pytest.importorskip("peft")
    from peft import LoraConfig

    unet = MultiviewUNet2DConditionModel.from_unet(stock_unet()).eval()
    torch.manual_seed(4)
    for module in unet.modules():
        if isinstance(module, MultiviewTransformerBlock):
            nn.init.normal_(module.connector.weight, std=0.2)
    before = unet(**inputs(), **NEIGHBORS).sample
    unet.add_adapter(LoraConfig(r=2, target_modules=["attn4.to_out.0"], init_lora_weights="gaussian"))
    torch.testing.assert_close(unet(**inputs(), **NEIGHBORS).sample, before)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert (unet(**inputs(), **NEIGHBORS).sample - before).abs().max() > 1e-4


@torch.no_grad()
def test_the_whole_forward_is_one_graph(trained):
    want = trained(**inputs(), **NEIGHBORS).sample
    torch._dynamo.reset()
    traced = torch.compile(trained.forward, backend="eager", fullgraph=True)  # a graph break would raise
    assert torch.equal(traced(**inputs(), **NEIGHBORS).sample, want)
    assert torch.equal(traced(**inputs(), cross_attention_kwargs=trained.link_views(6, RING)).sample, want)


@pytest.mark.slow
@torch.no_grad()
def test_repeated_blocks_compile_into_whole_graphs(trained):
    want = trained(**inputs(), **NEIGHBORS).sample
    padded = torch.tensor([[1, -1], [0, 2], [-1, -1]])
    want_padded = trained(**inputs(), cross_attention_kwargs={"neighbors": padded}).sample
    unet = MultiviewUNet2DConditionModel.from_unet(trained).eval()
    torch._dynamo.reset()
    unet.compile_repeated_blocks(fullgraph=True)
    torch.testing.assert_close(unet(**inputs(), **NEIGHBORS).sample, want, rtol=1e-4, atol=1e-5)
    got = unet(**inputs(), cross_attention_kwargs={"neighbors": padded}).sample
    torch.testing.assert_close(got, want_padded, rtol=1e-4, atol=1e-5)
