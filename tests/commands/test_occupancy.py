"""``syntheocc occupancy train | predict | eval``: flags, other names of flags, and what is said of wrong ones."""

import pytest

from syntheocc.commands import main
from syntheocc.commands.occupancy import parse
from syntheocc.occupancy.perception import train
from syntheocc.occupancy.perception.occdepth.settings import OccDepthTrainConfig
from syntheocc.occupancy.perception.registry import MODELS, model_entry
from syntheocc.occupancy.perception.settings import TrainConfig


def config(*argv):
    return parse(argv)[1]


@pytest.mark.parametrize(
    "name",
    [
        "r50_704x256_8f_60e",
        "configs/r50_704x256_8f_60e.py",
        "r50_nuimg_704x256_8f_60e.py",
        "sparseocc-r50-704x256-8f-60e",
    ],
)
def test_a_preset_has_the_names_that_the_published_files_have(name):
    found = config("train", "sparseocc", "--config", name)
    assert isinstance(found, TrainConfig) and found.preset == "r50_704x256_8f_60e" and found.epochs == 60


def test_the_published_flags_mean_ours():
    found = config("train", "sparseocc", "--work_dir", "a", "--resume-from", "a/checkpoint-3")
    assert (str(found.output_dir), found.resume_from_checkpoint) == ("a", "a/checkpoint-3")
    assert str(config("train", "sparseocc", "--work-dir", "b").output_dir) == "b"
    found = config("eval", "--weights", "w", "--eval", "mIoU", "RayPQ", "--work-dir", "out", "--config", "small")
    assert found.metrics == ("miou", "raypq") and str(found.output_dir) == "out" and found.preset == "small"
    assert config("eval", "--eval", "miou,rayiou").metrics == ("miou", "rayiou")
    assert str(config("predict", "--save-occ-path", "occ").output_dir) == "occ"


def test_a_preset_alone_is_its_recipe():
    found = config("train", "sparseocc", "--preset", "r50_704x256_8f")
    assert (found.epochs, found.max_train_steps, found.global_batch_size) == (24, None, 8)
    assert (found.learning_rate, found.lr_warmup_steps, found.lr_warmup_start) == (5e-4, 500, pytest.approx(1 / 3))
    assert (found.lr_scheduler, found.lr_decay, found.max_grad_norm, found.adam_weight_decay) == (
        "step",
        0.2,
        35,
        0.01,
    )
    found = config("train", "sparseocc", "--preset", "r50_704x256_8f_v1_0", "--learning-rate", "1e-3")
    assert (found.lr_scheduler, found.lr_end, found.learning_rate, found.epochs) == ("cosine", 1e-3, 1e-3, 48)
    found = config("train", "sparseocc", "--lr_scheduler=cosine", "--max_train_steps=9")
    assert (found.lr_scheduler, found.lr_end, found.epochs, found.max_train_steps) == ("cosine", 0, None, 9)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_preset_of_its_own_by_default(model):
    found = config("train", model)
    assert found.preset == model_entry(model).default_preset and "small" in found.preset


def test_occdepth_understands_the_published_command_line(monkeypatch):
    """``source env_semanticKITTI.sh``, then ``train.py logdir=... n_gpus=4 batch_size_per_gpu=1``."""
    name = "occdepth/config/semantic_kitti/multicam_flospdepth_crp_stereodepth_cascadecls_2080ti.yaml"
    monkeypatch.setenv("DATA_CONFIG", name)
    monkeypatch.setenv("DATA_LOG", "logs/kitti")
    found = config("train", "occdepth")
    assert (found.preset, str(found.output_dir), found.global_batch_size) == ("kitti_b3_legacy", "logs/kitti", 4)
    assert (found.epochs, found.labels, found.learning_rate, found.max_grad_norm) == (30, "semantic_kitti", 2e-4, 35.0)
    found = config("train", "occdepth", "logdir=out", "n_gpus=1", "batch_size_per_gpu=2", "data_root=/data/kitti")
    assert (str(found.output_dir), found.global_batch_size, str(found.dataroot)) == ("out", 2, "/data/kitti")
    with pytest.raises(ValueError, match="n_gpus=4, but 1 processes run: start with torchrun --nproc_per_node 4"):
        OccDepthTrainConfig(model="occdepth", n_gpus=4)
    with pytest.raises(ValueError, match="--split and --sequences are of semantic_kitti, nyuv2, tartanair"):
        TrainConfig(model="sparseocc", split="val")


def test_the_labels_are_those_that_the_preset_was_made_for():
    assert config("train", "sparseocc", "--config", "configs/r50_nuimg_704x256_8f_openocc.py").labels == "openocc_v2"
    assert config("train", "sparseocc", "--preset", "small").labels == "occ3d"
    assert config("train", "sparseocc", "--preset", "small", "--labels", "openocc_v2").labels == "openocc_v2"
    assert config("train", "occflownet", "--preset", "occflownet_3d").labels == "occ3d"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "syntheocc occupancy {build,train,predict,eval,submit,check-submission,export}"),
        (["trian"], "train, build, predict, eval, submit"),
        (["train"], "sparseocc"),
        (["train", "nano"], "sparseocc"),
        (["train", "sparseocc", "--preset", "huge"], "r50_704x256_8f"),
        (["train", "sparseocc", "--config", "configs/r50_huge.py"], "r50_704x256_8f"),
        (["train", "sparseocc", "--presett", "tiny"], "--preset"),
        (["train", "sparseocc", "--epochs", "2", "--max_train_steps", "3"], "one of them"),
        (["eval", "--eval", "bbox"], "miou, rayiou, raypq"),
        (["predict", "--half", "fp8"], "bf16"),
        (["predict", "--device", "gpu"], "cuda:1"),
        (["predict", "--weights", "nowhere"], "nowhere"),
        (["predict", "--weights", "nowhere.pth"], "r50_704x256_8f"),
        (["predict", "--weights", "nowhere.pth", "--preset", "small"], "no such file"),
        (["predict", "--weights", "nowhere.pth", "--preset", "huge"], "r50_704x256_8f"),
    ],
)
def test_what_is_wrong_is_named_with_what_there_is(argv, said, capsys):
    try:
        status = main(["occupancy", *argv])
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    assert status == 2 and said in " ".join((captured.out + captured.err).replace("│", " ").split())


def test_help_is_there(capsys):
    for argv in (["--help"], ["train", "sparseocc", "--help"], ["eval", "--help"]):
        try:
            assert main(["occupancy", *argv]) == 0
        except SystemExit as stopped:
            assert stopped.code == 0
        assert "occupancy" in capsys.readouterr().out


def test_the_program_of_a_model_that_there_is_not_says_so(capsys):
    assert train.main(["--model=nano"]) == 2
    assert "sparseocc" in capsys.readouterr().err
