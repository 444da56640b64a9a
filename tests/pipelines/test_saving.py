"""Saved folders: the three ways to load them, stock bases, released checkpoints, LoRA."""

import inspect
import json
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, PNDMScheduler, UNet2DConditionModel, UniPCMultistepScheduler
from diffusers.hooks.group_offloading import ModuleGroup
from diffusers.utils import logging

from syntheocc import SyntheOccPipeline
from syntheocc.models.presets import tiny_components


@pytest.fixture(scope="module")
def saved(tmp_path_factory, builders):
    """(folder, pipeline) of one saved pipeline."""
    pipe = builders[0]()
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return folder, pipe


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_folder(saved):
    index = json.loads((saved[0] / "model_index.json").read_text())
    assert index["_class_name"] == "SyntheOccPipeline"
    assert index["unet"] == ["syntheocc.models.unet_multiview", "MultiviewUNet2DConditionModel"]
    assert index["controlnet"] == ["syntheocc.models.controlnet_mpi", "MPIControlNetModel"]
    assert "from syntheocc.pipelines import SyntheOccPipeline" in (saved[0] / "pipeline.py").read_text()


def test_own_from_pretrained(saved, call, grid, rig):
    loaded = quiet(SyntheOccPipeline.from_pretrained(saved[0]))
    expected = call(saved[1], occupancy=grid, cameras=rig)
    output = call(loaded, occupancy=grid, cameras=rig)
    assert torch.equal(output.images, expected.images)
    assert torch.equal(output.mpi.labels, expected.mpi.labels)


def test_generic_from_pretrained(saved, call, grid, rig):
    loaded = quiet(DiffusionPipeline.from_pretrained(saved[0]))
    assert type(loaded) is SyntheOccPipeline
    assert torch.equal(
        call(loaded, occupancy=grid, cameras=rig).images, call(saved[1], occupancy=grid, cameras=rig).images
    )


def test_from_pretrained_with_nothing_imported(saved, tmp_path):
    script = f"""
import sys
from diffusers import DiffusionPipeline
assert not any(name.startswith("syntheocc") for name in sys.modules)
pipe = DiffusionPipeline.from_pretrained({str(saved[0])!r}, custom_pipeline="pipeline", trust_remote_code=True)
print(type(pipe).__module__, type(pipe.unet).__name__)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["syntheocc.pipelines.pipeline_syntheocc", "MultiviewUNet2DConditionModel"]


def test_saved_twice_and_in_half_precision(saved, tmp_path):
    loaded = SyntheOccPipeline.from_pretrained(saved[0], dtype=torch.float16)
    assert loaded.unet.dtype == loaded.controlnet.dtype == loaded.vae.dtype == torch.float16
    loaded.save_pretrained(tmp_path)
    again = SyntheOccPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    for name, value in loaded.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A stock Stable Diffusion folder with PNDM, as SD 1.5 and 2.1 have it."""
    folder = tmp_path_factory.mktemp("base")
    parts = tiny_components()
    torch.manual_seed(0)
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    stock = UNet2DConditionModel.from_config({k: v for k, v in parts["unet"].config.items() if k in known})
    stock.save_pretrained(folder / "unet")
    for name in ("vae", "text_encoder", "tokenizer"):
        parts[name].save_pretrained(folder / name)
    PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1).save_pretrained(
        folder / "scheduler"
    )
    return folder


def test_from_base(base, call, grid, rig):
    pipe = quiet(SyntheOccPipeline.from_base(base, encoder_kind="categorical", num_planes=8, near=3.0, step=3.0))
    assert type(pipe.scheduler) is UniPCMultistepScheduler
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"
    assert not pipe.unet.training and not pipe.controlnet.training
    first = call(pipe, occupancy=grid, cameras=rig).images
    assert first.shape == (1, 3, 3, 32, 48)
    # Nothing is trained yet: neither the condition nor the neighbours change anything.
    off = call(pipe, occupancy=grid, cameras=rig, controlnet_conditioning_scale=0.0).images
    assert torch.allclose(first, off, atol=1e-5)
    half = SyntheOccPipeline.from_base(base, dtype=torch.float16, num_planes=4)
    assert half.unet.dtype == half.controlnet.dtype == half.text_encoder.dtype == torch.float16
    video = SyntheOccPipeline.from_base(base, num_planes=4, unet_kwargs={"cross_frame_attention": True})
    assert video.unet.config.cross_frame_attention


def test_bases_that_cannot_be(base, tmp_path):
    with pytest.raises(ValueError, match="stable-diffusion-2-1"):
        SyntheOccPipeline.from_base(tmp_path / "not" / "there")
    with pytest.raises(ValueError, match=r"'unet/config.json'\] not there"):
        (tmp_path / "part").mkdir()
        for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
            (tmp_path / "part" / name).symlink_to(base / name)
        SyntheOccPipeline.from_base(tmp_path / "part")
    with pytest.raises(ValueError, match="Give a local folder"):
        SyntheOccPipeline.from_base("nobody/no-such-model", local_files_only=True)
    xl = tmp_path / "xl"
    xl.mkdir()
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        (xl / name).symlink_to(base / name)
    (xl / "unet").mkdir()
    config = json.loads((base / "unet" / "config.json").read_text())
    (xl / "unet" / "config.json").write_text(json.dumps({**config, "addition_embed_type": "text_time"}))
    with pytest.raises(ValueError, match="Stable Diffusion XL"):
        SyntheOccPipeline.from_base(xl)
    with pytest.raises(ValueError, match=r"no argument \['torch_dtype'\]"):
        SyntheOccPipeline.from_base(base, torch_dtype=torch.float16)


def truncated(folder, file, target):
    shutil.copytree(folder, target)
    content = (target / file).read_bytes()
    (target / file).write_bytes(content[: len(content) // 2])
    return target


@pytest.mark.parametrize("file", ["text_encoder/model.safetensors", "tokenizer/tokenizer.json"])
def test_damaged_bases_are_named(base, tmp_path, file):
    with pytest.raises(ValueError, match=rf"{file.split('/')[0]}/ of .* could not be loaded(.|\n)*local folder"):
        SyntheOccPipeline.from_base(truncated(base, file, tmp_path / "base"), num_planes=4)


def test_folders_that_are_no_pipeline(saved, base, tmp_path):
    with pytest.raises(ValueError, match="from_base"):
        SyntheOccPipeline.from_pretrained(base)
    with pytest.raises(ValueError, match="multi-view already"):  # its trained layers would be lost without a word
        SyntheOccPipeline.from_base(saved[0])
    with pytest.raises(ValueError, match="Give a local folder that SyntheOccPipeline.save_pretrained wrote"):
        SyntheOccPipeline.from_pretrained("nobody/no-such-model", local_files_only=True)
    damaged = truncated(saved[0], "controlnet/diffusion_pytorch_model.safetensors", tmp_path / "damaged")
    with pytest.raises(ValueError, match="controlnet(.|\n)*Give a local folder"):
        SyntheOccPipeline.from_pretrained(damaged)


def test_fresh_layers_come_from_the_generator(base):
    def fresh(seed):
        state = torch.random.get_rng_state()
        pipe = SyntheOccPipeline.from_base(base, num_planes=4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        encoder = pipe.controlnet.controlnet_cond_embedding.plane_class_embedding
        return [encoder, *(p for name, p in pipe.unet.multiview_parameters() if name.endswith("to_q.weight"))]

    first, again, other = fresh(0), fresh(0), fresh(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.fixture(scope="module")
def released(tmp_path_factory, builders):
    """(folder, pipeline): the two networks in the layout, and with the config keys, of the released weights."""
    pipe = builders[0](encoder_kind="scalar", num_planes=256, near=0.2, step=0.2, pixel_origin="corner")
    folder = tmp_path_factory.mktemp("released")
    unet, controlnet = dict(pipe.unet.config), dict(pipe.controlnet.config)
    for name in ("cross_frame_attention", "_name_or_path"):
        unet.pop(name, None)
    own = ("encoder_kind", "num_planes", "near", "step", "groups", "pixel_origin", "samples_per_cell", "taxonomy")
    for name in (*own, "num_classes", "free_class", "_name_or_path"):
        controlnet.pop(name, None)
    unet |= {
        "_class_name": "UNet2DConditionModelMultiview",
        "_diffusers_version": "0.26.0.dev0",
        "neighboring_view_pair": {str(i): [(i - 1) % 6, (i + 1) % 6] for i in range(6)},
        "trainable_state": "only_new",
        "img_size": [448, 800],
    }
    controlnet |= {"_class_name": "ControlNetModel1x1", "_diffusers_version": "0.26.0.dev0"}
    for name, model, config in (("unet", pipe.unet, unet), ("controlnet", pipe.controlnet, controlnet)):
        model.save_pretrained(folder / name)
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder, pipe


def test_from_original(base, released, call, grid, rig):
    folder, source = released
    pipe = quiet(SyntheOccPipeline.from_original(base, folder))
    assert pipe.controlnet.config.pixel_origin == "corner"
    assert type(pipe.scheduler) is UniPCMultistepScheduler
    for mine, theirs in ((pipe.unet, source.unet), (pipe.controlnet, source.controlnet)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value), name
    assert call(pipe, occupancy=grid, cameras=rig).images.shape == (1, 3, 3, 32, 48)
    # Where a call names no size, it is the size they were trained at.
    _, height, width = pipe.check_inputs(prompt="a", occupancy=grid, cameras=rig)
    assert (height, width) == (448, 800)


def test_checkpoints_that_cannot_be(base, released, tmp_path):
    with pytest.raises(ValueError, match="lilelife/SyntheOcc"):
        SyntheOccPipeline.from_original(base, tmp_path / "no" / "where")
    with pytest.raises(ValueError, match="could not be downloaded"):
        SyntheOccPipeline.from_original(base, "nobody/no-such-checkpoint", local_files_only=True)
    with pytest.raises(ValueError, match="config.json"):
        SyntheOccPipeline.from_original(base, tmp_path)
    with pytest.raises(ValueError, match=r"no argument \['num_planes'\]"):
        SyntheOccPipeline.from_original(base, released[0], num_planes=8)


def test_lora_of_unet_and_text_encoder(builders, call, grid, rig, tmp_path):
    peft = pytest.importorskip("peft")
    pipe = builders[0]()
    before = call(pipe, occupancy=grid, cameras=rig).images
    unet_names, text_names = ["attn1.to_q", "attn4.to_k", "connector"], ["q_proj"]
    torch.manual_seed(0)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=unet_names, init_lora_weights=False))
    pipe.text_encoder.add_adapter(
        peft.LoraConfig(r=2, lora_alpha=2, target_modules=text_names, init_lora_weights=False)
    )
    trained = call(pipe, occupancy=grid, cameras=rig).images
    assert not torch.allclose(trained, before, atol=1e-3)
    half = call(pipe, occupancy=grid, cameras=rig, cross_attention_kwargs={"scale": 0.5}).images
    assert not torch.allclose(half, trained, atol=1e-3)
    assert torch.equal(call(pipe, occupancy=grid, cameras=rig).images, trained)  # the scale was for one call
    off = call(pipe, occupancy=grid, cameras=rig, cross_attention_kwargs={"scale": 0.0}).images
    assert torch.allclose(off, before, atol=1e-4)

    SyntheOccPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=peft.get_peft_model_state_dict(pipe.unet),
        text_encoder_lora_layers=peft.get_peft_model_state_dict(pipe.text_encoder),
    )
    logging.set_verbosity_error()
    fresh = builders[0]()
    fresh.load_lora_weights(tmp_path)
    logging.set_verbosity_warning()
    assert torch.allclose(call(fresh, occupancy=grid, cameras=rig).images, trained, atol=1e-5)
    fresh.unload_lora_weights()
    assert torch.allclose(call(fresh, occupancy=grid, cameras=rig).images, before, atol=1e-5)


def test_model_offloading(builders, call, grid, rig):
    pipe = builders[0]()
    expected = call(pipe, occupancy=grid, cameras=rig, mpi_guidance_scale=2.0).images
    pipe.enable_model_cpu_offload(device="cpu")
    loaded, offloaded = [], []
    hook = pipe.controlnet._hf_hook
    before, offload = hook.pre_forward, hook.init_hook

    def pre_forward(module, *args, **kwargs):
        loaded.append(module)
        return before(module, *args, **kwargs)

    def init_hook(module):
        offloaded.append(module)
        return offload(module)

    hook.pre_forward, hook.init_hook = pre_forward, init_hook
    output = call(pipe, occupancy=grid, cameras=rig, mpi_guidance_scale=2.0)
    assert torch.equal(output.images, expected)
    assert len(loaded) == 2 + 2  # to encode the condition and the null condition, and once a step
    assert offloaded[0] is pipe.controlnet  # before the VAE needs its place


def test_group_offloading_brings_the_encoder(builders, call, grid, rig, monkeypatch):
    pipe = builders[0]()
    expected = call(pipe, occupancy=grid, cameras=rig).images
    cpu, brought = torch.device("cpu"), set()
    pipe.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )
    onload = ModuleGroup.onload_

    def record(group):
        onload(group)
        brought.update(id(p) for p in group.parameters)
        brought.update(id(p) for module in group.modules for p in module.parameters())

    monkeypatch.setattr(ModuleGroup, "onload_", record)
    encoder, missing = pipe.controlnet.controlnet_cond_embedding, []
    encoder.position_encoder[2].register_forward_hook(
        lambda *_: missing.extend(name for name, p in encoder.named_parameters() if id(p) not in brought)
    )
    assert torch.equal(call(pipe, occupancy=grid, cameras=rig).images, expected)
    assert brought and not missing
