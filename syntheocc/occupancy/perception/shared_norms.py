"""Batch norms whose statistics are those of all processes' batches, on GPUs and on CPUs.

PyTorch's own (`nn.SyncBatchNorm`) is for GPUs; on a CPU `SharedBatchNorm` computes the same by summing over the
processes, so that a rehearsal on two processes with gloo is what two GPUs would do. Names of tensors stay.

Legend: N samples, C channels.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SharedBatchNorm", "share_batch_norms"]


class SharedBatchNorm(_BatchNorm):
    """`nn.SyncBatchNorm` for the CPU, in two sums over the processes."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"a batch norm takes [N, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] normalised over N of all processes, and everything behind C."""
        if not self.training or not _several():
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        count = torch.tensor([float(input.numel() // input.shape[1])], dtype=input.dtype)
        mean = _summed(torch.cat([input.sum(axes), count]))
        total, mean = mean[-1:].detach(), mean[:-1] / mean[-1:].detach()
        shape = (1, -1, *(1,) * (input.ndim - 2))
        centred = input - mean.view(shape)
        # Of the deviations and not of the squares: a mean far from zero would leave no digits.
        variance = _summed(centred.square().sum(axes)) / total
        with torch.no_grad():
            if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.detach().to(self.running_mean), rate)
                unbiased = variance.detach() * total / (total - 1).clamp_min(1)
                self.running_var.lerp_(unbiased.to(self.running_var), rate)
        out = centred * (variance + self.eps).rsqrt().view(shape)
        return out if self.weight is None else out * self.weight.view(shape) + self.bias.view(shape)


def share_batch_norms(module: nn.Module, cpu: bool) -> nn.Module:
    """Replace every batch norm inside by one that shares its statistics; its tensors are kept.

    Args:
        module: what is changed.
        cpu: where it is to be trained.
    """
    kind = SharedBatchNorm if cpu else nn.SyncBatchNorm
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
            shared = kind(child.num_features, child.eps, child.momentum, child.affine)
            # The same parameters and buffers, whoever else holds them.
            shared._parameters, shared._buffers = child._parameters, child._buffers
            shared.training = child.training
            setattr(module, name, shared)
        else:
            share_batch_norms(child, cpu)
    return module


class _Sum(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


def _summed(values: Tensor) -> Tensor:
    result = _Sum.apply(values)
    assert isinstance(result, Tensor)
    return result


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
