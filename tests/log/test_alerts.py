"""What a run's owner is told at once, as it reaches W&B."""

from __future__ import annotations

import math

import pytest
import torch
from standin import StandIn
from training import Training, rwc_rows


def test_weights_that_are_not_finite_are_told_once(standin: StandIn) -> None:
    training = Training(standin, log_every=2, histogram_every=2)

    def train() -> None:
        for step in training.steps(8):
            if step == 2:
                with torch.no_grad():
                    training.model["layer1"].weight[0, 0] = math.nan
            training.run.log({"loss": step})

    with pytest.warns(UserWarning, match=r"1 weights of layer layer1 .* after optimizer step 3"):
        train()
    server = training.finish()
    assert [alert.title for alert in server.alerts] == ["Non-finite weights"]
    assert "layer1" in server.alerts[0].text
    assert math.isnan(rwc_rows(server)[-1]["rwc/layer1"])
    assert rwc_rows(server)[-1]["rwc/layer2/0"] > 0


def test_layers_that_explode_or_stop_are_told_once_each_if_asked(standin: StandIn) -> None:
    training = Training(standin, log_every=2, histogram_every=None, alert_above=2.0, alert_below=1e-5)

    def train() -> None:
        for step in training.steps(12):
            if step == 4:
                training.model["layer1"].weight.data *= 5
            if step == 8:
                training.model["layer2"][1].requires_grad_(False)
                training.optimizer.param_groups[0]["lr"] = 1e-9
            training.run.log({"loss": step})

    with pytest.warns(UserWarning, match="rwc_wandb: The mean RWC of layer") as said:
        train()
    server = training.finish()
    assert len(said) == 2
    exploding, stopped = server.alerts
    assert (exploding.title, stopped.title) == ("Exploding layer", "Stopped layer")
    mean = training.monitor.history.rwc[4:6, 0].astype(float).mean()
    assert exploding.text == f"The mean RWC of layer layer1 up to optimizer step 6 is {mean:.3g}: above 2."
    assert "layer1 (and 2 others) up to optimizer step 10" in stopped.text
