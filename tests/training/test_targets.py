"""Training targets by hand, and against what the sampler does with a perfect prediction."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from syntheocc.training.targets import training_target


def scheduler(kind: str, cls=DDPMScheduler):
    return cls(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)


def test_targets_by_hand():
    clean, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    schedule = scheduler("v_prediction")
    schedule.alphas_cumprod = torch.tensor([0.64, 0.36])  # square roots 0.8 and 0.6, complements 0.6 and 0.8
    # v = sqrt(a) e - sqrt(1-a) x: 0.8 * 3 - 0.6 * 2 = 1.2, and 0.6 * 3 - 0.8 * 2 = 0.2.
    for t, velocity in ((0, 1.2), (1, 0.2)):
        assert training_target(schedule, clean, noise, torch.tensor([t])).item() == pytest.approx(velocity, abs=1e-6)
    assert training_target(scheduler("epsilon"), clean, noise, torch.tensor([5])).item() == 3
    assert training_target(scheduler("sample"), clean, noise, torch.tensor([5])).item() == 2


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_leads_back_to_the_picture(kind):
    torch.manual_seed(0)
    clean, noise, t = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3), torch.tensor([400])
    noisy = scheduler(kind).add_noise(clean, noise, t)
    target = training_target(scheduler(kind), clean, noise, t)
    ddim = scheduler(kind, DDIMScheduler)
    ddim.config.clip_sample = False
    ddim.set_timesteps(1000)
    restored = ddim.step(target, 400, noisy).pred_original_sample
    assert torch.allclose(restored.clamp(-1, 1), clean.clamp(-1, 1), atol=1e-4)


def test_an_unknown_prediction_type_is_refused():
    schedule = scheduler("epsilon")
    schedule.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="flow_prediction"):
        training_target(schedule, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([0]))
