"""The sampling operator of benchmarks/sparseocc.py: forward and backward, against torch's own grid_sample."""

import torch
from measuring import Bench
from sparseocc_inputs import projections

from syntheocc.occupancy.ops.msmv_sampling import choose_backend, msmv_sampling
from syntheocc.occupancy.perception.sparseocc import SparseOcc
from syntheocc.occupancy.perception.sparseocc.geometry import project_points


def sampling(bench: Bench) -> None:
    """msmv_sampling on [32, 8000, 64, 4] from four levels: 8 frames x 4 groups, points of a street's voxels."""
    config = SparseOcc.from_preset("tiny" if bench.args.smoke else "r50_704x256_8f").config
    frames, groups, queries, points = config.num_frames, 4, 50 if bench.args.smoke else 8000, 4
    height, width = config.image_size
    channels = groups * (8 if bench.args.smoke else 64)
    ego2img = projections(config).to(bench.device)
    # Near the ground in an order that follows x, y and z, as the decoder's kept voxels do.
    low, size = torch.tensor(config.grid.lower), torch.tensor(config.grid.upper) - torch.tensor(config.grid.lower)
    at = low + size * torch.rand(queries, 1, 3) * torch.tensor([1.0, 1.0, 0.4])
    at = at[(at[:, 0] / 0.8).floor().mul(torch.tensor([1e6, 1e3, 1.0])).sum(-1).argsort()]
    around = (at + 0.8 * (torch.rand(queries, groups * points, 3) - 0.5)).reshape(1, -1, 3).to(bench.device)
    located, seen = project_points(around, ego2img, config.image_size)
    located = located.unflatten(2, (queries, groups, points))
    weights = torch.rand(1, 1, queries, groups, points, 4, device=bench.device).softmax(-1)
    weights = weights.expand(-1, frames, -1, -1, -1, -1)
    scattered = torch.rand_like(located)
    for dtype in (torch.bfloat16, torch.float32):
        sizes = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
        maps = [torch.randn(1, frames, 6, h, w, channels, device=bench.device).to(dtype) for h, w in sizes]
        backends = dict.fromkeys((choose_backend(maps), "torch"))
        name = str(dtype).removeprefix("torch.")
        outputs = {}
        for backend in backends:
            for places, where in ((located, "projected voxels"), (scattered, "points anywhere")):
                call = lambda: msmv_sampling(maps, places, weights, backend=backend)  # noqa: B023, E731
                outputs[backend, where] = call().float()
                forward = bench.milliseconds(call)
                both = bench.milliseconds(lambda: _forward_backward(maps, places, weights, backend))  # noqa: B023
                what = f"{backend}, {name}, {where}"
                bench.row("sampling", what, forward_ms=forward, backward_ms=both - forward)
        first, second = list(backends)[0], list(backends)[-1]
        difference = float((outputs[first, "projected voxels"] - outputs[second, "projected voxels"]).abs().max())
        visible = float(seen.float().mean())
        bench.row("sampling", f"{first} against {second}, {name}", largest_difference=difference, visible=visible)
        if bench.args.tune and first == "triton":
            _tune(bench, maps, located, weights, name)


def _forward_backward(maps: list, places: torch.Tensor, weights: torch.Tensor, backend: str) -> None:
    leaves = [level.detach().requires_grad_() for level in maps]
    at, shares = places.detach().requires_grad_(), weights.detach().requires_grad_()
    out = msmv_sampling(leaves, at, shares, backend=backend)
    torch.autograd.grad(out, [*leaves, at, shares], torch.ones_like(out))


def _tune(bench: Bench, maps: list, places: torch.Tensor, weights: torch.Tensor, name: str) -> None:
    from syntheocc.occupancy.ops.msmv_sampling.triton import launch_backward, launch_forward

    grad = launch_forward(maps, places, weights)
    for config in [(p, w) for p in (8, 16, 32, 64) for w in (1, 2, 4, 8)]:
        forward = bench.milliseconds(lambda: launch_forward(maps, places, weights, config))  # noqa: B023
        backward = bench.milliseconds(lambda: launch_backward(grad, maps, places, weights, config))  # noqa: B023
        bench.row("sampling", f"tile {config}, {name}", forward_ms=forward, backward_ms=backward)
