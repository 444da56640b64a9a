"""Train the small VAE: pictures to latents of an eighth of their size, and back, sharp.

    torchrun --standalone --nproc_per_node 4 examples/nano/train.py --stages cache,vae ...     # see train.py

Losses: absolute error (foreground counts twice, for it is small), differences between neighbouring pixels at three
scales and structural similarity, which keep edges and texture; the difference of colours without brightness, for
saturated colours are rare and small (lights, cones, lacquer) and are otherwise learned last; a light Kullback-Leibler
term; and towards the end a small patch discriminator. The latents' mean and deviation are then folded into the 1x1
convolutions around them, so that every channel has mean 0 and deviation 1 and the scaling factor is 1.

Legend: N pictures, H W pixels, C latent channels, h w latent pixels.
"""

import time

import torch
from diffusers import AutoencoderKL
from parallel import Progress, Team, set_learning_rate, warm_cosine
from torch import Tensor, nn
from torch.nn import functional as F

from syntheocc.models.presets import tiny_components
from syntheocc.worlds.cache import FrameCache

FOREGROUND_WEIGHT = 2.0
GRADIENT_WEIGHT, SSIM_WEIGHT, COLOR_WEIGHT, KL_WEIGHT = 1.0, 0.2, 1.5, 1e-4
# The discriminator's gradient at the last layer is this share of the other losses'.
ADVERSARIAL_SHARE = 0.15


def train_vae(
    team: Team,
    cache: FrameCache,
    seconds: float,
    *,
    size: str = "nano",
    latent_channels: int | None = None,
    batch_size: int = 8,
    learning_rate: float = 8e-4,
    adversarial_from: float | None = 0.55,
    max_steps: int | None = None,
    compile: bool = False,
    seed: int = 0,
    weights: dict[str, Tensor] | None = None,
) -> AutoencoderKL:
    """A trained VAE with normalised latents, float32 weights that are exact in float16, on the team's device.

    Args:
        team: who trains together.
        cache: this rank's frames.
        seconds: time to train.
        size: of `tiny_components`.
        latent_channels: instead of the size's.
        batch_size: pictures a rank and step.
        learning_rate: at its highest.
        adversarial_from: share of the time after which the discriminator takes part; None: never.
        max_steps: end after so many steps.
        compile: `torch.compile` the network.
        seed: of the weights and batches.
        weights: state dict to begin with.
    """
    device = team.device
    vae = tiny_components(seed, size, latent_channels=latent_channels)["vae"].to(device).train()
    if weights is not None:
        vae.load_state_dict(weights)
    critic = PatchCritic(seed).to(device)
    if device.type == "cuda":
        vae.to(memory_format=torch.channels_last)
        critic.to(memory_format=torch.channels_last)
    own = list(vae.parameters())
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(own, learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=fused)
    judge_optimizer = torch.optim.AdamW(critic.parameters(), 3e-4, betas=(0.5, 0.9), weight_decay=0.0, fused=fused)
    network = torch.compile(_Reconstruction(vae)) if compile else _Reconstruction(vae)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    generator = torch.Generator(device).manual_seed(seed * 1000 + team.rank + 1)
    pictures, nearest = cache.images.flatten(0, 1), cache.nearest.flatten(0, 1)
    said = time.perf_counter()
    for step, share in Progress(team, seconds, max_steps=max_steps):
        factor = warm_cosine(step, share, 50)
        set_learning_rate(optimizer, learning_rate * factor)
        set_learning_rate(judge_optimizer, 3e-4 * factor)
        rows = torch.randint(len(pictures), (batch_size,), generator=generator, device=device)
        real = pictures[rows].float() / 127.5 - 1
        weight = _foreground(nearest[rows], real.shape[-2:])
        noise = torch.randn(
            (batch_size, vae.config.latent_channels, *nearest.shape[-2:]), generator=generator, device=device
        )
        with autocast:
            made, mean, log_variance = network(real, noise)
        made = made.float()
        parts = losses(made, real, weight, mean.float(), log_variance.float())
        loss = sum(parts.values())
        if adversarial_from is not None and share > adversarial_from:
            with autocast:
                opinion = critic(made).float()
            parts["critic"] = -opinion.mean()
            ramp = min(1.0, (share - adversarial_from) / 0.1)
            loss = loss + ramp * _balance(loss, parts["critic"], made) * parts["critic"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        team.average_gradients(own)
        nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        if adversarial_from is not None and share > adversarial_from - 0.05:
            _train_critic(team, critic, judge_optimizer, real, made.detach(), autocast)
        if time.perf_counter() - said > 10 or step == 0:
            said = time.perf_counter()
            numbers = " ".join(f"{name} {float(value.detach()):.4f}" for name, value in parts.items())
            team.log(f"vae step {step} ({share:.0%}) {numbers}")
            if not torch.isfinite(loss.detach()):
                raise ValueError(f"the VAE's loss is {float(loss.detach())} at step {step}")
    team.log(f"vae: {step + 1} steps of {batch_size * team.world} pictures")
    vae.eval().requires_grad_(False)
    normalise_latents(team, vae, pictures, generator)
    return vae.half().float()


class _Reconstruction(nn.Module):
    """Encoder, a sample of the posterior, decoder."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.vae.encode(pictures).latent_dist.parameters.chunk(2, 1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + (0.5 * log_variance).exp() * noise
        return self.vae.decode(latents, return_dict=False)[0], mean, log_variance


def losses(
    made: Tensor,  # float32 [N, 3, H, W] in -1..1
    real: Tensor,
    weight: Tensor,  # [N, 1, H, W]
    mean: Tensor,  # [N, C, h, w]
    log_variance: Tensor,
) -> dict[str, Tensor]:
    """The weighted terms, whose sum is minimised."""
    gradient = made.new_zeros(())
    small, large = made, real
    for scale in range(3):
        if scale:
            small, large = F.avg_pool2d(small, 2), F.avg_pool2d(large, 2)
        for dim in (2, 3):
            gradient = gradient + (small.diff(dim=dim) - large.diff(dim=dim)).abs().mean()
    color, true_color = (F.avg_pool2d(x - x.mean(1, keepdim=True), 2) for x in (made, real))
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return {
        "l1": ((made - real).abs() * weight).mean(),
        "gradient": GRADIENT_WEIGHT / 3 * gradient,
        "ssim": SSIM_WEIGHT * (1 - ssim(made, real)),
        "color": COLOR_WEIGHT * (color - true_color).abs().mean(),
        "kl": KL_WEIGHT * divergence,
    }


def ssim(made: Tensor, real: Tensor, window: int = 7) -> Tensor:
    """Mean structural similarity (Wang et al. 2004) of pictures in -1..1, with a uniform window."""
    pool = [F.avg_pool2d(x, window, 1) for x in (made, real, made * made, real * real, made * real)]
    mean_a, mean_b, square_a, square_b, product = pool
    var_a, var_b, cov = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def _foreground(nearest: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, 1, H, W]: FOREGROUND_WEIGHT where a cell's nearest class is an object (ids 1..10), else 1."""
    objects = ((nearest >= 1) & (nearest <= 10)).float()[:, None]
    return 1 + (FOREGROUND_WEIGHT - 1) * F.interpolate(objects, size=size, mode="nearest")


class PatchCritic(nn.Module):
    """Tells real patches of 32 pixels from made ones: [N, 3, H, W] to logits [N, 1, H/8, W/8]."""

    def __init__(self, seed: int = 0, width: int = 48):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(3, width, 4, 2, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
                nn.GroupNorm(8, 2 * width),
                nn.LeakyReLU(0.2),
                nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False),
                nn.GroupNorm(8, 4 * width),
                nn.LeakyReLU(0.2),
                nn.Conv2d(4 * width, 1, 3, 1, 1),
            )

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits; high for what looks real."""
        return self.layers(pictures)


def _balance(loss: Tensor, critic_loss: Tensor, made: Tensor) -> Tensor:
    """Weight at which the critic's gradient with respect to the pictures is ADVERSARIAL_SHARE of the others'."""
    usual, odd = (torch.autograd.grad(x, made, retain_graph=True)[0].norm() for x in (loss, critic_loss))
    return (ADVERSARIAL_SHARE * usual / (odd + 1e-8)).clamp(0, 10).detach()


def _train_critic(team, critic, optimizer, real: Tensor, made: Tensor, autocast) -> None:
    with autocast:
        logits = critic(torch.cat([real, made])).float()
    on_real, on_made = logits.chunk(2)
    loss = F.relu(1 - on_real).mean() + F.relu(1 + on_made).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    team.average_gradients(critic.parameters())
    nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def normalise_latents(team: Team, vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator) -> None:
    """Fold mean and deviation of the latents, measured over pictures, into the 1x1 convolutions around them.

    Exact, for a 1x1 convolution has no border: the pictures that the VAE makes of pictures stay the same.
    """
    rows = torch.randint(len(pictures), (min(512, len(pictures)),), generator=generator, device=pictures.device)
    means = torch.cat([encode(vae, part) for part in pictures[rows].split(32)])
    moments = torch.stack([means.mean((0, 2, 3)), means.square().mean((0, 2, 3))]).float()
    team.average_([moments])
    mean, deviation = moments[0], (moments[1] - moments[0] ** 2).sqrt()
    before, after, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    before.bias[:channels] -= mean
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] /= deviation
    before.bias[channels:] -= 2 * deviation.log()
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= deviation[:, None, None]
    vae.register_to_config(scaling_factor=1.0)
    team.log(f"latents: mean {mean.tolist()}, deviation {deviation.tolist()} before normalisation")


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Means of the posteriors [N, C, h, w] of pictures uint8 [N, 3, H, W]."""
    return vae.encode(pictures.to(vae.dtype) / 127.5 - 1).latent_dist.mode()


@torch.no_grad()
def encode_cache(vae: AutoencoderKL, images: Tensor, batch_size: int = 48) -> Tensor:
    """Latents float16 [N, V, C, h, w] of images uint8 [N, V, 3, H, W]."""
    parts = []
    for part in images.flatten(0, 1).split(batch_size):
        with torch.autocast(images.device.type, torch.float16, enabled=images.is_cuda):
            latents = encode(vae, part)
        if not torch.isfinite(latents).all():  # beyond half precision on the way
            latents = encode(vae, part)
        parts.append(latents.half())
    return torch.cat(parts).unflatten(0, images.shape[:2])


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor, batch_size: int = 12) -> tuple[Tensor, dict[str, float]]:
    """What the VAE makes of images uint8 [N, V, 3, H, W], and how close: L1 (of 255), PSNR (dB), SSIM."""
    made, totals = [], {"l1": 0.0, "psnr": 0.0, "ssim": 0.0}
    parts = images.flatten(0, 1).split(batch_size)
    for part in parts:
        pictures = vae.decode(encode(vae, part), return_dict=False)[0].clamp(-1, 1).float()
        real = part.float() / 127.5 - 1
        error = (pictures - real).square().mean((1, 2, 3)) / 4
        totals["l1"] += float((pictures - real).abs().mean() * 127.5) * len(part)
        totals["psnr"] += float((-10 * error.log10()).sum())
        totals["ssim"] += float(ssim(pictures, real)) * len(part)
        made.append(((pictures + 1) * 127.5).round().to(torch.uint8))
    count = images.shape[0] * images.shape[1]
    return torch.cat(made).view_as(images), {name: total / count for name, total in totals.items()}
