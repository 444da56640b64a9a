"""The accelerator of a job: which device and rank this process has, whatever started it."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from syntheocc.engine.batch import derive_batch
from syntheocc.engine.loop_config import LoopConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(config: LoopConfig) -> "Accelerator":
    """The accelerator of a job, with this process's device and rank; make it before loading what needs a device.

    DDP over NCCL on GPUs and over gloo without; FSDP and DeepSpeed as `accelerate launch` configures them.

    Raises:
        ValueError: the batch cannot be cut for the ranks, fp16 without a GPU, or fewer processes joined than were
            started.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        DistributedType,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
    )

    cuda = torch.cuda.is_available()
    if config.mixed_precision == "fp16" and not cuda:
        raise ValueError("mixed_precision=fp16 needs a GPU; give bf16 or no")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    if config.allow_tf32:
        torch.set_float32_matmul_precision("high")
    # accelerate keeps the first precision of the process; a job that trains two models may want two.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=not cuda,  # without it torchrun on a machine without GPUs gives independent processes
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                find_unused_parameters=config.find_unused_parameters, gradient_as_bucket_view=True
            ),
            InitProcessGroupKwargs(timeout=timedelta(hours=1)),  # the main process may validate or save for long
        ],
    )
    world, started = accelerator.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
    if world != started:
        raise ValueError(
            f"{started} processes were started (WORLD_SIZE) but accelerate joined {world}; start them with torchrun "
            "or accelerate launch --multi_gpu"
        )
    plan = derive_batch(config.global_batch_size, world, config.micro_batch_size)
    accelerator.gradient_accumulation_steps = plan.accumulation
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        deepspeed = accelerator.state.deepspeed_plugin.deepspeed_config
        deepspeed["train_micro_batch_size_per_gpu"] = plan.micro
        deepspeed["gradient_accumulation_steps"] = plan.accumulation
    return accelerator
