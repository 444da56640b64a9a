"""The released folder layout loads without edits: its file, class and tensor names and config keys, small."""

import json

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from syntheocc.models.controlnet_mpi import MPIControlNetModel
from syntheocc.models.convert import load_released
from syntheocc.models.unet_multiview import MultiviewUNet2DConditionModel

SD21 = {
    "in_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-05,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "resnet_time_scale_shift": "default",
}
UNET_ONLY = {
    "out_channels": 4,
    "center_input_sample": False,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "sample_size": 64,
    "dual_cross_attention": False,
}
RELEASED_UNET = {
    "_class_name": "UNet2DConditionModelMultiview",
    "_diffusers_version": "0.26.0.dev0",
    "crossview_attn_type": "basic",
    "img_size": [448, 800],
    "neighboring_attn_type": "add",
    "neighboring_view_pair": {str(i): [(i - 1) % 6, (i + 1) % 6] for i in range(6)},
    "trainable_state": "only_new",
    "zero_module_type": "zero_linear",
}
RELEASED_CONTROLNET = {
    "_class_name": "ControlNetModel1x1",
    "_diffusers_version": "0.26.0.dev0",
    "conditioning_channels": 257,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}
SMALL = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "cross_attention_dim": 12, "layers_per_block": 1}
SMALL["attention_head_dim"] = [1, 2, 4, 4]


def released_state(config, extra):
    """Tensors under the released names, from stock diffusers classes and the spec's list of new names alone."""
    torch.manual_seed(0)
    if extra == "unet":
        state = UNet2DConditionModel(**config).state_dict()
        for name in [name for name in state if name.endswith("transformer_blocks.0.norm1.weight")]:
            block, dim = name.removesuffix("norm1.weight"), len(state[name])
            for new, shape in {
                "norm4.weight": (dim,),
                "norm4.bias": (dim,),
                "attn4.to_q.weight": (dim, dim),
                "attn4.to_k.weight": (dim, dim),
                "attn4.to_v.weight": (dim, dim),
                "attn4.to_out.0.weight": (dim, dim),
                "attn4.to_out.0.bias": (dim,),
                "connector.weight": (dim, dim),
                "connector.bias": (dim,),
            }.items():
                state[block + new] = torch.randn(shape)
        return state
    state = ControlNetModel(**config).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("controlnet_cond_embedding")}
    width = config["block_out_channels"][0]
    for layer, channels in (("0", 257), ("2", width)):
        state[f"controlnet_cond_embedding.position_encoder.{layer}.weight"] = torch.randn(width, channels, 1, 1)
        state[f"controlnet_cond_embedding.position_encoder.{layer}.bias"] = torch.randn(width)
    return state


def write_released(folder, fmt="safetensors"):
    """Write a small checkpoint as the authors released theirs; returns its state dicts."""
    states = {}
    for name, own in (("unet", RELEASED_UNET), ("controlnet", RELEASED_CONTROLNET)):
        stock = {**SD21, **(UNET_ONLY if name == "unet" else {}), **SMALL}
        states[name] = released_state(stock, name)
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({**own, **stock}))
        path = folder / name / f"diffusion_pytorch_model.{fmt}"
        save_file(states[name], path) if fmt == "safetensors" else torch.save(states[name], path)
    return states


@pytest.mark.parametrize("fmt", ["safetensors", "bin"])
def test_the_released_layout_loads_without_edits(tmp_path, fmt):
    states = write_released(tmp_path, fmt)
    controlnet, unet = load_released(tmp_path)
    for model, state in ((controlnet, states["controlnet"]), (unet, states["unet"])):
        loaded = model.state_dict()
        assert set(loaded) == set(state)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    config = controlnet.config
    assert (config.encoder_kind, config.pixel_origin, config.num_planes, config.groups) == (
        "scalar",
        "corner",
        256,
        None,
    )
    with torch.no_grad():
        latents, text = torch.randn(6, 4, 8, 16), torch.randn(6, 3, 12)
        out = controlnet(latents, 7, text, torch.randint(0, 17, (6, 257, 8, 16)).float())
        residuals = {
            "down_block_additional_residuals": out.down_block_res_samples,
            "mid_block_additional_residual": out.mid_block_res_sample,
        }
        by_config = unet(latents, 7, text, **residuals).sample  # the released config knows its ring
        ring = {"neighbors": torch.tensor([[(i - 1) % 6, (i + 1) % 6] for i in range(6)])}
        assert torch.equal(by_config, unet(latents, 7, text, cross_attention_kwargs=ring, **residuals).sample)
        assert torch.isfinite(by_config).all()


def test_half_precision_and_a_round_trip(tmp_path):
    write_released(tmp_path / "released")
    controlnet, unet = load_released(tmp_path / "released", dtype=torch.float16)
    assert controlnet.dtype == unet.dtype == torch.float16
    controlnet.save_pretrained(tmp_path / "ours" / "controlnet")
    unet.save_pretrained(tmp_path / "ours" / "unet")
    again = load_released(tmp_path / "ours", dtype=torch.float16)
    for before, after in zip((controlnet, unet), again, strict=True):
        assert type(after) is type(before)
        assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())
    assert again[1].config.neighboring_view_pair == unet.config.neighboring_view_pair


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    states = write_released(tmp_path)
    lost = "mid_block.attentions.0.transformer_blocks.0.connector.weight"
    changed = {**states["unet"], "surprise.weight": torch.zeros(1)}
    del changed[lost]
    save_file(changed, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=rf"1 missing \({lost}\); 1 unexpected \(surprise\.weight\)"):
        load_released(tmp_path)


def test_an_incomplete_folder_is_named(tmp_path):
    write_released(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"unet has neither diffusion_pytorch_model\.safetensors nor"):
        load_released(tmp_path)
    (tmp_path / "controlnet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"controlnet/config\.json is not JSON"):
        load_released(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere/controlnet/config\.json is not there"):
        load_released(tmp_path / "nowhere")


def test_a_pickle_that_wants_code_is_not_run(tmp_path):
    write_released(tmp_path, "bin")
    torch.save(nn.Linear(1, 1), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        load_released(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    write_released(tmp_path)
    path = tmp_path / "controlnet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="controlnet.*cannot be read"):
        load_released(tmp_path)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_at_the_size_of_stable_diffusion_2_1():
    with torch.device("meta"):
        unet = MultiviewUNet2DConditionModel(**SD21, **UNET_ONLY)
        controlnet = MPIControlNetModel(**SD21)
    assert parameters(unet) == 927_912_644
    assert sum(parameter.numel() for _, parameter in unet.multiview_parameters()) == 62_001_920
    assert parameters(controlnet) == 363_327_040
