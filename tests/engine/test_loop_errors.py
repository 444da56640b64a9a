import multiprocessing

import pytest
import torch
from line_problem import Line, LineConfig, Points, train

from syntheocc.engine.checkpoints import CheckpointFolder
from syntheocc.engine.loop import run_loop
from syntheocc.engine.samplers import EpochSampler
from syntheocc.engine.trackers import read_log


def config(folder, **settings):
    return LineConfig(output_dir=folder, **{"max_train_steps": 4, "global_batch_size": 2} | settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with checkpoints at steps 2 and 4."""
    folder = tmp_path_factory.mktemp("trained")
    train(config(folder, checkpointing_steps=2))
    return folder


def test_runs_are_not_mixed_in_one_folder(trained):
    with pytest.raises(ValueError, match="checkpoints of an earlier run .checkpoint-4.; give resume_from_checkpoint="):
        train(config(trained))
    with pytest.raises(ValueError, match="checkpoints after checkpoint-2 .checkpoint-4.; move them away"):
        train(config(trained, resume_from_checkpoint="checkpoint-2"))
    with pytest.raises(ValueError, match="checkpoint-3: no such checkpoint"):
        train(config(trained, resume_from_checkpoint="checkpoint-3"))


def test_a_checkpoint_may_begin_a_run_elsewhere(trained, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 5.0}\n')  # of a run that never came to a checkpoint
    result, _ = train(config(tmp_path, resume_from_checkpoint=str(trained / "checkpoint-2")))
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [3, 4]
    assert (
        result.step == 4
        and (tmp_path / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_points": 11}, "checkpoint-4: was trained with dataset_length 10, now it is 11"),
        ({"seed": 1}, "checkpoint-4: was trained with seed 0, now it is 1"),
        ({"use_ema": True}, "checkpoint-4: it has no averages"),
    ],
)
def test_a_run_of_other_settings_is_not_continued(trained, settings, message):
    with pytest.raises(ValueError, match=message):
        train(config(trained, max_train_steps=6, resume_from_checkpoint="latest", **settings))


def test_a_run_of_other_parameters_is_not_continued(trained):
    module = Line(config(trained))
    module.frozen.requires_grad_(True)
    with pytest.raises(ValueError, match="trainable.safetensors: other parameters were trained: it lacks 2 .first"):
        train(config(trained, max_train_steps=6, resume_from_checkpoint="latest"), module=module)


@pytest.mark.parametrize("name", ["trainable.safetensors", "training_state.safetensors", "training_state.json"])
def test_damaged_checkpoints_are_named(trained, tmp_path, name):
    import shutil

    shutil.copytree(trained / "checkpoint-4", tmp_path / "checkpoint-4")
    raw = (tmp_path / "checkpoint-4" / name).read_bytes()
    (tmp_path / "checkpoint-4" / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=f"checkpoint-4/{name}: .*damaged"):
        train(config(tmp_path, max_train_steps=6, resume_from_checkpoint="latest"))
    (tmp_path / "checkpoint-4" / name).unlink()
    with pytest.raises(ValueError, match=f"checkpoint-4/{name}: no such file"):
        train(config(tmp_path, max_train_steps=6, resume_from_checkpoint="latest"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"global_batch_size": 3, "micro_batch_size": 2}, "global_batch_size 3 is no multiple"),
        ({"report_to": "paper"}, "'paper' is no tracker"),
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, settings, message):
    if torch.cuda.is_available() and "fp16" in message:
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=message):
        train(config(tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_the_modules_answer_is_checked(tmp_path):
    class Odd(Line):
        answer = {}

        def forward(self, batch, step, positions):
            loss = super().forward(batch, step, positions)["loss"]
            return {name: value(loss) for name, value in self.answer.items()}

    for answer, message in (
        ({"error": lambda loss: loss}, r"gave \['error'\]; it must give a dict with 'loss'"),
        ({"lr": lambda loss: loss, "loss": lambda loss: loss}, r"gave \['lr'\]; these names are the loop's own"),
        ({"loss": lambda loss: loss, "error": lambda loss: loss.expand(2)}, r"'error' is no scalar but \[2\]"),
    ):
        settings = config(tmp_path)
        module = Odd(settings)
        module.answer = answer
        with pytest.raises(ValueError, match=message):
            train(settings, module=module)


def test_the_sampler_is_the_datasets(tmp_path):
    settings = config(tmp_path)
    with pytest.raises(ValueError, match="the sampler orders 9 samples, the dataset has 10"):
        run_loop(
            settings,
            module=Line(settings),
            dataset=Points(10),
            collate=torch.utils.data.default_collate,
            sampler=EpochSampler(9),
            save_model=lambda folder: None,
        )


def test_an_error_in_saving_leaves_the_former_checkpoint(tmp_path):
    settings = config(tmp_path, checkpointing_steps=2)

    def save_model(folder):
        (folder / "half").write_text("half")
        if CheckpointFolder(tmp_path).steps():
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        run_loop(
            settings,
            module=Line(settings),
            dataset=Points(10),
            collate=torch.utils.data.default_collate,
            sampler=EpochSampler(10),
            save_model=save_model,
        )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint-2", "log.jsonl"]


def test_a_run_on_other_samples_or_in_another_order_is_not_continued(trained, tmp_path):
    more = config(tmp_path, max_train_steps=6, resume_from_checkpoint=str(trained / "checkpoint-2"))
    with pytest.raises(ValueError, match="checkpoint-2: was trained on other samples, or in another order"):
        train(more, order=lambda epoch: list(range(10)))  # as --use_cbgs, switched on in the middle
    with pytest.raises(ValueError, match="checkpoint-2: was trained on other samples, or in another order"):
        train(more, names=[f"another-{i}" for i in range(10)])


def test_an_error_ends_the_reading_processes(tmp_path):
    """The traceback keeps the readers' iterator; at the interpreter's end they would be waited for forever."""
    settings = config(tmp_path, max_train_steps=9, dataloader_num_workers=2)
    with pytest.raises(ValueError, match="not finite") as kept:
        train(settings, points=Points(10, spoilt=range(10)))
    assert multiprocessing.active_children() == [], kept
    with pytest.raises(ValueError, match="none of the dataset's 10 samples can be read"):
        train(config(tmp_path / "bad", dataloader_num_workers=2), points=Points(10, bad=range(10)))
    assert multiprocessing.active_children() == []


def test_a_list_of_bad_samples_with_damaged_lines_does_not_stop_a_run(tmp_path):
    listed = tmp_path / "bad_samples.jsonl"  # a disk was full for a while
    listed.write_text(
        '{"token": "point-1", "rea{"token": "point-2", "reason": "torn page"}\n{"token": "point-3"}\n3}\n'
    )
    train(config(tmp_path, max_train_steps=6), points=Points(10, bad=[3, 4]))
    assert [line for line in listed.read_text().splitlines() if "point-4" in line or "point-3" in line] == [
        '{"token": "point-3"}',
        '{"token": "point-4", "reason": "torn page"}',
    ]
