import json
import signal

import numpy as np
import pytest
import torch
from line_problem import Line, LineConfig, Points, train
from torch import nn

from syntheocc.engine.checkpoints import CheckpointFolder
from syntheocc.engine.ema import EMA
from syntheocc.engine.loop import LoopConfig, run_loop
from syntheocc.engine.loop_state import LoopState
from syntheocc.engine.samplers import EpochSampler
from syntheocc.engine.state import load_state, load_tensors
from syntheocc.engine.trackers import read_log


def config(folder, **settings):
    defaults = {"max_train_steps": 12, "global_batch_size": 4, "learning_rate": 0.05, "checkpointing_steps": 0}
    return LineConfig(output_dir=folder, **defaults | settings)


def curve(folder):
    return [line["loss"] for line in read_log(folder / "log.jsonl")]


class Slope(nn.Module):
    """Loss (w - 1)^2 with w = 0 at first: 1, with gradient -2."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, batch, step, positions):
        return {"loss": (self.w * batch - 1).square().mean()}


def slope(folder, module, identity=None, **settings):
    options = {"learning_rate": 0.25, "global_batch_size": 2, "adam_weight_decay": 0.0, "checkpointing_steps": 0}
    return run_loop(
        LoopConfig(output_dir=folder, **options | settings),
        module=module,
        dataset=[torch.ones(1)] * 2,
        collate=torch.stack,
        sampler=EpochSampler(2),
        save_model=lambda folder: None,
        identity=identity,
    )


def test_two_steps_by_hand(tmp_path):
    module = Slope()
    result = slope(tmp_path, module, max_train_steps=2, max_grad_norm=0.5)
    first, second = read_log(tmp_path / "log.jsonl")
    # The gradient is -2 (logged unclipped). Adam's first step is the learning rate itself: w = 0.25.
    assert first == {"step": 1, "loss": 1.0, "grad_norm": 2.0, "lr": 0.25}
    assert second["loss"] == pytest.approx(0.75**2) and second["grad_norm"] == pytest.approx(1.5)
    # Both were clipped to 0.5, so the second step is the learning rate again.
    assert module.w.item() == pytest.approx(0.5, abs=1e-6)
    assert (result.step, result.loss, result.interrupted) == (2, second["loss"], None)


def test_without_clipping_the_second_step_is_adams(tmp_path):
    module = Slope()
    slope(tmp_path, module, max_train_steps=2, max_grad_norm=0.0)
    m, v = (0.9 * 0.1 * 2 + 0.1 * 1.5) / (1 - 0.9**2), (0.999 * 0.001 * 4 + 0.001 * 1.5**2) / (1 - 0.999**2)
    assert module.w.item() == pytest.approx(0.25 + 0.25 * m / v**0.5, abs=1e-6)


def test_the_curve_does_not_depend_on_the_micro_batch(tmp_path):
    curves = []
    for micro in (None, 2, 1):
        train(config(tmp_path / str(micro), micro_batch_size=micro))
        curves.append(curve(tmp_path / str(micro)))
    assert len(curves[0]) == 12 and curves[0][-1] < curves[0][0]
    assert np.allclose(curves[1], curves[0], rtol=0, atol=1e-6) and np.allclose(
        curves[2], curves[0], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_and_resumed_run_is_the_uninterrupted_one(tmp_path, workers):
    """Dropout draws from the global generator, the schedule falls, epochs are straddled, gradients accumulate."""
    settings = {
        "dropout": 0.3,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 3,
        "use_ema": True,
        "ema_decay": 0.9,
        "micro_batch_size": 2,
        "dataloader_num_workers": workers,
    }
    _, whole = train(config(tmp_path / "whole", **settings))
    for at, name in ((2, "SIGTERM"), (8, "SIGINT")):
        result, _ = train(
            config(tmp_path / "parts", **settings, signal_at=at, signal_name=name, resume_from_checkpoint="latest")
        )
        assert (result.interrupted, result.step) == (name, at + 1)
        assert CheckpointFolder(tmp_path / "parts").latest().name == f"checkpoint-{at + 1}"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    result, parts = train(config(tmp_path / "parts", **settings, resume_from_checkpoint="latest"))
    assert result.interrupted is None and result.step == 12
    assert (tmp_path / "parts" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    models = [load_tensors(tmp_path / run / "model.safetensors") for run in ("whole", "parts")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_settings_of_the_resumed_run_count_and_are_named(tmp_path, capsys):
    train(config(tmp_path, max_train_steps=3, checkpointing_steps=3))
    train(config(tmp_path, max_train_steps=4, learning_rate=0.01, resume_from_checkpoint="checkpoint-3"))
    assert [line["lr"] for line in read_log(tmp_path / "log.jsonl")] == [0.05, 0.05, 0.05, 0.01]
    said = capsys.readouterr().err
    assert "learning_rate: 0.05 -> 0.01; max_train_steps: 3 -> 4" in said


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """Also where all tensors fit: what the model is made of is saved, and compared as JSON holds it."""
    made = {"preset": {"stages": (1, 2), "legacy": False}, "name": "one"}
    settings = {"max_train_steps": 1, "checkpointing_steps": 1}
    slope(tmp_path, Slope(), identity=made, **settings)
    settings |= {"max_train_steps": 2, "resume_from_checkpoint": "latest"}
    for changed in ({**made, "preset": {"stages": (1, 2), "legacy": True}}, {"name": "one"}):
        with pytest.raises(
            ValueError, match=r"checkpoint-1 is of another model: preset.*legacy.*resume with the preset"
        ):
            slope(tmp_path, Slope(), identity=changed, **settings)
    slope(tmp_path, Slope(), **settings)  # a trainer that does not say what its model is
    assert slope(tmp_path, Slope(), identity=made, **settings | {"max_train_steps": 3}).step == 3


def test_what_is_lost_after_a_checkpoint_is_trained_and_logged_again(tmp_path):
    train(config(tmp_path, checkpointing_steps=4, checkpoints_total_limit=2))
    whole = (tmp_path / "log.jsonl").read_bytes()
    folder = CheckpointFolder(tmp_path)
    assert folder.steps() == [8, 12]  # the limit
    folder.path(12).rename(tmp_path / "lost")
    train(config(tmp_path, checkpointing_steps=4, checkpoints_total_limit=2, resume_from_checkpoint="latest"))
    assert (tmp_path / "log.jsonl").read_bytes() == whole and folder.steps() == [8, 12]
    for name in ("trainable.safetensors", "training_state.safetensors", "training_state.json"):
        assert (folder.path(12) / name).read_bytes() == (tmp_path / "lost" / name).read_bytes()


def test_averages_are_saved_and_the_raw_weights_train_on(tmp_path):
    settings = config(tmp_path, use_ema=True, ema_decay=0.5, checkpointing_steps=12)
    module = Line(settings).to("cuda" if torch.cuda.is_available() else "cpu")
    ema = EMA({name: p for name, p in module.named_parameters() if p.requires_grad}, 0.5)
    optimizer_steps = []

    class Watched(Line):
        def forward(self, batch, step, positions):
            if step and step != (optimizer_steps or [0])[-1]:  # the parameters have just been updated
                optimizer_steps.append(step)
                ema.update()
            return super().forward(batch, step, positions)

    module.__class__ = Watched
    train(settings, module=module)
    with torch.no_grad():  # the last step's weights, wherever the module is by now
        for name, average in ema.averages.items():
            average.lerp_(module.get_parameter(name).detach().to(average.device), 0.5)
    saved = load_tensors(tmp_path / "model.safetensors")
    assert set(saved) == set(ema.averages)
    assert all(torch.allclose(saved[name], average.cpu(), atol=1e-7) for name, average in ema.averages.items())
    in_checkpoint = load_tensors(tmp_path / "checkpoint-12" / "model.safetensors")
    raw = load_tensors(tmp_path / "checkpoint-12" / "trainable.safetensors")
    assert all(torch.equal(saved[name], in_checkpoint[name]) for name in saved)
    assert all(torch.equal(raw[name], module.state_dict()[name]) for name in raw)
    assert not torch.equal(raw["first.weight"], saved["first.weight"])


def test_a_checkpoint_says_how_it_was_made(tmp_path):
    train(config(tmp_path, checkpointing_steps=12))
    checkpoint = tmp_path / "checkpoint-12"
    settings = json.loads((checkpoint / "training_config.json").read_text())
    assert settings["global_batch_size"] == 4 and settings["num_points"] == 10
    state = load_state(checkpoint, "training_state")
    # 48 samples: 4 epochs of 10 and 8 more
    assert state["step"] == 12 and state["sampler"] == {"epoch": 4, "position": 8}
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}


def test_validation_leaves_no_trace_in_the_curve(tmp_path):
    settings = {"dropout": 0.5, "use_ema": True, "validation_steps": 5}
    train(config(tmp_path / "without", **settings))
    seen = []
    module = Line(config(tmp_path, **settings))
    module.frozen.eval()

    def validate(step):
        seen.append((step, module.training, torch.is_grad_enabled(), module.first.weight.detach().clone()))
        torch.randn(7)
        np.random.rand(3)
        return {"error": 0.25, "picture": np.zeros((2, 2, 3), np.uint8)}

    train(config(tmp_path / "with", **settings), module=module, validate=validate)
    assert [entry[:3] for entry in seen] == [(5, False, False), (10, False, False)]
    assert module.training and not module.frozen.training  # as it was given
    assert curve(tmp_path / "with") == curve(tmp_path / "without")
    assert not torch.equal(seen[0][3], module.first.weight)
    assert read_log(tmp_path / "with" / "validation.jsonl") == [
        {"step": 5, "error": 0.25},
        {"step": 10, "error": 0.25},
    ]


def test_a_step_that_is_not_finite_changes_nothing(tmp_path, capsys):
    settings = config(tmp_path, global_batch_size=2, max_train_steps=3)
    weights = []

    class Watched(Line):
        def forward(self, batch, step, positions):
            weights.append(self.first.weight.detach().clone())
            return super().forward(batch, step, positions)

    module = Watched(settings)
    result, _ = train(settings, points=Points(6, spoilt=[3]), module=module, order=lambda epoch: range(6))
    assert result.skipped_steps == [2] and np.isfinite(result.loss)
    assert not torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], module.first.weight) and module.first.weight.isfinite().all()
    assert [line["loss"] is None for line in read_log(tmp_path / "log.jsonl")] == [False, True, False]
    assert "step 2 is skipped: loss nan" in (message := capsys.readouterr().err)
    assert "samples: point-2, point-3" in message


def test_an_infinite_gradient_of_a_finite_loss_is_skipped(tmp_path):
    class Root(Slope):
        def forward(self, batch, step, positions):
            return {"loss": self.w.sqrt().mean()}  # 0, with an infinite slope

    module = Root()
    result = slope(tmp_path, module, max_train_steps=2)
    assert result.skipped_steps == [1, 2] and module.w.item() == 0.0


def test_many_steps_that_are_not_finite_end_the_run(tmp_path):
    with pytest.raises(ValueError, match="not finite in 5 steps in a row, up to step 5"):
        train(config(tmp_path), points=Points(4, spoilt=range(4)))


def test_samples_that_cannot_be_read_are_listed_and_replaced(tmp_path, capsys):
    settings = {"num_points": 6, "max_train_steps": 6}
    result, _ = train(config(tmp_path / "bad", **settings), points=Points(6, bad=[1, 2, 5]))
    assert result.bad_samples == {f"point-{index}": "torn page" for index in (1, 2, 5)}
    assert capsys.readouterr().err.count("point-2 cannot be read, the next one takes its place: torn page") == 1
    listed = [json.loads(line) for line in (tmp_path / "bad" / "bad_samples.jsonl").read_text().splitlines()]
    assert sorted(line["token"] for line in listed) == ["point-1", "point-2", "point-5"]
    # the same points with the replacements written out
    replaced = Points(6)
    for index, by in ((1, 3), (2, 3), (5, 0)):
        replaced.x[index], replaced.y[index] = replaced.x[by], replaced.y[by]
    train(config(tmp_path / "replaced", **settings), points=replaced)
    assert curve(tmp_path / "bad") == curve(tmp_path / "replaced")
    train(config(tmp_path / "many", num_points=50, max_train_steps=13), points=Points(50, bad=range(49)))
    assert capsys.readouterr().err.count("cannot be read, the next") == 20  # and 29 more, listed in the file
    assert len((tmp_path / "many" / "bad_samples.jsonl").read_text().splitlines()) == 49
    with pytest.raises(ValueError, match="none of the dataset's 6 samples can be read"):
        train(config(tmp_path / "none", **settings), points=Points(6, bad=range(6)))


def test_bf16_is_autocast_and_leaves_the_module_as_it_was(tmp_path):
    seen = []

    class Watched(Line):
        def forward(self, batch, step, positions):
            seen.append(self.first(batch["x"]).dtype)
            return super().forward(batch, step, positions)

    settings = config(tmp_path / "bf16", mixed_precision="bf16")
    module = Watched(settings)
    train(settings, module=module)
    assert set(seen) == {torch.bfloat16} and module.first.weight.dtype == torch.float32
    assert module(Points(4)[0] | {"x": Points(4).x}, 0, range(4)) and seen[-1] == torch.float32
    train(config(tmp_path / "fp32"))  # a second job of the process, with another precision
    assert np.allclose(curve(tmp_path / "bf16"), curve(tmp_path / "fp32"), rtol=0.05, atol=0.01)


def test_groups_have_rates_of_their_own(tmp_path):
    settings = config(tmp_path, max_train_steps=1, adam_weight_decay=0.0)
    module = Line(settings)
    before = [module.first.weight.detach().clone(), module.second.weight.detach().clone()]
    groups = [
        {"params": module.first.parameters(), "lr": 0.0},
        {"params": module.second.parameters()},
    ]
    train(settings, module=module, parameter_groups=groups)
    assert torch.equal(module.first.weight, before[0])
    moved = (module.second.weight - before[1]).abs()
    assert torch.allclose(moved[moved > 0], torch.tensor(0.05), atol=1e-4)


def test_8_bit_adam_resumes_exactly(tmp_path):
    pytest.importorskip("bitsandbytes")

    class Wide(Line):  # tensors below 4096 numbers would stay in float32
        def __init__(self, config):
            super().__init__(config)
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(2, 4096), nn.Linear(4096, 1)

    settings = {"use_8bit_adam": True, "learning_rate": 1e-3, "max_train_steps": 8}
    train(config(tmp_path / "whole", **settings), module=Wide(config(tmp_path)))
    for at in (3, -1):
        job = config(tmp_path / "parts", **settings, signal_at=at, resume_from_checkpoint="latest")
        train(job, module=Wide(job))
    state = load_state(tmp_path / "parts" / "checkpoint-4", "training_state")["optimizer"]["first.weight"]
    assert state["__bnb_optimizer_quant_state__"]["state1"].dtype == torch.uint8
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_states_that_accelerate_spreads_over_ranks_are_saved_by_it(tmp_path, monkeypatch):
    """FSDP and DeepSpeed need GPUs; here their way of saving serves a job that is not spread."""
    settings = {"max_train_steps": 8, "dropout": 0.3, "lr_scheduler": "linear", "checkpoints_total_limit": 1}
    train(config(tmp_path / "whole", **settings))
    prepare = LoopState.__init__

    def spread(self, *arguments):
        prepare(self, *arguments)
        self.sharded = True

    monkeypatch.setattr(LoopState, "__init__", spread)
    for at in (3, -1):
        train(config(tmp_path / "parts", **settings, signal_at=at, resume_from_checkpoint="latest"))
    checkpoint = tmp_path / "parts" / "checkpoint-4"
    assert (checkpoint / "accelerate").is_dir() and not (checkpoint / "trainable.safetensors").exists()
    assert np.allclose(curve(tmp_path / "parts"), curve(tmp_path / "whole"), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="use_ema needs whole parameters"):
        train(config(tmp_path / "averaged", use_ema=True))
