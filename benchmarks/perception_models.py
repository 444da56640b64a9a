"""The models that perception.py can train, and one training run of one of them.

A model is a row of `MODELS`: how it is made for an arm, its losses on a batch, its predictions. Another perception
model is another row.
"""

import copy
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import perception_labels2d
import torch
from perception_data import ACCUMULATED, EXACT, Drives
from torch import Tensor, nn

from syntheocc.engine.files import atomic_write_json
from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.grids import Preset
from syntheocc.occupancy.perception.batch import OccupancyBatch
from syntheocc.occupancy.perception.sparseocc import SparseOcc, presets
from syntheocc.occupancy.perception.sparseocc.acceleration import RecordedSparseOcc
from syntheocc.occupancy.perception.sparseocc.inference import predict_grids


@dataclass(frozen=True)
class Arm:
    """What is varied: frames a sample, the current one included, and which labels are learnt from."""

    frames: int
    labels: str = EXACT
    model: str = ""
    """Of a contender with several models: entry of the registry, "/", preset without its size; SparseOcc: another
    preset than the contender's."""


ARMS = {
    "8f": Arm(8),
    "4f": Arm(4),
    "1f": Arm(1),
    "4f_accumulated": Arm(4, ACCUMULATED),
    # Small enough to be shipped.
    "nano": Arm(1, model="nano"),
    # What 2D labels teach (perception_labels2d); the first and the last share a GPU of four.
    "trunk_3d": Arm(3, model="occflownet/occflownet_3d"),
    "volume_2d": Arm(3, model="occflownet/occflownet_2d"),
    "volume_2d_flow": Arm(3, model="occflownet/occflownet_2d_flow"),
    "splatting": Arm(3, model="splattingocc/splattingocc"),
    "renderocc": Arm(3, model="renderocc/renderocc_7frame"),
}


@dataclass(frozen=True)
class Contender:
    """A perception model as the benchmark sees it.

    Args:
        preset: grid and class table.
        window: height and width of its images.
        image_size: width and height that the world's pictures are rendered in.
        make: arm -> a new network with random weights.
        losses: (network, batch, dtype of autocast or None) -> all terms and "loss".
        groups: (network, learning rate) -> parameter groups.
        predict: (network, images, ego2img, settings) -> for each setting semantics uint8 [B, X, Y, Z], and the
            instances of the network's own panoptic rule with the semantics that belong to them, or None.
        settings: values of the one inference setting that is chosen on development scenes; the published one first.
        setting: its name.
        save: (network, folder) -> None, in half precision.
        rays: whether it learns from lidar rays.
        record: see below.
    """

    preset: Preset
    window: tuple[int, int]
    image_size: tuple[int, int]
    make: Callable[[Arm], nn.Module]
    losses: Callable[[Any, OccupancyBatch, torch.dtype | None], dict[str, Tensor]]
    groups: Callable[[Any, float], list[dict[str, Any]]]
    predict: Callable[[Any, Tensor, Tensor, tuple[float, ...]], tuple[list[Tensor], tuple[Tensor, Tensor] | None]]
    settings: tuple[float, ...]
    setting: str
    save: Callable[[Any, Path], None]
    rays: bool = False
    record: Callable[[Any, torch.dtype | None], None] | None = None
    """(network, dtype of autocast) -> None: `losses` replays the network's passes from now on; None: it cannot."""


def sparseocc(preset: str, image_size: tuple[int, int], **changes: Any) -> Contender:
    """A preset of SparseOcc, panoptic, batch statistics and backbone trained from random weights."""
    config, recipe = presets.preset(preset, **changes)
    things = presets.thing_classes(config.taxonomy)
    config = replace(config, instance_classes=things)

    def make(arm: Arm) -> SparseOcc:
        chosen = presets.preset(arm.model).model if arm.model else config
        # The contender's drives are of its own grid and image size.
        shared = {name: getattr(config, name) for name in ("grid", "taxonomy", "image_size", "instance_classes")}
        return SparseOcc(replace(chosen, num_frames=arm.frames, **shared))

    def losses(model: SparseOcc, batch: OccupancyBatch, dtype: torch.dtype | None) -> dict[str, Tensor]:
        assert batch.semantics is not None
        network = vars(model).get("recorded") or model
        with torch.autocast(batch.images.device.type, dtype, enabled=dtype is not None):
            output = network(batch.images, batch.ego2img)
        # Every process trains a model of its own, and would else wait for the others.
        model.criterion.across_ranks = False
        # The losses in single precision: sums over a hundred thousand voxels.
        return model.losses(output, batch.semantics, batch.instances)

    def record(model: SparseOcc, dtype: torch.dtype | None) -> None:
        vars(model)["recorded"] = RecordedSparseOcc(model, dtype)

    def groups(model: SparseOcc, rate: float) -> list[dict[str, Any]]:
        # The published tenth of the rate is for a pretrained backbone.
        return model.parameter_groups(replace(recipe, learning_rate=rate, backbone_rate=1.0))

    def predict(
        model: SparseOcc, images: Tensor, ego2img: Tensor, settings: tuple[float, ...]
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor] | None]:
        output = model(images, ego2img)
        last, corners = output.predictions[-1], output.stages[-1].corners

        def grids(**changed: Any) -> Any:
            return predict_grids(last.class_logits, last.mask_logits, corners, replace(model.config, **changed))

        merged = [grids(instance_classes=(), voxel_threshold=value).semantics for value in settings]
        panoptic = grids()
        return merged, (panoptic.semantics, panoptic.instances)

    def save(model: SparseOcc, folder: Path) -> None:
        vars(model).pop("recorded", None)
        half = copy.deepcopy(model).half()
        for module in half.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()  # running statistics keep their range
        half.save_pretrained(folder)

    return Contender(
        preset=Preset(config.grid, config.taxonomy),
        window=config.image_size,
        image_size=image_size,
        make=make,
        losses=losses,
        groups=groups,
        predict=predict,
        settings=(0.01, 0.05, 0.1, 0.2, 0.3, 0.5),
        setting="voxel_threshold",
        save=save,
        record=record,
    )


# Exact labels are denser than those of lidar sweeps: 50,000 to 70,000 voxels, 3,200 to 3,900 cells of the coarsest
# stage, of which the cameras see a third. The preset's 32,000 are for the latter.
_WIDE = tuple(
    replace(stage, keep_train=keep, keep_test=keep)
    for stage, keep in zip(presets.small().model.stages, (4000, 12000, 40000), strict=True)
)


def labels2d(size: str, image_size: tuple[int, int]) -> Contender:
    """OccFlowNet, SplattingOcc, RenderOcc and their trunk with 3D labels, each an arm."""
    made = perception_labels2d.contender(size, image_size)
    return Contender(preset=Preset(made.pop("grid"), made.pop("taxonomy")), rays=True, **made)


MODELS: dict[str, Callable[[], Contender]] = {
    "labels2d_small": lambda: labels2d("small", (352, 198)),
    "labels2d_tiny": lambda: labels2d("tiny", (96, 72)),
    "sparseocc_small": lambda: sparseocc("small", (352, 198), stages=_WIDE),
    "sparseocc_tiny": lambda: sparseocc("tiny", (96, 72)),
}


@dataclass
class Schedule:
    """How an arm is trained; the same for all."""

    steps: int
    batch: int
    learning_rate: float
    seed: int = 0
    weight_decay: float = 0.01
    max_grad_norm: float = 35.0
    constant: bool = False
    """For trials: no cosine."""

    def rate(self, step: int) -> float:
        """Share of the learning rate: linear warm-up over a twentieth of the steps, then half a cosine to zero."""
        if self.constant:
            return min(1.0, (step + 1) / (0.3 * self.steps))
        warm_up = max(1, min(300, self.steps // 20))
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))


def draws(schedule: Schedule, frames: int) -> Any:
    """Rows and flips of every step: every frame once a round; the same for all arms."""
    generator = torch.Generator().manual_seed(schedule.seed)
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < schedule.batch:
            order = torch.cat([order, torch.randperm(frames, generator=generator)])
        flips = torch.rand(schedule.batch, 3, generator=generator) < 0.5
        yield order[: schedule.batch], flips
        order = order[schedule.batch :]


class Training:
    """One run; `run` may be called several times, each goes on where the last one ended.

    Args:
        contender: the model.
        arm: what is varied.
        drives: with labels of the arm's kind.
        schedule: see there; its steps may be set later than the first ones are made.
        half: autocast to bfloat16.
        recorded: replay the network's passes where that is possible, see `recording_agrees`.
    """

    def __init__(
        self, contender: Contender, arm: Arm, drives: Drives, schedule: Schedule, half: bool, recorded: bool = False
    ):
        device = drives.images.device
        torch.manual_seed(schedule.seed)
        self.model = contender.make(arm).to(device)
        self.contender, self.arm, self.drives, self.schedule = contender, arm, drives, schedule
        self.dtype = torch.bfloat16 if half else None
        if recorded and contender.record is not None:
            contender.record(self.model, self.dtype)
        groups = contender.groups(self.model, schedule.learning_rate)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=schedule.weight_decay, fused=device.type == "cuda")
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.draws = draws(schedule, len(drives))
        self.step, self.skipped = 0, 0

    def one(self) -> dict[str, Tensor]:
        """One step; its loss terms, on the device."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.schedule.rate(self.step)
        rows, flips = next(self.draws)
        batch = self.drives.batch(rows, self.arm.frames, self.arm.labels, flips)
        # Before the network is replayed: gradients lie where a replay writes.
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.contender.losses(self.model, batch, self.dtype)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.max_grad_norm, foreach=True)
        self.step += 1
        # The matcher has waited for the device anyway.
        if math.isfinite(float(norm)):
            self.optimizer.step()
        else:
            self.skipped += 1
        return {**{name: value.detach() for name, value in losses.items()}, "gradient_norm": norm.detach()}

    def trial(self) -> float:
        """Mean loss of the last third of the schedule's steps, infinite where it is no number."""
        self.model.train()
        steps = self.schedule.steps
        losses = [self.one()["loss"] for _ in range(steps)][-max(1, steps // 3) :]
        mean = float(torch.stack(losses).mean())
        return mean if math.isfinite(mean) and not self.skipped else math.inf

    def losses_of(self, steps: int) -> list[float]:
        """The loss of each of so many steps."""
        self.model.train()
        return torch.stack([self.one()["loss"] for _ in range(steps)]).tolist()

    def seconds_a_step(self, now: Callable[[], float]) -> float:
        """The median of a few, for kernels that are compiled on the way must not count; `now` waits for the device."""
        self.model.train()
        warm, timed = (6, 12) if self.drives.images.is_cuda else (1, 2)
        times = []
        for _ in range(warm + timed):
            began = now()
            self.one()
            times.append(now() - began)
        return statistics.median(times[warm:])

    def parts(self, now: Callable[[], float]) -> dict[str, float]:
        """Seconds of the parts of one step without an update; `now` waits for the device."""
        self.optimizer.zero_grad(set_to_none=True)
        times = [now()]
        rows, flips = next(self.draws)
        batch = self.drives.batch(rows, self.arm.frames, self.arm.labels, flips)
        times.append(now())
        losses = self.contender.losses(self.model, batch, self.dtype)
        times.append(now())
        losses["loss"].backward()
        times.append(now())
        self.optimizer.zero_grad(set_to_none=True)
        return dict(zip(("batch", "forward", "backward"), [b - a for a, b in pairwise(times)], strict=True))

    def run(self, folder: Path, say: Callable[[str], None], enough: Callable[[], bool]) -> dict[str, Any]:
        """Train to the schedule's end, or until `enough` says that time is over; the curve goes to log.jsonl."""
        self.model.train()
        folder.mkdir(parents=True, exist_ok=True)
        began, every = time.monotonic(), max(1, self.schedule.steps // 100)
        sums: dict[str, Tensor] = {}
        since, last = 0, 0.0
        with open(folder / "log.jsonl", "w", encoding="utf-8") as log:
            while self.step < self.schedule.steps and not enough():
                for name, value in self.one().items():
                    sums[name] = sums.get(name, 0) + value
                since += 1
                if self.step % every == 0 or self.step == self.schedule.steps:
                    row = {name: round(float(value) / since, 5) for name, value in sums.items()}
                    last = row["loss"]
                    seconds = round(time.monotonic() - began, 1)
                    rate = self.schedule.rate(self.step - 1) * self.schedule.learning_rate
                    log.write(json.dumps({"step": self.step, "seconds": seconds, "learning_rate": rate, **row}) + "\n")
                    log.flush()
                    sums, since = {}, 0
                    if self.step % (10 * every) == 0:
                        say(f"step {self.step} of {self.schedule.steps}, loss {last:.2f}, {seconds:.0f} s")
        facts = {
            "steps": self.step,
            "planned_steps": self.schedule.steps,
            "skipped_steps": self.skipped,
            "samples": self.step * self.schedule.batch,
            "rounds": self.step * self.schedule.batch / len(self.drives),
            "seconds_training": time.monotonic() - began,
            "last_loss": last,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
        atomic_write_json(folder / "training.json", facts)
        return facts


def recording_agrees(contender: Contender, arm: Arm, drives: Drives, schedule: Schedule) -> str | None:
    """Does training with recorded passes go the way of plain training here? None: it does; else why it is left out.

    Twelve steps of both, of the same seed and samples: points and dropout are drawn anew, so that losses differ by a
    little; a wrong gradient would leave them where they began.
    """
    if contender.record is None or not drives.images.is_cuda:
        return "not for this model or device"
    few = replace(schedule, steps=40, learning_rate=1e-3)
    try:
        plain, recorded = (
            Training(contender, arm, drives, few, half=True, recorded=flag).losses_of(12) for flag in (False, True)
        )
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    means = [sum(losses[-6:]) / 6 for losses in (plain, recorded)]
    apart = abs(means[1] - means[0]) / means[0]
    return None if apart < 0.05 else f"losses differ by {apart:.3f}: {means[0]:.2f} and {means[1]:.2f}"


def recorded_where_it_agrees(
    contender: Contender, arms: Sequence[Arm], drives: Drives, schedule: Schedule, ranks: Ranks, say: Any
) -> tuple[Contender, bool | None]:
    """The contender, without recording its passes where any of this rank's arms then learns otherwise.

    Returns:
        the contender; and whether all ranks record, None where nothing could be.
    """
    if contender.record is None or not drives.images.is_cuda:
        return contender, None
    fault = next((f for f in (recording_agrees(contender, arm, drives, schedule) for arm in arms) if f), None)
    gc.collect()  # the trials' recordings: a model and its recording refer to one another
    say(f"steps recorded as CUDA graphs: {fault or 'yes'}", everyone=True)
    everywhere = all(other is None for other in ranks.gather(fault))
    return contender if fault is None else replace(contender, record=None), everywhere
