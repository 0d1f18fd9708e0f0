"""timm's Lookahead, which torch does not hook by itself."""

from __future__ import annotations

import pytest
import torch
from series import Weights
from torch import nn

from rwc_wandb import watch

optim = pytest.importorskip("timm.optim")


@pytest.mark.parametrize("has_scheduler", [False, True])
@pytest.mark.parametrize("cleared", [False, True])
def test_lookahead_is_measured_after_its_own_step(
    has_scheduler: bool, cleared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = optim.Lookahead.step
    monkeypatch.setattr(optim.Lookahead, "step", getattr(step, "__wrapped__", step))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    optimizer = optim.create_optimizer_v2(model, opt="lookahead_sgd", lr=0.1)
    if has_scheduler:
        torch.optim.lr_scheduler.ConstantLR(optimizer)
    if cleared:
        optimizer.zero_grad()
    monitor = watch(model, optimizer, run=False)
    weights = Weights()
    weights.save(model)
    for _ in range(13):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        weights.save(model)
    monitor.close()
    weights.check(monitor.history)
