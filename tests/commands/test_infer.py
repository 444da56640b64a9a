import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from syntheocc.commands import exit_status, mpi
from syntheocc.commands.generate import GenerateConfig, InferConfig, run
from syntheocc.commands.generate_sample import sample_seed
from syntheocc.engine.files import read_json
from syntheocc.engine.flags import parse_flags
from syntheocc.engine.unpickling import safe_load
from syntheocc.occupancy import NUSCENES_CAMERAS

PUBLISHED = (
    "--pretrained_model_name_or_path=x --output_dir=x --width=96 --height=64 --learning_rate=2e-5 "
    "--num_train_epochs=6 --mixed_precision=fp16 --num_validation_images=2 --validation_steps=1000 --ctrl_channel=257 "
    "--checkpointing_steps=5000 --checkpoints_total_limit=10 --enable_xformers_memory_efficient_attention "
    "--report_to=wandb --use_cbgs=True --mtp_path=samples_syntheocc_surocc --resume_from_checkpoint=latest "
    "--dataroot_path=d --seed=3 --max_train_steps=9 --gradient_accumulation_steps=2 --gradient_checkpointing "
    "--lr_scheduler=constant --lr_warmup_steps=500 --use_8bit_adam --dataloader_num_workers=4 --adam_beta1=0.9 "
    "--adam_beta2=0.999 --adam_weight_decay=1e-2 --adam_epsilon=1e-8 --max_grad_norm=1 --push_to_hub --hub_model_id=x "
    "--allow_tf32 --proportion_empty_prompts=0.1 --controlnet_model_name_or_path=x --revision=main --variant=fp16 "
    "--train_batch_size=1 --tokenizer_name=x --logging_dir=logs --tracker_project_name=t --save_img_path=s "
    "--model_path_infer=m --curr_gpu=0 --gen_train_or_val=train --cfg_scale=7.0"
).split()


def config(dataset, model, save, **more):
    given = {
        "dataroot_path": dataset.root,
        "info_path": (str(dataset.info),),
        "save_img_path": save,
        "model_path_infer": str(model),
        "occ_kind": "syntheocc_coarse",
        "width": 96,
        "height": 64,
        "num_inference_steps": 1,
        "cfg_scale": 1.0,
    }
    return GenerateConfig(**(given | more))


def views(dataset, save, i):
    return [save / name / dataset.frames[i].image_paths[name].name for name in NUSCENES_CAMERAS]


def test_one_bad_sample_is_skipped_and_the_rest_is_complete(tiny_dataset, tiny_model, tmp_path, capsys):
    save = tmp_path / "out"
    photo = tiny_dataset.frames[1].image_paths["CAM_BACK"]
    whole = photo.read_bytes()
    photo.write_bytes(whole[:200])
    job = config(tiny_dataset, tiny_model, save)
    assert exit_status(run, job) == 1
    said = capsys.readouterr().out
    assert f"wrote six views each of 2 samples to {save}, 1 failed" in said and "failed: token1" in said
    assert photo.name in said

    for i in (0, 2):
        for path in views(tiny_dataset, save, i):
            with Image.open(path) as image:
                assert image.size == (1600, 900)
        with Image.open(save / "strips" / f"token{i}.jpg") as image:
            assert image.size == (6 * 96 + 5 * 4, 3 * 64 + 2 * 4), "condition, generated and real rows"
        with Image.open(save / "strips" / f"token{i}_3d.jpg") as image:
            assert image.width == 1080 and image.height > 720, "solid voxels and a legend"
        copied = save / "labels" / "syntheocc_coarse" / tiny_dataset.label_path(i).relative_to(tiny_dataset.root)
        assert copied.read_bytes() == tiny_dataset.label_path(i).read_bytes()
        labels = read_json(save / "labels" / f"token{i}.json")
        (box,) = labels["boxes"]
        assert (
            box["name"] == "car" and np.allclose(box["center"], [11.0 + 5 * i, 0, 0]) and box["velocity"] == [None] * 2
        )
        assert np.allclose(box["size_lwh"], [4.0, 1.5, 1.5]) and labels["cameras"]["CAM_BACK"]["width"] == 1600
    assert not any(path.exists() for path in views(tiny_dataset, save, 1))
    manifest = read_json(save / "manifest.json")
    assert [sample["token"] for sample in manifest["samples"]] == ["token0", "token2"]
    assert list(manifest["failed"]) == ["token1"] and manifest["settings"]["seed"] == 0
    assert manifest["samples"][0]["seed"] == sample_seed(0, "token0")

    # run again: only what is missing is made, also after one of its files was lost
    photo.write_bytes(whole)
    lost = views(tiny_dataset, save, 0)[3]
    kept = lost.read_bytes()
    lost.unlink()
    (save / "records" / "token2.json").unlink()
    (save / "records" / "token2.json").touch()  # what a machine that lost its power may leave
    assert exit_status(run, job) == 0
    assert "of 3 samples" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in views(tiny_dataset, save, 2)}
    views(tiny_dataset, save, 1)[0].unlink()
    assert exit_status(run, job) == 0
    assert "of 1 sample to" in (said := capsys.readouterr().out) and "2 were there already" in said
    assert all(path.stat().st_mtime_ns == before[path] for path in before), "a finished sample was made again"
    assert lost.read_bytes() == kept, "the same seed and token give the same picture"
    assert len(read_json(save / "manifest.json")["samples"]) == 3

    # nothing left: not even the model is looked at; other settings are not mixed in
    assert exit_status(run, config(tiny_dataset, tiny_model, save)) == 0
    assert exit_status(run, config(tiny_dataset, tiny_model, save, seed=1)) == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tmp*")), "half a file was left"


def test_the_published_command_alone_and_on_two_ranks_gives_the_same(
    tiny_dataset, tiny_model, tmp_path, launch, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the launched ranks see no GPU either
    size = {"height": 8, "width": 12, "num_planes": (256,), "occ_kind": "syntheocc_coarse"}
    assert mpi.run(mpi.MPIConfig(dataroot_path=tiny_dataset.root, info_path=(str(tiny_dataset.info),), **size)) == 0
    given = [
        f"--dataroot_path={tiny_dataset.root}",
        f"--info_path={tiny_dataset.info}",
        f"--model_path_infer={tiny_model}",
        "--mtp_path=samples_syntheocc_surocc",
        "--width=96",
        "--height=64",
        "--ctrl_channel=257",
        "--num_inference_steps=1",
        "--mixed_precision=fp16",
        "--enable_xformers_memory_efficient_attention",
        "--use_cbgs=True",
        "--report_to=wandb",
    ]
    alone = parse_flags(InferConfig, [*given, f"--save_img_path={tmp_path / 'alone'}"], environ={})
    assert exit_status(run, alone) == 0
    said = capsys.readouterr().out
    assert "only training uses them: --report_to --use_cbgs" in said and "on the CPU, in float32" in said
    shared = launch("infer.py", *given, ranks=2, EXP_NAME="run", SAVE_IMG_DIR=str(tmp_path / "shared"))
    assert shared.returncode == 0, shared.stderr
    assert "of 3 samples" in shared.stdout
    for i in range(3):
        pairs = zip(
            views(tiny_dataset, tmp_path / "alone", i), views(tiny_dataset, tmp_path / "shared", i), strict=True
        )
        assert all(a.read_bytes() == b.read_bytes() for a, b in pairs), f"sample {i} depends on the number of ranks"
    manifests = [read_json(tmp_path / name / "manifest.json")["samples"] for name in ("alone", "shared")]
    assert manifests[0] == manifests[1] and len(manifests[0]) == 3


def test_every_published_flag_is_accepted():
    job = parse_flags(InferConfig, PUBLISHED, environ={})
    assert (job.width, job.height, job.cfg_scale, job.seed, job.gen_train_or_val) == (96, 64, 7.0, 3, "train")
    assert job.use_cbgs is True and job.enable_xformers_memory_efficient_attention is True
    with pytest.raises(SystemExit):
        parse_flags(InferConfig, [*PUBLISHED, "--use_cgbs=True"], environ={})


def test_the_environment_contract_names_the_folders():
    environ = {"EXP_NAME": "mine", "MODEL_DIR": "sd", "DATA_USED": "mpis", "TRAIN_OR_VAL": "train"}
    job = parse_flags(InferConfig, [], environ)
    assert (str(job.save_img_path), job.model_path_infer) == ("ckp/mine/samples", "./ckp/mine")
    assert (job.pretrained_model_name_or_path, job.mtp_path, job.gen_train_or_val) == ("sd", "mpis", "train")
    assert str(parse_flags(InferConfig, [], environ | {"SAVE_IMG_DIR": "vis"}).save_img_path) == "vis"
    assert parse_flags(InferConfig, [], environ | {"OUTPUT_DIR": "out"}).model_path_infer == "out"


def test_captions_of_a_file_are_what_is_drawn(tiny_dataset, tiny_model, tmp_path):
    """One text for a sample, texts by camera for another, the prompt for the third."""
    written = tmp_path / "captions.json"
    written.write_text('{"token0": "rain", "token1": {"CAM_BACK": "a bus"}}')
    job = config(tiny_dataset, tiny_model, tmp_path / "out", caption_path=written, prompt="a street")
    assert run(job) == 0
    prompts = [sample["prompt"] for sample in read_json(tmp_path / "out" / "manifest.json")["samples"]]
    assert prompts == ["rain", ["a street"] * 4 + ["a bus", "a street"], "a street"]
    written.write_text("[]")
    with pytest.raises(ValueError, match="captions.json"):
        run(job)


def test_bad_settings_end_before_work(tiny_dataset, tiny_model, tmp_path, capsys):
    def refused(**more):
        assert exit_status(run, config(tiny_dataset, tiny_model, tmp_path / "out", **more)) == 2
        return capsys.readouterr().err

    assert "utils/gen_mtp.py" in refused(occ_kind="mpi")
    assert "takes 257" in refused(ctrl_channel=97)
    assert "model_index.json" in refused(model_path_infer=str(tmp_path))
    assert "--occ_path" in refused(occ_kind="occ3d")
    assert "no trained model at ./ckp/none" in refused(model_path_infer="./ckp/none")
    assert "--occ_kind=mpi reads none" in refused(occ_kind="mpi", occ_path=tmp_path)
    assert str(tiny_dataset.info) in refused(save_img_path=tiny_dataset.info), "a file in the folder's place"
    assert not (tmp_path / "out").exists(), "a refused job leaves nothing that the next one would trip over"
    with pytest.raises(ValueError, match="multiples of 8"):
        GenerateConfig(height=450)
    with pytest.raises(ValueError, match="cfg_scale must be a finite number, got nan"):
        GenerateConfig(cfg_scale=float("nan"))


def test_a_sample_that_lacks_a_camera_is_listed(tiny_dataset, tiny_model, tmp_path, capsys):
    infos = safe_load(tiny_dataset.info)
    del infos["data_list"][0]["images"]["CAM_BACK"]
    tiny_dataset.info.write_bytes(pickle.dumps(infos))
    assert exit_status(run, config(tiny_dataset, tiny_model, tmp_path / "out")) == 1
    said = capsys.readouterr().out
    assert "six views each of 2 samples" in said and "failed: token0: has no CAM_BACK" in said


def test_mpi_files_that_do_not_suit_are_refused_before_work(tiny_dataset, tiny_model, tmp_path, capsys):
    folder = tiny_dataset.root / "samples_syntheocc_surocc"
    folder.mkdir()
    (folder / mpi.SETTINGS_FILE).write_text(json.dumps({"pixel_origin": "center"}))
    assert exit_status(run, config(tiny_dataset, tiny_model, tmp_path / "out", occ_kind="mpi")) == 2
    said = capsys.readouterr().err
    assert "--pixel_origin=corner --height=8 --width=12" in said and "views of 64x96" in said
    (folder / mpi.SETTINGS_FILE).unlink()  # as released: 56x100, corner
    assert exit_status(run, config(tiny_dataset, tiny_model, tmp_path / "out", occ_kind="mpi", height=448)) == 2
    said = capsys.readouterr().err
    assert "have width 100" in said and "--width=12" in said and "pixel_origin" not in said


def test_seeds_differ_between_samples_and_runs_and_stay():
    seeds = {sample_seed(seed, token) for seed in (0, 1) for token in ("a", "b")}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(0, "a") == 0x4EF9E2FD5C77C7F3, "a pinned value: old results must stay reproducible"
