"""The training step against a slow, obvious one, and the promises of its docstring."""

import math

import pytest
import torch

from syntheocc.engine.batch import sample_generator
from syntheocc.occupancy import OCC3D_NUSCENES, OccupancyGrid, PlaneSpec, render_mpi
from syntheocc.occupancy.taxonomy import taxonomy_named
from syntheocc.training.acceleration import trainable_parameters


def gradients(module, batch, **kwargs) -> dict[str, torch.Tensor]:
    module.zero_grad(set_to_none=True)
    module(batch, **kwargs)["loss"].backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def reference_loss(step, batch, at: int, positions: list[int], seed: int) -> torch.Tensor:
    """The loss sample by sample, view by view, pixel by pixel, as specs/syntheocc.md 3 says it."""
    views = batch.images.shape[1]
    total, count = 0.0, 0
    for row, position in enumerate(positions):
        decisions = sample_generator(seed, at, position)
        t = int(torch.randint(1000, (1,), generator=decisions))
        torch.rand(2, generator=decisions)  # whether conditions are dropped
        noise = torch.randn(views, 4, 2, 3, generator=decisions)
        posterior = torch.randn(views, 4, 2, 3, generator=decisions)
        with torch.no_grad():
            distribution = step.vae.encode(batch.images[row]).latent_dist
            text = step.text_encoder(batch.input_ids[row])[0]
        clean = (distribution.mean + distribution.std * posterior) * step.vae.config.scaling_factor
        a = float(step.noise_scheduler.alphas_cumprod[t])
        noisy = math.sqrt(a) * clean + math.sqrt(1 - a) * noise
        v = math.sqrt(a) * noise - math.sqrt(1 - a) * clean
        target = {"epsilon": noise, "v_prediction": v}[step.noise_scheduler.config.prediction_type]
        down, mid = step.controlnet(
            noisy, t, text, batch.mpi_labels[row], nearest=batch.nearest[row], return_dict=False
        )
        prediction = step.unet(
            noisy,
            t,
            text,
            cross_attention_kwargs={"neighbors": batch.neighbors},
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        for view in range(views):
            for y in range(2):
                for x in range(3):
                    weight = 1.0
                    if 1 <= int(batch.nearest[row, view, y, x]) <= 10:
                        plane = int(batch.nearest_plane[row, view, y, x])
                        weight = -0.5 * (1 + math.cos(math.pi * plane / 7)) + 2.1
                        weight *= -0.5 * (1 + math.cos(math.pi * at / 100)) + 2.2
                    error = prediction[view, :, y, x] - target[view, :, y, x]
                    total = total + weight * (error**2).sum()
                    count += error.numel()
    return total / count


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_and_gradients_are_those_of_the_slow_reference(make_step, make_batch, prediction_type):
    step = make_step(prediction_type)
    parameters = trainable_parameters(step)
    batch = make_batch(step)
    expected = reference_loss(step, batch, at=40, positions=[4, 5], seed=7)
    expected.backward()
    slow = {name: p.grad.clone() for name, p in parameters.items()}
    fast = gradients(step, batch, step=40, positions=[4, 5], seed=7)
    assert step(batch, step=40, positions=[4, 5], seed=7)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(fast) == set(slow), "gradients flow to the trained parameters, and to nothing else"
    for name in slow:
        assert slow[name].any(), f"{name} has no gradient to compare"
        assert torch.allclose(fast[name], slow[name], rtol=1e-3, atol=1e-6), name


def test_at_the_start_the_loss_is_the_base_models(make_step, make_batch):
    step = make_step(wake=False)
    batch = make_batch(step)
    loss = step(batch, step=0, positions=[0, 1])
    step.predict = lambda noisy, timesteps, text, *_: (
        step.unet(
            noisy, timesteps, text, cross_attention_kwargs={"neighbors": torch.empty(3, 0, dtype=torch.int64)}
        ).sample
    )
    alone = step(batch, step=0, positions=[0, 1])
    assert torch.equal(loss["loss"], alone["loss"])
    assert torch.equal(loss["mse"], alone["mse"])


def test_a_sample_counts_the_same_wherever_it_is_computed(make_step, make_batch):
    step = make_step(dropout=(0.4, 0.4))
    whole = make_batch(step, samples=4)
    names = ("images", "input_ids", "mpi_labels", "nearest", "nearest_plane")
    losses = []
    for rows in ([0, 1], [2, 3], [1, 2, 3], [0]):
        part = make_batch(step, samples=len(rows), **{name: getattr(whole, name)[rows] for name in names})
        losses.append(len(rows) * step(part, step=3, positions=rows)["loss"])
    together = 4 * step(whole, step=3, positions=range(4))["loss"]
    assert sum(losses[:2]).item() == pytest.approx(together.item(), rel=1e-5)
    assert sum(losses[2:]).item() == pytest.approx(together.item(), rel=1e-5)


def test_draws_differ_between_samples_steps_and_seeds(make_step, make_batch):
    step = make_step()
    batch = make_batch(step)
    size = (6, 4, 2, 3)
    draws = [step.draw(batch, at, (0, 1), size, seed) for at, seed in ((0, 0), (1, 0), (0, 1))]
    assert not torch.equal(draws[0].noise[:3], draws[0].noise[3:])
    assert not torch.equal(draws[0].noise, draws[1].noise)
    assert not torch.equal(draws[0].noise, draws[2].noise)
    assert not torch.equal(draws[0].noise, draws[0].posterior)
    again = step.draw(batch, 0, (1,), (3, 4, 2, 3), 0) if (batch := make_batch(step, samples=1)) else None
    assert torch.equal(again.noise, draws[0].noise[3:])


def test_views_share_a_timestep_unless_told_otherwise(make_step, make_batch):
    step = make_step()
    batch = make_batch(step, samples=3, frames=2, views=3)
    t = torch.cat([step.draw(batch, at, (0, 1, 2), (18, 4, 2, 3), 0).timesteps for at in range(20)])
    assert t.shape == (20 * 18,)
    groups = t.unflatten(0, (60, 6))
    assert (groups == groups[:, :1]).all(), "one timestep for the views and frames of a sample"
    assert groups[:, 0].unique().numel() > 30
    step.shared_timestep = False
    t = step.draw(batch, 0, (0, 1, 2), (18, 4, 2, 3), 0).timesteps
    assert t.unique().numel() > 12


def test_dropped_conditions_are_the_null_branches(make_step, make_batch):
    full = make_step()
    batch = make_batch(full)
    empty = full.empty_input_ids.expand(2, 3, -1).contiguous()
    free = {name: torch.zeros_like(getattr(batch, name)) for name in ("mpi_labels", "nearest")}
    run = {"step": 0, "positions": [0, 1]}
    for shares, fields in (((1.0, 0.0), {"input_ids": empty}), ((0.0, 1.0), free)):
        dropped = make_step(dropout=shares)(batch, **run)
        # The weights of the loss stay those of what is there: the unweighted error is what must agree.
        null = full(make_batch(full, **fields), **run)
        assert dropped["mse"].item() == pytest.approx(null["mse"].item(), rel=1e-6)
        assert dropped["mse"].item() != pytest.approx(full(batch, **run)["mse"].item(), rel=1e-6)


def test_every_trained_parameter_has_a_gradient_even_without_conditions(make_step, make_batch):
    # DistributedDataParallel waits for all of them.
    step = make_step(dropout=(1.0, 1.0))
    assert set(gradients(step, make_batch(step), step=0, positions=[0, 1])) >= set(trainable_parameters(step))


def test_grids_are_rendered_in_the_step(make_step, make_batch, six_cameras):
    step = make_step()
    generator = torch.Generator().manual_seed(0)
    labels = torch.full(OCC3D_NUSCENES.spec.shape, 17, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.05] = 4
    grids = [OccupancyGrid(labels, *OCC3D_NUSCENES), OccupancyGrid(labels.flip(0), *OCC3D_NUSCENES)]
    bare = {"mpi_labels": None, "nearest": None, "nearest_plane": None}
    batch = make_batch(step, views=6, grids=grids, rigs=[six_cameras] * 2, **bare)
    mpi = render_mpi(
        grids, six_cameras, 2, 3, PlaneSpec(num_planes=8, near=2.0, step=2.0), taxonomy=taxonomy_named("syntheocc")
    )
    assert mpi.nearest.any()
    given = make_batch(step, views=6, mpi_labels=mpi.labels, nearest=mpi.nearest, nearest_plane=mpi.nearest_plane)
    for key in ("loss", "mse"):
        assert torch.equal(step(batch, 0, [0, 1])[key], step(given, 0, [0, 1])[key])


def test_cached_latents_stand_in_for_images(make_step, make_batch):
    step = make_step()
    batch = make_batch(step)
    with torch.no_grad():
        moments = step.vae.encode(batch.images.flatten(0, 1)).latent_dist.parameters
    cached = make_batch(step, images=None, latents=moments.unflatten(0, (2, 3)))
    assert step(cached, 0, [0, 1])["loss"].item() == pytest.approx(step(batch, 0, [0, 1])["loss"].item(), rel=1e-6)
    latents = torch.randn(2, 3, 4, 2, 3)
    sampled = make_batch(step, images=None, latents=latents)
    draws = step.draw(sampled, 0, [0, 1], (6, 4, 2, 3), 0)
    assert draws.posterior is None
    assert torch.equal(step.sample_latents(latents.flatten(0, 1), None), latents.flatten(0, 1))


def test_uint8_images_are_the_same_pictures(make_step, make_batch):
    step = make_step()
    images = torch.randint(0, 256, (2, 3, 3, 16, 24), dtype=torch.uint8)
    losses = [step(make_batch(step, images=i), 0, [0, 1])["loss"] for i in (images, images.float() / 127.5 - 1)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)


def test_gradient_checkpointing_changes_nothing_but_memory(make_step, make_batch):
    step = make_step()
    trainable_parameters(step)
    batch = make_batch(step)
    step.train()
    plain = gradients(step, batch, step=0, positions=[0, 1])
    step.unet.enable_gradient_checkpointing()
    step.controlnet.enable_gradient_checkpointing()
    again = gradients(step, batch, step=0, positions=[0, 1])
    assert set(plain) == set(again)
    assert all(torch.allclose(plain[name], again[name], rtol=1e-4, atol=1e-7) for name in plain)


def test_a_text_is_encoded_once_and_forgotten_when_many_follow(make_step, make_batch, monkeypatch):
    step = make_step()
    trainable_parameters(step)
    calls = []
    encode = step.text_encoder.forward
    monkeypatch.setattr(step.text_encoder, "forward", lambda ids: calls.append(len(ids)) or encode(ids))
    batch = make_batch(step)
    first = step.encode_text(batch, [False, False])
    assert torch.equal(step.encode_text(batch, [False, False]), first)
    assert calls == [2], "two captions, each shared by three views"
    shared = make_batch(step, input_ids=batch.input_ids[:, :1])
    assert torch.equal(step.encode_text(shared, [False, False]), first)
    monkeypatch.setattr("syntheocc.training.step.KEPT_TEXTS", 1)
    step.encode_text(make_batch(step, input_ids=batch.input_ids[:, :1] * 0 + 5), [False, False])
    assert len(step._texts) == 1


def test_a_trained_text_encoder_gets_gradients(make_step, make_batch):
    step = make_step()
    parameters = trainable_parameters(step, text_encoder=True)
    got = gradients(step, make_batch(step), step=0, positions=[0, 1])
    assert set(got) == set(parameters)
    assert any(name.startswith("text_encoder.") and g.any() for name, g in got.items())


def test_clips_attend_between_frames(make_step, make_batch):
    step = make_step(video=True)
    parameters = trainable_parameters(step, "crossframe")
    assert parameters and all("attn5" in n or "norm5" in n or "connector_temporal" in n for n in parameters)
    got = gradients(step, make_batch(step, samples=1, frames=3), step=0, positions=[0])
    assert set(got) == set(parameters)
    assert not any("attn5" in name for name in trainable_parameters(step))


def test_wrong_calls_are_refused(make_step, make_batch):
    step = make_step()
    with pytest.raises(ValueError, match="positions"):
        step(make_batch(step), 0, [0])
    with pytest.raises(ValueError, match="crossframe|cross-frame"):
        trainable_parameters(step, "crossframe")
    with pytest.raises(ValueError, match="empty_input_ids"):
        make_step(dropout=(0.1, 0.0), empty_input_ids=None)
    with pytest.raises(ValueError, match="either images"):
        make_batch(step, images=None)
    with pytest.raises(ValueError, match="nearest must be"):
        make_batch(step, nearest=torch.zeros(2, 3, 5, 5))
