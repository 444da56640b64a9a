"""What the network is asked to predict."""

from typing import Any

from torch import Tensor


def training_target(
    noise_scheduler: Any,  # DDPMScheduler, or another with add_noise, get_velocity and config.prediction_type
    latents: Tensor,  # [N, C, h, w], clean
    noise: Tensor,  # [N, C, h, w]
    timesteps: Tensor,  # int64 [N]
) -> Tensor:
    """Target of a noisy latent ``sqrt(a) x + sqrt(1 - a) e``, [N, C, h, w].

    * "epsilon": the noise e;
    * "v_prediction": the velocity ``sqrt(a) e - sqrt(1 - a) x`` (Salimans and Ho 2022, arXiv:2202.00512);
    * "sample": the clean latent x.

    Raises:
        ValueError: the scheduler predicts something else.
    """
    kind = noise_scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return noise_scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise ValueError(
        f"the noise scheduler's prediction_type is {kind!r}; training knows 'epsilon', 'v_prediction' and 'sample'"
    )
