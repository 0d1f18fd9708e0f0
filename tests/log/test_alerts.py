"""Alerts, as they reach W&B."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from standin import StandIn
from training import Training, network, rwc_rows

from rwc_wandb import elementwise_relative_weight_change, relative_weight_change, watch
from rwc_wandb.log.summary import summary_of
from rwc_wandb.view.render import write_pictures


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


def test_a_training_that_explodes_is_recorded_as_what_it_is(standin: StandIn, tmp_path: Path) -> None:
    """The first layer grows a thousandfold per step until it is infinite, the second stays 0, the third starts at 0."""
    run = wandb.init(project="p")
    model = network()
    first, second, third = model["layer1"].weight, model["layer2"][0].weight, model["layer2"][1].weight
    with torch.no_grad():
        second.zero_()
        third.zero_()
    monitor = watch(model, log_every=4, histogram_every=5)
    weights = [[one.detach().clone() for one in (first, second, third)]]

    def train() -> None:
        for step in range(1, 21):
            with torch.no_grad():
                first.mul_(1000)
                third.add_(1)
            weights.append([one.detach().clone() for one in (first, second, third)])
            monitor.measure()
            run.log({"loss": math.nan if weights[-1][0].isinf().any() else step})
        run.finish()

    with pytest.warns(UserWarning, match="are NaN or infinite") as said:
        train()
    server = standin.run(run.id)
    spoilt = next(step for step, (one, *_) in enumerate(weights) if not one.isfinite().all())
    count = int((~weights[spoilt][0].isfinite()).sum())
    text = f"{count} weights of layer layer1 are NaN or infinite after optimizer step {spoilt}."
    assert [alert.text for alert in server.alerts] == [text]
    assert [str(warning.message) for warning in said] == [f"rwc_wandb: {text}"]

    history = monitor.history
    for metric, series in (
        (relative_weight_change, history.rwc),
        (elementwise_relative_weight_change, history.rwc_elementwise),
    ):
        expected = [[metric(*pair).item() for pair in zip(new, old, strict=True)] for old, new in pairwise(weights)]
        np.testing.assert_allclose(series, expected, rtol=1e-6)
    assert np.isnan(history.rwc[spoilt - 1 :, 0]).all()
    assert (history.rwc[:, 1] == 0).all()
    assert history.rwc[0, 2] == np.inf

    rows = rwc_rows(server)
    assert [row["rwc/layer2/0"] for row in rows] == [0] * 5
    assert rows[0]["rwc/layer2/1"] == math.inf
    assert math.isnan(rows[-1]["rwc/layer1"])
    summary = summary_of(history)
    assert all(value is None or math.isfinite(value) for value in summary.values())
    column = server.tables["rwc_charts/rwc_curves_table"]
    drawn = {tuple(line[:1] + line[4:5]): line[5] for line in column.data}
    assert drawn["layer1", spoilt] is None
    assert drawn["layer2.1", 1] is None
    assert drawn["layer2.1", 2] == 1
    assert drawn["layer2.0", 3] == 0
    assert [path.name for path in write_pictures(history, tmp_path)] == ["rwc.html", "rwc.png"]
