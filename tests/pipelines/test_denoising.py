"""Denoising against a hand-written loop: guidance of three branches, and the condition encoded once."""

import pytest
import torch

from syntheocc.pipelines.guidance import Guidance


def hand_written(pipe, noise, labels, nearest, neighbors, prompts, text_scale, mpi_scale, steps):
    """One network call a branch, the condition encoded at every step; the formula of DESIGN as it stands there."""
    text, negative = (pipe.encode_prompt(prompt, samples=1, views=len(noise)) for prompt in prompts)
    free = (torch.zeros_like(labels), torch.zeros_like(nearest))
    pipe.scheduler.set_timesteps(steps)
    latents = noise
    for t in pipe.scheduler.timesteps:

        def predict(embeds, condition, latents=latents, t=t):
            down, mid = pipe.controlnet(latents, t, embeds, condition[0], nearest=condition[1], return_dict=False)
            return pipe.unet(
                latents,
                t,
                embeds,
                cross_attention_kwargs={"neighbors": neighbors},
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
                return_dict=False,
            )[0]

        nothing, only_mpi, both = (
            predict(negative, free),
            predict(negative, (labels, nearest)),
            predict(text, (labels, nearest)),
        )
        prediction = nothing + mpi_scale * (only_mpi - nothing) + text_scale * (both - only_mpi)
        latents = pipe.scheduler.step(prediction, t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("kind", ["scalar", "categorical"])
@pytest.mark.parametrize(("text_scale", "mpi_scale"), [(7.5, 1.0), (4.0, 2.5), (1.0, 1.0)])
@torch.no_grad()
def test_pipeline_is_the_hand_written_loop(builders, call, grid, rig, kind, text_scale, mpi_scale):
    pipe = builders[0](encoder_kind=kind)
    noise = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    output = call(
        pipe,
        "a street",
        negative_prompt="fog",
        occupancy=grid,
        cameras=rig,
        latents=noise,
        guidance_scale=text_scale,
        mpi_guidance_scale=mpi_scale,
        num_inference_steps=3,
        output_type="latent",
    )
    labels, nearest = output.mpi.labels[0], output.mpi.nearest[0]
    prompts = ("a street", "fog")
    expected = hand_written(pipe, noise, labels, nearest, rig.neighbors(), prompts, text_scale, mpi_scale, steps=3)
    assert labels.any()
    assert float((output.images[0] - expected).norm() / expected.norm()) < 1e-5


@torch.no_grad()
def test_condition_is_encoded_once(builders, call, grid, rig):
    pipe = builders[0]()
    calls = []
    encoder = pipe.controlnet.controlnet_cond_embedding.position_encoder
    encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    call(pipe, occupancy=grid, cameras=rig, num_inference_steps=4)
    assert len(calls) == 1
    call(pipe, occupancy=grid, cameras=rig, num_inference_steps=4, mpi_guidance_scale=2.0)
    assert len(calls) == 3  # the null condition too


@torch.no_grad()
def test_branches_cost_what_they_must(builders, call, grid, rig):
    pipe = builders[0]()
    batches = []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].shape[0]))
    for text, mpi, branches in ((7.5, 1.0, 2), (1.0, 1.0, 1), (7.5, 2.0, 3)):
        call(pipe, occupancy=grid, cameras=rig, num_inference_steps=1, guidance_scale=text, mpi_guidance_scale=mpi)
        assert batches.pop() == 3 * branches
        assert not batches


@torch.no_grad()
def test_stages_by_hand_are_the_call(pipe, call, grid, rig):
    expected = call(pipe, "a street", occupancy=grid, cameras=rig).images
    conditions, height, width = pipe.check_inputs(prompt="a street", occupancy=grid, cameras=rig, height=32, width=48)
    text, negative = (pipe.encode_prompt(prompt, samples=1, views=3) for prompt in ("a street", ""))
    mpi = pipe.prepare_mpi(conditions, height, width)
    pipe.scheduler.set_timesteps(2)
    latents = pipe.prepare_latents((1, 1, 3), height, width, text.dtype, torch.Generator().manual_seed(0))
    latents = pipe.denoise(
        latents,
        pipe.scheduler.timesteps,
        text,
        negative,
        pipe.encode_mpi(mpi)[0],
        None,
        conditions.neighbors(),
        guidance=Guidance(7.5, 1.0),
    )
    assert torch.equal(pipe.decode(latents[None], "pt"), expected)


@torch.no_grad()
def test_only_the_last_timesteps(builders, grid, rig):
    # As for pictures that are noised in part: the scheduler must know where in its table it begins.
    pipe = builders[0]()
    conditions, height, width = pipe.check_inputs(prompt="a", occupancy=grid, cameras=rig, height=32, width=48)
    text = pipe.encode_prompt("a", samples=1, views=3)
    condition = pipe.encode_mpi(pipe.prepare_mpi(conditions, height, width))[0]
    noise = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(5)
    last = pipe.scheduler.timesteps[2:]
    output = pipe.denoise(noise, last, text, None, condition, None, conditions.neighbors(), guidance=Guidance(1, 1))
    pipe.scheduler.set_timesteps(5)
    links = pipe.unet.link_views(3, conditions.neighbors())
    for t in last:
        prediction = pipe.predict_noise(noise, t, text, condition, links)
        noise = pipe.scheduler.step(prediction, t, noise, return_dict=False)[0]
    assert torch.equal(output, noise)


def test_gradients_flow_outside_the_call(builders, grid, rig):
    pipe = builders[0]()
    conditions, height, width = pipe.check_inputs(prompt="a", occupancy=grid, cameras=rig, height=32, width=48)
    embedding = pipe.encode_mpi(pipe.prepare_mpi(conditions, height, width))
    embedding.square().mean().backward()
    encoder = pipe.controlnet.controlnet_cond_embedding.position_encoder
    assert encoder[0].weight.grad.any()  # no_grad is on __call__ only
