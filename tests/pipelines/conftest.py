"""A whole tiny pipeline and a small world to look at."""

import pytest
import torch

from syntheocc import SyntheOccPipeline
from syntheocc.models.presets import tiny_components
from syntheocc.occupancy import SYNTHEOCC_COARSE, CameraRig, OccupancyGrid

HEIGHT, WIDTH = 32, 48


def wake(pipe: SyntheOccPipeline) -> SyntheOccPipeline:
    """Small random weights where layers start at zero, so that condition and neighbours change the result."""
    generator = torch.Generator().manual_seed(7)
    for model in (pipe.unet, pipe.controlnet):
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return pipe


def make_pipe(seed: int = 0, **controlnet) -> SyntheOccPipeline:
    """A tiny pipeline with 8 planes, three metres apart, unless told otherwise."""
    planes = {"num_planes": 8, "near": 3.0, "step": 3.0}
    video = controlnet.pop("cross_frame_attention", False)
    pipe = SyntheOccPipeline(**tiny_components(seed, cross_frame_attention=video, **{**planes, **controlnet}))
    pipe.set_progress_bar_config(disable=True)
    return wake(pipe)


def make_grid(seed: int = 0) -> OccupancyGrid:
    """A tenth of all voxels filled with random classes, in the ego frame."""
    generator = torch.Generator().manual_seed(seed)
    shape = SYNTHEOCC_COARSE.spec.shape
    labels = torch.randint(1, 17, shape, generator=generator, dtype=torch.uint8)
    labels[torch.rand(shape, generator=generator) > 0.1] = 0
    return OccupancyGrid(labels, SYNTHEOCC_COARSE.spec, SYNTHEOCC_COARSE.taxonomy, grid2ego=torch.eye(4))


@pytest.fixture(scope="session")
def _shared_pipe() -> SyntheOccPipeline:
    return make_pipe()


@pytest.fixture
def pipe(_shared_pipe) -> SyntheOccPipeline:
    """The shared pipeline; tests that change it build their own with `make_pipe`."""
    return _shared_pipe


@pytest.fixture(scope="session")
def grid() -> OccupancyGrid:
    return make_grid(0)


@pytest.fixture(scope="session")
def other_grid() -> OccupancyGrid:
    return make_grid(1)


@pytest.fixture(scope="session")
def rig(six_cameras) -> CameraRig:
    """Three of six cameras: front left, front, front right."""
    return six_cameras.select(six_cameras.names[:3])


@pytest.fixture(scope="session")
def builders():
    """(make_pipe, make_grid) for tests that need their own."""
    return make_pipe, make_grid


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def call():
    """`call(pipe, **arguments)`: two steps at a small size, arrays out, seeded unless told otherwise."""

    def run(pipe, prompt="a street", **arguments):
        defaults = {"num_inference_steps": 2, "output_type": "pt", "generator": seeded()}
        if "mpi" not in arguments and "height" not in arguments:
            defaults |= {"height": HEIGHT, "width": WIDTH}
        return pipe(prompt, **{**defaults, **arguments})

    return run
