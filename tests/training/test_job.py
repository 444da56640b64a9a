"""Whole jobs, as users start them: from a Stable Diffusion folder to a pipeline that loads."""

import json
import shutil

import pytest
import torch

from syntheocc import SyntheOccPipeline
from syntheocc.commands.mpi import MPIConfig
from syntheocc.commands.mpi import run as write_mpis
from syntheocc.engine.trackers import read_log
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.training.config import TrainConfig
from syntheocc.training.train import run


def curve(folder, name="loss"):
    """step -> a scalar of the log."""
    return {line["step"]: line[name] for line in read_log(folder / "log.jsonl")}


def test_a_stable_diffusion_folder_becomes_a_pipeline(street, capfd):
    """Two steps from a stock base; what is saved loads, draws, and has learnt in the trained layers only."""
    assert run(street.config(learning_rate=1e-3)) == 0
    out = street.root / "out"
    assert "6 samples of 6 views, 2 steps of 2 samples (1 x 2 on 1 processes), float32" in capfd.readouterr().err
    assert list(curve(out)) == [1, 2]
    pipe = SyntheOccPipeline.from_pretrained(out)
    base = SyntheOccPipeline.from_base(street.sd, generator=torch.Generator().manual_seed(0))
    for part in ("vae", "text_encoder", "unet", "controlnet"):
        changed = {
            name
            for name, value in getattr(pipe, part).state_dict().items()
            if not torch.equal(value, getattr(base, part).state_dict()[name])
        }
        assert bool(changed) == (part in ("unet", "controlnet")), part
        if part == "unet":
            assert all({"attn4", "norm4", "connector"} & set(name.split(".")) for name in changed)
    grid = street.config().read_grid(street.frames[0], "syntheocc_coarse")
    pipe.set_progress_bar_config(disable=True)
    images = pipe("a street", occupancy=grid, cameras=street.frames[0].cameras, num_inference_steps=1).images[0]
    assert [image.size for image in images] == [(48, 32)] * 6, "it draws the size it was trained at"
    assert "| max_train_steps | 2 |" in (out / "README.md").read_text()


def test_cached_latents_give_the_curve_of_the_pictures(street):
    flags = {"learning_rate": 1e-3, "checkpointing_steps": 0, "max_train_steps": 3}
    assert run(street.config(output_dir=street.root / "pictures", **flags)) == 0
    assert run(street.config(output_dir=street.root / "latents", cache_latents=True, **flags)) == 0
    first, second = curve(street.root / "pictures"), curve(street.root / "latents")
    assert first.keys() == second.keys()
    for step in first:
        assert first[step] == pytest.approx(second[step], rel=1e-4)


def test_mpi_files_give_the_curve_of_rendering(street):
    """The published way, from files of gen_mtp, and rendering with the files' pixel origin: the same losses."""
    settings = {"dataroot_path": street.root, "info_path": (str(street.info),), "occ_kind": "syntheocc_coarse"}
    write_mpis(MPIConfig(**settings, mtp_path="mpis", height=4, width=6, num_planes=(256,)))
    flags = {"learning_rate": 1e-3, "checkpointing_steps": 0, "max_train_steps": 3}
    files = street.config(output_dir=street.root / "files", occ_kind=None, mtp_path="mpis", **flags)
    assert files.condition_kind == "mpi" and run(files) == 0
    assert run(street.config(output_dir=street.root / "rendered", pixel_origin="corner", **flags)) == 0
    assert curve(street.root / "files") == curve(street.root / "rendered")
    config = SyntheOccPipeline.from_pretrained(street.root / "files").controlnet.config
    assert config.pixel_origin == "corner"


def test_less_memory_is_the_same_curve(street):
    """Gradient checkpointing, and a sample at a time instead of two; xformers is asked for, and is not there."""
    flags = {"learning_rate": 1e-3, "checkpointing_steps": 0, "max_train_steps": 3}
    assert run(street.config(output_dir=street.root / "plain", train_batch_size=2, **flags)) == 0
    small = {"gradient_checkpointing": True, "enable_xformers_memory_efficient_attention": True}
    assert run(street.config(output_dir=street.root / "small", **small, **flags)) == 0
    first, second = curve(street.root / "plain"), curve(street.root / "small")
    assert list(first) == [1, 2, 3]
    for step in first:
        assert first[step] == pytest.approx(second[step], rel=1e-4)


def test_one_camera_is_a_rig(street):
    """Nothing to look at across views: the cross-view layers get no gradient, and nothing breaks."""
    info = street.root / "front.pkl"
    frames = [frame.select_cameras(["CAM_FRONT"]) for frame in street.frames]
    write_infos(info, frames, style="openoccupancy", data_root=street.root)
    assert run(street.config(info_path=(str(info),), validation_steps=2, num_validation_images=1)) == 0
    assert list(curve(street.root / "out")) == [1, 2]
    assert len(list((street.root / "out" / "validation").rglob("*.jpg"))) == 1


def test_the_average_is_what_is_saved(street):
    """With a decay of 0 averages are the weights themselves; with warm-up they lag behind at the second step."""
    flags = {"learning_rate": 1e-2, "text_dropout": 0.0, "mpi_dropout": 0.0}
    weights = {}
    for name, averaged in (("last", {}), ("averaged", {"use_ema": True}), ("same", {"use_ema": True, "ema_decay": 0})):
        out = street.root / name
        assert run(street.config(output_dir=out, **flags, **averaged)) == 0
        weights[name] = SyntheOccPipeline.from_pretrained(out).controlnet.state_dict()["conv_in.weight"]
    assert torch.equal(weights["same"], weights["last"])
    assert not torch.allclose(weights["averaged"], weights["last"], atol=1e-5)


def test_clips_train_the_layers_of_video(street):
    assert run(street.config(num_frames=3, learning_rate=1e-3)) == 0
    unet = SyntheOccPipeline.from_pretrained(street.root / "out").unet
    assert unet.config.cross_frame_attention
    base = SyntheOccPipeline.from_base(street.sd, generator=torch.Generator().manual_seed(0),
                                       unet_kwargs={"cross_frame_attention": True}).unet.state_dict()  # fmt: skip
    changed = [name for name, value in unet.state_dict().items() if not torch.equal(value, base[name])]
    assert changed and not any({"attn4", "norm4", "connector"} & set(name.split(".")) for name in changed)


def test_damaged_samples_are_replaced_and_listed(street):
    street.frames[1].image_paths["CAM_BACK"].write_bytes(b"\x89PNG damaged")
    street.label(4).unlink()
    assert run(street.config(max_train_steps=6)) == 0
    listed = [json.loads(line) for line in (street.root / "out" / "bad_samples.jsonl").read_text().splitlines()]
    assert {entry["token"] for entry in listed} == {"token1", "token4"}
    assert any("CAM_BACK" in entry["reason"] for entry in listed)


def test_the_loss_is_what_the_flags_say(street):
    """Without weights it is the plain mean squared error; the prediction type goes into the saved scheduler."""
    weighted, plain = street.root / "weighted", street.root / "plain"
    assert run(street.config(output_dir=weighted)) == 0
    assert run(street.config(output_dir=plain, foreground_weights=False, prediction_type="v_prediction")) == 0
    assert all(curve(weighted)[step] > curve(weighted, "mse")[step] for step in (1, 2)), "a car is in sight"
    assert curve(plain) == pytest.approx(curve(plain, "mse"), rel=1e-6)
    assert SyntheOccPipeline.from_pretrained(plain).scheduler.config.prediction_type == "v_prediction"
    assert SyntheOccPipeline.from_pretrained(weighted).scheduler.config.prediction_type == "epsilon"


def test_class_balance_draws_the_rare_class_as_often(street):
    """Four samples with cars and two with buses: 6 // 11 rounds up to one draw of each, two samples an epoch."""
    config = street.config(use_cbgs=True, max_train_steps=None, num_train_epochs=3)
    assert run(config) == 0
    assert list(curve(street.root / "out")) == [1, 2, 3]


def test_validation_pictures_and_trackers(street):
    config = street.config(validation_steps=2, num_validation_images=2, report_to="none", mixed_precision="bf16")
    assert run(config) == 0
    folder = street.root / "out" / "validation" / "step-000002"
    assert sorted(path.name for path in folder.iterdir()) == ["token0.jpg", "token3.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained_model_name_or_path": "./no/such"}, "Give a local folder of a Stable Diffusion"),
        ({"occ_kind": "occ3d"}, "labels of kind occ3d.* give it as --occ_path"),
        ({"occ_kind": None, "mtp_path": "mpis"}, "no MPI files at .*mpis"),
        ({"info_path": ("no.pkl",)}, "no info file no.pkl"),
        ({"report_to": "nothing"}, "'nothing' is no tracker"),
    ],
)
def test_what_is_missing_is_said_before_training(changes, message, street):
    with pytest.raises(ValueError, match=message):
        run(street.config(**changes))
    assert not (street.root / "out" / "log.jsonl").exists()


def test_a_tracker_and_a_folder_that_will_not_do_are_refused_before_latents_are_encoded(street):
    out = street.root / "out"
    with pytest.raises(ValueError, match="'paper' is no tracker"):
        run(street.config(cache_latents=True, report_to="paper"))
    (out / "checkpoint-7").mkdir(parents=True)
    with pytest.raises(ValueError, match="checkpoints of an earlier run .checkpoint-7."):
        run(street.config(cache_latents=True))
    assert not (out / "latents").exists()


def test_mpi_files_of_another_size_are_refused(street):
    settings = {"dataroot_path": street.root, "info_path": (str(street.info),), "occ_kind": "syntheocc_coarse"}
    write_mpis(MPIConfig(**settings, mtp_path="mpis", height=8, width=6, num_planes=(256,), max_samples=1))
    with pytest.raises(ValueError, match="mpis have height 8, training wants 4; .*--height=4"):
        run(street.config(occ_kind="mpi", mtp_path="mpis"))


@pytest.mark.real_data
def test_a_real_key_frame_from_its_sweep(real_data, sd_folder, tmp_path):
    """The key frame of scene-0061: 1600x900 photographs, occupancy built from the lidar sweep and the boxes."""
    root = real_data / "nuscenes_scene0061"
    config = TrainConfig(
        dataroot_path=root,
        info_path=(str(root / "info_mmdet3d_v1.1.pkl"),),
        occ_kind="lidar",
        pretrained_model_name_or_path=str(sd_folder),
        output_dir=tmp_path / "out",
        width=96,
        height=64,
        global_batch_size=1,
        max_train_steps=1,
        validation_steps=1,
        num_inference_steps=1,
        dataloader_num_workers=0,
        val_info_path=(str(root / "info_mmdet3d_v1.1.pkl"),),
    )
    assert run(config) == 0
    (line,) = read_log(tmp_path / "out" / "log.jsonl")
    assert 0.5 < line["mse"] < 2.0 and line["loss"] > line["mse"], "untrained, and foreground in sight"
    assert len(list((tmp_path / "out" / "validation").rglob("*.jpg"))) == 1
    shutil.rmtree(tmp_path / "out")
