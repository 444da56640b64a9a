"""The fast path against the plain one."""

import pytest
import torch

from syntheocc.models.channels_last import FusedResnetBlock2D


def test_fast_path_gives_the_plain_numbers_and_goes_back(builders, call, grid, rig):
    pipe = builders[0]()
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    plain = call(pipe, occupancy=grid, cameras=rig).images
    pipe.enable_fast_path()
    assert any(isinstance(module, FusedResnetBlock2D) for module in pipe.unet.modules())
    fast = call(pipe, occupancy=grid, cameras=rig).images
    assert torch.allclose(fast, plain, atol=1e-4)
    pipe.disable_fast_path()
    assert not any(isinstance(module, FusedResnetBlock2D) for module in pipe.unet.modules())
    assert torch.equal(call(pipe, occupancy=grid, cameras=rig).images, plain)
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())


def test_fast_path_saves_and_loads(builders, call, grid, rig, tmp_path):
    pipe = builders[0]()
    pipe.enable_fast_path()
    fast = call(pipe, occupancy=grid, cameras=rig).images
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.allclose(call(loaded, occupancy=grid, cameras=rig).images, fast, atol=1e-4)


@pytest.mark.slow
def test_compiled_gives_the_plain_numbers(builders, call, grid, rig):
    pipe = builders[0]()
    plain = call(pipe, occupancy=grid, cameras=rig).images
    pipe.enable_fast_path(compile=True, backend="aot_eager")
    assert pipe.unet._compiled_call_impl is not None
    assert torch.allclose(call(pipe, occupancy=grid, cameras=rig).images, plain, atol=1e-4)
    pipe.disable_fast_path()
    assert pipe.unet._compiled_call_impl is None


def test_graphs_are_not_recorded_on_a_cpu(builders, call, grid, rig):
    pipe = builders[0]()
    pipe.enable_fast_path(cuda_graph=True)
    call(pipe, occupancy=grid, cameras=rig)
    assert pipe._recordings == {}


@pytest.mark.gpu
@pytest.mark.parametrize("steps", [4])
def test_recorded_steps_give_the_plain_numbers(builders, call, grid, other_grid, rig, steps):
    pipe = builders[0]().to("cuda")
    inputs = {"cameras": rig, "num_inference_steps": steps, "control_guidance_end": 0.5}
    plain = [call(pipe, text, occupancy=g, **inputs).images for text, g in (("a", grid), ("a snowy city", other_grid))]
    pipe.enable_fast_path(cuda_graph=True)
    # The second call replays the first one's recordings with another text, another grid and another noise.
    fast = [call(pipe, text, occupancy=g, **inputs).images for text, g in (("a", grid), ("a snowy city", other_grid))]
    assert len(pipe._recordings) == 2  # with and without the ControlNet
    for one, other in zip(fast, plain, strict=True):
        assert torch.allclose(one, other, atol=2e-3)
    assert not torch.allclose(fast[0], fast[1], atol=1e-2)
    # Weights that are replaced invalidate the recordings; weights changed in place do not need to.
    pipe.unet.conv_out.weight.data.zero_()
    still = call(pipe, "a", occupancy=grid, **inputs).images
    pipe.unet.conv_out.weight.data = torch.zeros_like(pipe.unet.conv_out.weight)
    again = call(pipe, "a", occupancy=grid, **inputs).images
    assert torch.allclose(still, again, atol=1e-4)
    assert not torch.allclose(again, fast[0], atol=1e-2)


def test_blocks_can_be_compiled_by_themselves(builders, call, grid, rig):
    pipe = builders[0]()
    plain = call(pipe, occupancy=grid, cameras=rig).images
    pipe.enable_fast_path()
    for model in (pipe.unet, pipe.controlnet):
        model.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert torch.allclose(call(pipe, occupancy=grid, cameras=rig).images, plain, atol=1e-4)
