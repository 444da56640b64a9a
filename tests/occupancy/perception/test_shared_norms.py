"""Batch norms of two processes: values, gradients and running statistics are those of the whole batch in one."""

import torch
import torch.distributed as dist
from torch import nn
from warm_start import start_ranks

from syntheocc.occupancy.perception.shared_norms import SharedBatchNorm, share_batch_norms


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3), nn.ReLU(), nn.Flatten(2), nn.BatchNorm1d(3, affine=False)
    ).double()


def samples():
    return torch.randn(5, 2, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 100


def trained(module, x, weight):
    """Output, gradients and statistics after a step; the loss is a sum of cubes, so no gradient is alike."""
    x = x.clone().requires_grad_()
    out = module.train()(x)
    (weight * out.pow(3)).sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    return out.detach(), x.grad, gradients, {k: v.clone() for k, v in module.state_dict().items() if "running" in k}


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    module = share_batch_norms(network(), cpu=True)
    own = slice(0, 2) if rank == 0 else slice(2, 5)  # shares of two sizes
    torch.save(trained(module, samples()[own], weights()[own]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def weights():
    return torch.linspace(0.5, 2, 5 * 36, dtype=torch.float64).view(5, 3, 12)


def test_two_processes_are_as_one(tmp_path):
    start_ranks(process, (str(tmp_path),), 2)
    out, gradient, gradients, statistics = trained(network(), samples(), weights())
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), out, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient, rtol=1e-9, atol=1e-9)
    for name, wanted in gradients.items():
        torch.testing.assert_close(parts[0][2][name] + parts[1][2][name], wanted, rtol=1e-9, atol=1e-9)
    for part in parts:
        for name, wanted in statistics.items():
            torch.testing.assert_close(part[3][name], wanted, rtol=1e-12, atol=0)


def test_the_tensors_stay_and_alone_nothing_changes():
    module = network()
    before = module.state_dict(keep_vars=True)
    shared = share_batch_norms(module, cpu=True)
    assert all(value is shared.state_dict(keep_vars=True)[name] for name, value in before.items())
    assert [type(child) for child in shared][1] is SharedBatchNorm
    assert torch.equal(trained(shared, samples(), weights())[0], trained(network(), samples(), weights())[0])
    assert torch.equal(shared.eval()(samples()), shared.eval()(samples()))
    assert isinstance(share_batch_norms(network(), cpu=False)[1], nn.SyncBatchNorm)
