"""What a checkpoint of the training loop holds, and how a run continues from it.

    checkpoint-100/
      trainable.safetensors       trained parameters and buffers, float32
      training_state.safetensors  optimizer, averages, random states: tensors
      training_state.json         the same state's numbers, sampler position, step
      training_config.json        settings of the run
      training_identity.json      what the model is made of, where the trainer says so
      ...                         the trained model for inference, as the trainer's `save_model` writes it

Under FSDP and DeepSpeed, whose states are spread over the ranks, accelerate's own `save_state` fills `accelerate/`.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from syntheocc.engine.batch import mix_seed
from syntheocc.engine.checkpoints import CheckpointFolder
from syntheocc.engine.ema import EMA
from syntheocc.engine.files import atomic_write_json, read_json
from syntheocc.engine.loop_config import LoopConfig
from syntheocc.engine.samplers import EpochSampler
from syntheocc.engine.state import (
    load_named_optimizer_state,
    load_state,
    load_tensors,
    load_trainable,
    named_optimizer_state,
    plain_name,
    random_state,
    save_state,
    save_tensors,
    seed_everything,
    set_random_state,
    trainable_state,
)
from syntheocc.engine.trackers import note

if TYPE_CHECKING:
    from accelerate import Accelerator

_FORMAT = 1
_IDENTITY = "training_identity.json"
# Settings that bend the curve where they change.
_SCHEDULE = (
    "learning_rate lr_scheduler lr_warmup_steps lr_warmup_start lr_num_cycles lr_power lr_end lr_milestones lr_decay "
    "max_train_steps max_grad_norm mixed_precision"
).split()


class LoopState:
    """Saves and continues the state of one training loop."""

    def __init__(
        self,
        config: LoopConfig,
        accelerator: "Accelerator",
        module: nn.Module,
        sampler: EpochSampler,
        checkpoints: CheckpointFolder,
        identity: Mapping[str, Any] | None = None,
    ):
        from accelerate.utils import DistributedType

        self.config, self.accelerator, self.checkpoints = config, accelerator, checkpoints
        self.module, self.sampler = module, sampler
        # As it comes back from a file: tuples are lists there.
        self.identity = None if identity is None else json.loads(json.dumps(identity))
        kind = accelerator.distributed_type
        self.sharded = kind in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        # DeepSpeed's engine steps inside of backward; its stages 1 and 2 keep whole parameters on every rank.
        self.engine_steps = kind == DistributedType.DEEPSPEED
        self.sharded_parameters = kind == DistributedType.FSDP or (
            self.engine_steps and accelerator.state.deepspeed_plugin.zero_stage == 3
        )

    def prepared(self, optimizer: Any, ema: EMA | None) -> None:
        """Take what exists only after accelerate prepared the module."""
        self.optimizer, self.ema = optimizer.optimizer, ema
        self.names: dict[Tensor, str] = {
            parameter: plain_name(name) for name, parameter in self.module.named_parameters()
        }

    def check_identity(self, checkpoint: Path) -> None:
        """Refuse a checkpoint of another model; say which settings of the run have changed since.

        Raises:
            ValueError: what the model is made of differs, naming the values.
        """
        file = checkpoint / _IDENTITY
        if self.identity is not None and file.is_file():
            changed = _differences(read_json(file), self.identity)
            if changed:
                raise ValueError(
                    f"{checkpoint} is of another model: {'; '.join(changed)}; resume with the preset and the settings "
                    "of the first run, or give another output_dir"
                )
        file = checkpoint / "training_config.json"
        if self.accelerator.is_main_process and file.is_file():
            before, now = read_json(file), plain_settings(self.config)
            watched = {name: before[name] for name in _SCHEDULE if name in before}
            changed = _differences(watched, {name: now.get(name) for name in watched})
            if changed:
                note(f"resuming {checkpoint.name} with other settings, which count from here: {'; '.join(changed)}")

    def load_weights(self, checkpoint: Path) -> None:
        """Give the module, not prepared yet, a checkpoint's trained weights."""
        if not self.sharded:
            path = checkpoint / "trainable.safetensors"
            load_trainable(self.module, load_tensors(path), source=str(path))

    def load(self, checkpoint: Path) -> int:
        """Continue optimizer, averages, sampler and random states; returns the steps done.

        Raises:
            ValueError: the checkpoint is damaged, or of a run with another dataset, seed or trained parameters.
        """
        if self.sharded:
            self.accelerator.load_state(str(checkpoint / "accelerate"))
        state = load_state(checkpoint, "training_state")
        if state.get("format") != _FORMAT:
            raise ValueError(f"{checkpoint}: format {state.get('format')!r} of the training state, known is {_FORMAT}")
        changed = _differences(state.get("sources") or {}, self.sampler.sources)
        if changed:
            raise ValueError(
                f"{checkpoint}: was trained on samples of other sources ({'; '.join(changed)}); resume with those of "
                "the first run, or begin a new run from the trained weights"
            )
        for name, present in (("dataset_length", self.sampler.length), ("seed", self.config.seed)):
            if state[name] != present:
                raise ValueError(
                    f"{checkpoint}: was trained with {name} {state[name]}, now it is {present}: the order of the "
                    "samples would break; resume with the settings of the first run"
                )
        if state["global_batch_size"] != self.config.global_batch_size and self.accelerator.is_main_process:
            note(
                f"global_batch_size was {state['global_batch_size']}, from here it is {self.config.global_batch_size}"
            )
        self.sampler.load_state_dict(state["sampler"])
        if state.get("order", self.sampler.fingerprint()) != self.sampler.fingerprint():
            raise ValueError(
                f"{checkpoint}: was trained on other samples, or in another order of them; resume with the data and "
                "the settings of the first run, or begin a new run from the trained weights"
            )
        if not self.sharded:
            self._load_whole(checkpoint, state)
        return int(state["step"])

    def save(self, step: int, save_model: Callable[[Path], None]) -> None:
        """Write `checkpoint-<step>`; every rank calls it."""
        ranks = self._gather(random_state())
        if self.sharded:
            self._save_sharded(step, save_model)
        elif self.accelerator.is_main_process:
            self.checkpoints.save(step, lambda folder: self._write(folder, step, ranks, save_model))
        self.accelerator.wait_for_everyone()

    def _load_whole(self, checkpoint: Path, state: dict[str, Any]) -> None:
        try:
            load_named_optimizer_state(self.optimizer, self.names, state["optimizer"])
            if self.ema is not None:
                if state["ema"] is None:
                    raise ValueError("it has no averages (use_ema was off); leave use_ema out")
                self.ema.load_state_dict(state["ema"])
            elif state["ema"] is not None and self.accelerator.is_main_process:
                note(f"{checkpoint.name} has averages of the weights; without use_ema they end here")
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}") from error
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if len(state["random"]) == world:
            set_random_state(state["random"][rank])
        else:
            seed_everything(mix_seed(self.config.seed, rank, int(state["step"])))

    def _write(
        self, folder: Path, step: int, ranks: list[dict[str, Any]] | None, save_model: Callable[[Path], None]
    ) -> None:
        if not self.sharded_parameters:
            save_model(folder)
        state: dict[str, Any] = {
            "format": _FORMAT,
            "step": step,
            "sampler": self.sampler.state_dict(),
            "order": self.sampler.fingerprint(),
            "dataset_length": self.sampler.length,
            "sources": self.sampler.sources,
            "seed": self.config.seed,
            "global_batch_size": self.config.global_batch_size,
        }
        if not self.sharded:
            scaler = self.accelerator.scaler
            state |= {
                "optimizer": named_optimizer_state(self.optimizer, self.names),
                "ema": self.ema.state_dict() if self.ema is not None else None,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "random": ranks,
            }
            save_tensors(folder / "trainable.safetensors", trainable_state(self.module))
        save_state(folder, "training_state", state)
        atomic_write_json(folder / "training_config.json", plain_settings(self.config))
        if self.identity is not None:
            atomic_write_json(folder / _IDENTITY, self.identity)

    def _save_sharded(self, step: int, save_model: Callable[[Path], None]) -> None:
        """All ranks write into the main one's temporary folder, which takes its name when all are done."""
        main = self.accelerator.is_main_process
        if not main:
            folder = Path(self._broadcast(None))
            self.accelerator.save_state(str(folder / "accelerate"))
            self.accelerator.wait_for_everyone()
            return
        with self.checkpoints.writing(step) as folder:
            self._broadcast(str(folder))
            self.accelerator.save_state(str(folder / "accelerate"))
            self.accelerator.wait_for_everyone()
            self._write(folder, step, None, save_model)

    def _broadcast(self, value: str | None) -> str:
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def _gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Every rank's value, in rank order."""
        if self.accelerator.num_processes == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])


def plain_settings(config: LoopConfig) -> dict[str, Any]:
    """The settings as JSON writes them; paths and other objects as text."""

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return str(value)

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], of: str = "") -> list[str]:
    """What differs, as "name: old -> new"; tables are entered."""
    found = []
    for name in sorted({*before, *now}):
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, f"{of}{name}.")
        elif one != other:
            found.append(f"{of}{name}: {one} -> {other}")
    return found


def check_agreement(accelerator: "Accelerator", **values: Any) -> None:
    """Whether all ranks found the same; ranks that begin differently would wait for one another forever.

    Raises:
        ValueError: they did not, on every rank.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    for rank, other in enumerate(gather_object([values])):
        if other != values:
            raise ValueError(
                f"rank {accelerator.process_index} found {values}, rank {rank} {other}: output_dir and the data must "
                "be on a file system that all machines share"
            )


def checkpoint_to_resume(checkpoints: CheckpointFolder, which: str | None) -> Path | None:
    """The checkpoint to resume; refuses to mix a run with another one's later checkpoints."""
    resumed = checkpoints.resolve(which)
    step = int(resumed.name.rpartition("-")[2]) if resumed is not None else -1
    later = [other for other in checkpoints.steps() if other > step]
    if not later:
        return resumed
    if resumed is None:
        raise ValueError(
            f"{checkpoints.root} has checkpoints of an earlier run (checkpoint-{later[-1]}); give "
            "resume_from_checkpoint=latest, or another output_dir"
        )
    raise ValueError(
        f"{checkpoints.root} has checkpoints after {resumed.name} (checkpoint-{later[-1]}); move them away, or give "
        "another output_dir and the checkpoint's path"
    )
