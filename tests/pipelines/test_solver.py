"""UniPC as a table against UniPC."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler

from syntheocc.pipelines.solver import LinearSolver, is_linear, solver_table


def predict(latents, t):
    """Something a little nonlinear, as a network is."""
    return torch.tanh(latents) * (t / 1000) + 0.1


def unipc(**config):
    return UniPCMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **config)


def test_one_step_by_hand():
    # One step of a first-order solver from t to the end is the clean picture: (x - sigma * eps) / alpha.
    scheduler = unipc(solver_order=1)
    table = solver_table(scheduler, 1)
    scheduler.set_timesteps(1)
    alpha = float(scheduler.alphas_cumprod[scheduler.timesteps[0]]) ** 0.5
    sigma = (1 - alpha**2) ** 0.5
    assert table.shape == (1, 2)
    assert table[0].tolist() == pytest.approx([1 / alpha, -sigma / alpha], rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"solver_order": 3},
        {"solver_type": "bh1", "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        {"predict_x0": False, "final_sigmas_type": "sigma_min"},
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_table_is_the_scheduler(config, steps):
    scheduler = unipc(**config)
    scheduler.set_timesteps(steps)
    assert is_linear(scheduler)
    noise = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    fast, solver = noise, LinearSolver(scheduler, noise)
    assert scheduler.step_index is None  # building the table left the scheduler as it was
    slow = noise.double()
    for t in scheduler.timesteps:
        slow = scheduler.step(predict(slow, t), t, slow, return_dict=False)[0]
        fast = solver.step(predict(fast, t))
    assert float((fast - slow).norm() / slow.norm()) < 1e-4


def test_tables_are_kept_by_what_they_depend_on():
    table = solver_table(unipc(), 5)
    assert solver_table(unipc(), 5) is table
    assert solver_table(unipc(), 6).shape == (6, 7)
    assert not torch.equal(solver_table(unipc(solver_order=1), 5), table)
    changed = unipc()
    changed.alphas_cumprod = changed.alphas_cumprod * 0.9
    assert not torch.equal(solver_table(changed, 5), table)


def test_what_is_not_linear():
    assert not is_linear(unipc(thresholding=True))
    assert not is_linear(DDIMScheduler())
    scheduler = unipc(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(3)
    assert is_linear(scheduler)
    scheduler.set_timesteps(sigmas=np.array([0.9, 0.6, 0.1]))  # the caller's own noise levels
    assert not is_linear(scheduler)


def test_latents_that_a_callback_changes_are_respected(builders, call, grid, rig):
    pipe = builders[0]()
    pipe.enable_fast_path()

    def clear(pipeline, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    cleared = call(pipe, occupancy=grid, cameras=rig, callback_on_step_end=clear, output_type="latent").images
    assert not cleared.any()
