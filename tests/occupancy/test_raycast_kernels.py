"""The GPU kernels of ray casting, run by Triton's interpreter on the CPU: the reference's bits, without a GPU."""

import os
import subprocess
import sys

import pytest

from syntheocc.occupancy.ops.mpi_lookup import has_module

SCRIPT = """
import torch
from syntheocc.occupancy.ops.ray_confusion import RayRules, ray_confusion
from syntheocc.occupancy.ops.ray_confusion.triton import ray_confusion_triton
from syntheocc.occupancy.ops.raycast import traverse, unravel
from syntheocc.occupancy.ops.raycast.triton import traverse_triton

g = torch.Generator().manual_seed(0)
shape = (12, 10, 8)
classes = torch.randint(0, 6, (2, *shape), generator=g)
labels = torch.where(torch.rand(2, *shape, generator=g) < 0.05, classes, 6).byte()
starts = torch.rand(2, 400, 3, generator=g, dtype=torch.float64) * 24 - 6
ways = torch.randn(2, 400, 3, generator=g, dtype=torch.float64)
starts[:, :150] = starts[:, :150].round()
ways[:, 70:220] = ways[:, 70:220].round()
ways[(ways == 0).all(-1)] = 1.0
ways = ways / (ways * ways).sum(-1, keepdim=True).sqrt()
slow = traverse(labels, starts, ways, "reference", 6)
exit_t, flat, hit = traverse_triton(labels, 6, starts, ways)
assert torch.equal(slow[0], exit_t) and torch.equal(slow[1], unravel(flat, shape)) and torch.equal(slow[2], hit)
assert 30 < int(hit.sum()) and 30 < int((exit_t == -1).sum())

pred = labels.roll(1, 2)
pred[0, 3] = labels[1, 4, 4] = 255
origins = torch.rand(5, 3, generator=g, dtype=torch.float64) * torch.tensor([8.0, 7.0, 5.5])
rules = RayRules((0.0, -1.0, 0.0), 0.7, 6, 6, (1.0, 2.0, 4.0))
frames = torch.tensor([0, 1, 1, 0, 1], dtype=torch.int32)
directions = ways[0, 50:250].float().double()
slow = ray_confusion(pred, labels, origins, frames, directions, rules, "reference")
fast = ray_confusion_triton(pred, labels, origins, frames, directions, rules)
assert torch.equal(slow, fast.long()) and int(slow.sum()) > 100, (int(slow.sum()), int(fast.sum()))
print("equal")
"""


@pytest.mark.skipif(not has_module("triton"), reason="needs triton")
def test_interpreted_kernels_give_the_reference_s_bits():
    environ = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environ)
    assert done.stdout.strip() == "equal", done.stderr
