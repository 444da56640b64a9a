"""The flags: every published one, what they mean together, and what they refuse."""

import subprocess
import sys
import typing

import pytest

from syntheocc.engine.flags import parse_flags
from syntheocc.training.acceleration import Compiled, Trained
from syntheocc.training.config import TrainConfig

# specs/syntheocc.md section 3, with values as the published scripts pass them.
PUBLISHED = """
--pretrained_model_name_or_path=ckp/sd --output_dir=ckp/x --width=800 --height=448 --learning_rate=2e-5
--num_train_epochs=6 --train_batch_size=1 --mixed_precision=fp16 --num_validation_images=2 --validation_steps=1000
--checkpointing_steps=1000 --checkpoints_total_limit=5 --ctrl_channel=257 --enable_xformers_memory_efficient_attention
--report_to=wandb --use_cbgs=True --mtp_path=samples_syntheocc_surocc --resume_from_checkpoint=latest
--dataroot_path=data/nuscenes --seed=7 --max_train_steps=100 --gradient_accumulation_steps=2 --gradient_checkpointing
--lr_scheduler=constant --lr_warmup_steps=500 --use_8bit_adam --dataloader_num_workers=8 --adam_beta1=0.9
--adam_beta2=0.999 --adam_weight_decay=1e-2 --adam_epsilon=1e-8 --max_grad_norm=1 --push_to_hub --hub_model_id=me/x
--allow_tf32 --proportion_empty_prompts=0.2 --controlnet_model_name_or_path=ckp/c --revision=main --variant=fp16
--tokenizer_name=tok --logging_dir=logs --tracker_project_name=p --save_img_path=s --model_path_infer=m --curr_gpu=0
--gen_train_or_val=train --cfg_scale=7
""".split()


def parse(*flags, **environ):
    return parse_flags(TrainConfig, flags, environ)


def test_every_published_flag_is_taken(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    config = parse(*PUBLISHED)
    assert config.use_cbgs and config.gradient_checkpointing and config.use_8bit_adam and config.push_to_hub
    assert (config.width, config.height, config.seed, config.ctrl_channel) == (800, 448, 7, 257)
    assert config.dropped_text == 0.2 and config.condition_kind == "mpi" and config.learning_rate == 2e-5


def test_the_published_settings_are_the_defaults():
    config = parse()
    assert (config.learning_rate, config.adam_beta1, config.adam_beta2) == (2e-5, 0.9, 0.999)
    assert (config.adam_weight_decay, config.adam_epsilon, config.max_grad_norm) == (1e-2, 1e-8, 1.0)
    assert (config.lr_scheduler, config.lr_warmup_steps) == ("constant_with_warmup", 500)
    assert (config.num_train_epochs, config.width, config.height) == (6, 800, 448)
    assert config.prompt == "show a photorealistic street view image"
    assert config.batch_sizes(8) == (8, 1)


def test_help_answers_at_once():
    code = (
        "import sys\nfrom syntheocc.engine.flags import parse_flags\n"
        "from syntheocc.training.config import TrainConfig\n"
        "try:\n    parse_flags(TrainConfig, ['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'transformers'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--use_cbgs" in done.stdout


def test_an_unknown_flag_is_an_error(capsys):
    with pytest.raises(SystemExit):
        parse("--no_such_flag=1")
    assert "unrecognized arguments: --no_such_flag" in capsys.readouterr().err


def test_the_environment_names_folders():
    config = parse(EXP_NAME="mine", MODEL_DIR="ckp/base", DATA_USED="mpis")
    assert str(config.output_dir) == "ckp/mine" and config.pretrained_model_name_or_path == "ckp/base"
    assert config.mtp_path == "mpis" and config.condition_kind == "mpi"
    assert str(parse(EXP_NAME="mine", OUTPUT_DIR="here").output_dir) == "here"
    # a variable that is set for inference does not make training read the validation samples
    assert parse(TRAIN_OR_VAL="val").gen_train_or_val == "train"


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ([], "syntheocc"),
        (["--mtp_path=x"], "mpi"),
        (["--occ_kind=occ3d"], "occ3d"),
        (["--occ_kind=occ3d", "--mtp_path=x"], "occ3d"),
        (["--occ_kind=mpi", "--mtp_path=x"], "mpi"),
    ],
)
def test_labels_are_rendered_unless_files_are_asked_for(flags, kind):
    assert parse(*flags).condition_kind == kind


@pytest.mark.parametrize(
    ("flags", "world", "sizes"),
    [
        ([], 4, (8, 1)),  # the curve of the published 8 GPUs, on 4
        (["--train_batch_size=2"], 4, (8, 2)),
        (["--train_batch_size=1"], 4, (4, 1)),  # as the original counts
        (["--train_batch_size=2", "--gradient_accumulation_steps=3"], 2, (12, 2)),
        (["--gradient_accumulation_steps=8"], 1, (8, 1)),
        (["--global_batch_size=32"], 4, (32, 1)),
        (["--global_batch_size=32", "--train_batch_size=4"], 4, (32, 4)),
        (["--global_batch_size=32", "--gradient_accumulation_steps=2"], 4, (32, 4)),
    ],
)
def test_the_global_batch(flags, world, sizes):
    assert parse(*flags).batch_sizes(world) == sizes


def test_batch_sizes_that_contradict_each_other():
    config = parse("--global_batch_size=32", "--gradient_accumulation_steps=3")
    with pytest.raises(ValueError, match="32 is not 2 x 3 x 4"):
        config.batch_sizes(4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"height": 450}, "multiples of 8, got 450x800"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"mpi_dropout": 1.5}, "mpi_dropout is a share"),
        ({"text_dropout": 0.1, "proportion_empty_prompts": 0.2}, "two names of one thing"),
        ({"ctrl_channel": 256}, "257 .* or 97"),
        ({"samples_per_cell": 3}, "square number"),
        ({"train_modules": "crossframe"}, "give --num_frames"),
        ({"occ_kind": "mpi"}, "folder below the data root as --mtp_path"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"max_samples": 0}, "max_samples"),
    ],
)
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)


def test_pushing_offline_fails_before_training(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        TrainConfig(push_to_hub=True)


def test_what_is_trained_follows_from_the_number_of_frames():
    assert TrainConfig().trained == "crossview+controlnet"
    assert TrainConfig(num_frames=7).trained == "crossframe"
    assert TrainConfig(num_frames=7, train_modules="all").trained == "all"


def test_the_choices_are_those_of_the_training_step():
    hints = typing.get_type_hints(TrainConfig)
    assert set(typing.get_args(typing.get_args(hints["train_modules"])[0])) == set(typing.get_args(Trained))
    assert set(typing.get_args(hints["compile"])) == set(typing.get_args(Compiled))


def test_what_was_open_is_filled_in_for_the_loop():
    config = TrainConfig(mixed_precision="fp16").resolved(world=2, max_train_steps=10)
    assert (config.global_batch_size, config.micro_batch_size, config.max_train_steps) == (8, 1, 10)
    assert (config.occ_kind, config.train_modules, config.text_dropout) == ("syntheocc", "crossview+controlnet", 0.1)
    assert TrainConfig().global_batch_size is None
    assert TrainConfig(dataloader_num_workers=9).resolved(2, 10).dataloader_num_workers == 9
    assert 0 <= TrainConfig().resolved(1, 10).dataloader_num_workers <= 4
