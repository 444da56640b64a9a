"""Training with a model's passes recorded as CUDA graphs, held against training as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syntheocc.engine.recorded import RecordedModel


def assert_trains_alike(
    model: nn.Module,
    recorded: RecordedModel,
    answer: Callable[[Any], Any],
    loss_of: Callable[[Any], Tensor],
    dtype: torch.dtype | None,
) -> None:
    """The same losses and gradients in every step, also after the weights have changed in place.

    Args:
        model: in training mode, without random numbers.
        recorded: of the model.
        answer: the model, or `recorded` -> its output.
        loss_of: output -> loss.
        dtype: of autocast.
    """
    device = next(model.parameters()).device.type
    seen = []
    for step in range(3):
        found = []
        for network in (model, recorded):
            model.zero_grad(set_to_none=True)
            # As a training loop does: a recording must not keep what an outer autocast remembers of the weights.
            with torch.autocast(device, dtype, enabled=dtype is not None):
                output = answer(network)
            loss = loss_of(output)
            loss.backward()
            gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
            found.append((loss.item(), gradients))
            # What holds a graph of this step holds the parameters' accumulators on its stream, which is not recorded.
            del output, loss
        rounding = 1e-4 if dtype is None else 1e-2
        assert found[0][0] == pytest.approx(found[1][0], rel=rounding), step
        seen.append(found[1][0])
        both = zip(found[0][1], found[1][1], strict=True)
        pairs = [(one, other) for one, other in both if one is not None and other is not None]
        apart = sum(float((other - one).double().square().sum()) for one, other in pairs) ** 0.5
        whole = sum(float(one.double().square().sum()) for one, _ in pairs) ** 0.5
        assert apart < (1e-3 if dtype is None else 0.1) * whole
        for one, other in zip(found[0][1], found[1][1], strict=True):
            if one is None or other is None:
                # A replay gives zeros for what an output without a gradient led to.
                assert all(g is None or not g.any() for g in (one, other))
            elif dtype is None:
                torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3 * float(one.abs().max()) + 1e-6)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
    assert max(seen) - min(seen) > 0.05 * seen[0]
    assert len(recorded._networks._recordings) == (1 if device == "cuda" else 0)
