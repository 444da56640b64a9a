"""Vectors of specs/sparseocc.md, and a SparseOcc small enough for a CPU."""

import json
import math
from pathlib import Path

import pytest
import torch

from syntheocc.occupancy.perception.sparseocc import SparseOcc


@pytest.fixture(scope="session")
def vectors():
    """Numbers computed with the published system (the keys are the specification's)."""
    return json.loads((Path(__file__).parent / "vectors.json").read_text())


def project(yaw_deg: float, position, focal: float, center) -> torch.Tensor:
    """ego2img of a level pinhole camera."""
    cos, sin = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
    # rows: right, down, forward
    ego2cam = torch.eye(4)
    ego2cam[:3, :3] = torch.tensor([[sin, -cos, 0.0], [0.0, 0.0, -1.0], [cos, sin, 0.0]])
    ego2cam[:3, 3] = -ego2cam[:3, :3] @ torch.tensor(position)
    intrinsics = torch.eye(4)
    intrinsics[0, 0] = intrinsics[1, 1] = focal
    intrinsics[:2, 2] = torch.tensor(center)
    return intrinsics @ ego2cam


@pytest.fixture(scope="session")
def ego2img_at():
    """The function `project`."""
    return project


@pytest.fixture(scope="session")
def ring():
    """A function: ego2img [B, T, V, 4, 4] of level cameras all around, for an image size."""

    def make(batch: int, frames: int, views: int, height: int, width: int) -> torch.Tensor:
        cameras = [project(360 / views * v, (0.0, 0.0, 1.5), width / 2, (width / 2, height / 2)) for v in range(views)]
        return torch.stack(cameras).expand(batch, frames, -1, -1, -1).clone()

    return make


@pytest.fixture(scope="session")
def tiny_inputs(ring):
    """images [2, 2, 3, 3, 64, 96] and ego2img for the preset "tiny"."""
    images = torch.randn(2, 2, 3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    return images, ring(2, 2, 3, 64, 96)


@pytest.fixture
def tiny():
    """The preset "tiny" with weights of seed 0, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SparseOcc.from_preset("tiny").eval()


@pytest.fixture
def scene():
    """Labels [40, 40, 8] of Occ3D for "tiny": a road, two cars, a wall, and a corner of which nothing is known.

    Fewer voxels are occupied than the model keeps.
    """
    labels = torch.full((40, 40, 8), 17, dtype=torch.uint8)
    labels[:, 8:18, 1] = 11
    labels[10:14, 10:12, 2:4] = 4
    labels[24:28, 10:12, 2:4] = 4
    labels[35, :, 2:4] = 15
    labels[:6, :6] = 255
    return labels
