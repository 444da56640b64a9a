import math
import sys

import pytest
import torch
from torch import nn

from syntheocc.engine.loop_config import LoopConfig
from syntheocc.engine.optimizers import learning_rate_factor, make_optimizer, trained_parameters


def curve(name, steps, **options):
    factor = learning_rate_factor(name, 2, 6, **options)
    return [factor(step) for step in range(steps)]


def test_schedules_by_hand():
    assert curve("constant", 4) == [1, 1, 1, 1]  # has no warm-up, like diffusers'
    assert curve("constant_with_warmup", 4) == [0, 0.5, 1, 1]
    assert curve("linear", 8) == [0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0]
    assert curve("polynomial", 7, power=2.0) == [0, 0.5, 1, 0.5625, 0.25, 0.0625, 0]
    half = math.sqrt(0.5)
    assert curve("cosine", 7) == pytest.approx([0, 0.5, 1, (1 + half) / 2, 0.5, (1 - half) / 2, 0])
    assert curve("cosine_with_restarts", 7, num_cycles=2) == pytest.approx([0, 0.5, 1, 0.5, 1, 0.5, 0])
    assert curve("step", 7, milestones=(4, 6), decay=0.2) == pytest.approx([0, 0.5, 1, 1, 0.2, 0.2, 0.04])
    with pytest.raises(ValueError, match="'steps' is no schedule.*cosine.*step"):
        learning_rate_factor("steps", 0, 1)
    with pytest.raises(ValueError, match="lr_milestones"):
        learning_rate_factor("step", 0, 1)


def test_a_schedule_begins_and_ends_where_it_is_told():
    assert curve("linear", 8, warmup_start=0.5, end=0.2) == pytest.approx([0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert curve("polynomial", 7, end=0.2) == pytest.approx(curve("linear", 7, end=0.2))
    assert curve("cosine", 7, end=0.2)[2::2] == pytest.approx([1, 0.6, 0.2])
    with pytest.raises(ValueError, match="lr_milestones are steps in ascending order"):
        LoopConfig(lr_milestones=(4, 4))
    with pytest.raises(ValueError, match="lr_end is in"):
        LoopConfig(lr_end=1.5)


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts"])
def test_schedules_are_those_of_diffusers(name):
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=30, num_cycles=3)
    ours = learning_rate_factor(name, 5, 30, num_cycles=3)
    for step in range(31):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_only_float32_is_trained():
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    module[0].requires_grad_(False).to(torch.bfloat16)
    assert list(trained_parameters(module)) == ["1.weight", "1.bias"]
    module[1].to(torch.float16)
    with pytest.raises(ValueError, match="1.weight is torch.float16; trained parameters are float32"):
        trained_parameters(module)
    with pytest.raises(ValueError, match="nothing would be trained"):
        trained_parameters(module.requires_grad_(False))


def test_groups_hold_every_trained_parameter_once():
    module = nn.Linear(2, 1)
    trained = dict(module.named_parameters())
    optimizer = make_optimizer(
        LoopConfig(learning_rate=0.1), trained, [{"params": [module.weight]}, {"params": [module.bias], "lr": 0.01}]
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]
    for groups in ([[module.weight]], [[module.weight, module.bias], [module.bias]]):
        with pytest.raises(ValueError, match="each of the 2 trained ones once"):
            make_optimizer(LoopConfig(), trained, [{"params": group} for group in groups])


def test_8_bit_adam_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        make_optimizer(LoopConfig(use_8bit_adam=True), dict(nn.Linear(1, 1).named_parameters()))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_train_steps": 0}, "max_train_steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"adam_beta2": 1.0}, r"adam_beta2 is in \[0, 1\)"),
        ({"adam_epsilon": 0.0}, "adam_epsilon"),
        ({"checkpoints_total_limit": 0}, "checkpoints_total_limit is 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"max_grad_norm": math.inf}, "max_grad_norm is inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoopConfig(**settings)
