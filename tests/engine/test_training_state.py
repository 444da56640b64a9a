import json
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from syntheocc.engine import state

VALUE = {
    "step": 3,
    "rate": 0.1 + 0.2,
    "odd": [math.inf, -math.inf],
    "flag": True,
    "nothing": None,
    "tuple": (1, ("a", 2.5)),
    "by_number": {0: {"exp_avg": torch.arange(3.0)}, 10: {"exp_avg": torch.zeros(())}},
    "marked": {"$tensor": 1},
    "big": 2**70,
}


def test_state_comes_back_equal_and_of_the_same_types(tmp_path):
    state.save_state(tmp_path, "training_state", VALUE | {"half": torch.ones(2, dtype=torch.bfloat16)})
    read = state.load_state(tmp_path, "training_state")
    assert read.pop("half").dtype == torch.bfloat16
    tensors, expected = read.pop("by_number"), dict(VALUE)
    wanted = expected.pop("by_number")
    assert read == expected and type(read["tuple"]) is tuple and type(read["flag"]) is bool
    assert list(tensors) == [0, 10]
    assert all(torch.equal(tensors[key]["exp_avg"], wanted[key]["exp_avg"]) for key in wanted)
    # readable by anyone, without executing anything
    assert json.loads((tmp_path / "training_state.json").read_text())["step"] == 3
    assert not any(b"pickle" in path.read_bytes() for path in tmp_path.iterdir())


def test_tensors_that_share_memory_are_stored_each(tmp_path):
    base = torch.arange(6.0)
    state.save_tensors(tmp_path / "a.safetensors", {"base": base, "view": base.view(2, 3).T, "part": base[:2]})
    read = state.load_tensors(tmp_path / "a.safetensors")
    assert torch.equal(read["view"], base.view(2, 3).T) and torch.equal(read["part"], base[:2])


def test_what_cannot_be_stored_or_read_is_named(tmp_path):
    for bad, where in (({"a": [object()]}, r"s\.a\.0: a object"), ({"a": {1.5: 2}}, r"s\.a: the key 1\.5")):
        with pytest.raises(ValueError, match=where):
            state.save_state(tmp_path, "s", bad)
    with pytest.raises(ValueError, match=r"gone.safetensors: no such file"):
        state.load_state(tmp_path, "gone")
    state.save_state(tmp_path, "s", VALUE)
    (tmp_path / "s.json").write_text('{"weights": {"$tensor": "elsewhere"}}')
    with pytest.raises(ValueError, match=r"s.json: does not fit"):
        state.load_state(tmp_path, "s")
    raw = (tmp_path / "s.safetensors").read_bytes()
    for damaged in (raw[:-3], b"", b"\x80\x04."):
        (tmp_path / "s.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"s.safetensors: not a safetensors file"):
            state.load_state(tmp_path, "s")


def test_random_numbers_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.randn(3).tolist()

    state.seed_everything(7)
    np.random.normal()  # leaves a second normal number waiting in the legacy generator
    state.save_state(tmp_path, "random", state.random_state())
    first = draw()
    draw()
    state.set_random_state(state.load_state(tmp_path, "random"))
    assert draw() == first


def test_only_what_is_trained_is_stored():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    module[0].requires_grad_(False)
    saved = {name: value.detach().clone() for name, value in state.trainable_state(module).items()}
    assert "0.weight" not in saved and {"1.running_mean", "1.num_batches_tracked", "2.weight"} <= set(saved)
    module(torch.randn(4, 2))
    with torch.no_grad():
        module[2].weight += 1
        module[0].weight += 1
    frozen = module[0].weight.clone()
    state.load_trainable(module, saved, "here")
    assert all(torch.equal(value, saved[name]) for name, value in state.trainable_state(module).items())
    assert torch.equal(module[0].weight, frozen)
    module[0].requires_grad_(True)
    with pytest.raises(ValueError, match=r"here: other parameters were trained: it lacks 2 \(first \['0.bias'"):
        state.load_trainable(module, saved, "here")
    module[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"here: 2.weight is \[3\], the model's \[1, 2\]"):
        state.load_trainable(module, saved | {"2.weight": torch.zeros(3)}, "here")


def test_names_do_not_depend_on_compilation():
    module = nn.Sequential(nn.Linear(1, 1))
    names = set(state.trainable_state(module))
    module[0] = torch.compile(module[0])
    assert set(state.trainable_state(module)) == names


def test_an_optimizer_continues_by_name_with_the_jobs_settings():
    def optimizer_of(module, rate, reverse):
        parameters = list(module.parameters())
        return torch.optim.AdamW(reversed(parameters) if reverse else parameters, lr=rate, fused=True)

    module = nn.Linear(3, 1)
    names = {p: name for name, p in module.named_parameters()}
    optimizer = optimizer_of(module, 0.1, reverse=False)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = state.named_optimizer_state(optimizer, names)
    other = optimizer_of(module, 0.2, reverse=True)
    state.load_named_optimizer_state(other, names, saved)
    assert torch.equal(other.state[module.weight]["exp_avg"], optimizer.state[module.weight]["exp_avg"])
    assert other.state[module.weight]["step"] == 1 and other.param_groups[0]["lr"] == 0.2
    with pytest.raises(ValueError, match="other parameters.*scale"):
        state.load_named_optimizer_state(other, names, {"scale": {}})


def test_moments_take_the_memory_format_of_their_parameter(tmp_path):
    """The fused AdamW reads parameter, gradient and moments in the order of memory."""

    def step(conv, optimizer):
        conv(torch.arange(64.0).reshape(1, 4, 4, 4) / 64).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def make():
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        return conv, torch.optim.AdamW(conv.parameters(), lr=0.1, fused=True)

    conv, optimizer = make()
    names = {p: name for name, p in conv.named_parameters()}
    step(conv, optimizer)
    state.save_state(tmp_path, "optimizer", state.named_optimizer_state(optimizer, names))
    state.save_tensors(tmp_path / "weights.safetensors", state.trainable_state(conv))
    step(conv, optimizer)
    other, resumed = make()
    names = {p: name for name, p in other.named_parameters()}
    state.load_trainable(other, state.load_tensors(tmp_path / "weights.safetensors"), "here")
    state.load_named_optimizer_state(resumed, names, state.load_state(tmp_path, "optimizer"))
    assert resumed.state[other.weight]["exp_avg"].stride() == other.weight.stride() == (36, 1, 12, 4)
    step(other, resumed)
    assert torch.equal(other.weight, conv.weight)
