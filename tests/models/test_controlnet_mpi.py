"""The MPI ControlNet: silent until trained, the condition encoded once, the parent's options intact."""

import pytest
import torch
from diffusers import ControlNetModel
from torch import nn

from syntheocc.models.controlnet_mpi import MPIControlNetModel, conditioning_of
from syntheocc.models.unet_multiview import MultiviewUNet2DConditionModel
from syntheocc.occupancy.rendering.mpi import PlaneSpec

PLANES = 6
RING = {"neighbors": torch.tensor([[1], [0]])}


def noise_and_labels(batch=2):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 17, (batch, PLANES, 6, 10), generator=generator, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) > 0.2] = 0
    noise = {
        "sample": torch.randn(batch, 4, 6, 10, generator=generator),
        "timestep": torch.tensor(300),
        "encoder_hidden_states": torch.randn(batch, 5, 12, generator=generator),
    }
    return noise, labels


def residuals(output):
    return [*output.down_block_res_samples, output.mid_block_res_sample]


@pytest.fixture(scope="module", params=["scalar", "categorical"])
def trained(request, stock_unet):
    """A ControlNet whose zero convolutions are no longer zero."""
    controlnet = MPIControlNetModel.from_unet(stock_unet(), encoder_kind=request.param, num_planes=PLANES).eval()
    torch.manual_seed(2)
    for name, parameter in controlnet.named_parameters():
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
            nn.init.normal_(parameter, std=0.1)
    return controlnet


@pytest.mark.parametrize("kind", ["scalar", "categorical"])
@torch.no_grad()
def test_untrained_networks_give_exactly_the_base_unets_output(stock_unet, kind):
    stock = stock_unet()
    unet = MultiviewUNet2DConditionModel.from_unet(stock).eval()
    controlnet = MPIControlNetModel.from_unet(unet, encoder_kind=kind, num_planes=PLANES).eval()
    noise, labels = noise_and_labels()
    out = controlnet(**noise, controlnet_cond=labels)
    got = unet(
        **noise,
        cross_attention_kwargs=RING,
        down_block_additional_residuals=out.down_block_res_samples,
        mid_block_additional_residual=out.mid_block_res_sample,
    ).sample
    assert torch.equal(got, stock(**noise).sample)


def test_the_zero_convolutions_do_not_keep_the_encoder_from_learning(stock_unet):
    controlnet = MPIControlNetModel.from_unet(stock_unet(), num_planes=PLANES)
    noise, labels = noise_and_labels()
    optimizer = torch.optim.SGD(controlnet.parameters(), lr=0.1)
    before = controlnet.controlnet_cond_embedding.plane_class_embedding.clone()
    for _ in range(2):  # the first step moves the zero convolutions, the second the encoder
        optimizer.zero_grad()
        sum((r - 1).square().mean() for r in residuals(controlnet(**noise, controlnet_cond=labels))).backward()
        optimizer.step()
    assert (controlnet.controlnet_cond_embedding.plane_class_embedding - before).abs().max() > 0


@torch.no_grad()
def test_encoding_once_equals_encoding_every_step(trained):
    noise, labels = noise_and_labels()
    calls = []
    hook = trained.controlnet_cond_embedding.position_encoder.register_forward_hook(lambda *_: calls.append(1))
    embedding = trained.encode_condition(labels)
    for timestep in (10, 500, 999):
        noise["timestep"] = torch.tensor(timestep)
        calls.clear()
        once = trained(**noise, cond_embedding=embedding)
        assert not calls
        every_step = trained(**noise, controlnet_cond=labels)
        assert len(calls) == 1
        for got, want in zip(residuals(once), residuals(every_step), strict=True):
            assert torch.equal(got, want)
    hook.remove()


@torch.no_grad()
def test_strength_and_guess_mode_of_the_parent(trained):
    noise, labels = noise_and_labels()
    full = residuals(trained(**noise, controlnet_cond=labels))
    half = residuals(trained(**noise, controlnet_cond=labels, conditioning_scale=0.5))
    guess = residuals(trained(**noise, controlnet_cond=labels, guess_mode=True))
    scales = torch.logspace(-1, 0, len(full))
    for a, b, c, scale in zip(full, half, guess, scales, strict=True):
        torch.testing.assert_close(b, a / 2)
        torch.testing.assert_close(c, a * scale)
    down, mid = trained(**noise, controlnet_cond=labels, return_dict=False)
    assert torch.equal(mid, full[-1]) and len(down) == len(full) - 1


@torch.no_grad()
def test_the_condition_changes_the_output(trained):
    noise, labels = noise_and_labels()
    other = residuals(trained(**noise, controlnet_cond=labels.flip(-1)))
    assert (residuals(trained(**noise, controlnet_cond=labels))[0] - other[0]).abs().max() > 1e-3


@torch.no_grad()
def test_the_null_condition_is_an_all_free_mpi(trained):
    free = torch.zeros(1, PLANES, 6, 10, dtype=torch.uint8)
    torch.testing.assert_close(trained.null_condition(6, 10), trained.encode_condition(free))


@torch.no_grad()
def test_save_and_load_keep_what_a_condition_must_look_like(stock_unet, tmp_path):
    controlnet = MPIControlNetModel.from_unet(
        stock_unet(), num_planes=12, groups=PLANES, taxonomy="occ3d", near=0.5, step=0.25, samples_per_cell=4
    )
    controlnet.save_pretrained(tmp_path)
    loaded = MPIControlNetModel.from_pretrained(tmp_path)
    assert conditioning_of(loaded.config) == {
        "encoder_kind": "categorical",
        "num_planes": 12,
        "near": 0.5,
        "step": 0.25,
        "groups": PLANES,
        "pixel_origin": "center",
        "samples_per_cell": 4,
        "taxonomy": "occ3d",
    }
    assert (loaded.config.num_classes, loaded.config.free_class) == (18, 17)
    assert loaded.plane_spec == PlaneSpec(num_planes=12, near=0.5, step=0.25, groups=PLANES)
    noise, labels = noise_and_labels()
    assert torch.equal(loaded.encode_condition(labels), controlnet.encode_condition(labels))


def test_gradient_checkpointing_gives_the_same_gradients(trained):
    noise, labels = noise_and_labels()

    def gradients():
        trained.zero_grad()
        sum(r.square().mean() for r in residuals(trained(**noise, controlnet_cond=labels))).backward()
        return {name: parameter.grad.clone() for name, parameter in trained.named_parameters()}

    plain = gradients()
    trained.enable_gradient_checkpointing()
    trained.train()
    checkpointed = gradients()
    trained.eval().disable_gradient_checkpointing()
    trained.zero_grad(set_to_none=True)
    for name, want in plain.items():
        torch.testing.assert_close(checkpointed[name], want, msg=name)


def test_what_is_missing_or_does_not_fit_is_named(stock_unet, trained, tmp_path):
    noise, labels = noise_and_labels()
    with pytest.raises(ValueError, match="either controlnet_cond"):
        trained(**noise)
    with pytest.raises(ValueError, match="latent resolution"):
        trained(**noise, controlnet_cond=labels[..., :-1])
    with pytest.raises(ValueError, match="groups=96"):
        MPIControlNetModel(conditioning_channels=97)
    with pytest.raises(ValueError, match="pixel_origin"):
        MPIControlNetModel.from_unet(stock_unet(), pixel_origin="middle")
    with pytest.raises(ValueError, match="no taxonomy is named 'mine'"):
        MPIControlNetModel.from_unet(stock_unet(), taxonomy="mine")
    with pytest.raises(ValueError, match="18 classes and free id 17"):
        MPIControlNetModel.from_unet(stock_unet(), taxonomy="occ3d", num_classes=17, free_class=0)
    with pytest.raises(ValueError, match="does not fit"):
        MPIControlNetModel.from_unet(nn_without(stock_unet(), "conv_in"))
    ControlNetModel.from_unet(stock_unet()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_unet"):
        MPIControlNetModel.from_pretrained(tmp_path)


def nn_without(model, child):
    setattr(model, child, nn.Identity())
    return model


@torch.no_grad()
def test_the_whole_forward_is_one_graph(trained):
    noise, labels = noise_and_labels()
    embedding = trained.encode_condition(labels)
    want = trained(**noise, cond_embedding=embedding)
    torch._dynamo.reset()
    traced = torch.compile(trained.forward, backend="eager", fullgraph=True)  # a graph break would raise
    got = traced(**noise, cond_embedding=embedding)
    assert all(torch.equal(a, b) for a, b in zip(residuals(got), residuals(want), strict=True))


@torch.no_grad()
def test_weights_stored_in_float8_still_encode(stock_unet):
    for kind in ("scalar", "categorical"):
        controlnet = MPIControlNetModel.from_unet(stock_unet(), encoder_kind=kind, num_planes=PLANES)
        _, labels = noise_and_labels()
        want = controlnet.encode_condition(labels)
        controlnet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        got = controlnet.encode_condition(labels)
        assert got.dtype == torch.float32
        assert 0 < (got - want).abs().max() < 0.2 * want.abs().max()


@pytest.mark.slow
@torch.no_grad()
def test_repeated_blocks_compile(stock_unet):
    controlnet = MPIControlNetModel.from_unet(stock_unet(), num_planes=PLANES).eval()
    noise, labels = noise_and_labels()
    torch.manual_seed(5)
    nn.init.normal_(controlnet.controlnet_mid_block.weight, std=0.1)
    want = controlnet(**noise, controlnet_cond=labels).mid_block_res_sample
    torch._dynamo.reset()
    controlnet.compile_repeated_blocks(fullgraph=True)
    got = controlnet(**noise, controlnet_cond=labels).mid_block_res_sample
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
