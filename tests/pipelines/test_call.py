"""What a call takes and gives: shapes of every form, batches, seeds, outputs, schedulers, callbacks."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from syntheocc.occupancy import SemanticMPI, render_mpi
from syntheocc.pipelines.sources import condition_spec

H, W = 32, 48


def close(a, b, tolerance=1e-4):
    return torch.allclose(a, b, atol=tolerance)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_prompt_forms_agree(pipe, call, grid, rig):
    one = call(pipe, "a street", occupancy=grid, cameras=rig).images
    assert one.shape == (1, 3, 3, H, W)
    assert close(call(pipe, ["a street"], occupancy=grid, cameras=rig).images, one)
    assert close(call(pipe, [["a street"] * 3], occupancy=grid, cameras=rig).images, one)
    per_view = call(pipe, [["a street", "night", "a street"]], occupancy=grid, cameras=rig).images
    assert not close(per_view, one, 1e-3)


def test_lists_of_grids_rigs_and_prompts(pipe, call, grid, other_grid, rig):
    several = call(
        pipe, ["a", "b"], occupancy=[grid, other_grid], cameras=[rig, rig], generator=generators(1, 2)
    ).images
    assert several.shape == (2, 3, 3, H, W)
    alone = call(pipe, "b", occupancy=other_grid, cameras=rig, generator=generators(2)).images
    assert close(several[1:], alone)
    shared = call(pipe, ["a", "b"], occupancy=grid, cameras=rig, generator=generators(1, 2)).images
    assert close(shared[:1], several[:1])
    assert not close(shared[1:], alone, 1e-3)  # the grid matters


def test_rigs_with_other_neighbours_in_one_batch(pipe, call, grid, six_cameras):
    from syntheocc.occupancy import CameraRig

    names = ("CAM_FRONT_LEFT", "CAM_FRONT")
    near = six_cameras.select(names)
    apart = CameraRig({names[0]: six_cameras[names[0]], names[1]: six_cameras["CAM_BACK_RIGHT"]})
    both = call(pipe, occupancy=grid, cameras=[near, apart], generator=generators(1, 2)).images
    for i, rig in enumerate((near, apart)):
        alone = call(pipe, occupancy=grid, cameras=rig, generator=generators(i + 1)).images
        assert close(both[i : i + 1], alone)


@pytest.mark.parametrize("across_time", [False, True])
def test_rigs_with_other_neighbours_in_one_batch_of_videos(builders, call, grid, other_grid, six_cameras, across_time):
    from syntheocc.occupancy import CameraRig

    pipe = builders[0](cross_frame_attention=across_time)
    names = ("CAM_FRONT_LEFT", "CAM_FRONT")
    near = six_cameras.select(names)
    apart = CameraRig({names[0]: six_cameras[names[0]], names[1]: six_cameras["CAM_BACK_RIGHT"]})
    video = [grid, other_grid]
    noise = torch.randn(3, 2, 2, 4, H // 8, W // 8, generator=torch.Generator().manual_seed(3))
    rigs = [[near, near], [apart, apart], [near, apart]]  # the last one changes on the way
    together = call(pipe, occupancy=[video] * 3, cameras=rigs, latents=noise).frames
    for i, rig in enumerate(rigs):
        alone = call(pipe, occupancy=[video], cameras=[rig], latents=noise[i : i + 1]).frames
        assert close(together[i : i + 1], alone)
    if not across_time:
        frame = call(pipe, occupancy=other_grid, cameras=apart, latents=noise[2:, 1]).images
        assert close(together[2:, 1], frame)


def test_pictures_per_prompt(pipe, call, grid, other_grid, rig):
    output = call(
        pipe,
        ["a", "b"],
        occupancy=[grid, other_grid],
        cameras=rig,
        num_images_per_prompt=2,
        generator=generators(1, 2),
    )
    assert output.images.shape == (4, 3, 3, H, W)
    assert output.mpi.labels.shape == (2, 3, 8, H // 8, W // 8)
    # Generator s draws the pictures of sample s one after the other: the first is what it draws alone.
    alone = call(pipe, "b", occupancy=other_grid, cameras=rig, generator=generators(2)).images
    assert close(output.images[2:3], alone)
    assert not close(output.images[3:4], alone, 1e-3)
    each = call(pipe, "a", occupancy=grid, cameras=rig, num_images_per_prompt=2, generator=generators(5, 6)).images
    assert close(each[1:], call(pipe, "a", occupancy=grid, cameras=rig, generator=generators(6)).images)


@pytest.mark.parametrize("across_time", [False, True])
def test_video(builders, call, grid, other_grid, rig, across_time):
    pipe = builders[0](cross_frame_attention=across_time)
    output = call(pipe, "a", occupancy=[[grid, other_grid, grid]], cameras=rig)
    assert output.images is None
    assert output.frames.shape == (1, 3, 3, 3, H, W)
    assert [mpi.labels.shape for mpi in output.mpi] == [(3, 3, 8, H // 8, W // 8)]
    noise = torch.randn(1, 3, 3, 4, H // 8, W // 8, generator=torch.Generator().manual_seed(3))
    video = call(pipe, "a", occupancy=[[grid, other_grid, grid]], cameras=rig, latents=noise).frames
    middle = call(pipe, "a", occupancy=other_grid, cameras=rig, latents=noise[:, 1]).images
    # Without cross-frame layers a frame does not know of the others.
    assert close(video[:, 1], middle) != across_time
    nested = call(pipe, "a", occupancy=[[grid, other_grid]], cameras=rig, output_type="pil").frames
    assert [len(nested), len(nested[0]), len(nested[0][0])] == [1, 2, 3]


def test_output_types(pipe, call, grid, rig):
    tensors = call(pipe, occupancy=grid, cameras=rig).images
    assert 0 <= tensors.min() and tensors.max() <= 1
    arrays = call(pipe, occupancy=grid, cameras=rig, output_type="np").images
    assert arrays.shape == (1, 3, H, W, 3)
    assert np.allclose(arrays, tensors.permute(0, 1, 3, 4, 2).numpy(), atol=1e-6)
    pictures = call(pipe, occupancy=grid, cameras=rig, output_type="pil").images
    assert isinstance(pictures[0][2], PIL.Image.Image)
    assert pictures[0][2].size == (W, H)
    assert np.abs(np.asarray(pictures[0][2]) / 255 - arrays[0, 2]).max() < 1 / 255
    latents = call(pipe, occupancy=grid, cameras=rig, output_type="latent").images
    assert latents.shape == (1, 3, 4, H // 8, W // 8)
    with torch.no_grad():
        assert close(pipe.decode(latents, "pt"), tensors)
    images, mpi = call(pipe, occupancy=grid, cameras=rig, return_dict=False)
    assert close(images, tensors)
    assert isinstance(mpi, SemanticMPI)


def test_decoding_in_parts(builders, call, grid, rig):
    pipe = builders[0]()
    whole = call(pipe, occupancy=grid, cameras=rig).images
    pipe.decode_batch_size = 2
    assert close(call(pipe, occupancy=grid, cameras=rig).images, whole)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    assert close(call(pipe, occupancy=grid, cameras=rig).images, whole)


def test_mpi_instead_of_grid(pipe, call, grid, other_grid, rig):
    expected = call(pipe, occupancy=[grid, other_grid], cameras=rig)
    assert close(call(pipe, mpi=expected.mpi, cameras=rig).images, expected.images)
    listed = call(pipe, mpi=[expected.mpi[0], expected.mpi[1]], cameras=rig).images
    assert close(listed, expected.images)


def test_size_comes_from_the_mpi_or_the_config(pipe, call, grid, rig):
    spec = condition_spec(pipe.controlnet)
    mpi = render_mpi(grid, rig, 3, 7, planes=spec.planes, pixel_origin=spec.pixel_origin)
    assert call(pipe, mpi=mpi).images.shape[-2:] == (24, 56)
    default = pipe("a", occupancy=grid, cameras=rig, num_inference_steps=1, output_type="latent").images
    assert default.shape[-2:] == (8, 8)  # the tiny UNet's sample_size


def test_a_vae_in_float32_beside_half_precision_networks(builders, call, grid, rig):
    pipe = builders[0]().to(torch.bfloat16)
    pipe.vae.float()
    assert call(pipe, occupancy=grid, cameras=rig).images.dtype == torch.float32


def test_numbers_of_numpy(pipe, call, grid, rig):
    numbers = {"height": np.int64(H), "num_inference_steps": np.int32(2), "guidance_scale": np.float32(7.5)}
    plain = {"height": H, "num_inference_steps": 2, "guidance_scale": 7.5}
    given, want = (call(pipe, occupancy=grid, cameras=rig, width=W, **each).images for each in (numbers, plain))
    assert torch.equal(given, want)


def test_same_seed_same_pictures(pipe, call, grid, rig):
    first = call(pipe, occupancy=grid, cameras=rig, generator=torch.Generator().manual_seed(3)).images
    again = call(pipe, occupancy=grid, cameras=rig, generator=torch.Generator().manual_seed(3)).images
    assert torch.equal(first, again)
    other = call(pipe, occupancy=grid, cameras=rig, generator=torch.Generator().manual_seed(4)).images
    assert not close(first, other, 1e-3)


def test_latents_in(pipe, call, grid, rig):
    noise = torch.randn(1, 3, 4, H // 8, W // 8, generator=torch.Generator().manual_seed(0))
    nested = call(pipe, occupancy=grid, cameras=rig, latents=noise).images
    flat = call(pipe, occupancy=grid, cameras=rig, latents=noise.flatten(0, 1)).images
    assert torch.equal(nested, flat)
    assert torch.equal(
        nested, call(pipe, occupancy=grid, cameras=rig, generator=torch.Generator().manual_seed(0)).images
    )


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_schedulers(builders, call, grid, other_grid, rig, scheduler):
    pipe = builders[0]()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    both = call(
        pipe, occupancy=[grid, other_grid], cameras=rig, generator=generators(1, 2), num_inference_steps=3
    ).images
    assert torch.isfinite(both).all()
    alone = call(pipe, occupancy=other_grid, cameras=rig, generator=generators(2), num_inference_steps=3).images
    assert close(both[1:], alone)  # noise drawn on the way is each sample's own, too


def test_callback(pipe, call, grid, rig):
    seen = []

    def look(pipeline, step, timestep, tensors):
        assert pipeline.num_timesteps == 3
        assert (pipeline.guidance_scale, pipeline.mpi_guidance_scale) == (5.0, 1.0)
        seen.append((step, int(timestep), {name: tuple(value.shape) for name, value in tensors.items()}))
        return {}

    call(
        pipe,
        occupancy=grid,
        cameras=rig,
        num_inference_steps=3,
        guidance_scale=5.0,
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert [step for step, *_ in seen] == [0, 1, 2]
    assert seen[0][1] > seen[1][1] > seen[2][1]
    assert seen[0][2] == {"latents": (3, 4, H // 8, W // 8), "prompt_embeds": (3, 77, 32)}


def test_callback_changes_what_follows(pipe, call, grid, rig):
    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 0
        return {"latents": torch.zeros_like(tensors["latents"])}

    stopped = call(pipe, occupancy=grid, cameras=rig, callback_on_step_end=stop, output_type="latent").images
    assert not stopped.any()
    assert pipe.interrupt

    def other_text(pipeline, step, timestep, tensors):
        return {"prompt_embeds": torch.zeros_like(tensors["prompt_embeds"])}

    names = ["prompt_embeds"]
    changed = call(
        pipe, occupancy=grid, cameras=rig, callback_on_step_end=other_text, callback_on_step_end_tensor_inputs=names
    ).images
    assert not close(changed, call(pipe, occupancy=grid, cameras=rig).images, 1e-3)


def test_control_window_and_strength(pipe, call, grid, rig):
    calls = []
    handle = pipe.controlnet.register_forward_pre_hook(lambda *_: calls.append(1))
    call(
        pipe,
        occupancy=grid,
        cameras=rig,
        num_inference_steps=4,
        control_guidance_start=0.25,
        control_guidance_end=0.75,
    )
    assert len(calls) == 2
    calls.clear()
    off = call(pipe, occupancy=grid, cameras=rig, controlnet_conditioning_scale=0.0).images
    assert not calls
    handle.remove()
    full = call(pipe, occupancy=grid, cameras=rig).images
    half = call(pipe, occupancy=grid, cameras=rig, controlnet_conditioning_scale=0.5).images
    assert not close(off, full, 1e-3) and not close(half, full, 1e-3) and not close(half, off, 1e-3)


def test_prompt_embeds(pipe, call, grid, rig):
    expected = call(pipe, "a street", negative_prompt="fog", occupancy=grid, cameras=rig).images
    with torch.no_grad():
        text, negative = (pipe.encode_prompt(p, samples=1, views=3) for p in ("a street", "fog"))
    given = call(
        pipe, None, prompt_embeds=text[:1], negative_prompt_embeds=negative[None], occupancy=grid, cameras=rig
    ).images
    assert close(given, expected)
    assert not close(call(pipe, "a street", occupancy=grid, cameras=rig).images, expected, 1e-4)


def test_clip_skip(pipe, call, grid, rig):
    with torch.no_grad():
        last, skipped_none, skipped_one = (
            pipe.encode_prompt("a street", samples=1, views=1, clip_skip=skip) for skip in (None, 0, 1)
        )
    assert torch.allclose(last, skipped_none, atol=1e-6)
    assert not torch.allclose(last, skipped_one, atol=1e-3)
    normed = skipped_one.mean(dim=-1)  # the final norm has unit scale and no offset here
    assert normed.abs().max() < 1e-5
    assert call(pipe, occupancy=grid, cameras=rig, clip_skip=1).images.shape == (1, 3, 3, H, W)


def test_long_prompts_say_what_is_cut(pipe, call, grid, rig, caplog):
    import logging

    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        call(pipe, "rain " * 90 + "unicorn", occupancy=grid, cameras=rig, num_inference_steps=1)
    diffusers_logging.disable_propagation()
    assert "unicorn" in caplog.text


def test_xformers_falls_back(builders, call, grid, rig, caplog):
    import logging

    from diffusers.utils import logging as diffusers_logging

    pipe = builders[0]()
    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        pipe.enable_xformers_memory_efficient_attention()
    diffusers_logging.disable_propagation()
    if not torch.cuda.is_available():
        assert "scaled_dot_product_attention" in caplog.text
        assert call(pipe, occupancy=grid, cameras=rig).images.shape == (1, 3, 3, H, W)


def test_attention_backend_is_honoured(builders, call, grid, rig):
    pipe = builders[0]()
    expected = call(pipe, occupancy=grid, cameras=rig).images
    pipe.unet.set_attention_backend("_native_math")
    assert close(call(pipe, occupancy=grid, cameras=rig).images, expected)
    assert all(m.attention_backend == "_native_math" for m in pipe.unet.modules() if hasattr(m, "attention_backend"))


def test_the_documented_example():
    import doctest
    import textwrap

    from syntheocc.pipelines import pipeline_syntheocc as module

    lines = [line for line in textwrap.dedent(module.EXAMPLE_DOC_STRING).splitlines() if "```" not in line]
    example = doctest.DocTestParser().get_doctest("\n".join(lines), {}, "example", None, 0)
    assert doctest.DocTestRunner().run(example).failed == 0
    assert "example_street" in module.SyntheOccPipeline.__call__.__doc__
