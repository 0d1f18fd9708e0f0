"""Accelerate's tracker as the run, its prepared model and optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from series import Weights
from standin import StandIn
from torch import nn

from rwc_wandb import watch

accelerate = pytest.importorskip("accelerate")


@pytest.mark.parametrize("prepared_first", [True, False])
def test_the_tracker_is_the_run(tmp_path: Path, standin: StandIn, prepared_first: bool) -> None:
    accelerator = accelerate.Accelerator(cpu=True, log_with="wandb", gradient_accumulation_steps=2)
    accelerator.init_trackers("p", config={"lr": 0.1})
    run = accelerator.get_tracker("wandb", unwrap=True)
    tracker = run if prepared_first else accelerator.get_tracker("wandb")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if prepared_first:
        model, optimizer = accelerator.prepare(model, optimizer)
    monitor = watch(model, optimizer, run=tracker, log_every=1, histogram_every=None)
    if not prepared_first:
        model, optimizer = accelerator.prepare(model, optimizer)
    weights = Weights()
    weights.save(model)
    for batch in range(6):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.randn(3, 4)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            weights.save(model)
            accelerator.log({"loss": batch})
    accelerator.end_training()
    weights.check(monitor.history)
    rows = {row["rwc/step"]: row for row in standin.run(run.id).rows if "rwc/0" in row}
    assert {step: row["loss"] for step, row in rows.items()} == {1: 1, 2: 3, 3: 5}
    for step, row in rows.items():
        assert row["rwc/0"] == pytest.approx(float(monitor.history.rwc[step - 1, 0]), rel=1e-6)
