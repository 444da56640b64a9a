"""What is trained, and the layout for speed: the same numbers, whatever wraps the step."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from syntheocc.training.acceleration import original_weights, prepare_for_training, trainable_parameters


def loss_and_gradients(step, batch, call=None):
    step.zero_grad(set_to_none=True)
    loss = (call or step)(batch, step=3, positions=[0, 1])["loss"]
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}


def close(a: dict, b: dict, tolerance: float) -> None:
    assert set(a) == set(b)
    for name in a:
        assert (a[name] - b[name]).norm() <= tolerance * b[name].norm() + 1e-7, name


def test_what_is_trained(make_step):
    step = make_step(video=True)
    published = trainable_parameters(step)
    video = trainable_parameters(step, "crossframe")
    both = trainable_parameters(step, "all", text_encoder=True)
    assert set(published) == {
        name
        for name, _ in step.named_parameters()
        if name.startswith("controlnet.")
        or (name.startswith("unet.") and any(f".{part}." in name for part in ("norm4", "attn4", "connector")))
    }
    assert video.keys().isdisjoint(published)
    assert {name.split(".")[0] for name in both} == {"unet", "controlnet", "text_encoder"}
    assert not any(p.requires_grad for p in step.vae.parameters())
    with pytest.raises(ValueError, match="'everything'"):
        trainable_parameters(step, "everything")


@pytest.mark.parametrize(
    "options",
    [{}, {"channels_last": False}, {"gradient_checkpointing": True}, {"gradient_checkpointing": "transformers"}],
)
@pytest.mark.parametrize("which", ["crossview+controlnet", "all"])
def test_in_float32_the_layout_changes_nothing(make_step, make_batch, which, options):
    plain, fast = make_step(), make_step()
    names = [list(step.state_dict()) for step in (plain, fast)]
    for step in (plain, fast):
        trainable_parameters(step, which)
    prepare_for_training(fast, torch.float32, **options)
    fast.train()
    assert list(fast.state_dict()) == names[0] == names[1]
    loss, gradients = loss_and_gradients(plain, make_batch(plain))
    fast_loss, fast_gradients = loss_and_gradients(fast, make_batch(fast))
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    close(fast_gradients, gradients, 1e-3)


def test_bfloat16_with_float32_masters(make_step, make_batch):
    plain, fast = make_step(), make_step()
    for step in (plain, fast):
        trainable_parameters(step)
    prepare_for_training(fast)
    for name, parameter in fast.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    loss, gradients = loss_and_gradients(plain, make_batch(plain))
    fast_loss, fast_gradients = loss_and_gradients(fast, make_batch(fast))
    assert fast_loss == pytest.approx(loss, rel=0.01)
    for name, gradient in fast_gradients.items():
        assert gradient.dtype == torch.float32
        assert gradient.stride() == dict(fast.named_parameters())[name].stride(), "DDP and fused AdamW want one layout"
    # Rounding is not small in a network of 16 channels; the direction must be right all the same.
    flat, fast_flat = (torch.cat([g[name].flatten() for name in gradients]) for g in (gradients, fast_gradients))
    assert torch.nn.functional.cosine_similarity(flat, fast_flat, dim=0) > 0.99


def test_autocast_around_it_changes_nothing(make_step, make_batch):
    step = make_step()
    trainable_parameters(step)
    prepare_for_training(step)
    batch = make_batch(step)
    loss, gradients = loss_and_gradients(step, batch)
    AcceleratorState._reset_state(True)
    try:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        wrapped = accelerator.prepare(step)
        wrapped_loss, wrapped_gradients = loss_and_gradients(step, batch, wrapped)
    finally:
        AcceleratorState._reset_state(True)
    assert wrapped_loss == loss
    assert all(torch.equal(wrapped_gradients[name], gradients[name]) for name in gradients)


def test_frozen_weights_are_saved_as_they_came(make_step):
    step = make_step()
    before = {name: p.detach().clone() for name, p in step.named_parameters()}
    trainable_parameters(step)
    prepare_for_training(step)
    frozen = [name for name, p in step.named_parameters() if not p.requires_grad and name.startswith("unet.")]
    rounded = {name: p.detach().clone() for name, p in step.named_parameters()}
    assert any(not torch.equal(rounded[name].float(), before[name]) for name in frozen)
    with original_weights(step):
        for name, parameter in step.unet.named_parameters():
            assert torch.equal(parameter, before[f"unet.{name}"]), name
    for name, parameter in step.named_parameters():
        assert torch.equal(parameter, rounded[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("which", ["blocks", "whole"])
def test_compiled_networks_give_the_same_gradients(make_step, make_batch, which):
    plain, fast = make_step(), make_step()
    for step in (plain, fast):
        trainable_parameters(step)
    # Traced forward and backward without generating code, which would take a minute here.
    prepare_for_training(fast, torch.float32, compile=which, backend="aot_eager")
    loss, gradients = loss_and_gradients(plain, make_batch(plain))
    fast_loss, fast_gradients = loss_and_gradients(fast, make_batch(fast))
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    close(fast_gradients, gradients, 1e-3)


def test_what_cannot_be_prepared_is_refused(make_step):
    step = make_step()
    step.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing is trained"):
        prepare_for_training(step)
    with pytest.raises(ValueError, match="float"):
        prepare_for_training(step, torch.int8)


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", id="cpu-runs-as-it-is"), pytest.param("cuda", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("which", ["crossview+controlnet", "all"])
def test_recorded_networks_train_alike(make_step, make_batch, which, device):
    """The same losses and gradients: new values in every step, micro batches, other shapes, no gradients."""
    launched, recorded = make_step(), make_step()
    for step, graphs in ((launched, False), (recorded, True)):
        step.to(device)
        trainable_parameters(step, which)
        prepare_for_training(step, torch.float32, channels_last=device == "cuda", cuda_graphs=graphs)
        step.train()
    for seed in range(3):
        batch = make_batch(launched, seed=seed).to(torch.device(device))
        loss, gradients = loss_and_gradients(launched, batch)
        again, replayed = loss_and_gradients(recorded, batch)
        assert again == pytest.approx(loss, rel=1e-5)
        close(replayed, gradients, 1e-3)
    # A second micro batch must add to the first one's gradients, which lie where a replay writes.
    other = make_batch(launched, seed=7).to(torch.device(device))
    for step in (launched, recorded):
        loss_and_gradients(step, batch)
        step(other, step=3, positions=[2, 3])["loss"].backward()
    added = [
        {name: p.grad for name, p in step.named_parameters() if p.grad is not None} for step in (launched, recorded)
    ]
    close(added[1], added[0], 1e-3)
    # Weights that changed in place are read anew.
    with torch.no_grad():
        for step in (launched, recorded):
            for parameter in step.parameters():
                parameter.mul_(1.01)
    loss, gradients = loss_and_gradients(launched, batch)
    again, replayed = loss_and_gradients(recorded, batch)
    assert again == pytest.approx(loss, rel=1e-5)
    close(replayed, gradients, 1e-3)
    three = make_batch(launched, samples=3).to(torch.device(device))
    with torch.no_grad():
        losses = [float(step(three, step=0, positions=[0, 1, 2])["loss"]) for step in (launched, recorded)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(recorded.recorded._recordings) == (1 if device == "cuda" else 0)
