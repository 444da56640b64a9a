"""Where training starts from, and that what it saves is what inference loads."""

import shutil

import pytest
import torch

from syntheocc import SyntheOccPipeline
from syntheocc.models.presets import tiny_components
from syntheocc.training.acceleration import prepare_for_training, trainable_parameters
from syntheocc.training.networks import PipelineSaver, load_networks, noise_scheduler
from syntheocc.training.step import SyntheOccStep


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    """A whole pipeline with a scalar encoder, corner convention and four rays a cell, in which nothing is zero."""
    parts = tiny_components(seed=3, encoder_kind="scalar", pixel_origin="corner", samples_per_cell=4)
    for parameter in [*parts["unet"].parameters(), *parts["controlnet"].parameters()]:
        parameter.data += 0.01
    folder = tmp_path_factory.mktemp("trained")
    SyntheOccPipeline(**parts).save_pretrained(folder)
    return folder


def same(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_fresh_job_starts_at_the_base(street):
    pipe = load_networks(street.config())
    again = load_networks(street.config())
    assert same(pipe.unet, again.unet) and same(pipe.controlnet, again.controlnet), "the seed makes the new layers"
    assert not same(pipe.controlnet, load_networks(street.config(seed=1)).controlnet)
    config = pipe.controlnet.config
    assert (config.encoder_kind, config.pixel_origin, config.conditioning_channels) == ("categorical", "center", 257)
    assert tuple(pipe.unet.config.img_size) == (32, 48)
    schedule = noise_scheduler(pipe)
    assert schedule.config.prediction_type == "epsilon" and schedule.config.beta_schedule == "scaled_linear"
    assert torch.equal(schedule.alphas_cumprod, pipe.scheduler.alphas_cumprod)


def test_flags_say_what_a_new_controlnet_reads(street):
    flags = {"encoder_kind": "scalar", "ctrl_channel": 97, "samples_per_cell": 4, "prediction_type": "v_prediction"}
    pipe = load_networks(street.config(**flags))
    config = pipe.controlnet.config
    assert (config.encoder_kind, config.groups, config.samples_per_cell) == ("scalar", 96, 4)
    assert pipe.controlnet.plane_spec.num_layers == 96
    assert noise_scheduler(pipe).config.prediction_type == pipe.scheduler.config.prediction_type == "v_prediction"


def test_a_new_controlnet_reads_mpi_files_as_they_were_made(street):
    files = {"height": 4, "width": 6, "pixel_origin": "corner", "samples_per_cell": 4}
    config = load_networks(street.config(occ_kind="mpi", mtp_path="mpis"), files).controlnet.config
    assert (config.pixel_origin, config.samples_per_cell) == ("corner", 4)


def test_clips_add_the_layers_of_video(street, trained_folder):
    assert load_networks(street.config(num_frames=2)).unet.config.cross_frame_attention
    pipe = load_networks(street.config(num_frames=2, controlnet_model_name_or_path=str(trained_folder)))
    assert pipe.unet.config.cross_frame_attention
    before = SyntheOccPipeline.from_pretrained(trained_folder).unet.state_dict()
    after = pipe.unet.state_dict()
    assert len(after) > len(before) and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("how", ["pipeline", "base", "two networks", "controlnet alone"])
def test_trained_weights_are_gone_on_from(how, street, trained_folder, tmp_path):
    trained = SyntheOccPipeline.from_pretrained(trained_folder)
    if how == "pipeline":
        config = street.config(controlnet_model_name_or_path=str(trained_folder))
    elif how == "base":
        config = street.config(pretrained_model_name_or_path=str(trained_folder))
    elif how == "two networks":
        for name in ("unet", "controlnet"):
            shutil.copytree(trained_folder / name, tmp_path / "networks" / name)
        config = street.config(controlnet_model_name_or_path=str(tmp_path / "networks"))
    else:
        config = street.config(controlnet_model_name_or_path=str(trained_folder / "controlnet"))
    pipe = load_networks(config)
    assert same(pipe.controlnet, trained.controlnet)
    assert same(pipe.unet, trained.unet) == (how != "controlnet alone")
    assert pipe.controlnet.config.encoder_kind == "scalar"


@pytest.mark.parametrize(
    "flags",
    [{"encoder_kind": "categorical"}, {"pixel_origin": "center"}, {"samples_per_cell": 1}, {"ctrl_channel": 97}],
)
def test_a_trained_controlnet_keeps_its_condition(flags, street, trained_folder):
    name = next(iter(flags))
    with pytest.raises(ValueError, match=f"--{name}=.* was trained with .*leave --{name} out"):
        load_networks(street.config(controlnet_model_name_or_path=str(trained_folder), **flags))


def test_what_is_no_model_is_named(street, tmp_path):
    with pytest.raises(ValueError, match="no trained weights to go on from"):
        load_networks(street.config(controlnet_model_name_or_path=str(tmp_path)))
    with pytest.raises(ValueError, match="no Stable Diffusion folder"):
        load_networks(street.config(pretrained_model_name_or_path=str(tmp_path)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_saved_is_what_was_trained(dtype, channels_last, street, tmp_path):
    """Trained layers as they are now, frozen ones as the base had them, whatever precision training rounds them to."""
    pipe = load_networks(street.config())
    before = {name: {k: v.clone() for k, v in getattr(pipe, name).state_dict().items()} for name in PARTS}
    step = SyntheOccStep(
        pipe.unet, pipe.controlnet, pipe.vae, pipe.text_encoder, noise_scheduler(pipe), max_train_steps=2,
        empty_input_ids=torch.zeros(77, dtype=torch.int64),
    )  # fmt: skip
    trained = trainable_parameters(step)
    save = PipelineSaver(pipe, step)
    prepare_for_training(step, dtype, channels_last=channels_last)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.5
    save(tmp_path)
    loaded = SyntheOccPipeline.from_pretrained(tmp_path)
    for part in PARTS:
        for name, value in getattr(loaded, part).state_dict().items():
            wanted = before[part][name] + (0.5 if f"{part}.{name}" in trained else 0.0)
            assert value.dtype == torch.float32 and torch.equal(value, wanted), (part, name)
    # and training goes on as before
    rounded = {parameter.dtype for name, parameter in step.named_parameters() if name not in trained}
    assert rounded == {dtype}


PARTS = ("vae", "text_encoder", "unet", "controlnet")


def test_half_precision_halves_the_folder(street, tmp_path):
    pipe = load_networks(street.config())
    step = SyntheOccStep(
        pipe.unet, pipe.controlnet, pipe.vae, pipe.text_encoder, noise_scheduler(pipe), max_train_steps=2,
        empty_input_ids=torch.zeros(77, dtype=torch.int64),
    )  # fmt: skip
    trainable_parameters(step)
    sizes = []
    for dtype in (torch.float32, torch.float16):
        PipelineSaver(pipe, step, dtype)(tmp_path / str(dtype))
        sizes.append(sum(path.stat().st_size for path in (tmp_path / str(dtype)).rglob("*.safetensors")))
    assert 0.4 < sizes[1] / sizes[0] < 0.6
    SyntheOccPipeline.from_pretrained(tmp_path / "torch.float16", dtype=torch.float16)
    assert pipe.unet.dtype == pipe.vae.dtype == torch.float32
