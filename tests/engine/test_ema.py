import pytest
import torch
from torch import nn

from syntheocc.engine.ema import EMA


def test_numbers_by_hand():
    weight = nn.Parameter(torch.tensor([0.0]))
    ema = EMA({"weight": weight}, decay=0.5)
    seen = []
    for value in (10.0, 10.0, 1.0):
        weight.data.fill_(value)
        ema.update()
        seen.append(ema.averages["weight"].item())
    # decays (1+n)/(10+n): 1/10, 2/11, 3/12; then 9.0, 10 - 2/11, and a quarter of that plus three quarters of 1
    assert seen == pytest.approx([9.0, 10 - 2 / 11, 0.25 * (10 - 2 / 11) + 0.75])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_the_slow_average(dtype):
    generator = torch.Generator().manual_seed(0)
    parameters = {name: nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype)) for name in "abc"}
    ema = EMA(parameters, decay=0.9)
    slow = {name: p.detach().double() for name, p in parameters.items()}
    for n in range(200):
        for p in parameters.values():
            p.data += 0.1 * torch.randn(3, 4, generator=generator).to(dtype)
        decay = min(0.9, (1 + n) / (10 + n))
        assert ema.current_decay() == decay
        ema.update()
        slow = {name: decay * slow[name] + (1 - decay) * p.detach().double() for name, p in parameters.items()}
    for name, average in ema.averages.items():
        assert average.dtype == torch.float32
        assert (average.double() - slow[name]).abs().max() < 1e-5


def test_the_parameters_come_back_whatever_happens_inside():
    module = nn.Linear(2, 2)
    ema = EMA(dict(module.named_parameters()))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        module.weight += 1
    after = module.weight.detach().clone()
    with pytest.raises(RuntimeError, match="boom"), ema.applied():
        assert torch.equal(module.weight, before["weight"])
        with pytest.raises(RuntimeError, match="already set aside"):
            ema.store()
        raise RuntimeError("boom")
    assert torch.equal(module.weight, after)
    with pytest.raises(RuntimeError, match="nothing was set aside"):
        ema.restore()


def test_a_restored_average_continues_exactly():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    first = EMA({"weight": weight}, decay=0.99)
    first.update()
    state = {"updates": first.updates, "averages": {k: v.clone() for k, v in first.averages.items()}}
    weight.data += 1
    second = EMA({"weight": weight}, decay=0.99)
    second.load_state_dict(state)
    first.update()
    second.update()
    assert torch.equal(first.averages["weight"], second.averages["weight"]) and first.updates == second.updates


def test_what_is_no_average_is_refused():
    weight = {"weight": nn.Parameter(torch.zeros(2))}
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="decay"):
            EMA(weight, decay)
    with pytest.raises(ValueError, match="no parameters"):
        EMA({})
    with pytest.raises(ValueError, match="other parameters.*bias"):
        EMA(weight).load_state_dict({"updates": 1, "averages": {"weight": torch.zeros(2), "bias": torch.zeros(1)}})
    with pytest.raises(ValueError, match=r"weight is \[3\], the parameter \[2\]"):
        EMA(weight).load_state_dict({"updates": 1, "averages": {"weight": torch.zeros(3)}})


def test_the_decay_may_rise_exponentially_from_a_later_step():
    """Specs/occflownet_splattingocc.md V18: BEVDet's averages, whose count begins at 10,560."""
    weight = torch.nn.Parameter(torch.zeros(1))
    ema = EMA({"weight": weight}, decay=0.999, ramp=2000, first=10560)
    for step, expected in ((10561, 0.993915), (12000, 0.996524), (16000, 0.998665), (31660, 0.999000)):
        ema.updates = step - 10561
        assert ema.current_decay() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="ramp"):
        EMA({"weight": weight}, ramp=0)
