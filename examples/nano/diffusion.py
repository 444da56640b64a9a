"""Train UNet, ControlNet and text encoder together, from scratch, on cached latents and conditions.

    torchrun --standalone --nproc_per_node 4 examples/nano/train.py ...     # see train.py

The loss is the package's own (`syntheocc.training.SyntheOccStep`): velocity prediction, foreground weights, one
timestep for the views of a sample, text and MPI dropped independently for guidance. What is exported is the average of
the weights (EMA), which is kept beside them.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from bank import Bank
from diffusers import DDPMScheduler
from parallel import Progress, Team, set_learning_rate, warm_cosine
from safetensors.torch import load_file, save_file
from texts import token_table, tokenize
from torch import Tensor, nn

from syntheocc.engine.checkpoints import CheckpointFolder
from syntheocc.engine.ema import EMA
from syntheocc.models.presets import tiny_components
from syntheocc.training.acceleration import prepare_for_training, trainable_parameters
from syntheocc.training.batch import TrainingBatch
from syntheocc.training.dropout import ConditionDropout
from syntheocc.training.step import SyntheOccStep

# Share of the samples whose condition gets holes: labels that were measured have them, the world's own do not.
THINNED = 0.1
NETWORKS = ("unet", "controlnet", "text_encoder")


def new_components(seed: int, size: str, latent_channels: int, tokenizer: Any) -> dict[str, Any]:
    """Random networks, and nano's noise schedule whatever the size."""
    components = tiny_components(seed, size, latent_channels=latent_channels, tokenizer=tokenizer)
    schedule = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = components["scheduler"]
    return components | {"scheduler": scheduler.from_config(scheduler.config, **schedule)}


def make_step(
    components: dict[str, Any], seed: int = 0, max_train_steps: int = 4000, dropout: float = 0.1
) -> SyntheOccStep:
    """The training step of new components; its noise schedule is the sampler's."""
    scheduler = components["scheduler"].config
    names = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
    noise = DDPMScheduler(
        **{name: scheduler[name] for name in names}, rescale_betas_zero_snr=scheduler["rescale_betas_zero_snr"]
    )
    return SyntheOccStep(
        components["unet"],
        components["controlnet"],
        None,
        components["text_encoder"],
        noise,
        dropout=ConditionDropout(text=dropout, mpi=dropout),
        empty_input_ids=tokenize(components["tokenizer"], [""])[0],
        max_train_steps=max_train_steps,
        seed=seed,
    )


class Samples:
    """Training batches from a bank: everything on the device but the token ids.

    Args:
        bank: frames.
        input_ids: int64 [N, variants, L].
        seed: of the draws; another one for every rank.
    """

    def __init__(self, bank: Bank, input_ids: Tensor, seed: int):
        self.bank, self.input_ids = bank, input_ids
        self.random = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long)

    def batch(self, count: int) -> TrainingBatch:
        """`count` frames, every frame once before any comes again."""
        while len(self._order) < count:
            self._order = torch.cat([self._order, torch.randperm(len(self.bank), generator=self.random)])
        rows, self._order = self._order[:count], self._order[count:]
        variant = torch.randint(self.input_ids.shape[1], (count,), generator=self.random)
        here = rows.to(self.bank.latents.device, non_blocking=True)
        labels, nearest, plane = (
            bank[here] for bank in (self.bank.mpi_labels, self.bank.nearest, self.bank.nearest_plane)
        )
        thinned = (torch.rand(count, generator=self.random) < THINNED).nonzero()[:, 0].tolist()
        for i in thinned:
            labels[i], nearest[i], plane[i] = self._thin(labels[i])
        return TrainingBatch(
            input_ids=self.input_ids[rows, variant][:, None],
            neighbors=self.bank.neighbors,
            latents=self.bank.latents[here],
            mpi_labels=labels,
            nearest=nearest,
            nearest_plane=plane,
        )

    def _thin(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An MPI [V, D, h, w] with holes and perhaps a shorter reach: labels, nearest class and nearest plane."""
        share, reach = torch.rand(2, generator=self.random).tolist()
        kept = torch.rand(labels.shape, device=labels.device) >= 0.6 * share
        if reach < 0.5:
            kept[:, int(labels.shape[1] * (0.6 + 0.4 * reach)) :] = False
        labels = labels * kept
        first = (labels != 0).to(torch.uint8).argmax(1, keepdim=True)
        return labels, labels.gather(1, first)[:, 0], first[:, 0].to(torch.uint8)


def train_diffusion(
    team: Team,
    bank: Bank,
    tokenizer: Any,
    seconds: float,
    *,
    size: str = "nano",
    batch_size: int = 32,
    learning_rate: float = 8e-4,
    ema_decay: float = 0.998,
    warmup: int = 150,
    max_steps: int | None = None,
    layout: str = "fused",
    folder: Path | None = None,
    resume: Path | None = None,
    init: dict[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Components with averaged weights, float32, on the CPU: unet, controlnet, text_encoder, tokenizer, scheduler.

    Args:
        team: who trains together.
        bank: this rank's frames; their latents have mean 0 and deviation 1.
        tokenizer: the small model's own.
        seconds: time to train.
        size: of `tiny_components`.
        batch_size: samples a rank and step.
        learning_rate: at its highest.
        ema_decay: of the averages.
        warmup: steps of rising learning rate.
        max_steps: end after so many steps.
        layout: "fused" (`prepare_for_training`), "compiled" (the same and its blocks compiled), "recorded" (the same
            replayed from CUDA graphs) or "autocast".
        folder: where a checkpoint is written every minute (rank 0).
        resume: folder of checkpoints whose newest is continued.
        init: networks (unet, controlnet, text_encoder) to begin with.
        seed: of weights, batches and noise.
    """
    components = new_components(seed, size, bank.latents.shape[2], tokenizer)
    for name in NETWORKS if init is not None else ():
        components[name].load_state_dict(init[name].state_dict())
    step = make_step(components, seed, max_train_steps=max_steps or max(100, int(seconds * 10)))
    step.to(team.device)
    parameters = trainable_parameters(step, "all", text_encoder=True)
    first = 0
    if resume is not None:
        first, saved = _read(CheckpointFolder(resume).latest(), step, parameters)
    autocast = _lay_out(step, layout, team.device)
    optimizer = torch.optim.AdamW(
        parameters.values(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=team.device.type == "cuda"
    )
    ema = EMA(parameters, ema_decay)
    if resume is not None:
        _restore(saved, parameters, optimizer, ema)
    ids = token_table(tokenizer, bank.frames, seed=seed)
    samples = Samples(bank, ids, seed * 1000 + first * 17 + team.rank)
    positions = list(range(team.rank * batch_size, (team.rank + 1) * batch_size))
    said = saved_at = began = time.perf_counter()
    errors: list[Tensor] = []
    done = 0
    for done, share in Progress(team, seconds, max_steps=max_steps):
        set_learning_rate(optimizer, learning_rate * warm_cosine(done, share, warmup))
        # The foreground's weights grow over the time that the stage has, whatever number of steps that is.
        step.max_train_steps = max(1, round((done + 1) / max(share, 1e-3)))
        with autocast:
            result = step(samples.batch(batch_size), first + done, positions)
        optimizer.zero_grad(set_to_none=True)
        result["loss"].backward()
        team.average_gradients(parameters.values())
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        ema.update()
        if done % 500 == 0:  # the ranks compute the same; this keeps it so whatever rounding does
            team.copy_from_main_([parameter.data for parameter in parameters.values()])
        errors.append(result["mse"])
        now = time.perf_counter()
        if now - said > 10 or done == 0:
            mean = float(torch.stack(errors).mean())
            errors.clear()
            said = now
            speed = f"{(done + 1) / (now - began):.1f} steps/s"
            team.log(f"diffusion step {first + done} ({share:.0%}) mse {mean:.4f}, {speed}")
            if mean != mean:
                raise ValueError(f"the loss is {mean} at step {first + done}")
        if folder is not None and team.is_main and now - saved_at > 60:
            saved_at = now
            _write(folder, first + done + 1, parameters, optimizer, ema)
    count = done + 1
    team.log(f"diffusion: {count} steps of {batch_size * team.world} samples in {time.perf_counter() - began:.0f} s")
    if folder is not None and team.is_main:
        _write(folder, first + count, parameters, optimizer, ema)
    return averaged(ema.averages, tokenizer, bank.latents.shape[2], size)


def _lay_out(step: SyntheOccStep, layout: str, device: torch.device):
    """Prepare the step; returns the context to compute in."""
    if layout == "autocast":
        for network in (step.unet, step.controlnet):
            network.to(memory_format=torch.channels_last)
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    prepare_for_training(
        step,
        dtype,
        channels_last=device.type == "cuda",
        compile="blocks" if layout == "compiled" else "no",
        cuda_graphs=layout == "recorded",
    )
    return torch.autocast(device.type, enabled=False)


def averaged(averages: dict[str, Tensor], tokenizer: Any, channels: int, size: str = "nano") -> dict[str, Any]:
    """New components without the VAE, laid out as usual, with the averages (name in the step -> value)."""
    fresh = new_components(0, size, channels, tokenizer)
    for name in NETWORKS:
        weights = {key[len(name) + 1 :]: value.cpu() for key, value in averages.items() if key.startswith(f"{name}.")}
        # Not strict: buffers are not averaged. All that is trained must be there, and nothing may be left over.
        missing, unexpected = fresh[name].load_state_dict(weights, strict=False)
        trained = {key for key, _ in fresh[name].named_parameters()}
        assert not unexpected and trained.isdisjoint(missing), (name, unexpected, missing)
    return {name: part for name, part in fresh.items() if name != "vae"}


def saved_averages(folder: Path) -> dict[str, Tensor]:
    """The averages in the newest checkpoint of a folder."""
    checkpoint = CheckpointFolder(folder).latest()
    if checkpoint is None:
        raise ValueError(f"{folder} has no checkpoints")
    tensors = load_file(checkpoint / "state.safetensors")
    return {name.removeprefix("average."): value for name, value in tensors.items() if name.startswith("average.")}


def _write(folder: Path, number: int, parameters: dict, optimizer: torch.optim.Optimizer, ema: EMA) -> None:
    tensors = {f"weight.{name}": parameter for name, parameter in parameters.items()}
    tensors |= {f"average.{name}": value for name, value in ema.averages.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def write(target: Path) -> None:
        save_file(tensors, target / "state.safetensors")
        (target / "state.json").write_text(json.dumps({"step": number, "updates": ema.updates}))

    CheckpointFolder(folder, limit=1).save(number, write)


def _read(checkpoint: Path | None, step: SyntheOccStep, parameters: dict) -> tuple[int, dict[str, Any]]:
    if checkpoint is None:
        raise ValueError("there is no checkpoint to resume")
    state: dict[str, Any] = {"tensors": load_file(checkpoint / "state.safetensors")}
    state |= json.loads((checkpoint / "state.json").read_text())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state["tensors"][f"weight.{name}"])
    return state["step"], state


def _restore(state: dict[str, Any], parameters: dict, optimizer: torch.optim.Optimizer, ema: EMA) -> None:
    tensors = state["tensors"]
    ema.load_state_dict(
        {"updates": state["updates"], "averages": {name: tensors[f"average.{name}"] for name in parameters}}
    )
    for name, parameter in parameters.items():
        for key in ("exp_avg", "exp_avg_sq"):
            # In the parameter's memory format: the fused AdamW walks through both in memory order.
            optimizer.state[parameter][key] = torch.zeros_like(parameter).copy_(tensors[f"{key}.{name}"])
        count = tensors[f"step.{name}"]
        optimizer.state[parameter]["step"] = count.to(parameter.device) if parameter.is_cuda else count
