"""Bad calls are refused before any work, with what to give instead."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

from syntheocc import MultiviewUNet2DConditionModel, SyntheOccPipeline
from syntheocc.models.presets import tiny_components
from syntheocc.occupancy import OCC3D_NUSCENES, PlaneSpec, render_mpi

PLANES = PlaneSpec(num_planes=8, near=3.0, step=3.0)


@pytest.fixture
def refused(pipe, grid, rig, monkeypatch):
    """`refused(message, **arguments)`: the call raises ValueError with that message and does nothing else."""

    def no_work(*args, **kwargs):
        raise AssertionError("work began before the check")

    monkeypatch.setattr(pipe.text_encoder, "forward", no_work)
    monkeypatch.setattr(pipe.unet, "forward", no_work)

    def run(message, **arguments):
        defaults = {"prompt": "a", "occupancy": grid, "cameras": rig, "height": 32, "width": 48}
        with pytest.raises(ValueError, match=message):
            pipe(**{**defaults, **arguments})

    return run


def test_sizes(refused):
    refused(r"height=33 must be a positive multiple of 8 pixels; try 32 or 40", height=33)
    refused("width=0", width=0)
    refused("width=48.0", width=48.0)


def test_prompts(refused):
    refused("got neither", prompt=None)
    refused("got both", prompt_embeds=torch.zeros(1, 77, 32))
    refused("must be a str", prompt=3)
    refused("must be a str", prompt=[])
    refused("holds 3", prompt=["a", 3])
    refused(r"prompt\[0\]` has 2 texts for 3 views", prompt=[["a", "b"]])
    refused("negative_prompt` has 2 samples, the conditions 1", negative_prompt=["a", "b"])
    refused("got both", negative_prompt="x", negative_prompt_embeds=torch.zeros(1, 77, 32))
    refused(r"must be \[S, L, C\]", prompt=None, prompt_embeds=torch.zeros(77, 32))
    refused("has width 31, the UNet expects 32", prompt=None, prompt_embeds=torch.zeros(1, 77, 31))
    refused("has 2 views, the rig 3", prompt=None, prompt_embeds=torch.zeros(1, 2, 77, 32))
    refused(
        "77 tokens and the negative prompt 70",
        prompt=None,
        prompt_embeds=torch.zeros(1, 77, 32),
        negative_prompt_embeds=torch.zeros(1, 70, 32),
    )


def test_counts(refused, grid, rig):
    refused("number of samples disagrees", prompt=["a", "b"], occupancy=[grid] * 3)
    refused("number of samples disagrees", occupancy=[grid] * 3, cameras=[rig] * 2)
    refused("2 generators, 3 samples", occupancy=[grid] * 3, generator=[torch.Generator()] * 2)
    refused("num_images_per_prompt=0", num_images_per_prompt=0)
    refused("num_inference_steps=2.5", num_inference_steps=2.5)
    refused("generator=3 must be a torch.Generator", generator=3)
    refused("generator=3 must be a torch.Generator", generator=[3])


def test_numbers(refused):
    refused("guidance_scale=nan", guidance_scale=float("nan"))
    refused("mpi_guidance_scale='2'", mpi_guidance_scale="2")
    refused("0 <= start < end <= 1", control_guidance_start=0.6, control_guidance_end=0.5)
    refused(r"control_guidance_start=\[0.0\]", control_guidance_start=[0.0])
    refused("control_guidance_end=None", control_guidance_end=None)
    refused("clip_skip=9", clip_skip=9)
    refused("clip_skip=1.0", clip_skip=1.0)
    refused("output_type='jpg'", output_type="jpg")
    refused("callback_on_step_end_tensor_inputs has", callback_on_step_end_tensor_inputs=["noise"])


def test_latents(refused):
    refused(r"latents are \(3, 4, 5, 6\); expected \(1, 3, 4, 4, 6\) or", latents=torch.zeros(3, 4, 5, 6))
    refused("latents are list", latents=[1])


def test_mpi(refused, grid, rig, six_cameras):
    def given(**kwargs):
        options = {"planes": PLANES, "pixel_origin": "center", **kwargs}
        return {"occupancy": None, "mpi": render_mpi(grid, rig, 4, 6, **options)}

    refused("4x6 but the latents are 5x6", **given(), height=40)
    refused("the ControlNet reads PlaneSpec", **given(planes=PlaneSpec(num_planes=9, near=3.0, step=3.0)))
    refused("pixel_origin='corner'", **given(pixel_origin="corner"))
    refused("taxonomy is 'occ3d'", **given(taxonomy=OCC3D_NUSCENES.taxonomy))
    refused("give one rig", **{**given(), "cameras": six_cameras})
    unknown = given()
    unknown["mpi"].labels[0, 0, 0, 0] = 255
    refused(r"class id 255, its taxonomy 'syntheocc' 0\.\.16", **unknown)


def test_embeddings_of_another_length_and_no_text_encoder(refused, pipe, monkeypatch):
    embeds = torch.zeros(1, 70, 32)
    refused("70 tokens and the negative prompt 77", prompt=None, prompt_embeds=embeds)
    monkeypatch.setattr(pipe, "text_encoder", None)
    refused("no text encoder or no tokenizer; give prompt_embeds and negative_prompt_embeds")
    refused("give negative_prompt_embeds", prompt=None, prompt_embeds=embeds)


def test_networks_of_different_dtypes(builders, call, grid, rig):
    pipe = builders[0]()
    pipe.unet.bfloat16()
    with pytest.raises(ValueError, match="the UNet is torch.bfloat16, the ControlNet torch.float32"):
        call(pipe, occupancy=grid, cameras=rig)


def test_callbacks_that_change_shapes(pipe, call, grid, rig):
    for change in (lambda x: x[:1], lambda x: x.half()):
        with pytest.raises(ValueError, match="callback_on_step_end made latents"):
            call(
                pipe,
                occupancy=grid,
                cameras=rig,
                callback_on_step_end=lambda pipe, step, t, shown, change=change: {"latents": change(shown["latents"])},
            )


def test_parts_that_do_not_fit():
    components = tiny_components()
    stock = UNet2DConditionModel.from_config(components["unet"].config)
    with pytest.raises(ValueError, match="MultiviewUNet2DConditionModel.from_unet"):
        SyntheOccPipeline(**{**components, "unet": stock})
    with pytest.raises(ValueError, match="MPIControlNetModel.from_unet"):
        SyntheOccPipeline(**{**components, "controlnet": stock})
    with pytest.raises(ValueError, match="init_noise_sigma"):
        SyntheOccPipeline(**{**components, "scheduler": FlowMatchEulerDiscreteScheduler()})
    with pytest.raises(ValueError, match="vae is None"):
        SyntheOccPipeline(**{**components, "vae": None})
    distilled = MultiviewUNet2DConditionModel.from_config(components["unet"].config, time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="time_cond_proj_dim=8"):
        SyntheOccPipeline(**{**components, "unet": distilled})
    wide = tiny_components(size="nano")
    with pytest.raises(ValueError, match="text widths differ"):
        SyntheOccPipeline(**{**components, "text_encoder": wide["text_encoder"]})
    wide["vae"].register_to_config(latent_channels=16)
    with pytest.raises(ValueError, match="latent channels differ"):
        SyntheOccPipeline(**{**components, "vae": wide["vae"]})
